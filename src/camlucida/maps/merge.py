"""Several views of one picture → one map, in the picture's own frame."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from camlucida.errors import UsageError
from camlucida.values import HeatMaps


@dataclass(frozen=True)
class Views:
    """Which views of the whole picture are merged: each zoom of the card's size, and its mirror image if
    `flip`."""

    zooms: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.zooms or not all(0.1 <= z <= 10 for z in self.zooms):
            raise UsageError("views", got=self.zooms, allowed="zooms in 0.1 … 10")

    @property
    def each(self) -> tuple[tuple[float, bool], ...]:
        """(zoom, mirrored) of each view."""
        return tuple(
            (zoom, flip) for zoom in self.zooms for flip in ((False, True) if self.flip else (False,))
        )

    @classmethod
    def of(cls, spec: str | int | Views) -> Views:
        """`1`: the picture once; `flip`: and its mirror; `scales`: zooms 1, 1.5, 2; `flip+1+1.5`: your own
        zooms."""
        if isinstance(spec, Views):
            return spec
        words = [w for w in re.split(r"[+,\s]+", str(spec).strip().lower()) if w]
        flip = "flip" in words or "flips" in words
        zooms: list[float] = []
        for word in words:
            if word in ("scale", "scales"):
                zooms += [1.0, 1.5, 2.0]
            elif word not in ("flip", "flips"):
                try:
                    zooms.append(float(word))
                except ValueError:
                    raise UsageError(
                        "views", got=repr(spec), allowed="1 | flip | scales | flip+scales | flip+1+1.5"
                    ) from None
        return cls(tuple(dict.fromkeys(zooms)) or (1.0,), flip)

    def __str__(self) -> str:
        zooms = "+".join(f"{z:g}" for z in self.zooms)
        return f"flip+{zooms}" if self.flip else zooms


def merge(views: Sequence[HeatMaps], limit: int | None = None) -> tuple[Tensor, ...]:
    """The mean over views of each picture's maps, in source pixels: a tuple of `(K, H, W)`. The views show
    the same pictures in the same order, with the same targets."""
    sources = [maps.in_source(limit) for maps in views]
    return tuple(torch.stack(one).mean(0) for one in zip(*sources, strict=True))
