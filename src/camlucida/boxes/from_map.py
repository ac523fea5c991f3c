"""From map to box by one threshold: the simple rules (section 3.1), and what all rules share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from camlucida.errors import UsageError
from camlucida.values import Box, HeatMaps, Reconstruction, ScoredBox, Size

MAX_SIDE = 1024
"""Maps are thresholded after upsampling to the picture (section 3.1), but to at most this many samples along
the longer side, so that 12-megapixel photographs stay cheap; a box is then exact to longer side / 1024."""

Boxes: TypeAlias = tuple[tuple[tuple[ScoredBox, ...], ...], ...]
"""Over pictures, over targets: the boxes of one map."""

Window: TypeAlias = tuple[slice, slice]


class Rule(Protocol):
    """How a map becomes boxes; stateless, all options are fields with defaults."""

    @property
    def level(self) -> float | None:
        """The number to report as the threshold, None where there is not one."""

    def on_map(self, heat: NDArray[Any], size: Size) -> tuple[ScoredBox, ...]:
        """Boxes, at least one, of a map `(H, W)` laid over a source picture of `size`, whatever H and W."""

    def __call__(self, maps: HeatMaps) -> Boxes:
        """Boxes of every map, thresholded in source pixels (at most `MAX_SIDE` a side)."""


@runtime_checkable
class ColourRule(Rule, Protocol):
    """A rule that looks at the picture's colours, too."""

    def on_picture(self, heat: NDArray[Any], picture: Image.Image) -> tuple[ScoredBox, ...]:
        """As `on_map`, with the picture that the map is laid over, whatever H and W."""


def boxes_of(
    rule: Rule, heat: NDArray[Any], size: Size, picture: Callable[[], Image.Image]
) -> tuple[ScoredBox, ...]:
    """The rule's boxes of one map; `picture` is asked for where the rule looks at colours."""
    return rule.on_picture(heat, picture()) if isinstance(rule, ColourRule) else rule.on_map(heat, size)


@dataclass(frozen=True)
class FractionOfMax:
    """Pixels strictly above a share of the map's maximum (section 3.1).

    A constant, non-finite or nowhere positive map gives the whole picture (`ScoredBox.whole`, score 0).
    """

    threshold: float = 0.2
    """Share of the maximum, 0 to 1."""
    components: Literal["largest", "all"] = "largest"
    """`largest`: the component of most pixels, ties to the first in raster order; `all`: by falling size."""
    connectivity: Literal[8, 4] = 8
    """Whether pixels touch at corners (8) or only at edges (4)."""
    normalise: bool = False
    """Min-max scale the map first, so that the share counts from the minimum instead of from zero."""

    def __post_init__(self) -> None:
        check_between("FractionOfMax.threshold", self.threshold, 0, 1)
        _check_components(self)

    @property
    def level(self) -> float:
        return self.threshold

    def on_map(self, heat: NDArray[Any], size: Size) -> tuple[ScoredBox, ...]:
        usable = usable_map(heat, self.normalise)
        if usable is None:
            return (whole_picture(size),)
        return _boxes_above(usable, cut(usable, self.threshold), self, size)

    def __call__(self, maps: HeatMaps) -> Boxes:
        return over_maps(self, maps)


@dataclass(frozen=True)
class Quantile:
    """Pixels strictly above a quantile of the map; a constant or non-finite map gives the whole picture,
    flagged."""

    q: float = 0.8
    """The quantile, 0 to 1 (linear interpolation between pixels)."""
    components: Literal["largest", "all"] = "largest"
    """`largest`: the component of most pixels, ties to the first in raster order; `all`: by falling size."""
    connectivity: Literal[8, 4] = 8
    """Whether pixels touch at corners (8) or only at edges (4)."""

    def __post_init__(self) -> None:
        check_between("Quantile.q", self.q, 0, 1)
        _check_components(self)

    @property
    def level(self) -> float:
        return self.q

    def on_map(self, heat: NDArray[Any], size: Size) -> tuple[ScoredBox, ...]:
        values = as_map(heat)
        if not np.isfinite(values).all():
            return (whole_picture(size),)
        return _boxes_above(values, float(np.quantile(values, self.q)), self, size)

    def __call__(self, maps: HeatMaps) -> Boxes:
        return over_maps(self, maps)


@dataclass(frozen=True)
class FixedLevel:
    """Pixels strictly above an absolute level; the whole picture, flagged, if there are none or one is not
    finite."""

    value: float = 0.0
    """The level, in the map's own unit."""
    components: Literal["largest", "all"] = "largest"
    """`largest`: the component of most pixels, ties to the first in raster order; `all`: by falling size."""
    connectivity: Literal[8, 4] = 8
    """Whether pixels touch at corners (8) or only at edges (4)."""

    def __post_init__(self) -> None:
        check_between("FixedLevel.value", self.value, -np.finfo(np.float64).max, np.finfo(np.float64).max)
        _check_components(self)

    @property
    def level(self) -> float:
        return self.value

    def on_map(self, heat: NDArray[Any], size: Size) -> tuple[ScoredBox, ...]:
        values = as_map(heat)
        if not np.isfinite(values).all():
            return (whole_picture(size),)
        return _boxes_above(values, self.value, self, size)

    def __call__(self, maps: HeatMaps) -> Boxes:
        return over_maps(self, maps)


def over_maps(rule: Rule, maps: HeatMaps) -> Boxes:
    """`rule.on_map` of every map, in source pixels."""
    return tuple(tuple(rule.on_map(heat, size) for heat in heats) for heats, size in in_pictures(maps))


def in_pictures(maps: HeatMaps) -> Iterator[tuple[NDArray[np.float32], Size]]:
    """For each picture its maps `(K, H, W)` over the whole picture, at most `MAX_SIDE` a side; its size.
    Raises UsageError for what is no heat map."""
    if isinstance(maps, Reconstruction):
        raise UsageError("boxes", got=f"the signed picture that {maps.method} makes", allowed="heat maps")
    for heats, view in zip(maps.in_source(limit=MAX_SIDE), maps.views, strict=True):
        assert view is not None  # in_source has refused maps without a view
        yield heats.detach().float().cpu().numpy(), view.source


def as_map(heat: ArrayLike) -> NDArray[np.float64]:
    """A map `(H, W)` in float64, which holds every float32 exactly; UsageError for any other shape."""
    values = np.asarray(heat, np.float64)
    if values.ndim != 2 or values.size == 0:
        raise UsageError("a map to box", got=f"shape {values.shape}", allowed="(H, W), at least 1 × 1")
    return values


def usable_map(heat: ArrayLike, normalise: bool = False) -> NDArray[np.float64] | None:
    """The map in float64, min-max scaled if asked; None if constant, not finite or then nowhere positive."""
    values = as_map(heat)
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)) or low == high:
        return None
    if normalise:
        return (values - low) / (high - low)
    return values if high > 0 else None


def cut(usable: NDArray[np.float64], threshold: Any) -> Any:
    """The value that pixels must exceed: a share (or an array of shares) of the maximum, in float64."""
    return np.asarray(threshold, np.float64) * usable.max()


def components(
    mask: NDArray[np.bool_], connectivity: int, which: Literal["largest", "all"] = "all"
) -> tuple[NDArray[np.integer], list[tuple[int, Window]]]:
    """Connected components of a mask: labels `(H, W)` and for each its label and window, by falling pixel
    count, ties by the first pixel in raster order; `largest`: the first of them alone, without sorting."""
    labels, count = ndimage.label(mask, ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2))
    if count == 1:
        return labels, [(1, _window(mask))]
    flat = labels.ravel()
    areas = np.bincount(flat, minlength=count + 1)
    if which == "largest" and count:
        most = np.flatnonzero(areas[1:] == areas[1:].max()) + 1
        if len(most) == 1:
            return labels, [(int(most[0]), _window(labels == most[0]))]
    first = np.zeros(count + 1, np.int64)
    places = np.flatnonzero(flat)[::-1]
    first[flat[places]] = places  # of repeated labels the last write stays: the smallest place
    order = np.lexsort((first[1:], -areas[1:]))
    windows = ndimage.find_objects(labels)
    found = [(int(i) + 1, windows[i]) for i in order]
    return labels, found if which == "all" else found[:1]


def _window(mask: NDArray[np.bool_]) -> Window:
    """The smallest (rows, columns) that hold a mask, which is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def to_source(corners: ArrayLike, shape: tuple[int, ...], size: Size) -> NDArray[np.float64]:
    """Half-open corners `(..., 4)` on a grid of `shape` (H, W) → source pixels of a picture of `size`."""
    scale = (size.width, size.height, size.width, size.height)
    return np.asarray(corners, np.float64) * scale / (shape[1], shape[0], shape[1], shape[0])


def corners_of(window: Window) -> tuple[int, int, int, int]:
    """Half-open (x0, y0, x1, y1) of a (rows, columns) window."""
    rows, columns = window
    return columns.start, rows.start, columns.stop, rows.stop


def whole_picture(size: Size) -> ScoredBox:
    """What a map without a component gives."""
    return ScoredBox(Box(0.0, 0.0, float(size.width), float(size.height)), 0.0, whole=True)


def relative_peak(inside: NDArray[np.float64], maximum: float) -> float:
    """The peak of some pixels over the map's maximum, in [0, 1]; 0 if the maximum is not positive."""
    return float(min(max(inside.max() / maximum, 0.0), 1.0)) if maximum > 0 else 0.0


def check_between(what: str, value: object, low: float, high: float) -> None:
    """UsageError unless low ≤ value ≤ high (which NaN is not)."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not low <= value <= high:
        raise UsageError(what, got=repr(value), allowed=f"a number from {low:g} to {high:g}")


def check_choice(what: str, value: object, allowed: Iterable[object]) -> None:
    """UsageError unless the value is one of those allowed."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise UsageError(what, got=repr(value), allowed=" | ".join(str(a) for a in allowed))


def _check_components(rule: FractionOfMax | Quantile | FixedLevel) -> None:
    check_choice(f"{type(rule).__name__}.components", rule.components, ("largest", "all"))
    check_choice(f"{type(rule).__name__}.connectivity", rule.connectivity, (8, 4))


def _boxes_above(
    values: NDArray[np.float64], level: float, rule: FractionOfMax | Quantile | FixedLevel, size: Size
) -> tuple[ScoredBox, ...]:
    if rule.components == "largest":
        one = _largest(values, level, rule.connectivity)
        if one is None:
            return (whole_picture(size),)
        corners, score = one
        return (ScoredBox(Box(*to_source(corners, values.shape, size).tolist()), score),)
    labels, found = components(values > level, rule.connectivity)
    if not found:
        return (whole_picture(size),)
    maximum = float(values.max())
    boxes = []
    for label, window in found:
        score = relative_peak(values[window][labels[window] == label], maximum)
        boxes.append(ScoredBox(Box(*to_source(corners_of(window), values.shape, size).tolist()), score))
    return tuple(boxes)


def _largest(
    values: NDArray[np.float64], level: float, connectivity: int
) -> tuple[tuple[int, int, int, int], float] | None:
    """Corners of the first of `components(values > level)` and the relative peak in it; None without any. Built from
    the runs of pixels along each row, of which there are a few hundred where there are 100,000 pixels."""
    width = values.shape[1]
    stride, reach = width + 2, int(connectivity == 8)  # a row of the mask, a blank before and behind it
    mask = np.zeros((len(values), stride), np.bool_)
    np.greater(values, level, out=mask[:, 1:-1])
    edges = np.flatnonzero(mask.ravel()[1:] != mask.ravel()[:-1])
    starts, stops = edges[::2], edges[1::2]
    if not len(starts):
        return None
    # Runs of the next row that touch a run follow one another: from `first` on, `count` of them.
    first = np.searchsorted(stops, starts + stride - reach, side="right")
    count = np.searchsorted(starts, stops + stride + reach, side="left") - first
    ends = np.cumsum(count)
    touched = np.arange(ends[-1]) + np.repeat(first - (ends - count), count)
    graph = csr_array((np.ones(len(touched), np.int8), touched, np.append(0, ends)), (len(starts),) * 2)
    labels = connected_components(graph, directed=False)[1]
    areas = np.bincount(labels, stops - starts)
    mine = labels == labels[np.argmax((areas == areas.max())[labels])]
    row = starts[mine] // stride
    left, right = starts[mine] - row * stride, stops[mine] - row * stride
    maximum = values.max()
    y, x = divmod(int(values.argmax()), width)
    inside = bool(((row == y) & (left <= x) & (x < right)).any())
    peaks = (values[y, a:b].max() for y, a, b in zip(row, left, right, strict=True))
    peak = relative_peak(np.asarray(maximum if inside else max(peaks)), float(maximum))
    return (int(left.min()), int(row[0]), int(right.max()), int(row[-1]) + 1), peak
