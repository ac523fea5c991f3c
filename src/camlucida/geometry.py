"""Where things lie: sizes, boxes, views of a picture, the grid of a map over a view, and the map's values between its
cells. Coordinates are continuous, pixel centres at +0.5, x along width, y along height."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from camlucida.display import Shown, sides
from camlucida.errors import UsageError


@dataclass(frozen=True, order=True)
class Size(Shown):
    """Height and width in pixels, both ≥ 1."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise UsageError("Size", got=f"{self.height} × {self.width}", allowed="at least 1 × 1")

    def with_short_side(self, short: int) -> Size:
        """The same shape with its shorter side `short`; the other side is rounded half up (isotropic, section
        0)."""
        scale = short / min(self.height, self.width)
        return Size(
            max(1, math.floor(self.height * scale + 0.5)), max(1, math.floor(self.width * scale + 0.5))
        )

    def __str__(self) -> str:
        return f"{self.height} × {self.width}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        return [("height", self.height), ("width", self.width)]


@dataclass(frozen=True)
class Box(Shown):
    """Half-open box in source pixels (the picture after EXIF rotation): x0 ≤ x < x1, y0 ≤ y < y1, floats."""

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        if not (self.x0 <= self.x1 and self.y0 <= self.y1):  # also refuses NaN
            raise UsageError("Box", got=f"{self.corners}", allowed="x0 ≤ x1 and y0 ≤ y1")

    @property
    def corners(self) -> tuple[float, float, float, float]:
        return (self.x0, self.y0, self.x1, self.y1)

    @property
    def area(self) -> float:
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def clipped(self, size: Size) -> Box:
        """The part inside a picture of that size."""
        x0, x1 = (min(max(x, 0.0), size.width) for x in (self.x0, self.x1))
        y0, y1 = (min(max(y, 0.0), size.height) for y in (self.y0, self.y1))
        return Box(x0, y0, x1, y1)

    def __str__(self) -> str:
        return f"({self.x0:g}, {self.y0:g}) to ({self.x1:g}, {self.y1:g})"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "corners (x, y)", str(self)
        yield "width × height", f"{self.x1 - self.x0:g} × {self.y1 - self.y0:g} source pixels"


@dataclass(frozen=True)
class ScoredBox(Shown):
    """A box in source pixels; `score` in [0, 1] is the peak inside it over the map's maximum. `whole` says
    that the map had no component and the box is the whole picture."""

    box: Box
    score: float
    whole: bool = False

    def __str__(self) -> str:
        return f"{self.box} score {self.score:.3g}" + (" (the whole picture)" if self.whole else "")

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield from self.box._facts()
        yield "score", f"{self.score:.4g}"
        yield "whole picture", "yes: the map had no component" if self.whole else "no"


@dataclass(frozen=True)
class View(Shown):
    """What a network is shown of a picture: resize the whole, cut `crop`, mirror if `flip`.

    `crop` is `(top, left, height, width)` in resized pixels. `to_view` and `to_source` are exact inverses.
    """

    source: Size
    resized: Size
    crop: tuple[int, int, int, int]
    flip: bool = False

    def __post_init__(self) -> None:
        top, left, height, width = self.crop
        if height < 1 or width < 1:
            raise UsageError("View.crop", got=self.crop, allowed="a crop of at least 1 × 1 pixel")
        if top < 0 or left < 0 or top + height > self.resized.height or left + width > self.resized.width:
            raise UsageError(
                "View.crop", got=self.crop, allowed=f"inside {self.resized.height} × {self.resized.width}"
            )

    @classmethod
    def whole(cls, source: Size, resized: Size | None = None, flip: bool = False) -> View:
        """The whole picture, at `resized` (default: its own size)."""
        resized = resized or source
        return cls(source, resized, (0, 0, resized.height, resized.width), flip)

    @property
    def size(self) -> Size:
        """Size of what the network sees."""
        return Size(self.crop[2], self.crop[3])

    @property
    def is_whole(self) -> bool:
        return self.crop == (0, 0, self.resized.height, self.resized.width)

    def to_view(self, points: ArrayLike) -> NDArray[np.float64]:
        """Points `(..., 2)` as (x, y), source pixels → view pixels."""
        points = np.asarray(points, np.float64)
        top, left, _, width = self.crop
        x = points[..., 0] * (self.resized.width / self.source.width) - left
        y = points[..., 1] * (self.resized.height / self.source.height) - top
        return np.stack([width - x if self.flip else x, y], axis=-1)

    def to_source(self, points: ArrayLike) -> NDArray[np.float64]:
        """Points `(..., 2)` as (x, y), view pixels → source pixels."""
        points = np.asarray(points, np.float64)
        top, left, _, width = self.crop
        x = width - points[..., 0] if self.flip else points[..., 0]
        x = (x + left) * (self.source.width / self.resized.width)
        y = (points[..., 1] + top) * (self.source.height / self.resized.height)
        return np.stack([x, y], axis=-1)

    def box_to_view(self, box: Box) -> Box:
        return _box_through(self.to_view, box)

    def box_to_source(self, box: Box) -> Box:
        return _box_through(self.to_source, box)

    def show(self, picture: Image.Image, interpolation: str = "bilinear") -> Image.Image:
        """The picture (of size `source`) through this view, antialiased when shrinking."""
        if (picture.height, picture.width) != (self.source.height, self.source.width):
            raise UsageError(
                "View.show",
                got=f"a picture of {picture.height} × {picture.width}",
                allowed=f"{self.source.height} × {self.source.width}",
            )
        top, left, height, width = self.crop
        x0, y0 = left * self.source.width / self.resized.width, top * self.source.height / self.resized.height
        x1 = min((left + width) * self.source.width / self.resized.width, self.source.width)
        y1 = min((top + height) * self.source.height / self.resized.height, self.source.height)
        how = Image.Resampling[interpolation.upper()]
        # Resizing the region alone equals, up to a rounding of one grey level, resizing the whole and cutting: Pillow's
        # kernel reads past the region.
        shown = (
            picture
            if self.is_whole and self.resized == self.source
            else picture.resize((width, height), how, (x0, y0, x1, y1))
        )
        return shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else shown

    def __str__(self) -> str:
        top, left, *_ = self.crop
        cut = "" if self.is_whole else f", cut to {self.size} from row {top}, column {left}"
        return f"{self.source} → {self.resized}{cut}{', mirrored' if self.flip else ''}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "source", f"{self.source} pixels"
        yield "resized", f"{self.resized} pixels"
        top, left, *_ = self.crop
        yield "crop", "none" if self.is_whole else f"{self.size} from row {top}, column {left}"
        yield "mirrored", "yes" if self.flip else "no"


def _box_through(move: Any, box: Box) -> Box:
    (ax, ay), (bx, by) = move([(box.x0, box.y0), (box.x1, box.y1)])
    return Box(min(ax, bx), min(ay, by), max(ax, bx), max(ay, by))


@dataclass(frozen=True)
class Grid(Shown):
    """Where the cells of a map lie in view pixels, per axis: centre of cell 0, stride, extent (receptive
    field or occluder). `kind` is `features` (cells of a layer) or `places` (positions of an occluder)."""

    view: tuple[int, ...]
    offset: tuple[float, ...]
    stride: tuple[float, ...]
    extent: tuple[float, ...]
    kind: Literal["features", "places"] = "features"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "cells are", "cells of a layer" if self.kind == "features" else "places of an occluder"
        yield "view", f"{sides(self.view)} pixels"
        yield "centre of cell 0", f"{', '.join(f'{o:g}' for o in self.offset)} (axes as in the view)"
        yield "stride", f"{sides(self.stride)} pixels"
        yield "extent", f"{sides(self.extent)} pixels"


def source_samples(
    view: View | None, axes: int, limit: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the samples of a map over the source picture lie, in view pixels: y `(H,)` and x `(W,)`. `axes`
    of the map, and `limit`, the longest side: as for `HeatMaps.in_source`."""
    if view is None or axes != 2:
        raise UsageError(
            "in_source", got=f"maps over {axes} axes", allowed="2-D pictures", do="use .in_view()"
        )
    height, width = view.source.height, view.source.width
    if limit is not None and max(height, width) > limit:
        factor = limit / max(height, width)
        height, width = max(1, round(height * factor)), max(1, round(width * factor))
    xs = (np.arange(width) + 0.5) * (view.source.width / width)
    ys = (np.arange(height) + 0.5) * (view.source.height / height)
    x = view.to_view(np.stack([xs, np.zeros_like(xs)], -1))[:, 0]
    y = view.to_view(np.stack([np.zeros_like(ys), ys], -1))[:, 1]
    return y, x


def between_cells(at: NDArray[Any], cells: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
    """The two cells between which coordinates `at` lie (0 = centre of the first cell; edges repeated), and the
    share of the second."""
    at = np.clip(at, 0, cells - 1)
    low = np.minimum(np.floor(at).astype(np.int64), max(cells - 2, 0))
    return low, np.minimum(low + 1, cells - 1), at - low


def sample(values: Tensor, axis: int, at: NDArray[np.float64]) -> Tensor:
    """Linear interpolation along one axis at cell coordinates `at`."""
    low, high, share = between_cells(at, values.shape[axis])
    part = torch.from_numpy(share).to(values.device, values.dtype)
    part = part.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    below = values.index_select(axis, torch.from_numpy(low).to(values.device))
    above = values.index_select(axis, torch.from_numpy(high).to(values.device))
    return torch.lerp(below, above, part)


def coverage_mean(values: Tensor, grid: Grid) -> Tensor:
    """Mean over the occluders covering each pixel: a sum and a count, separable because occluders are
    boxes."""
    for axis, (length, offset, stride, extent) in enumerate(
        zip(grid.view, grid.offset, grid.stride, grid.extent, strict=True)
    ):
        places = values.shape[2 + axis]
        starts = torch.arange(places, device=values.device) * stride + (offset - extent / 2)
        pixels = torch.arange(length, device=values.device)[:, None] + 0.5
        covered = ((pixels > starts) & (pixels < starts + extent)).to(values.dtype)
        covered = covered / covered.sum(1, keepdim=True).clamp(min=1)
        values = torch.movedim(torch.movedim(values, 2 + axis, -1) @ covered.T, -1, 2 + axis)
    return values
