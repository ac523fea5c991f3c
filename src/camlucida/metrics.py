"""Plain arithmetic on arrays: overlap of boxes, top-k, intervals. No tensors, no pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from camlucida.errors import UsageError

CONVENTIONS = ("half-open", "inclusive")


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
    together = max(1, 2**22 // count)  # repeats at once: 32 MB of drawn rows
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
    (percentile bootstrap). `statistic`: `mean` over all, or a function of resampled values `(N, ...)` → number.
    NaN for no values."""
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
    elif statistic == "mean":
        figures = bootstrap_means(rows.reshape(len(rows), -1).mean(1), seed, repeats)
    else:
        raise UsageError("bootstrap_interval(statistic=…)", got=repr(statistic), allowed="mean | a function")
    return middle(figures, level)


def middle(figures: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of some figures."""
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
