"""Localization error by ILSVRC's rules, worked out by hand and by a slow loop."""

from __future__ import annotations

import numpy as np
import pytest

from camlucida.errors import InputError, UsageError
from camlucida.evaluate.ilsvrc import localization_error, localized, on_blacklist, read_blacklist
from camlucida.values import Box, ScoredBox
from oracles.wsol import iou

WHOLE, HALF, FAR = (0, 0, 9, 9), (0, 0, 9, 4), (20, 20, 29, 29)  # inclusive: 100, 50 and 100 pixels


def test_by_hand():
    guesses = [
        [(3, HALF), (4, WHOLE)],  # class right, overlap exactly a half
        [(4, WHOLE), (3, WHOLE)],  # wrong class first
        [(3, FAR), (3, FAR), (3, WHOLE)],  # the same class again, with another box: the third is right
        [(4, WHOLE)],  # right place, never the right class
        [],
        [(7, FAR)],  # two objects, the second fits
    ]
    truths = [[(3, WHOLE)]] * 5 + [[(7, WHOLE), (7, FAR), (3, HALF)]]
    found = localization_error(guesses, truths)
    assert found.right.tolist() == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
        [False, False, False],
        [False, False, False],
        [True, False, False],
    ]
    assert [found.error(k) for k in (1, 2, 3, 5)] == pytest.approx([400 / 6, 300 / 6, 200 / 6, 200 / 6])
    strict = localization_error(guesses, truths, strict=True)
    assert strict.hits(1).tolist() == [False, False, False, False, False, True]
    low, high = found.interval(1)
    assert low < found.error(1) < high


def test_a_box_counts_for_its_own_class_alone():
    found = localization_error([[(1, FAR), (2, FAR)]], [[(1, WHOLE), (2, FAR)]])
    assert found.right.tolist() == [[False, True]]


def test_conventions():
    # Inclusive corners 0…3 and 0…1: 4 and 2 pixels wide, overlap 1/2; as half-open corners 3 and 1 wide, overlap 1/3.
    guesses, truths = [[(0, (0, 0, 1, 0))]], [[(0, (0, 0, 3, 0))]]
    assert localization_error(guesses, truths).error(1) == 0
    assert (
        localization_error([[(0, (0, 0, 1, 2))]], [[(0, (0, 0, 3, 2))]], convention="half-open").error(1)
        == 100
    )
    # A Box is half-open in either.
    own = [[(0, Box(0, 0, 2, 1))]], [[(0, ScoredBox(Box(0, 0, 4, 1), 1.0))]]
    for convention in ("inclusive", "half-open"):
        assert localization_error(*own, convention=convention).error(1) == 0
        assert localization_error(*own, convention=convention, strict=True).error(1) == 100
    assert localization_error(own[0], truths).error(1) == 0


def test_equals_a_slow_loop():
    generator = np.random.default_rng(8)

    def some(count):
        starts = generator.integers(0, 4, (count, 2))
        boxes = np.hstack([starts, starts + generator.integers(2, 6, (count, 2))])
        return [(int(c), box) for c, box in zip(generator.integers(0, 3, count), boxes, strict=True)]

    guesses, truths = [some(5) for _ in range(80)], [some(int(n)) for n in generator.integers(1, 4, 80)]
    found = localization_error(guesses, truths)
    for k in (1, 5):
        wrong = 0
        for tried, true in zip(guesses, truths, strict=True):
            wrong += all(c != d or iou(a, b, 1) < 0.5 for c, a in tried[:k] for d, b in true)
        assert 0 < wrong < 80
        assert found.error(k) == pytest.approx(100 * wrong / 80)


def test_blacklisted_pictures_leave_numerator_and_denominator(tmp_path):
    guesses, truths = [[(0, WHOLE)], [(1, WHOLE)], [(1, WHOLE)], [(0, WHOLE)]], [[(0, WHOLE)]] * 3 + [[]]
    assert localization_error(guesses, truths).error(1) == pytest.approx(200 / 3)  # no truth: does not count
    assert localization_error(guesses, truths, blacklist=[1]).error(1) == 50
    (tmp_path / "blacklist.txt").write_text("36\n\n 37 \n")
    entries = read_blacklist(tmp_path / "blacklist.txt")
    assert entries == {"36", "37"}
    names = [f"val/ILSVRC2012_val_{n:08d}.JPEG" for n in (35, 36, 37, 136)]
    found = localization_error(guesses, truths, blacklist=entries, names=names)
    assert found.counted.tolist() == [True, False, False, False]
    assert found.error(1) == 0
    assert np.isnan(localization_error(guesses, truths, blacklist=range(4)).error(1))
    assert np.isnan(localization_error([], []).error(5))
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        read_blacklist(tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    ("entry", "listed"),
    [
        ("a/cat_007.jpg", True),
        ("cat_007.jpg", True),
        ("cat_007", True),
        ("007", True),
        ("7", True),
        ("07", False),
        ("cat", False),
    ],
)
def test_what_an_entry_names(entry, listed):
    assert on_blacklist("a/cat_007.jpg", {entry, "other"}) is listed
    assert not on_blacklist("a/cat.jpg", {"7"})


def test_localized_by_hand():
    found = localized([True, True, True, False, True], [1, 3, 9, 1, 5])
    assert (found.gt_known, found.top1, found.top5) == pytest.approx((80, 20, 60))
    assert found.gt_known_interval[0] < 80 < found.gt_known_interval[1]
    assert found.top1_interval == (0, 60)
    assert found.top5_interval == (20, 100)
    assert np.isnan(localized([], []).top1)
    with pytest.raises(UsageError, match="from 1"):
        localized([True], [0])
    with pytest.raises(UsageError, match=r"\(N,\)"):
        localized([True, False], [1])


def test_lists_of_different_length_are_refused():
    with pytest.raises(UsageError, match="guesses for 1 pictures, truths for 0"):
        localization_error([[(0, WHOLE)]], [])
    with pytest.raises(UsageError, match="inclusive"):
        localization_error([], [], convention="closed")
