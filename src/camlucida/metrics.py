"""Plain arithmetic on arrays: overlap of boxes, top-k, intervals. No tensors, no pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from camlucida.errors import UsageError

CONVENTIONS = ("half-open", "inclusive")
TOGETHER = 2**22  # rows drawn at once by the bootstrap: 32 MB


def box_iou(a: ArrayLike, b: ArrayLike, convention: str = "half-open") -> NDArray[np.float64]:
    """Intersection over union of boxes `(..., 4)` as `(x0, y0, x1, y1)`; the leading axes broadcast.

    `half-open`: a side is x1 − x0. `inclusive`: corners are pixels, a side is x1 − x0 + 1 (the ILSVRC and
    WSOL evaluation code). Disjoint, empty or inverted boxes score 0.
    """
    if convention not in CONVENTIONS:
        raise UsageError("convention of box_iou", got=repr(convention), allowed=" | ".join(CONVENTIONS))
    extra = 1.0 if convention == "inclusive" else 0.0
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    sides_a = np.clip(a[..., 2:] - a[..., :2] + extra, 0, None)
    sides_b = np.clip(b[..., 2:] - b[..., :2] + extra, 0, None)
    overlap = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + extra
    shared = np.prod(np.clip(overlap, 0, None), axis=-1)
    union = np.prod(sides_a, axis=-1) + np.prod(sides_b, axis=-1) - shared
    return np.divide(shared, union, out=np.zeros(np.shape(union)), where=(union > 0) & (shared > 0))


def top_k(scores: ArrayLike, k: int) -> NDArray[np.int64]:
    """Indices `(N, k)` of the k highest of `(N, C)` scores, best first; ties go to the lower index."""
    return np.argsort(-np.asarray(scores, np.float64), axis=-1, kind="stable")[..., :k]


def top_k_accuracy(scores: ArrayLike, truth: ArrayLike, k: int) -> float:
    """Share of rows of `(N, C)` scores whose true class is among the k highest (VGG paper, section 4)."""
    hits = (top_k(scores, k) == np.asarray(truth)[:, None]).any(axis=1)
    return float(hits.mean()) if hits.size else float("nan")


def wilson_interval(successes: float, trials: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion."""
    if trials == 0:
        return 0.0, 1.0
    share, square = successes / trials, z * z / trials
    centre = (share + square / 2) / (1 + square)
    half = z * np.sqrt(share * (1 - share) / trials + square / (4 * trials)) / (1 + square)
    return max(float(centre - half), 0.0), min(float(centre + half), 1.0)


def with_width(share: float, interval: tuple[float, float], count: int) -> tuple[float, float]:
    """A bootstrap interval of a share or mean of `count` values in [0, 1]. Values that all agree leave it no width, which
    would pass for certainty: Wilson's then, the widest that such a mean can have."""
    return interval if not interval[1] - interval[0] < 1e-9 else wilson_interval(share * count, count)


def bootstrap_means(values: ArrayLike, seed: int = 0, repeats: int = 1000) -> NDArray[np.float64]:
    """Means `(repeats, ...)` of `values (N, ...)` drawn N at a time with replacement. The same N, seed and
    repeats draw the same rows, so that several figures of the same pictures can be resampled together."""
    rows = np.asarray(values, np.float64)
    count = len(rows)
    if not count:
        return np.full((repeats, *rows.shape[1:]), np.nan)
    generator = np.random.default_rng(seed)
    flat = rows.reshape(count, -1)
    means = np.empty((repeats, flat.shape[1]))
    together = max(1, TOGETHER // count)  # repeats at once
    for start in range(0, repeats, together):
        some = min(together, repeats - start)
        drawn = generator.integers(0, count, (some, count)) + count * np.arange(some)[:, None]
        times = np.bincount(drawn.ravel(), minlength=some * count).reshape(some, count)
        means[start : start + some] = times.astype(np.float64) @ flat / count
    return means.reshape(repeats, *rows.shape[1:])


def bootstrap_interval(
    values: ArrayLike,
    statistic: Literal["mean"] | Callable[[NDArray[np.float64]], float] = "mean",
    seed: int = 0,
    repeats: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval of a figure of N pictures, `values (N, ...)`: the middle `level` of what resampled pictures give
    (percentile bootstrap). `statistic`: `mean` over all, or a function of resampled values `(N, ...)` → number; draws of
    which it is NaN are left out. NaN for no values."""
    rows = np.asarray(values, np.float64)
    if not 0 < level < 1 or repeats < 1:
        raise UsageError(
            "bootstrap_interval", got=f"level {level}, repeats {repeats}", allowed="0 < level < 1"
        )
    if not len(rows):
        return float("nan"), float("nan")
    if callable(statistic):
        generator = np.random.default_rng(seed)
        draws = (generator.integers(0, len(rows), len(rows)) for _ in range(repeats))
        figures = np.array([statistic(rows[drawn]) for drawn in draws])
        figures = figures[~np.isnan(figures)]
        if not len(figures):
            return float("nan"), float("nan")
    elif statistic == "mean":
        figures = bootstrap_means(rows.reshape(len(rows), -1).mean(1), seed, repeats)
    else:
        raise UsageError("bootstrap_interval(statistic=…)", got=repr(statistic), allowed="mean | a function")
    return middle(figures, level)


def middle(figures: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of some figures."""
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def ranks(scores: ArrayLike, truth: ArrayLike) -> NDArray[np.int64]:
    """Place `(N,)` of the true class among `(N, C)` scores, from 1; ties go to the lower index, a score
    that is no number comes last."""
    scores, truth = np.asarray(scores), np.asarray(truth)
    scores = np.where(np.isnan(scores), -np.inf, scores)
    own = np.take_along_axis(scores, truth[:, None], axis=1)
    before = (scores == own) & (np.arange(scores.shape[1]) < truth[:, None])
    return 1 + ((scores > own) | before).sum(axis=1)


def confusion_matrix(predicted: ArrayLike, truth: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Counts `(classes, classes)`: row = true class, column = predicted one, of `(N,)` class indices."""
    cells = np.asarray(truth, np.int64) * classes + np.asarray(predicted, np.int64)
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def per_class_accuracy(predicted: ArrayLike, truth: ArrayLike, classes: int) -> NDArray[np.float64]:
    """Share right `(classes,)` among the pictures of each true class; NaN for a class without pictures."""
    truth = np.asarray(truth, np.int64)
    right = np.bincount(truth[np.asarray(predicted) == truth], minlength=classes)
    every = np.bincount(truth, minlength=classes)
    return np.divide(right, every, out=np.full(classes, np.nan), where=every > 0)


def calibration_bins(confidence: ArrayLike, right: ArrayLike, bins: int = 15) -> NDArray[np.float64]:
    """The reliability diagram: per bin of confidence, rows `(bins, 3)` of count, mean confidence and share right (NaN
    where empty). Bins are of equal width, b/bins < confidence ≤ (b + 1)/bins; 0 is in the first. `confidence (N,)` in
    [0, 1], `right (N,)` bool."""
    confidence, right = np.asarray(confidence, np.float64), np.asarray(right, np.float64)
    which = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins).astype(np.float64)
    sums = [np.bincount(which, weights=one, minlength=bins) for one in (confidence, right)]
    means = [np.divide(one, count, out=np.full(bins, np.nan), where=count > 0) for one in sums]
    return np.stack([count, *means], axis=1)


def expected_calibration_error(confidence: ArrayLike, right: ArrayLike, bins: int = 15) -> float:
    """Σ_b count_b / N · |share right_b − mean confidence_b| over the bins of `calibration_bins` (ECE); NaN for no
    pictures."""
    count, confident, correct = calibration_bins(confidence, right, bins).T
    full = count > 0
    gaps = np.abs(correct[full] - confident[full])
    return float((count[full] * gaps).sum() / count.sum()) if full.any() else float("nan")


def brier_scores(probabilities: ArrayLike, truth: ArrayLike) -> NDArray[np.float64]:
    """Σ_c (p_c − [c is true])² of each picture `(N,)`, 0 … 2, of `(N, C)` probabilities; their mean is the Brier score."""
    probabilities = np.asarray(probabilities, np.float64)
    own = np.take_along_axis(probabilities, np.asarray(truth)[:, None], axis=1)[:, 0]
    return (probabilities**2).sum(axis=1) - 2 * own + 1


def average_precision(scores: ArrayLike, truth: ArrayLike, points: int | None = None) -> float:
    """Area under the curve of precision over recall of one class: `scores (N,)`, `truth (N,)` bool; NaN where nothing is
    true. The precision at a recall is the highest at that recall or any above (PASCAL VOC).

    `points=None`: all points, each step of recall times its precision (VOC 2010 and later). `points=11`: the mean at
    recalls 0, 0.1, … 1 (VOC 2007). Ties go to the lower index.
    """
    if points is not None and points < 2:
        raise UsageError("average_precision(points=…)", got=points, allowed="≥ 2, or None for all points")
    truth = np.asarray(truth, bool)
    if not truth.any():
        return float("nan")
    ordered = truth[np.argsort(-np.asarray(scores, np.float64), kind="stable")]
    hits = np.cumsum(ordered)
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    if points is None:
        return float(precision[ordered].mean())
    # Recall reaches i/(points − 1) with the hit of this number, counted in integers: 0.1 · 3 is not 0.3 in floats.
    needed = -(-np.arange(points) * int(hits[-1]) // (points - 1))
    return float(precision[np.searchsorted(hits, needed)].mean())


def paired_interval(lost: ArrayLike, gained: ArrayLike, count: int) -> tuple[NDArray, NDArray]:
    """95 % interval of the share (gained − lost) / count by which the same pictures are judged otherwise: `lost` were right
    and no longer are, `gained` the reverse. Bonett and Price (2012): one added to both, so that no change is no certainty."""
    lost, gained = np.asarray(lost, np.float64) + 1, np.asarray(gained, np.float64) + 1
    change, moved = (gained - lost) / (count + 2), (gained + lost) / (count + 2)
    half = 1.96 * np.sqrt((moved - change**2) / (count + 2))
    return np.maximum(change - half, -1.0), np.minimum(change + half, 1.0)
