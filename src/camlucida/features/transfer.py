"""A new softmax on a frozen network's features, from few training pictures a class to many (ZF paper, section 5.2; specification,
section 13)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from camlucida.errors import UsageError, nearest
from camlucida.features.folder import Features
from camlucida.features.judge import Split, figures_of, random_splits
from camlucida.features.normalise import NORMALISE, Normalise
from camlucida.features.svm import LinearSVM, normalised, truth


@dataclass(frozen=True, eq=False)
class Transfer:
    """Figures by name, each `(splits, counts)` in 0 … 1, after training on `counts` pictures of each class; `tested`: pictures
    that judge, of each split."""

    counts: tuple[int, ...]
    figures: dict[str, NDArray[np.float64]]
    tested: tuple[int, ...]
    notes: tuple[str, ...] = ()

    def mean(self, name: str) -> NDArray[np.float64]:
        """Over the splits, one a count."""
        return self.figures[name].mean(0)

    def deviation(self, name: str) -> NDArray[np.float64]:
        """Over the splits (n − 1; 0 of one split)."""
        values = self.figures[name]
        return values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


def softmax(
    features: Features,
    rows: NDArray[np.int64] | None = None,
    *,
    normalise: Normalise = "standard",
    c: float = 0.1,
    tolerance: float = 1e-4,
) -> LinearSVM:
    """Multinomial logistic regression: the W, b that minimise c · Σ_i −log softmax(W n(f_i) + b)[y_i] + ½‖W‖² over the rows,
    as the weights and bias of a `LinearSVM`, whose decision values are then the logits. Raises UsageError for pictures with
    several labels or none, or rows without a picture of some class."""
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise UsageError("scikit-learn is not installed", do="pip install 'camlucida[features]'") from error
    if normalise not in NORMALISE:
        raise UsageError("normalise", got=repr(normalise), do=nearest(normalise, NORMALISE))
    if c <= 0:
        raise UsageError("C", got=c, allowed="> 0")
    if features.multi_label:
        raise UsageError("a softmax", got="pictures with several labels or none", allowed="one label a picture", do="camlucida features svm takes several")  # fmt: skip
    rows = np.arange(len(features)) if rows is None else np.asarray(rows)
    own = np.array([features.labels[i][0] for i in rows])
    count = len(features.classes)
    lacking = np.setdiff1d(np.arange(count), own)
    if len(lacking) or count < 2:
        raise UsageError("fitting a softmax", got=f"no picture of {features.classes[lacking[0]].name}" if len(lacking) else "one class", allowed="at least two classes, a picture of each")  # fmt: skip
    given, mean, deviation = normalised(features, rows, normalise)
    two = count == 2  # there scikit-learn fits one vector, of the second class over the first
    solver = LogisticRegression(C=2 * c if two else c, tol=tolerance, max_iter=1000)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes")  # few pictures of many are wanted
        solver.fit(given, own)
    weights, bias = np.asarray(solver.coef_, np.float64), np.asarray(solver.intercept_, np.float64)
    if two:
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    slow = any(issubclass(one.category, ConvergenceWarning) for one in said)
    for one in said:
        if not issubclass(one.category, ConvergenceWarning):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    notes = (f"C = {c:g}: the softmax stopped after 1,000 steps, above its tolerance",) if slow else ()
    return LinearSVM(weights, bias, features.classes, features.blocks, normalise, mean, deviation, c, notes)


def nested(features: Features, split: Split, counts: Sequence[int]) -> list[NDArray[np.int64]]:
    """The first so many pictures of each class in an order drawn once, so that more always holds fewer."""
    generator = np.random.default_rng(split.seed)
    own = np.array([features.labels[i][0] for i in split.train])
    order = generator.permutation(len(own))
    place = np.empty(len(own), np.int64)  # of a row among those of its class
    for k in np.unique(own):
        of_class = order[own[order] == k]
        place[of_class] = np.arange(len(of_class))
    return [split.train[place < n] for n in counts]


def transfer(
    features: Features,
    counts: Sequence[int],
    splits: int = 3,
    seed: int = 0,
    *,
    test: int | None = None,
    normalise: Normalise = "standard",
    c: float = 0.1,
    heard: Callable[[int], None] = lambda done: None,
) -> Transfer:
    """A softmax from each number of training pictures a class, all judged on the same pictures: those left (at most `test` a
    class) after the largest number was drawn, `splits` times. Raises UsageError as `random_splits` and `softmax` do."""
    wanted = tuple(sorted(set(counts)))
    if not wanted or wanted[0] < 1:
        raise UsageError("training pictures a class", got=counts, allowed="≥ 1")
    found: list[list[dict[str, float]]] = []
    tested, notes = [], list[str]()
    for split in random_splits(features, wanted[-1], test, splits, seed):
        answers, row = truth(features, split.test), []
        for rows in nested(features, split, wanted):
            made = softmax(features, rows, normalise=normalise, c=c)
            row.append(figures_of(made.decide(features.values[split.test]), answers)[0])
            notes += made.notes
            heard(1)
        found.append(row)
        tested.append(len(split.test))
    names = list(found[0][0])
    figures = {name: np.array([[one[name] for one in row] for row in found]) for name in names}
    return Transfer(wanted, figures, tuple(tested), tuple(dict.fromkeys(notes)))
