"""`camlucida evaluate --task faithfulness` as a person types it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

import camlucida as cl
from camlucida.cli import main
from camlucida.cli.evaluate_faithfulness import separate
from camlucida.evaluate.faithfulness import METRICS, pictures
from camlucida.images.views import Preprocessing
from camlucida.maps.cam import CAM
from camlucida.networks import cards
from camlucida.networks.lucida import Lucida
from camlucida.values import Label

QUICK = ("--step", 5000, "--sanity-layers", 2, "--figures", 1)
METHODS = ["cam", "random", "centre-gaussian", "edges"]


def packed_network(folder, seed: int, classes: int = 3) -> str:
    torch.manual_seed(seed)
    module = Lucida(num_classes=classes, width=0.125)
    labels = tuple(Label(f"n{i}", name) for i, name in enumerate(("one", "two", "three", "four")[:classes]))
    arguments = {"num_classes": classes, "width": 0.125}
    card = cl.Card("small <net>", "lucida", arguments, Preprocessing(size=24, minimum=24), labels)
    file = folder / f"small-{seed}-{classes}.safetensors"
    cards.pack(file, module.state_dict(), card)
    return str(file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faithfulness")


@pytest.fixture(scope="module")
def packed(folder):
    return packed_network(folder, 0)


@pytest.fixture(scope="module")
def data(folder):
    """Four pictures of two shapes in class folders; one is broken."""
    rng = np.random.default_rng(1)
    for i in range(4):
        place = folder / "set" / f"n{i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        shape = (24, 34) if i % 2 else (34, 24)
        coarse = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
        coarse.resize(shape[::-1], Image.Resampling.BICUBIC).save(place / f"p{i}.png")
    (folder / "set" / "n0" / "broken.png").write_bytes(b"nothing")
    return str(folder / "set")


def evaluate(data, *options, capsys) -> tuple[int, str, str]:
    code = main(["evaluate", str(data), "--task", "faithfulness", *map(str, options)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def whole(packed, data, folder):
    """One run with every metric, and its folder."""
    out = folder / "whole"
    other = packed_network(folder, 1)
    code = main(["evaluate", data, "--task", "faithfulness", "--network", packed, "--method", "cam", "--permuted-network", other, *map(str, QUICK), "--out", str(out)])  # fmt: skip
    return code, out


def test_a_run(whole):
    code, out = whole
    assert code == 3  # one picture is broken
    assert {f.name for f in out.iterdir()} == {"faithfulness.json", "faithfulness.parquet", "report.html", "rejected.csv", "faithfulness-parts"}  # fmt: skip
    assert "broken.png" in (out / "rejected.csv").read_text()
    report = json.loads((out / "faithfulness.json").read_text())
    rows = parquet.read_table(out / "faithfulness.parquet").to_pylist()
    assert report["pictures"] == 4
    assert len(rows) == 4 * len(METHODS) * len(METRICS)
    assert {row["class_name"] for row in rows} <= {"one", "two", "three"}
    for name in METHODS:
        for metric in METRICS:
            values = [row["value"] for row in rows if (row["method"], row["metric"]) == (name, metric)]
            assert report["figures"][name][metric]["mean"] == pytest.approx(np.mean(values), abs=1e-4)
    assert [*report["cost"]] == ["cam"]
    for name in METHODS[1:]:
        assert report["figures"][name]["cascading-spearman"]["mean"] == 1


def test_the_page(whole):
    page = (whole[1] / "report.html").read_text()
    report = json.loads((whole[1] / "faithfulness.json").read_text())
    assert "<h1>small &lt;net&gt;</h1>" in page
    for name in METHODS:
        assert f">{name}</figcaption>" in page
        assert f"{report['figures'][name]['insertion']['mean']:.3f}" in page
    for one in METRICS.values():
        assert one.title in page
    assert page.count("<polyline") == len(METHODS) * 8  # deletion, insertion, two of ROAD, four of sanity
    assert page.count("<img") == page.count("alt=") == 1 + len(METHODS)
    assert "broken.png" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_metrics_alone_and_several_methods(packed, data, capsys):
    code, printed, _ = evaluate(data, "--network", packed, "--method", "cam,grad-cam:relu=false", "--metrics", "drop", "--limit", 2, "--json", capsys=capsys)  # fmt: skip
    found = json.loads(printed)
    assert code in (0, 3)
    assert {one["method"] for one in found["ranking"]} == {"cam", "grad-cam:relu=false", *METHODS[1:]}
    assert [*found["metrics"]] == ["average-drop", "increase"]


def test_pictures_without_labels(packed, data, capsys):
    code, printed, _ = evaluate(f"{data}/n1", "--network", packed, "--unlabelled", "--metrics", "drop", capsys=capsys)  # fmt: skip
    assert code == 0
    assert "small <net> on 1 pictures" in printed
    for name in METHODS:
        assert name in printed


def test_a_run_that_was_stopped_goes_on(packed, data, folder, capsys, monkeypatch):
    """The rows are those of a run that was not, and what is measured is not measured again."""
    monkeypatch.setattr(pictures, "PART", 2)
    monkeypatch.setattr("camlucida.report.faithfulness.PART", 2)
    run = (
        "--network",
        packed,
        "--method",
        "cam",
        "--metrics",
        "deletion,cascading,adcc",
        *QUICK,
        "--figures",
        0,
    )
    evaluate(data, *run, "--out", folder / "through", capsys=capsys)
    looked: list[int] = []
    straight = CAM.__call__

    def counted(self, network, batch, target=None):
        looked.append(len(batch))
        if sum(looked) > stop:
            raise KeyboardInterrupt
        return straight(self, network, batch, target)

    monkeypatch.setattr(CAM, "__call__", counted)
    stop = 6
    assert evaluate(data, *run, "--out", folder / "stopped", capsys=capsys)[0] == 130
    assert [f.name for f in (folder / "stopped" / "faithfulness-parts").iterdir()] == ["part-00000.parquet"]
    code, _, said = evaluate(data, *run, "--seed", 1, "--out", folder / "stopped", "--resume", capsys=capsys)
    assert (code, "other pictures or options" in said) == (2, True)
    before, stop = sum(looked), 1000
    assert evaluate(data, *run, "--out", folder / "stopped", "--resume", capsys=capsys)[0] == 3
    assert sum(looked) - before == 3 * 4  # the map, the masked one, two layers; without the broken picture
    (folder / "stopped" / "faithfulness-parts" / "part-00001.parquet").write_bytes(b"nothing")
    code, _, said = evaluate(data, *run, "--out", folder / "stopped", "--resume", capsys=capsys)
    assert (code, "cannot read" in said) == (2, True)
    tables = [parquet.read_table(folder / name / "faithfulness.parquet") for name in ("through", "stopped")]
    assert tables[0].equals(tables[1])
    reports = [
        json.loads((folder / name / "faithfulness.json").read_text()) for name in ("through", "stopped")
    ]
    for one in reports:
        del one["command"], one["cost"]
    assert reports[0] == reports[1]


def test_specs_between_commas():
    assert separate("cam, occlusion:patch=16,stride=4,saliency") == ["cam", "occlusion:patch=16,stride=4", "saliency"]  # fmt: skip
    assert separate("") == []


def test_a_method_that_this_network_cannot_have(packed, data, capsys):
    layers = "grad-cam:layer=nowhere"
    code, printed, said = evaluate(data, "--network", packed, "--method", f"cam,{layers}", "--metrics", "drop", "--limit", 2, capsys=capsys)  # fmt: skip
    assert code in (0, 3)
    assert f"left out {layers}: layer 'nowhere' does not exist" in said
    assert layers not in printed
    code, _, said = evaluate(
        data, "--network", packed, "--method", layers, "--metrics", "drop", capsys=capsys
    )
    assert code == 2
    assert "layer 'nowhere' does not exist" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--metrics", "deletoin"), "did you mean 'deletion'"),
        (("--metrics", "labels"), "no --permuted-network"),
        (("--method", "cam,cam"), "cam twice"),
        (("--method", "can"), "'can'"),
        (("--step", "0"), "--step"),
        (("--sanity-layers", "0"), "--sanity-layers"),
        (("--views", "flip"), "--task faithfulness with --views"),
        (("--protocol", "dense"), "--task faithfulness with --protocol"),
        (("--iou", "0.3"), "it belongs to --task localization"),
        (("--resume",), "no --out"),
        (("--unlabelled", "--split", "tuning"), "--unlabelled with --split"),
        (("--permuted-network", "x.safetensors", "--metrics", "drop"), "add labels to --metrics"),
    ],
)
def test_what_does_not_go_together(packed, data, capsys, options, message):
    code, printed, said = evaluate(data, "--network", packed, *options, capsys=capsys)
    assert (code, printed) == (2, "")
    assert message in said


def test_the_permuted_network_has_the_same_classes(packed, data, folder, capsys):
    code, _, said = evaluate(data, "--network", packed, "--permuted-network", packed_network(folder, 0, 4), capsys=capsys)  # fmt: skip
    assert (code, "got other classes" in said) == (2, True)


def test_its_options_belong_to_it(packed, data, capsys):
    assert main(["evaluate", data, "--network", packed, "--step", "9"]) == 2
    assert "it belongs to --task faithfulness" in capsys.readouterr().err
