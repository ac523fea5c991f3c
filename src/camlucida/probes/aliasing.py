"""What a coarse first layer leaves in the second: high frequencies in the projections of its units (ZF paper, figure 6d
and e: "aliasing artifacts caused by the large stride")."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camlucida.images.read import read_picture
from camlucida.images.sources import payload
from camlucida.metrics import bootstrap_interval
from camlucida.networks.network import Network
from camlucida.probes.activity import Units
from camlucida.probes.projections import Window, cut, projected, window
from camlucida.probes.spectra import high_energy
from camlucida.probes.top_activations import Peak, RunningTop
from camlucida.values import Size

OUTSIDE = (239, 236, 230)  # the colour of patches beyond the view


@dataclass(frozen=True)
class Projection:
    """A unit's activation in one of its strongest pictures, projected to the pixels and cut to its receptive field: `values
    (C, h, w)`, three channels in the order red, green, blue, zero beyond the view. `patch (h, w, 3)` uint8: the picture
    there; `window`: where that lies in the view; `high`: the `high_energy` of `values`."""

    unit: int
    picture: int
    activation: float
    values: NDArray[np.float32]
    window: Window
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
    found: dict[int, dict[int, Projection]] = {unit: {} for unit in units}
    places: dict[int, list[tuple[int, int, Peak]]] = defaultdict(list)  # by picture: each is read once
    for unit in units:
        for rank, peak in enumerate(top.peaks(unit)):
            places[peak.picture].append((unit, rank, peak))
    for number, each in places.items():
        shape = net.card.preprocessing
        picture = read_picture(payload(pictures[number]), shape.mean_colour)
        batch = net.preprocess(picture, view=view)
        here = net.find_layer(layer.call, batch.pixels)
        size, seen = Size(*batch.pixels.shape[2:]), np.asarray(batch.pictures()[0])
        for unit, rank, peak in each:
            values = projected(net, batch.pixels, here, [unit], [peak.cell])[0].numpy()
            values = values[::-1] if shape.channels == "BGR" else values
            where = window(here, peak.cell, size)
            cropped = np.moveaxis(cut(np.moveaxis(values, 0, -1), where), -1, 0)
            found[unit][rank] = Projection(
                unit, number, peak.value, cropped, where, cut(seen, where, OUTSIDE), high_energy(cropped)
            )  # fmt: skip
    return SecondLayer(layer.name, tuple(tuple(ranks[i] for i in sorted(ranks)) for ranks in found.values()))
