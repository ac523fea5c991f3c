"""Box accuracy and pixel average precision over all thresholds: "Evaluating Weakly Supervised Object Localization
Methods Right" (section 4). Maps come one by one, so that any number streams; boxes are in pixels of their map: maps
of another size than the boxes' picture are resized by the caller before (the paper: both squashed to 224 × 224)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from camlucida import metrics
from camlucida.boxes.component_tree import best_over_components, sweep
from camlucida.boxes.from_map import as_map, check_choice, usable_map
from camlucida.errors import UsageError
from camlucida.values import Size

Convention = Literal["half-open", "reference"]
IGNORED = 255  # in masks: neither foreground (1) nor background (0)
BLOCK = 64  # pictures whose histograms are resampled together


@dataclass(frozen=True)
class BoxAccuracy:
    """What `box_accuracy` found on N pictures, M of them with boxes, at T thresholds."""

    thresholds: NDArray[np.float64]
    correct: dict[float, NDArray[np.int64]]
    """For each IoU the number of pictures `(T,)` that are right at each threshold."""
    boxed: NDArray[np.bool_]
    """Whether each picture `(N,)` has boxes; the others do not count."""
    flat: NDArray[np.bool_]
    """Whether each map `(N,)` is constant or not finite, so that its box says nothing."""
    packed_hits: dict[float, NDArray[np.uint8]]
    """`hits`, eight thresholds to a byte."""

    def hits(self, iou: float) -> NDArray[np.bool_]:
        """Whether each picture is right at each threshold, `(N, T)`."""
        return np.unpackbits(self.packed_hits[iou], axis=1, count=len(self.thresholds)).astype(bool)

    @property
    def curve(self) -> dict[float, NDArray[np.float64]]:
        """For each IoU the accuracy `(T,)` in percent; NaN without a picture that has boxes."""
        count = int(self.boxed.sum()) or np.nan
        return {iou: 100 * right / count for iou, right in self.correct.items()}

    @property
    def max_box_accuracy(self) -> dict[float, float]:
        """MaxBoxAcc in percent for each IoU: the accuracy at the threshold that is best on these pictures."""
        return {iou: float(curve.max()) for iou, curve in self.curve.items()}

    @property
    def best_threshold(self) -> dict[float, float]:
        """The (first) threshold of `max_box_accuracy`."""
        return {iou: float(self.thresholds[right.argmax()]) for iou, right in self.correct.items()}

    @property
    def mean(self) -> float:
        """Mean of `max_box_accuracy` over the IoUs: MaxBoxAccV2 if all components were looked at."""
        return float(np.mean(list(self.max_box_accuracy.values())))

    def interval(
        self, iou: float | None = None, seed: int = 0, repeats: int = 1000, level: float = 0.95
    ) -> tuple[float, float]:
        """Bootstrap interval, over pictures, of `max_box_accuracy[iou]`, or of `mean`; percent."""
        count = int(self.boxed.sum())
        if not count:
            return float("nan"), float("nan")
        best = []
        for one in list(self.correct) if iou is None else [iou]:
            share = self.correct[one] / count
            # Six standard errors below the best no threshold wins in a resample: a million pictures fit in memory.
            near = np.flatnonzero(share >= share.max() - 6 / np.sqrt(count))
            bits = self.packed_hits[one][self.boxed][:, near // 8] >> (7 - near % 8).astype(np.uint8) & 1
            best.append(metrics.bootstrap_means(bits, seed, repeats).max(1))
        return metrics.middle(100 * np.mean(best, axis=0), level)


def box_accuracy(
    score_maps: Iterable[ArrayLike],
    boxes: Iterable[ArrayLike],
    thresholds: ArrayLike,
    ious: Iterable[float] = (0.3, 0.5, 0.7),
    components: Literal["largest", "all"] = "largest",
    convention: Convention = "half-open",
    *,
    normalise: bool = False,
) -> BoxAccuracy:
    """Share of pictures whose box from the map overlaps a given box by at least each IoU, at each threshold.

    `score_maps`: `(H, W)` each, of any sizes; `boxes`: for each map `(B, 4)` x0, y0, x1, y1 in its pixels, B ≥ 0;
    `thresholds (T,)`: shares of the map's maximum, 0 to 1. `components`: the box of the largest component (MaxBoxAcc), or
    the best of all (MaxBoxAccV2). `normalise`: min-max scale maps first, as the paper does.

    `half-open`: boxes are half-open; components of the float map, touching at corners too; the largest has most pixels; a map
    that is constant, not finite or nowhere positive gives the whole picture. `reference`: the published code to the
    integer: inclusive boxes, maps in [0, 1] cut to 8 bits, OpenCV's contours (rims of holes are contours too), the
    largest by the area that its outline encloses, (0, 0, 0, 0) for none; a map that is not finite counts as zeros. It needs
    `pip install 'camlucida[wsol]'`.
    """
    check_choice("box_accuracy(components=…)", components, ("largest", "all"))
    check_choice("box_accuracy(convention=…)", convention, ("half-open", "reference"))
    levels = _thresholds(thresholds)
    bars = np.atleast_1d(np.asarray(ious if isinstance(ious, float) else list(ious), np.float64))
    if not len(bars) or not ((bars > 0) & (bars <= 1)).all():
        raise UsageError("box_accuracy(ious=…)", got=f"{bars}", allowed="above 0, at most 1, at least one")
    correct = np.zeros((len(bars), len(levels)), np.int64)
    packed = bytearray()
    boxed, flat = [], []
    for heat, truth in _pairs(score_maps, boxes, "box_accuracy", "maps", "sets of boxes"):
        values = as_map(heat)
        given = _given(truth, values.shape)
        boxed.append(len(given) > 0)
        flat.append(usable_map(values, normalise=True) is None)
        hit = np.zeros((len(bars), len(levels)), bool)
        if len(given):
            overlap = _overlap(values, given, levels, components, convention, normalise)
            hit = overlap >= bars[:, None]
            correct += hit
        packed += np.packbits(hit, axis=1).tobytes()
    bits = np.frombuffer(packed, np.uint8).reshape(len(boxed), len(bars), (len(levels) + 7) // 8)
    return BoxAccuracy(
        levels,
        {float(bar): correct[i] for i, bar in enumerate(bars)},
        np.array(boxed, bool),
        np.array(flat, bool),
        {float(bar): bits[:, i] for i, bar in enumerate(bars)},
    )


def _given(truth: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Boxes of one map as `(B, 4)`. UsageError for what cannot be boxes in its pixels."""
    given = np.asarray(truth, np.float64)
    given = given.reshape(-1, 4) if given.size == 0 or given.shape == (4,) else given
    if given.ndim != 2 or given.shape[1] != 4:
        raise UsageError(
            "box_accuracy: boxes of a map", got=f"shape {given.shape}", allowed="(B, 4): x0, y0, x1, y1",
            do="rows (i, x0, y0, x1, y1) of all maps: [rows[rows[:, 0] == i, 1:] for i in range(len(score_maps))]",
        )  # fmt: skip
    if not np.isfinite(given).all() or (given[:, 2:] < given[:, :2]).any():
        raise UsageError("box_accuracy: boxes of a map", got=f"{given.tolist()}", allowed="x0 ≤ x1, y0 ≤ y1")
    if len(given) and (given[:, :2] >= shape[::-1]).any(1).all():  # not one of them lies on the map
        raise UsageError(
            "box_accuracy: boxes of a map", got=f"{given.tolist()} on a map of {shape[0]} × {shape[1]}",
            allowed="boxes in pixels of their map", do="resize the map or scale the boxes first",
        )  # fmt: skip
    return given


def _overlap(
    heat: NDArray[np.float64],
    truth: NDArray[np.float64],
    thresholds: NDArray[np.float64],
    components: Literal["largest", "all"],
    convention: Convention,
    normalise: bool,
) -> NDArray[np.float64]:
    """The best IoU `(T,)` of a map's box (of any of its boxes) and a given box at each threshold."""
    if convention == "reference":
        found, starts, place = contour_boxes(heat, thresholds, components, normalise)
        overlap = metrics.box_iou(found[:, None], truth[None], "inclusive").max(1)
        return np.maximum.reduceat(overlap, starts)[place]

    def score(found: NDArray[Any]) -> NDArray[np.float64]:
        return metrics.box_iou(found[:, None], truth[None]).max(1)

    if components == "all":
        return best_over_components(heat, score, thresholds, normalise=normalise)
    return score(sweep(heat, Size(*heat.shape), thresholds, normalise=normalise))


def contour_boxes(
    heat: NDArray[np.float64],
    thresholds: NDArray[np.float64],
    components: Literal["largest", "all"],
    normalise: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The reference's boxes (corners inclusive, unless cut at the last pixel one too far) of every mask that some threshold
    gives `(M, 4)`, where those of each mask start, and for each threshold `(T,)` which of these masks it gives."""
    cv2 = _opencv()
    heat = _unit(heat, normalise, "box_accuracy, convention reference")
    gray = (heat * 255).astype(np.uint8)
    height, width = gray.shape
    cuts = (thresholds * float(gray.max())).astype(np.uint8)  # int() of the published code: down
    # Cuts between the same two gray levels that occur give the same mask.
    present = np.flatnonzero(np.bincount(gray.ravel(), minlength=256))
    _, chosen, place = np.unique(
        np.searchsorted(present, cuts, side="right"), return_index=True, return_inverse=True
    )
    boxes: list[tuple[int, int, int, int]] = []
    starts = []
    for level in cuts[chosen]:
        starts.append(len(boxes))
        mask = (gray > level).view(np.uint8)
        contours = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[-2]
        if components == "largest" and contours:
            contours = [max(contours, key=cv2.contourArea)]
        boxes += map(cv2.boundingRect, contours) if contours else [(0, 0, 0, 0)]
    found = np.array(boxes, np.int64)
    found[:, 2:] = np.minimum(found[:, :2] + found[:, 2:], (width - 1, height - 1))
    return found, np.array(starts), place


@dataclass(frozen=True)
class PixelAveragePrecision:
    """What `pixel_average_precision` found."""

    value: float
    """PxAP in percent; NaN without foreground."""
    interval: tuple[float, float]
    """95 %, bootstrapped over pictures; NaN if not asked for."""
    thresholds: NDArray[np.float64]
    """Falling, `(L,)`."""
    precision: NDArray[np.float64]
    """Share of the pixels at or above each threshold that are foreground, 0 to 1; NaN where there are none."""
    recall: NDArray[np.float64]
    """Share of the foreground at or above each threshold, 0 to 1."""
    pictures: int


def pixel_average_precision(
    score_maps: Iterable[ArrayLike],
    masks: Iterable[ArrayLike],
    thresholds: ArrayLike,
    *,
    normalise: bool = False,
    repeats: int = 1000,
    seed: int = 0,
) -> PixelAveragePrecision:
    """Area under the precision–recall curve of the pooled pixels of all pictures (PxAP, section 4).

    `score_maps`: `(H, W)` each, in [0, 1] or scaled to it with `normalise`; a map that is not finite counts as zeros.
    `masks`: `(H, W)` each, 1 (or True) foreground, 0 background, 255 ignored. `thresholds (T,)`: rising, 0 to 1, the edges
    of the bins in which scores are counted (the last holds exactly 1); scores below the first are left out.
    `repeats`: how often pictures are resampled for the interval (each picture as often as a Poisson number says, so
    that no picture need be kept); 0 for none.
    """
    tally = PixelTally(thresholds, repeats=repeats, seed=seed)
    for heat, mask in _pairs(score_maps, masks, "pixel_average_precision", "maps", "masks"):
        tally.add(heat, mask, normalise=normalise)
    return tally.result()


class PixelTally:
    """`pixel_average_precision`, one picture after another: it keeps counts alone."""

    def __init__(self, thresholds: ArrayLike, *, repeats: int = 1000, seed: int = 0) -> None:
        levels = _thresholds(thresholds)
        if not len(levels) or (np.diff(levels) <= 0).any():
            raise UsageError(
                "pixel_average_precision(thresholds=…)", got=f"{levels}", allowed="rising, at least one"
            )
        self.pictures = 0
        self._edges = np.append(levels, [1.0, 2.0] if levels[-1] < 1 else [2.0])
        self._generator = np.random.default_rng(seed)
        self._total = np.zeros((1, 2, len(self._edges) - 1))
        self._resampled = np.zeros((repeats, 2, len(self._edges) - 1))
        self._waiting: list[NDArray[np.int64]] = []

    def add(self, heat: ArrayLike, mask: ArrayLike, *, normalise: bool = False) -> None:
        """Counts the pixels of one picture."""
        self._waiting.append(_counted(as_map(heat), np.asarray(mask), self._edges, normalise))
        self.pictures += 1
        if len(self._waiting) == BLOCK:
            self._settle()

    def result(self) -> PixelAveragePrecision:
        """Of the pictures so far."""
        self._settle()
        precision, recall, value = _area(self._total)
        interval = (np.nan, np.nan)
        if len(self._resampled) and self.pictures:
            figures = _area(self._resampled)[2]
            if np.isfinite(figures).any():
                interval = metrics.middle(figures[np.isfinite(figures)])
        return PixelAveragePrecision(
            float(value[0]), interval, self._edges[-2::-1], precision[0], recall[0], self.pictures
        )

    def _settle(self) -> None:
        if not self._waiting:
            return
        counts = np.array(self._waiting, np.float64).reshape(len(self._waiting), -1)
        self._total[0] += counts.sum(0).reshape(2, -1)
        repeats = len(self._resampled)
        if repeats:
            times = self._generator.poisson(1.0, (len(self._waiting), repeats)).astype(np.float64)
            self._resampled += (times.T @ counts).reshape(self._resampled.shape)
        self._waiting.clear()


def _counted(
    heat: NDArray[np.float64], mask: NDArray[Any], edges: NDArray[np.float64], normalise: bool
) -> NDArray[np.int64]:
    """How many foreground and background pixels `(2, L)` have their score in each bin."""
    if mask.shape != heat.shape:
        raise UsageError(
            "pixel_average_precision",
            got=f"a map {heat.shape}, its mask {mask.shape}",
            allowed="equal shapes",
        )
    known = (mask == 0) | (mask == 1) | (mask == IGNORED)
    if not known.all():
        raise UsageError("a mask", got=f"{mask[~known][0]}", allowed="0, 1 and 255 (ignored)")
    heat = _unit(heat, normalise, "pixel_average_precision")
    return np.array([np.histogram(heat[mask == side], edges)[0] for side in (1, 0)])


def _unit(heat: NDArray[np.float64], normalise: bool, what: str) -> NDArray[np.float64]:
    """The map in [0, 1] as the published code prepares it: min-max scaled if asked; zeros if then constant, or not finite."""
    low, high = heat.min(), heat.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        return np.zeros_like(heat)
    if normalise:
        return (heat - low) / (high - low) if high > low else np.zeros_like(heat)
    if low < 0 or high > 1:
        raise UsageError(
            what,
            got=f"a map from {low:g} to {high:g}",
            allowed="0 to 1",
            do="normalise=True scales each map",
        )
    return heat


def _area(
    counts: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Counts `(R, 2, L)` in rising bins → precision and recall `(R, L)` at falling thresholds, area `(R,)` in percent."""
    above = counts[:, :, ::-1].cumsum(-1)
    inside, outside = above[:, 0], above[:, 1]
    with np.errstate(invalid="ignore"):
        precision = inside / (inside + outside)
        recall = inside / inside[:, -1:]
    steps = np.diff(recall, axis=-1, prepend=0)
    return precision, recall, 100 * (np.nan_to_num(precision) * steps).sum(-1)


def _pairs(
    first: Iterable[Any], second: Iterable[Any], what: str, one: str, other: str
) -> Iterator[tuple[Any, Any]]:
    """zip, but a different number of both is a UsageError."""
    end = object()
    left, right = iter(first), iter(second)
    count = 0
    while True:
        a, b = next(left, end), next(right, end)
        if a is end and b is end:
            return
        if a is end or b is end:
            more, fewer = (other, one) if a is end else (one, other)
            raise UsageError(what, got=f"{count} {fewer} and more {more}", allowed="one for one")
        count += 1
        yield a, b


def _thresholds(thresholds: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(thresholds, np.float64)
    if values.ndim != 1 or not len(values) or not ((values >= 0) & (values <= 1)).all():
        raise UsageError("thresholds", got=f"{values}", allowed="a list of numbers from 0 to 1")
    return values


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise UsageError(
            "convention reference", got="no OpenCV", do="pip install 'camlucida[wsol]'"
        ) from error
    return cv2
