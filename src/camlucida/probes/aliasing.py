"""What a coarse first layer leaves in the second: high frequencies in the projections of its units (ZF paper, figure 6d
and e: "aliasing artifacts caused by the large stride")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camlucida.images.read import read_picture
from camlucida.images.sources import Source
from camlucida.maps.deconvnet import DeconvNet
from camlucida.metrics import bootstrap_interval
from camlucida.networks.network import Network
from camlucida.probes.activity import Units
from camlucida.probes.spectra import high_energy
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
    net: Network,
    layer: Units,
    top: RunningTop,
    pictures: Sequence[Any],
    units: Sequence[int],
    view: str = "card",
) -> SecondLayer:
    """The projections of some units of a layer in their strongest pictures (`top`, of `pictures`: sources, paths, PIL
    pictures or arrays, seen by the card's `view`). Raises UnsupportedError where deconvnet cannot reach the pixels."""
    found = []
    for unit in units:
        places = zip(
            top.values[unit].tolist(), top.pictures[unit].tolist(), top.cells[unit].tolist(), strict=True
        )
        # What a ReLU lets through; the others are no answer of the unit.
        strong = [(number, cell, value) for value, number, cell in places if number >= 0 and value > 0]
        found.append(
            tuple(
                _projection(net, layer, unit, number, cell, value, pictures[number], view)
                for number, cell, value in strong
            )
        )
    return SecondLayer(layer.name, tuple(found))


def _projection(
    net: Network,
    layer: Units,
    unit: int,
    number: int,
    cell: Sequence[int],
    value: float,
    given: Any,
    view: str,
) -> Projection:
    shape = net.card.preprocessing
    picture = read_picture(given.read() if isinstance(given, Source) else given, shape.mean_colour)
    batch = net.preprocess(picture, view=view)
    made = DeconvNet(layer.call, unit, tuple(cell))(net, batch)
    window = made.windows[0] if made.windows else tuple((0, side) for side in made.values.shape[2:])
    (top, bottom), (left, right) = window
    values = made.values[0, :, top:bottom, left:right].cpu().numpy()
    if shape.channels == "BGR":
        values = values[::-1]
    shown = np.asarray(batch.pictures()[0])[top:bottom, left:right]
    return Projection(unit, number, value, np.ascontiguousarray(values), window, shown, high_energy(values))
