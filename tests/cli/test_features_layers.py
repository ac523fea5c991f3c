"""`camlucida features layers` and `features transfer` as a person types them."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

import camlucida as cl
from camlucida.cli import main
from camlucida.images.views import Preprocessing
from camlucida.networks import cards
from camlucida.networks.lucida import Lucida
from small_networks import seeded

ARGUMENTS = {"num_classes": 4, "widths": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    file = tmp_path_factory.mktemp("network") / "small.safetensors"
    card = cl.Card("small", "lucida", ARGUMENTS, Preprocessing(size=32, minimum=16))
    cards.pack(file, seeded(Lucida, **ARGUMENTS).state_dict(), card)
    return str(file)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight pictures of each of three colours, of two shapes."""
    rng, folder = np.random.default_rng(3), tmp_path_factory.mktemp("data")
    for i in range(24):
        array = rng.integers(0, 90, (40, 56 - 8 * (i % 2), 3))
        array[..., i % 3] += 120
        file = folder / ("red", "green", "blue")[i % 3] / f"{i:02}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(array.astype(np.uint8)).save(file)
    return folder


def layers(data, network, out, *more):
    return main(["features", "layers", str(data), "--network", network, "--out", str(out), *map(str, more)])


def test_layers_writes_figure_page_and_tables(data, network, tmp_path, capsys):
    (data / "red" / "broken.png").write_bytes(b"none")
    out = tmp_path / "layers"
    asked = ["--layers", "stem,stages.1,stages", "--train", 4, "--splits", 2, "--c", "0.01", "--pixels", 4]
    assert layers(data, network, out, *asked, "--json") == 3
    (data / "red" / "broken.png").unlink()
    rows = json.loads(capsys.readouterr().out)["layers"]
    names = ["stem", "stages.1", "stages"]
    assert [(row["network"], row["layer"]) for row in rows] == [
        *[("trained", name) for name in names], *[("random weights", name) for name in names], ("pixels", "pixels"),
    ]  # fmt: skip
    assert [row["numbers"] for row in rows] == [8, 8, 16, 8, 8, 16, 48]
    assert rows[-1]["mean_class_recall"] >= 90  # the colours
    with (out / "layers.csv").open() as stream:
        assert [float(row["accuracy"]) for row in csv.DictReader(stream)] == [row["accuracy"] for row in rows]
    with (out / "splits.csv").open() as stream:
        each = list(csv.DictReader(stream))
    assert [(row["train"], row["test"]) for row in each] == [("12", "12")] * 14
    stem = [100 * float(row["mean_class_recall"]) for row in each[:2]]
    assert rows[0]["mean_class_recall"] == pytest.approx(np.mean(stem), abs=0.01)
    assert rows[0]["recall_std"] == pytest.approx(np.std(stem, ddof=1), abs=0.01)
    page = (out / "report.html").read_text()
    assert "camlucida features layers" in page
    assert "A linear SVM does best on" in page
    assert page.count("<svg") == 1
    assert "broken.png" in (out / "rejected.csv").read_text()
    assert layers(data, network, out, *asked) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    again = tmp_path / "again"  # the random weights come from the seed
    assert layers(data, network, again, *asked) == 0
    assert (again / "layers.csv").read_bytes() == (out / "layers.csv").read_bytes()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--train", 8], "fewer in 3 of 3 classes"),
        (["--layers", "stgaes"], "does not exist"),
        (["--c", 0], "--c; got (0.0,)"),
        (["--grid", 0], "--grid; got 0"),
    ],
)
def test_bad_commands_are_one_line(data, network, tmp_path, more, said, capsys):
    assert layers(data, network, tmp_path / "out", "--train", 4, "--no-random", *more) == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown
    assert "\n" not in shown


def test_transfer_draws_a_curve_for_each_folder(data, network, tmp_path, capsys):
    for name, more in (("last", []), ("stem", ["--layer", "stem"])):
        assert main(["features", "extract", str(data), "--network", network, *more, "--out", str(tmp_path / name)]) == 0  # fmt: skip
    out, folders = tmp_path / "curves", [str(tmp_path / name) for name in ("last", "stem")]
    capsys.readouterr()
    asked = ["--counts", "1", "5", "--splits", "2", "--out", str(out)]
    assert main(["features", "transfer", *folders, *asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["vectors"], row["pictures_a_class"]) for row in found["curves"]] == [
        ("last", 1), ("last", 5), ("stem", 1), ("stem", 5),
    ]  # fmt: skip
    vectors = cl.features.Features.read(folders[0])
    curve = cl.features.transfer(vectors, [1, 5], splits=2)
    assert found["curves"][1]["accuracy"] == pytest.approx(100 * curve.mean("accuracy")[1], abs=0.01)
    assert found["finding"] in (out / "report.html").read_text()
    assert (out / "transfer.csv").read_text().count("\n") == 5
    assert main(["features", "transfer", *folders, "--counts", "8", "--out", str(tmp_path / "x")]) == 2
    assert "fewer in 3 of 3 classes" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert main(["features", "transfer", folders[0], folders[0], "--out", str(tmp_path / "x")]) == 2
    assert "a folder twice" in capsys.readouterr().err
    assert main(["features", "extract", str(data), "--network", network, "--limit", "9", "--out", str(tmp_path / "few")]) == 0  # fmt: skip
    assert main(["features", "transfer", folders[0], str(tmp_path / "few"), "--out", str(tmp_path / "x")]) == 2  # fmt: skip
    assert "other pictures or labels" in capsys.readouterr().err
