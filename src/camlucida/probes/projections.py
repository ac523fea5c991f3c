"""What the strongest pictures of a unit have in common (ZF paper, section 4.1): patches cut to the receptive field beside
their deconvnet projections, and how alike either are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camlucida import taps
from camlucida.maps.deconvnet import Way, recorded
from camlucida.networks.network import Network
from camlucida.networks.structure import Layer
from camlucida.probes.receptive_field import field_of
from camlucida.values import Size

Window = tuple[int, int, int, int]
"""First row, first column, height and width, in pixels of the view; it may reach beyond its borders."""


def projected(
    network: Network, pixels: Tensor, layer: Layer, units: Sequence[int], cells: Sequence[tuple[int, ...]]
) -> Tensor:
    """Deconvnet from one cell of one unit of a layer in each picture: `pixels (N, C, *spatial)` → as many values, signed.
    Raises UnsupportedError where the network cannot be led back, as `cl.DeconvNet` does."""
    with taps.borrowed(network.module):
        trace, activations = recorded(network, pixels, layer)
        way = Way(trace, layer)
        signal = torch.zeros_like(activations)
        given, chosen = layer.cells(activations), layer.cells(signal)
        for i, (unit, cell) in enumerate(zip(units, cells, strict=True)):
            chosen[(i, unit, *cell)] = given[(i, unit, *cell)]
        return way.down(signal).float().cpu()


def window(layer: Layer, cell: tuple[int, int], view: Size) -> Window:
    """The receptive field of a cell in whole pixels. Along a side where the field is no smaller than the view, or not
    known: the whole of it."""
    field = field_of(layer, cell)
    if field is None:
        return (0, 0, view.height, view.width)
    rows, columns = (
        (math.floor(low + 0.5), round(high - low)) if high - low < length else (0, length)
        for low, high, length in ((field.y0, field.y1, view.height), (field.x0, field.x1, view.width))
    )
    return (rows[0], columns[0], rows[1], columns[1])


def cut(values: NDArray, window: Window, fill: float | Sequence[float] = 0.0) -> NDArray:
    """The window of `(H, W, channels)`; beyond the borders stands `fill`."""
    top, left, height, width = window
    made = np.empty((height, width, values.shape[2]), values.dtype)
    made[:] = fill
    y0, x0 = max(top, 0), max(left, 0)
    y1, x1 = min(top + height, values.shape[0]), min(left + width, values.shape[1])
    if y1 > y0 and x1 > x0:
        made[y0 - top : y1 - top, x0 - left : x1 - left] = values[y0:y1, x0:x1]
    return made


def inside(window: Window, view: Size) -> NDArray[np.bool_]:
    """Which pixels `(h, w)` of the window lie in the view."""
    return cut(np.ones((view.height, view.width, 1), bool), window, False)[:, :, 0]


def correlation(
    one: NDArray, other: NDArray, where: NDArray[np.bool_], there: NDArray[np.bool_]
) -> float | None:
    """Pearson's r of two windows `(h, w, channels)` over all channels of the pixels that lie in both views. None for windows
    of different size, and where one is constant."""
    if one.shape != other.shape:
        return None
    both = where & there
    a, b = (values[both].astype(np.float64).ravel() for values in (one, other))
    if len(a) < 2:
        return None
    a, b = a - a.mean(), b - b.mean()
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length > 0 else None


def likeness(windows: Sequence[NDArray], where: Sequence[NDArray[np.bool_]]) -> float | None:
    """The mean `correlation` over all pairs of windows; None where there is no pair."""
    each = [
        correlation(windows[i], windows[j], where[i], where[j]) for i in range(len(windows)) for j in range(i)
    ]
    found = [r for r in each if r is not None]
    return sum(found) / len(found) if found else None
