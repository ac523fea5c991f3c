"""The SVM against its own objective written out, its choice of C, its splits and figures against hand-worked cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from laid_out import block, clouds
from scipy.optimize import minimize

import camlucida as cl
from camlucida.features import (  # fmt: skip
    Features,
    LinearSVM,
    Split,
    figures_of,
    fit,
    judge,
    l2,
    published_split,
    random_splits,
    stacked,
    summary,
)
from camlucida.features.svm import choose_c, hold_out, truth
from camlucida.values import Label


def solved(x, y, c):
    """½ (‖w‖² + b²) + C Σ max(0, 1 − y (w·x + b))², minimised by another solver: LIBLINEAR's bias is a feature of ones."""
    x = np.c_[x, np.ones(len(x))]

    def objective(w):
        slack = np.maximum(0, 1 - y * (x @ w))
        return w @ w / 2 + c * (slack**2).sum(), w - 2 * c * x.T @ (y * slack)

    found = minimize(objective, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-9})  # fmt: skip
    return found.x[:-1], found.x[-1]


@pytest.mark.parametrize("how", ["l2", "standard", "none"])
@pytest.mark.parametrize("classes", [2, 3])
def test_weights_minimise_the_squared_hinge(how, classes):
    two = (block(2), block(4, 2))
    features = clouds(classes, blocks=two)
    found = fit(features, normalise=how, c=0.7, tolerance=1e-8)
    x = features.values.astype(np.float64)
    if how == "l2":
        x = np.concatenate([part / np.linalg.norm(part, axis=1, keepdims=True) for part in (x[:, :2], x[:, 2:])], 1) / np.sqrt(2)  # fmt: skip
    elif how == "standard":
        x = (x - x.mean(0)) / x.std(0)
    own = np.array([row[0] for row in features.labels])
    for k in range(classes):
        w, b = solved(x, np.where(own == k, 1.0, -1.0), 0.7)
        np.testing.assert_allclose(found.weights[k], w, atol=1e-4)
        np.testing.assert_allclose(found.bias[k], b, atol=1e-4)
    np.testing.assert_allclose(found.decide(features), x @ found.weights.T + found.bias, atol=1e-9)
    weights, bias = found.linear(features.values)
    plain = np.einsum("ncd,nd->nc", np.broadcast_to(weights, (len(x), *weights.shape[1:])), features.values)
    np.testing.assert_allclose(plain + bias, found.decide(features), atol=1e-6)


def test_difficult_pictures_count_neither_way():
    features = clouds(3, each=8)
    labels = tuple((*row, 2) if i % 3 == 0 and row[0] != 2 else row for i, row in enumerate(features.labels))
    difficult = tuple((2,) if i in (0, 3, 20) else () for i in range(len(labels)))
    several = replace(features, labels=labels, difficult=difficult)
    found = fit(several, tolerance=1e-8)
    assert not found.notes
    counts = np.array([2 not in row for row in difficult])
    x, y = l2(several.values, several.blocks), np.array([1.0 if 2 in row else -1.0 for row in labels])
    w, b = solved(x[counts], y[counts], 1.0)
    np.testing.assert_allclose(found.weights[2], w, atol=1e-4)
    np.testing.assert_allclose(found.bias[2], b, atol=1e-4)
    assert several.multi_label


def test_a_solver_that_stops_early_says_so():
    assert "1,000 passes" in fit(clouds(3), normalise="none", c=1000.0, tolerance=1e-9).notes[0]


def test_average_precision_leaves_difficult_pictures_out():
    answers = np.array([[1, -1], [0, 1], [-1, 1], [1, -1]])
    decisions = np.array([[0.9, 0.1], [0.8, 0.7], [0.5, 0.2], [0.4, 0.6]])
    figures, per_class = figures_of(decisions, answers)
    # class 0: yes, (difficult), no, yes: precisions 1 and 2/3; class 1: yes, no, yes.
    np.testing.assert_allclose(per_class, [(1 + 2 / 3) / 2, (1 + 2 / 3) / 2])
    eleven = (6 * 1 + 5 * 2 / 3) / 11
    assert figures == pytest.approx({"mean average precision": 5 / 6, "mean average precision, 11 points": eleven})  # fmt: skip


def test_mean_class_recall_weighs_classes_not_pictures():
    answers = np.array([[1, -1], [1, -1], [1, -1], [-1, 1]])
    decisions = np.array([[3.0, 1], [2, 1], [-1, 0], [0, 5]])
    figures, per_class = figures_of(decisions, answers)
    assert figures == pytest.approx({"mean class recall": (2 / 3 + 1) / 2, "accuracy": 0.75})
    np.testing.assert_allclose(per_class, [2 / 3, 1])


def test_c_is_chosen_on_a_fifth_of_each_class_and_all_train_again():
    features = clouds(3, each=10, seed=4)
    rows = np.arange(len(features))
    kept, tested = hold_out(features, rows, 0.2, seed=0)
    assert sorted([*kept, *tested]) == rows.tolist()
    assert [features.labels[i][0] for i in tested] == [0, 0, 1, 1, 2, 2]
    scores = {0.01: 0.5, 0.1: 0.75, 1.0: 0.75, 10.0: 0.25}
    asked = []

    def score(decisions, answers):
        asked.append(answers)
        return scores[sorted(scores)[len(asked) - 1]]

    chosen, tried = choose_c(features, rows, (10.0, 0.01, 1.0, 0.1), score=score)
    assert (chosen, tried) == (0.1, scores)
    assert all(np.array_equal(one, truth(features, tested)) for one in asked)
    found = judge(features, Split(rows, rows[:0]), c=(0.01, 1.0), normalise="none", tolerance=1e-8)
    again = fit(features, normalise="none", c=found.svm.c, tolerance=1e-8)
    np.testing.assert_allclose(found.svm.weights, again.weights, atol=1e-5)


def test_random_splits_draw_by_class_and_seed():
    features = clouds(3, each=7)
    first, second = random_splits(features, 3, 2, splits=2, seed=5)
    own = np.array([row[0] for row in features.labels])
    for split in (first, second):
        assert np.bincount(own[split.train]).tolist() == [3, 3, 3]
        assert np.bincount(own[split.test]).tolist() == [2, 2, 2]
        assert not set(split.train) & set(split.test)
    assert first.train.tolist() != second.train.tolist()
    assert next(random_splits(features, 3, 2, seed=6)).train.tolist() == second.train.tolist()
    assert len(next(random_splits(features, 3)).test) == 12
    with pytest.raises(cl.UsageError, match=r"class 0 \(7\)"):
        next(random_splits(features, 7))


def test_published_splits():
    features = replace(clouds(2, each=3), subsets=(("train",), ("val",), ("test",)) * 2)
    split = published_split(features, ["train", "val"], ["test"])
    assert (split.train.tolist(), split.test.tolist()) == ([0, 1, 3, 4], [2, 5])
    with pytest.raises(cl.UsageError, match="'dev'.*allowed: test, train, val"):
        published_split(features, ["dev"], ["test"])
    with pytest.raises(cl.UsageError, match="2 pictures in both"):
        published_split(features, ["train", "val"], ["val"])


def test_mean_and_deviation_over_splits():
    features = clouds(3, each=9, seed=2)
    judged = [judge(features, split, c=0.1) for split in random_splits(features, 4, splits=3)]
    recalls = [one.figures["mean class recall"] for one in judged]
    assert summary(judged)["mean class recall"] == pytest.approx((np.mean(recalls), np.std(recalls, ddof=1)))


def test_stacked_features_are_of_the_same_pictures():
    one, other = clouds(2, each=3, seed=1), clouds(2, each=3, width=4, seed=2)
    turned = replace(other, values=other.values[::-1], paths=other.paths[::-1], labels=other.labels[::-1])
    both = stacked([one, turned])
    np.testing.assert_array_equal(both.values, np.c_[one.values, other.values])
    assert [(b.start, b.stop) for b in both.blocks] == [(0, 6), (6, 10)]
    lacking = replace(
        other,
        values=other.values[1:],
        paths=other.paths[1:],
        labels=other.labels[1:],
        difficult=(),
        subsets=(),
    )
    with pytest.raises(cl.UsageError, match=r"1 pictures \(0.png\) only in one"):
        stacked([one, lacking])
    relabelled = replace(other, labels=(*other.labels[:-1], (0,)))
    with pytest.raises(cl.UsageError, match="other labels"):
        stacked([one, relabelled])


def test_l2_of_blocks_and_of_nothing():
    values = np.array([[3.0, 4, 0, 0], [0, 0, 5, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(l2(values, (block(4),)), [[0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    two = l2(values, (block(2), block(2, 2)))
    np.testing.assert_allclose(two, [[0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    half = l2(np.array([[3.0, 4, 0, 7]]), (block(2), block(2, 2)))
    np.testing.assert_allclose(half, np.array([[0.6, 0.8, 0, 1]]) / np.sqrt(2))


def test_saved_and_read_again(tmp_path):
    features = clouds(3)
    for how in ("l2", "standard", "none"):
        svm = fit(features, normalise=how)
        svm.save(tmp_path / "svm.safetensors")
        again = LinearSVM.read(tmp_path / "svm.safetensors")
        np.testing.assert_array_equal(again.decide(features), svm.decide(features))
        assert (again.classes, again.blocks, again.c) == (svm.classes, svm.blocks, svm.c)
    (tmp_path / "other.safetensors").write_bytes(b"nothing")
    with pytest.raises(cl.UsageError, match="svm.safetensors, as camlucida"):
        LinearSVM.read(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"network": "m" * 64, "name": "other"}, "network other"),
        ({"layer": "stem"}, "layer stem"),
        ({"scales": (48,)}, "scales"),
        ({"flips": True}, "flips True"),
        ({"pixels": "q"}, "pixels"),
    ],
)
def test_features_of_another_kind_are_refused(changed, said):
    svm = fit(clouds(3))
    with pytest.raises(cl.UsageError, match=said):
        svm.decide(clouds(3, blocks=(block(6, **changed),)))


def test_a_class_without_pictures_is_named():
    features = clouds(3)
    with pytest.raises(cl.UsageError, match="no picture of class 2"):
        fit(features, np.arange(24))
    alone = replace(features, classes=(Label("c0", "only"),), labels=((0,),) * len(features))
    with pytest.raises(cl.UsageError, match="no picture that is not of only"):
        fit(alone)
    with pytest.raises(cl.UsageError, match="class 2, got|class class 2"):
        choose_c(features, np.arange(25), score=lambda d, t: 0.0)


def test_rows_and_numbers_must_agree():
    features = clouds(2)
    with pytest.raises(cl.UsageError, match="one row a picture"):
        Features(features.values[1:], features.paths, features.labels, features.classes, features.blocks)
