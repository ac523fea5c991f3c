"""Box accuracy and PxAP: the published code's numbers, slow loops, and cases worked out by hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import camlucida as cl
from camlucida.boxes import component_tree
from camlucida.errors import UsageError
from camlucida.evaluate.baselines import centre_gaussian
from camlucida.evaluate.wsol import BLOCK, BoxAccuracy, PixelTally, box_accuracy, pixel_average_precision
from camlucida.metrics import bootstrap_means
from camlucida.values import Size
from oracles import wsol as slow

ORACLE = Path(os.environ.get("CAMLUCIDA_DATA", "nowhere")) / ".." / "oracles" / "wsol.npz"
THRESHOLDS = np.arange(0, 1.0001, 0.05)


@pytest.fixture(scope="module")
def published():
    if not ORACLE.is_file():
        pytest.skip("the reference numbers (oracles/wsol.npz beside $CAMLUCIDA_DATA) are not here")
    numbers = dict(np.load(ORACLE))
    corners = numbers["boxes"]
    numbers["boxes"] = [corners[corners[:, 0] == i, 1:] for i in range(len(numbers["maps"]))]
    return numbers


@pytest.fixture(params=["compiled", "plain"])
def way(request, monkeypatch):
    if request.param == "compiled":
        pytest.importorskip("numba", reason="needs the extra [wsol]")
    monkeypatch.setattr(component_tree, "PATIENCE", 0 if request.param == "compiled" else 10**9)
    return request.param


@pytest.mark.parametrize(("components", "name"), [("largest", "single"), ("all", "multi")])
def test_reference_reproduces_the_published_code(published, components, name):
    pytest.importorskip("cv2", reason="needs the extra [wsol]")
    found = cl.evaluate.wsol.box_accuracy(
        published["maps"],
        published["boxes"],
        published["thresholds"],
        components=components,
        convention="reference",
    )
    for iou, percent in zip((0.3, 0.5, 0.7), published[f"{name}_maxboxacc"], strict=True):
        expected = published[f"{name}_correct_{100 * iou:.0f}"]
        assert found.correct[iou].tolist() == expected.tolist()
        assert found.hits(iou).sum(0).tolist() == expected.tolist()
        assert found.max_box_accuracy[iou] == pytest.approx(percent, abs=1e-9)
        low, high = found.interval(iou)
        assert low < percent < high + 3  # the best of many thresholds: resampling leans upwards
    assert found.mean == pytest.approx(published[f"{name}_maxboxacc"].mean())


def test_pxap_reproduces_the_published_code(published):
    found = cl.evaluate.wsol.pixel_average_precision(
        published["maps"], published["masks"], published["thresholds"]
    )
    assert found.value == pytest.approx(float(published["pxap"]), abs=1e-9)
    assert found.interval[0] < found.value < found.interval[1]
    assert found.pictures == 150


def pictures(count: int, seed: int = 5):
    """Maps in [0, 1] of several kinds and sizes, odd ones too, and one to three boxes each."""
    generator = np.random.default_rng(seed)
    maps, boxes = [], []
    shapes = [(9, 13), (1, 7), (2, 9), (8, 2), (14, 11), (1, 1), (6, 1)]
    for i in range(count):
        height, width = shapes[i % len(shapes)]
        heat = generator.random((height, width))
        if i % 4 == 0:
            heat = ndimage.gaussian_filter(heat, 1.5, mode="nearest")
            heat = (heat - heat.min()) / max(heat.max() - heat.min(), 1e-9)
        elif i % 4 == 1:
            heat = np.round(heat * 4) / 4
        if i % 9 == 5:
            heat[:] = i % 2  # constant
        elif i % 9 == 7:
            heat[:] = 0
            heat[-1, 0] = 1  # one pixel
        maps.append(heat)
        ends = np.sort(generator.integers(0, [[width], [height]], (generator.integers(1, 4), 2, 2)), axis=-1)
        boxes.append(np.stack([ends[:, 0, 0], ends[:, 1, 0], ends[:, 0, 1], ends[:, 1, 1]], axis=1))
    return maps, boxes


@pytest.mark.parametrize("components", ["largest", "all"])
def test_half_open_equals_the_slow_loop(way, components):
    maps, boxes = pictures(60)
    boxes = [np.add(box, (0, 0, 1, 1)) for box in boxes]
    maps[3] = np.full((4, 5), np.nan)
    maps[4] = -1 - maps[4]  # nowhere positive
    ious = (0.1, 0.3, 0.5, 0.9)
    found = box_accuracy(iter(maps), iter(boxes), THRESHOLDS, ious, components)
    expected = slow.box_accuracy(maps, boxes, THRESHOLDS, ious, components, "half-open")
    for iou in ious:
        assert found.hits(iou).tolist() == expected[iou]
        assert found.correct[iou].tolist() == np.sum(expected[iou], axis=0).tolist()
        assert 0 < found.correct[iou].sum() < 60 * len(THRESHOLDS)
    assert found.flat.tolist() == [not np.isfinite(m).all() or m.min() == m.max() for m in maps]


@pytest.mark.parametrize("components", ["largest", "all"])
def test_reference_equals_the_slow_loop(components):
    pytest.importorskip("cv2", reason="needs the extra [wsol]")
    maps, boxes = pictures(60)
    thresholds = np.append(np.arange(0, 1, 0.01), 1.0)
    found = box_accuracy(maps, boxes, thresholds, (0.1, 0.5), components, "reference")
    expected = slow.box_accuracy(maps, boxes, thresholds, (0.1, 0.5), components, "reference")
    for iou in (0.1, 0.5):
        assert found.hits(iou).tolist() == expected[iou]


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
        lambda shape: st.lists(
            st.integers(0, 5), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]
        ).map(lambda cells: np.array(cells, np.float64).reshape(shape) / 5)
    ),
    st.sampled_from(["largest", "all"]),
)
def test_small_maps_equal_the_slow_loop(heat, components):
    boxes = [[[0, 0, 2, 2], [1, 1, 4, 3]]]
    for convention in ("half-open", "reference"):
        if convention == "reference":
            pytest.importorskip("cv2", reason="needs the extra [wsol]")
        found = box_accuracy([heat], boxes, THRESHOLDS, (0.4,), components, convention)
        assert (
            found.hits(0.4).tolist()
            == slow.box_accuracy([heat], boxes, THRESHOLDS, (0.4,), components, convention)[0.4]
        )


def test_by_hand(way):
    # Above half: a column of 3 (pixels x 0, y 0…2) and a lone pixel at (4, 1); above 0.8 of the maximum: the pixel alone.
    heat = np.zeros((3, 5))
    heat[:, 0], heat[1, 4] = 0.7, 1.0
    column, pixel = [0, 0, 1, 3], [4, 1, 5, 2]
    thresholds = [0.8, 0.5, 1.0]
    largest = box_accuracy([heat, heat], [[pixel], [column, [0, 0, 5, 3]]], thresholds, (0.5, 1.0))
    assert largest.hits(1.0).tolist() == [
        [True, False, False],
        [False, True, True],
    ]  # 1.0: none, so the whole map
    assert largest.correct[1.0].tolist() == [1, 1, 1]
    assert largest.max_box_accuracy == {0.5: 50.0, 1.0: 50.0}
    every = box_accuracy([heat], [[pixel]], thresholds, (1.0,), "all")
    assert every.hits(1.0).tolist() == [[True, True, False]]
    assert every.best_threshold == {1.0: 0.8}
    assert every.mean == 100.0


def test_what_must_be_exceeded_is_reached():
    heat = np.zeros((4, 4))
    heat[:2, :2] = 1
    found = box_accuracy([heat], [[[0, 0, 2, 4]]], [0.5], (0.5, 0.500001))  # IoU exactly a half
    assert (found.correct[0.5].item(), found.correct[0.500001].item()) == (1, 0)


def test_pictures_without_boxes_do_not_count():
    heat = np.eye(4)
    found = box_accuracy([heat, heat], [[], [[0, 0, 4, 4]]], [0.0], (0.9,))
    assert found.boxed.tolist() == [False, True]
    assert found.curve[0.9].tolist() == [100.0]
    none = box_accuracy([], [], [0.0, 0.5])
    assert np.isnan(none.curve[0.5]).all()
    assert np.isnan(none.mean)
    assert np.isnan(none.interval()).all()
    assert none.hits(0.3).shape == (0, 2)


def test_normalised_maps_may_have_any_range():
    pytest.importorskip("cv2", reason="needs the extra [wsol]")
    maps, boxes = pictures(12)
    moved = [3 - 7.0 * (1 - m) for m in maps]
    moved[0][0, 0] = np.nan
    for convention in ("half-open", "reference"):
        found = box_accuracy(moved[1:], boxes[1:], THRESHOLDS, normalise=True, convention=convention)
        scaled = [np.clip((m - m.min()) / (np.ptp(m) or 1), 0, 1) for m in moved[1:]]
        expected = box_accuracy(scaled, boxes[1:], THRESHOLDS, convention=convention)
        assert found.correct[0.3].tolist() == expected.correct[0.3].tolist()
    broken = box_accuracy(moved[:1], [[[0, 0, 0, 0]]], [0.2], (1.0,), convention="reference")
    assert broken.correct[1.0].tolist() == [1]  # the published code's answer to nothing: the pixel (0, 0)
    assert broken.flat.tolist() == [True]
    with pytest.raises(UsageError, match="normalise=True"):
        box_accuracy(moved[1:2], boxes[1:2], [0.2], convention="reference")


def test_thresholds_far_below_the_best_change_no_interval():
    hits = np.random.default_rng(1).random((4000, 20)) < np.linspace(0.1, 0.9, 20)
    packed = np.packbits(hits, axis=1)
    thresholds = np.linspace(0, 0.95, 20)
    every = np.ones(4000, bool)
    found = BoxAccuracy(thresholds, {0.5: hits.sum(0)}, every, ~every, {0.5: packed})
    assert (found.hits(0.5) == hits).all()
    means = bootstrap_means(hits).max(1)
    assert found.interval(0.5) == pytest.approx(tuple(100 * np.quantile(means, [0.025, 0.975])), abs=1e-9)


def test_interval_is_that_of_resampled_pictures():
    maps, boxes = pictures(60)
    found = box_accuracy(maps, boxes, THRESHOLDS, (0.1, 0.3))
    hits = np.stack([found.hits(0.1), found.hits(0.3)])
    generator = np.random.default_rng(99)
    draws = [hits[:, generator.integers(0, 60, 60)].mean(1).max(1) for _ in range(2000)]
    low, high = 100 * np.quantile([d[0] for d in draws], [0.025, 0.975])
    assert found.interval(0.1) == pytest.approx((low, high), abs=2.5)
    low, high = 100 * np.quantile([d.mean() for d in draws], [0.025, 0.975])
    assert found.interval() == pytest.approx((low, high), abs=2.5)
    assert found.interval(repeats=50) == found.interval(repeats=50)
    assert found.interval(repeats=50) != found.interval(repeats=50, seed=1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: box_accuracy([np.eye(3)], [], [0.5]), "1 sets of boxes|0 sets of boxes and more maps"),
        (lambda: box_accuracy([], [[[0, 0, 1, 1]]], [0.5]), "0 maps and more sets of boxes"),
        (lambda: box_accuracy([np.eye(3)], [[[0, 0, 1, 1]]], [1.5]), "0 to 1"),
        (lambda: box_accuracy([np.ones(3)], [[[0, 0, 1, 1]]], [0.5]), r"\(H, W\)"),
        (lambda: box_accuracy([], [], [0.5], components="some"), "largest | all"),
        (lambda: box_accuracy([np.eye(3)], [np.ones((4, 5))], [0.5]), r"shape \(4, 5\)"),
        (lambda: box_accuracy([np.eye(3)], np.ones((1, 5)), [0.5]), r"\(B, 4\)"),
        (lambda: box_accuracy([np.eye(3)], [np.ones((4, 3))], [0.5]), r"shape \(4, 3\)"),
        (lambda: box_accuracy([np.eye(3)], [[[2, 2, 1, 1]]], [0.5]), "x0 ≤ x1"),
        (lambda: box_accuracy([np.eye(3)], [[[0, np.nan, 1, 1]]], [0.5]), "x0 ≤ x1"),
        (lambda: box_accuracy([np.eye(3)], [[[30, 30, 60, 60]]], [0.5]), "pixels of their map"),
        (lambda: box_accuracy([np.eye(3)], [[[0, 0, 1, 1]]], [0.5], ious=(30, 50)), "at most 1"),
        (lambda: box_accuracy([np.eye(3)], [[[0, 0, 1, 1]]], []), "a list of numbers"),
        (lambda: box_accuracy([], [], [0.5], convention="inclusive"), "half-open | reference"),
        (lambda: pixel_average_precision([np.eye(3)], [np.eye(2)], [0.5]), "equal shapes"),
        (lambda: pixel_average_precision([np.eye(3)], [7 * np.eye(3)], [0.5]), "255"),
        (lambda: pixel_average_precision([2 * np.eye(3)], [np.eye(3)], [0.5]), "normalise=True"),
        (lambda: pixel_average_precision([np.eye(3)], [np.eye(3)], [0.5, 0.5]), "rising"),
    ],
)
def test_wrong_calls_say_what_is_allowed(call, words):
    with pytest.raises(UsageError, match=words):
        call()


def test_pxap_equals_the_slow_loop():
    generator = np.random.default_rng(2)
    maps = [np.round(generator.random((5, 7)), 2) for _ in range(4)] + [np.zeros((3, 3)), np.ones((2, 4))]
    masks = [generator.choice([0, 1, 255], m.shape, p=[0.5, 0.4, 0.1]) for m in maps]
    for thresholds in (np.arange(0, 1, 0.05), np.arange(0.2, 1, 0.01), [0.0, 0.3, 1.0]):
        found = pixel_average_precision(iter(maps), iter(masks), thresholds)
        assert found.value == pytest.approx(slow.pixel_average_precision(maps, masks, thresholds), abs=1e-9)


def test_pxap_by_hand():
    heat, mask = np.array([[0.95, 0.85, 0.55, 0.15, 0.99]]), np.array([[1, 0, 1, 0, 255]])
    found = pixel_average_precision([heat], [mask], np.arange(0, 1, 0.1))
    assert found.value == pytest.approx(100 * (1 * 0.5 + 2 / 3 * 0.5))
    assert found.thresholds[:3] == pytest.approx([1.0, 0.9, 0.8])
    assert found.recall.tolist() == [0, 0.5, 0.5, 0.5, 0.5, 1, 1, 1, 1, 1, 1]
    assert pixel_average_precision([mask == 1], [mask == 1], [0.0, 0.5]).value == 100.0
    nothing = pixel_average_precision([heat], [0 * mask], [0.0, 0.5])
    assert np.isnan(nothing.value)
    assert np.isnan(nothing.interval).all()
    broken = pixel_average_precision([heat * np.nan], [mask], [0.0, 0.5], repeats=0)
    assert broken.value == pytest.approx(50.0)  # zeros everywhere: half of what is known is foreground


def test_pxap_interval_does_not_depend_on_how_pictures_are_grouped(monkeypatch):
    generator = np.random.default_rng(4)
    maps = generator.random((30, 6, 6))
    masks = (maps + generator.normal(0, 0.5, maps.shape) > 0.6).astype(int)
    first = pixel_average_precision(maps, masks, THRESHOLDS[:-1])
    monkeypatch.setattr("camlucida.evaluate.wsol.BLOCK", 7)
    assert pixel_average_precision(maps, masks, THRESHOLDS[:-1]).interval == first.interval
    draws = [generator.integers(0, 30, 30) for _ in range(200)]
    values = [pixel_average_precision(maps[d], masks[d], THRESHOLDS[:-1], repeats=0).value for d in draws]
    low, high = np.quantile(values, [0.025, 0.975])
    assert first.interval == pytest.approx((low, high), abs=0.35 * (high - low))


def test_pxap_of_a_whole_block_and_asked_twice():
    """Nothing waits to be counted after 64 pictures, nor after `result`."""
    tally = PixelTally([0.5], repeats=10)
    for _ in range(BLOCK):
        tally.add(np.eye(3), np.eye(3, dtype=np.uint8))
    assert tally.result().value == tally.result().value == 100


def test_a_centre_gaussian_boxes_the_middle():
    heat = centre_gaussian(Size(40, 60))
    assert heat.max() > 0.99
    np.testing.assert_allclose(heat, heat[::-1, ::-1])
    found = box_accuracy([heat], [[[15, 10, 45, 30]]], np.arange(0, 1, 0.01), (0.9,))
    assert found.max_box_accuracy == {0.9: 100.0}
    assert found.best_threshold[0.9] == pytest.approx(
        np.exp(-0.5), abs=0.05
    )  # its sides lie a deviation from the middle
