"""Tar shards and Parquet with bytes: samples, labels, access in any order, and what is broken."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from camlucida.errors import InputError, UsageError
from camlucida.images import shards, sources
from camlucida.images.datasets import load
from camlucida.images.read import read_picture
from camlucida.values import Label
from laid import BROKEN, PICTURE, ids, table, tarred, unreadable, write
from pictures import colours, encoded


def picture(seed: int) -> bytes:
    return encoded(colours(9, 13, seed), "PNG")


def samples(first: int, count: int, label=lambda i: str(i % 3)) -> dict[str, bytes | str]:
    files: dict[str, bytes | str] = {}
    for i in range(first, first + count):
        files[f"{i:06d}.jpg"] = picture(i)
        files[f"{i:06d}.cls"] = label(i)
    return files


class TestTar:
    def test_a_row_of_shards_a_folder_a_glob(self, tmp_path):
        for n in range(3):
            tarred(tmp_path / f"shard-{n:06d}.tar", samples(4 * n, 4))
        for given in (tmp_path / "shard-{000000..000002}.tar", tmp_path, tmp_path / "shard-*.tar"):
            data = load([given])
            assert [e.label for e in data.examples] == [i % 3 for i in range(12)]
            assert ids(data) == ["0", "1", "2"]
            assert [e.source.relative for e in data.examples] == [f"{i:06d}.jpg" for i in range(12)]
            assert [e.source.read() for e in data.examples] == [picture(i) for i in range(12)]
        assert len(load([tmp_path / "shard-{000001,000002}.tar"])) == 8
        assert len(load([tmp_path / "shard-000001.tar"])) == 4

    def test_a_missing_shard(self, tmp_path):
        tarred(tmp_path / "s-08.tar", samples(0, 2))
        with pytest.raises(UsageError, match=r"2 of 3 shards are not there; got .*s-09\.tar"):
            load([tmp_path / "s-{08..10}.tar"])
        with pytest.raises(UsageError, match="no such picture"):
            load([tmp_path / "t-08.tar"])

    def test_any_order_without_opening_the_archive(self, tmp_path, monkeypatch):
        tarred(tmp_path / "s.tar", samples(0, 20))
        data = load([tmp_path / "s.tar"])
        monkeypatch.setattr(tarfile, "open", None)
        order = list(range(20))
        random.Random(0).shuffle(order)
        assert [data.examples[i].source.read() for i in order] == [picture(i) for i in order]

    def test_names_lists_and_numbers(self, tmp_path):
        files = {
            "a/x.1.png": PICTURE, "a/x.cls": "cat\n",
            "a/y.png": PICTURE, "a/y.json": json.dumps({"labels": ["dog", "cat"], "width": 13}),
            "a/z.jpeg": PICTURE, "a/z.txt": "dog", "a/z.json": json.dumps({"width": 13}),
            "b/x.png": PICTURE, "b/x.json": json.dumps({"values": [1.5, -2]}),
            "b/y.png": PICTURE, "b/y.json": json.dumps({"label": 3}), "b/y.txt": "a caption",
        }  # fmt: skip
        data = load([tarred(tmp_path / "s.tar", files)])
        assert [tuple(data.labels[i].id for i in e.labels) for e in data.examples] == [
            ("cat",), ("dog", "cat"), ("dog",), (), ("3",),
        ]  # fmt: skip
        assert [e.values for e in data.examples] == [(), (), (), (1.5, -2.0), ()]
        assert data.examples[3].label == -1
        assert data.multi_label

    def test_numbers_are_indices_whatever_shards_are_read(self, tmp_path):
        data = load([tarred(tmp_path / "val-0.tar", samples(0, 2, lambda i: "12" if i else "9"))])
        assert ids(data) == [str(i) for i in range(13)]
        assert [e.label for e in data.examples] == [9, 12]

    def test_published_splits_by_the_names_of_shards(self, tmp_path):
        for name in (
            "imagenet1k-train-0000.tar",
            "imagenet1k-train-0001.tar",
            "imagenet1k-validation-00.tar",
        ):
            tarred(tmp_path / name, samples(0, 2))
        assert len(load([tmp_path])) == 6
        assert {e.subsets for e in load([tmp_path], subset="val").examples} == {("val",)}
        assert len(load([tmp_path], subset="train")) == 4
        with pytest.raises(UsageError, match="allowed: train, val"):
            load([tmp_path], subset="test")

    def test_what_is_left_out_is_named(self, tmp_path):
        files = {
            "0.jpg": PICTURE,
            "1.jpg": PICTURE, "1.cls": "-1",
            "2.jpg": PICTURE, "2.json": "{",
            "3.jpg": PICTURE, "3.txt": "two\nlines",
            "30.jpg": PICTURE, "30.json": '{"values": {"a": 1}}',
            "31.jpg": PICTURE, "31.json": '{"labels": [{"name": "cat"}]}',
            "4.cls": "0",
            "5.jpg": PICTURE, "5.mask.png": PICTURE, "5.cls": "0",
            "6.jpg": BROKEN, "6.cls": "0",
        }  # fmt: skip
        file = tarred(tmp_path / "s.tar", files)
        data = load([file])
        assert table(data) == {"5.jpg": ("0", ()), "6.jpg": ("0", ())}
        assert data.notes[0] == f"{file}: 5.mask.png is a second picture of its sample, left out"
        assert data.notes[1].startswith(
            f"6 pictures of {file} without label, left out: 0.jpg, 1.jpg, 2.jpg (Expecting"
        )
        assert "3.jpg (its .txt has several lines), 30.jpg (float() argument" in data.notes[1]
        assert unreadable(data) == ["6.jpg"]

    @pytest.mark.parametrize("at", ["header", "body"])
    def test_a_shard_broken_in_the_middle_keeps_what_comes_before(self, tmp_path, at):
        file = tarred(tmp_path / "s-0.tar", samples(0, 6))
        tarred(tmp_path / "s-1.tar", samples(6, 2))
        with tarfile.open(file) as tar:
            fifth = tar.getmember("000004.jpg")
        data = file.read_bytes()
        cut = fifth.offset + 100 if at == "header" else fifth.offset_data + 20
        file.write_bytes(data[:cut])
        found = load([tmp_path])
        assert [e.source.relative for e in found.examples if e.source.relative != "000004.jpg"] == [
            f"{i:06d}.jpg" for i in (0, 1, 2, 3, 6, 7)
        ]
        assert any(f"{file} is broken, what comes before is kept: " in note for note in found.notes)

    def test_a_shard_that_shrank_after_it_was_listed(self, tmp_path):
        file = tarred(tmp_path / "s.tar", samples(0, 2))
        data = load([file])
        file.write_bytes(file.read_bytes()[:1600])
        with pytest.raises(InputError, match=r"broken archive member: \d+ of \d+ bytes"):
            data.examples[1].source.read()
        file.unlink()
        with pytest.raises(InputError, match="cannot read: No such file"):
            data.examples[0].source.read()

    @pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_names_of_every_kind_of_tar(self, tmp_path, kind):
        names = ["./a/1", "ä/2", "d" * 90 + "/" + "e" * 80, "f" * 101 + "/ö"]
        names = names[: 3 if kind == tarfile.USTAR_FORMAT else 4]
        with tarfile.open(tmp_path / "s.tar", "w", format=kind) as tar:
            for name in names:
                for data, suffix in ((PICTURE, ".png"), (b"7", ".cls")):
                    info = tarfile.TarInfo(name + suffix)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        data = load([tmp_path / "s.tar"])
        assert [e.source.relative for e in data.examples] == [n.removeprefix("./") + ".png" for n in names]
        assert unreadable(data) == []

    def test_a_header_whose_checksum_is_wrong(self, tmp_path):
        file = tarred(tmp_path / "s.tar", samples(0, 4))
        with tarfile.open(file) as tar:
            at = tar.getmember("000002.jpg").offset
        data = bytearray(file.read_bytes())
        data[at] ^= 1  # a letter of its name
        file.write_bytes(data)
        found = load([file])
        assert [e.source.relative for e in found.examples] == ["000000.jpg", "000001.jpg"]
        assert f"broken or cut at byte {at}: bad checksum" in found.notes[0]

    def test_a_compressed_shard(self, tmp_path):
        file = tarred(tmp_path / "s.tar.gz", samples(0, 3), "w:gz")
        data = load([file])
        assert [e.source.read() for e in data.examples] == [picture(i) for i in range(3)]
        assert data.notes == (
            f"{file} is compressed: reading it in another order than its own is slow; unpack it to .tar",
        )

    def test_a_tar_of_class_folders_is_none(self, tmp_path):
        file = tarred(tmp_path / "x.tar", {"cat/a.png": PICTURE, "dog/a.png": PICTURE, "dog/about.txt": "x"})
        assert table(load([file])) == {"cat/a.png": ("cat", ()), "dog/a.png": ("dog", ())}
        write(tmp_path / "both", {"cat/a.png": PICTURE, "cat/x.tar": file.read_bytes()})
        assert len(load([tmp_path / "both"])) == 1


FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["tench", "shark", "hen"], "_type": "ClassLabel"}}


def parquet(
    file, rows: Sequence[tuple[str, bytes, object]], features=FEATURES, group: int = 2, column: str = "label"
):
    """As published: `image` {bytes, path}, numbered labels, their names in the schema."""
    image = pa.array(
        [{"bytes": data, "path": path} for path, data, _ in rows],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    told = pa.table({"image": image, column: [label for _, _, label in rows]})
    if features:
        told = told.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(exist_ok=True)
    pq.write_table(told, file, row_group_size=group)
    return file


class TestParquet:
    ROWS = tuple((f"n0{i}.png", picture(i), label) for i, label in enumerate([2, 0, 2, 0, 2]))

    def test_bytes_labels_and_names(self, tmp_path):
        file = parquet(tmp_path / "train-00000-of-00001.parquet", self.ROWS)
        for given in (file, tmp_path, tmp_path / "train-*.parquet"):
            data = load([given])
            assert data.labels == (Label("0", "tench"), Label("1", "shark"), Label("2", "hen"))
            assert [e.label for e in data.examples] == [2, 0, 2, 0, 2]
            assert [e.source.relative for e in data.examples] == [f"n0{i}.png" for i in range(5)]
            assert [data.examples[i].source.read() for i in (4, 0, 3, 1, 2)] == [
                picture(i) for i in (4, 0, 3, 1, 2)
            ]
            assert {e.subsets for e in data.examples} == {("train",)}
            assert not data.multi_label

    def test_one_row_group_at_a_time(self, tmp_path, monkeypatch):
        shards._group.cache_clear()
        data = load([parquet(tmp_path / "x.parquet", self.ROWS)])
        groups, read = [], pq.ParquetFile.read_row_group

        def spied(self, group, **options):
            groups.append((group, options["columns"]))
            return read(self, group, **options)

        monkeypatch.setattr(pq.ParquetFile, "read_row_group", spied)
        for example in data.examples:
            example.source.read()
        assert groups == [(0, ["image"]), (1, ["image"]), (2, ["image"])]

    def test_plain_bytes_names_lists_and_numbers(self, tmp_path):
        told = {
            "img": [PICTURE, BROKEN, PICTURE],
            "labels": [["cat", "dog"], ["dog"], []],
            "value": [0.5, 1.0, 2.0],
        }
        pq.write_table(pa.table(told), tmp_path / "x.parquet")
        data = load([tmp_path / "x.parquet"])
        assert [e.labels for e in data.examples] == [(0, 1), (1,), ()]
        assert [e.values for e in data.examples] == [(0.5,), (1.0,), (2.0,)]
        assert data.multi_label
        assert unreadable(data) == ["x-0000001"]

    def test_names_of_a_list_of_classes(self, tmp_path):
        for about in ({"feature": FEATURES["label"], "_type": "Sequence"}, [FEATURES["label"]]):
            rows = [("a", PICTURE, [2, 1])]
            data = load([parquet(tmp_path / "x.parquet", rows, {"labels": about}, column="labels")])
            assert [data.labels[i].name for i in data.examples[0].labels] == ["hen", "shark"]

    def test_rows_without_label_or_picture(self, tmp_path):
        rows = [("a", picture(0), -1), ("b", None, 1), ("c", picture(2), None), ("d", picture(3), 1)]
        file = parquet(tmp_path / "x.parquet", rows, None)
        data = load([file])
        assert [e.source.relative for e in data.examples] == ["b", "d"]
        assert [e.label for e in data.examples] == [1, 1]
        assert data.notes == (f"2 rows of {file} without label, left out: 0000000, 0000002",)
        with pytest.raises(InputError, match="a row without a picture; got no bytes"):
            data.examples[0].source.read()
        assert data.examples[1].source.read() == picture(3)

    def test_no_column_of_labels(self, tmp_path):
        pq.write_table(pa.table({"image": [PICTURE], "text": ["x"]}), tmp_path / "x.parquet")
        with pytest.raises(
            UsageError, match=r"x\.parquet: no column of labels; got image, text; allowed: label"
        ):
            load([tmp_path / "x.parquet"])

    def test_as_pictures_to_look_at(self, tmp_path):
        file = parquet(tmp_path / "x.parquet", self.ROWS)
        listing = sources.expand([file])
        assert [s.read() for s in listing.sources] == [picture(i) for i in range(5)]
        assert [s.name for s in listing.sources][:2] == [f"{file}/0000000", f"{file}/0000001"]

    def test_a_manifest_stays_one(self, tmp_path):
        pq.write_table(
            pa.table({"path": ["a.png"], "label": ["cat"], "image": ["x"]}), tmp_path / "m.parquet"
        )
        assert table(load([tmp_path / "m.parquet"])) == {"a.png": ("cat", ())}

    def test_broken(self, tmp_path):
        file = parquet(tmp_path / "x.parquet", self.ROWS)
        data = load([file])
        whole = file.read_bytes()
        shards._group.cache_clear()
        file.write_bytes(whole[:100] + bytes(60) + whole[160:])
        with pytest.raises(InputError):
            read_picture(data.examples[0].source.read())
        file.write_bytes(whole[:-20])
        with pytest.raises(UsageError, match="cannot read the manifest"):
            load([file])
