"""Layer by layer: vectors of several layers in one pass, and which of them an SVM names classes from."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

import camlucida as cl
from camlucida.errors import LayerError, UsageError
from camlucida.features import Features, LayerScore, Split, judge_layers, layer_vectors
from camlucida.features.judge import Judged
from camlucida.features.layers import LayerVectors, pooled
from camlucida.images.datasets import Example
from camlucida.images.sources import expand
from camlucida.images.views import Preprocessing
from camlucida.report import features_layers as figures
from camlucida.values import Label, Size
from features.laid_out import block, clouds, network, picture

CLASSES = (Label("a", "a"), Label("b", "b"))


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Six pictures of two shapes, one file among them that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(6):
        picture(i, 40, 56 - 16 * (i % 2)).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes(b"no picture")
    return [Example(source, i % 2) for i, source in enumerate(expand([folder]).sources)]


class Small(nn.Module):
    """Two convolutions and two fully connected layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 2)
        self.second = nn.Conv2d(4, 5, 3, 2)
        self.inner = nn.Linear(5 * 3 * 3, 7)
        self.outer = nn.Linear(7, 2)

    def forward(self, pixels):
        maps = torch.relu(self.second(torch.relu(self.first(pixels))))
        return self.outer(torch.relu(self.inner(functional.adaptive_avg_pool2d(maps, 3).flatten(1))))


def small():
    torch.manual_seed(0)
    shape = Preprocessing(size=32, crop=32, minimum=32, any_size=False)
    return cl.wrap(Small().eval(), card=cl.Card("small", "small", {}, shape))


def looked_at(net, example):
    """A picture as the card shows it, whole, by itself `(1, 3, H, W)`."""
    shape = net.card.preprocessing
    image = Image.open(io.BytesIO(example.source.read())).convert("RGB")
    return shape.normalise(shape.pixels(image, shape.view(Size(image.height, image.width), "whole"))[None])


def test_the_vectors_are_the_layers_averages_one_picture_at_a_time(examples):
    net = network()
    before = {n: t.clone() for n, t in net.module.state_dict().items()}
    found, rejected = layer_vectors(
        {"net": net}, ["stages.0", "stages"], examples, CLASSES, pixels=4, batch=3
    )
    assert [(one.network, one.layer) for one in found] == [("net", "stages.0"), ("net", "stages"), ("pixels", "pixels")]  # fmt: skip
    assert [name for name, _ in rejected] == [examples[3].source.name]
    kept = [e for i, e in enumerate(examples) if i != 3]
    assert found[0].features.paths == tuple(e.source.name for e in kept)
    assert found[0].features.labels == ((0,), (1,), (0,), (0,), (1,))
    caught = {}
    for name in ("stages.0", "stages"):
        net.module.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: caught.update({name: out}))  # fmt: skip
    for row, one in enumerate(kept):
        shown = looked_at(net, one)
        with torch.no_grad():
            net.module(shown)
        for vectors in found[:2]:
            np.testing.assert_allclose(vectors.features.values[row], caught[vectors.layer].mean((2, 3))[0], atol=1e-5)  # fmt: skip
        height, width = (s // 4 for s in shown.shape[2:])
        if shown.shape[2] % 4 == 0 and shown.shape[3] % 4 == 0:
            by_hand = shown[0].reshape(3, 4, height, 4, width).mean((2, 4)).flatten()
            np.testing.assert_allclose(found[2].features.values[row], by_hand, atol=1e-5)
    for name, tensor in net.module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_fully_connected_layers_give_their_numbers(examples):
    net = small()
    found, _ = layer_vectors({"x": net, "y": net}, ["second", "inner"], examples[:2], CLASSES, pixels=0, grid=2, pool="max")  # fmt: skip
    assert [(one.network, one.layer, one.features.values.shape[1]) for one in found] == [
        ("x", "second", 20), ("x", "inner", 7), ("y", "second", 20), ("y", "inner", 7),
    ]  # fmt: skip
    shown = looked_at(net, examples[0])
    with torch.no_grad():
        maps = net.module.second(torch.relu(net.module.first(shown)))
        inner = net.module.inner(functional.adaptive_avg_pool2d(torch.relu(maps), 3).flatten(1))
    np.testing.assert_allclose(found[0].features.values[0], functional.adaptive_max_pool2d(maps, 2).flatten(), atol=1e-5)  # fmt: skip
    np.testing.assert_allclose(found[1].features.values[0], inner[0], atol=1e-5)


def test_what_cannot_be_is_refused(examples):
    with pytest.raises(LayerError, match="nowhere"):
        layer_vectors({"net": small()}, ["nowhere"], examples, CLASSES)
    with pytest.raises(UsageError, match="none of them usable"):
        layer_vectors({"net": small()}, ["first"], examples[3:4], CLASSES)


@pytest.mark.parametrize("grid", [1, 2, 3])
def test_pooling_is_pytorch_s(grid):
    maps = torch.rand(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pooled(maps, "average", grid), functional.adaptive_avg_pool2d(maps, grid).flatten(1))  # fmt: skip
    torch.testing.assert_close(pooled(maps, "max", grid), functional.adaptive_max_pool2d(maps, grid).flatten(1))  # fmt: skip


def test_a_planted_layer_that_separates_the_classes_wins():
    rng = np.random.default_rng(0)
    rows = clouds(classes=3, each=12, width=6)
    planted = np.eye(6, dtype=np.float32)[[row[0] for row in rows.labels]] + rng.normal(0, 0.05, (36, 6))
    noise = [rng.normal(0, 1, (36, 6)).astype(np.float32) for _ in range(2)]
    layers = [noise[0], planted.astype(np.float32), noise[1]]
    vectors = [LayerVectors("trained", f"layer{i}", replace(rows, values=v)) for i, v in enumerate(layers)]
    splits = [Split(np.arange(36)[i % 2 :: 2], np.arange(36)[1 - i % 2 :: 2], i) for i in range(2)]
    scores = judge_layers(vectors, splits, c=0.1, normalise="standard")
    assert scores[1].figure("mean class recall") == (1.0, 0.0)
    assert max(scores[i].figure("accuracy")[0] for i in (0, 2)) < 0.7
    said = figures.finding(scores)
    assert "best on layer1: mean class recall 100.0 %" in said
    assert "to there, and is" in said


def scored(values, network="trained"):
    made = []
    for i, value in enumerate(values):
        split = Split(np.arange(2), np.arange(2), 0)
        judged = [Judged(split, None, {"mean class recall": v, "accuracy": v}, np.zeros(2), {}) for v in (value - 0.01, value + 0.01)]  # fmt: skip
        made.append(LayerScore(network, f"l{i + 1}", 4, tuple(judged)))
    return made


def test_the_finding_says_what_the_numbers_say():
    assert "rises with every layer from l1 (20.0 %) to there, the last." in figures.finding(scored([0.2, 0.4, 0.6]))  # fmt: skip
    assert "to there, and is 10.0 points lower on the last, l3" in figures.finding(scored([0.2, 0.6, 0.5]))
    assert "not at l2 (20.0 % after 30.0 %)" in figures.finding(scored([0.3, 0.2, 0.6]))
    assert "No higher layer is better: the last, l2, gives 10.0 %" in figures.finding(scored([0.3, 0.1]))
    both = figures.finding([*scored([0.2, 0.4]), *scored([0.3, 0.1], "random weights"), *scored([0.15], "pixels")])  # fmt: skip
    assert "the best layer with random weights 30.0 %, raw pixels 15.0 %" in both
    mean, deviation = scored([0.5])[0].figure("accuracy")
    assert (mean, deviation) == pytest.approx((0.5, 0.01 * 2**0.5))


def test_rows_of_features_without_vectors_draw_splits(examples):
    from camlucida.features.layers import labelled

    rows = labelled(examples, CLASSES)
    assert isinstance(rows, Features)
    (split,) = cl.features.random_splits(rows, 2)
    assert len(split.train) == 4
    assert block(1).stop == rows.blocks[0].stop
