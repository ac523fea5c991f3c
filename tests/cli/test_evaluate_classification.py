"""`camlucida evaluate --protocol` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import camlucida as cl
from camlucida.cli import main
from camlucida.evaluate import classify, predictions
from camlucida.images.views import Preprocessing
from camlucida.networks import cards
from camlucida.networks.lucida import Lucida
from camlucida.values import Label
from small_networks import seeded

CLASSES = 6


def packed(file, seed):
    options = {"num_classes": CLASSES, "width": 0.125}
    module = seeded(Lucida, seed=seed, **options)
    with torch.no_grad():
        next(p for p in reversed(list(module.parameters())) if p.ndim == 2).mul_(20)
    labels = tuple(Label(f"n{i}", f"class {i}") for i in range(CLASSES))
    cards.pack(file, module.state_dict(), cl.Card(f"net{seed}", "lucida", options, Preprocessing(size=36, crop=32, minimum=32), labels))  # fmt: skip
    return str(file)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    return [packed(folder / f"{seed}.safetensors", seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng, folder = np.random.default_rng(3), tmp_path_factory.mktemp("data")
    for i in range(8):
        file = folder / f"n{i % CLASSES}" / f"{7 - i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40 + 8 * (i % 2), 60, 3), dtype=np.uint8)).save(file)
    return str(folder)


def probabilities(network, spec, data):
    from camlucida.images import datasets

    examples = datasets.load([data]).examples
    stream = classify.classify(cl.load(network), classify.protocol(spec), [e.source for e in examples])
    return np.stack([one.probabilities for one in stream]), np.array([e.label for e in examples])


def evaluated(capsys, *arguments, code=0):
    assert main(["evaluate", *arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_protocol_scores_what_the_library_says(networks, data, tmp_path, capsys):
    found = evaluated(capsys, data, "--network", networks[0], "--protocol", "dense:scales=36/48,pool=probability", "--out", str(tmp_path))  # fmt: skip
    said, truth = probabilities(networks[0], "dense:scales=36/48,pool=probability", data)
    assert found["protocol"] == "dense:scales=36/48,pool=probability"
    assert found["top1"]["percent"] == pytest.approx(100 * (said.argmax(1) == truth).mean(), abs=0.01)
    briers = [((row - np.eye(CLASSES)[t]) ** 2).sum() for row, t in zip(said, truth, strict=True)]
    assert found["brier"]["score"] == pytest.approx(np.mean(briers), abs=1e-4)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == found
    assert "net0" in (tmp_path / "classification.html").read_text()


def test_fused_live_or_from_files_is_the_same(networks, data, tmp_path, capsys):
    files = [str(tmp_path / f"{i}.parquet") for i in range(2)]
    for network, file in zip(networks, files, strict=True):
        evaluated(capsys, data, "--network", network, "--protocol", "ten-crop", "--predictions", file)
    both = str(tmp_path / "both.parquet")
    live = evaluated(capsys, data, "--network", networks[0], "--fuse", networks[1], "--protocol", "ten-crop", "--predictions", both)  # fmt: skip
    saved = evaluated(capsys, *files)
    for report in (live, saved):
        report.pop("command")
    assert live.pop("split") == "all"
    assert live.pop("protocol") == "ten-crop"
    assert saved.pop("protocol") == "ten-crop"
    assert live == saved
    expected = (probabilities(networks[0], "ten-crop", data)[0] + probabilities(networks[1], "ten-crop", data)[0]) / 2  # fmt: skip
    np.testing.assert_allclose(predictions.read(both).probabilities, expected, atol=1e-6)


def test_broken_pictures_are_listed_and_the_rest_goes_on(networks, data, tmp_path, capsys):
    (tmp_path / "n0").mkdir()
    (tmp_path / "n0" / "cut.jpg").write_bytes(b"")
    out, submission = tmp_path / "out", tmp_path / "guesses.txt"
    arguments = [data, str(tmp_path), "--network", networks[0], "--task", "classification", "--out", str(out), "--submission", str(submission)]  # fmt: skip
    found = evaluated(capsys, *arguments, code=3)
    assert (found["pictures"], found["rejected"], found["protocol"]) == (8, 1, "centre-crop")
    assert "empty file" in (out / "rejected.csv").read_text()
    said, _ = probabilities(networks[0], "centre-crop", data)
    lines = submission.read_text().splitlines()
    assert lines[8] == "0 0 0 0 0"  # cut.jpg comes behind 0.png … 7.png
    files = sorted(Path(data).rglob("*.png"))
    by_name = sorted((file.name, row.tolist()) for file, row in zip(files, said, strict=True))
    for (_, row), line in zip(by_name, lines, strict=False):
        assert [int(n) - 1 for n in line.split()] == np.argsort(-np.array(row), kind="stable")[:5].tolist()


def test_pictures_without_labels(networks, data, tmp_path, capsys):
    file = tmp_path / "said.parquet"
    assert main(["evaluate", f"{data}/n0", "--network", networks[0], "--unlabelled", "--predictions", str(file)]) == 0  # fmt: skip
    assert "2 pictures without labels" in capsys.readouterr().err
    assert predictions.read(file).labels == ((), ())
    assert main(["evaluate", str(file), "--submission", str(tmp_path / "s.txt")]) == 0
    assert len((tmp_path / "s.txt").read_text().splitlines()) == 2


def test_a_limit_and_a_split_of_pictures_without_labels(networks, data, tmp_path, capsys):
    """Neither is passed over in silence."""
    file = str(tmp_path / "few.parquet")
    asked = ["evaluate", data, "--network", networks[0], "--unlabelled", "--predictions", file]
    assert main([*asked, "--limit", "2"]) == 0
    assert len(predictions.read(file)) == 2
    assert main([*asked, "--split", "tuning"]) == 2
    assert "--split with --unlabelled" in capsys.readouterr().err


def test_what_is_shown_on_a_terminal(networks, data, capsys):
    assert main(["evaluate", data, "--network", networks[0], "--protocol", "centre-crop"]) == 0
    shown = capsys.readouterr().out
    assert "net0 on 8 pictures, protocol centre-crop" in shown
    assert all(word in shown for word in ("top-1", "top-5", "Brier", "hardest: class", "taken for"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--protocol", "ten-crop"], "DATA; got nothing"),
        (["{data}", "--protocol", "tencrop"], "did you mean 'ten-crop'"),
        (["{data}", "--protocol", "dense:scale=3"], "did you mean 'scales'"),
        (["{data}", "--protocol", "multi-crop:scales=16"], "≥ 32"),
        (["{data}", "--protocol", "ten-crop", "--method", "cam"], "--method"),
        (["{data}", "--protocol", "ten-crop", "--views", "flip"], "--views"),
        (["{data}", "{saved}"], "saved predictions and other data together"),
        (["{saved}", "--protocol", "ten-crop"], "--protocol"),
        (["{data}", "--unlabelled"], "--submission"),
        (["{data}", "--protocol", "ten-crop", "--fuse", "embedded"], "other classes"),
        (["{data}", "--submission", "{out}", "--synsets", "{data}/n0/1.png"], "cannot read"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(networks, data, tmp_path, capsys, arguments, said):
    saved = tmp_path / "saved.parquet"
    classes = tuple(Label(f"n{i}", f"class {i}") for i in range(CLASSES))
    predictions.save(predictions.Predictions(("a",), ((0,),), np.eye(CLASSES, dtype=np.float32)[:1], classes), saved)  # fmt: skip
    given = [a.format(data=data, saved=saved, out=tmp_path / "s.txt") for a in arguments]
    network = [] if given[0] == str(saved) else ["--network", networks[0]]
    assert main(["evaluate", *given, *network]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1
