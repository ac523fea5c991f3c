"""`camlucida features` as a person types it: pictures → vectors → SVM → a network that localizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image

import camlucida as cl
from camlucida.cli import main
from camlucida.features import FeatureFolder, Features, LinearSVM
from camlucida.images.views import Preprocessing
from camlucida.networks import cards
from camlucida.networks.lucida import Lucida
from small_networks import seeded

ARGUMENTS = {"num_classes": 4, "widths": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
KINDS = ("blue", "green", "red")


def network(folder, seed):
    module = seeded(Lucida, seed=seed, **ARGUMENTS)
    card = cl.Card(f"small{seed}", "lucida", ARGUMENTS, Preprocessing(size=32, minimum=16))
    cards.pack(folder / f"{seed}.safetensors", module.state_dict(), card)
    return str(folder / f"{seed}.safetensors")


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    return [network(folder, seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Ten pictures of each colour, of two shapes."""
    rng, folder = np.random.default_rng(3), tmp_path_factory.mktemp("data")
    for i in range(30):
        array = rng.integers(0, 90, (40, 56 - 8 * (i % 2), 3))
        array[..., 2 - i % 3] += 120
        file = folder / KINDS[i % 3] / f"{i:02}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(array.astype(np.uint8)).save(file)
    return folder


@pytest.fixture(scope="module")
def vectors(networks, data, tmp_path_factory):
    out = [tmp_path_factory.mktemp("vectors") / str(i) for i in range(2)]
    for net, folder in zip(networks, out, strict=True):
        assert main(["features", "extract", str(data), "--network", net, "--out", str(folder)]) == 0
    return [str(folder) for folder in out]


def extract(data, net, out, *more):
    return main(["features", "extract", str(data), "--network", net, "--out", str(out), *more])


def svm(*arguments):
    return main(["features", "svm", *map(str, arguments)])


def test_a_new_task_gets_maps_and_boxes_without_training(networks, data, vectors, tmp_path, capsys):
    file, out = tmp_path / "colours.safetensors", tmp_path / "seen"
    assert svm(vectors[0], "--train", 6, "--pack", file, "--out", tmp_path / "judged", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["figures"]["accuracy"]["mean"] >= 90
    assert (figures["splits"][0]["train"], figures["splits"][0]["test"]) == (18, 12)
    assert json.loads((tmp_path / "judged" / "svm.json").read_text()) == figures
    assert main(["localize", str(data / "red"), "--network", str(file), "--out", str(out), "--top", "3"]) == 0
    rows = [row for part in sorted(out.glob("localizations/*.parquet")) for row in parquet.read_table(part).to_pylist()]  # fmt: skip
    best = [row for row in rows if row["rank"] == 1]
    assert [row["class_name"] for row in best].count("red") >= 9
    assert {row["map_method"] for row in rows} == {"cam"}
    assert {row["probability"] for row in rows} == {None}
    assert all(row["x1"] > row["x0"] for row in rows)
    found, known = Features.read(vectors[0]), LinearSVM.read(tmp_path / "judged" / "svm.safetensors")
    decisions = dict(zip(found.paths, known.decide(found), strict=True))
    for row in rows:
        assert row["logit"] == pytest.approx(decisions[row["path"]][row["class_index"]], abs=1e-4)
    card = cards.read_card(file)
    assert (card.name, card.activation, [one.name for one in card.labels]) == ("colours", "none", list(KINDS))
    assert card.measured["figures"] == figures["splits"][0]["figures"]


def test_the_folder_is_what_the_library_gives(networks, data, tmp_path):
    out = tmp_path / "vectors"
    assert extract(data, networks[0], out, "--parquet", "--limit", "7", "--scales", "24", "32", "--combine", "stack") == 0  # fmt: skip
    values = np.load(out / "features.npy", mmap_mode="r")
    table = parquet.read_table(out / "pictures.parquet").to_pylist()
    assert values.shape == (7, 32)
    assert [row["row"] for row in table] == list(range(7))
    both = parquet.read_table(out / "features.parquet").to_pylist()
    np.testing.assert_array_equal([row["features"] for row in both], values)
    assert [row["path"] for row in both] == [row["path"] for row in table]
    extractor = cl.features.Extractor(cl.load(networks[0]), cl.features.Descriptor(scales=(24, 32), combine="stack"))  # fmt: skip
    for row in table:
        (alone,) = extractor([row["path"]])
        np.testing.assert_allclose(values[row["row"]], alone.vector, atol=1e-6)
        assert row["labels"] == [Path(row["path"]).parent.name]
    read = Features.read(out)
    assert isinstance(read.values, np.memmap)
    assert read.blocks == extractor.blocks


def test_killed_then_resumed_is_the_same_to_the_last_bit(networks, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("camlucida.features.extract.SLICE", 8)
    (tmp_path / "more" / "red").mkdir(parents=True)
    (tmp_path / "more" / "red" / "00.png").write_bytes(b"no picture")
    inputs = [str(tmp_path / "more"), str(data), "--network", networks[0], "--out"]
    assert main(["features", "extract", *inputs, str(tmp_path / "whole")]) == 3
    add, calls = FeatureFolder.add, []

    def killed(self, described):
        calls.append(1)
        if len(calls) == 3:
            with (self.folder / "features.npy").open(
                "ab"
            ) as stream:  # half a slice was written, and half a note
                stream.write(b"half")
            with (self.folder / ".progress.jsonl").open("a") as notes:
                notes.write('{"pictures": 8, "rej')
            raise KeyboardInterrupt
        add(self, described)

    monkeypatch.setattr(FeatureFolder, "add", killed)
    assert main(["features", "extract", *inputs, str(tmp_path / "parts")]) == 130
    assert "--resume goes on" in capsys.readouterr().err
    monkeypatch.setattr(FeatureFolder, "add", add)
    assert main(["features", "svm", str(tmp_path / "parts")]) == 2
    assert "a run that was stopped" in capsys.readouterr().err
    assert main(["features", "extract", *inputs, str(tmp_path / "parts"), "--scales", "40", "--resume"]) == 2
    assert "other descriptor" in capsys.readouterr().err
    assert main(["features", "extract", *inputs, str(tmp_path / "parts"), "--resume"]) == 3
    for name in ("features.npy", "rejected.csv"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    tables = [parquet.read_table(tmp_path / one / "pictures.parquet") for one in ("parts", "whole")]
    assert tables[0] == tables[1]
    assert tables[0].num_rows == 30
    assert not (tmp_path / "parts" / ".progress.jsonl").exists()
    assert (
        main(["features", "extract", *inputs, str(tmp_path / "parts"), "--resume"]) == 3
    )  # nothing is left to do
    assert "00.png" in (tmp_path / "parts" / "rejected.csv").read_text()


def test_splits_and_stacks_of_networks(vectors, capsys):
    assert svm(*vectors, "--train", 4, "--test", 3, "--splits", 2, "--c", 1, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["width"], len(found["blocks"]), len(found["splits"])) == (32, 2, 2)
    recalls = [one["figures"]["mean class recall"] for one in found["splits"]]
    assert found["figures"]["mean class recall"]["mean"] == pytest.approx(np.mean(recalls), abs=0.01)
    assert found["figures"]["mean class recall"]["std"] == pytest.approx(np.std(recalls, ddof=1), abs=0.01)
    assert [(one["train"], one["test"]) for one in found["splits"]] == [(12, 9)] * 2


def test_pictures_without_labels_take_a_manifest_s(networks, data, vectors, tmp_path, capsys):
    out = tmp_path / "vectors"
    assert extract(data, networks[0], out, "--unlabelled") == 0
    np.testing.assert_array_equal(np.load(out / "features.npy"), np.load(f"{vectors[0]}/features.npy"))
    files = sorted(data.rglob("*.png"))
    manifest = data / "labels.csv"
    rows = [f"{file.relative_to(data)},{file.parent.name}" for file in files]
    manifest.write_text("\n".join(["path,label", *rows]))
    capsys.readouterr()
    figures = []
    for given in ([out, "--annotations", manifest], [vectors[0]]):
        assert svm(*given, "--train", 5, "--c", 1, "--json") == 0
        figures.append(json.loads(capsys.readouterr().out)["splits"])
    assert figures[0] == figures[1]
    assert svm(out) == 2
    assert "--annotations MANIFEST" in capsys.readouterr().err
    manifest.write_text("\n".join(["path,label", *rows[2:]]))
    assert svm(out, "--annotations", manifest) == 2
    assert "2 pictures of the vectors have no label in" in capsys.readouterr().err
    manifest.write_text("\n".join(["path,label", *rows, "blue/nowhere.png,blue"]))
    assert svm(out, "--annotations", manifest) == 2
    assert "1 labelled pictures have no vector" in capsys.readouterr().err
    manifest.unlink()


def test_a_saved_svm_judges_other_vectors_of_its_kind(networks, data, vectors, tmp_path, capsys):
    assert svm(vectors[0], "--c", 1, "--out", tmp_path / "judged") == 0
    saved = tmp_path / "judged" / "svm.safetensors"
    capsys.readouterr()
    assert svm(vectors[0], "--svm", saved, "--json") == 0
    assert json.loads(capsys.readouterr().out)["figures"]["accuracy"]["mean"] >= 90
    assert svm(vectors[0], "--svm", saved, "--pack", tmp_path / "packed.safetensors") == 0
    assert cards.read_card(tmp_path / "packed.safetensors").trained_on == "head: 30 pictures of 3 classes"
    assert svm(vectors[1], "--svm", saved) == 2
    assert "fitted to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--train", "10"], "fewer in 3 of 3 classes: blue (10)"),
        (["--train", "val"], "'val'"),
        (["--train", "4", "--test", "val"], "allowed: a number, or rest"),
        (["--splits", "3"], "--train NUMBER"),
        (["--c", "0"], "--c; got (0.0,)"),
        (["--pack", "x.bin"], "ends with .safetensors"),
    ],
)
def test_bad_commands_are_one_line(vectors, more, said, capsys):
    assert svm(vectors[0], *more) == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown
    assert "\n" not in shown


@pytest.mark.parametrize("words", [["svm"], ["extract", "--out", "x"], ["exract"], ["svm", "."]])
def test_what_is_missing_is_said(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["features", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_the_network_must_be_the_one_of_the_vectors(networks, vectors, tmp_path, capsys):
    out = str(tmp_path / "x.safetensors")
    assert svm(vectors[0], "--c", "1", "--pack", out, "--network", networks[1]) == 2
    assert "other weights" in capsys.readouterr().err
    assert svm(*vectors, "--c", "1", "--pack", out) == 2
    assert "2 stacked blocks" in capsys.readouterr().err
    assert not Path(out).exists()


def test_folders_are_not_overwritten_unasked(networks, data, vectors, tmp_path, capsys):
    assert extract(data, networks[0], vectors[0]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert extract(data, networks[0], tmp_path / "mine", "--overwrite") == 2
    assert "nothing was touched" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_boxes_are_rows_of_their_own(networks, data, tmp_path):
    picture = next(iter(sorted(data.rglob("*.png"))))
    manifest = tmp_path / "boxes.csv"
    manifest.write_text(f"path,label,x0,y0,x1,y1\n{picture},left,0,0,24,40\n{picture},right,20,0,48,40\n")
    out = tmp_path / "vectors"
    assert extract(manifest, networks[0], out, "--region", "picture+box") == 0
    found = Features.read(out)
    assert [path.rpartition("#")[2] for path in found.paths] == ["0,0,24,40", "20,0,48,40"]
    assert [[found.classes[k].name for k in row] for row in found.labels] == [["left"], ["right"]]
    np.testing.assert_array_equal(found.values[0, :16], found.values[1, :16])
    assert not np.allclose(found.values[0, 16:], found.values[1, 16:])
    assert [block.region for block in found.blocks] == ["picture", "box"]
