"""Several views of one picture → one map, in the picture's own frame."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camlucida.errors import UsageError
from camlucida.images.views import Preprocessing
from camlucida.values import HeatMaps, Size, View, between_cells, source_samples

TEN_CROP = (256, 224)  # sides of the squashed picture and of its crops; other cards keep the ratio
CROPS = {"ten-crop": "absolute", "crops": "mean"}  # word → how its maps are merged
ALLOWED = "1 | flip | scales | flip+scales | flip+0.75+1 | ten-crop | crops"


@dataclass(frozen=True)
class Views:
    """Which views of a picture are merged: the whole picture at each zoom of the card's size, and its mirror image if
    `flip`; or, with `crops`, ten crops instead: corners and centre of the squashed picture, each also mirrored.
    `ten-crop` merges them as the CAM paper's code does (see `merge`), `crops` by their mean."""

    zooms: tuple[float, ...] = (1.0,)
    flip: bool = False
    crops: Literal["", "ten-crop", "crops"] = ""

    def __post_init__(self) -> None:
        if not self.zooms or not all(0.1 <= z <= 10 for z in self.zooms):
            raise UsageError("views", got=self.zooms, allowed="zooms in 0.1 … 10")
        if self.crops and (self.crops not in CROPS or self.flip or self.zooms != (1.0,)):
            raise UsageError(
                "views", got=str(self), allowed="ten-crop or crops by itself, without flip or zooms"
            )

    def of(self, source: Size, shape: Preprocessing) -> tuple[View, ...]:
        """The views of a picture of that size."""
        if self.crops:
            return ten_crops(source, shape)
        flips = (False, True) if self.flip else (False,)
        return tuple(shape.view(source, "whole", zoom, flip) for zoom in self.zooms for flip in flips)

    @property
    def count(self) -> int:
        """Views per picture."""
        return 10 if self.crops else len(self.zooms) * (1 + self.flip)

    @property
    def how(self) -> Literal["mean", "absolute"]:
        """How `merge` puts their maps together."""
        return "absolute" if self.crops == "ten-crop" else "mean"

    @classmethod
    def parse(cls, spec: str | int | Views) -> Views:
        """`1`: the picture once; `flip`: and its mirror; `scales`: zooms 1, 1.5, 2; `flip+1+1.5`: your own
        zooms; `ten-crop`, `crops`. Raises UsageError."""
        if isinstance(spec, Views):
            return spec
        words = [w for w in re.split(r"[+,\s]+", str(spec).strip().lower()) if w]
        flip, crops, zooms = False, "", list[float]()
        for word in words:
            if word in ("flip", "flips"):
                flip = True
            elif word in CROPS:
                crops = word
            elif word in ("scale", "scales"):
                zooms += [1.0, 1.5, 2.0]
            else:
                try:
                    zooms.append(float(word))
                except ValueError:
                    raise UsageError("views", got=repr(spec), allowed=ALLOWED) from None
        return cls(tuple(dict.fromkeys(zooms)) or (1.0,), flip, crops)  # type: ignore[arg-type]

    def __str__(self) -> str:
        parts: list[str] = [self.crops] if self.crops else []
        parts += ["flip"] if self.flip else []
        parts += [f"{z:g}" for z in self.zooms] if not self.crops or self.zooms != (1.0,) else []
        return "+".join(parts)


def ten_crops(source: Size, shape: Preprocessing) -> tuple[View, ...]:
    """Four corners and the centre of the picture squashed to a square, then the same mirrored (CAM paper, section 2,
    released code): 224 of 256, or in that ratio around the card's own side."""
    big, small = TEN_CROP
    side = max(shape.crop or shape.size, shape.minimum)
    square = max(round(side * big / small), side)
    far, middle = square - side, (square - side) // 2
    corners = ((0, 0), (0, far), (far, 0), (far, far), (middle, middle))
    return tuple(
        View(source, Size(square, square), (top, left, side, side), flip)
        for flip in (False, True)
        for top, left in corners
    )


def merge(
    views: Sequence[HeatMaps], limit: int | None = None, how: Literal["mean", "absolute"] = "mean"
) -> tuple[Tensor, ...]:
    """Each picture's maps of all views as one, in source pixels: a tuple of `(K, H, W)`. The views show the same
    pictures in the same order, with the same targets.

    `mean`: of the views that look at a pixel. `absolute`: the sum of absolute values, not divided by how many views
    look there, as in the CAM paper's code.
    """
    if how == "absolute":
        each = [[one.abs() for one in maps.in_source(limit)] for maps in views]
        return tuple(torch.stack(one).sum(0) for one in zip(*each, strict=True))
    if len(views) == 1:
        return views[0].in_source(limit)
    values = [maps.in_view() if maps.grid.kind == "places" else maps.values for maps in views]
    shown = zip(*(maps.views for maps in views), strict=True)
    return tuple(_mean([one[i] for one in values], pair, limit) for i, pair in enumerate(shown))


def _mean(maps: Sequence[Tensor], views: Sequence[View | None], limit: int | None) -> Tensor:
    """The mean of one picture's maps `(K, h, w)` of each view, over the views that look at a pixel. Laying a map M
    over the picture is linear, Y M Xᵀ, so their sum is one product, [Y₁ Y₂ …] [M₁X₁ᵀ; M₂X₂ᵀ; …]: only the mean gets
    as large as the picture; and so is the count of views, of ones where each looks. In float64, so that equal values
    stay equal."""
    places: list[tuple[Tensor, Tensor]] = []
    across: dict[tuple, Tensor] = {}  # of views with the same rows, as a view and its mirror image, the sum
    down: dict[tuple, Tensor] = {}
    for one, view in zip(maps, views, strict=True):
        y, x = _axes(view, one.ndim - 1, (one.shape[1], one.shape[2]), limit)
        assert view is not None  # source_samples has refused maps without a view
        y, x = y.to(one.device), x.to(one.device)
        places.append((y, x))
        laid = one.double() @ x.T
        same = (view.source, view.resized.height, view.crop[0], view.crop[2], one.shape[1])
        across[same], down[same] = across[same] + laid if same in across else laid, y
    whole = all(view is not None and view.is_whole for view in views)  # every view looks at every pixel
    beside = torch.cat(list(across.values()), 1)
    total = torch.cat(list(down.values()), 1) @ (beside / len(views) if whole else beside)
    if whole:
        return total.to(maps[0].dtype)
    looking = torch.stack([y.any(1) for y, _ in places], 1).double()
    count = looking @ torch.stack([x.any(1) for _, x in places]).double()
    return (total / count.clamp(min=1)).to(maps[0].dtype)


@lru_cache(maxsize=64)
def _axes(view: View | None, axes: int, cells: tuple[int, int], limit: int | None) -> tuple[Tensor, Tensor]:
    """The weights of the cells in the samples along both axes: pictures of one size share them."""
    y, x = source_samples(view, axes, limit)
    assert view is not None
    return _weights(y, view.size.height, cells[0]), _weights(x, view.size.width, cells[1])


def _weights(at: NDArray[np.float64], length: int, cells: int) -> Tensor:
    """`(samples, cells)`: the share of each cell in a sample `at` a place on an axis of `length` pixels that the
    cells cover; none where the view did not look."""
    low, high, share = between_cells(at * (cells / length) - 0.5, cells)
    weights = np.zeros((len(at), cells))
    samples = np.arange(len(at))
    weights[samples, low] = 1 - share
    weights[samples, high] += share
    weights[(at <= 0) | (at >= length)] = 0
    return torch.from_numpy(weights)


def of_classes(every: HeatMaps, classes: Tensor) -> HeatMaps:
    """Of maps of all classes, those of `classes (N, K)`."""
    rows = torch.arange(len(classes), device=classes.device)[:, None]
    return replace(
        every, values=every.values[rows, classes], classes=classes, scores=every.scores[rows, classes]
    )
