"""The filters of the first layer: what they are tuned to, what they leave out, which are dead; and what that leaves in the
second (ZF paper, section 4.1 and figure 6: dead features, a gap in the mid frequencies, aliasing)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camlucida.errors import UnsupportedError, UsageError
from camlucida.images.datasets import evenly
from camlucida.images.read import MAX_PIXELS
from camlucida.networks.network import Network
from camlucida.probes import activity
from camlucida.probes.activity import ACTIVATIONS, Activity, Units
from camlucida.probes.aliasing import SecondLayer, project
from camlucida.probes.spectra import BANDS, NYQUIST
from camlucida.taps import Operation, Trace

DEAD = 0.1
GRID = 64  # frequencies a side at least: filters are padded with zeros, which puts more samples on the same spectrum
RINGS = 16
NORMS = {"batch_norm", "local_response_norm", "group_norm"}


@dataclass(frozen=True)
class Filters:
    """`weights (units, C, h, w)` of the first convolution, three channels in the order red, green, blue; `stride` in
    pixels. Frequencies are cycles per pixel of the view; a filter's energy is its squared spectrum, over all channels.

    `rms (units,)` of the weights; `peaks (units,)` where the spectrum is strongest, as the distance from zero; `bands
    (units, 3)` shares of the energy in `spectra.BANDS`; `beyond (units,)` share of it above the Nyquist rate of the
    layer's own grid, 1 / (2 · stride) along either axis, which the stride folds onto lower frequencies (white noise: 1 −
    1 / stride²); `rings (units, R)` mean energy at the distances `distances (R,)`, as a multiple of the filter's mean over
    all frequencies, so that white noise is 1 everywhere.
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
    def peaks_in_bands(self) -> NDArray[np.float64]:
        """`(3,)` shares of the filters, dead ones left out, whose spectrum is strongest in each of `spectra.BANDS`. The gap
        in mid frequencies is the second: the fewer filters peak there, the wider it is. NaN where all are dead."""
        alive = self.peaks[~self.dead]
        if not len(alive):
            return np.full(len(BANDS), math.nan)
        return np.array([((alive >= low) & (alive < high)).mean() for low, high in BANDS.values()])

    def mean(self, shares: NDArray[np.float64]) -> Any:
        """Mean of `shares (units, …)` over the filters that are not dead."""
        return shares[~self.dead].mean(0) if not self.dead.all() else np.full(shares.shape[1:], math.nan)[()]


@dataclass(frozen=True)
class FiltersAndUnits:
    """One network: its first `filters`; with pictures, how the units of each layer answer them (`activities`; `first`: the
    units of the first convolution, after its activation function, where it has one of its own), the projections of the
    `second` layer, or why there are none (`refused`); pictures that could be used, and those that could not."""

    filters: Filters
    activities: tuple[Activity, ...] = ()
    first: Activity | None = None
    second: SecondLayer | None = None
    refused: str = ""
    pictures: int = 0
    rejected: tuple[tuple[str, str], ...] = ()

    @property
    def dead(self) -> NDArray[np.bool_]:
        """First-layer filters that are dead by their weights or, with pictures, never active."""
        return self.filters.dead if self.first is None else self.filters.dead | self.first.dead


def filters_and_units(
    net: Network,
    pictures: Sequence[Any] = (),
    *,
    layers: Sequence[str] | None = None,
    second: str | None = None,
    k: int = 9,
    units: int = 16,
    view: str = "card",
    batch: int = 32,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int], None] | None = None,
) -> FiltersAndUnits:
    """The first convolution's filters, and what the units do over `pictures` (sources, paths, PIL pictures or arrays).

    `layers`: whose units are counted, by default all with an activation function; `second`: whose units are projected,
    by default the second of those; `k` strongest pictures of `units` of its units, evenly chosen among those that answer.
    Raises UsageError for fewer pictures than k, LayerError for a layer that is not there or has no units,
    UnsupportedError for a network without a 2-D convolution.
    """
    for name, value in (("k", k), ("units", units), ("batch", batch)):
        if value < 1:
            raise UsageError(f"filters: {name}", got=value, allowed="≥ 1")
    operation, name, trace = first_convolution(net)
    filters = _filters(net, operation, name)
    if not pictures:
        return FiltersAndUnits(filters)
    if len(pictures) < k:
        raise UsageError(
            f"the {k} strongest pictures of a unit", got=f"{len(pictures)} pictures",
            allowed=f"k up to {len(pictures)}",
        )  # fmt: skip
    counted, chosen = activity.units(net, layers), second_layer(net, second)
    every = activity.units(net)
    answer = _answer(operation, trace)
    own = next((one for one in every if trace.modules[one.point][0] == answer), None)
    watched = activity.watch(
        net, pictures, [*dict.fromkeys([*counted, *([own] if own else [])])], chosen, k, view=view, batch=batch,
        workers=workers, max_pixels=max_pixels, progress=progress,
    )  # fmt: skip
    by_name = {one.layer: one for one in watched.activities}
    projected, refused = None, "" if chosen else "the network has no second layer with cells"
    if chosen is not None and watched.top is not None:
        answering = watched.top.excited.nonzero()[0].tolist()
        try:
            projected = project(net, chosen, watched.top, pictures, evenly(answering, units), view)
        except UnsupportedError as error:
            refused = str(error)
    return FiltersAndUnits(
        filters, tuple(by_name[one.name] for one in counted), by_name[own.name] if own else None, projected, refused,
        watched.pictures, watched.rejected,
    )  # fmt: skip


def second_layer(net: Network, name: str | None = None) -> Units | None:
    """The layer of that name, or the second that has an activation function and cells; None where there is none. Raises
    LayerError for a name that is not there or has no cells."""
    if name is None:
        spatial = [one for one in activity.units(net) if one.layer is not None]
        return spatial[1] if len(spatial) > 1 else None
    (found,) = activity.units(net, [name])
    if found.layer is None:
        net.find_layer(found.point.name, net.blank())  # says that it has no cells
    return found


def first_filters(net: Network) -> Filters:
    """The filters of the first convolution that runs, as stored: a batch norm after it is not folded in. Raises
    UnsupportedError for a network without one, and for one that is not 2-D."""
    operation, name, _ = first_convolution(net)
    return _filters(net, operation, name)


def first_convolution(net: Network) -> tuple[Operation, str, Trace]:
    """The first convolution of a run over a blank picture, the name of its module, and the run."""
    trace = activity.recorded(net)
    found = next((o for o in trace.operations if o.base == "conv"), None)
    if found is None or found.argument(1, "weight").ndim != 4:
        raise UnsupportedError(
            f"the first filters of {net.card.name}", got="no convolution" if found is None else found.name,
            allowed="networks with a convolution over two axes",
        )  # fmt: skip
    names = [str(point) for point, (value, _) in trace.modules.items() if value == found.output]
    return found, min(names, key=len, default=found.name), trace


def _answer(convolution: Operation, trace: Trace) -> Any:
    """The value of the activation function that follows a convolution, normalisation between them allowed; or None."""
    value = convolution.output
    while True:
        users = [o for o in trace.operations if value in o.inputs]
        for one in users:
            if activity.base(one) in ACTIVATIONS:
                return one.output
        following = next((o for o in users if activity.base(o) in NORMS), None)
        if following is None:
            return None
        value = following.output


def _filters(net: Network, operation: Operation, name: str) -> Filters:
    weights = operation.argument(1, "weight").detach().float().cpu().numpy()
    if net.card.preprocessing.channels == "BGR" and weights.shape[1] == 3:
        weights = weights[:, ::-1]
    stride = operation.argument(3, "stride", 1)
    pair = (stride,) * 2 if isinstance(stride, int) else (*stride, *stride)[:2]
    return measure(np.ascontiguousarray(weights), pair, name)


def measure(weights: NDArray[np.float32], stride: tuple[int, ...] = (1, 1), layer: str = "") -> Filters:
    """What `Filters` says of weights `(units, C, h, w)`."""
    side = max(GRID, 4 * max(weights.shape[2:]))
    spectrum = np.zeros((len(weights), side, side))
    for channel in np.moveaxis(weights.astype(np.float64), 1, 0):
        spectrum += np.abs(np.fft.fft2(channel, (side, side))) ** 2
    energy = spectrum.reshape(len(weights), -1)
    total = energy.sum(1, keepdims=True)
    share = np.divide(energy, total, out=np.zeros_like(energy), where=total > 0)
    down, across = np.abs(np.fft.fftfreq(side))[:, None], np.abs(np.fft.fftfreq(side))[None]
    distance = np.hypot(down, across).ravel()
    folded = ((down > NYQUIST / stride[0]) | (across > NYQUIST / stride[1])).ravel()
    bands = np.stack([(distance >= low) & (distance < high) for low, high in BANDS.values()], 1)
    edges = np.linspace(0, NYQUIST, RINGS + 1)
    rings = np.stack([(distance >= a) & (distance < b) for a, b in itertools.pairwise(edges)], 1)
    return Filters(
        layer, weights, stride, np.sqrt((weights.astype(np.float64) ** 2).mean((1, 2, 3))), distance[energy.argmax(1)],
        share @ bands, share @ folded, share @ rings / rings.mean(0), (edges[:-1] + edges[1:]) / 2,
    )  # fmt: skip
