"""A new softmax on frozen features, from few training pictures to many."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp

from camlucida.errors import UsageError
from camlucida.features import Transfer, random_splits, softmax, transfer
from camlucida.features.transfer import nested
from camlucida.report import features_transfer as figures
from camlucida.values import Label
from features.laid_out import clouds


@pytest.mark.parametrize("classes", [2, 3])
def test_the_softmax_minimises_what_it_says(classes):
    """By a general minimiser over the stated objective."""
    rows = clouds(classes=classes, each=8, width=4)
    x, own, c = np.asarray(rows.values, float), np.array([r[0] for r in rows.labels]), 0.7

    def objective(free):
        weights, bias = free[: classes * 4].reshape(classes, 4), free[classes * 4 :]
        logits = x @ weights.T + bias
        return c * (logsumexp(logits, axis=1) - logits[np.arange(len(own)), own]).sum() + 0.5 * (weights**2).sum()  # fmt: skip

    best = minimize(objective, np.zeros(classes * 5), method="BFGS", options={"gtol": 1e-6})
    made = softmax(rows, c=c, normalise="none", tolerance=1e-8)
    np.testing.assert_allclose(made.weights.ravel(), best.x[: classes * 4], atol=2e-3)
    assert objective(np.concatenate([made.weights.ravel(), made.bias])) == pytest.approx(best.fun, abs=1e-4)


def test_few_pictures_are_among_the_many():
    rows = clouds(each=12)
    (split,) = random_splits(rows, 8)
    sets = nested(rows, split, [1, 3, 8])
    own = np.array([r[0] for r in rows.labels])
    for count, some in zip([1, 3, 8], sets, strict=True):
        assert np.bincount(own[some]).tolist() == [count] * 3
    assert set(sets[0]) < set(sets[1]) < set(sets[2]) == set(split.train)
    other = next(random_splits(rows, 8, seed=1))
    assert not np.array_equal(nested(rows, other, [1])[0], sets[0])


def test_curves_are_of_the_same_pictures_and_rise_with_more_of_them():
    rng = np.random.default_rng(0)
    rows = clouds(classes=4, each=40, width=8)
    centres = rng.normal(0, 1, (4, 8))
    own = np.array([r[0] for r in rows.labels])
    noisy = replace(rows, values=(centres[own] + rng.normal(0, 1.3, (160, 8))).astype(np.float32))
    curve = transfer(noisy, [30, 1, 5], splits=3, normalise="none", c=0.1)
    assert curve.counts == (1, 5, 30)
    assert curve.tested == (40, 40, 40)
    recall = curve.figures["mean class recall"]
    assert recall.shape == (3, 3)
    means = curve.mean("mean class recall")
    assert means[0] < means[2] - 0.05
    split = next(random_splits(noisy, 30, seed=1))
    few = softmax(noisy, nested(noisy, split, [5])[0], normalise="none", c=0.1)
    hits = few.decide(noisy.values[split.test]).argmax(1) == own[split.test]
    assert curve.figures["accuracy"][1, 1] == pytest.approx(hits.mean())
    np.testing.assert_allclose(curve.deviation("accuracy"), curve.figures["accuracy"].std(0, ddof=1))
    same = transfer(noisy, [5], splits=1, normalise="none", c=0.1, test=3)
    assert same.tested == (12,)
    assert same.deviation("accuracy").tolist() == [0.0]


def test_hand_made_curves_are_said_in_words():
    def curve(*means):
        values = np.array([means, means], float) + np.array([[-0.01], [0.01]])
        return Transfer((1, 5, 15), {"mean class recall": values, "accuracy": values}, (9, 9))

    said = figures.finding({"trained": curve(0.2, 0.5, 0.6), "random": curve(0.1, 0.15, 0.3)})
    assert "trained: mean class recall 20.0 % from 1 training picture a class, 60.0 % from 15." in said
    assert "With 5 training pictures a class trained is no worse than random with 15." in said
    (row, *_), *_ = [figures.rows({"trained": curve(0.2, 0.5, 0.6)})]
    assert (row["mean_class_recall"], row["recall_std"]) == (20.0, 1.41)


def test_what_cannot_be_is_refused():
    rows = clouds()
    with pytest.raises(UsageError, match="one label a picture"):
        softmax(replace(rows, labels=((0, 1), *rows.labels[1:])))
    with pytest.raises(UsageError, match="no picture of class 2"):
        softmax(rows, np.arange(24))
    with pytest.raises(UsageError, match="at least two classes"):
        softmax(replace(rows, labels=((0,),) * len(rows), classes=(Label("c", "c"),)))
    with pytest.raises(UsageError, match="≥ 1"):
        transfer(rows, [0, 3])
    with pytest.raises(UsageError, match="smaller --train"):
        transfer(rows, [12])
