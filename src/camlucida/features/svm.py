"""Linear SVMs on features (CAM paper, section 4; VGG paper, appendix B): LIBLINEAR, one against the rest, squared hinge."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camlucida.errors import UsageError, nearest
from camlucida.features import normalise as norms
from camlucida.features.extract import Block
from camlucida.features.folder import Features
from camlucida.features.normalise import NORMALISE, Normalise
from camlucida.values import Label

CANDIDATES = (0.01, 0.1, 1.0, 10.0, 100.0)
HELD_OUT = 0.2  # share of the training pictures on which C is chosen (VGG paper, appendix B)
TOGETHER = 4096  # rows that are scored at once


@dataclass(frozen=True, eq=False)
class LinearSVM:
    """Decision values `w_c · n(f) + b_c` of features f. `weights (C, D)`, `bias (C,)` float64, on normalised features;
    `mean`, `deviation (D,)` of the training pictures where they are standardised; `blocks`: what the features are."""

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    classes: tuple[Label, ...]
    blocks: tuple[Block, ...]
    normalise: Normalise = "l2"
    mean: NDArray[np.float64] | None = None
    deviation: NDArray[np.float64] | None = None
    c: float = 1.0
    notes: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    def decide(self, features: Features | NDArray) -> NDArray[np.float64]:
        """Decision values `(N, C)`. Raises UsageError for features that are not those the SVM was fitted to."""
        if isinstance(features, Features):
            self.check(features.blocks)
        values = features.values if isinstance(features, Features) else np.atleast_2d(features)
        parts = [self._decide(values[start : start + TOGETHER]) for start in range(0, len(values), TOGETHER)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.classes)))

    def linear(self, features: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """`(weights (N or 1, C, D), bias (C,))` with, for these features `(N, D)`, decision = Σ_d weights · f_d + bias:
        what weighs a class map's channels, so that the mean of the map + bias is the decision value."""
        if self.normalise == "standard":
            assert self.mean is not None
            assert self.deviation is not None
            weights = self.weights / self.deviation
            return weights[None], self.bias - weights @ self.mean
        if self.normalise == "l2":
            return self.weights[None] * norms.l2_scale(features, self.blocks)[:, None], self.bias
        return self.weights[None], self.bias

    def check(self, blocks: Sequence[Block]) -> None:
        """Raises UsageError where features of `blocks` are not those of the SVM: another network, layer, scale, region."""
        if tuple(blocks) == self.blocks:
            return
        for mine, other in zip(self.blocks, blocks, strict=False):
            for name in ("network", "layer", "pixels", "scales", "flips", "region"):
                if getattr(mine, name) != getattr(other, name):
                    had, got = (f"{b.name} ({str(b.network)[:12]})" if name == "network" else getattr(b, name) for b in (mine, other))  # fmt: skip
                    raise UsageError("an SVM for other features", got=f"{name} {got}", allowed=f"{had}, which it was fitted to", do="extract the pictures with that network and those options")  # fmt: skip
        raise UsageError("an SVM for other features", got=f"{len(blocks)} blocks of columns", allowed=f"{len(self.blocks)}")  # fmt: skip

    def save(self, file: str | Path) -> None:
        """Weights and all that is known of them as one safetensors file."""
        from safetensors.numpy import save_file

        arrays = {"weights": self.weights, "bias": self.bias}
        arrays |= {n: a for n in ("mean", "deviation") if (a := getattr(self, n)) is not None}
        known = {
            "classes": [[one.id, one.name] for one in self.classes], "blocks": [asdict(b) for b in self.blocks],
            "normalise": self.normalise, "c": self.c, "notes": self.notes, "about": dict(self.about),
        }  # fmt: skip
        save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, file, {"camlucida.svm": json.dumps(known, default=str)})  # fmt: skip

    @classmethod
    def read(cls, file: str | Path) -> LinearSVM:
        """What `save` wrote. Raises UsageError for any other file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(file), "numpy") as stored:
                known = json.loads((stored.metadata() or {})["camlucida.svm"])
                arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  (no mapping)
            blocks = tuple(Block(**{**one, "scales": tuple(one["scales"])}) for one in known["blocks"])
            return cls(
                arrays["weights"], arrays["bias"], tuple(Label(*one) for one in known["classes"]), blocks, known["normalise"],
                arrays.get("mean"), arrays.get("deviation"), known["c"], tuple(known["notes"]), known["about"],
            )  # fmt: skip
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            raise UsageError(f"an SVM in {file}", got=f"{type(error).__name__}: {error}", allowed="svm.safetensors, as camlucida features svm --out wrote") from error  # fmt: skip

    def _decide(self, values: NDArray) -> NDArray[np.float64]:
        given = np.asarray(values, np.float64)
        if self.normalise == "l2":
            return norms.l2(given, self.blocks) @ self.weights.T + self.bias
        weights, bias = self.linear(given[:1])
        return given @ weights[0].T + bias


def fit(
    features: Features,
    rows: NDArray[np.int64] | None = None,
    *,
    normalise: Normalise = "l2",
    c: float = 1.0,
    tolerance: float = 0.1,
    intercept: bool = True,
    seed: int = 0,
) -> LinearSVM:
    """An SVM for every class of `features` against the rest, from the given rows: L2-regularised squared hinge, dual
    (LIBLINEAR's solver 1). `c`: cost of a picture on the wrong side; `tolerance`: where the solver stops. A class's
    difficult pictures are left out of its own SVM. Raises UsageError for a class without a picture, or with every one."""
    if normalise not in NORMALISE:
        raise UsageError("normalise", got=repr(normalise), do=nearest(normalise, NORMALISE))
    rows = np.arange(len(features)) if rows is None else np.asarray(rows)
    answers = truth(features, rows)
    _enough(features, answers)
    given, mean, deviation = normalised(features, rows, normalise)
    weights, bias, notes = _solve(given, answers, c, tolerance, intercept, seed)
    return LinearSVM(weights, bias, features.classes, features.blocks, normalise, mean, deviation, c, notes)


def choose_c(
    features: Features,
    rows: NDArray[np.int64],
    candidates: Sequence[float] = CANDIDATES,
    *,
    score: Callable[[NDArray, NDArray], float],
    held_out: float = HELD_OUT,
    seed: int = 0,
    **options: Any,
) -> tuple[float, dict[float, float]]:
    """The best C and the `score(decisions, truth)` of each, on a fifth of the rows held out of every class; the smallest
    of several that are equally good. Raises UsageError for a class with a single picture."""
    kept, tested = hold_out(features, rows, held_out, seed)
    tried = {c: score(fit(features, kept, c=c, seed=seed, **options).decide(features.values[tested]), truth(features, tested)) for c in sorted(candidates)}  # fmt: skip
    return max(tried, key=lambda c: (tried[c], -c)), tried


def hold_out(
    features: Features, rows: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows in two, about `share` of each class (of a picture's first), at least one, in the second."""
    generator, second = np.random.default_rng(seed), list[int]()
    first = np.array([features.labels[i][0] if features.labels[i] else -1 for i in rows])
    for k in np.unique(first):
        own = rows[first == k]
        if len(own) == 1 and k >= 0:
            raise UsageError(f"choosing C: class {features.classes[k].name}", got="1 training picture", allowed="≥ 2, one of them held out", do="give --c")  # fmt: skip
        second += generator.permutation(own)[: max(round(share * len(own)), 1)].tolist()
    chosen = np.isin(rows, second)
    return rows[~chosen], rows[chosen]


def truth(features: Features, rows: NDArray[np.int64]) -> NDArray[np.int8]:
    """`(rows, C)`: 1 where the picture is of the class, −1 where not, 0 where it is difficult and counts neither way."""
    answers = np.full((len(rows), len(features.classes)), -1, np.int8)
    for at, i in enumerate(rows):
        answers[at, list(features.labels[i])] = 1
        answers[at, list(features.difficult[i])] = 0
    return answers


def normalised(
    features: Features, rows: NDArray[np.int64], how: Normalise
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """The rows' vectors float64 as an SVM sees them, and mean and deviation where they are standardised."""
    given = np.asarray(features.values[rows], np.float64)
    if how == "l2":
        return norms.l2(given, features.blocks), None, None
    if how == "none":
        return given, None, None
    mean, deviation = given.mean(0), given.std(0)
    deviation = np.where(deviation > norms.LEAST, deviation, 1.0)  # a number that never changes stays 0
    given -= mean
    given /= deviation
    return given, mean, deviation


def _enough(features: Features, answers: NDArray[np.int8]) -> None:
    for word, lacking in (
        ("of", (answers == 1).sum(0) == 0),
        ("that is not of", (answers == -1).sum(0) == 0),
    ):
        names = [features.classes[k].name for k in np.flatnonzero(lacking)]
        if names:
            raise UsageError(f"fitting {len(features.classes)} classes", got=f"no picture {word} {', '.join(names[:3])}{' …' if len(names) > 3 else ''}", allowed="at least one of each class and one other")  # fmt: skip


def _solve(
    given: NDArray[np.float64],
    answers: NDArray[np.int8],
    c: float,
    tolerance: float,
    intercept: bool,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[str, ...]]:
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise UsageError("scikit-learn is not installed", do="pip install 'camlucida[features]'") from error
    if c <= 0:
        raise UsageError("C", got=c, allowed="> 0")

    def solve(x: NDArray, y: NDArray) -> Any:
        return LinearSVC(C=c, tol=tolerance, fit_intercept=intercept, dual=True, random_state=seed).fit(x, y)

    count = answers.shape[1]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        warnings.filterwarnings(
            "ignore", "The number of unique classes"
        )  # a few pictures of many classes are wanted
        if (
            count > 2 and (answers != 0).all() and ((answers == 1).sum(1) == 1).all()
        ):  # one pass over the data
            solved = solve(given, answers.argmax(1))
            weights, bias = solved.coef_, np.broadcast_to(solved.intercept_, count)
        else:
            weights, bias = np.empty((count, given.shape[1])), np.empty(count)
            for k in range(count):
                counts = answers[:, k] != 0
                whole = given if counts.all() else given[counts]
                solved = solve(whole, answers[counts, k])
                weights[k], bias[k] = solved.coef_[0], np.ravel(solved.intercept_)[0]
    slow = any(issubclass(one.category, ConvergenceWarning) for one in said)
    for one in said:
        if not issubclass(one.category, ConvergenceWarning):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    notes = (f"C = {c:g}: the solver stopped after 1,000 passes, above its tolerance",) if slow else ()
    return np.ascontiguousarray(weights, np.float64), np.array(bias, np.float64), notes
