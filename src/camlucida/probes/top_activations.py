"""The pictures that excite a unit most (ZF paper, section 4.1: "top 9"): one streaming pass over a data set."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camlucida import taps
from camlucida.errors import InputError, UsageError
from camlucida.images.read import MAX_PIXELS, ahead, read_picture
from camlucida.images.sources import Source
from camlucida.networks.network import Network
from camlucida.networks.structure import Layer
from camlucida.values import Size, View

PART = 512
"""Pictures a part of the run holds: what a kill loses at most, and what processes share out."""


@dataclass
class RunningTop:
    """The k strongest places of every unit of a layer so far, at most one per picture; strongest first, ties by the earlier
    picture and, inside one, by the first cell in reading order.

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
    def k(self) -> int:
        return self.values.shape[1]

    def update(self, activations: Tensor, pictures: int | Sequence[int]) -> list[int]:
        """Takes in the activations `(N, units, *cells)` of N pictures: their indices, or the first of consecutive ones.
        Returns the pictures of which a map holds NaN or infinity; such a map does not count."""
        first = pictures
        numbers = torch.arange(first, first + len(activations)) if isinstance(first, int) else torch.tensor([*first])  # fmt: skip
        best = activations.amax(tuple(range(2, activations.ndim))).float().cpu()  # (N, units)
        finite = best.isfinite()
        last, at = self.values[:, -1], self.pictures[:, -1]
        enters = finite & ((best > last) | ((best == last) & (numbers[:, None] < at)))
        units = enters.any(0).nonzero()[:, 0]
        if len(units):
            rivals = best.masked_fill(~enters, -math.inf).T[units]
            values = torch.cat([self.values[units], rivals], 1)
            places = torch.cat([self.pictures[units], numbers.expand(rivals.shape)], 1)
            places = places.masked_fill(values == -math.inf, -1)
            order = _strongest(values, places)[:, : self.k]
            self.values[units], self.pictures[units] = values.gather(1, order), places.gather(1, order)
            cells = self.cells[units].gather(1, order.clamp(max=self.k - 1)[..., None].expand(-1, -1, self.cells.shape[2]))  # fmt: skip
            # Only of places that stay is it asked which cell they are.
            row, rank = ((order >= self.k) & (self.values[units] > -math.inf)).nonzero(as_tuple=True)
            device = activations.device
            maps = activations[(order[row, rank] - self.k).to(device), units[row].to(device)]  # (M, *cells)
            flat = maps.flatten(1).argmax(1).cpu()
            cells[row, rank] = torch.stack(torch.unravel_index(flat, maps.shape[1:]), 1)
            self.cells[units] = cells.masked_fill((self.values[units] == -math.inf)[..., None], 0)
        return numbers[~finite.all(1)].tolist()

    def merge(self, other: RunningTop) -> RunningTop:
        """The strongest places of both, which have seen different pictures; the same whichever comes first."""
        values = torch.cat([self.values, other.values], 1)
        pictures = torch.cat([self.pictures, other.pictures], 1)
        order = _strongest(values, pictures)[:, : self.k]
        cells = torch.cat([self.cells, other.cells], 1)
        index = order[..., None].expand(-1, -1, cells.shape[2])
        return RunningTop(values.gather(1, order), pictures.gather(1, order), cells.gather(1, index))

    def arrays(self) -> dict[str, NDArray]:
        return {"values": self.values.numpy(), "pictures": self.pictures.numpy(), "cells": self.cells.numpy()}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray]) -> RunningTop:
        values, pictures, cells = (
            torch.from_numpy(np.array(arrays[n])) for n in ("values", "pictures", "cells")
        )
        return cls(values, pictures, cells)


def _strongest(values: Tensor, pictures: Tensor) -> Tensor:
    """Columns `(units, n)` in the order of falling values; equal ones in the order of pictures."""
    by_picture = pictures.argsort(1)
    falling = values.gather(1, by_picture).argsort(dim=1, descending=True, stable=True)
    return by_picture.gather(1, falling)


@dataclass
class Part:
    """What a slice of the pictures gave. `tops`: by the layer's name, pictures numbered over the whole list; `rejected`:
    number, path and reason of what does not count."""

    index: int
    pictures: int
    tops: dict[str, RunningTop]
    rejected: list[tuple[int, str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class TopActivations:
    """`tops[layer]`: the strongest places of all its units. `pictures`: how many were looked at, the rejected among
    them."""

    layers: tuple[Layer, ...]
    tops: dict[str, RunningTop]
    pictures: int
    rejected: tuple[tuple[int, str, str], ...]


def top_activations(
    network: Network,
    pictures: Sequence[Any],
    layers: Sequence[str],
    k: int = 9,
    *,
    view: str = "card",
    batch: int = 32,
    workers: int = 2,
    part: int = PART,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int], None] | None = None,
) -> TopActivations:
    """The k strongest places of every unit of the layers over `pictures`: `Source`s, paths, PIL pictures or arrays, which
    the results count from 0. Raises LayerError for a layer that is not there or has no cells, UsageError where there
    are fewer pictures than k.

    `view`: what the network sees of a picture, by its card: `card` or `whole`; `batch`: pictures a forward pass;
    `workers`: threads that read ahead; `progress`: told how many pictures are done.
    """
    each = parts(
        network, pictures, layers, k, view=view, batch=batch, workers=workers, part=part, max_pixels=max_pixels, progress=progress,
    )  # fmt: skip
    return joined(network, layers, each, k)


def parts(
    network: Network,
    pictures: Sequence[Any],
    layers: Sequence[str],
    k: int = 9,
    *,
    view: str = "card",
    batch: int = 32,
    workers: int = 2,
    part: int = PART,
    max_pixels: int = MAX_PIXELS,
    only: Container[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Part]:
    """The pass of `top_activations` in its parts, each a fixed slice of the pictures whose result hangs on nothing but
    that slice and `batch`; `only`: these parts alone. One part is in memory at a time."""
    for name, value in (("k", k), ("batch", batch), ("part", part)):
        if value < 1:
            raise UsageError(f"top activations: {name}", got=value, allowed="≥ 1")
    if len(pictures) < k:
        raise UsageError(f"the {k} strongest pictures of a unit", got=f"{len(pictures)} pictures", allowed=f"k up to {len(pictures)}")  # fmt: skip
    found = [network.find_layer(name, network.blank()) for name in layers]
    if not found:
        raise UsageError("top activations", got="no layer", do="name some: net.layers() lists them")
    wanted = [i for i in range(-(-len(pictures) // part)) if only is None or i in only]
    slices = [range(i * part, min((i + 1) * part, len(pictures))) for i in wanted]
    pool = ThreadPoolExecutor(max(workers, 1))
    try:
        numbers = (number for one in slices for number in one)
        reads = ahead(
            pool, lambda i: _read(network, i, pictures[i], view, max_pixels), numbers, 2 * max(workers, 1)
        )
        for index, one in zip(wanted, slices, strict=True):
            made = Part(
                index,
                len(one),
                {layer.name: RunningTop.empty(layer.channels, k, len(layer.size)) for layer in found},
            )
            waiting: dict[tuple[int, ...], list[tuple[int, Tensor]]] = defaultdict(list)
            for _ in one:
                number, read = next(reads)
                if isinstance(read, str):
                    made.rejected.append((number, _name(pictures[number]), read))
                else:
                    waiting[read.shape].append((number, read))
                    if len(waiting[read.shape]) == batch:
                        _look(network, found, waiting.pop(read.shape), made, pictures)
                if progress:
                    progress(1)
            for rest in waiting.values():
                _look(network, found, rest, made, pictures)
            made.rejected.sort()
            yield made
    finally:
        pool.shutdown(cancel_futures=True)


def joined(network: Network, layers: Sequence[str], parts: Iterator[Part], k: int = 9) -> TopActivations:
    """The parts as one result, in whatever order they come. Raises UsageError where fewer than k pictures were usable."""
    found = tuple(network.find_layer(name, network.blank()) for name in layers)
    tops = {layer.name: RunningTop.empty(layer.channels, k, len(layer.size)) for layer in found}
    seen, rejected = 0, list[tuple[int, str, str]]()
    for one in parts:
        tops = {name: top.merge(one.tops[name]) for name, top in tops.items()}
        seen += one.pictures
        rejected += one.rejected
    return TopActivations(found, tops, seen, tuple(sorted(rejected)))


def _read(network: Network, number: int, given: Any, view: str, max_pixels: int) -> tuple[int, Tensor | str]:
    """The picture's number and uint8 `(C, H, W)`, or why there is none."""
    shape = network.card.preprocessing
    try:
        picture = read_picture(
            given.read() if isinstance(given, Source) else given, shape.mean_colour, max_pixels
        )
    except InputError as error:
        return number, str(error)
    return number, shape.pixels(picture, shape.view(Size(picture.height, picture.width), view))


def _look(
    network: Network,
    layers: Sequence[Layer],
    some: Sequence[tuple[int, Tensor]],
    made: Part,
    pictures: Sequence[Any],
) -> None:
    """One forward pass over pictures of one shape, taken into the part."""
    numbers = [number for number, _ in some]
    pixels = network.card.preprocessing.normalise(torch.stack([one for _, one in some]).to(network.device))
    here = [network.find_layer(layer.name, pixels) if layer.prefix is not None else layer for layer in layers]
    with taps.borrowed(network.module):
        run = network.run(pixels, [layer.point for layer in here])
        for layer in here:
            for number in made.tops[layer.name].update(layer.cells(run.tapped[layer.point]), numbers):
                reason = f"units of {layer.name} say NaN or infinity of it"
                made.rejected.append((number, _name(pictures[number]), reason))


def _name(given: Any) -> str:
    if isinstance(given, Source):
        return given.name
    return str(given) if isinstance(given, (str, Path)) else "<picture>"


def view_of(network: Network, size: Size, view: str = "card") -> View:
    """What the network saw of a picture of that size."""
    return network.card.preprocessing.view(size, view)
