"""`camlucida probe ablation` as a person types it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import camlucida as cl
from camlucida import probes
from camlucida.cli import main
from camlucida.images import datasets
from camlucida.images.views import Preprocessing
from camlucida.networks import cards
from camlucida.networks.alexnet import AlexNet
from camlucida.probes import variants
from camlucida.report import probe_ablation
from camlucida.train import recipe as recipes
from camlucida.values import Label
from small_networks import seeded

CLASSES, SMALL = 7, {"num_classes": 7, "width": 0.0625, "size": 64}
SHAPE = Preprocessing(size=64, crop=64, any_size=False, minimum=64)
LABELS = tuple(Label(f"n{i}", f"class {i}, also so called") for i in range(CLASSES))


def packed(file: Path, **arguments) -> str:
    module = seeded(AlexNet, **SMALL, **arguments)
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim > 1:
                p.mul_(1.5 if p.ndim == 4 else 4)
    card = cl.Card("small", "alexnet", {**SMALL, **arguments}, SHAPE, LABELS)
    cards.pack(file, module.state_dict(), card)
    return str(file)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("network") / "small.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng, folder = np.random.default_rng(3), tmp_path_factory.mktemp("data")
    for i in range(13):
        file = folder / f"n{i % (CLASSES - 1)}" / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(file)
    (folder / "n0" / "broken.png").write_bytes(b"no picture")
    return str(folder)


def table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def test_units_and_layers_on_the_page_and_in_the_files(network, data, tmp_path, capsys):
    out = tmp_path / "out"
    words = [
        "probe",
        "ablation",
        data,
        "--network",
        network,
        "--layer",
        "features.relu5",
        "--units",
        "3,0-1",
        "--out",
        str(out),
    ]
    assert main([*words, "--json", "--device", "cpu"]) == 3
    said = capsys.readouterr()
    assert "broken.png" in said.err
    found = json.loads(said.out)
    net = cl.load(network)
    examples = datasets.load([data]).relabelled(LABELS).examples
    units = probes.ablate_units(net, examples, "features.relu5", [3, 0, 1])
    rows = table(out / "units.csv")
    assert [row["unit"] for row in rows] == ["3", "0", "1"]
    np.testing.assert_allclose(
        [float(r["probability_lost"]) for r in rows], units.probability_lost, atol=1e-6
    )
    assert [float(r["change"]) for r in rows] == pytest.approx(units.change.tolist())
    assert found["top1"] == pytest.approx(units.before)
    assert found["pictures"] == 13
    layers = {row["layer"]: row for row in table(out / "layers.csv")}
    assert [*layers] == [*(f"features.conv{i}" for i in range(1, 6)), "classifier.fc6", "classifier.fc7"]
    assert layers["features.conv4"]["put"] == layers["classifier.fc7"]["put"] == "identity"
    assert (layers["features.conv3"]["put"], layers["features.conv3"]["blind"]) == ("mean", "True")
    by_class = table(out / "units_by_class.csv")
    assert len(by_class) == 3 * (CLASSES - 1)
    with np.load(out / "units.npz") as stored:
        np.testing.assert_allclose(stored["logit_drop"], units.logit_drop, atol=1e-5)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert found["finding"].split(" (")[0] in page
    assert "unit 3" in page
    assert "features.conv4" in page
    assert "broken.png" in page
    assert "also so called" not in page


def test_a_few_pictures_and_no_layers(network, data, tmp_path, capsys):
    out = tmp_path / "out"
    words = [
        "probe",
        "ablation",
        data,
        "--network",
        network,
        "--layer",
        "classifier.fc7",
        "--layers",
        "none",
        "--limit",
        "4",
    ]
    assert main([*words, "--value", "mean", "--out", str(out)]) in (0, 3)
    assert not (out / "layers.csv").exists()
    assert {row["put"] for row in table(out / "units.csv")} == {"mean"}
    assert "(?)" not in capsys.readouterr().out
    assert main([*words, "--out", str(out)]) == 2  # holds results


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--layer", "features.conv9"], "'features.conv9' does not exist"),
        (["--layer", "features.conv5", "--units", "99"], "units of features.conv5; got 99; allowed: 0 to 15"),
        (["--units", "3-1"], "--units; got '3-1'"),
        (["--layers", "nothing"], "'nothing' does not exist"),
        (["--limit", "0"], "--limit; got 0"),
        (["--train", "x"], "--train; got no --runs"),
        (["--runs", "x", "--layer", "y"], "--layer; got --runs"),
        (["--runs", "nowhere"], "run nowhere; got no recipe.toml"),
    ],
)
def test_what_is_refused_is_one_line(more, words, network, data, tmp_path, capsys):
    chosen = [] if "--runs" in more else ["--network", network]
    assert main(["probe", "ablation", data, *chosen, *more, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert words in said[-1]
    assert len(said) == 1


def test_without_pictures_there_is_nothing_to_do(tmp_path, capsys):
    assert main(["probe", "ablation", "--out", str(tmp_path / "out")]) == 2
    assert "DATA; got nothing" in capsys.readouterr().err


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders as `camlucida train` leaves them: unchanged, and without layers."""
    place = tmp_path_factory.mktemp("runs")
    for name, arguments in (("base", {}), ("short", {"remove": [3, 4]}), ("shortest", {"remove": [3, 4, 6]})):
        (place / name).mkdir()
        packed(place / name / "network.safetensors", **arguments)
        made = recipes.load("alexnet-twin", {"name": name, "arguments": arguments, "epochs": 2})
        (place / name / "recipe.toml").write_text(recipes.to_toml(made))
        lines: list[dict[str, object]] = [
            {"kind": "command", "command": ["camlucida train", "--split", "train"]}
        ]
        lines += [
            {"kind": "epoch", "epoch": i, "step": i, "error": 90.0 - i, "top1": 10.0 + i, "top5": 40.0}
            for i in (1, 2)
        ]
        (place / name / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return [str(place / name) for name in ("base", "short", "shortest")]


def test_variants_side_by_side(runs, data, tmp_path):
    out = tmp_path / "out"
    assert main(["probe", "ablation", data, "--runs", *runs, "--train", data, "--out", str(out)]) == 3
    rows = table(out / "variants.csv")
    assert [row["change"] for row in rows] == [
        "as the recipe",
        "without layers 3, 4",
        "without layers 3, 4, 6",
    ]
    for run, row in zip(runs, rows, strict=True):
        net, wrong, tuning = cl.load(f"{run}/network.safetensors"), [], []
        for example in datasets.load([data]).relabelled(LABELS).examples:
            if "broken" not in example.source.name:
                five = net.predict(net.preprocess([example.source.read()])).classes[0].tolist()
                wrong.append((five[0] != example.label, example.label not in five))
                tuning.append(example.is_tuning)
        assert (float(row["val_top1"]), float(row["val_top5"])) == pytest.approx(
            tuple(100 * np.mean(wrong, 0))
        )
        assert 0 < sum(tuning) < len(tuning)
        learnt = [one for one, (top1, _) in zip(tuning, wrong, strict=True) if top1 and not one]
        assert float(row["train_top1"]) == pytest.approx(100 * len(learnt) / (len(tuning) - sum(tuning)))
        assert float(row["val_top1_low"]) < float(row["val_top1"]) < float(row["val_top1_high"])
        assert int(row["parameters"]) == sum(p.numel() for p in net.module.parameters())
    assert rows[0]["more_than_base"] == ""
    assert float(rows[2]["more_than_base"]) == pytest.approx(
        float(rows[2]["val_top1"]) - float(rows[0]["val_top1"])
    )
    assert "without layers 3, 4, 6" in (out / "report.html").read_text(encoding="utf-8")


def test_variants_without_pictures_are_what_their_logs_say(runs, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["probe", "ablation", "--runs", *runs[:2], "--out", str(out)]) == 0
    rows = table(out / "variants.csv")
    assert [(row["train_top1"], row["val_top1"], row["val_top5"]) for row in rows] == [
        ("88.0", "88.0", "60.0")
    ] * 2
    assert "tuning split" in (out / "report.html").read_text(encoding="utf-8")


def made(change: str, removed: set[int], wrong: int, shift: int = 0) -> variants.Variant:
    """Of 200 pictures, `wrong` from number `shift` on."""
    ranks = np.ones(200, np.int64)
    ranks[shift : shift + wrong] = 4
    return variants.Variant("v", change, frozenset(removed), 1, 0, 1, None, variants.Judged(ranks))  # type: ignore[arg-type]


def test_whether_depth_counts_for_more_is_said_as_the_figures_are():
    base, one, two = made("", set(), 20), made("without 3", {3}, 30), made("without 7", {7}, 24)
    for wrong, words in ((100, "for more than any part"), (5, "for less than a part"), (31, "is not shown")):
        claim = variants.depth([base, one, two, made("without 3, 7", {3, 7}, wrong)])
        assert claim is not None
        assert claim.worst is one
        assert claim.worst_cost[0] == pytest.approx(0.05)
        assert claim.cost[0] == pytest.approx((wrong - 20) / 200)
        assert claim.more[0] == pytest.approx((wrong - 30) / 200)
        assert words in probe_ablation.variants_finding(claim, [])
    assert variants.depth([base, one]) is None
    assert variants.depth([one, made("without 3, 7", {3, 7}, 50)]) is None


def test_judged_by_hand():
    found = variants.Judged(np.array([1, 2, 6, 0, 1]))  # 0: could not be read
    assert (found.error(1), found.error(5)) == (0.5, 0.25)
    other = variants.Judged(np.array([1, 1, 1, 1, 0]))
    assert found.more_errors(other)[0] == pytest.approx(2 / 3)
