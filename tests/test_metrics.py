"""Overlap of boxes and top-k, against values worked out by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from camlucida.errors import UsageError
from camlucida.metrics import (
    bootstrap_interval,
    bootstrap_means,
    box_iou,
    top_k,
    top_k_accuracy,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("a", "b", "half_open", "inclusive"),
    [
        ((0, 0, 4, 2), (0, 0, 4, 2), 1, 1),
        ((0, 0, 4, 2), (2, 0, 6, 2), Fraction(4, 12), Fraction(9, 21)),  # 5 × 3 pixels each, 3 × 3 shared
        ((0, 0, 4, 2), (1, 1, 2, 2), Fraction(1, 8), Fraction(4, 15)),  # one inside the other
        ((0, 0, 4, 2), (4, 0, 8, 2), 0, Fraction(3, 27)),  # an edge: as pixels they share a column
        ((0, 0, 4, 2), (5, 0, 8, 2), 0, 0),
        ((0, 0, 4, 2), (0, 9, 4, 12), 0, 0),
        ((0, 0, 4, 2), (9, 9, 12, 12), 0, 0),  # apart on both axes: two negative overlaps make no area
        ((3, 3, 3, 3), (3, 3, 3, 3), 0, 1),  # nothing, or one pixel
        ((3, 3, 3, 3), (0, 0, 9, 9), 0, Fraction(1, 100)),
        ((4, 2, 0, 0), (4, 2, 0, 0), 0, 0),  # inverted
        ((4, 2, 0, 0), (0, 0, 4, 2), 0, 0),
        ((0.5, 0.25, 1.5, 0.75), (1.0, 0.25, 2.0, 0.75), Fraction(1, 3), Fraction(9, 15)),
    ],
)
def test_overlap_by_hand(a, b, half_open, inclusive):
    for convention, expected in (("half-open", half_open), ("inclusive", inclusive)):
        assert box_iou(a, b, convention) == pytest.approx(float(expected), abs=1e-15), convention
        assert box_iou(b, a, convention) == box_iou(a, b, convention)


def test_half_open_is_what_is_meant_unless_said():
    assert box_iou((0, 0, 4, 2), (4, 0, 8, 2)) == 0
    with pytest.raises(UsageError, match=r"'closed'.*half-open \| inclusive"):
        box_iou((0, 0, 1, 1), (0, 0, 1, 1), "closed")


def test_leading_axes_broadcast():
    first, second = (
        np.array([[0, 0, 4, 2], [0, 0, 2, 2], [9, 9, 9, 9]]),
        np.array([[0, 0, 4, 2], [2, 0, 4, 2]]),
    )
    table = box_iou(first[:, None], second[None])
    np.testing.assert_allclose(table, [[1, 0.5], [0.5, 0], [0, 0]], atol=1e-15)


corner = st.integers(0, 9)


@settings(deadline=None, max_examples=60)
@given(st.tuples(corner, corner, corner, corner), st.tuples(corner, corner, corner, corner))
def test_overlap_is_counted_pixels(a, b):
    def pixels(box, extra):
        x0, y0, x1, y1 = box
        return {(x, y) for x in range(x0, x1 + extra) for y in range(y0, y1 + extra)}

    for convention, extra in (("half-open", 0), ("inclusive", 1)):
        one, other = pixels(a, extra), pixels(b, extra)
        expected = len(one & other) / len(one | other) if one | other else 0
        assert box_iou(a, b, convention) == pytest.approx(expected, abs=1e-15)


def test_ties_go_to_the_lower_index():
    scores = [[1, 3, 3, 0, 3], [2, 2, 2, 2, 2], [5, 4, 3, 2, 1]]
    assert top_k(scores, 3).tolist() == [[1, 2, 4], [0, 1, 2], [0, 1, 2]]
    assert top_k(scores, 9).shape == (3, 5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int8, np.int64, np.float16, np.float64, np.bool_])
def test_top_k_takes_any_kind_of_number(dtype):
    scores = np.array([[0, 1, 0, 1]]).astype(dtype)
    assert top_k(scores, 4).tolist() == [[1, 3, 0, 2]]


def test_a_score_that_is_no_number_comes_last():
    assert top_k([[math.nan, -math.inf, 7.0]], 3).tolist() == [[2, 1, 0]]


def test_top_k_accuracy_by_hand():
    scores = [[3, 2, 1], [3, 2, 1], [3, 2, 1], [3, 3, 3]]
    truth = [0, 1, 2, 2]
    assert [top_k_accuracy(scores, truth, k) for k in (1, 2, 3)] == [0.25, 0.5, 1.0]
    assert math.isnan(top_k_accuracy(np.zeros((0, 3)), np.zeros(0, int), 1))


def test_wilson_interval_against_its_definition():
    # Its ends are the shares p whose distance to what was seen is z standard errors under p itself.
    for successes, trials in ((7, 20), (1, 3), (480, 500), (0.5, 9)):
        low, high = wilson_interval(successes, trials)
        seen = successes / trials
        assert low < seen < high
        for end in (low, high):
            assert abs(end - seen) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / trials), abs=1e-12)


@pytest.mark.parametrize("trials", [1, 2, 3, 7, 10, 100, 12345])
def test_wilson_interval_stays_between_0_and_1(trials):
    low, high = wilson_interval(0, trials)
    assert 0 <= low < 1e-15
    assert high == pytest.approx(1.96**2 / (trials + 1.96**2))
    low, high = wilson_interval(trials, trials)
    assert 1 - 1e-15 < high <= 1
    assert low == pytest.approx(trials / (trials + 1.96**2))
    assert wilson_interval(0, 0) == (0, 1)


def test_bootstrap_of_a_mean_has_its_standard_error():
    values = np.random.default_rng(3).normal(5, 2, 400)
    low, high = bootstrap_interval(values, repeats=4000)
    error = values.std() / 20
    assert (low, high) == pytest.approx(
        (values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.02
    )
    narrow = bootstrap_interval(values, repeats=4000, level=0.5)
    assert narrow[1] - narrow[0] == pytest.approx(2 * 0.674 * error, rel=0.05)
    assert bootstrap_interval(values) == bootstrap_interval(values) != bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, np.mean, repeats=4000) == pytest.approx((low, high), abs=0.02)


def test_bootstrap_of_any_statistic_and_of_little():
    values = np.arange(101.0)
    low, high = bootstrap_interval(values, np.median)
    assert 25 < low < 50 < high < 75
    assert bootstrap_interval([3.0, 3.0]) == (3, 3)
    assert bootstrap_interval([True]) == (1, 1)
    assert np.isnan(bootstrap_interval([])).all()
    assert np.isnan(bootstrap_means(np.zeros((0, 4)), repeats=3)).all()
    with pytest.raises(UsageError, match="mean"):
        bootstrap_interval([1.0], "median")
    with pytest.raises(UsageError, match="level"):
        bootstrap_interval([1.0], level=95)


def test_columns_are_resampled_together():
    values = np.random.default_rng(0).random((7, 2, 3))
    means = bootstrap_means(values, repeats=50)
    assert means.shape == (50, 2, 3)
    np.testing.assert_allclose(bootstrap_means(values[:, 1, 2], repeats=50), means[:, 1, 2])
    np.testing.assert_allclose(bootstrap_means(1 - values, repeats=50), 1 - means)


def test_bootstrap_draws_do_not_depend_on_how_many_fit_at_once(monkeypatch):
    values = np.random.default_rng(0).random(1001)
    monkeypatch.setattr("camlucida.metrics.TOGETHER", 5000)
    few = bootstrap_means(values, repeats=40)
    monkeypatch.setattr("camlucida.metrics.TOGETHER", 2**22)
    np.testing.assert_allclose(few, bootstrap_means(values, repeats=40), rtol=1e-12)
