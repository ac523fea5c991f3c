"""The pointing game, energy and CorLoc, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camlucida.errors import UsageError
from camlucida.evaluate.pointing import class_accuracy, corloc, counts_in_pointing_game, energy, pointing_hit


def peak(shape, y, x):
    heat = np.zeros(shape)
    heat[y, x] = 1
    return heat


def test_less_than_fifteen_pixels_is_a_hit():
    heat = peak((60, 90), 20, 30)
    for box, hit in [
        ((44, 20, 60, 40), True),  # first pixel at x 44, 14 away
        ((45, 20, 60, 40), False),  # exactly 15
        ((0, 0, 16, 60), False),  # last pixel of a half-open box is x 15
        ((0, 0, 17, 60), True),
        ((42, 29, 60, 60), False),  # 12 and 9 away: 15
        ((42, 28, 60, 60), True),
        ((25, 15, 35, 25), True),
        ((30, 20, 30, 20), False),  # holds no pixel
    ]:
        assert pointing_hit(heat, boxes=[box]) is hit, box
    assert pointing_hit(heat, boxes=[(80, 0, 90, 9), (44, 20, 60, 40)])
    assert not pointing_hit(heat, boxes=[])
    assert not pointing_hit(heat, boxes=[(44, 20, 60, 40)], tolerance=14)
    assert pointing_hit(heat, boxes=[(30, 20, 31, 21)], tolerance=1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equals_a_slow_loop_on_masks(seed):
    generator = np.random.default_rng(seed)
    heat, mask = generator.random((7, 11)), generator.random((7, 11)) > 0.9
    y, x = divmod(int(heat.argmax()), 11)
    near = any(mask[i, j] and (i - y) ** 2 + (j - x) ** 2 < 9 for i in range(7) for j in range(11))
    assert pointing_hit(heat, mask=mask, tolerance=3) is near


def test_maps_that_point_nowhere_miss():
    whole = [(0, 0, 9, 5)]
    assert not pointing_hit(np.ones((5, 9)), boxes=whole)
    assert not pointing_hit(np.full((5, 9), np.nan), boxes=whole)
    twice = peak((5, 60), 2, 3) + peak((5, 60), 1, 50)
    assert pointing_hit(twice, boxes=[(50, 1, 51, 2)])  # the first in raster order is the upper one
    assert not pointing_hit(twice, boxes=[(3, 2, 4, 3)])


def test_energy_by_hand():
    heat = np.array([[4.0, 2, -9], [1, 1, 0]])
    assert energy(heat, boxes=[(0, 0, 1, 2)]) == pytest.approx(5 / 8)
    assert energy(heat, boxes=[(0, 0, 1, 2), (0, 0, 2, 1)]) == pytest.approx(7 / 8)  # counted once
    assert energy(heat, boxes=[(0, 0, 3, 2)]) == 1
    assert energy(heat, mask=[[0, 1, 1], [0, 1, 0]]) == pytest.approx(3 / 8)
    assert energy(np.full((2, 4), 1e308), boxes=[(0, 0, 1, 2)]) == 0.25  # whose sum is infinite
    assert energy(np.ones((2, 4)), boxes=[(0, 0, 1, 2)]) == 0.25
    assert energy(-np.ones((2, 4)), boxes=[(0, 0, 4, 2)]) == 0
    assert energy(np.full((2, 4), np.inf), boxes=[(0, 0, 4, 2)]) == 0


def test_classes_count_alike():
    found = class_accuracy([True, True, True, False, False, True], [2, 2, 2, 2, 5, 9])
    assert found.per_class == {2: 75.0, 5: 0.0, 9: 100.0}
    assert found.counts == {2: 4, 5: 1, 9: 1}
    assert found.mean == pytest.approx(175 / 3)
    assert found.overall == pytest.approx(400 / 6)
    # Only class 2 varies; 0 to 4 of 4 right with p = 3/4: one or none right 5 %, two or fewer 26 %.
    assert found.interval == pytest.approx(((25 + 100) / 3, 200 / 3))
    assert np.isnan(class_accuracy([], []).mean)
    with pytest.raises(UsageError, match=r"\(N,\)"):
        class_accuracy([True], [])


def test_a_picture_of_difficult_objects_alone_does_not_count():
    assert not counts_in_pointing_game([True, True])
    assert counts_in_pointing_game([True, False])
    assert counts_in_pointing_game([False])


def test_corloc_by_hand():
    boxes = [(0, 0, 4, 4), (0, 0, 4, 4), (0, 0, 4, 4), (0, 0, 4, 4)]
    truths = [[(0, 0, 4, 2)], [(0, 0, 4, 1.9)], [(9, 9, 12, 12), (0, 0, 4, 4)], []]
    found = corloc(boxes, truths, [0, 0, 1, 1])
    assert found.per_class == {0: 50.0, 1: 50.0}
    assert corloc(boxes, truths, [0, 0, 1, 1], strict=True).per_class == {0: 0.0, 1: 50.0}
    assert corloc(boxes, truths, [0, 0, 1, 1], convention="inclusive").per_class == {0: 100.0, 1: 50.0}
    with pytest.raises(UsageError, match="4 boxes, 2 truths, 2 classes"):
        corloc(boxes, truths[:2], [0, 0])


@pytest.mark.parametrize("function", [pointing_hit, energy])
def test_the_object_is_boxes_or_a_mask(function):
    with pytest.raises(UsageError, match="neither"):
        function(np.eye(3))
    with pytest.raises(UsageError, match="boxes and a mask"):
        function(np.eye(3), boxes=[(0, 0, 1, 1)], mask=np.eye(3))
    with pytest.raises(UsageError, match=r"\(3, 3\)"):
        function(np.eye(3), mask=np.eye(2))
