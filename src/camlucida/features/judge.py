"""How good an SVM is: splits of labelled pictures into training and test, and the figures of each data set's protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camlucida import metrics
from camlucida.errors import UsageError
from camlucida.features.folder import Features
from camlucida.features.svm import CANDIDATES, LinearSVM, choose_c, fit, truth


@dataclass(frozen=True)
class Split:
    """Rows to fit and rows to judge; `seed` of the draw, None where the data set says which."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    seed: int | None = None


@dataclass(frozen=True)
class Judged:
    """One split: the SVM, its figures in 0 … 1 by name, those of each class, and what each C scored on the held-out fifth."""

    split: Split
    svm: LinearSVM
    figures: Mapping[str, float]
    per_class: NDArray[np.float64]
    tried: Mapping[float, float]


def random_splits(features: Features, train: int, test: int | None = None, splits: int = 1, seed: int = 0) -> Iterator[Split]:  # fmt: skip
    """`train` pictures of each class drawn at random, and at most `test` (None: all) of the rest, as the published
    protocols of Caltech, Places … do; `splits` times, the n-th from `seed + n`. Raises UsageError where a class has too few."""
    if train < 1 or splits < 1 or (test is not None and test < 1):
        raise UsageError(
            "splits", got=f"{train} training, {test} test pictures, {splits} splits", allowed="≥ 1"
        )
    if features.multi_label:
        raise UsageError("random splits by class", got="pictures with several labels or none", allowed="one label a picture", do="--train and --test name published splits")  # fmt: skip
    own = np.array([row[0] for row in features.labels])
    rows = [np.flatnonzero(own == k) for k in range(len(features.classes))]
    few = [f"{one.name} ({len(r)})" for one, r in zip(features.classes, rows, strict=True) if len(r) <= train]
    if few:
        raise UsageError(f"{train} training pictures a class and at least one to test", got=f"fewer in {len(few)} of {len(rows)} classes: {', '.join(few[:3])}{' …' if len(few) > 3 else ''}", do="a smaller --train")  # fmt: skip
    for number in range(seed, seed + splits):
        generator = np.random.default_rng(number)
        drawn = [generator.permutation(r) for r in rows]
        end = None if test is None else train + test
        yield Split(
            np.sort(np.concatenate([r[:train] for r in drawn])),
            np.sort(np.concatenate([r[train:end] for r in drawn])), number,
        )  # fmt: skip


def published_split(features: Features, train: Sequence[str], test: Sequence[str]) -> Split:
    """The rows of the published splits of those names. Raises UsageError where one is not there."""
    known = sorted({name for row in features.subsets for name in row})
    missing = [name for name in (*train, *test) if name not in known]
    if missing:
        raise UsageError(f"the published split {missing[0]!r}", got="no picture of it", allowed=", ".join(known) or "no published split is known of these pictures", do="a number instead draws so many of each class")  # fmt: skip
    first, second = (
        np.array([i for i, row in enumerate(features.subsets) if set(row) & set(names)], np.int64) for names in (train, test)
    )  # fmt: skip
    both = np.intersect1d(first, second)
    if len(both):
        raise UsageError("published splits", got=f"{len(both)} pictures in both {'+'.join(train)} and {'+'.join(test)}", allowed="none")  # fmt: skip
    return Split(first, second)


def figures_of(decisions: NDArray, answers: NDArray) -> tuple[dict[str, float], NDArray[np.float64]]:
    """Figures by name, the protocol's first, and that first one of each class, of decision values `(N, C)` and `truth`. One
    class a picture: mean class recall and accuracy. Several: mean average precision at all points (VOC 2012) and at eleven
    (VOC 2007); pictures where a class is difficult are left out of it."""
    if ((answers == 1).sum(1) == 1).all() and (answers != 0).all():
        own, predicted = answers.argmax(1), decisions.argmax(1)
        recall = metrics.per_class_accuracy(predicted, own, answers.shape[1])
        return {
            "mean class recall": float(np.nanmean(recall)),
            "accuracy": float((predicted == own).mean()),
        }, recall
    every = np.full((answers.shape[1], 2), np.nan)
    for k in range(answers.shape[1]):
        counts = answers[:, k] != 0
        for which, points in enumerate((None, 11)):
            every[k, which] = metrics.average_precision(decisions[counts, k], answers[counts, k] == 1, points)
    mean = np.nanmean(every, axis=0)
    return {"mean average precision": float(mean[0]), "mean average precision, 11 points": float(mean[1])}, every[:, 0]  # fmt: skip


def score(decisions: NDArray, answers: NDArray) -> float:
    """The protocol's first figure."""
    return next(iter(figures_of(decisions, answers)[0].values()))


def judge(
    features: Features,
    split: Split,
    *,
    c: float | Sequence[float] = CANDIDATES,
    seed: int = 0,
    **options: Any,
) -> Judged:
    """Fits an SVM to the split's training rows and judges it on its test rows. `c`: a number, or candidates: then a fifth
    of each class of the training rows chooses, and all of them train again. `options` as in `fit`."""
    tried: dict[float, float] = {}
    if isinstance(c, (int, float)):
        chosen = float(c)
    else:
        chosen, tried = choose_c(features, split.train, c, score=score, seed=seed, **options)
    svm = fit(features, split.train, c=chosen, seed=seed, **options)
    if not len(split.test):
        return Judged(split, svm, {}, np.full(len(features.classes), np.nan), tried)
    figures, per_class = figures_of(svm.decide(features.values[split.test]), truth(features, split.test))
    return Judged(split, svm, figures, per_class, tried)


def summary(judged: Sequence[Judged]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation (n − 1; 0 of one split) of each figure over the splits."""
    names = judged[0].figures
    every = {name: np.array([one.figures[name] for one in judged]) for name in names}
    return {name: (float(v.mean()), float(v.std(ddof=1)) if len(v) > 1 else 0.0) for name, v in every.items()}
