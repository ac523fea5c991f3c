"""The whole way, picture → map → box, on a small network and pictures of several shapes."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import camlucida as cl
from camlucida.boxes.component_tree import sweep
from camlucida.errors import InputError, TargetError, UsageError
from camlucida.images import sources
from camlucida.images.views import Preprocessing
from camlucida.networks.cards import Tuned
from camlucida.pipeline import THRESHOLDS, Rejected, Seen, look, plan
from camlucida.values import Batch, Label, Size, View
from small_networks import CHANNELS, CLASSES, gap, seeded, trunk

LABELS = tuple(Label(f"n{i:04d}", f"thing {i}") for i in range(CLASSES))
CARD = cl.Card("small", labels=LABELS, preprocessing=Preprocessing(size=20, mean=(0.5,) * 3, std=(0.25,) * 3))
SHAPES = {"a.png": (40, 56), "b/c.png": (64, 40), "d.png": (40, 56), "e.png": (20, 20), "f.png": (56, 40)}


def network(**options) -> cl.Network:
    return cl.wrap(gap(), card=CARD, **options)


def drawn(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth noise, so that maps have a few large components."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("pictures")
    for seed, (name, shape) in enumerate(SHAPES.items()):
        (place / name).parent.mkdir(exist_ok=True)
        Image.fromarray(drawn(*shape, seed)).save(place / name)
    (place / "notes.txt").write_text("no picture")
    return place


def by_hand(net: cl.Network, file: Path, method: Any = None):
    """The maps of one picture alone, all of it at 20 pixels on its shorter side, laid out in memory as the pipeline does:
    a pixel at exactly the threshold falls to either side by the last bit."""
    array = np.asarray(Image.open(file))
    batch = net.preprocess(array, view="whole")
    assert batch.views == (View.whole(Size(*array.shape[:2]), Size(*array.shape[:2]).with_short_side(20)),)
    pixels = batch.pixels.contiguous(memory_format=torch.channels_last)
    return (method or cl.CAM())(net, replace(batch, pixels=pixels), cl.ClassTarget.top(3))


def test_every_picture_in_order_with_its_classes_and_boxes(folder):
    net = network()
    rule = cl.FractionOfMax(0.4)
    found = list(cl.localize(net, folder, top=3, boxes=rule))
    files = [folder / name for name in sorted(SHAPES)]
    assert [row[0].path for row in found] == [str(f) for f in files]
    for file, row in zip(files, found, strict=True):
        alone = by_hand(net, file)
        height, width = np.asarray(Image.open(file)).shape[:2]
        assert [one.rank for one in row] == [1, 2, 3]
        assert [one.class_index for one in row] == alone.classes[0].tolist()
        logits = net(net.preprocess(Image.open(file), view="whole"))[0]
        for k, one in enumerate(row):
            assert (one.class_id, one.class_name) == (f"n{one.class_index:04d}", f"thing {one.class_index}")
            assert one.logit == pytest.approx(float(logits[one.class_index]), rel=1e-4)
            assert one.probability == pytest.approx(float(logits.softmax(0)[one.class_index]), rel=1e-4)
            same_boxes(one.boxes, rule.on_map(alone.in_source()[0][k].numpy(), Size(height, width)))
            assert (one.map_method, one.layer, one.threshold) == ("cam", "features", 0.4)
            assert one.box_rule == "fraction-of-max:threshold=0.4"
            assert one.status == (
                "whole-picture" if one.boxes[0].whole and alone.status[0][k] == "ok" else alone.status[0][k]
            )
        assert row[0].probability >= row[1].probability >= row[2].probability
    assert sum(not row[0].boxes[0].whole for row in found) >= 3  # else nothing was compared


def same_boxes(found, wanted) -> None:
    """The same corners; the scores, quotients of floats from other batches, nearly."""
    assert [(b.box, b.whole) for b in found] == [(b.box, b.whole) for b in wanted]
    assert [b.score for b in found] == [pytest.approx(b.score, rel=1e-4, abs=1e-6) for b in wanted]


def equal(one, other) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert (a.path, a.rank, a.class_index, a.status) == (b.path, b.rank, b.class_index, b.status)
        same_boxes(a.boxes, b.boxes)
        assert a.logit == pytest.approx(b.logit, rel=1e-5)


@pytest.mark.parametrize("method", ["cam", "grad-cam", "occlusion:patch=8,stride=4"])
def test_the_batch_size_and_the_workers_change_nothing(folder, method):
    chosen = plan(network(), top=2, method=method)
    part = sources.expand([folder]).sources
    base = list(look(chosen, part))
    for batch, workers in ((1, 1), (2, 4)):
        for one, other in zip(base, look(chosen, part, batch=batch, workers=workers), strict=True):
            equal(one.found, other.found)
            np.testing.assert_allclose(one.maps, other.maps, rtol=1e-4, atol=1e-5)


def test_fewer_classes_than_asked_for_come_best_first():
    for card in (CARD, cl.Card()):
        net = cl.wrap(gap(), card=card)
        (row,) = cl.localize(net, drawn(40, 56, 0), top=99)
        assert len(row) == CLASSES
        assert [one.logit for one in row] == sorted((one.logit for one in row), reverse=True)


def test_pictures_in_memory(folder):
    net = network()
    array = np.array(Image.open(folder / "a.png"))
    (expected,) = cl.localize(net, folder / "a.png")
    given = [
        array,
        Image.fromarray(array),
        torch.from_numpy(array).permute(2, 0, 1),
        (folder / "a.png").read_bytes(),
    ]
    for one in given:
        (row,) = cl.localize(net, one)
        assert [x.boxes for x in row] == [x.boxes for x in expected]
        assert row[0].path == "<picture in memory>"
    rows = list(cl.localize(net, iter([*given, folder / "a.png", folder / "e.png"])))
    assert [[x.boxes for x in row] for row in rows[:5]] == [[x.boxes for x in expected]] * 5
    assert len(rows) == 6
    assert [
        len(list(cl.localize(net, stack))) for stack in (np.stack([array] * 3), torch.zeros(2, 3, 30, 40))
    ] == [3, 2]


def test_a_picture_that_cannot_be_used(folder, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not at all")
    files = [folder / "a.png", bad, folder / "d.png"]
    rows = cl.localize(network(), files)
    assert next(rows)[0].path.endswith("a.png")
    with pytest.raises(InputError, match=r"bad.png: not a picture"):
        next(rows)
    chosen = plan(network())
    seen = list(look(chosen, sources.expand(files).sources))
    assert [type(one) for one in seen] == [Seen, Rejected, Seen]
    assert isinstance(seen[1], Rejected)
    assert seen[1].source.name == str(bad)
    assert seen[1].reason.startswith("not a picture")
    alone = list(look(chosen, sources.expand([files[0], files[2]]).sources))
    equal(seen[0].found, alone[0].found)
    equal(seen[2].found, alone[1].found)
    with pytest.raises(InputError, match=r"<picture in memory>: a picture; got int"):
        list(cl.localize(network(), [3]))
    with pytest.raises(UsageError, match="no such picture"):
        list(cl.localize(network(), tmp_path / "gone.png"))


class FullyConnected(nn.Module):
    """Any size goes in, 2 × 2 cells come out of the pool, and two linear layers follow."""

    def __init__(self) -> None:
        super().__init__()
        self.features = trunk()
        self.hidden, self.fc = nn.Linear(CHANNELS * 4, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.fc(torch.tanh(self.hidden(F.adaptive_avg_pool2d(self.features(x), 2).flatten(1))))


def test_auto_is_grad_cam_where_the_head_is_no_pooled_linear_one(folder):
    net = cl.wrap(seeded(FullyConnected), card=CARD)
    rule = cl.FractionOfMax(0.2)
    (row,) = cl.localize(net, folder / "a.png", top=3)
    alone = by_hand(net, folder / "a.png", cl.GradCAM())
    for k, one in enumerate(row):
        assert one.map_method == "grad-cam"
        same_boxes(one.boxes, rule.on_map(alone.in_source()[0][k].numpy(), Size(40, 56)))
    (row,) = cl.localize(network(), folder / "a.png", method=cl.GradCAM(layer="features.1", relu=False))
    assert (row[0].map_method, row[0].layer) == ("grad-cam:layer=features.1,relu=false", "features.1")


def test_the_card_says_how_it_was_tuned(folder):
    card = cl.Card(
        labels=LABELS,
        preprocessing=CARD.preprocessing,
        localization=Tuned("grad-cam", "quantile:q=0.7", "flip"),
    )
    net = cl.wrap(gap(), card=card)
    (row,) = cl.localize(net, folder / "a.png")
    assert (row[0].map_method, row[0].box_rule, row[0].threshold) == ("grad-cam", "quantile:q=0.7", 0.7)
    assert str(plan(net).views) == "flip+1"
    assert str(plan(net, views="auto").views) == "flip+1"
    (row,) = cl.localize(net, folder / "a.png", method="cam", boxes="tight-loose")
    assert (row[0].map_method, row[0].box_rule, len(row[0].boxes)) == ("cam", "tight-loose", 2)


def test_a_view_and_its_mirror(folder):
    net = network()
    array = np.asarray(Image.open(folder / "a.png"))
    straight = net.preprocess(array, view="whole")
    mirrored = Batch(straight.pixels.flip(3), (View.whole(Size(40, 56), straight.views[0].size, flip=True),))
    logits = (net(straight) + net(mirrored)) / 2
    probabilities = (net(straight).softmax(1) + net(mirrored).softmax(1)) / 2
    order = probabilities.argsort(1, descending=True)[:, :2]
    target = cl.ClassTarget(order)
    heat = (
        cl.CAM()(net, straight, target).in_source()[0] + cl.CAM()(net, mirrored, target).in_source()[0]
    ) / 2
    (seen,) = look(plan(net, top=2, views="flip", boxes="fraction-of-max:threshold=0.3"), [array])
    assert isinstance(seen, Seen)
    assert [one.class_index for one in seen.found] == order[0].tolist()
    for k, one in enumerate(seen.found):
        assert one.probability == pytest.approx(float(probabilities[0, order[0, k]]), rel=1e-4)
        assert one.logit == pytest.approx(float(logits[0, order[0, k]]), rel=1e-4)
        same_boxes(one.boxes, cl.FractionOfMax(0.3).on_map(heat[k].numpy(), Size(40, 56)))


def test_given_classes_truth_and_swept_boxes(folder):
    net = network()
    files = [folder / "a.png", folder / "b/c.png", folder / "d.png"]
    truth = [(cl.Box(0, 0, 3, 4),), (), (cl.Box(1, 1, 2, 2), cl.Box(0, 0, 1, 1))]
    seen = list(look(plan(net), sources.expand(files).sources, classes=[4, 0, 2], truth=truth))
    for file, c, boxes, one in zip(files, (4, 0, 2), truth, seen, strict=True):
        assert isinstance(one, Seen)
        assert [f.class_index for f in one.found] == [c]
        assert one.truth == boxes
        size = Size(*np.asarray(Image.open(file)).shape[:2])
        heat = cl.CAM()(net, net.preprocess(file, view="whole"), cl.ClassTarget(c))
        np.testing.assert_allclose(one.maps, heat.values[0], rtol=1e-4, atol=1e-5)
        expected = sweep(heat.in_source()[0][0].numpy(), size, THRESHOLDS)
        np.testing.assert_allclose(one.sweep[0], expected, atol=1e-9)
        assert one.probabilities.shape == (CLASSES,)
        assert (one.picture.height, one.picture.width) == (size.height, size.width)
    with pytest.raises(TargetError, match="class 9; allowed: 0 … 4"):
        list(look(plan(net), [drawn(30, 40, 0)], classes=[9]))


def test_a_map_that_says_nothing_gives_the_whole_picture_and_why():
    module = gap()
    nn.init.zeros_(module.fc.weight)
    (row,) = cl.localize(cl.wrap(module, card=CARD), drawn(40, 56, 0), top=1)
    assert (row[0].status, row[0].boxes[0].whole) == ("flat", True)
    assert row[0].boxes[0].box == cl.Box(0, 0, 56, 40)
    nn.init.constant_(module.fc.weight, -1.0)
    (row,) = cl.localize(cl.wrap(module, card=CARD), drawn(40, 56, 0), top=1)
    assert (row[0].status, row[0].boxes[0].whole) == ("all-negative", True)
    (row,) = cl.localize(network(), drawn(40, 56, 0), top=1, boxes="fixed-level:value=1000")
    assert (row[0].status, row[0].boxes[0].whole) == ("whole-picture", True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gradcam"}, "method; got 'gradcam'; did you mean 'grad-cam'"),
        ({"method": "cam:relu=true"}, "option of method cam; got 'relu'"),
        ({"boxes": "fraction"}, "box rule; got 'fraction'; did you mean 'fraction-of-max'"),
        ({"boxes": "fraction-of-max:threshold=2"}, "a number from 0 to 1"),
        ({"views": "flop"}, "views; got 'flop'"),
    ],
)
def test_words_that_are_wrong(options, message):
    with pytest.raises(UsageError, match=message):
        list(cl.localize(network(), drawn(30, 40, 0), **options))
