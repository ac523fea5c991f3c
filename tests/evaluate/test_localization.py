"""Figures small enough to check by hand."""

import numpy as np
import pytest

from camlucida.errors import InputError, UsageError
from camlucida.evaluate.localization import Tally, constant_boxes, finite, rank_of
from camlucida.values import Box, ScoredBox, Size


def test_tally_by_hand():
    tally = Tally(level=0.5)
    truth, size = (Box(0, 0, 10, 20),), Size(20, 40)
    sweep = np.array([[0, 0, 40, 20], [0, 0, 10, 10], [0, 0, 10, 9.9]])  # IoU 0.25, exactly 0.5, below
    thresholds = np.array([0.0, 0.5, 0.9])
    tally.add(
        1, np.array([0.2, 0.7, 0.1]), size, truth, (ScoredBox(Box(0, 0, 10, 10), 1.0),), sweep, thresholds
    )
    tally.add(
        2, np.array([0.4, 0.3, 0.3]), size, truth, (ScoredBox(Box(20, 0, 30, 10), 1.0),), sweep, thresholds
    )
    tally.add(
        0, np.array([0.6, 0.3, 0.1]), size, (), (ScoredBox(Box(0, 0, 40, 20), 0.0, True),), sweep, thresholds
    )
    measured = tally.measured()
    assert measured.ranks.tolist() == [1, 3, 1]  # a tie goes to the lower index: class 2 comes behind class 1
    assert measured.curve.tolist() == [
        0.0,
        100.0,
        0.0,
    ]  # "0.5 or more"; the picture without a box does not count
    report = measured.report()
    assert report["top1"]["percent"] == pytest.approx(66.67)
    assert report["top5"]["percent"] == 100.0
    assert report["gt_known"]["percent"] == 50.0
    assert report["top1_localization"]["percent"] == 50.0
    assert report["best_on_this_set"] == {"threshold": 0.5, "gt_known": 100.0}
    assert report["with_boxes"] == 2


def test_what_is_no_number_ranks_nothing():
    assert rank_of(np.array([0.2, np.nan, 0.8]), 1) == 4
    assert rank_of(np.array([0.2, 0.5, 0.5]), 2) == 2
    with pytest.raises(InputError, match="NaN"):
        finite(np.array([0.2, np.nan]))


def test_constant_boxes_by_hand():
    size = Size(100, 200)
    centred = (Box(40, 20, 160, 80),)  # 0.6 × 0.6 of the picture, in the middle: IoU with the whole is 0.36
    whole = (Box(0, 0, 200, 100),)
    found = constant_boxes([(centred, size), (centred, size), (whole, size)])
    assert found["whole_picture"] == pytest.approx(33.33)
    assert found["best_centred_box"] == 100.0  # a box of share s² in between: 0.36/s² ≥ 0.5 and s² ≥ 0.5
    assert 0.5 <= found["best_centred_box_width"] * found["best_centred_box_height"] <= 0.72


def test_nothing_usable_says_why():
    tally = Tally()
    tally.rejected.append(("a.png", "empty file"))
    with pytest.raises(UsageError, match="empty file"):
        tally.measured()
