"""`camlucida probe invariance`: folder, page and numbers; classes from the data or predicted; what is refused."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import camlucida as cl
from camlucida.cli import main
from camlucida.networks.cards import pack
from camlucida.probes.invariance import Invariance
from camlucida.report import probe_invariance as report
from pictures import colours


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """Two classes of two pictures of several sizes, one of them broken, and an AlexNet that knows both."""
    monkeypatch.chdir(tmp_path)
    net = cl.load("alexnet", weights=None, num_classes=2, width=0.05, arguments={"size": 67})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in net.module.parameters():
            torch.nn.init.normal_(parameter, 0, 0.1)
    card = cl.Card(
        "mine", "alexnet", {"num_classes": 2, "width": 0.05, "size": 67}, net.card.preprocessing,
        (cl.Label("cat", "cat"), cl.Label("dog", "dog")),
    )  # fmt: skip
    pack("mine.safetensors", net.module.state_dict(), card)
    for i, (name, size) in enumerate(
        {"cat/a": (40, 56), "cat/b": (70, 30), "dog/c": (67, 67), "loose/d": (31, 45)}.items()
    ):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours(*size, seed=i)).save(f"photos/{name}.png")
    (tmp_path / "photos/dog/broken.png").write_bytes(b"\x89PNG")
    return tmp_path


COMMON = ["probe", "invariance", "--network", "mine.safetensors", "--out", "out"]


def rows(name: str) -> list[dict[str, str]]:
    with open(f"out/{name}.csv") as stream:
        return list(csv.DictReader(stream))


def test_the_folder_holds_what_was_measured_and_the_data_says_the_class(desk, capsys):
    (desk / "photos/loose/d.png").rename(desk / "photos/dog/d.png")
    (desk / "photos/loose").rmdir()
    assert main([*COMMON, "photos", "--transformations", "scale,rotation", "--json"]) == 3
    said = capsys.readouterr()
    figures = json.loads(said.out)
    assert (figures["pictures"], figures["class"]) == (4, "the true class")
    assert "broken.png" in said.err
    net = cl.load("mine.safetensors")
    batches = [net.preprocess(f"photos/{name}.png") for name in ("cat/a", "cat/b", "dog/c", "dog/d")]
    found = cl.probes.invariance(net, batches, [0, 0, 1, 1], transformation="rotation")
    curves = [row for row in rows("curves") if row["transformation"] == "rotation"]
    assert len(curves) == found.distances.size
    assert {row["layer"] for row in curves} == {"features.pool1", "classifier.relu7"}
    np.testing.assert_allclose(
        [float(row["distance"]) for row in curves], found.distances.ravel(), rtol=1e-4, atol=1e-6
    )
    chances = [row for row in rows("probabilities") if row["transformation"] == "rotation"]
    np.testing.assert_allclose(
        [float(row["probability"]) for row in chances], found.probabilities.ravel(), rtol=1e-4
    )
    assert [row["class_name"] for row in chances[::36]] == ["cat", "cat", "dog", "dog"]
    moved = figures["transformations"]["rotation"]["layers"]["features.pool1"]
    assert moved["area"] == pytest.approx(found.movement(0).area, rel=1e-4)
    assert figures["transformations"]["rotation"]["probability_kept"] == pytest.approx(found.kept, rel=1e-4)
    manifest = json.loads((desk / "out/manifest.json").read_text())
    assert {"curves.csv", "probabilities.csv", "movement.csv", "rejected.csv", "report.html"} <= set(
        manifest["files"]
    )
    page = (desk / "out/report.html").read_text()
    assert page.count("<svg") == 6  # two layers and the probability, of two transformations
    assert page.count('href="pictures/') == 14
    assert "true, from the data&#39;s labels" in page


def test_without_labels_the_predicted_class_stands_in_and_the_page_says_so(desk, capsys):
    layers = "features.relu5,classifier.fc6"
    assert (
        main([*COMMON, "photos/loose/d.png", "--transformations", "vertical-shift", "--layers", layers]) == 0
    )
    net = cl.load("mine.safetensors")
    predicted = net.predict(net.preprocess("photos/loose/d.png"), 1).labels[0][0].name
    assert {row["class_name"] for row in rows("probabilities")} == {predicted}
    assert {row["layer"] for row in rows("curves")} == set(layers.split(","))
    page = (desk / "out/report.html").read_text()
    assert "predicted for the intact picture (" in page
    assert "lies in no class folder" in page
    assert "Probability of the class predicted for the intact picture" in page
    assert main([*COMMON, "photos", "--limit", "1", "--transformations", "scale", "--overwrite"]) == 0
    assert "does not know 1 of the data&#39;s classes" in (desk / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["photos", "--layers", "features.pool9"], "did you mean 'features.pool"),
        (["photos", "--layers", "features.conv1,dropout"], "does not exist"),
        (["photos", "--transformations", "rotations"], "did you mean 'rotation'"),
        (["photos", "--transformations", ","], "none"),
        (["photos", "--limit", "0"], "≥ 1"),
        (["nowhere"], "no such picture"),
        (["photos/dog/broken.png"], "no picture that can be used"),
    ],
)
def test_what_is_refused_is_refused_in_one_line(desk, capsys, words, said):
    assert main([*COMMON, *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert said in error[0]


def curves(first: list[float], last: list[float], chance: list[float], name: str, amounts: tuple[float, ...]):
    """Of one picture, with features of norm 1."""
    return Invariance(
        name, amounts, ("low", "high"), (0,), np.array([[first, last]]), np.ones((1, 2)), np.array([chance]),
        np.array(chance[:1]), np.array([2.0, 2.0]),
    )  # fmt: skip


def test_claims_and_finding_follow_the_numbers():
    """Amounts in tenths of the range: at once is 1 after a tenth, in proportion 0.1."""
    shifts = tuple(6.0 * i for i in range(11))
    turns = tuple(18.0 * i for i in range(11))
    line, jump = [i / 10 for i in range(11)], [0.0, *[1.0] * 10]
    weak = [0.8 * x for x in line]

    def of(low, high, turned, kept):
        shift = curves(low, high, [1.0] * 11, "vertical-shift", shifts)
        return [shift, curves(low, turned, [1.0, *[kept] * 10], "rotation", turns)]

    paper = of(jump, weak, line, 0.2)
    assert [holds for *_, holds in report.claims(paper)] == [True] * 6
    assert "100% of its largest change at low and 10% of its largest change at high" in report.finding(paper)
    assert "100% under vertical shift, 24% under rotation" in report.finding(paper)
    assert "6 of the paper's 6 claims hold" in report.finding(paper)
    opposite = of(weak, jump, [0.5 * x for x in line], 1.5)
    assert [holds for *_, holds in report.claims(opposite)] == [False] * 6
    assert "0 of the paper's 6 claims hold" in report.finding(opposite)
    assert "10% of its largest change at low and 100%" in report.finding(opposite)
    assert report.claims([curves([0.0] * 3, [0.0] * 3, [1.0] * 3, "scale", (1, 1.4, 1.8))]) == []
