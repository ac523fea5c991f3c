"""One component tree gives exactly what thresholding again and again gives."""

from __future__ import annotations

import itertools
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from camlucida.boxes import FractionOfMax, at_thresholds, component_tree
from camlucida.boxes.component_tree import best_over_components, sweep, sweeps
from camlucida.errors import UsageError
from camlucida.values import Grid, HeatMaps, Size, View
from oracles.boxes import bounds, flood_fill, loop_over_thresholds

SHAPES = [(1, 1), (1, 2), (2, 1), (2, 2), (1, 9), (8, 1), (2, 3), (3, 2), (3, 3), (4, 7), (6, 5), (9, 8)]


@contextmanager
def way(name):
    """Boxes are made with NumPy alone, or by what numba compiles."""
    if name == "compiled":
        pytest.importorskip("numba", reason="needs the extra [wsol]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(component_tree, "PATIENCE", 0 if name == "compiled" else 10**9)
        yield


both_ways = pytest.mark.parametrize("how", ["plain", "compiled"])


def maps_of(shape):
    """Small maps with many ties, or with hardly any."""
    count = shape[0] * shape[1]
    ties = st.lists(st.integers(-1, 4), min_size=count, max_size=count)
    loose = st.lists(st.floats(-2, 3, width=32), min_size=count, max_size=count)
    return (ties | loose).map(lambda cells: np.array(cells, np.float32).reshape(shape))


@both_ways
@settings(max_examples=250, deadline=None)
@given(
    heat=st.sampled_from(SHAPES).flatmap(maps_of),
    thresholds=st.lists(st.sampled_from([0, 0.2, 0.25, 0.3, 0.5, 0.75, 1.0]) | st.floats(0, 1), max_size=9),
    connectivity=st.sampled_from([4, 8]),
    normalise=st.booleans(),
)
@example(heat=np.array([[1, 0], [0, 1]], np.float32), thresholds=[0.0, 0.5], connectivity=4, normalise=False)
@example(heat=np.array([[1, 0], [0, 1]], np.float32), thresholds=[0.0, 0.5], connectivity=8, normalise=False)
@example(heat=np.full((3, 3), np.nan, np.float32), thresholds=[0.5], connectivity=8, normalise=False)
def test_equals_the_loop(how, heat, thresholds, connectivity, normalise):
    with way(how):
        found = sweep(heat, Size(*heat.shape), thresholds, connectivity, normalise)
    expected = loop_over_thresholds(heat, thresholds, connectivity, normalise)
    assert found.shape == (len(thresholds), 4)
    assert found.dtype == np.float64
    assert found.tolist() == [list(map(float, box)) for box in expected]


def larger(kind):
    generator = np.random.default_rng(7)
    heat = generator.standard_normal((37, 52)).astype(np.float32)
    if kind == "smooth":
        heat = ndimage.zoom(heat[:5, :7], (37 / 5, 52 / 7), order=1)
    elif kind == "waves":
        heat = np.sin(np.arange(52) / 2)[None] * np.cos(np.arange(37) / 3)[:, None] + 0.01 * heat
    elif kind == "ties":
        heat = np.floor(heat * 2)
    elif kind == "spiral":  # one long thin climb
        heat = np.zeros((37, 52), np.float32)
        heat[::2] = 1
        heat[1::4, -1] = heat[3::4, 0] = 1
        heat *= 1 + np.arange(heat.size).reshape(heat.shape) / heat.size
    return heat, generator.permutation(np.linspace(0, 1, 60))


larger_maps = pytest.mark.parametrize("kind", ["smooth", "noise", "waves", "ties", "spiral"])


@both_ways
@pytest.mark.parametrize("connectivity", [4, 8])
@larger_maps
def test_equals_the_rule_on_larger_maps(kind, connectivity, how):
    heat, thresholds = larger(kind)
    size = Size(74, 156)
    for normalise in (False, True):
        with way(how):
            found = sweep(heat, size, thresholds, connectivity, normalise)
        rules = [FractionOfMax(float(t), "largest", connectivity, normalise) for t in thresholds]
        assert found.tolist() == [list(rule.on_map(heat, size)[0].box.corners) for rule in rules]


def score(boxes):
    """Any number that tells boxes apart."""
    return (boxes * [7, 31, 11, 9]).sum(1) % 71 / 7


@both_ways
@settings(max_examples=100, deadline=None)
@given(
    heat=st.sampled_from(SHAPES).flatmap(maps_of),
    thresholds=st.lists(st.sampled_from([0, 0.25, 0.5, 1.0]) | st.floats(0, 1), max_size=6),
    connectivity=st.sampled_from([4, 8]),
)
def test_the_best_of_all_components(how, heat, thresholds, connectivity):
    with way(how):
        found = best_over_components(heat, score, thresholds, connectivity)
    height, width = heat.shape
    usable = heat.min() != heat.max() and heat.max() > 0
    for threshold, best in zip(thresholds, found, strict=True):
        mask = (heat.astype(float) > threshold * float(heat.max())).tolist() if usable else [[False]]
        boxes = [bounds(component) for component in flood_fill(mask, connectivity)] or [(0, 0, width, height)]
        assert best == max(score(np.array(boxes)))


@pytest.mark.parametrize("connectivity", [4, 8])
@larger_maps
def test_both_ways_find_the_same_components(kind, connectivity):
    pytest.importorskip("numba", reason="needs the extra [wsol]")
    from camlucida.boxes import union_find

    heat, thresholds = larger(kind)
    heat, cuts = heat.astype(np.float64), np.sort(thresholds) * float(heat.max())
    below, level, _, _, boxes = component_tree._nodes(component_tree._levels(heat, cuts), connectivity)
    plain = np.column_stack([below, level, boxes])
    fast = np.column_stack(union_find.nodes(heat, cuts, connectivity))
    assert len(plain) > 30
    assert sorted(plain.tolist()) == sorted(fast.tolist())


def test_numba_is_left_alone_until_it_pays(monkeypatch):
    asked = []
    monkeypatch.setattr(component_tree, "_numba", lambda: asked.append(1))
    monkeypatch.setattr(component_tree, "_maps", itertools.count(1))
    monkeypatch.setattr(component_tree, "PATIENCE", 3)
    for _ in range(5):
        assert sweep(np.eye(2), Size(2, 2), [0.5]).tolist() == [[0, 0, 2, 2]]
    assert len(asked) == 2  # and without it all goes on as before


def test_many_peaks_at_many_thresholds_are_what_few_at_a_time_give():
    """Beyond 2^16 nodes they are sorted in another way."""
    heat = np.random.default_rng(11).standard_normal((37, 52)).astype(np.float32)
    thresholds = np.linspace(0, 1, 997)
    size = Size(37, 52)
    parts = [sweep(heat, size, few) for few in np.array_split(thresholds, 20)]
    np.testing.assert_array_equal(sweep(heat, size, thresholds), np.concatenate(parts))


def test_by_hand():
    heat = np.array([[1, 3, 1, 0, 2], [0, 1, 0, 0, 2], [0, 0, 0, 0, 2], [4, 0, 0, 0, 0]], np.float32)
    # Above 0: the cross of 4; above 1: the column of 3; above 2: two lone pixels, the upper one first; above
    # 4: none.
    found = sweep(heat, Size(8, 5), [0.5, 0.0, 0.25, 1.0, 0.9])
    assert found.tolist() == [[1, 0, 2, 2], [0, 0, 3, 4], [4, 0, 5, 6], [0, 0, 5, 8], [0, 6, 1, 8]]


def test_maps_of_several_pictures():
    generator = np.random.default_rng(3)
    values = torch.from_numpy(generator.standard_normal((2, 3, 4, 5)).astype(np.float32))
    views = (View.whole(Size(33, 47), Size(32, 40)), View.whole(Size(50, 21), Size(32, 40), flip=True))
    maps = HeatMaps(
        values, None, values.amax((2, 3)), Grid((32, 40), (4, 4), (8, 8), (8, 8)), views, "by hand", "nothing"
    )
    thresholds = [0.7, 0.1, 0.4]
    found = at_thresholds(maps, thresholds, connectivity=4)
    assert [boxes.shape for boxes in found] == [(3, 3, 4), (3, 3, 4)]
    for i, threshold in enumerate(thresholds):
        for boxes, rows in zip(found, FractionOfMax(threshold, connectivity=4)(maps), strict=True):
            assert boxes[:, i].tolist() == [list(row[0].box.corners) for row in rows]
    assert not np.array_equal(found[0], at_thresholds(maps, thresholds, normalise=True)[0])


@pytest.mark.parametrize("thresholds", [[0.2, 1.5], [-0.1], [float("nan")], 0.2, [[0.2]]])
def test_thresholds_are_shares(thresholds):
    with pytest.raises(UsageError, match="0 to 1"):
        sweep(np.eye(3), Size(3, 3), thresholds)


def test_connectivity_is_four_or_eight():
    with pytest.raises(UsageError, match=r"8 \| 4"):
        sweep(np.eye(3), Size(3, 3), [0.2], connectivity=6)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_several_maps_at_once_are_each_by_itself(connectivity):
    """Touching at the seam, of unequal heights, one flat and one nowhere positive."""
    heats = np.random.default_rng(3).integers(-1, 5, (6, 5, 7)).astype(np.float32)
    heats[1] = 2
    heats[3] = -1 - heats[3].clip(0)
    heats[:, -1] = heats[:, 0] = heats.max((1, 2))[:, None]
    size, thresholds = Size(50, 70), [0.9, 0.0, 0.5, 0.5, 1.0, 0.25]
    found = sweeps(heats, size, thresholds, connectivity)
    each = [sweep(heat, size, thresholds, connectivity) for heat in heats]
    rule = [[FractionOfMax(t, connectivity=connectivity).on_map(h, size)[0].box.corners for t in thresholds] for h in heats]  # fmt: skip
    np.testing.assert_array_equal(found, each)
    np.testing.assert_array_equal(found, rule)
