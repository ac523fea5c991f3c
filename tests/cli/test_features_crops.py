"""`camlucida features crops` as a person types it, on the layout of CUB-200-2011 and on manifests."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

import camlucida as cl
import planted
from camlucida.cli import main
from camlucida.images import datasets

NETWORK = ["--network", "planted:network", "--mean", "0", "0", "0", "--std", "1", "1", "1", "--size", "96", "--normalise", "standard", "--c", "0.01"]  # fmt: skip


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    return planted.cub(tmp_path_factory.mktemp("cub"), 6, 4)


def crops(data, out, *more):
    return main(["features", "crops", str(data), *NETWORK, "--out", str(out), *map(str, more)])


def table(file):
    return list(csv.DictReader(file.open(encoding="utf-8")))


def test_the_published_split_in_three_settings(birds, tmp_path, capsys):
    out = tmp_path / "birds"
    assert crops(birds, out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["train"], found["test"], found["classes"]) == (24, 16, 4)
    accuracy = {name: one["accuracy"] for name, one in found["settings"].items()}
    assert accuracy["own crops"] == accuracy["given boxes"] == 100 > accuracy["whole pictures"]
    assert found["localization"]["own_crops"] == 100
    assert found["box_rule"] == "fraction-of-max"
    rows = table(out / "pictures.csv")
    data = datasets.load([birds])
    assert len(rows) == 40
    for row in rows:
        of = next(e for e in data.examples if e.source.name == row["path"])
        assert (row["part"],) == of.subsets
        assert tuple(float(row[f"given_{side}"]) for side in ("x0", "y0", "x1", "y1")) == of.boxes[0].corners
        own = cl.Box(*(float(row[side]) for side in ("x0", "y0", "x1", "y1")))
        assert float(row["iou"]) == pytest.approx(cl.features.crops.overlap(own, of.boxes))
    tests = [row for row in rows if row["part"] == "test"]
    assert np.mean([row["class_by_whole_pictures"] == row["class_id"] for row in tests]) == pytest.approx(accuracy["whole pictures"] / 100)  # fmt: skip
    assert sum(int(row["right_by_own_crops"]) for row in table(out / "classes.csv")) == 16
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "better than whole pictures" in page or "no difference beyond chance" in page
    assert page.count("<img") == sum(1 for _ in out.glob("pictures/*.jpg")) >= 5
    assert json.loads((out / "manifest.json").read_text())["state"] == "done"
    assert crops(birds, out) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err


def test_pictures_without_boxes(birds, tmp_path, capsys):
    assert crops(birds / "images", tmp_path / "none", "--train", 2, "--test", 1, "--classes", "001.red_dull", "blue bright", "--json") == 0  # fmt: skip
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert (found["train"], found["test"], list(found["settings"])) == (4, 2, ["whole pictures", "own crops"])
    assert "no picture has a box" in shown.err
    manifest, rows = tmp_path / "some.csv", ["path,label,x0,y0,x1,y1"]
    for k, name in enumerate(planted.CLASSES[:2]):
        for i in range(4):
            box = ",,," if i == 3 and k else "0,0,40,40"
            rows.append(f"{birds}/images/{name}/{i:02}.png,{name},{box}")
    Image.new("RGB", (40, 40)).save(tmp_path / "black.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows += [f"black.png,{planted.CLASSES[0]},0,0,9,9", f"broken.png,{planted.CLASSES[0]},0,0,9,9"]
    manifest.write_text("\n".join(rows))
    assert crops(manifest, tmp_path / "some", "--train", 3, "--maps", "top", "--top", 2, "--margin", 0.1, "--seed", 1) == 3  # fmt: skip
    assert "no box on this picture" in capsys.readouterr().err
    why = {row["path"].rpartition("/")[2]: row["reason"] for row in table(tmp_path / "some" / "rejected.csv")}
    assert why["03.png"] == "no box on this picture"
    assert set(why) == {"03.png", "broken.png"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--train", "10"], "fewer in 4 of 4 classes: red dull (10)"),
        (["--train", "val"], "'val'"),
        (["--train", "2", "--test", "val"], "allowed: a number, or rest"),
        (["--classes", "001.red_dul", "002.red_bright"], "001.red_dull"),
        (["--classes", "001.red_dull"], "classes to tell apart"),
        (["--c", "0"], "--c; got"),
        (["--threshold", "3"], "FractionOfMax.threshold"),
        (["--boxes", "graph-cat"], "graph-cut"),
        (["--maps", "top", "--top", "0"], "top; got 0"),
        (["--batch", "0"], "--batch; got 0"),
        (["--margin", "9"], "margin"),
    ],
)
def test_bad_commands_are_one_line(birds, tmp_path, more, said, capsys):
    assert crops(birds, tmp_path / "out", *more) == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown
    assert "\n" not in shown


def test_several_labels_and_unsplit_pictures_are_refused(birds, tmp_path, capsys):
    manifest = tmp_path / "several.csv"
    manifest.write_text(f"path,labels\n{birds}/images/001.red_dull/00.png,a;b\n")
    assert crops(manifest, tmp_path / "out") == 2
    assert "2 labels" in capsys.readouterr().err
    assert crops(birds / "images", tmp_path / "out") == 2
    assert "--train NUMBER" in capsys.readouterr().err
