"""Which layer's features serve a new task best: vectors of several layers from one pass over the pictures, a linear SVM judged
on each (ZF paper, section 5.3; specification, section 13)."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from camlucida import taps
from camlucida.errors import InputError, LayerError, UsageError
from camlucida.features.extract import SLICE, Block
from camlucida.features.folder import Features
from camlucida.features.judge import Judged, Split, judge, summary
from camlucida.images.datasets import Example
from camlucida.images.read import MAX_PIXELS, read_picture
from camlucida.networks import cards
from camlucida.networks.network import Network
from camlucida.networks.structure import Layer
from camlucida.taps.running import Point
from camlucida.values import Label, Size

PIXELS = "pixels"
Pool = Literal["average", "max"]


@dataclass(frozen=True, eq=False)
class LayerVectors:
    """The vectors of one layer of one of the networks, by its name; of the raw pixels both are `pixels`."""

    network: str
    layer: str
    features: Features


@dataclass(frozen=True, eq=False)
class LayerScore:
    """What the SVMs on one layer's vectors of `width` numbers scored, one of each split."""

    network: str
    layer: str
    width: int
    judged: tuple[Judged, ...]

    def figure(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation over the splits of a figure in 0 … 1."""
        return summary(self.judged)[name]


def layer_vectors(
    networks: Mapping[str, Network],
    layers: Sequence[str],
    examples: Sequence[Example],
    classes: Sequence[Label],
    *,
    pool: Pool = "average",
    grid: int = 1,
    pixels: int = 16,
    batch: int = 64,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    heard: Callable[[int], None] = lambda done: None,
) -> tuple[list[LayerVectors], list[tuple[str, str]]]:
    """The vectors of each layer of each network, and the pictures left out with the reason of each.

    `networks`: by any names, all shown pictures in one way, as the card of the first does. `layers`: a map gives the
    average, or the maximum, of each channel in `grid` × `grid` parts of the view; a fully connected layer its numbers.
    `pixels`: side of the picture in colours that is a vector of its own, averaged and in the card's units; 0: none. All
    vectors are held in memory: 4 bytes a number. Raises LayerError, and UsageError where no picture can be read.
    """
    if pool not in ("average", "max") or grid < 1 or pixels < 0:
        raise UsageError("vectors of layers", got=f"pool {pool}, grid {grid}, pixels {pixels}", allowed="average | max, ≥ 1, ≥ 0")  # fmt: skip
    shape = next(iter(networks.values())).card.preprocessing
    found = {
        (name, layer): _find(net, layer, net.blank()) for name, net in networks.items() for layer in layers
    }
    tables: dict[tuple[str, str], NDArray[np.float32]] = {}
    rejected: dict[int, str] = {}

    def keep(key: tuple[str, str], at: list[int], values: Tensor) -> None:
        rows = values.float().cpu().numpy()
        if key not in tables:
            tables[key] = np.empty((len(examples), rows.shape[1]), np.float32)
        elif rows.shape[1] != tables[key].shape[1]:
            raise LayerError(f"{key[1]}: {rows.shape[1]} numbers of one picture, {tables[key].shape[1]} of another", do="choose a layer with cells")  # fmt: skip
        tables[key][at] = rows
        for i in np.flatnonzero(~np.isfinite(rows).all(1)):
            rejected[at[i]] = f"{key[1]} holds NaN or infinite values"

    def read(example: Example) -> Tensor | str:
        try:
            picture = read_picture(example.source.read(), shape.mean_colour, max_pixels)
        except InputError as error:
            return str(error)
        return shape.pixels(picture, shape.view(Size(picture.height, picture.width), "whole"))

    def look(at: list[int], shown: Tensor) -> None:
        if pixels:
            keep((PIXELS, PIXELS), at, functional.adaptive_avg_pool2d(shown, pixels).flatten(1))
        for name, net in networks.items():
            given = shown.to(net.device).contiguous(memory_format=torch.channels_last)
            own = {layer: _again(net, found[name, layer], layer, given) for layer in layers}
            with taps.borrowed(net.module):
                run = net.run(given, list(dict.fromkeys(_point(one) for one in own.values())), trunk=True)
            for layer, one in own.items():
                tapped = run.tapped[_point(one)]
                keep(
                    (name, layer), at, tapped if isinstance(one, Point) else pooled(one.cells(tapped), pool, grid)
                )  # fmt: skip

    area = (shape.crop or shape.size) ** 2
    with ThreadPoolExecutor(max(workers, 1)) as threads:

        def reading(start: int) -> list[Future[Tensor | str]]:
            return [threads.submit(read, one) for one in examples[start : start + SLICE]]

        following = reading(0)
        try:
            for start in range(0, len(examples), SLICE):
                now, following = [one.result() for one in following], reading(start + SLICE)
                shapes: dict[tuple[int, ...], list[int]] = defaultdict(list)
                for i, one in enumerate(now):
                    if isinstance(one, str):
                        rejected[start + i] = one
                    else:
                        shapes[tuple(one.shape)].append(i)
                for size, members in shapes.items():
                    most = max(1, batch * area // math.prod(size[1:]))
                    for first in range(0, len(members), most):
                        chunk = members[first : first + most]
                        shown = shape.normalise(torch.stack([t for i in chunk if isinstance(t := now[i], Tensor)]))  # fmt: skip
                        look([start + i for i in chunk], shown)
                heard(len(now))
        finally:
            for waiting in following:
                waiting.cancel()
    kept = [i for i in range(len(examples)) if i not in rejected]
    if not kept:
        raise UsageError("vectors of layers", got=f"{len(examples)} pictures, none of them usable", do=next(iter(rejected.values()), "check the path"))  # fmt: skip
    blank = labelled([examples[i] for i in kept], classes)
    told = [(examples[i].source.name, rejected[i]) for i in sorted(rejected)]
    how = f" {pool} {grid} × {grid}" if grid > 1 or pool != "average" else ""
    return [
        LayerVectors(name, layer, replace(blank, values=table[kept], blocks=(_block(networks.get(name), layer + how, table.shape[1], shape),)))
        for (name, layer), table in sorted(tables.items(), key=lambda one: [*networks, PIXELS].index(one[0][0]))
    ], told  # fmt: skip


def labelled(examples: Sequence[Example], classes: Sequence[Label]) -> Features:
    """The rows of labelled pictures without their vectors: what splits can be drawn of."""
    return Features(
        np.zeros((len(examples), 1), np.float32), tuple(one.source.name for one in examples), tuple(one.labels for one in examples), tuple(classes),
        (Block("", "", "", "", (), False, "picture", 0, 1),), tuple(one.difficult_labels for one in examples), tuple(one.subsets for one in examples),
    )  # fmt: skip


def judge_layers(
    vectors: Sequence[LayerVectors],
    splits: Sequence[Split],
    *,
    heard: Callable[[int], None] = lambda done: None,
    **options: Any,
) -> list[LayerScore]:
    """SVMs on each layer's vectors, judged on the same splits. `options` as in `judge`: C, normalisation …"""
    found = []
    for one in vectors:
        judged = []
        for number, split in enumerate(splits):
            seed = number if split.seed is None else split.seed
            judged.append(judge(one.features, split, seed=seed, **options))
            heard(1)
        found.append(LayerScore(one.network, one.layer, one.features.blocks[-1].stop, tuple(judged)))
    return found


def pooled(maps: Tensor, pool: Pool, grid: int) -> Tensor:
    """`(N, K, *cells)` → `(N, K · gridⁿ)`: average or maximum of the cells of each of `grid` parts of every axis, which
    overlap where they do not divide evenly."""
    given = maps.float()
    for axis in range(2, given.ndim):
        count = given.shape[axis]
        edges = [(i * count // grid, -(-(i + 1) * count // grid)) for i in range(grid)]
        parts = [given.narrow(axis, a, b - a) for a, b in edges]
        given = torch.cat(
            [p.mean(axis, True) if pool == "average" else p.amax(axis, True) for p in parts], axis
        )
    return given.flatten(1)


def _find(net: Network, name: str, pixels: Tensor) -> Layer | Point:
    """The layer with cells of that name, or the place of a module that gives a vector, as fully connected layers do."""
    try:
        return net.find_layer(name, pixels)
    except LayerError:
        if name not in dict(net.module.named_modules()):
            raise
        with taps.borrowed(net.module):
            ran = taps.trace(net.module, net.forward, pixels).modules
        if len(ran.get(Point(name), ((), ()))[1]) != 2:
            raise
        return Point(name)


def _again(net: Network, layer: Layer | Point, name: str, pixels: Tensor) -> Layer | Point:
    """Tokens know their grid only from the picture's size."""
    tokens = isinstance(layer, Layer) and layer.prefix is not None
    return net.find_layer(name, pixels) if tokens else layer


def _point(layer: Layer | Point) -> Point:
    return layer if isinstance(layer, Point) else layer.point


def _block(net: Network | None, layer: str, width: int, shape: Any) -> Block:
    shown = hashlib.sha256(repr(asdict(shape)).encode()).hexdigest()
    sha256 = "" if net is None else net.card.sha256 or cards.digest(net.module.state_dict())
    name = PIXELS if net is None else net.card.name
    return Block(sha256, name, layer, shown, (shape.size,), False, "picture", 0, width)
