"""Published layouts, each in a sample of a few pictures: labels, boxes, splits, what is left out and what is wrong."""

from __future__ import annotations

import json

import pytest

from camlucida.errors import UsageError
from camlucida.images.datasets import load
from camlucida.values import Label
from laid import BROKEN, PICTURE, ids, objects, packed, subsets, table, tarred, unreadable, write


def without(files: dict, *names: str) -> dict:
    return {name: data for name, data in files.items() if not name.endswith(names)}


# --- class folders of published sets -----------------------------------------------------------------------------

SUN = {
    "SUN397/a/abbey/sun_a.jpg": PICTURE,
    "SUN397/a/apartment_building/outdoor/sun_b.jpg": PICTURE,
    "SUN397/c/church/outdoor/sun_c.jpg": PICTURE,
    "SUN397/c/church/outdoor/sun_d.jpg": BROKEN,
    "SUN397/ClassName.txt": "/a/abbey\n/a/apartment_building/outdoor\n/c/church/outdoor\n",
}
SUN_CLASSES = ["abbey", "apartment_building/outdoor", "church/outdoor"]


class TestClassFolders:
    def test_sun397_names_classes_by_the_path_below_the_letter(self, tmp_path):
        root = write(tmp_path, SUN)
        for given in (root, root / "SUN397", packed(tmp_path / "sun.zip", SUN)):
            data = load([given])
            assert ids(data) == SUN_CLASSES
            assert [e.label for e in data.examples] == [0, 1, 2, 2]
            assert [name.endswith("sun_d.jpg") for name in unreadable(data)] == [True]
            assert data.notes == ()

    def test_sun397_partitions(self, tmp_path):
        lists = {
            "SUN397/Training_01.txt": "/a/abbey/sun_a.jpg\n/c/church/outdoor/sun_c.jpg\n",
            "SUN397/Testing_01.txt": "/c/church/outdoor/sun_d.jpg\n/a/abbey/sun_gone.jpg\n",
            "SUN397/Training_02.txt": "/c/church/outdoor/sun_d.jpg\n",
        }
        data = load([write(tmp_path, SUN | lists) / "SUN397"])
        assert subsets(data) == {
            "a/abbey/sun_a.jpg": ("train",),
            "a/apartment_building/outdoor/sun_b.jpg": (),
            "c/church/outdoor/sun_c.jpg": ("train",),
            "c/church/outdoor/sun_d.jpg": ("test", "train-02"),
        }
        assert data.notes == (
            "1 pictures that no published list names: a/apartment_building/outdoor/sun_b.jpg",
            "1 listed pictures that are not there: a/abbey/sun_gone.jpg",
        )
        second = load([tmp_path / "SUN397"], subset="train-02")
        assert [e.source.relative for e in second.examples] == ["c/church/outdoor/sun_d.jpg"]

    def test_letters_of_places_in_both_splits(self, tmp_path):
        files = {
            f"{part}/a/{c}/1.jpg": PICTURE for part in ("train", "val") for c in ("airfield", "arena/hockey")
        }
        data = load([write(tmp_path, files)])
        assert ids(data) == ["airfield", "arena/hockey"]
        assert [(e.label, e.subsets) for e in data.examples] == [
            (0, ("train",)), (1, ("train",)), (0, ("val",)), (1, ("val",)),
        ]  # fmt: skip

    def test_a_class_called_by_a_letter_or_by_a_split(self, tmp_path):
        data = load(
            [
                write(
                    tmp_path,
                    {
                        "a/x.jpg": PICTURE,
                        "b/x.jpg": PICTURE,
                        "train/train/x.jpg": PICTURE,
                        "val/x.jpg": PICTURE,
                    },
                )
            ]
        )
        assert {k: v[0] for k, v in table(data).items()} == {
            "a/x.jpg": "a", "b/x.jpg": "b", "train/train/x.jpg": "train", "val/x.jpg": "val",
        }  # fmt: skip
        assert [e.subsets for e in data.examples] == [(), (), ("train",), ()]

    def test_indoor67(self, tmp_path):
        files = {
            "Images/kitchen/int474.jpg": PICTURE,
            "Images/kitchen/k1.jpg": BROKEN,
            "Images/winecellar/w1.jpg": PICTURE,
            "TrainImages.txt": "kitchen/int474.jpg\nwinecellar/w1.jpg\n",
            "TestImages.txt": "\nkitchen/k1.jpg\n",
        }
        root = write(tmp_path / "indoor", files)
        for given in (root, root / "Images", packed(tmp_path / "x.zip", files)):
            data = load([given])
            assert ids(data) == ["kitchen", "winecellar"]
            assert [e.subsets for e in data.examples] == [("train",), ("test",), ("train",)]
            test = load([given], subset="test")
            assert unreadable(test) == [e.source.relative for e in test.examples]
            assert [e.source.relative[-6:] for e in test.examples] == ["k1.jpg"]
            assert ids(test) == ["kitchen"], "class folders list no vocabulary"

    def test_a_malformed_line_of_a_list(self, tmp_path):
        files = {"kitchen/a.jpg": PICTURE, "TrainImages.txt": "kitchen/a.jpg\nkitchen\n"}
        with pytest.raises(
            UsageError, match=r"TrainImages\.txt, line 2; got 'kitchen'; allowed: CLASS/picture\.jpg"
        ):
            load([write(tmp_path, files)])

    def test_the_lists_of_another_set_beside(self, tmp_path):
        write(tmp_path, {"mine/cat/a.jpg": PICTURE, "TrainImages.txt": "kitchen/a.jpg\n"})
        data = load([tmp_path / "mine"])
        assert (subsets(data), data.notes) == ({"cat/a.jpg": ()}, ())

    def test_caltech(self, tmp_path):
        first = {
            f"101_ObjectCategories/{c}/image_0001.jpg": PICTURE for c in ("BACKGROUND_Google", "Faces_easy")
        }
        assert load([write(tmp_path / "1", first)]).labels == (
            Label("BACKGROUND_Google", "BACKGROUND_Google"), Label("Faces_easy", "Faces_easy"),
        )  # fmt: skip
        second = {f"256_ObjectCategories/{c}/001.jpg": PICTURE for c in ("001.ak47", "257.clutter")}
        data = load([tarred(tmp_path / "256.tar", second)])
        assert data.labels == (Label("001.ak47", "ak47"), Label("257.clutter", "clutter"))
        assert unreadable(data) == []

    def test_numbered_folders_of_scenes(self, tmp_path):
        data = load(
            [write(tmp_path, {f"scene_categories/{n}/image_0001.jpg": PICTURE for n in ("00", "01", "10")})]
        )
        assert ids(data) == ["00", "01", "10"]

    def test_one_name_in_several_places_is_one_class_and_said(self, tmp_path):
        data = load(
            [
                write(
                    tmp_path,
                    {"indoor/pool/a.jpg": PICTURE, "outdoor/pool/b.jpg": PICTURE, "x/cat/c.jpg": PICTURE},
                )
            ]
        )
        assert data.notes == ("1 classes of several folders, taken as one: pool",)
        assert [e.label for e in data.examples] == [1, 1, 0]

    def test_boxes_without_picture_are_said(self, tmp_path):
        boxes = "path,x0,y0,x1,y1\ncat/a.jpg,0,0,3,4\ncat/gone.jpg,0,0,3,4\n"
        data = load([write(tmp_path, {"cat/a.jpg": PICTURE, "boxes.csv": boxes})])
        assert table(data) == {"cat/a.jpg": ("cat", ((0, 0, 4, 5),))}
        assert data.notes == ("1 pictures with boxes that are not there: cat/gone.jpg",)


# --- ILSVRC ------------------------------------------------------------------------------------------------------


def annotation(*found: tuple, difficult: str = "0") -> str:
    """The XML that ImageNet and Pascal VOC share."""
    inside = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for name, x0, y0, x1, y1 in found
    )
    return f"<annotation><size><width>13</width><height>9</height></size>{inside}</annotation>"


DATA, NOTES = "ILSVRC/Data/CLS-LOC", "ILSVRC/Annotations/CLS-LOC"
VAL = "ILSVRC2012_val_0000000"
ILSVRC = {
    f"{DATA}/train/n02/n02_7.JPEG": PICTURE,
    f"{DATA}/train/n01/n01_1.JPEG": PICTURE,
    f"{DATA}/train/n01/n01_2.JPEG": PICTURE,
    f"{DATA}/val/{VAL}1.JPEG": PICTURE,
    f"{DATA}/val/{VAL}2.JPEG": PICTURE,
    f"{DATA}/val/{VAL}3.JPEG": BROKEN,
    f"{DATA}/test/ILSVRC2012_test_00000001.JPEG": PICTURE,
    "LOC_synset_mapping.txt": "n01 tench, Tinca tinca\nn02 goldfish\nn03 great white shark\n",
}
XML = {
    f"{NOTES}/train/n01/n01_1.xml": annotation(("n01", 0, 1, 5, 6)),
    f"{NOTES}/train/n01/n01_9.xml": annotation(("n01", 0, 1, 5, 6)),
    f"{NOTES}/val/{VAL}1.xml": annotation(("n02", 2, 3, 9, 8), ("n02", 4, 4, 4, 4)),
    f"{NOTES}/val/{VAL}2.xml": annotation(("n01", 0, 0, 12, 8)),
    f"{NOTES}/val/{VAL}3.xml": annotation(("n03", 0, 0, 1, 1)),
}
CSV = {
    "LOC_val_solution.csv": f"ImageId,PredictionString\n{VAL}2,n01 0 0 12 8 \n{VAL}1,n02 2 3 9 8 n02 4 4 4 4 \n{VAL}3,n03 0 0 1 1\n",
    "LOC_train_solution.csv": "ImageId,PredictionString\nn01_1,n01 0 1 5 6\nn01_9,n01 0 1 5 6\n",
}
DEVKIT = {
    "devkit/data/map_clsloc.txt": "n02 1 goldfish\nn01 2 tench\nn03 3 great_white_shark\n",
    "devkit/data/ILSVRC2012_validation_ground_truth.txt": "1\n2\n3\n",
    "devkit/data/ILSVRC2014_clsloc_validation_blacklist.txt": "3\n2\n",
}
IMAGENET = {
    "n01/n01_1.JPEG": ("n01", ((0, 1, 6, 7),)),
    "n01/n01_2.JPEG": ("n01", ()),
    "n02/n02_7.JPEG": ("n02", ()),
    f"{VAL}1.JPEG": ("n02", ((2, 3, 10, 9), (4, 4, 5, 5))),
    f"{VAL}2.JPEG": ("n01", ((0, 0, 13, 9),)),
    f"{VAL}3.JPEG": ("n03", ((0, 0, 2, 2),)),
}


class TestIlsvrc:
    @pytest.mark.parametrize("truth", [XML, CSV, XML | CSV], ids=["xml", "csv", "both"])
    def test_labels_and_inclusive_corners(self, tmp_path, truth):
        root = write(tmp_path, ILSVRC | truth)
        for given in (root, root / "ILSVRC"):
            data = load([given])
            assert table(data) == IMAGENET
            assert data.labels == (
                Label("n01", "tench, Tinca tinca"), Label("n02", "goldfish"), Label("n03", "great white shark"),
            )  # fmt: skip
            assert data.notes == ("1 train annotations without their picture: n01_9",)
            assert unreadable(data) == [f"{VAL}3.JPEG"]
            assert not data.multi_label

    def test_a_zip(self, tmp_path):
        data = load([packed(tmp_path / "x.zip", ILSVRC | CSV)])
        assert {k.rpartition("CLS-LOC/")[2].partition("/")[2]: v for k, v in table(data).items()} == IMAGENET

    def test_published_splits(self, tmp_path):
        root = write(tmp_path, ILSVRC | CSV)
        val, train = load([root], subset="val"), load([root], subset="train")
        assert [e.subsets for e in val.examples] == [("val",)] * 3
        assert [e.subsets for e in train.examples] == [("train",)] * 3
        assert val.labels == train.labels
        assert len(val.labels) == 3
        with pytest.raises(
            UsageError, match=r"no pictures of the published split 'test' in .*; allowed: train, val$"
        ):
            load([root], subset="test")

    def test_the_devkit_and_its_blacklist(self, tmp_path):
        data = load(
            [write(tmp_path, without(ILSVRC, "mapping.txt") | {f"ILSVRC/{k}": v for k, v in DEVKIT.items()})],
            subset="val",
        )
        assert {k: v[0] for k, v in table(data).items()} == {
            f"{VAL}1.JPEG": "n02",
            f"{VAL}2.JPEG": "n01",
            f"{VAL}3.JPEG": "n03",
        }
        assert [e.blacklisted for e in data.examples] == [False, True, True]
        assert data.notes == (
            f"2 blacklisted pictures, which localization figures leave out: {VAL}2.JPEG, {VAL}3.JPEG",
        )
        assert data.labels[2] == Label("n03", "great white shark")

    def test_a_box_of_another_class(self, tmp_path):
        strange = {f"{NOTES}/val/{VAL}1.xml": annotation(("n02", 2, 3, 9, 8), ("n01", 4, 4, 4, 4))}
        data = load([write(tmp_path, ILSVRC | XML | strange)], subset="val")
        assert table(data)[f"{VAL}1.JPEG"] == ("n02", ((2, 3, 10, 9),))
        assert data.notes == (f"1 val pictures with boxes of another class, those left out: {VAL}1.JPEG",)

    def test_validation_pictures_in_class_folders(self, tmp_path):
        moved = {k.replace("/val/", "/val/n03/"): v for k, v in ILSVRC.items()}
        data = load([write(tmp_path, moved)], subset="val")
        assert {label for label, _ in table(data).values()} == {"n03"}

    def test_pictures_without_label(self, tmp_path):
        data = load([write(tmp_path, ILSVRC)])
        assert len(data) == 3
        assert data.notes == (
            f"3 val pictures without label, left out: {VAL}1.JPEG, {VAL}2.JPEG, {VAL}3.JPEG",
        )

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("LOC_val_solution.csv", f"ImageId,PredictionString\n{VAL}1,n02 2 3 9\n", r"LOC_val_solution\.csv, line 2"),
            ("LOC_val_solution.csv", f"{VAL}1,n02 2 3 1 9\n", r"LOC_val_solution\.csv, line 1"),
            ("LOC_val_solution.csv", f"{VAL}1\n", r"LOC_val_solution\.csv, line 1"),
            ("LOC_synset_mapping.txt", "n01 tench\n\nn02\n", r"LOC_synset_mapping\.txt, line 3; got 'n02'"),
            ("devkit/data/ILSVRC2012_validation_ground_truth.txt", "1\n4\n", r"ground_truth\.txt, line 2; got '4'"),
            ("devkit/data/ILSVRC2014_clsloc_validation_blacklist.txt", "1\nx\n", r"blacklist\.txt, line 2; got 'x'"),
        ],
    )  # fmt: skip
    def test_a_malformed_line(self, tmp_path, name, text, message):
        with pytest.raises(UsageError, match=message):
            load([write(tmp_path, ILSVRC | DEVKIT | {name: text})])

    @pytest.mark.parametrize(
        "text",
        [
            "<annotation><obj",
            annotation(("n02", 9, 3, 2, 8)),
            annotation(("n02", "x", 3, 2, 8)),
            "<a><object/></a>",
        ],
    )
    def test_a_broken_annotation_costs_its_boxes_alone(self, tmp_path, text):
        data = load(
            [write(tmp_path, ILSVRC | XML | DEVKIT | {f"{NOTES}/val/{VAL}1.xml": text})], subset="val"
        )
        assert table(data)[f"{VAL}1.JPEG"] == ("n02", ())
        assert table(data)[f"{VAL}2.JPEG"] == IMAGENET[f"{VAL}2.JPEG"]
        assert data.notes[0].startswith(
            f"1 broken annotations in {tmp_path}/{NOTES}/val, left out: {VAL}1.xml ("
        )


# --- CUB-200-2011 ------------------------------------------------------------------------------------------------

CUB = {
    "images.txt": "1 001.Black_footed_Albatross/a.jpg\n2 002.Laysan_Albatross/b.jpg\n3 002.Laysan_Albatross/c.jpg\n",
    "image_class_labels.txt": "1 1\n2 2\n3 2\n",
    "classes.txt": "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n3 003.Sooty_Albatross\n",
    "bounding_boxes.txt": "1 2.0 1.0 8.0 7.0\n2 0.0 0.0 13.0 9.0\n3 1.5 2.0 3.0 4.5\n",
    "train_test_split.txt": "1 1\n2 0\n3 1\n",
    "images/001.Black_footed_Albatross/a.jpg": PICTURE,
    "images/002.Laysan_Albatross/b.jpg": PICTURE,
    "images/002.Laysan_Albatross/c.jpg": BROKEN,
}


class TestCub:
    def test_labels_boxes_and_splits(self, tmp_path):
        wrapped = {f"CUB_200_2011/{k}": v for k, v in CUB.items()}
        root = write(tmp_path / "x", wrapped)
        for given in (root, root / "CUB_200_2011", tarred(tmp_path / "x.tgz", wrapped, "w:gz")):
            data = load([given])
            assert {k.rpartition("/")[2]: v for k, v in table(data).items()} == {
                "a.jpg": ("001.Black_footed_Albatross", ((2, 1, 10, 8),)),
                "b.jpg": ("002.Laysan_Albatross", ((0, 0, 13, 9),)),
                "c.jpg": ("002.Laysan_Albatross", ((1.5, 2, 4.5, 6.5),)),
            }
            assert [e.subsets for e in data.examples] == [("train",), ("test",), ("train",)]
            assert [label.name for label in data.labels] == [
                "Black footed Albatross",
                "Laysan Albatross",
                "Sooty Albatross",
            ]
            assert data.notes == ()
            assert [name[-5:] for name in unreadable(data)] == ["c.jpg"]
            test = load([given], subset="test")
            assert len(test) == 1
            assert test.labels == data.labels

    def test_what_is_not_there_or_not_listed(self, tmp_path):
        files = without(CUB, "a.jpg") | {
            "images/003.Sooty_Albatross/d.jpg": PICTURE,
            "bounding_boxes.txt": "2 0 0 13 9\n",
        }
        data = load([write(tmp_path, files)])
        assert len(data) == 2
        assert data.notes == (
            "1 listed pictures that are not there: 001.Black_footed_Albatross/a.jpg",
            "1 pictures without box: 002.Laysan_Albatross/c.jpg",
            "1 pictures that images.txt does not list, left out: 003.Sooty_Albatross/d.jpg",
        )

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("bounding_boxes.txt", "1 2 1 8 7\n2 0 0 13\n", r"bounding_boxes\.txt, line 2; got '2 0 0 13'"),
            ("bounding_boxes.txt", "1 2 1 0 7\n", r"bounding_boxes\.txt, line 1; got '2 1 0 7'; allowed: x, y, width"),
            ("bounding_boxes.txt", "1 2 1 nan 7\n", r"bounding_boxes\.txt, line 1"),
            ("bounding_boxes.txt", "1 2 1 8 0\n", r"bounding_boxes\.txt, line 1"),
            ("image_class_labels.txt", "1 1\n2 9\n", r"image_class_labels\.txt, line 2; got '9'"),
            ("train_test_split.txt", "1 1\n2 yes\n", r"train_test_split\.txt, line 2; got 'yes'"),
            ("images.txt", "1 a.jpg\n2\n", r"images\.txt, line 2; got '2'"),
        ],
    )  # fmt: skip
    def test_a_malformed_line(self, tmp_path, name, text, message):
        with pytest.raises(UsageError, match=message):
            load([write(tmp_path, CUB | {name: text})])


# --- Pascal VOC --------------------------------------------------------------------------------------------------

YEAR = "VOCdevkit/VOC2007"
VOC = {
    f"{YEAR}/JPEGImages/000001.jpg": PICTURE,
    f"{YEAR}/JPEGImages/000002.jpg": BROKEN,
    f"{YEAR}/JPEGImages/000003.jpg": PICTURE,
    f"{YEAR}/Annotations/000001.xml": (
        annotation(("dog", 1, 1, 13, 9), difficult="1").replace("</annotation>", "")
        + annotation(("person", 3, 2, 10, 9), ("dog", 1, 2, 4, 8)).replace("<annotation>", "")
    ),
    f"{YEAR}/Annotations/000002.xml": annotation(("train", 2, 2, 2.5, 3)),
    f"{YEAR}/Annotations/000003.xml": annotation(("dog", 1, 1, 1, 1), difficult="1").replace(
        "</annotation>", annotation(("person", 5, 5, 6, 6))[len("<annotation>"):]
    ),
    f"{YEAR}/ImageSets/Main/train.txt": "000001\n",
    f"{YEAR}/ImageSets/Main/val.txt": "000002\n",
    f"{YEAR}/ImageSets/Main/trainval.txt": "000001\n000002\n",
    f"{YEAR}/ImageSets/Main/test.txt": "000003\n",
    f"{YEAR}/ImageSets/Main/dog_train.txt": "000001  1\n",
}  # fmt: skip


class TestVoc:
    def test_objects_of_several_classes_with_corners_from_one(self, tmp_path):
        root = write(tmp_path, VOC)
        for given in (root / "VOCdevkit", root / YEAR, tarred(tmp_path / "voc.tar", VOC)):
            data = load([given])
            assert data.multi_label
            assert ids(data) == ["dog", "person", "train"]
            assert objects(data) == {
                "000001.jpg": [
                    ("dog", (0, 0, 13, 9), True),
                    ("person", (2, 1, 10, 9), False),
                    ("dog", (0, 1, 4, 8), False),
                ],
                "000002.jpg": [("train", (1, 1, 2.5, 3), False)],
                "000003.jpg": [("dog", (0, 0, 1, 1), True), ("person", (4, 4, 6, 6), False)],
            }
            assert [e.labels for e in data.examples] == [(1, 0), (2,), (1, 0)], (
                "those with easy objects first"
            )
            first, _, third = data.examples
            assert first.label == 1
            assert [b.corners for b in first.boxes] == [(2, 1, 10, 9)]
            assert [b.corners for b in first.boxes_of(0)] == [(0, 1, 4, 8)]
            assert [b.corners for b in first.boxes_of(0, difficult=True)] == [(0, 0, 13, 9), (0, 1, 4, 8)]
            assert (first.difficult_labels, third.difficult_labels) == ((), (0,))
            assert [e.subsets for e in data.examples] == [
                ("train", "trainval"),
                ("val", "trainval"),
                ("test",),
            ]
            assert [name[-6:] for name in unreadable(data)] == ["02.jpg"]
            assert data.notes == ()

    def test_published_splits_share_a_vocabulary(self, tmp_path):
        root = write(tmp_path, VOC) / "VOCdevkit"
        names = {
            subset: [e.source.relative for e in load([root], subset=subset).examples]
            for subset in ("trainval", "test")
        }
        assert names == {"trainval": ["000001.jpg", "000002.jpg"], "test": ["000003.jpg"]}
        assert load([root], subset="test").labels == load([root]).labels
        with pytest.raises(UsageError, match="allowed: test, train, trainval, val"):
            load([root], subset="validation")

    def test_two_years_are_joined(self, tmp_path):
        later = {name.replace("2007", "2012"): data for name, data in VOC.items()}
        data = load([write(tmp_path, VOC | later) / "VOCdevkit"])
        assert len(data) == 6
        assert len({e.source.name for e in data.examples}) == 6

    def test_what_has_no_partner(self, tmp_path):
        files = without(VOC, "Annotations/000001.xml", "JPEGImages/000002.jpg")
        files[f"{YEAR}/JPEGImages/000004.jpg"] = PICTURE
        files[f"{YEAR}/Annotations/000004.xml"] = annotation()
        files[f"{YEAR}/ImageSets/Main/test.txt"] = "000003\n000009\n"
        root = write(tmp_path, files) / YEAR
        data = load([root])
        assert [e.source.relative for e in data.examples] == ["000003.jpg"]
        assert data.notes == (
            f"1 pictures of {root} without annotation, left out: 000001.jpg",
            f"1 pictures of {root} without an object, left out: 000004.jpg",
            f"1 annotations of {root} without their picture: 000002",
            f"2 listed pictures of {root} that are not there: 000002, 000009",
        )

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "<annotation>",
            annotation(("dog", 5, 5, 4, 9)),
            annotation(("dog", 1, 1, "", 9)),
            annotation(("", 1, 1, 2, 9)),
        ],
    )
    def test_a_broken_annotation_leaves_its_picture_out(self, tmp_path, text):
        data = load([write(tmp_path, VOC | {f"{YEAR}/Annotations/000001.xml": text}) / YEAR])
        assert [e.source.relative for e in data.examples] == ["000002.jpg", "000003.jpg"]
        assert "1 broken annotations in" in data.notes[0]
        assert "000001.xml (" in data.notes[0]

    def test_a_malformed_line_of_a_list(self, tmp_path):
        with pytest.raises(UsageError, match=r"Main/test\.txt, line 2; got '000001 -1'"):
            load([write(tmp_path, VOC | {f"{YEAR}/ImageSets/Main/test.txt": "000003\n000001 -1\n"}) / YEAR])


# --- COCO --------------------------------------------------------------------------------------------------------


def instances(**changes) -> dict:
    kept = {
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
        "images": [
            {"id": 9, "file_name": "000009.jpg"}, {"id": 25, "file_name": "000025.jpg"}, {"id": 30, "file_name": "000030.jpg"},
        ],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 18, "bbox": [1.5, 2, 3, 4.25], "iscrowd": 0, "segmentation": [[1, 2, 3]]},
            {"id": 2, "image_id": 25, "category_id": 1, "bbox": [0, 0, 13, 9], "iscrowd": 1},
            {"id": 3, "image_id": 25, "category_id": 18, "bbox": [5, 5, 1, 1], "iscrowd": 0},
        ],
    }  # fmt: skip
    return kept | changes


COCO = {
    "annotations/instances_val2017.json": json.dumps(instances()),
    "annotations/captions_val2017.json": "{}",
    "val2017/000009.jpg": PICTURE,
    "val2017/000025.jpg": BROKEN,
    "val2017/000030.jpg": PICTURE,
    "train2017/000100.jpg": PICTURE,
    "annotations/instances_train2017.json": json.dumps(
        instances(
            images=[{"id": 1, "file_name": "000100.jpg"}],
            annotations=[{"id": 7, "image_id": 1, "category_id": 1, "bbox": [0, 1, 2, 3], "iscrowd": 0}],
        )
    ),
}


class TestCoco:
    def test_labels_boxes_and_crowds(self, tmp_path):
        write(tmp_path / "coco", COCO)
        zipped = packed(tmp_path / "coco.zip", {f"coco/{k}": v for k, v in COCO.items()})
        for given in (tmp_path / "coco", zipped):
            data = load([given])
            assert data.multi_label
            assert ids(data) == ["dog", "person", "toothbrush"]
            assert objects(data) == {
                "000009.jpg": [("dog", (1.5, 2, 4.5, 6.25), False)],
                "000025.jpg": [("person", (0, 0, 13, 9), True), ("dog", (5, 5, 6, 6), False)],
                "000100.jpg": [("person", (0, 1, 2, 4), False)],
            }
            assert {e.source.relative[-5]: (e.labels, e.subsets) for e in data.examples} == {
                "9": ((0,), ("val",)), "5": ((0, 1), ("val",)), "0": ((1,), ("train",)),
            }  # fmt: skip
            assert data.notes == (
                "1 pictures of annotations/instances_val2017.json without annotation, left out: 000030.jpg",
            )
            assert [name[-6:] for name in unreadable(data)] == ["25.jpg"]

    def test_published_splits_share_a_vocabulary(self, tmp_path):
        write(tmp_path, COCO)
        train = load([tmp_path], subset="train")
        assert [e.source.relative for e in train.examples] == ["000100.jpg"]
        assert ids(train) == ["dog", "person", "toothbrush"]
        with pytest.raises(UsageError, match="published split 'test' in .*; allowed: train, val"):
            load([tmp_path], subset="test")

    def test_one_file_of_annotations(self, tmp_path):
        write(tmp_path, COCO)
        data = load([tmp_path / "annotations" / "instances_val2017.json"])
        assert [e.source.relative for e in data.examples] == ["000009.jpg", "000025.jpg"]
        write(tmp_path / "own", {"mine.json": json.dumps(instances()), "000009.jpg": PICTURE})
        data = load([tmp_path / "own" / "mine.json"])
        assert [e.source.relative for e in data.examples] == ["000009.jpg"]
        assert data.notes[0] == "2 pictures of mine.json that are not there: 000025.jpg, 000030.jpg"

    def test_annotations_that_cannot_be_are_named_and_left_out(self, tmp_path):
        good = instances()["annotations"]
        bad = [
            {"id": 10, "image_id": 9, "category_id": 18, "bbox": [1, 2, 0, 4]},
            {"id": 11, "image_id": 9, "category_id": 18, "bbox": [1, 2, 3]},
            {"id": 12, "image_id": 77, "category_id": 18, "bbox": [1, 2, 3, 4]},
            {"id": 13, "image_id": 9, "category_id": 5, "bbox": [1, 2, 3, 4]},
            {"id": 14, "image_id": 9, "category_id": 18},
        ]
        file = {"annotations/instances_val2017.json": json.dumps(instances(annotations=good + bad))}
        data = load([write(tmp_path, COCO | file)], subset="val")
        assert objects(data)["000009.jpg"] == [("dog", (1.5, 2, 4.5, 6.25), False)]
        assert data.notes[0].startswith(
            "5 annotations of annotations/instances_val2017.json, left out: 10 (an empty or inverted box), 11 ("
        )
        assert "12 (no such picture), 13 (KeyError(5)), 14 (KeyError('bbox'))" in data.notes[0]

    def test_a_file_that_is_broken(self, tmp_path):
        name = "annotations/instances_val2017.json"
        write(tmp_path, COCO | {name: '{"images": [],\n "annotations": [\n'})
        with pytest.raises(
            UsageError, match=r"instances_val2017\.json, line 3; got 'Expecting value'; allowed: JSON"
        ):
            load([tmp_path])
        write(tmp_path, {name: '{"images": []}'})
        with pytest.raises(
            UsageError, match=r"instances_val2017\.json: no COCO annotations; got KeyError\('categories'\)"
        ):
            load([tmp_path])


# --- Places365 ---------------------------------------------------------------------------------------------------

PLACES = {
    "categories_places365.txt": "/a/airfield 0\n/a/arena/hockey 1\n/z/zen_garden 2\n",
    "places365_train_standard.txt": "/a/airfield/00000001.jpg 0\n/a/arena/hockey/00000001.jpg 1\n",
    "places365_val.txt": "Places365_val_00000001.jpg 1\nPlaces365_val_00000002.jpg 0\nPlaces365_val_00000003.jpg 0\n",
    "data_256_standard/a/airfield/00000001.jpg": PICTURE,
    "data_256_standard/a/arena/hockey/00000001.jpg": BROKEN,
    "val_256/Places365_val_00000001.jpg": PICTURE,
    "val_256/Places365_val_00000002.jpg": PICTURE,
}


class TestPlaces:
    def test_lists(self, tmp_path):
        data = load([write(tmp_path, PLACES)])
        assert table(data) == {
            "a/airfield/00000001.jpg": ("airfield", ()),
            "a/arena/hockey/00000001.jpg": ("arena/hockey", ()),
            "Places365_val_00000001.jpg": ("arena/hockey", ()),
            "Places365_val_00000002.jpg": ("airfield", ()),
        }
        assert ids(data) == ["airfield", "arena/hockey", "zen_garden"]
        assert data.notes == ("1 listed val pictures that are not there: Places365_val_00000003.jpg",)
        assert unreadable(data) == ["a/arena/hockey/00000001.jpg"]
        val = load([tmp_path], subset="val")
        assert [e.label for e in val.examples] == [1, 0]

    @pytest.mark.parametrize("line", ["Places365_val_00000001.jpg", "Places365_val_00000001.jpg 365"])
    def test_a_malformed_line(self, tmp_path, line):
        with pytest.raises(
            UsageError, match=r"places365_val\.txt, line 2; got '.*allowed: a path and a number"
        ):
            load([write(tmp_path, PLACES | {"places365_val.txt": f"Places365_val_00000002.jpg 0\n{line}\n"})])
