"""Several views of one picture → one map, in the picture's own frame."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from camlucida.errors import UsageError
from camlucida.images.views import Preprocessing
from camlucida.values import HeatMaps, Size, View

TEN_CROP = (
    256,
    224,
)  # sides of the squashed picture and of its crops, as released; other cards keep the ratio
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
        parts = [self.crops] if self.crops else []
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
    each = [list(maps.in_source(limit)) for maps in views]
    merged = []
    for i, one in enumerate(zip(*each, strict=True)):
        total = torch.stack(one)
        if all(maps.views[i] is None or maps.views[i].is_whole for maps in views):  # type: ignore[union-attr]
            merged.append(total.mean(0))
            continue
        looked = sum(maps.looked(i, limit).to(total) for maps in views)
        merged.append(total.sum(0) / torch.as_tensor(looked).clamp(min=1))
    return tuple(merged)


def of_classes(every: HeatMaps, classes: Tensor) -> HeatMaps:
    """Of maps of all classes, those of `classes (N, K)`."""
    rows = torch.arange(len(classes), device=classes.device)[:, None]
    return replace(
        every, values=every.values[rows, classes], classes=classes, scores=every.scores[rows, classes]
    )
