import contextlib
import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from camlucida.errors import CamlucidaError, UsageError
from camlucida.pipeline import Rejected
from camlucida.report import COLUMNS, ResultFolder, save
from camlucida.values import Label
from report import report_values as made

LABELS = [Label(f"n{i:08d}", f"class {i}") for i in range(10)]
MANIFEST = {
    "command": ["camlucida", "localize", "my photos", "--out", "x"],
    "network": {"name": "small"},
    "settings": {
        "batch": 8,
        "part": 2,
        "method": {"name": "cam", "layer": None},
        "rule": "fraction-of-max 0.2",
    },
}
PARTS = [
    ([made.two_boxes("a/one.jpg"), made.broken_map("a/two.jpg")], [made.refused()]),
    ([], [made.refused("b/x.jpg"), made.refused("b/y.jpg")]),
    ([made.two_boxes("c/three.jpg")], []),
]


def names(part):
    return {one.source.name: one.source.relative.replace("/", "_").removesuffix(".jpg") for one in part}


def write_parts(results, indices=range(3)):
    for index in indices:
        seen, rejected = PARTS[index]
        results.write_part(index, seen, rejected, names(seen))


def make(folder, **options):
    results = ResultFolder.open(folder, MANIFEST)
    write_parts(results)
    results.finish(LABELS, csv=True, **options)
    return results


def tree(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()
    }


def fixed(folder):
    """All files but those that hold times."""
    return {name: data for name, data in tree(folder).items() if name not in ("manifest.json", "report.html")}


def test_the_files_of_the_contract(tmp_path):
    folder = tmp_path / "deep" / "out"
    make(folder)
    assert set(tree(folder)) == {
        "localizations/part-00000.parquet",
        "localizations/part-00001.parquet",
        "localizations/part-00002.parquet",
        "localizations.csv",
        "coco.json",
        "coco_results.json",
        "rejected.csv",
        "report.html",
        "manifest.json",
        "overlays/a_one-1.png",
        "overlays/a_one-2.png",
        "overlays/a_two-1.png",
        "overlays/c_three-1.png",
        "overlays/c_three-2.png",
    }
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["tool"], manifest["schema_version"], manifest["state"]) == ("camlucida", 1, "done")
    assert manifest["counts"] == {
        "parts": 3,
        "pictures": 3,
        "rejected": 3,
        "maps": 5,
        "boxes": 7,
        "status": {"non-finite": 1, "ok": 2, "whole-picture": 2},
    }
    assert manifest["settings"] == MANIFEST["settings"]
    assert manifest["times"]["seconds"] >= 0
    rejected = "path,reason\n" + "".join(
        f"{p},not a picture: truncated\n"
        for p in ('"photos/bad, file.jpg"', "photos/b/x.jpg", "photos/b/y.jpg")
    )
    assert (folder / "rejected.csv").read_text() == rejected
    page = (folder / "report.html").read_text()
    assert "camlucida localize &#39;my photos&#39; --out x" in page
    assert "photos/b/y.jpg" in page


def test_rows_and_types(tmp_path):
    make(tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "localizations")
    assert table.schema.equals(COLUMNS)
    names = """schema_version path width height rank class_index class_id class_name probability logit status
    map_method layer box_rule threshold box_index x0 y0 x1 y1 box_score box_uncertainty"""
    assert table.column_names == names.split()
    assert table.schema.field("box_uncertainty").type == pa.float64()
    rows = table.to_pylist()
    assert len(rows) == 7
    common = {
        "schema_version": 1, "path": "photos/a/one.jpg", "width": 300, "height": 200, "rank": 1,
        "class_index": 7, "class_id": "n00000007", "class_name": "class 7", "probability": 0.873,
        "logit": 9.0, "status": "ok", "map_method": "cam", "layer": "features.29",
        "box_rule": "fraction-of-max", "threshold": 0.2, "box_uncertainty": None,
    }  # fmt: skip
    assert rows[0] == {
        **common,
        "box_index": 0,
        "x0": 50.0,
        "y0": 50.0,
        "x1": 100.0,
        "y1": 100.5,
        "box_score": 1.0,
    }
    assert rows[1] == {
        **common,
        "box_index": 1,
        "x0": 25.0,
        "y0": 40.0,
        "x1": 150.0,
        "y1": 120.0,
        "box_score": 0.75,
    }
    assert (rows[2]["rank"], rows[2]["status"], rows[2]["x1"], rows[2]["y1"]) == (
        2,
        "whole-picture",
        300.0,
        200.0,
    )
    assert (rows[3]["path"], rows[3]["layer"], rows[3]["threshold"]) == ("photos/a/two.jpg", None, None)
    assert (rows[3]["width"], rows[3]["height"], rows[3]["status"]) == (120, 240, "non-finite")
    assert pq.read_metadata(tmp_path / "out" / "localizations" / "part-00001.parquet").num_rows == 0
    csv = pa.csv.read_csv(tmp_path / "out" / "localizations.csv").to_pylist()
    assert [(r["path"], r["x0"], r["box_score"]) for r in csv] == [
        (r["path"], r["x0"], r["box_score"]) for r in rows
    ]
    assert list(csv[0]) == table.column_names


def test_coco_files_evaluate_to_one_against_themselves(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    evaluate = pytest.importorskip("pycocotools.cocoeval")
    make(tmp_path / "out")
    dataset = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [one["file_name"] for one in dataset["images"]] == [
        "photos/a/one.jpg",
        "photos/a/two.jpg",
        "photos/c/three.jpg",
    ]
    assert dataset["images"][1] == {"id": 2, "file_name": "photos/a/two.jpg", "width": 120, "height": 240}
    assert [one["id"] for one in dataset["categories"]] == list(range(1, 11))
    assert dataset["categories"][7]["name"] == "class 7"
    second = dataset["annotations"][1]
    assert second == {
        "id": 2, "image_id": 1, "category_id": 8, "bbox": [25.0, 40.0, 125.0, 80.0], "score": 0.873 * 0.75,
        "area": 10000.0, "iscrowd": 0, "rank": 1,
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(tmp_path / "out" / "coco.json"))
        results = truth.loadRes(str(tmp_path / "out" / "coco_results.json"))
        judge = evaluate.COCOeval(truth, results, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert judge.stats[1] == pytest.approx(1.0)  # average precision at IoU 0.5
    assert len(results.anns) == len(dataset["annotations"]) == 7


def test_classes_without_labels_become_categories(tmp_path):
    results = ResultFolder.open(tmp_path / "out", MANIFEST)
    write_parts(results)
    results.finish()
    dataset = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [(one["id"], one["name"]) for one in dataset["categories"]] == [
        (2, "class 1"),
        (4, "class 3"),
        (8, "class 7"),
    ]
    assert not (tmp_path / "out" / "localizations.csv").exists()


def test_two_runs_are_equal_byte_for_byte(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b")
    assert fixed(tmp_path / "a") == fixed(tmp_path / "b")


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_interrupted_then_resumed_equals_uninterrupted(tmp_path, done):
    make(tmp_path / "whole")
    first = ResultFolder.open(tmp_path / "out", MANIFEST)
    write_parts(first, range(done))
    (tmp_path / "out" / "localizations").mkdir(exist_ok=True)
    (tmp_path / "out" / "localizations" / f".part-0000{done}.parquet.partial").write_bytes(b"half")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["state"] == "running"
    again = ResultFolder.open(tmp_path / "out", MANIFEST, resume=True)
    assert again.done_parts() == set(range(done))
    write_parts(again, sorted(set(range(3)) - again.done_parts()))
    again.finish(LABELS, csv=True)
    assert fixed(tmp_path / "out") == fixed(tmp_path / "whole")
    assert len(again.manifest["times"]["resumed"]) == 1


def test_a_part_that_cannot_be_read_is_not_done(tmp_path):
    results = ResultFolder.open(tmp_path / "out", MANIFEST)
    write_parts(results)
    (tmp_path / "out" / "localizations" / "part-00001.parquet").write_bytes(b"PAR1 cut off")
    again = ResultFolder.open(tmp_path / "out", MANIFEST, resume=True)
    assert again.done_parts() == {0, 2}
    with pytest.raises(UsageError, match="no part 1"):
        again.finish(LABELS)


def test_resuming_a_finished_run_only_adds_tables(tmp_path):
    first = ResultFolder.open(tmp_path / "out", MANIFEST)
    write_parts(first)
    first.finish(LABELS)
    before = tree(tmp_path / "out")
    again = ResultFolder.open(tmp_path / "out", MANIFEST, resume=True)
    assert again.done
    assert again.done_parts() == {0, 1, 2}
    again.finish(LABELS, csv=True)
    after = tree(tmp_path / "out")
    assert set(after) - set(before) == {"localizations.csv"}
    assert {name: after[name] for name in before} == before


def test_a_foreign_folder_is_never_touched(tmp_path):
    folder = tmp_path / "mine"
    (folder / "overlays").mkdir(parents=True)
    (folder / "overlays" / "cat-1.png").write_bytes(b"precious")
    (folder / "coco.json").write_text("{}")
    for manifest in (
        None,
        "not json",
        "[]",
        '{"tool": "other", "schema_version": 1}',
        '{"tool": "camlucida"}',
    ):
        if manifest is not None:
            (folder / "manifest.json").write_text(manifest)
        before = tree(folder)
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(UsageError, match="nothing was touched"):
                ResultFolder.open(folder, MANIFEST, **options)
        assert tree(folder) == before
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UsageError, match="not a folder"):
        ResultFolder.open(file, MANIFEST, overwrite=True)


def test_our_folder_needs_resume_or_overwrite(tmp_path):
    make(tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(UsageError, match="--resume goes on with it, --overwrite replaces it"):
        ResultFolder.open(tmp_path / "out", MANIFEST)
    with pytest.raises(UsageError, match="one of them"):
        ResultFolder.open(tmp_path / "out", MANIFEST, resume=True, overwrite=True)
    assert tree(tmp_path / "out") == before


def test_overwrite_removes_only_what_we_write(tmp_path):
    folder = tmp_path / "out"
    make(folder)
    kept = [
        "notes.txt",
        ".download.partial",
        "overlays/mine.png",
        "overlays/a_one-1.png.bak",
        "localizations/other.parquet",
        "sub/coco.json",
    ]
    for name in kept:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    other = {**MANIFEST, "settings": {"batch": 4}}
    results = ResultFolder.open(folder, other, overwrite=True)
    assert results.done_parts() == set()
    assert sorted(tree(folder)) == sorted([*kept, "manifest.json"])
    assert json.loads((folder / "manifest.json").read_text())["settings"] == {"batch": 4}
    assert all((folder / name).read_text() == name for name in kept)


def test_resume_names_the_settings_that_differ(tmp_path):
    ResultFolder.open(tmp_path / "out", MANIFEST)
    before = tree(tmp_path / "out")
    settings = {**MANIFEST["settings"], "batch": 16, "method": {"name": "grad-cam", "layer": None}}
    with pytest.raises(UsageError) as caught:
        ResultFolder.open(tmp_path / "out", {**MANIFEST, "settings": settings}, resume=True)
    message = str(caught.value)
    assert "batch 16 (the folder's: 8)" in message
    assert 'method {"name": "grad-cam"' in message
    assert "rule" not in message
    assert "part " not in message
    assert tree(tmp_path / "out") == before
    changed = {**MANIFEST, "command": "another", "settings": {**MANIFEST["settings"]}}
    assert ResultFolder.open(tmp_path / "out", changed, resume=True).manifest["command"] == "another"


def test_overlays_stop_at_the_limit_and_the_page_too(tmp_path, monkeypatch):
    monkeypatch.setattr(save, "PICTURES", 2)
    results = ResultFolder.open(tmp_path / "out", MANIFEST, overlays=1)
    write_parts(results)
    results.finish(LABELS)
    assert sorted(p.name for p in (tmp_path / "out" / "overlays").iterdir()) == ["a_one-1.png", "a_one-2.png"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<article") == 2
    assert "the first 2 of 3" in page


def test_a_disk_that_refuses_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
    results = ResultFolder.open(tmp_path / "out", MANIFEST)
    write_parts(results, [0])
    before = tree(tmp_path / "out")
    really = os.replace

    def full(old, new):
        if str(new).endswith("part-00002.parquet"):
            raise OSError(28, "No space left on device", str(new))
        really(old, new)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(
        CamlucidaError,
        match=r"part-00002\.parquet; got No space left on device; 2 pictures in 1 finished part are safe.*--resume",
    ) as caught:
        write_parts(results, [2])
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    after = tree(tmp_path / "out")
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if name.endswith(".partial")]
    assert ResultFolder.open(tmp_path / "out", MANIFEST, resume=True).done_parts() == {0}


def test_an_overlay_that_cannot_be_written_is_named(tmp_path):
    results = ResultFolder.open(tmp_path / "out", MANIFEST)
    (tmp_path / "out" / "overlays" / "a_one-2.png").mkdir(parents=True)
    with pytest.raises(CamlucidaError, match=r"a_one-2\.png"):
        write_parts(results, [0])
    assert results.done_parts() == set()


def test_names_that_are_not_utf8_and_numbers_that_are_not_finite(tmp_path):
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    nan = float("nan")
    whole = made.ScoredBox(made.Box(0, 0, 300, 200), nan, whole=True)
    found = made.localization(name, 1, 2, nan, (whole,), status="non-finite", threshold=nan)
    odd = made.seen(name, (found,), [made.hot(0, 0) * nan])
    results = ResultFolder.open(tmp_path / "out", MANIFEST)
    results.write_part(0, [odd], [Rejected(made.source(name), "gone")], {odd.source.name: "cafe"})
    results.finish(LABELS, csv=True)
    assert pq.read_table(tmp_path / "out" / "localizations")["path"].to_pylist() == ["photos/caf�.jpg"]
    assert [one["score"] for one in json.loads((tmp_path / "out" / "coco_results.json").read_text())] == [0.0]
    assert "caf�.jpg" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_class_without_boxes_keeps_its_row(tmp_path):
    one = made.seen("x.jpg", (made.localization("x.jpg", 1, 5, 0.5, ()),), [made.hot(0, 0)])
    results = ResultFolder.open(tmp_path / "out", MANIFEST)
    results.write_part(0, [one], [], {one.source.name: "x"})
    manifest = results.finish(LABELS)
    row = pq.read_table(tmp_path / "out" / "localizations").to_pylist()[0]
    assert (row["class_index"], row["box_index"], row["x0"]) == (5, None, None)
    dataset = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert (len(dataset["images"]), dataset["annotations"]) == (1, [])
    assert json.loads((tmp_path / "out" / "coco_results.json").read_text()) == []
    assert (manifest["counts"]["maps"], manifest["counts"]["boxes"]) == (1, 0)


def test_a_run_without_pictures(tmp_path):
    results = ResultFolder.open(tmp_path / "out", MANIFEST)
    results.finish(LABELS, csv=True)
    assert (tmp_path / "out" / "rejected.csv").read_text() == "path,reason\n"
    assert json.loads((tmp_path / "out" / "coco.json").read_text())["images"] == []
    assert len((tmp_path / "out" / "localizations.csv").read_text().splitlines()) == 1
