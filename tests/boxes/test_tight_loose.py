"""Section 3.2: the tight/loose pair and the five guesses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camlucida.boxes import FixedLevel, FractionOfMax, TightLoose, top5_guesses
from camlucida.errors import UsageError
from camlucida.values import Box, Grid, HeatMaps, ScoredBox, Size, View
from oracles.boxes import tight_loose


def plain(**options):
    """Without erosion and border, so that boxes can be read off the map."""
    return TightLoose(**{"erosion": 0.0, "border": 0.0} | options)


def corners(found):
    return [one.box.corners for one in found]


def test_nested_plateaus():
    heat = np.zeros((20, 30))
    heat[2:18, 3:27] = 60  # above 20
    heat[4:10, 5:12] = 255  # above 100 and 110: 42 of 384 pixels, wholly inside, so not dropped
    tight, loose = plain().on_map(heat, Size(20, 30))
    assert loose == ScoredBox(Box(3, 2, 27, 18), 1.0)
    # The smaller box covers 42 / 384 of the larger, at most half: it stays.
    assert tight == ScoredBox(Box(5, 4, 12, 10), 1.0)


def test_a_box_that_covers_more_than_half_of_the_larger_is_dropped():
    heat = np.zeros((12, 20))
    heat[0:10, 0:10] = 60
    heat[0:10, 0:6] = 200  # covers 60 of 100
    heat[0:2, 15:18] = 60
    tight, loose = plain().on_map(heat, Size(12, 20))
    assert corners((tight, loose)) == [(15, 0, 18, 2), (0, 0, 10, 10)]
    assert tight.score == pytest.approx(60 / 200)
    assert loose.score == 1.0
    assert corners(plain(overlap=0.6).on_map(heat, Size(12, 20))) == [(0, 0, 6, 10), (0, 0, 10, 10)]


def test_a_single_box_is_used_twice():
    heat = np.zeros((9, 14))
    heat[1:5, 2:11] = 7.0
    assert corners(plain().on_map(heat, Size(9, 14))) == [(2, 1, 11, 5)] * 2


def test_a_hole_has_a_rectangle_one_pixel_larger():
    heat = np.full((14, 22), 0.0)
    heat[0:14, 0:20] = 1.0
    heat[4:7, 5:9] = 0.0  # a hole
    heat[10:14, 15:18] = 0.0  # a bay, open to the border: no hole
    assert corners(plain().on_map(heat, Size(14, 22))) == [(4, 3, 10, 8), (0, 0, 20, 14)]


def test_a_diagonal_gap_does_not_open_a_hole():
    ring = np.array([[0, 1, 1, 0, 0], [1, 0, 0, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    # One 8-connected ring (4 × 3); its hole is 2 × 1, closed at the corners, with the same rectangle.
    assert corners(plain().on_map(ring, Size(4, 5))) == [(0, 0, 4, 3)] * 2


def test_right_and_bottom_stay_inside_the_border():
    heat = np.zeros((30, 40))
    heat[3:30, 4:40] = 1.0
    assert corners(plain(border=5.0).on_map(heat, Size(30, 40))) == [(4, 3, 35, 25)] * 2
    assert (
        corners(plain(border=5.0).on_map(heat[::2, ::2], Size(30, 40))) == [(4, 4, 35, 25)] * 2
    )  # source pixels
    heat = np.zeros((30, 40))
    heat[27:, 37:] = 1.0  # only in the border
    assert (
        plain(border=5.0).on_map(heat, Size(30, 40)) == (ScoredBox(Box(0, 0, 40, 30), 0.0, whole=True),) * 2
    )


def test_erosion_takes_the_thin_parts():
    heat = np.zeros((120, 130))
    heat[5:106, 5:106] = 1.0  # deepest pixel 51 from the background: 10 / 255 of it is 2.0
    heat[50, 106:125] = 1.0  # a tail one pixel wide
    # Column 104 stays only where the tail begins: there the background is √5 away.
    assert corners(plain(erosion=10.0).on_map(heat, Size(120, 130))) == [(7, 7, 105, 104)] * 2
    assert corners(plain().on_map(heat, Size(120, 130))) == [(5, 5, 125, 106)] * 2


def test_levels_are_strict_eight_bit_values():
    heat = np.array([[255.0, 20.49, 20.5, -3.0]])  # 255, 20, 21, 0
    assert corners(plain(levels=(20,)).on_map(heat, Size(1, 4))) == [(2, 0, 3, 1), (0, 0, 1, 1)]
    assert corners(plain(levels=(254,)).on_map(heat, Size(1, 4))) == [(0, 0, 1, 1)] * 2


def test_a_mask_without_background_keeps_all():
    heat = np.linspace(0.5, 1, 40 * 30).reshape(40, 30)
    assert corners(TightLoose(levels=(20,)).on_map(heat, Size(40, 30))) == [(0, 0, 25, 35)] * 2


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_equals_the_formula(data):
    height, width = data.draw(st.integers(2, 9)), data.draw(st.integers(2, 9))
    cells = data.draw(
        st.lists(
            st.sampled_from([-9, 0, 15, 30, 90, 105, 115, 255]),
            min_size=height * width,
            max_size=height * width,
        )
    )
    heat = np.array(cells, np.float32).reshape(height, width)
    if heat.max() <= 0 or heat.min() == heat.max():
        return
    options = {
        "erosion": data.draw(st.sampled_from([0.0, 10.0, 130.0])),
        "overlap": data.draw(st.sampled_from([0.3, 0.5])),
        "border": data.draw(st.sampled_from([0.0, 1.0, 5.0])),
    }
    found = TightLoose(**options).on_map(heat, Size(height, width))
    expected = tight_loose(heat, **options)
    if expected is None:
        assert all(one.whole for one in found)
    else:
        assert corners(found) == list(expected)
        for one in found:
            assert 0 <= one.score <= 1


def five_maps(count=6):
    values = torch.zeros(2, count, 8, 10)
    for k in range(count):
        values[0, k, 1:7, k : k + 4] = 60.0
        values[0, k, 2:4, k + 1 : k + 3] = 255.0
        values[1, k, k, :] = 1.0
    views = (View.whole(Size(8, 10)),) * 2
    return HeatMaps(
        values, None, torch.zeros(2, count), Grid((8, 10), (0.5, 0.5), (1, 1), (1, 1)), views, "by hand", "x"
    )


def test_five_guesses_of_five_classes():
    first, second = top5_guesses(five_maps())
    assert [(k, one.box.corners) for k, one in first] == [(k, (k, 1, k + 4, 7)) for k in range(5)]
    assert [(k, one.box.corners) for k, one in second] == [(k, (0, k, 10, k + 1)) for k in range(5)]
    first, _ = top5_guesses(five_maps(), rule=FixedLevel(100.0, components="all"))
    assert [(k, one.box.corners) for k, one in first] == [(k, (k + 1, 2, k + 3, 4)) for k in range(5)]
    assert top5_guesses(five_maps(), rule=FractionOfMax(0.2)) == top5_guesses(five_maps())


def test_five_guesses_loose_before_tight():
    first, second = top5_guesses(five_maps(3), mode="tight_loose", rule=plain())
    loose, tight = [(k, 1, k + 4, 7) for k in range(3)], [(k + 1, 2, k + 3, 4) for k in range(3)]
    boxes = [loose[0], tight[0], loose[1], tight[1], loose[2]]
    assert [(k, one.box.corners) for k, one in first] == list(zip([0, 0, 1, 1, 2], boxes, strict=True))
    assert [k for k, _ in second] == [0, 0, 1, 1, 2]


def test_five_guesses_refuse():
    with pytest.raises(UsageError, match=r"4 targets.*at least 5"):
        top5_guesses(five_maps(4))
    with pytest.raises(UsageError, match=r"2 targets.*at least 3"):
        top5_guesses(five_maps(2), mode="tight_loose")
    with pytest.raises(UsageError, match=r"simple \| tight_loose"):
        top5_guesses(five_maps(), mode="loose")
    with pytest.raises(UsageError, match="TightLoose"):
        top5_guesses(five_maps(), mode="tight_loose", rule=FractionOfMax())


@pytest.mark.parametrize(
    "options",
    [
        {"levels": ()},
        {"levels": (20, 255)},
        {"levels": 20},
        {"erosion": 255},
        {"overlap": 1.1},
        {"border": -1},
    ],
)
def test_refusals(options):
    with pytest.raises(UsageError):
        TightLoose(**options)
