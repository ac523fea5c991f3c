"""The pictures that excite a unit most (ZF paper, section 4.1: "top 9"): one streaming pass over a data set."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camlucida import taps
from camlucida.errors import UsageError
from camlucida.images.read import MAX_PIXELS
from camlucida.images.sources import name_of
from camlucida.networks.network import Network
from camlucida.networks.structure import Layer
from camlucida.probes.reading import Read, Rejected, batches, pixels_of, reading
from camlucida.values import Size

PART = 512
"""Pictures a part of the run holds: what a kill loses at most, and what processes share out."""
Heard = Callable[[str, Tensor, Sequence[int]], None]
"""Told a layer's name, its activations `(N, units, *cells)` for some pictures, and the numbers of these."""


@dataclass(frozen=True)
class Peak:
    """A unit's highest activation in one picture: which picture, the value, and its cell, such as `(row, column)`."""

    picture: int
    value: float
    cell: tuple[int, ...]


@dataclass
class RunningTop:
    """The k strongest places of every unit of a layer so far, at most one per picture; strongest first, ties by the earlier
    picture and, inside one, by the first cell in reading order. A picture excites a unit that is above zero somewhere in it;
    one in which the unit never is, such as a ReLU that stays shut, has its place here but shows nothing of the unit.

    `values (units, k)` float32, −∞ where there is no place yet; `pictures (units, k)` int64, their index, or −1; `cells
    (units, k, axes)` int64: row and column. It never holds more than that, however many pictures it has seen.
    """

    values: Tensor
    pictures: Tensor
    cells: Tensor

    @classmethod
    def empty(cls, units: int, k: int = 9, axes: int = 2) -> RunningTop:
        if k < 1:
            raise UsageError("top activations: k", got=k, allowed="≥ 1")
        return cls(
            torch.full((units, k), -math.inf), torch.full((units, k), -1), torch.zeros(units, k, axes, dtype=torch.int64)
        )  # fmt: skip

    @property
    def units(self) -> int:
        return self.values.shape[0]

    @property
    def k(self) -> int:
        return self.values.shape[1]

    def update(self, activations: Tensor, pictures: int | Sequence[int]) -> list[int]:
        """Takes in the activations `(N, units, *cells)` of N pictures: their indices, or the first of consecutive ones.
        Returns the pictures of which a map holds NaN or infinity; such a map does not count."""
        numbers = np.arange(pictures, pictures + len(activations)) if isinstance(pictures, int) else np.array(pictures)  # fmt: skip
        best = activations.amax(tuple(range(2, activations.ndim))).float().cpu().numpy()  # (N, units)
        finite = np.isfinite(best)
        # NumPy from here on: these arrays are small, and torch takes longer to start an operation.
        held = self.arrays()  # the same memory
        last, at = held["values"][:, -1], held["pictures"][:, -1]
        enters = finite & ((best > last) | ((best == last) & (numbers[:, None] < at)))
        units = np.flatnonzero(enters.any(0))
        if len(units):
            rivals = np.where(enters, best, np.float32(-math.inf)).T[units]
            values = np.concatenate([held["values"][units], rivals], 1)
            places = np.concatenate([held["pictures"][units], np.broadcast_to(numbers, rivals.shape)], 1)
            places[values == -math.inf] = -1
            order = _strongest(values, places)[:, : self.k]
            values, places = np.take_along_axis(values, order, 1), np.take_along_axis(places, order, 1)
            cells = np.take_along_axis(held["cells"][units], order.clip(max=self.k - 1)[..., None], 1)
            # Which cell it is, is asked of those alone that stay: few, once many pictures have been seen.
            row, rank = np.nonzero((order >= self.k) & (values > -math.inf))
            where = (
                torch.from_numpy(one).to(activations.device)
                for one in (order[row, rank] - self.k, units[row])
            )
            maps = activations[tuple(where)]  # (M, *cells)
            flat = maps.flatten(1).argmax(1).cpu().numpy()
            cells[row, rank] = np.stack(np.unravel_index(flat, maps.shape[1:]), 1)
            held["values"][units], held["pictures"][units], held["cells"][units] = values, places, cells
        return numbers[~finite.all(1)].tolist()

    @property
    def excited(self) -> NDArray[np.bool_]:
        """Which units some picture excites `(units,)`."""
        return (self.values[:, 0] > 0).numpy()

    def ranked(self) -> list[int]:
        """The units that some picture excites, by their highest activation, highest first."""
        order = self.values[:, 0].argsort(descending=True, stable=True)
        return order[: int(self.excited.sum())].tolist()

    def peaks(self, unit: int) -> tuple[Peak, ...]:
        """The unit's places in the pictures that excite it, strongest first."""
        each = zip(
            self.pictures[unit].tolist(), self.values[unit].tolist(), self.cells[unit].tolist(), strict=True
        )
        return tuple(Peak(picture, value, tuple(cell)) for picture, value, cell in each if value > 0)

    def merge(self, other: RunningTop) -> RunningTop:
        """The strongest places of both, which have seen different pictures; the same whichever comes first."""
        values, pictures, cells = (
            np.concatenate([one, other], 1)
            for one, other in zip(self.arrays().values(), other.arrays().values(), strict=True)
        )
        order = _strongest(values, pictures)[:, : self.k]
        values, pictures = np.take_along_axis(values, order, 1), np.take_along_axis(pictures, order, 1)
        cells = np.take_along_axis(cells, order[..., None], 1)
        return RunningTop.of_arrays({"values": values, "pictures": pictures, "cells": cells})

    def arrays(self) -> dict[str, NDArray]:
        """Values, pictures and cells, of the same memory."""
        return {"values": self.values.numpy(), "pictures": self.pictures.numpy(), "cells": self.cells.numpy()}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray]) -> RunningTop:
        values, pictures, cells = (
            torch.from_numpy(np.array(arrays[n])) for n in ("values", "pictures", "cells")
        )
        return cls(values, pictures, cells)


def _strongest(values: NDArray, pictures: NDArray) -> NDArray[np.int64]:
    """Columns `(units, n)` in the order of falling values; equal ones in the order of pictures."""
    return np.lexsort((pictures, -values))


@dataclass
class TopActivations:
    """What the pictures seen so far gave. `tops`: by the layer's name; pictures are numbered over the whole list. `parts`:
    numbers of the slices that are done, of `pictures` pictures together; `sizes`: of the pictures in the tops, in source
    pixels; `rejected`: number, path and reason of what does not count."""

    tops: dict[str, RunningTop]
    parts: list[int] = field(default_factory=list)
    pictures: int = 0
    sizes: dict[int, Size] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)

    def merge(self, other: TopActivations) -> TopActivations:
        """Both as one, of other parts of the same run; the same whichever comes first. Raises UsageError where a part is
        in both."""
        if twice := {*self.parts} & {*other.parts}:
            raise UsageError(
                "merge top activations", got=f"part {min(twice)} twice", allowed="each part once"
            )
        tops = {name: top.merge(other.tops[name]) for name, top in self.tops.items()}
        return TopActivations(
            tops, sorted([*self.parts, *other.parts]), self.pictures + other.pictures, {**self.sizes, **other.sizes},
            sorted([*self.rejected, *other.rejected]),
        ).pruned()  # fmt: skip

    def pruned(self) -> TopActivations:
        """Without the sizes of pictures that left the tops."""
        shown = {i for top in self.tops.values() for i in top.pictures.unique().tolist()}
        self.sizes = {i: size for i, size in sorted(self.sizes.items()) if i in shown}
        return self


def top_activations(
    network: Network, pictures: Sequence[Any], layers: Sequence[str | Layer], k: int = 9, **options: Any
) -> TopActivations:
    """The k strongest places of every unit of the layers over `pictures`: `Source`s, paths, PIL pictures or arrays, which
    the result counts from 0. `options`: of `running`, which see, also for errors."""
    found = None
    for found in running(network, pictures, layers, k, **options):  # noqa: B007
        pass
    assert found is not None
    return found


def running(
    network: Network,
    pictures: Sequence[Any],
    layers: Sequence[str | Layer],
    k: int = 9,
    *,
    view: str = "card",
    batch: int = 32,
    workers: int = 2,
    part: int = PART,
    share: tuple[int, int] = (0, 1),
    begun: TopActivations | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int], None] | None = None,
    heard: Heard | None = None,
) -> Iterator[TopActivations]:
    """The pass in parts, slices of `part` pictures: after each the result so far, the same object, grown.

    `view`: what the network sees of a picture, by its card: `card` or `whole`; `batch`: pictures a forward pass, which
    ends at the deepest of the layers; `workers`: threads that read ahead; `progress`: told how many more pictures are done;
    `heard`: told the activations of every batch.
    `share` (i, n): every n-th part alone, from part i on; `begun`: goes on from there. Batches do not cross parts, so
    the result is equal bit for bit however the parts are shared and merged. Raises LayerError for a layer that is not
    there or has no cells, UsageError where there are fewer pictures than k.
    """
    for name, value in (("k", k), ("batch", batch), ("part", part)):
        if value < 1:
            raise UsageError(f"top activations: {name}", got=value, allowed="≥ 1")
    if len(pictures) < k:
        raise UsageError(f"the {k} strongest pictures of a unit", got=f"{len(pictures)} pictures", allowed="at least as many")  # fmt: skip
    each = [one if isinstance(one, Layer) else network.find_layer(one, network.blank()) for one in layers]
    found = [*{one.name: one for one in each}.values()]
    if not found:
        raise UsageError("top activations", got="no layer", do="name some: net.layers() lists them")
    made = begun or TopActivations(
        {one.name: RunningTop.empty(one.channels, k, len(one.size)) for one in found}
    )
    done = {*made.parts}
    todo = [i for i in range(share[0], -(-len(pictures) // part), share[1]) if i not in done]
    slices = [range(i * part, min((i + 1) * part, len(pictures))) for i in todo]
    numbers = (number for one in slices for number in one)
    reading_all = reading(network, pictures, numbers, view=view, workers=workers, max_pixels=max_pixels)
    with closing(reading_all) as reads:
        for index, one in zip(todo, slices, strict=True):
            for some in batches(islice(reads, len(one)), batch, made.rejected, progress):
                _look(network, found, some, made, pictures, heard)
            made.rejected.sort()
            made.parts.append(index)
            made.pictures += len(one)
            yield made.pruned()
        if not todo:
            yield made


def _look(
    network: Network,
    layers: Sequence[Layer],
    some: Sequence[Read],
    made: TopActivations,
    pictures: Sequence[Any],
    heard: Heard | None = None,
) -> None:
    """One forward pass over pictures of one shape, taken into the result."""
    numbers = [one.number for one in some]
    pixels = pixels_of(network, some)
    at: dict[taps.Point, list[Layer]] = defaultdict(list)
    for layer in layers:  # tokens lie in a grid that hangs on the picture's size
        at[layer.point].append(layer if layer.prefix is None else network.find_layer(layer.name, pixels))
    made.sizes.update((one.number, one.size) for one in some)

    def seen(point: taps.Point, value: Tensor) -> None:
        for layer in at[point]:
            if heard:
                heard(layer.name, layer.cells(value), numbers)
            for number in made.tops[layer.name].update(layer.cells(value), numbers):
                reason = f"some units of {layer.name} say NaN or infinity of it"
                made.rejected.append((number, name_of(pictures[number]), reason))

    with taps.borrowed(network.module):
        network.run(pixels, at, trunk=True, seen=seen)
