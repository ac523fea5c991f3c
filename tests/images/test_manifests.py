"""Manifests of every kind: the same rows, half-open boxes, and the line in every complaint."""

from __future__ import annotations

import json

import pytest

from camlucida.errors import UsageError
from camlucida.images.manifests import COLUMNS, Row, parse, parse_csv, read
from camlucida.values import Box

RECORDS = [
    {
        "path": "a.jpg",
        "label": "cat",
        "x0": 1,
        "y0": 2,
        "x1": 30.5,
        "y1": 40,
        "difficult": 1,
        "split": "train",
    },
    {"path": "a.jpg", "label": "cat", "x0": 5, "y0": 5, "x1": 9, "y1": 9, "caption": "a cat, asleep"},
    {"path": "b/ä.jpg", "label": "dog", "mask": "masks/b.png"},
]
ROWS = (
    Row("a.jpg", ("cat",), Box(1, 2, 30.5, 40), difficult=True, split="train"),
    Row("a.jpg", ("cat",), Box(5, 5, 9, 9), caption="a cat, asleep"),
    Row("b/ä.jpg", ("dog",), mask="masks/b.png"),
)


def write(file, records=RECORDS):
    """The same records as CSV, JSON lines or Parquet."""
    if file.suffix == ".csv":
        import csv

        with file.open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, COLUMNS)
            table.writeheader()
            table.writerows(records)
    elif file.suffix == ".jsonl":
        file.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in records), encoding="utf-8")
    else:
        import pyarrow as pa
        import pyarrow.parquet

        columns = {
            name: [r.get(name) for r in records] for name in COLUMNS if any(name in r for r in records)
        }
        pyarrow.parquet.write_table(pa.table(columns), file)
    return file


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
class TestEveryKind:
    def test_rows(self, tmp_path, suffix):
        assert read(write(tmp_path / f"m{suffix}")) == ROWS
        assert read(str(tmp_path / f"m{suffix}")) == ROWS

    def test_inclusive_corners_become_half_open(self, tmp_path, suffix):
        rows = read(write(tmp_path / f"m{suffix}"), "inclusive")
        assert [r.box for r in rows] == [Box(1, 2, 31.5, 41), Box(5, 5, 10, 10), None]

    @pytest.mark.parametrize(("corners", "message"), [("half-open", "half-open box"), ("inclusive", None)])
    def test_a_box_of_one_pixel(self, tmp_path, suffix, corners, message):
        file = write(tmp_path / f"m{suffix}", [{"path": "a.jpg", "x0": 7, "y0": 3, "x1": 7, "y1": 3}])
        if message:
            with pytest.raises(UsageError, match=f"an empty or inverted {message}"):
                read(file, corners)
        else:
            assert read(file, corners)[0].box == Box(7, 3, 8, 4)

    @pytest.mark.parametrize(
        "box", [(9, 0, 3, 5), (0, 9, 3, 5), (0, 0, float("inf"), 5), (float("nan"), 0, 3, 5)]
    )
    def test_an_inverted_or_endless_box_names_its_line(self, tmp_path, suffix, box):
        bad = {"path": "b.jpg"} | dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))
        file = write(tmp_path / f"m{suffix}", [{"path": "a.jpg"}, bad])
        with pytest.raises(
            UsageError, match=rf"m{suffix}, line {3 if suffix == '.csv' else 2}: an empty or inverted"
        ):
            read(file, "inclusive")

    def test_half_a_box(self, tmp_path, suffix):
        file = write(tmp_path / f"m{suffix}", [{"path": "a.jpg", "x0": 1, "y0": 2, "x1": 3}])
        with pytest.raises(UsageError, match="a box.*four numbers x0, y0, x1, y1"):
            read(file)

    def test_a_row_without_a_path(self, tmp_path, suffix):
        file = write(tmp_path / f"m{suffix}", [{"path": "a.jpg"}, {"label": "x"}])
        with pytest.raises(
            UsageError, match=rf"line {3 if suffix == '.csv' else 2}: no path; allowed: columns path, label"
        ):
            read(file)

    def test_several_labels(self, tmp_path, suffix):
        labels = "cat;dog" if suffix == ".csv" else ["cat", "dog"]
        assert read(write(tmp_path / f"m{suffix}", [{"path": "a", "labels": labels}]))[0].labels == (
            "cat",
            "dog",
        )

    @pytest.mark.parametrize("yes", [1, 1.0, True, "yes"])
    def test_difficult(self, tmp_path, suffix, yes):
        if suffix == ".parquet" and not isinstance(yes, float):
            records = [{"path": "a", "difficult": yes}]
        else:
            records = [
                {"path": "a", "difficult": yes},
                {"path": "b", "difficult": type(yes)() if yes != "yes" else "no"},
            ]
        rows = read(write(tmp_path / f"m{suffix}", records))
        assert [r.difficult for r in rows] == [True, False][: len(rows)]

    def test_numbers(self, tmp_path, suffix):
        given = ["1.5 -2", "3"] if suffix == ".csv" else [[1.5, -2], [3]]
        rows = read(write(tmp_path / f"m{suffix}", [{"path": "a", "values": v} for v in given]))
        assert [r.values for r in rows] == [(1.5, -2.0), (3.0,)]
        assert read(write(tmp_path / f"n{suffix}", [{"path": "a", "value": 0.25}]))[0].values == (0.25,)

    @pytest.mark.parametrize("value", ["x", "1.5 x", "inf", "1,5"])
    def test_numbers_that_are_none(self, tmp_path, suffix, value):
        file = write(tmp_path / f"m{suffix}", [{"path": "a", "value": "1"}, {"path": "b", "value": value}])
        with pytest.raises(
            UsageError, match=rf"m{suffix}, line {3 if suffix == '.csv' else 2}: values; got '{value}'"
        ):
            read(file)

    def test_nothing_in_it(self, tmp_path, suffix):
        assert read(write(tmp_path / f"m{suffix}", [])) == () or suffix == ".parquet"

    def test_an_unknown_kind_of_corners(self, tmp_path, suffix):
        with pytest.raises(UsageError, match=r"corners; got 'inclusiv'; did you mean 'inclusive'\?"):
            read(write(tmp_path / f"m{suffix}"), "inclusiv")

    def test_no_manifest_at_all(self, tmp_path, suffix):
        (tmp_path / f"m{suffix}").write_bytes(b"\xff\xfe\x00 no text, no table \x81")
        with pytest.raises(UsageError, match=r"cannot read the manifest .*; got .+"):
            read(tmp_path / f"m{suffix}")
        with pytest.raises(UsageError, match=r"cannot read the manifest .*No such file"):
            read(tmp_path / f"none{suffix}")


class TestCsv:
    def test_as_spreadsheets_write_it(self, tmp_path):
        text = '\ufeffpath, label ,extra\r\n"a, b.jpg", cat,9\r\n\r\nc.jpg, "dog; wolf",\r\n'
        (tmp_path / "m.csv").write_bytes(text.encode("utf-8"))
        assert read(tmp_path / "m.csv") == (Row("a, b.jpg", ("cat",)), Row("c.jpg", ("dog", "wolf")))

    def test_our_packed_data_sets_call_the_label_wnid(self):
        rows = parse_csv("path,wnid,x0,y0,x1,y1\nn01/a.JPEG,n01,0,0,63,63\n", "inclusive")
        assert rows == (Row("n01/a.JPEG", ("n01",), Box(0, 0, 64, 64)),)

    def test_no_class_is_made_of_nothing(self):
        rows = parse_csv("path,labels\na.jpg,cat; ;dog;\nb.jpg, \n")
        assert [row.labels for row in rows] == [("cat", "dog"), ()]
        assert parse([{"path": "a", "labels": ["cat", None, ""]}], "half-open", "m")[0].labels == ("cat",)

    def test_a_field_that_is_no_number(self):
        with pytest.raises(UsageError, match=r"t\.csv, line 3: a box; got \['1', '2', 'x', '4'\]"):
            parse_csv("path,x0,y0,x1,y1\na,1,2,3,4\na,1,2,x,4\n", where="t.csv")

    def test_lines_are_those_of_the_file(self):
        text = 'path,caption,x0,y0,x1,y1\n\n"a","one\ntwo",1,2,3,4\n\nb,,1,2,x,4\n'
        with pytest.raises(UsageError, match=r"t\.csv, line 6: a box"):
            parse_csv(text, where="t.csv")
        assert [row.line for row in parse_csv(text.replace("x,4", "3,4"))] == [4, 6]

    def test_a_field_without_an_end(self, tmp_path):
        (tmp_path / "m.csv").write_text('path\n"' + "x" * 200_000)
        with pytest.raises(UsageError, match="cannot read the manifest.*field larger than"):
            read(tmp_path / "m.csv")


class TestJsonLines:
    def test_a_broken_line_is_named(self, tmp_path):
        (tmp_path / "m.jsonl").write_text('{"path": "a.jpg"}\n\n{"path": \n{"path": "b.jpg"}\n')
        with pytest.raises(UsageError, match=r"m\.jsonl; got line 3 is not JSON"):
            read(tmp_path / "m.jsonl")

    def test_empty_lines_are_passed_over_and_counted(self, tmp_path):
        (tmp_path / "m.jsonl").write_text('\n{"path": "a.jpg"}\n  \n{"label": "x"}\n')
        with pytest.raises(UsageError, match=r"line 4: no path"):
            read(tmp_path / "m.jsonl")

    @pytest.mark.parametrize("line", ["[1, 2]", '"a.jpg"', "7"])
    def test_a_line_that_is_no_object(self, tmp_path, line):
        (tmp_path / "m.jsonl").write_text('{"path": "a.jpg"}\n' + line)
        with pytest.raises(
            UsageError, match=r"m\.jsonl, line 2; got (list|str|int); allowed: names → values"
        ):
            read(tmp_path / "m.jsonl")

    def test_line_ends_of_other_alphabets_end_no_record(self, tmp_path):
        record = {"path": "a.jpg", "caption": "one\u2028two\x85three"}
        (tmp_path / "m.jsonl").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
        assert read(tmp_path / "m.jsonl") == (Row("a.jpg", caption=record["caption"]),)

    def test_no_value_is_no_value(self, tmp_path):
        (tmp_path / "m.jsonl").write_text('{"path": "a.jpg", "label": null, "x0": null, "caption": ""}')
        assert read(tmp_path / "m.jsonl") == (Row("a.jpg"),)


def test_other_suffixes(tmp_path):
    (tmp_path / "m.xlsx").write_bytes(b"")
    with pytest.raises(UsageError, match=r"got suffix \.xlsx; allowed: \.csv \.jsonl \.parquet"):
        read(tmp_path / "m.xlsx")
