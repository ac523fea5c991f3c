"""`camlucida probe filters`: its folder, its page, and the sentences made of the figures."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import camlucida as cl
from camlucida.cli import main
from camlucida.probes.filters import FiltersAndUnits, first_filters, measure
from camlucida.report import probe_filters
from pictures import colours


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(4):
        Image.fromarray(colours(40 + 16 * (seed % 2), 56, seed)).save(folder / f"{seed}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def rows(file):
    with file.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_two_networks_beside_each_other(photos, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["probe", "filters", str(photos), "--against", "embedded", "--k", "2", "--units", "2", "--out", str(out)]  # fmt: skip
    assert main([*command, "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    one, other = found.values()
    assert list(found) == ["lucida-tiny200-v1 (1)", "lucida-tiny200-v1 (2)"]
    assert one == other
    assert (one["layer"], one["filters"], one["size"], one["pictures"]) == ("stem.0", 32, [3, 3], 4)
    net = cl.load("embedded")
    weights = first_filters(net)
    filters = [row for row in rows(out / "filters.csv") if row["network"].endswith("(1)")]
    np.testing.assert_allclose([float(row["rms"]) for row in filters], weights.rms)
    np.testing.assert_allclose([float(row["energy_middle"]) for row in filters], weights.bands[:, 1])
    with np.load(out / "filters.npz") as stored:
        np.testing.assert_array_equal(stored["weights_2"], weights.weights)
    units, layers = rows(out / "units.csv"), rows(out / "layers.csv")
    assert len(units) == 2 * sum(int(row["units"]) for row in layers[: len(layers) // 2]) == 2 * one["units"]
    stem = [row for row in units if row["layer"] == "stem" and row["network"].endswith("(1)")]
    assert np.mean([float(row["cells_active"]) for row in stem]) == pytest.approx(float(layers[0]["cells_active"]))  # fmt: skip
    projections = rows(out / "projections.csv")
    assert len(projections) == 2 * 2 * 2
    assert {row["layer"] for row in projections} == {"stages.0.0.relu"}
    assert [row["path"] for row in rows(out / "rejected.csv")] == [str(photos / "broken.jpg")]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "has the same share of dead filters as" in page
    assert page.count("black and white are ∓") == 4  # alternative text and caption of each sheet
    assert 'href="pictures/' in page
    linked = set(json.loads((out / "manifest.json").read_text())["files"])
    assert {part.split('"')[0] for part in page.split('href="')[1:] if part.startswith("pictures/")} <= linked


def test_weights_alone(tmp_path, capsys):
    assert main(["probe", "filters", "--out", str(tmp_path / "out"), "--network", "alexnet-gap", "--weights", "none", "--num-classes", "3"]) == 0  # fmt: skip
    said = capsys.readouterr().out
    assert "0 of 96 filters of features.conv1 (11 × 11, stride 4) are dead by their weights;" in said
    assert "pictures" not in said
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"report.html", "manifest.json", "filters.csv", "filters.npz"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--k", "9"], "got 5 pictures; allowed: --k up to 5"),
        (["--units", "0"], "--units; got 0"),
        (["--k", "2", "--layers", "stem.9"], "'stem.9' does not exist"),
        (["--k", "2", "--second", "classify"], "no spatial extent"),
    ],
)
def test_bad_options_are_one_line(photos, tmp_path, capsys, options, words):
    assert main(["probe", "filters", str(photos), "--out", str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err.strip()
    assert words in said
    assert said.count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_options_that_need_pictures(tmp_path, capsys):
    assert main(["probe", "filters", "--out", str(tmp_path / "out"), "--second", "stem"]) == 2
    assert "--second without pictures" in capsys.readouterr().err


def looks(dead_one, dead_other):
    weights = np.random.default_rng(0).normal(size=(8, 3, 5, 5)).astype(np.float32)
    found = {}
    for name, dead in (("a", dead_one), ("b", dead_other)):
        given = weights.copy()
        given[:dead] *= 1e-3
        found[name] = FiltersAndUnits(measure(given, (2, 2), "conv1"))
    return found


@pytest.mark.parametrize(("dead", "words"), [((1, 3), "a smaller share of dead filters than b"), ((3, 1), "a larger share of dead filters than b"), ((2, 2), "the same share of dead filters as b")])  # fmt: skip
def test_the_finding_says_what_the_figures_do(dead, words):
    said = probe_filters.words(looks(*dead))
    assert words in said
    assert f"a: {dead[0]} of 8 filters of conv1 (5 × 5, stride 2) are dead" in said


def test_figures_that_are_not_finite_are_none():
    found = probe_filters.figures(FiltersAndUnits(measure(np.zeros((2, 3, 3, 3), np.float32))))
    assert found["energy_low"] is None
    assert found["largest_rms_over_median"] is None
    assert found["dead"] == 2
    json.dumps(found, allow_nan=False)


def test_the_sheet_has_one_scale_and_frames_the_dead():
    weights = np.zeros((6, 3, 4, 4), np.float32)
    weights[:, 0, 0, 0] = [2, 1, -2, 1, 1, 0]
    found = measure(weights, (1, 1))
    assert found.dead.tolist() == [False] * 5 + [True]
    image = np.asarray(probe_filters.sheet(found))
    side, gap = 44, probe_filters.GAP
    assert image.shape == (2 * (side + gap) + gap, 3 * (side + gap) + gap, 3)
    tiles = [image[gap + i // 3 * (side + gap) :, gap + i % 3 * (side + gap) :] for i in range(6)]
    assert [tile[0, 0, 0] for tile in tiles] == [255, 191, 0, 191, 191, 128]
    assert all((tile[side - 1, side - 1] == 128).all() for tile in tiles)
    own = np.asarray(probe_filters.sheet(found, shared=False))
    assert own[gap, gap + side + gap, 0] == 255
    corner = image[gap + side + gap - 1, 2 * (side + gap) + gap - 1]
    assert tuple(corner) == probe_filters.DEAD_FRAME
    alive = image[gap - 1, gap - 1]
    assert tuple(alive) == (255, 255, 255)


def test_a_filter_of_many_channels_is_grey():
    image = np.asarray(probe_filters.sheet(measure(np.random.default_rng(0).normal(size=(2, 5, 3, 3)).astype(np.float32))))  # fmt: skip
    assert (image.max(2) == image.min(2)).all()
