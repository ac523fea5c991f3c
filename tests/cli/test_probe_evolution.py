"""`camlucida probe evolution`: the checkpoints of a run in order, folder, page and numbers; what is refused."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import camlucida as cl
from camlucida.cli import main
from camlucida.networks.cards import pack
from camlucida.probes.evolution import Evolution, History, Moment
from camlucida.report import probe_evolution as report
from pictures import colours

SIZE = {"num_classes": 2, "width": 0.05, "size": 67}


def packed(file: str, seed: int, **card) -> None:
    net = cl.load("alexnet", weights=None, num_classes=2, width=0.05, arguments={"size": 67})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in net.module.parameters():
            torch.nn.init.normal_(parameter, 0, 0.1)
    given = cl.Card(
        "mine", "alexnet", SIZE, net.card.preprocessing, (cl.Label("0", "cat"), cl.Label("1", "dog"))
    )
    pack(file, net.module.state_dict(), replace(given, **card))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A run that kept three epochs, five pictures of several sizes, one of them broken."""
    folder = tmp_path_factory.mktemp("evolution")
    for epoch, seed in {2: 0, 10: 1, 1: 2}.items():
        packed(str(folder / f"run/epochs/epoch-{epoch:04}.safetensors"), seed)
    (folder / "photos").mkdir()
    for i, size in enumerate([(40, 56), (70, 30), (67, 67), (80, 90)]):
        Image.fromarray(colours(*size, seed=i)).save(folder / f"photos/{i}.png")
    (folder / "photos/broken.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture
def desk(prepared, monkeypatch, tmp_path):
    monkeypatch.chdir(prepared)
    return tmp_path


def command(out, *words: str) -> list[str]:
    return ["probe", "evolution", *words, "--out", str(out / "out")]


def rows(folder, name: str) -> list[dict[str, str]]:
    with open(folder / f"out/{name}.csv") as stream:
        return list(csv.DictReader(stream))


def test_the_folder_holds_what_was_found(desk, capsys):
    layers = "features.relu1,features.relu3"
    words = ["run", "--data", "photos", "--layers", layers, "--units", "0,2", "--json"]
    assert main(command(desk, *words)) == 3
    said = capsys.readouterr()
    figures = json.loads(said.out)
    assert list(figures["checkpoints"]) == ["1", "2", "10"]  # by number, not by name
    assert "broken.png" in said.err
    files = [f"run/epochs/epoch-{epoch:04}.safetensors" for epoch in (1, 2, 10)]
    networks = [(file, cl.load(file)) for file in files]
    names = [f"photos/{i}.png" for i in range(4)]
    found = cl.probes.evolution(networks, names, layers.split(","), (0, 2))
    strongest = rows(desk, "strongest")
    assert len(strongest) == 2 * 2 * 3
    wanted = [moment for one in found.histories for moment in one.moments]
    for row, moment in zip(strongest, wanted, strict=True):
        assert float(row["activation"]) == pytest.approx(moment.value, rel=1e-4)
        assert row["picture"] == ("" if moment.picture is None else str(moment.picture))
    assert [row["checkpoint"] for row in strongest[:3]] == ["1", "2", "10"]
    assert [u["takeovers"] for u in figures["units"]] == [[("1", "2", "10")[i] for i in one.takeovers] for one in found.histories]  # fmt: skip
    rates = rows(desk, "rates")
    np.testing.assert_allclose(
        [float(row["to_last"]) for row in rates[:3]], found.to_last["features.relu1"], atol=1e-4
    )
    page = (desk / "out/report.html").read_text()
    assert page.count("<img") == 12
    assert page.count('href="pictures/') == sum(moment.picture is not None for moment in wanted)
    assert page.count("<svg") == 3
    assert "Unit 2" in page
    assert {f for f in json.loads((desk / "out/manifest.json").read_text())["files"] if "/" not in f} == {
        "rates.csv", "rejected.csv", "report.html", "strongest.csv",
    }  # fmt: skip


def test_files_stay_in_the_order_given_and_are_called_by_their_names(desk, capsys):
    packed("start.safetensors", 3)
    words = [
        "start.safetensors",
        "run/epochs/epoch-0010.safetensors",
        "--data",
        "photos/0.png",
        "photos/1.png",
    ]
    assert main(command(desk, *words, "--layers", "features.relu1", "--count", "1", "--json")) == 0
    assert list(json.loads(capsys.readouterr().out)["checkpoints"]) == ["start", "epoch-0010"]


def test_what_is_refused_is_refused_in_one_line_before_anything_is_written(desk, capsys):
    packed("classes.safetensors", 0, labels=(cl.Label("0", "cat"), cl.Label("2", "cow")))
    net = cl.load("nin", weights=None, num_classes=2, width=0.05)
    pack(
        "nin.safetensors",
        net.module.state_dict(),
        replace(net.card, arguments={"num_classes": 2, "width": 0.05}),
    )
    first = "run/epochs/epoch-0001.safetensors"
    damaged = bytearray(Path(first).read_bytes())
    damaged[-5] ^= 255
    Path("damaged.safetensors").write_bytes(damaged)
    data = ["--data", "photos"]
    for words, said in [
        (
            [first, "nin.safetensors", *data],
            "nin.safetensors is no checkpoint of the network of run/epochs/epoch-0001",
        ),
        ([first, "classes.safetensors", *data], "other classes"),
        ([first, "damaged.safetensors", *data], "damaged"),
        ([first, "missing.safetensors", *data], "cannot open missing.safetensors"),
        ([first, *data], "two or more"),
        ([first, first, *data], "twice"),
        (["photos", *data], "--keep-epochs"),
        (["run"], "--data"),
        (["run", "--data", "nowhere"], "no such picture"),
        (["run", *data, "--layers", "features.relu9"], "did you mean"),
        (["run", *data, "--layers", "classifier.fc6"], "no spatial extent"),
        (["run", *data, "--units", "0,400"], "400"),
        (["run", *data, "--units", "a"], "numbers from 0"),
        (["run", *data, "--network", "embedded"], "the checkpoints are the networks"),
        (["run", *data, "--limit", "0"], "≥ 1"),
    ]:
        assert main(command(desk, *words)) == 2, said
        error = capsys.readouterr().err.strip().splitlines()
        assert len(error) == 1, error
        assert said in error[0]
        assert not (desk / "out").exists()
    assert main(command(desk, "run", "--data", "photos/broken.png")) == 2
    assert "no picture that can be used" in capsys.readouterr().err


def found(
    settled: tuple[int, int], replaced: tuple[float, float], names=("1", "10", "40", "64")
) -> Evolution:
    def rising(at: int):
        return np.array([0.3] * at + [0.95] * (3 - at) + [1.0])

    layers = ("low", "high")
    unit = History("low", 0, (Moment(1.0, 3), Moment(1.0, 3), Moment(1.0, 4), Moment(0.0)))
    to_last = {layer: rising(at) for layer, at in zip(layers, settled, strict=True)}
    new = {layer: np.array([np.nan, one, one, one]) for layer, one in zip(layers, replaced, strict=True)}
    return Evolution(names, layers, (unit,), to_last, to_last, new, 9, 9, ())


def test_claims_and_finding_follow_the_numbers():
    paper = found((1, 2), (0.1, 0.4))
    assert [holds for *_, holds in report.claims(paper)] == [True] * 4
    assert report.finding(paper).startswith(
        "Settled (correlation of 0.9 with the last checkpoint): low at epoch 10, high at epoch 40."
    )
    assert "Low layers settle first." in report.finding(paper)
    assert "took the lead 1 times in the 1 units" in report.finding(paper)
    opposite = found((2, 1), (0.4, 0.1))
    assert [holds for *_, holds in report.claims(opposite)] == [False] * 4
    assert "Low layers do not settle first." in report.finding(opposite)
    never = found((3, 3), (0.1, 0.4))
    assert [holds for *_, holds in report.claims(never)] == [False, False, True, True]
    assert "low not before the last, epoch 64" in report.finding(never)
    named = found((1, 2), (0.1, 0.4), ("a", "b", "c", "d"))
    assert len(report.claims(named)) == 2  # no epochs to count
    assert "low at b, high at c" in report.finding(named)
