"""Feature evolution (ZF paper, section 4.1): the strongest activation of a unit over all pictures, led back to the pixels, at
every checkpoint of a run; when another picture took over; how early each layer stops changing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from camlucida.errors import InputError, NetworkError, TargetError, UsageError
from camlucida.images.datasets import evenly
from camlucida.images.sources import payload
from camlucida.maps.deconvnet import DeconvNet
from camlucida.networks.cards import Card
from camlucida.networks.network import Network
from camlucida.probes.projections import cut, projected, window
from camlucida.probes.top_activations import RunningTop, top_activations
from camlucida.targets import UnitTarget
from camlucida.values import Size

SETTLED = 0.9
COMPARED = 2_000  # pictures over which activations are correlated


@dataclass(frozen=True)
class Moment:
    """A unit at one checkpoint: its strongest activation, the picture (numbered as given) and cell where it is; of the
    receptive field of that cell the projection `(h, w, C)`, signed, and the picture's patch `(h, w, 3)` uint8. None where
    the unit is silent: no activation above zero."""

    value: float
    picture: int | None = None
    cell: tuple[int, ...] | None = None
    projection: NDArray[np.float32] | None = None
    patch: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class History:
    """A unit of a layer; `moments`: one per checkpoint."""

    layer: str
    unit: int
    moments: tuple[Moment, ...]

    @property
    def takeovers(self) -> tuple[int, ...]:
        """The checkpoints (by number, from 0) at which another picture excites it most than at the one before."""
        seen = [moment.picture for moment in self.moments]
        return tuple(
            i for i in range(1, len(seen)) if None not in (seen[i - 1], seen[i]) and seen[i - 1] != seen[i]
        )


@dataclass(frozen=True)
class Evolution:
    """Of E checkpoints. By layer, over all its units: `to_last (E,)` and `to_previous (E,)`, the correlation with the last
    checkpoint and with the one before (NaN at the first); `replaced (E,)`: the share of units that another picture excites
    most than at the one before. `rejected`: number, path and reason of pictures left out.

    The correlation of two checkpoints e, f at a layer is mean over units u of Pearson's r(a_u(e), a_u(f)), a_u(e) being the
    unit's highest activation in each of the compared pictures (`compared`); a unit that says the same of all pictures at one
    of them has none, and NaN is left where no unit has any.
    """

    checkpoints: tuple[str, ...]
    layers: tuple[str, ...]
    histories: tuple[History, ...]
    to_last: Mapping[str, NDArray[np.float64]]
    to_previous: Mapping[str, NDArray[np.float64]]
    replaced: Mapping[str, NDArray[np.float64]]
    pictures: int
    compared: int
    rejected: tuple[tuple[int, str, str], ...]

    def settled(self, layer: str, level: float = SETTLED) -> int | None:
        """The first checkpoint (by number, from 0) from which the correlation with the last stays at `level` or above; None
        if that holds for the last alone, which says nothing."""
        below = np.flatnonzero(~(self.to_last[layer] >= level))
        first = int(below[-1]) + 1 if len(below) else 0
        return first if first < len(self.checkpoints) - 1 else None


def main_layers(network: Network, count: int = 5) -> tuple[str, ...]:
    """At most `count` convolutions, spread evenly from the first to the last, each by its ReLU where that follows."""
    modules = dict(network.module.named_modules())
    live = [one for one in network.layers() if one.reached and one.point.of == "module"]
    found = []
    for one, after in zip(live, [*live[1:], None], strict=True):
        if isinstance(modules[one.point.name], nn.modules.conv._ConvNd):
            rectified = after is not None and isinstance(modules[after.point.name], nn.ReLU)
            found.append(after.name if after is not None and rectified else one.name)
    if len(found) > count > 1:
        found = [found[round(i * (len(found) - 1) / (count - 1))] for i in range(count)]
    return tuple(dict.fromkeys(found))


def alike(name: str, card: Card, first_name: str, first: Card) -> None:
    """Raises NetworkError unless two checkpoints are of one network: architecture, classes and preprocessing."""
    for what, of in (
        ("architecture", lambda c: " ".join([c.architecture, *(f"{k}={v}" for k, v in sorted(c.arguments.items()))])),
        ("classes", lambda c: tuple(label.id for label in c.labels)),
        ("preprocessing", lambda c: c.preprocessing),
    ):  # fmt: skip
        if of(card) != of(first):
            got = f"{of(card)}, not {of(first)}" if what == "architecture" else f"other {what}"
            raise NetworkError(f"{name} is no checkpoint of the network of {first_name}", got=got)


def evolution(
    checkpoints: Iterable[tuple[str, Network]],
    pictures: Sequence[Any],
    layers: Sequence[str] | None = None,
    units: Sequence[int] | None = None,
    *,
    count: int = 4,
    view: str = "card",
    batch: int = 32,
    workers: int = 2,
    progress: Callable[[int], None] | None = None,
) -> Evolution:
    """`checkpoints`: names (epochs, say) and networks, in order, one in memory at a time if they come from a generator.
    `pictures`: what `top_activations` takes. `layers`: spatial ones below any fully connected layer; None: `main_layers`.
    `units`: of every layer; None: `count` of each, spread evenly. Raises NetworkError for a checkpoint of another network,
    LayerError, TargetError for a unit that is not there, UnsupportedError where a layer cannot be projected.

    One pass over the pictures a checkpoint, and one projection a unit. Correlations are over at most `COMPARED` pictures,
    spread evenly.
    """
    compared = evenly(range(len(pictures)), COMPARED)
    row = {number: i for i, number in enumerate(compared)}
    names, first, shapes = list[str](), None, {}
    moments: dict[tuple[str, int], list[Moment]] = {}
    maxima: dict[str, list[NDArray[np.float32]]] = {}
    leaders: dict[str, list[NDArray[np.int64]]] = {}
    rejected: dict[int, tuple[int, str, str]] = {}
    for name, network in checkpoints:
        names.append(name)
        if first is None:
            first, shapes = network.card, _shapes(network)
            asked = main_layers(network) if layers is None else layers
            layers = tuple(dict.fromkeys(network.find_layer(one, network.blank()).name for one in asked))
            chosen = units_of(network, layers, units, count)
        alike(name, network.card, names[0], first)
        if _shapes(network) != shapes:
            raise NetworkError(
                f"{name} is no checkpoint of the network of {names[0]}", got="weights of other shapes"
            )
        assert layers is not None
        now = {layer: np.full((len(compared), 0), np.nan, np.float32) for layer in layers}

        def keep(
            layer: str, activations: Tensor, numbers: Sequence[int], now: dict[str, NDArray] = now
        ) -> None:
            best = activations.flatten(2).amax(2).float().cpu().numpy()
            if not now[layer].size:
                now[layer] = np.full((len(compared), best.shape[1]), np.nan, np.float32)
            for number, values in zip(numbers, best, strict=True):
                if number in row:
                    now[layer][row[number]] = values

        found = top_activations(
            network,
            pictures,
            layers,
            1,
            view=view,
            batch=batch,
            workers=workers,
            progress=progress,
            heard=keep,
        )
        rejected |= {one[0]: one for one in found.rejected}
        if len(rejected) == len(pictures):
            raise UsageError("evolution", got=f"no picture that can be used: {found.rejected[0][2]}")
        for layer in layers:
            top = found.tops[layer]
            maxima.setdefault(layer, []).append(now[layer])
            leaders.setdefault(layer, []).append(np.where(top.excited, top.pictures[:, 0].numpy(), -1))
            here = _moments(network, pictures, layer, chosen[layer], top, view)
            for unit, moment in zip(chosen[layer], here, strict=True):
                moments.setdefault((layer, unit), []).append(moment)
    if len(names) < 2 or layers is None:
        raise UsageError("evolution", got=f"{len(names)} checkpoints", allowed="two or more")
    return Evolution(
        tuple(names), tuple(layers), tuple(History(*key, tuple(each)) for key, each in moments.items()),
        {layer: np.array([correlation(one, each[-1]) for one in each]) for layer, each in maxima.items()},
        {layer: _onwards(each, correlation) for layer, each in maxima.items()},
        {layer: _onwards(each, _replaced) for layer, each in leaders.items()},
        len(pictures), len(compared), tuple(rejected[i] for i in sorted(rejected)),
    )  # fmt: skip


def correlation(one: NDArray, other: NDArray) -> float:
    """The mean over units of Pearson's r between their activations `(pictures, units)` at two checkpoints, over pictures that
    have a number at both."""
    usable = np.isfinite(one).all(1) & np.isfinite(other).all(1)
    a, b = (each[usable].astype(np.float64) for each in (one, other))
    if not len(a):
        return float("nan")
    a, b = a - a.mean(0), b - b.mean(0)
    spread = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    speaks = spread > 0
    return float(np.mean((a * b).sum(0)[speaks] / spread[speaks])) if speaks.any() else float("nan")


def _replaced(leads: NDArray[np.int64], before: NDArray[np.int64]) -> float:
    """The share of units with another leading picture, among those that were silent (−1) neither now nor before."""
    speak = (leads >= 0) & (before >= 0)
    return float(np.mean(leads[speak] != before[speak])) if speak.any() else float("nan")


def _onwards(each: Sequence[NDArray], compare: Callable[[NDArray, NDArray], float]) -> NDArray[np.float64]:
    return np.array([float("nan"), *(compare(b, a) for a, b in pairwise(each))])


def _shapes(network: Network) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.module.state_dict().items()}


def units_of(
    network: Network, layers: Sequence[str], units: Sequence[int] | None = None, count: int = 4
) -> dict[str, tuple[int, ...]]:
    """The units of each layer that are shown. Raises as `evolution` does, on a blank picture, before any work is done."""
    blank, chosen = network.blank(), {}
    if not layers:
        raise UsageError("evolution", got="no layer", do="name some: net.layers() lists them")
    for name in layers:
        layer = network.find_layer(name, blank)
        wanted = tuple(dict.fromkeys(units)) if units is not None else evenly(range(layer.channels), count)
        bad = [unit for unit in wanted if not 0 <= unit < layer.channels]
        if bad or not wanted:
            got = ", ".join(map(str, bad)) or "none"
            raise TargetError(f"units of {layer.name}", got=got, allowed=f"0…{layer.channels - 1}")
        DeconvNet()(network, blank, UnitTarget(layer.name, wanted[0]))
        chosen[name] = wanted
    return chosen


def _moments(
    network: Network, pictures: Sequence[Any], name: str, units: Sequence[int], top: RunningTop, view: str
) -> Iterator[Moment]:
    """Each unit at its strongest place."""
    for unit in units:
        peak = next(iter(top.peaks(unit)), None)
        if peak is None:
            yield Moment(float(top.values[unit, 0]))
            continue
        try:
            shown = network.preprocess(payload(pictures[peak.picture]), view=view)
        except InputError as error:  # it was read a moment ago
            raise InputError(
                f"the strongest picture of unit {unit} of {name} is gone", got=str(error)
            ) from error
        layer = network.find_layer(name, shown.pixels)
        made = projected(network, shown.pixels, layer, [unit], [peak.cell])[0]
        frame = window(layer, peak.cell, Size(*made.shape[1:]))
        yield Moment(
            peak.value, peak.picture, peak.cell, cut(made.permute(1, 2, 0).numpy(), frame),
            cut(np.asarray(shown.pictures(1)[0]), frame, shown.preprocessing.mean_colour),
        )  # fmt: skip
