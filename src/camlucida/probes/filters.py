"""The filters of the first layer and what they leave out (ZF paper, section 4.1 and figure 6; section 9 of the specification)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from camlucida import taps
from camlucida.errors import UnsupportedError
from camlucida.networks.network import Network
from camlucida.taps import Operation

NYQUIST = 0.5  # cycles per pixel
BANDS = {"low": (0.0, NYQUIST / 3), "middle": (NYQUIST / 3, 2 * NYQUIST / 3), "high": (2 * NYQUIST / 3, math.inf)}
"""Distance from frequency zero in the plane of frequencies, cycles per pixel; `high` holds the plane's corners too."""
DEAD = 0.1
GRID = 64  # frequencies a side at least: filters are padded with zeros, which puts more samples on the same spectrum
RINGS = 16


@dataclass(frozen=True)
class Filters:
    """`weights (units, C, h, w)` of the first convolution, three channels in the order red, green, blue; `stride` in
    pixels. Frequencies are cycles per pixel of the view; a filter's energy is its squared spectrum, over all channels.

    `rms (units,)` of the weights; `peaks (units,)` where the spectrum is strongest, as the distance from zero; `bands
    (units, 3)` shares of the energy in BANDS; `beyond (units,)` share of it above the Nyquist rate of the layer's own
    grid, 1 / (2 · stride), which the stride folds onto lower frequencies; `rings (units, R)` mean energy at the distances
    `distances (R,)`, as a multiple of the filter's mean over all frequencies, so that white noise is 1 everywhere.
    """

    layer: str
    weights: NDArray[np.float32]
    stride: tuple[int, ...]
    rms: NDArray[np.float64]
    peaks: NDArray[np.float64]
    bands: NDArray[np.float64]
    beyond: NDArray[np.float64]
    rings: NDArray[np.float64]
    distances: NDArray[np.float64]

    @cached_property
    def dead(self) -> NDArray[np.bool_]:
        """RMS below a tenth of the median RMS of the layer's filters, or zero."""
        return (self.rms < DEAD * np.median(self.rms)) | (self.rms == 0)

    @property
    def dominance(self) -> float:
        """The largest RMS as a multiple of the median: one filter that outweighs the others (ZF paper, figure 6a)."""
        median = float(np.median(self.rms))
        return float(self.rms.max()) / median if median > 0 else math.inf

    @property
    def middle_peaks(self) -> float:
        """Share of the filters, dead ones left out, whose spectrum is strongest in the middle band: the fewer, the wider the
        gap in mid frequencies. NaN where all are dead."""
        low, high = BANDS["middle"]
        alive = self.peaks[~self.dead]
        return float(((alive >= low) & (alive < high)).mean()) if len(alive) else math.nan

    @property
    def middle(self) -> float:
        """Mean share of the energy in the middle band, dead filters left out."""
        return self._mean(self.bands[:, 1])

    @property
    def aliased(self) -> float:
        """Mean of `beyond`, dead filters left out."""
        return self._mean(self.beyond)

    def _mean(self, shares: NDArray[np.float64]) -> float:
        return float(shares[~self.dead].mean()) if not self.dead.all() else math.nan


def first_filters(net: Network) -> Filters:
    """The filters of the first convolution that runs, as stored: a batch norm after it is not folded in. Raises
    UnsupportedError for a network without one, and for one that is not 2-D."""
    operation, name = first_convolution(net)
    weights = operation.argument(1, "weight").detach().float().cpu().numpy()
    if net.card.preprocessing.channels == "BGR" and weights.shape[1] == 3:
        weights = weights[:, ::-1]
    stride = operation.argument(3, "stride", 1)
    stride = (stride,) * 2 if isinstance(stride, int) else tuple(stride) * (2 // len(stride))
    return measure(np.ascontiguousarray(weights), stride, name)


def first_convolution(net: Network) -> tuple[Operation, str]:
    """The first convolution of a run over a blank picture, and the name of its module."""
    with taps.borrowed(net.module):
        trace = taps.trace(net.module, net.forward, net.blank())
    found = next((o for o in trace.operations if o.base == "conv"), None)
    if found is None:
        raise UnsupportedError(f"the first filters of {net.card.name}", got="a network without a convolution")
    if found.argument(1, "weight").ndim != 4:
        raise UnsupportedError(f"the first filters of {net.card.name}", got=found.name, allowed="convolutions over two axes")
    names = [str(point) for point, (value, _) in trace.modules.items() if value == found.output]
    return found, min(names, key=len, default=found.name)


def measure(weights: NDArray[np.float32], stride: tuple[int, ...] = (1, 1), layer: str = "") -> Filters:
    """What `Filters` says of weights `(units, C, h, w)`."""
    side = max(GRID, 4 * max(weights.shape[2:]))
    energy = sum(
        np.abs(np.fft.fft2(weights[:, c].astype(np.float64), (side, side))) ** 2 for c in range(weights.shape[1])
    ).reshape(len(weights), -1)  # type: ignore[union-attr]
    down, across = np.abs(np.fft.fftfreq(side))[:, None], np.abs(np.fft.fftfreq(side))[None]
    distance = np.hypot(down, across).ravel()
    folded = (down > NYQUIST / stride[0]) | (across > NYQUIST / stride[1])
    edges = np.linspace(0, NYQUIST, RINGS + 1)
    rings = np.stack([(distance >= a) & (distance < b) for a, b in zip(edges[:-1], edges[1:], strict=True)], 1)
    bands = np.stack([(distance >= low) & (distance < high) for low, high in BANDS.values()], 1)
    total = energy.sum(1, keepdims=True)
    share = np.divide(energy, total, out=np.zeros_like(energy), where=total > 0)
    return Filters(
        layer, weights, stride, np.sqrt((weights.astype(np.float64) ** 2).mean((1, 2, 3))), distance[energy.argmax(1)],
        share @ bands, share @ folded.ravel(), share @ rings / rings.mean(0), (edges[:-1] + edges[1:]) / 2,
    )  # fmt: skip
