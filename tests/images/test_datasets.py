"""Labelled pictures from folders, zips, Tiny-ImageNet as published and manifests."""

from __future__ import annotations

import os
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camlucida.errors import InputError, UsageError
from camlucida.images.datasets import DataSet, Example, Truth, from_torchvision, load
from camlucida.images.read import read_picture
from camlucida.images.sources import Source
from camlucida.values import Box, Label
from laid import BROKEN, PICTURE, objects, packed, table, unreadable, write
from pictures import colours

CLASSES = {
    "train/n02/b.PNG": PICTURE,
    "train/n01/a.PNG": PICTURE,
    "train/n01/c.PNG": PICTURE,
    "boxes.csv": "path,wnid,x0,y0,x1,y1\ntrain/n01/a.PNG,n01,0,2,63,40\ntrain/n02/b.PNG,n02,5,6,5,9\n",
    "classes.csv": "wnid,name\nn01,sea cow\nn02,crane\n",
}
FOUND = {
    "train/n01/a.PNG": ("n01", ((0, 2, 64, 41),)),
    "train/n01/c.PNG": ("n01", ()),
    "train/n02/b.PNG": ("n02", ((5, 6, 6, 10),)),
}
LABELS = (Label("n01", "sea cow"), Label("n02", "crane"))

OFFICIAL = {
    "wnids.txt": "n02\nn01\n",
    "words.txt": "n00\tanother\nn01\tsea cow, manatee\nn02\tcrane\n",
    "train/n01/images/n01_0.PNG": PICTURE,
    "train/n01/images/n01_1.PNG": PICTURE,
    "train/n01/n01_boxes.txt": "n01_0.PNG\t0\t10\t63\t50\nn01_1.PNG\t7\t8\t9\t10\n",
    "train/n02/images/n02_0.PNG": PICTURE,
    "train/n02/n02_boxes.txt": "n02_0.PNG\t1\t1\t1\t1\n",
    "val/images/val_0.PNG": PICTURE,
    "val/images/val_1.PNG": PICTURE,
    "val/val_annotations.txt": "val_0.PNG\tn02\t0\t0\t61\t62\nval_1.PNG\tn01\t3\t4\t5\t6\n",
    "test/images/test_0.PNG": PICTURE,
}
TRAIN = {
    "n01/images/n01_0.PNG": ("n01", ((0, 10, 64, 51),)),
    "n01/images/n01_1.PNG": ("n01", ((7, 8, 10, 11),)),
    "n02/images/n02_0.PNG": ("n02", ((1, 1, 2, 2),)),
}
VAL = {"images/val_0.PNG": ("n02", ((0, 0, 62, 63),)), "images/val_1.PNG": ("n01", ((3, 4, 6, 7),))}
NAMES = (Label("n01", "sea cow, manatee"), Label("n02", "crane"))


class TestClassFolders:
    def test_a_zip(self, tmp_path):
        data = load([packed(tmp_path / "x.zip", CLASSES)])
        assert table(data) == FOUND
        assert data.labels == LABELS
        assert len(data) == 3
        assert all(e.source.read() == PICTURE for e in data.examples)

    def test_a_folder(self, tmp_path):
        data = load([write(tmp_path / "x", CLASSES)])
        assert (table(data), data.labels) == (FOUND, LABELS)

    def test_a_part_of_a_zip(self, tmp_path):
        file = packed(tmp_path / "x.zip", CLASSES)
        assert table(load([f"{file}/train/n01"])) == {k: v for k, v in FOUND.items() if "n01" in k}

    def test_corners_as_told(self, tmp_path):
        file = packed(
            tmp_path / "x.zip", CLASSES | {"boxes.csv": "path,x0,y0,x1,y1\ntrain/n01/a.PNG,0,2,63,40\n"}
        )
        assert table(load([file], corners="half-open"))["train/n01/a.PNG"] == ("n01", ((0, 2, 63, 40),))
        assert table(load([file], corners="inclusive"))["train/n01/a.PNG"] == ("n01", ((0, 2, 64, 41),))

    def test_several_parts_share_one_vocabulary(self, tmp_path):
        first = packed(
            tmp_path / "1.zip", {"train/n05/a.PNG": PICTURE, "classes.csv": "wnid,name\nn05,five\n"}
        )
        second = write(tmp_path / "2", {"n03/a.PNG": PICTURE, "n05/b.PNG": PICTURE})
        data = load([first, second])
        assert data.labels == (Label("n03", "n03"), Label("n05", "five"))
        assert [e.label for e in data.examples] == [1, 0, 1]

    def test_without_names_a_class_is_called_by_its_folder(self, tmp_path):
        data = load(
            [write(tmp_path / "x", {"cat/1.PNG": PICTURE, "dog/1.PNG": PICTURE, "dog/notes.txt": "x"})]
        )
        assert data.labels == (Label("cat", "cat"), Label("dog", "dog"))

    def test_a_picture_in_no_class_folder(self, tmp_path):
        with pytest.raises(
            UsageError, match=r"loose\.PNG lies in no class folder; allowed: CLASS/picture\.jpg"
        ):
            load([write(tmp_path / "x", {"cat/1.PNG": PICTURE, "loose.PNG": PICTURE})])

    @pytest.mark.parametrize("files", [{}, {"notes.txt": "x"}])
    def test_no_pictures(self, tmp_path, files):
        (tmp_path / "x").mkdir()
        with pytest.raises(UsageError, match="no labelled pictures in .*/x; allowed: class folders"):
            load([write(tmp_path / "x", files)])
        with pytest.raises(UsageError, match=r"no labelled pictures in .*/x\.zip"):
            load([packed(tmp_path / "x.zip", files)])

    def test_not_there(self, tmp_path):
        with pytest.raises(UsageError, match="no such picture, folder"):
            load([tmp_path / "none"])

    def test_a_list_of_classes_with_other_columns(self, tmp_path):
        with pytest.raises(UsageError, match=r"classes\.csv; got id, title; allowed: wnid,name"):
            load([write(tmp_path / "x", CLASSES | {"classes.csv": "id,title\nn01,cow\n"})])

    def test_a_box_that_cannot_be_names_its_line(self, tmp_path):
        boxes = "path,wnid,x0,y0,x1,y1\ntrain/n01/a.PNG,n01,9,2,3,40\n"
        with pytest.raises(UsageError, match=r"boxes\.csv, line 2: an empty or inverted inclusive box"):
            load([packed(tmp_path / "x.zip", CLASSES | {"boxes.csv": boxes})])


class TestTinyImageNet:
    def test_train(self, tmp_path):
        data = load([write(tmp_path, OFFICIAL) / "train"])
        assert (table(data), data.labels) == (TRAIN, NAMES)

    def test_val(self, tmp_path):
        data = load([write(tmp_path, OFFICIAL) / "val"])
        assert (table(data), data.labels) == (VAL, NAMES)

    def test_the_whole_of_it_without_the_pictures_that_have_no_label(self, tmp_path):
        data = load([write(tmp_path, OFFICIAL)])
        assert table(data) == {f"train/{k}": v for k, v in TRAIN.items()} | {
            f"val/{k}": v for k, v in VAL.items()
        }
        assert data.labels == NAMES

    def test_as_downloaded(self, tmp_path):
        file = packed(tmp_path / "tiny.zip", {f"tiny-imagenet-200/{k}": v for k, v in OFFICIAL.items()})
        data = load([file])
        expected = {f"tiny-imagenet-200/train/{k}": v for k, v in TRAIN.items()}
        expected |= {f"tiny-imagenet-200/val/{k}": v for k, v in VAL.items()}
        assert (table(data), data.labels) == (expected, NAMES)
        data = load([f"{file}/tiny-imagenet-200/val"])
        assert table(data) == {f"tiny-imagenet-200/val/{k}": v for k, v in VAL.items()}

    @pytest.mark.parametrize("line", ["val_0.PNG\tn02\t0\t0\t61", "val_0.PNG", "val_0.PNG\tn02\ta\tb\tc\td"])
    def test_a_broken_line(self, tmp_path, line):
        with pytest.raises(
            UsageError, match=r"val_annotations\.txt, line 1; got 'val_0\.PNG.*a box per line"
        ):
            load([write(tmp_path, OFFICIAL | {"val/val_annotations.txt": line}) / "val"])


class TestManifest:
    def test_labels_and_boxes(self, tmp_path):
        rows = ["z/b.PNG,dog,1,2,3,4", "a.PNG,cat,,,,", "z/b.PNG,dog,5,6,7,8", "no.PNG,,1,1,2,2"]
        lines = "\n".join(["path,label,x0,y0,x1,y1", *rows])
        data = load([write(tmp_path, {"m.csv": lines, "z/b.PNG": PICTURE, "a.PNG": PICTURE}) / "m.csv"])
        assert table(data) == {"z/b.PNG": ("dog", ((1, 2, 3, 4), (5, 6, 7, 8))), "a.PNG": ("cat", ())}
        assert [e.source.read() for e in data.examples] == [PICTURE, PICTURE]
        inclusive = load([tmp_path / "m.csv"], corners="inclusive")
        assert table(inclusive)["z/b.PNG"] == ("dog", ((1, 2, 4, 5), (5, 6, 8, 9)))

    def test_two_rows_that_disagree(self, tmp_path):
        with pytest.raises(
            UsageError, match=r"m\.csv, line 4: several labels on a\.PNG; allowed: one label a picture"
        ):
            load([write(tmp_path, {"m.csv": "path,label\n\na.PNG,cat\na.PNG,dog\n"}) / "m.csv"])

    def test_several_labels(self, tmp_path):
        data = load([write(tmp_path, {"m.csv": "path,labels\na.PNG,dog;cat\nb.PNG,cat\n"}) / "m.csv"])
        assert data.multi_label
        assert [e.labels for e in data.examples] == [(1, 0), (0,)]
        assert [e.label for e in data.examples] == [1, 0]

    def test_a_class_with_each_box(self, tmp_path):
        rows = [
            "a.PNG,dog,1,2,3,4,0,train",
            "a.PNG,cat,5,6,7,8,1,train",
            "b.PNG,cat,,,,,,test",
            "b.PNG,,0,0,9,9,,",
        ]
        lines = "\n".join(["path,label,x0,y0,x1,y1,difficult,split", *rows])
        data = load([write(tmp_path, {"m.csv": lines}) / "m.csv"])
        assert objects(data) == {
            "a.PNG": [("dog", (1, 2, 3, 4), False), ("cat", (5, 6, 7, 8), True)], "b.PNG": [("cat", (0, 0, 9, 9), False)],
        }  # fmt: skip
        assert table(data) == {"a.PNG": ("dog", ((1, 2, 3, 4),)), "b.PNG": ("cat", ((0, 0, 9, 9),))}
        assert data.examples[0].difficult_labels == (0,)
        assert data.multi_label
        assert [e.source.relative for e in load([tmp_path / "m.csv"], subset="test").examples] == ["b.PNG"]

    def test_a_box_of_nobody_knows_what(self, tmp_path):
        rows = "path,labels,x0,y0,x1,y1\na.PNG,dog,,,,\na.PNG,dog;cat,1,2,3,4\n"
        with pytest.raises(
            UsageError, match=r"m\.csv, line 3: a box; got labels dog, cat; allowed: one label a box"
        ):
            load([write(tmp_path, {"m.csv": rows}) / "m.csv"])

    def test_numbers_and_masks(self, tmp_path):
        lines = '{"path": "a.PNG", "values": [1.5, 2], "mask": "m/a.png"}\n{"path": "b.PNG", "value": 3}\n{"path": "c.PNG"}'
        data = load([write(tmp_path, {"m.jsonl": lines}) / "m.jsonl"])
        assert [(e.label, e.labels, e.values) for e in data.examples] == [
            (-1, (), (1.5, 2.0)),
            (-1, (), (3.0,)),
        ]
        assert data.examples[0].masks == (str(tmp_path / "m/a.png"),)
        assert data.labels == ()
        assert data.notes == (f"1 pictures of {tmp_path}/m.jsonl without label or value, left out: c.PNG",)
        with pytest.raises(UsageError, match=r"line 3: several values on a\.PNG; got 2 kinds"):
            load([write(tmp_path, {"n.csv": "path,value\na.PNG,1\na.PNG,2\n"}) / "n.csv"])

    def test_no_labels_at_all(self, tmp_path):
        with pytest.raises(
            UsageError, match="no labelled pictures in .*; got 1 pictures of .* without label or value"
        ):
            load([write(tmp_path, {"m.csv": "path\na.PNG\n"}) / "m.csv"])


def crc32(data: bytes) -> int:
    """CRC-32 bit by bit (ISO 3309)."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0xEDB88320 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


class TestSplit:
    NAMES = tuple(f"n01_{i}.JPEG" for i in range(200))
    DATA = DataSet(
        tuple(Example(Source(n, f"train/n01/{n}", n), 0, (Box(0, 0, 1, 1),)) for n in NAMES),
        (Label("n01", "cow"),),
    )

    def test_one_in_five_by_the_crc_of_the_file_name(self):
        expected = [n for n in self.NAMES if crc32(n.encode()) % 5 == 0]
        tuning, train = self.DATA.split("tuning"), self.DATA.split("train")
        assert [e.source.name for e in tuning.examples] == expected
        assert [e.source.name for e in train.examples] == [n for n in self.NAMES if n not in expected]
        assert 20 < len(tuning) < 60
        assert tuning.labels == train.labels == self.DATA.labels
        assert self.DATA.split("all") is self.DATA

    def test_by_hand(self):
        assert crc32(b"123456789") == 0xCBF43926 == zlib.crc32(b"123456789")

        def is_tuning(relative):
            return Example(Source(relative, relative, relative), 0).is_tuning

        assert is_tuning("n01_2.JPEG") == (crc32(b"n01_2.JPEG") % 5 == 0)
        # The folder has no say, so that the same picture is on the same side in every layout.
        for name in self.NAMES[:40]:
            assert is_tuning(name) == is_tuning(f"train/n01/images/{name}")

    def test_an_empty_side_or_an_unknown_one(self):
        one = DataSet(tuple(e for e in self.DATA.examples if not e.is_tuning), self.DATA.labels)
        with pytest.raises(UsageError, match=r"split tuning; got 0 of \d+ pictures; use --split all"):
            one.split("tuning")
        with pytest.raises(UsageError, match="did you mean 'tuning'"):
            one.split("tunning")


class TestRelabelled:
    DATA = DataSet(
        tuple(Example(Source(n, n, n), label) for n, label in (("a", 0), ("b", 1), ("c", 0))),
        (Label("n01", "sea cow"), Label("n02", "crane"), Label("n03", "nobody's")),
    )

    def test_by_id_else_by_name(self):
        vocabulary = [
            Label("0", "crane"),
            Label("n09", "another"),
            Label("n01", "manatee"),
        ]
        moved = self.DATA.relabelled(vocabulary)
        assert moved.labels == tuple(vocabulary)
        assert moved.examples[0].label == moved.examples[2].label == 2
        assert vocabulary[moved.examples[1].label].name == "crane"

    def test_a_name_that_two_classes_share_names_neither(self):
        birds = [Label("n01", "sea cow"), Label("n08", "crane"), Label("n09", "crane")]
        with pytest.raises(UsageError, match="does not know 1 of the data's classes; got n02;"):
            self.DATA.relabelled(birds)
        assert self.DATA.relabelled([*birds, Label("n02", "crane")]).examples[1].label == 3

    def test_an_id_wins_over_a_name(self):
        moved = self.DATA.relabelled([Label("x", "n01"), Label("n01", "y"), Label("n02", "z")])
        assert [e.label for e in moved.examples] == [1, 2, 1]

    def test_a_class_that_the_vocabulary_lacks(self):
        with pytest.raises(UsageError, match="does not know 1 of the data's classes; got n02;"):
            self.DATA.relabelled([Label("n01", "sea cow")])


class TestNumbersAsClasses:
    def data(self, *labels: str) -> DataSet:
        return DataSet(
            tuple(Example(Source(n, n, n), i) for i, n in enumerate(labels)),
            tuple(Label(n, n) for n in labels),
        )

    VOCABULARY = tuple(Label(f"n{i:02d}", f"name {i}") for i in range(12))

    def test_they_are_the_networks_indices_where_no_name_fits(self):
        moved = self.data("3", "11").relabelled(self.VOCABULARY)
        assert [e.label for e in moved.examples] == [3, 11]
        assert moved.notes == ("the data's classes are numbers: taken as the network's class indices",)

    @pytest.mark.parametrize("labels", [("3", "12"), ("03", "11"), ("3", "cat")])
    def test_else_they_are_unknown(self, labels):
        with pytest.raises(UsageError, match="does not know 2 of the data's classes"):
            self.data(*labels).relabelled(self.VOCABULARY)

    def test_names_and_ids_come_first(self):
        vocabulary = (Label("1", "one"), Label("0", "zero"))
        moved = self.data("0", "1").relabelled(vocabulary)
        assert ([e.label for e in moved.examples], moved.notes) == ([1, 0], ())

    def test_numbers_are_sorted_as_numbers(self, tmp_path):
        files = {f"{n}/a.PNG": PICTURE for n in (10, 9, 100)}
        assert [label.id for label in load([write(tmp_path, files)]).labels] == ["9", "10", "100"]


class TestExample:
    SOURCE = Source("a", "a", "a")

    def test_one_label(self):
        example = Example(self.SOURCE, 3, (Box(0, 0, 1, 2),))
        assert example.labels == (3,)
        assert example.objects == (Truth(Box(0, 0, 1, 2), 3),)
        assert (example.values, example.masks, example.subsets, example.blacklisted) == ((), (), (), False)

    def test_objects_of_several_classes(self):
        found = (Truth(Box(0, 0, 1, 1), 1), Truth(Box(0, 0, 2, 2), 2), Truth(Box(0, 0, 3, 3), 2, True))
        example = Example(self.SOURCE, 2, labels=(2, 1), objects=found)
        assert example.boxes == (Box(0, 0, 2, 2),)
        assert example.boxes_of(1) == (Box(0, 0, 1, 1),)
        assert example.boxes_of(2, difficult=True) == (Box(0, 0, 2, 2), Box(0, 0, 3, 3))
        moved = DataSet((example,), tuple(Label(n, n) for n in "abc"), True).relabelled(
            [Label("c", "c"), Label("x", "x"), Label("b", "b")]
        )
        (seen,) = moved.examples
        assert (seen.label, seen.labels, seen.boxes) == (0, (0, 2), (Box(0, 0, 2, 2),))
        assert [t.label for t in seen.objects] == [2, 0, 0]
        assert moved.multi_label

    def test_a_label_that_is_not_the_first(self):
        with pytest.raises(UsageError, match="Example: label; got 1; allowed: the first of labels, 2"):
            Example(self.SOURCE, 1, labels=(2, 1))


class Made:
    """A map-style data set."""

    classes = ("cat", "dog", "owl")

    def __init__(self, targets):
        self.given = targets

    def __len__(self):
        return len(self.given)

    def __getitem__(self, i):
        if i == 2:
            raise OSError("gone")
        if i >= len(self):
            raise IndexError(i)
        return Image.fromarray(colours(9, 13, i)), self.given[i]


class TestTorchvision:
    def test_any_map_style_data_set(self):
        kept = Made([1, 0, 1, -1])
        kept.targets = kept.given
        data = from_torchvision(kept)
        assert [e.label for e in data.examples] == [1, 0, 1]
        assert [label.name for label in data.labels] == ["cat", "dog", "owl"]
        assert data.notes == ("1 pictures of Made without label, left out: 3",)
        for i in (0, 1):
            np.testing.assert_array_equal(read_picture(data.examples[i].source.read()), colours(9, 13, i))
        with pytest.raises(InputError, match="cannot read: OSError: gone"):
            data.examples[2].source.read()
        assert pickle.loads(pickle.dumps(data.examples[0])).source.read() == data.examples[0].source.read()

    def test_targets_that_are_asked_one_by_one(self):
        data = from_torchvision(Made([2, np.int64(0)]))
        assert [e.label for e in data.examples] == [2, 0]
        kept = Made([2, 0])
        kept.targets, kept.target_transform = [7, 7], (lambda target: target)
        assert [e.label for e in from_torchvision(kept).examples] == [2, 0]

    @pytest.mark.parametrize("target", ["cat", {"boxes": []}, 0.5, None])
    def test_other_targets(self, target):
        with pytest.raises(UsageError, match=r"Made: items that are not \(picture, class index\)"):
            from_torchvision(Made([target]))

    def test_a_folder_by_the_command_line(self, tmp_path):
        write(tmp_path, {"dog/a.png": PICTURE, "cat/b.png": PICTURE, "cat/c.png": BROKEN})
        data = load([f"torchvision:ImageFolder:{tmp_path}"])
        assert {k: v[0] for k, v in table(data).items()} == {
            "cat/b.png": "0",
            "cat/c.png": "0",
            "dog/a.png": "1",
        }
        assert [label.name for label in data.labels] == ["cat", "dog"]
        assert unreadable(data) == ["cat/c.png"]

    def test_its_splits(self, tmp_path):
        pictures = {f"eurosat/2750/{c}/{c}_1.jpg": PICTURE for c in ("Forest", "River")}
        data = load([f"torchvision:EuroSAT:{write(tmp_path, pictures)}"])
        assert [label.name for label in data.labels] == ["Forest", "River"]
        with pytest.raises(UsageError, match="subset 'train' of torchvision:EuroSAT.*no published split"):
            load([f"torchvision:EuroSAT:{tmp_path}"], subset="train")
        with pytest.raises(UsageError, match="subset 'val' of torchvision:MNIST.*; allowed: train, test"):
            load([f"torchvision:MNIST:{tmp_path}"], subset="val")
        split = {f"country211/{part}/{c}/1.jpg": PICTURE for part in ("train", "test") for c in ("AD", "BE")}
        write(tmp_path, split | {"country211/test/BE/2.jpg": PICTURE, "country211/valid/AD/1.jpg": PICTURE})
        test = load([f"torchvision:Country211:{tmp_path}"], subset="test")
        assert len(test) == 3
        assert {e.subsets for e in test.examples} == {("test",)}
        assert load([f"torchvision:Country211:{tmp_path}"]).notes == (
            f"torchvision:Country211:{tmp_path}: torchvision's own split 'train'",
        )

    def test_what_is_not_there_is_never_fetched(self, tmp_path):
        with pytest.raises(UsageError, match="cannot open torchvision:Flowers102:.*not found"):
            load([f"torchvision:Flowers102:{tmp_path}"])
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("Flower102:/x", "did you mean 'Flowers102'"),
            ("LSUN:/x", "torchvision:NAME:ROOT"),
            ("MNIST", "torchvision:NAME:ROOT"),
        ],
    )
    def test_other_names(self, given, message):
        with pytest.raises(UsageError, match=message):
            load([f"torchvision:{given}"])


@pytest.mark.skipif(
    not os.environ.get("CAMLUCIDA_DATA"), reason="$CAMLUCIDA_DATA names no folder of data sets"
)
def test_the_published_validation_pictures():
    data = load([Path(os.environ["CAMLUCIDA_DATA"]) / "tiny-imagenet-val.zip"])
    assert (len(data), len(data.labels)) == (5000, 200)
    assert all(len(e.boxes) == 1 for e in data.examples)
    for example in data.examples:
        x0, y0, x1, y1 = example.boxes[0].corners
        assert 0 <= x0 < x1 <= 64
        assert 0 <= y0 < y1 <= 64


def test_permuted_labels_are_the_same_ones_on_other_pictures():
    sources = [Source(f"{i}.png", "picture", f"{i}.png") for i in range(60)]
    given = DataSet(tuple(Example(s, i % 3, (Box(0, 0, i + 1, 9),)) for i, s in enumerate(sources)), LABELS)
    found = given.with_permuted_labels(1)
    assert [e.source for e in found.examples] == sources
    labels = [e.label for e in found.examples]
    assert sorted(labels) == [0] * 20 + [1] * 20 + [2] * 20
    assert 10 < sum(label == i % 3 for i, label in enumerate(labels)) < 32  # a third by chance
    assert all(e.labels == (e.label,) and not e.boxes and not e.objects for e in found.examples)
    assert given.with_permuted_labels(1) == found != given.with_permuted_labels(2)
