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


def has_switches(network: Network, layer: Layer) -> bool:
    """Whether a maximum is pooled between the pixels and the layer. Otherwise nothing of the picture enters a projection
    but its borders. Raises as `projected` does."""
    pixels = network.blank().to(network.device)
    with taps.borrowed(network.module):
        operations = Way(recorded(network, pixels, layer)[0], layer).operations
    return any(one.name.startswith(("max_pool", "adaptive_max_pool")) for one in operations)


def window(layer: Layer, cell: tuple[int, ...], view: Size) -> Window:
    """The receptive field of a cell in whole pixels, around its centre; no side longer than twice the view's, which holds all
    of it from any cell. The whole view where the field is not known."""
    field = field_of(layer, cell)
    if field is None:
        return (0, 0, view.height, view.width)

    def side(low: float, high: float, length: int) -> tuple[int, int]:
        most = min(round(high - low), 2 * length)
        return math.floor((low + high - most) / 2 + 0.5), most

    (top, height), (left, width) = side(field.y0, field.y1, view.height), side(field.x0, field.x1, view.width)
    return (top, left, height, width)


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
