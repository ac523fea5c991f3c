"""Section 3.1: thresholds, components, ties and what happens when there is nothing to box."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camlucida.boxes import FixedLevel, FractionOfMax, Quantile, TightLoose
from camlucida.boxes.from_map import MAX_SIDE
from camlucida.errors import UsageError
from camlucida.values import Box, Grid, HeatMaps, ScoredBox, Size, View
from oracles.boxes import largest_component

# Above 2: a component of 3 (top left), one of 4 (right), joined only at a corner; and a lone pixel.
MAP = np.array(
    [
        [5, 4, 0, 0, 0],
        [3, 0, 0, 8, 7],
        [0, 0, 0, 6, 0],
        [9, 0, 6, 0, 0],
    ],
    dtype=np.float32,
)
PICTURE = Size(4, 5)


def heat_maps(values, views, classes=None):
    values = torch.as_tensor(np.asarray(values, np.float32))
    scores = torch.zeros(values.shape[:2])
    size = views[0].size
    cells = values.shape[2:]
    stride = (size.height / cells[0], size.width / cells[1])
    grid = Grid((size.height, size.width), (stride[0] / 2, stride[1] / 2), stride, stride)
    return HeatMaps(values, classes, scores, grid, tuple(views), "by hand", "nothing")


def corners(found):
    return [one.box.corners for one in found]


def test_the_largest_component_above_a_share_of_the_maximum():
    found = FractionOfMax(0.25).on_map(MAP, PICTURE)
    assert found == (ScoredBox(Box(2, 1, 5, 4), 8 / 9),)  # with its corner pixel (3, 2): 4 pixels


def test_corners_do_not_join_with_four_connections():
    assert FractionOfMax(0.25, connectivity=4).on_map(MAP, PICTURE) == (ScoredBox(Box(0, 0, 2, 2), 5 / 9),)


def test_ties_go_to_the_component_met_first_in_raster_order():
    # With 4 connections both large components have 3 pixels; mirrored, the other one comes first.
    assert corners(FractionOfMax(0.25, connectivity=4).on_map(MAP[::-1], PICTURE)) == [(3, 1, 5, 3)]
    # The first pixel counts, not the top of the box's left side.
    tie = np.array([[0, 0, 0, 2], [1, 1, 0, 2]])
    assert corners(FractionOfMax(0.1).on_map(tie, Size(2, 4))) == [(3, 0, 4, 2)]


def test_all_components_come_by_falling_size():
    found = FractionOfMax(0.25, components="all").on_map(MAP, PICTURE)
    assert corners(found) == [(2, 1, 5, 4), (0, 0, 2, 2), (0, 3, 1, 4)]
    assert [one.score for one in found] == [8 / 9, 5 / 9, 1.0]
    found = FractionOfMax(0.25, components="all", connectivity=4).on_map(MAP, PICTURE)
    assert corners(found) == [(0, 0, 2, 2), (3, 1, 5, 3), (0, 3, 1, 4), (2, 3, 3, 4)]


def test_the_cut_is_strict_and_one_pixel_gives_a_side_of_one():
    assert corners(FractionOfMax(8 / 9).on_map(MAP, PICTURE)) == [(0, 3, 1, 4)]
    assert corners(FractionOfMax(0.0).on_map(np.array([[0, 0, 1]]), Size(1, 3))) == [(2, 0, 3, 1)]


def test_normalise_counts_the_share_from_the_minimum():
    heat = np.array([[4.0, 6.0, 10.0, 4.0]])
    assert corners(FractionOfMax(0.4).on_map(heat, Size(1, 4))) == [(1, 0, 3, 1)]  # above 4
    assert FractionOfMax(0.4, normalise=True).on_map(heat, Size(1, 4)) == (
        ScoredBox(Box(2, 0, 3, 1), 1.0),
    )  # above 6.4
    assert corners(FractionOfMax(0.3, normalise=True).on_map(heat - 20, Size(1, 4))) == [(1, 0, 3, 1)]


WHOLE = (ScoredBox(Box(0, 0, 5, 4), 0.0, whole=True),)


@pytest.mark.parametrize(
    "heat",
    [
        -MAP,
        np.zeros((4, 5)),
        np.full((4, 5), 3.0),
        np.where(MAP == 9, np.nan, MAP),
        np.where(MAP == 9, np.inf, MAP),
    ],
    ids=["nowhere positive", "zero", "constant", "NaN", "infinite"],
)
def test_a_map_without_a_component_gives_the_whole_picture(heat):
    assert FractionOfMax().on_map(heat, PICTURE) == WHOLE
    assert FractionOfMax(components="all").on_map(heat, PICTURE) == WHOLE
    assert TightLoose().on_map(heat, PICTURE) == WHOLE * 2


def test_a_share_of_one_leaves_nothing():
    assert FractionOfMax(1.0).on_map(MAP, PICTURE) == WHOLE


def test_quantile():
    heat = np.arange(20, dtype=np.float32).reshape(4, 5)  # 0.8 quantile: 15.2
    assert Quantile(0.8).on_map(heat, PICTURE) == (ScoredBox(Box(1, 3, 5, 4), 1.0),)
    assert Quantile(0.0).on_map(heat, PICTURE) == (ScoredBox(Box(0, 0, 5, 4), 1.0),)
    assert Quantile(0.8).on_map(heat - 40, PICTURE) == (ScoredBox(Box(1, 3, 5, 4), 0.0),)  # maximum < 0
    for nothing in (np.ones((4, 5)), np.where(heat == 3, np.nan, heat)):
        assert Quantile().on_map(nothing, PICTURE) == WHOLE


def test_fixed_level():
    assert FixedLevel(6.0).on_map(MAP, PICTURE) == (ScoredBox(Box(3, 1, 5, 2), 8 / 9),)
    assert corners(FixedLevel(6.0, components="all").on_map(MAP, PICTURE)) == [(3, 1, 5, 2), (0, 3, 1, 4)]
    assert FixedLevel(9.0).on_map(MAP, PICTURE) == WHOLE
    assert FixedLevel(-9.0).on_map(-MAP, PICTURE) == (ScoredBox(Box(0, 0, 5, 4), 0.0),)  # all but the lone −9
    assert FixedLevel().on_map(np.where(MAP == 3, np.nan, MAP), PICTURE) == WHOLE


def test_the_number_to_report():
    assert [FractionOfMax(0.3).level, Quantile(0.7).level, FixedLevel(2.0).level, TightLoose().level] == [
        0.3,
        0.7,
        2.0,
        None,
    ]


def test_a_coarse_or_fine_map_is_laid_over_the_picture():
    assert corners(FractionOfMax(0.25).on_map(MAP, Size(40, 100))) == [(40, 10, 100, 40)]
    assert corners(FractionOfMax(0.25).on_map(np.kron(MAP, np.ones((3, 2))), PICTURE)) == [(2, 1, 5, 4)]
    assert corners(FractionOfMax(0.25).on_map(MAP, Size(7, 3)))[0][2:] == (3, 7)  # the far corner is exact


def test_on_maps_thresholds_after_upsampling():
    hot = np.zeros((2, 2, 4, 4), np.float32)
    hot[0, 0, 1, 2], hot[0, 1, 0, 0], hot[1, 0, 3, 3] = 1, 2, -1
    views = (View.whole(Size(80, 120), Size(40, 40)), View.whole(Size(60, 40), Size(40, 40), flip=True))
    first, second = FractionOfMax(0.5)(heat_maps(hot, views))
    # A lone cell falls linearly to 0 at its neighbours' centres: half its peak lies at ± half a cell, here 10
    # × 15.
    assert first == ((ScoredBox(Box(60, 20, 90, 40), 1.0),), (ScoredBox(Box(0, 0, 30, 20), 1.0),))
    assert second == tuple((ScoredBox(Box(0, 0, 40, 60), 0.0, whole=True),) for _ in range(2))


def test_large_pictures_are_sampled_at_most_max_side():
    hot = np.zeros((1, 1, 4, 4), np.float32)
    hot[0, 0, 1, 2] = 1
    ((found,),) = FractionOfMax(0.5)(heat_maps(hot, (View.whole(Size(3000, 4000), Size(40, 40)),)))
    assert np.allclose(found[0].box.corners, (2000, 750, 3000, 1500), atol=4000 / MAX_SIDE)


def test_one_pixel_and_bfloat16():
    assert FractionOfMax().on_map(np.array([[2.0]]), Size(1, 1)) == (
        ScoredBox(Box(0, 0, 1, 1), 0.0, whole=True),
    )
    maps = heat_maps(MAP[None, None], (View.whole(PICTURE),))
    half = HeatMaps(maps.values.bfloat16(), None, maps.scores, maps.grid, maps.views, "by hand", "nothing")
    assert FractionOfMax(0.25)(half) == FractionOfMax(0.25)(maps)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: FractionOfMax(20), "0 to 1"),
        (lambda: FractionOfMax(float("nan")), "0 to 1"),
        (lambda: FractionOfMax("0.2"), "a number"),
        (lambda: FractionOfMax(components="both"), "largest | all"),
        (lambda: FractionOfMax(connectivity=6), "8 | 4"),
        (lambda: Quantile(-0.1), "0 to 1"),
        (lambda: Quantile(connectivity=5), "8 | 4"),
        (lambda: FixedLevel(float("inf")), "number"),
        (lambda: FixedLevel(components="none"), "largest | all"),
        (lambda: FractionOfMax().on_map(np.zeros((2, 3, 4)), PICTURE), "(H, W)"),
        (lambda: Quantile().on_map(np.zeros((0, 4)), PICTURE), "(H, W)"),
    ],
)
def test_refusals(make, word):
    with pytest.raises(UsageError) as error:
        make()
    assert word in str(error.value)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_equals_the_formula(data):
    height, width = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))
    cells = data.draw(st.lists(st.integers(-2, 4), min_size=height * width, max_size=height * width))
    heat = np.array(cells, np.float32).reshape(height, width)
    threshold, connectivity = (
        data.draw(st.sampled_from([0, 0.2, 0.25, 0.5, 0.9])),
        data.draw(st.sampled_from([4, 8])),
    )
    normalise = data.draw(st.booleans())
    (found,) = FractionOfMax(threshold, "largest", connectivity, normalise).on_map(heat, Size(height, width))
    expected = largest_component(heat, threshold, connectivity, normalise)
    if expected is None:
        assert found == ScoredBox(Box(0, 0, width, height), 0.0, whole=True)
    else:
        assert found == ScoredBox(Box(*map(float, expected[0])), expected[1])


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 11)),
    st.integers(0, 2**32 - 1),
    st.floats(0, 0.95),
    st.sampled_from([4, 8]),
)
def test_the_largest_by_runs_is_the_largest_by_labels(shape, seed, threshold, connectivity):
    """Ties in area and pixels at all four edges included."""
    heat = np.random.default_rng(seed).integers(-1, 4, shape).astype(np.float64)
    rule = {"threshold": threshold, "connectivity": connectivity}
    largest = FractionOfMax(components="largest", **rule).on_map(heat, Size(*shape))
    every = FractionOfMax(components="all", **rule).on_map(heat, Size(*shape))
    assert largest == every[:1]
