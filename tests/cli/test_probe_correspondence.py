"""camlucida probe correspondence: its tables are the library's numbers, its words follow them, and how it refuses."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import own_networks
import pytest
import torch
from PIL import Image

import camlucida as cl
from camlucida.cli import main
from camlucida.images.parts import pictures_of, read_parts
from camlucida.images.sources import expand
from camlucida.images.views import Preprocessing
from camlucida.probes import Correspondence, SignChange, measure_correspondence
from camlucida.report import probe_correspondence as report
from small_networks import seeded

FACES = Path(__file__).parents[2] / "benchmarks/parts/faces_easy.csv"
OWN = ["--arch", "own_networks:gap", "--weights", "mine.pth", "--size", "32"]
PARTS = """path,part,x0,y0,x1,y1
a/one.png,eye,20,10,27,16
a/two.png,eye,18,8,25,15
three.png,eye,30,4,39,12
a/one.png,nose,22,20,30,30
a/two.png,nose,20,19,28,28
"""


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """Three pictures of three shapes with boxed parts."""
    monkeypatch.chdir(tmp_path)
    torch.save(seeded(own_networks.gap).state_dict(), "mine.pth")
    random = np.random.default_rng(0)
    for name, size in (("a/one.png", (40, 56)), ("a/two.png", (40, 50)), ("three.png", (48, 64))):
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(tmp_path / "faces" / name)
    (tmp_path / "parts.csv").write_text(PARTS)
    return tmp_path


def run(*more: str) -> int:
    return main(
        [
            "probe",
            "correspondence",
            "faces",
            *OWN,
            "--parts",
            "parts.csv",
            "--draws",
            "3",
            "--permutations",
            "20",
            *more,
        ]
    )


@pytest.mark.parametrize("how", ["crop", "squash"])
def test_tables_are_the_numbers_of_the_library(desk, capsys, how):
    if how == "squash":  # a part that the central square would cut off
        (desk / "parts.csv").write_text(PARTS + "three.png,nose,0,0,9,9\n")
    assert run("--layers", "1,logits", "--view", how, "--out", "out", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    net = cl.wrap(seeded(own_networks.gap))
    shape = Preprocessing(size=32)
    pixels, boxes = [], {}
    rows = list(csv.DictReader((desk / "parts.csv").open()))
    for i, name in enumerate(["a/one.png", "a/two.png", "three.png"]):
        picture = Image.open(desk / "faces" / name)
        width, height = picture.size
        if how == "crop":
            scale = (32 / height,) * 2
            wide = round(width * 32 / height)
            picture = picture.resize((wide, 32), Image.Resampling.BILINEAR)
            left = (wide - 32) // 2
            picture = picture.crop((left, 0, left + 32, 32))
            scale = (wide / width, 32 / height)
        else:
            picture, left, scale = (
                picture.resize((32, 32), Image.Resampling.BILINEAR),
                0,
                (32 / width, 32 / height),
            )
        pixels.append(torch.from_numpy(np.asarray(picture).copy()).movedim(-1, 0))
        for row in (r for r in rows if r["path"] == name):
            x0, y0, x1, y1 = (float(row[c]) for c in ("x0", "y0", "x1", "y1"))
            box = cl.Box(x0 * scale[0] - left, y0 * scale[1], x1 * scale[0] - left, y1 * scale[1])
            boxes.setdefault(row["part"], {})[i] = box
    wanted = measure_correspondence(
        net, shape.normalise(torch.stack(pixels)), boxes, ["1", "logits"], draws=3, permutations=20
    )
    table = list(csv.DictReader((desk / "out/sign-changes.csv").open()))
    assert [(r["layer"], r["part"]) for r in table] == [(c.layer, c.part) for c in wanted.changes]
    for row, one in zip(table, wanted.changes, strict=True):
        for name in ("mean", "std", "random_mean", "together_mean", "p_value"):
            assert float(row[name]) == pytest.approx(getattr(one, name), abs=0.02)  # a grey level of the crop
        assert float(row["mean"]) > 0
    assert figures["units"] == {"1": 6 * 15 * 15, "logits": 4}
    pairs = list(csv.DictReader((desk / "out/pairs.csv").open()))
    eyes = [float(r["sign_change"]) for r in pairs if (r["layer"], r["part"]) == ("1", "eye")]
    assert len(eyes) == 3
    assert np.mean(eyes) == pytest.approx(float(table[0]["mean"]))
    page = (desk / "out/report.html").read_text()
    assert page.count("<img") == 3 + 2
    for words in ("eye", "nose", "permutation test", "Sign change at 1", "anywhere"):
        assert words in page


def test_a_broken_picture_is_listed_and_the_rest_goes_on(desk, capsys):
    (desk / "faces/three.png").write_bytes(b"no picture")
    assert run("--out", "out") == 3
    assert "three.png" in capsys.readouterr().err
    table = list(csv.DictReader((desk / "out/sign-changes.csv").open()))
    assert {r["pictures"] for r in table} == {"2"}
    (desk / "faces/a/two.png").write_bytes(b"no picture")
    assert run("--out", "out2") == 2
    assert "2 or more that can be read" in capsys.readouterr().err


def test_random_places_on_the_object(desk, capsys):
    (desk / "parts.csv").write_text(
        PARTS + "a/one.png,object,15,5,40,35\na/two.png,object,12,5,38,34\nthree.png,object,0,0,64,48\n"
    )
    assert run("--out", "out", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["random_places"] == "on the object"
    assert {r["part"] for r in figures["sign_changes"]} == {"eye", "nose", "all parts"}
    assert "on the object" in (desk / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("parts", "more", "says"),
    [
        (PARTS, ["--layers", "nowhere"], "layer 'nowhere' does not exist"),
        (PARTS.replace("27,16", "60,16"), [], "parts.csv, line 2: 'eye' of a/one.png; got a box (20, 10) to (60, 16); allowed: inside the picture of 56 × 40"),
        (PARTS.replace("20,10,27", "0,10,7"), [], "line 2: 'eye' of a/one.png; got a box that the central square cuts off; --view squash"),
        (PARTS.replace("27,16", "20,16"), [], "line 2: an empty or inverted half-open box"),
        (PARTS.replace("a/two.png,nose", "a/none.png,nose"), [], "line 6: a/none.png; got no such picture"),
        (PARTS.replace("a/two.png,nose", "a/one.png,eye"), [], "line 6: 'eye' of a/one.png once more"),
        (PARTS.replace("a/two.png,nose,20,19,28,28\n", ""), [], "part 'nose'; got a box in 1 picture"),
        (PARTS.replace("eye", ""), [], "line 2: no part or no box"),
        ("path,part\n", [], "no rows"),
        (PARTS, ["--parts", "none.csv"], "cannot read the parts in none.csv"),
        (PARTS, ["--draws", "0"], "draws 0"),
    ],
)  # fmt: skip
def test_one_clear_line(desk, capsys, parts, more, says):
    (desk / "parts.csv").write_text(parts)
    assert run("--out", "out", *more) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert says in said[0]


def test_paths_are_found_in_folders_and_archives(desk):
    with zipfile.ZipFile("faces.zip", "w") as archive:
        for file in (desk / "faces").rglob("*.png"):
            archive.write(file, file.relative_to(desk / "faces").as_posix())
    parts = read_parts("parts.csv", "inclusive")
    assert parts[0].box == cl.Box(20, 10, 28, 17)
    assert (parts[3].name, parts[3].line) == ("nose", 5)
    for given in ("faces", "faces.zip"):
        found = pictures_of(parts, expand([given]).sources, "parts.csv")
        assert sorted(found) == ["a/one.png", "a/two.png", "three.png"]
        assert found["a/two.png"].relative == "a/two.png"


def test_the_finding_says_what_the_numbers_say():
    def change(layer, mean, random, p) -> SignChange:
        return SignChange(layer, "all parts", 5, mean, 0.01, random, 0.02, random, 0.02, 0.4, p)

    def words(*changes) -> str:
        return report.finding(Correspondence(changes, {c.layer: 9 for c in changes}, 10, 999, 0))

    found = words(change("low", 0.07, 0.1, 0.001), change("top", 0.069, 0.073, 0.3))
    assert "At low 0.070 ± 0.010 of the signs differ" in found
    assert "0.100 ± 0.020 at random places: parts correspond better than random (p ≤ 0.001)" in found
    assert "Of random places that all pictures share 40% are as consistent as the parts (0.100)." in found
    assert "better than random, but as chance may have it (p = 0.3)" in found
    assert "30% lower than the random one at low, 5% lower at top: their advantage shrinks" in found
    found = words(change("low", 0.12, 0.1, 0.8), change("top", 0.05, 0.1, 0.02))
    assert "no better than random (p = 0.8)" in found
    assert "20% higher than the random one at low, 50% lower at top: their advantage grows" in found


def test_the_committed_parts_are_five_faces_with_four_parts_each():
    parts = read_parts(FACES)
    paths = sorted({p.path for p in parts})
    assert len(paths) == 5
    for path in paths:
        box = {p.name: p.box for p in parts if p.path == path}
        assert sorted(box) == ["left eye", "mouth", "nose", "object", "right eye"]
        assert box["right eye"].x1 <= box["left eye"].x0  # the person's right is the picture's left
        assert box["right eye"].y1 <= box["nose"].y1 <= box["mouth"].y1
        face = box["object"]
        assert all(
            face.x0 <= b.x0 and face.y0 <= b.y0 and b.x1 <= face.x1 and b.y1 <= face.y1 for b in box.values()
        )
