"""The pointing game, energy inside the object (section 20), and CorLoc: hits averaged class by class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from camlucida import metrics
from camlucida.boxes.from_map import as_map
from camlucida.errors import UsageError

TOLERANCE = 15.0  # pixels of the picture, whatever its size


@dataclass(frozen=True)
class ClassAccuracy:
    """Share of hits of C classes, in percent."""

    per_class: dict[int, float]
    counts: dict[int, int]
    """Pairs of picture and class that count."""
    mean: float
    """Over classes, each alike; NaN for none."""
    overall: float
    """Over pairs of picture and class."""
    interval: tuple[float, float]
    """95 % of `mean`, bootstrapped over the pairs of each class."""


def class_accuracy(hits: ArrayLike, classes: ArrayLike, seed: int = 0, repeats: int = 1000) -> ClassAccuracy:
    """Hits `(N,)` of pairs of a picture and a class `(N,)`, class by class; the pointing game and CorLoc end here."""
    right, of = np.asarray(hits, bool), np.asarray(classes, np.int64)
    if right.shape != of.shape or right.ndim != 1:
        raise UsageError("class_accuracy", got=f"hits {right.shape}, classes {of.shape}", allowed="(N,) both")
    kinds = np.unique(of).tolist()
    if not kinds:
        nan = float("nan")
        return ClassAccuracy({}, {}, nan, nan, (nan, nan))
    shares = {c: 100 * float(right[of == c].mean()) for c in kinds}
    resampled = [metrics.bootstrap_means(right[of == c], seed + i, repeats) for i, c in enumerate(kinds)]
    return ClassAccuracy(
        shares,
        {c: int((of == c).sum()) for c in kinds},
        float(np.mean(list(shares.values()))),
        100 * float(right.mean()),
        metrics.middle(100 * np.mean(resampled, axis=0)),
    )


def pointing_hit(
    heat: ArrayLike,
    *,
    boxes: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    tolerance: float = TOLERANCE,
) -> bool:
    """Whether the maximum of a map `(H, W)`, in pixels of the picture, lies less than `tolerance` pixels from a pixel of
    the object: half-open boxes `(B, 4)` or a mask `(H, W)`. Of equal maxima the first in raster order counts; a map that
    is constant or not finite points nowhere: a miss."""
    values = as_map(heat)
    inside = _inside(values.shape, boxes, mask)
    if not np.isfinite(values).all() or values.min() == values.max():
        return False
    y, x = np.unravel_index(values.argmax(), values.shape)
    rows, columns = np.nonzero(inside)
    return bool(((rows - y) ** 2 + (columns - x) ** 2 < tolerance**2).any())


def energy(heat: ArrayLike, *, boxes: ArrayLike | None = None, mask: ArrayLike | None = None) -> float:
    """Share, 0 to 1, of the map's positive part that lies inside the object, given as in `pointing_hit`; 0 for a map that is
    nowhere positive or not finite."""
    values = as_map(heat)
    inside = _inside(values.shape, boxes, mask)
    if not np.isfinite(values).all() or values.max() <= 0:
        return 0.0
    positive = np.clip(values / values.max(), 0, None)  # so that no sum overflows
    return float(positive[inside].sum() / positive.sum())


def counts_in_pointing_game(difficult: ArrayLike) -> bool:
    """Whether a picture counts for a class: not if all the class's objects in it, `(B,)`, are marked difficult."""
    return not np.asarray(difficult, bool).all()


def _inside(shape: tuple[int, ...], boxes: ArrayLike | None, mask: ArrayLike | None) -> NDArray[np.bool_]:
    """The object's pixels: those whose centre lies in a box, or the mask's."""
    if (boxes is None) == (mask is None):
        raise UsageError(
            "the object", got="boxes and a mask" if mask is not None else "neither", allowed="boxes | mask"
        )
    if mask is not None:
        inside = np.asarray(mask, bool)
        if inside.shape != shape:
            raise UsageError("a mask", got=f"shape {inside.shape}", allowed=f"the map's, {shape}")
        return inside
    inside = np.zeros(shape, bool)
    ys, xs = np.arange(shape[0]) + 0.5, np.arange(shape[1]) + 0.5
    for x0, y0, x1, y1 in np.asarray(boxes, np.float64).reshape(-1, 4):
        inside |= ((y0 <= ys) & (ys < y1))[:, None] & ((x0 <= xs) & (xs < x1))
    return inside


def corloc(
    boxes: Iterable[ArrayLike],
    truths: Iterable[ArrayLike],
    classes: ArrayLike,
    *,
    iou: float = 0.5,
    strict: bool = False,
    convention: str = "half-open",
    seed: int = 0,
    repeats: int = 1000,
) -> ClassAccuracy:
    """CorLoc: of the pictures that hold a class, the share whose one box `(4,)` for it overlaps one of its objects `(B, 4)` by at
    least `iou` (`strict`: by more); then the mean over classes."""
    made, objects, of = list(boxes), list(truths), np.asarray(classes)
    if not len(made) == len(objects) == len(of):
        raise UsageError(
            "corloc",
            got=f"{len(made)} boxes, {len(objects)} truths, {len(of)} classes",
            allowed="equally many",
        )
    hits = []
    for box, truth in zip(made, objects, strict=True):
        given = np.asarray(truth, np.float64).reshape(-1, 4)
        best = metrics.box_iou(np.asarray(box, np.float64), given, convention).max(initial=0.0)
        hits.append(bool(len(given)) and bool(best > iou if strict else best >= iou))
    return class_accuracy(np.array(hits, bool), of, seed, repeats)
