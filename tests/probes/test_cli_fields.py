"""`camlucida probe receptive-field` and `class-units`: what they write, say and refuse."""
# mypy: disable-error-code="union-attr"

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

import camlucida as cl
from camlucida.cli import main
from camlucida.geometry import Box, Size
from camlucida.probes.receptive_field import Discrepancy, EmpiricalField
from camlucida.probes.top_activations import Peak
from camlucida.report import probe_class_units, probe_receptive_field
from camlucida.values import View

SMALL = ["--size", "64"]


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for name, (height, width) in (("a", (40, 56)), ("b", (64, 44)), ("c", (40, 56))):
        coarse = random.integers(0, 255, (5, 7, 3), np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"nothing")
    return "photos"


def rows(file):
    with open(file, encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_theory_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        main(["probe", "receptive-field", *SMALL, "--layers", "stages.0,stages.1", "--out", "out", "--json"])
        == 0
    )
    said = json.loads(capsys.readouterr().out)
    found = rows("out/layers.csv")
    assert [(r["layer"], r["field"], r["stride"], r["offset"]) for r in found] == [
        ("stages.0", "11.0", "2.0", "0.5"), ("stages.1", "39.0", "4.0", "0.5"),
    ]  # fmt: skip
    assert [r["gradient"] for r in found] == ["11 × 11", "39 × 39"]
    assert said["fields"] == []
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "A unit of stages.1 sees 39 pixels a side of a view of 64 × 64." in page
    assert "the same as by recurrence for 2 of 2" in page
    assert 'aria-label="Fields of the middle cell: stages.0 11 pixels; stages.1 39 pixels"' in page


def test_empirical_fields_of_chosen_units(photos, tmp_path, capsys):
    command = ["probe", "receptive-field", photos, *SMALL, "--layers", "stages.0", "--units", "3,1", "--top", "2", "--patch", "6", "--stride", "16", "--engine", "plain", "--out", "out"]  # fmt: skip
    assert main(command) == 3
    out, err = capsys.readouterr()
    assert "broken.jpg: not a picture" in err
    assert "of stages.0 see" in out
    found = rows("out/fields.csv")
    assert [(r["layer"], r["unit"], r["pictures"], r["theory"]) for r in found] == [("stages.0", "3", "2", "11.0"), ("stages.0", "1", "2", "11.0")]  # fmt: skip
    kept = np.load("out/fields.npz")
    net = cl.load("embedded")
    assert set(kept) == {"stages.0-3", "stages.0-3-counts", "stages.0-1", "stages.0-1-counts"}
    assert kept["stages.0-3-counts"].max() == 2
    assert np.nanmax(kept["stages.0-3"]) == pytest.approx(float(found[0]["highest"]))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "plain loop" in page
    assert 'href="pictures/' in page
    assert net.card.name in page
    assert [r["path"] for r in rows("out/rejected.csv")] == ["photos/broken.jpg"]


def test_units_of_a_class(photos, tmp_path, capsys):
    command = [
        "probe",
        "class-units",
        photos,
        *SMALL,
        "--classes",
        "7,espresso",
        "--top",
        "4",
        "--out",
        "out",
    ]
    assert main([*command, "--json"]) == 3
    out, err = capsys.readouterr()
    assert "3 pictures, fewer than --top 4: all are taken" in err
    said = json.loads(out)["classes"]
    net = cl.load("embedded")
    weight = net.structure(net.blank()).head.weight.detach()
    for one in said:
        assert one["units"] == weight[one["class_index"]].argsort(descending=True, stable=True)[:3].tolist()
        assert one["sum_of_units"] + one["bias"] == pytest.approx(one["logit"], rel=1e-4)
        assert abs(one["off_by"]) < 1e-4
    found = rows("out/units.csv")
    assert {r["class_name"] for r in found} == {
        net.card.label(one["class_index"]).name.split(",")[0] for one in said
    }
    assert len(rows("out/classes.csv")) == 2
    kept = np.load("out/units.npz")
    np.testing.assert_allclose(kept["class-7-weights"], weight[7])
    assert kept["class-7-contributions"].sum() == pytest.approx(said[0]["sum_of_units"], rel=1e-4)
    assert main(command) == 2  # the folder holds results
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["receptive-field", "photos", "--layers", "stagez"], 2, "layer 'stagez' does not exist"),
        (["receptive-field", "photos", "--layers", "fc"], 2, "'fc'"),
        (["receptive-field", "photos", "--units", "some"], 2, "--units some; allowed: top:K, or numbers"),
        (["receptive-field", "photos", "--units", "900"], 2, "unit 900 of layer stages; allowed: 0 … 255"),
        (["receptive-field", "photos", "--top", "0"], 2, "--top; got 0; allowed: ≥ 1"),
        (["receptive-field", "photos/broken.jpg"], 3, "photos/broken.jpg: not a picture"),
        (["receptive-field", "empty"], 2, "no pictures in empty"),
        (["class-units", "empty"], 2, "no pictures in empty"),
        (["class-units", "photos/broken.jpg"], 3, "photos/broken.jpg: not a picture"),
        (["class-units", "photos", "--classes", "espreso"], 2, "espresso"),
        (["class-units", "photos", "--classes", "200"], 2, "class 200; allowed: 0 … 199"),
        (["class-units", "photos", "--units", "0"], 2, "--units; got 0; allowed: ≥ 1"),
        (["class-units", "photos", "--network", "nin", "--weights", "none"], 1, "got channels that are the logits: each class has one unit, its own"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(photos, tmp_path, capsys, command, code, words):
    (tmp_path / "empty").mkdir()
    small = [] if "--network" in command else SMALL
    assert main(["probe", *command, *small, "--out", "out"]) == code
    err = capsys.readouterr().err.strip()
    assert words in err
    assert len(err.splitlines()) == 1


# --- figures -------------------------------------------------------------------------------------------------


def test_the_field_s_picture_has_the_places_where_they_are():
    values = np.zeros((5, 5), np.float32)
    values[1, 3], values[0, 0] = 1.0, np.nan
    found = EmpiricalField("a", 0, values, np.ones((5, 5), np.int64), 5, 3, None, ())
    assert found.half == 9  # the place lies one off the peak, both ways
    shown = np.asarray(probe_receptive_field.field_picture(found))
    assert shown.shape == (285, 285, 3)
    side = 57
    assert shown[int(1.5 * side), int(3.5 * side)].sum() > 600  # the brightest
    assert shown[int(3.5 * side), int(1.5 * side)].sum() < 100
    assert tuple(shown[side // 2, side // 2]) == probe_receptive_field.UNSEEN
    assert tuple(shown[side, int(3.5 * side)]) == probe_receptive_field.EFFECTIVE


def test_a_discrepancy_lies_over_its_place():
    values = np.zeros((4, 6), np.float32)
    values[2, 4] = 1.0
    one = Discrepancy(Peak(0, 1.0, (0, 0)), values, np.arange(1, 17, 4), np.arange(2, 26, 4), (0, 0))
    shown = probe_receptive_field.over_view(one, 4, 4, np.full((20, 28, 3), 100, np.uint8)).sum(2)
    bright = np.argwhere(shown > shown.min())
    assert bright.min(0).tolist() == [9, 18]
    assert (bright.max(0) + 1).tolist() == [13, 22]


def test_a_cut_out_is_picture_times_mask_in_the_view():
    picture = Image.fromarray(np.full((60, 80, 3), 200, np.uint8))
    view = View(Size(60, 80), Size(30, 40), (0, 5, 30, 30))
    seen = probe_class_units.in_view(picture, view)
    assert seen.size == (60, 60)
    mask = np.zeros((30, 30), bool)
    mask[10:20, 5:15] = True
    shown = probe_class_units.cut_out(seen, mask)
    assert (shown[20:40, 10:30] == 200).all()
    assert shown.sum() == 20 * 20 * 3 * 200


def test_drawn_layers_are_the_outermost_and_differ():
    net = cl.load("embedded")
    names = [one.name for one in probe_receptive_field.drawn(net.layers())]
    assert names == ["stem", "stages.0", "stages.1.0", "stages.1", "stages.2.0", "stages.2", "stages"]
    svg = probe_receptive_field.nested([net.find_layer("stages.0", net.blank())], Size(96, 96))
    theory = Box(48.5 - 5.5, 48.5 - 5.5, 48.5 + 5.5, 48.5 + 5.5)
    scale = 540 / 96
    assert (
        f'x="{10 + scale * theory.x0:.1f}" y="{10 + scale * theory.y0:.1f}" width="{scale * 11:.1f}"' in svg
    )
