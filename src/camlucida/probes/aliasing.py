"""What a coarse first layer leaves in the second: high frequencies in the projections of its units (ZF paper, figure 6d
and e: "aliasing artifacts caused by the large stride")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camlucida.images.read import read_picture
from camlucida.images.sources import Source
from camlucida.maps.deconvnet import DeconvNet
from camlucida.metrics import bootstrap_interval
from camlucida.networks.network import Network
from camlucida.probes.filters import NYQUIST
from camlucida.probes.top_activations import RunningTop


@dataclass(frozen=True)
class Projection:
    """A unit's activation in one of its strongest pictures, projected to the pixels and cut to the receptive field inside
    the view: `values (C, h, w)`, three channels in the order red, green, blue. `window`: rows and columns of the view that
    they fill; `patch (h, w, 3)` uint8, the picture there; `high`: its `high_energy`."""

    unit: int
    picture: int
    activation: float
    values: NDArray[np.float32]
    window: tuple[tuple[int, int], ...]
    patch: NDArray[np.uint8]
    high: float


@dataclass(frozen=True)
class SecondLayer:
    """`units`: for each unit its projections, strongest first."""

    layer: str
    units: tuple[tuple[Projection, ...], ...]

    @property
    def high(self) -> float:
        """Share of the projections' spectral energy above half the Nyquist rate: the mean over each unit's projections,
        then over the units. NaN without any."""
        means = self._means()
        return float(means.mean()) if len(means) else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `high`, units drawn anew (bootstrap)."""
        means = self._means()
        return bootstrap_interval(means) if len(means) > 1 else (math.nan, math.nan)

    def _means(self) -> NDArray[np.float64]:
        each = [[one.high for one in unit if math.isfinite(one.high)] for unit in self.units]
        return np.array([np.mean(one) for one in each if one])


def project(
    net: Network, layer: str, top: RunningTop, pictures: Sequence[Any], units: Sequence[int], view: str = "card"
) -> SecondLayer:
    """The projections of some units of a layer in their strongest pictures (`top`, of `pictures`: sources, paths, PIL
    pictures or arrays, seen by the card's `view`). Raises UnsupportedError where deconvnet cannot reach the pixels."""
    method = DeconvNet(layer)
    found = []
    for unit in units:
        made = []
        for rank, number in enumerate(top.pictures[unit].tolist()):
            if number < 0 or float(top.values[unit, rank]) <= 0:
                continue  # nothing, or nothing that a ReLU lets through
            given = pictures[number]
            shape = net.card.preprocessing
            picture = read_picture(given.read() if isinstance(given, Source) else given, shape.mean_colour)
            batch = net.preprocess(picture, view=view)
            cell = tuple(top.cells[unit, rank].tolist())
            made.append(_projection(net, method, batch, unit, number, cell, float(top.values[unit, rank])))
        found.append(tuple(made))
    return SecondLayer(layer, tuple(found))


def _projection(net: Network, method: DeconvNet, batch: Any, unit: int, number: int, cell: Any, activation: float) -> Projection:
    made = DeconvNet(method.layer, unit, cell)(net, batch)
    assert made.windows is not None
    window = made.windows[0]
    (top, bottom), (left, right) = window
    values = made.values[0, :, top:bottom, left:right].cpu().numpy()
    if net.card.preprocessing.channels == "BGR":
        values = values[::-1]
    shown = np.asarray(batch.pictures()[0])[top:bottom, left:right]
    return Projection(unit, number, activation, np.ascontiguousarray(values), window, shown, high_energy(values))


def high_energy(picture: NDArray | Tensor, above: float = NYQUIST / 2) -> float:
    """Share of the spectral energy of a picture `(C, h, w)` at distances above `above` cycles per pixel from zero, by
    default half the Nyquist rate. Each channel under a Hann window, its mean under that window subtracted first, so that
    neither the brightness nor the borders count. White noise gives 1 − π/16 = 0.80. NaN for a picture without
    variation, or of less than 4 pixels a side."""
    values = np.asarray(picture, np.float64)
    if min(values.shape[1:]) < 4:
        return math.nan
    window = np.hanning(values.shape[1] + 2)[1:-1, None] * np.hanning(values.shape[2] + 2)[None, 1:-1]
    mean = (values * window).sum((1, 2), keepdims=True) / window.sum()
    if not ((values - mean) ** 2).sum() > 1e-12 * (values**2).sum():
        return math.nan
    energy = (np.abs(np.fft.fft2((values - mean) * window)) ** 2).sum(0)
    distance = np.hypot(np.fft.fftfreq(values.shape[1])[:, None], np.fft.fftfreq(values.shape[2])[None])
    return float(energy[distance > above].sum() / energy.sum())
