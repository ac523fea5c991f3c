"""Several views of one picture → one map, in the picture's own frame."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camlucida.errors import UsageError
from camlucida.values import HeatMaps, View, between_cells, source_samples


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
    if len(views) == 1:
        return views[0].in_source(limit)
    values = [maps.in_view() if maps.grid.kind == "places" else maps.values for maps in views]
    shown = zip(*(maps.views for maps in views), strict=True)
    return tuple(_mean([one[i] for one in values], pair, limit) for i, pair in enumerate(shown))


def _mean(maps: Sequence[Tensor], views: Sequence[View | None], limit: int | None) -> Tensor:
    """The mean of one picture's maps `(K, h, w)` of each view. Laying a map M over the picture is linear,
    Y M Xᵀ, so their sum is one product, [Y₁ Y₂ …] [M₁X₁ᵀ; M₂X₂ᵀ; …]: only the mean gets as large as the
    picture. In float64, so that equal values stay equal."""
    down, across = [], []
    for one, view in zip(maps, views, strict=True):
        y, x = source_samples(view, one.ndim - 1, limit)
        assert view is not None  # source_samples has refused maps without a view
        down.append(_weights(y, view.size.height, one.shape[1]).to(one.device) / len(maps))
        across.append(one.double() @ _weights(x, view.size.width, one.shape[2]).to(one.device).T)
    return (torch.cat(down, 1) @ torch.cat(across, 1)).to(maps[0].dtype)


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
