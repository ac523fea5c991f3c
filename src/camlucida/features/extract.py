"""Features of pictures from a frozen network (CAM paper, section 4; VGG paper, appendix B): the average of a layer's
map, or of the penultimate map of the dense network, over mirror images, scales and boxes."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from camlucida import taps
from camlucida.errors import InputError, UnsupportedError, UsageError
from camlucida.images.read import MAX_PIXELS, read_picture
from camlucida.images.sources import Source, name_of, payload
from camlucida.networks import cards, heads
from camlucida.networks.network import Network
from camlucida.values import Box, Size, View

PENULTIMATE = "penultimate"
SLICE = 128  # views that are read before they run
TINY = (
    16.0  # a box with a shorter side of fewer pixels stands for its whole picture (specification, section 6)
)

Region = Literal["picture", "box", "picture+box"]


@dataclass(frozen=True)
class Descriptor:
    """How a picture becomes a vector. `layer`: None for the map before the head's pooling, `penultimate` for the map
    before the last layer of the dense network (after its ReLU), or a layer's name; its average over cells is taken.

    `scales`: shorter sides in pixels, none for the card's; `combine` averages them or stacks their vectors; `flips`
    averages each with the mirror image. `region`: the picture, its box cut out (`margin`: that share of the box's sides
    added all around), or both stacked.
    """

    layer: str | None = None
    scales: tuple[int, ...] = ()
    combine: Literal["average", "stack"] = "average"
    flips: bool = False
    region: Region = "picture"
    margin: float = 0.0

    def __post_init__(self) -> None:
        if any(q < 1 for q in self.scales) or len(set(self.scales)) != len(self.scales):
            raise UsageError("scales", got=self.scales, allowed="sides in pixels, each once")
        if not 0 <= self.margin <= 4:
            raise UsageError("margin", got=self.margin, allowed="0 … 4, a share of the box's sides")


@dataclass(frozen=True)
class Block:
    """A part of the vector, columns `start` to `stop`: the average map of one network's layer in one region, over its
    `scales` (shorter sides in pixels). `network`: sha256 of its weights; `pixels`: that of how it is shown pictures, but
    for their size."""

    network: str
    name: str
    layer: str
    pixels: str
    scales: tuple[int, ...]
    flips: bool
    region: Literal["picture", "box"]
    start: int
    stop: int


@dataclass(frozen=True)
class Wanted:
    """A picture to be described, and the box of the object in it where the region is or has a box."""

    source: Source
    box: Box | None = None


@dataclass(frozen=True)
class Described:
    """The vector `(D,)` float32 of one picture, or why there is none."""

    path: str
    vector: NDArray[np.float32] | None
    problem: str = ""


class Extractor:
    """A network and a descriptor of its pictures: `extractor(pictures)` streams vectors of `blocks`.

    Raises LayerError, UnsupportedError for a layer that gives no map, UsageError for scales that the network does not
    take.
    """

    def __init__(self, net: Network, how: Descriptor | None = None) -> None:
        self.how = how = how or Descriptor()
        self.name = net.card.name
        self.sha256 = net.card.sha256 or cards.digest(net.module.state_dict())
        blank, name = net.blank(), how.layer
        if how.layer == PENULTIMATE:
            net, name, side = penultimate(net)
            blank = blank.new_zeros(*blank.shape[:2], side, side)
        self.net, shape = net, net.card.preprocessing
        self.layer = net.find_layer(name, blank)
        if math.prod(self.layer.size) == 1 and how.layer is not None:
            raise UnsupportedError(
                f"features of {self.layer.name}", got="one cell", allowed="a layer with cells"
            )
        self.scales = how.scales or (shape.size,)
        if how.scales and not shape.any_size:
            side = shape.crop or shape.size
            raise UsageError(f"scales of {net.card.name}", got=how.scales, allowed=f"none: it takes {side} × {side} only", do=f"leave --scales out, or take --layer {PENULTIMATE}")  # fmt: skip
        if min(self.scales) < shape.minimum:
            raise UsageError(f"scales of {net.card.name}", got=min(self.scales), allowed=f"≥ {shape.minimum}")
        self.blocks = tuple(self._blocks())

    def _blocks(self) -> Iterator[Block]:
        wide, start = self.layer.channels, 0
        shape = replace(self.net.card.preprocessing, size=1, crop=None, any_size=True, minimum=1)
        shown = hashlib.sha256(repr(asdict(shape)).encode()).hexdigest()
        parts = [self.scales] if self.how.combine == "average" else [(q,) for q in self.scales]
        for region in self._regions:
            for scales in parts:
                where = PENULTIMATE if self.how.layer == PENULTIMATE else self.layer.name
                yield Block(
                    self.sha256, self.name, where, shown, scales, self.how.flips, region, start, start + wide
                )
                start += wide

    @property
    def _regions(self) -> tuple[Literal["picture", "box"], ...]:
        if self.how.region == "picture+box":
            return ("picture", "box")
        return (self.how.region,)

    @property
    def width(self) -> int:
        """Numbers in a vector."""
        return self.blocks[-1].stop

    @property
    def slice(self) -> int:
        """Pictures that are read together: results are equal for equal slices and batches."""
        return max(8, SLICE // (len(self.scales) * len(self._regions)))

    def __call__(
        self,
        pictures: Sequence[Any],
        *,
        batch: int = 64,
        workers: int = 2,
        max_pixels: int = MAX_PIXELS,
    ) -> Iterator[Described]:
        """Vectors in order, as a stream; a picture that cannot be used is among them with its reason. `pictures`:
        `Wanted`, `Source`, paths, PIL pictures or arrays. Views of one shape share a forward pass: `batch` of the
        card's size, fewer of larger ones. `workers` threads read the next slice while the network runs on this one."""
        with ThreadPoolExecutor(max(workers, 1)) as pool:

            def reading(start: int) -> list[Future[_Read]]:
                return [
                    pool.submit(self._read, one, max_pixels) for one in pictures[start : start + self.slice]
                ]

            following = reading(0)
            try:
                for start in range(0, len(pictures), self.slice):
                    read, following = following, reading(start + self.slice)
                    yield from self._described([one.result() for one in read], batch)
            finally:
                for one in following:
                    one.cancel()

    def views(self, picture: Image.Image, box: Box | None = None) -> list[tuple[int, Image.Image, View]]:
        """`(block, what is looked at, view of it)` for every view of a picture, mirror images included. Raises
        InputError for a picture without the box that the region asks for."""
        found, shape = [], self.net.card.preprocessing
        shown = {region: self._region(picture, box, region) for region in self._regions}
        for index, block in enumerate(self.blocks):
            of = shown[block.region]
            for q in block.scales:
                sized = replace(shape, size=q) if self.how.scales else shape
                for flip in (False, True)[: 1 + self.how.flips]:
                    found.append((index, of, sized.view(Size(of.height, of.width), "whole", flip=flip)))
        return found

    def maps(self, pixels: Tensor) -> Tensor:
        """The layer's map `(N, K, h, w)` float32 of normalised pixels."""
        with taps.borrowed(self.net.module):
            return self._maps(pixels)

    def _maps(self, pixels: Tensor) -> Tensor:
        layer = self.layer
        if layer.prefix is not None:  # tokens know their grid only from the picture's size
            layer = self.net.find_layer(layer.name if self.how.layer else None, pixels)
        shown = pixels.contiguous(memory_format=torch.channels_last) if pixels.ndim == 4 else pixels
        run = self.net.run(shown, [layer.point])
        return layer.cells(run.tapped[layer.point]).float()

    def _region(self, picture: Image.Image, box: Box | None, region: str) -> Image.Image:
        if region == "picture":
            return picture
        if box is None:
            raise InputError("no box on this picture", do="--region picture needs none")
        x0, y0, x1, y1 = box.corners
        if min(x1 - x0, y1 - y0) < TINY:
            return picture
        across, down = self.how.margin * (x1 - x0), self.how.margin * (y1 - y0)
        left, top = max(math.floor(x0 - across), 0), max(math.floor(y0 - down), 0)
        right, bottom = min(math.ceil(x1 + across), picture.width), min(math.ceil(y1 + down), picture.height)
        if right - left < 1 or bottom - top < 1:
            raise InputError("its box lies outside the picture", got=f"{x0:g}, {y0:g}, {x1:g}, {y1:g}")
        return picture.crop((left, top, right, bottom))

    def _read(self, given: Any, max_pixels: int) -> _Read:
        wanted = given if isinstance(given, Wanted) else Wanted(given)
        source, shape = wanted.source, self.net.card.preprocessing
        path = name_of(source)
        try:
            picture = read_picture(payload(source), shape.mean_colour, max_pixels)
            views = self.views(picture, wanted.box)
        except InputError as error:
            return _Read(path, [], str(error))
        straight: dict[tuple[int, View], Tensor] = {}
        looks = []
        for index, of, view in views:
            key = (id(of), replace(view, flip=False))
            if key not in straight:
                straight[key] = shape.pixels(of, key[1])
            looks.append((index, straight[key], view.flip))
        return _Read(path, looks)

    def _described(self, read: Sequence[_Read], batch: int) -> Iterator[Described]:
        """Equal shapes share batches, in an order that the slice alone fixes."""
        shape = self.net.card.preprocessing
        area = (shape.crop or shape.size) ** 2
        groups: dict[tuple[int, ...], list[tuple[int, int, Tensor, bool]]] = defaultdict(list)
        for i, one in enumerate(read):
            for index, pixels, flip in one.looks:
                groups[tuple(pixels.shape)].append((i, index, pixels, flip))
        sums = np.zeros((len(read), self.width))
        with taps.borrowed(self.net.module):
            for size, members in groups.items():
                most = max(1, batch * area // math.prod(size[1:]))
                for start in range(0, len(members), most):
                    chunk = members[start : start + most]
                    stacked = torch.stack(
                        [pixels.flip(2) if flip else pixels for _, _, pixels, flip in chunk]
                    )
                    given = shape.normalise(stacked.to(self.net.device))
                    rows = self._maps(given).flatten(2).mean(2).double().cpu().numpy()
                    for (i, index, _, _), row in zip(chunk, rows, strict=True):
                        block = self.blocks[index]
                        sums[i, block.start : block.stop] += row / (len(block.scales) * (1 + block.flips))
        for one, vector in zip(read, sums.astype(np.float32), strict=True):
            if one.problem:
                yield Described(one.path, None, one.problem)
            elif not np.isfinite(vector).all():
                yield Described(one.path, None, "the network's features hold NaN or infinite values")
            else:
                yield Described(one.path, vector)


@dataclass(frozen=True)
class _Read:
    path: str
    looks: list[tuple[int, Tensor, bool]]  # block, uint8 (C, H, W) not mirrored, to be mirrored
    problem: str = ""


def penultimate(net: Network) -> tuple[Network, str, int]:
    """The network in its dense form, the name of the map before its last layer (VGG paper, appendix B: the last fully
    connected layer is removed), and the side of a picture on which that map has several cells. Raises UnsupportedError where there is no dense form, or nothing before the last layer
    but the trunk's map."""
    module, card = heads.put(net.module, net.card, "dense")
    scores = module.get_submodule("head.scores")
    before = len(list(scores.children())) - 2
    if before < 0:
        raise UnsupportedError(
            f"the penultimate map of {net.card.name}", got="pooling → linear",
            do="leave --layer out: the map before pooling is its penultimate one",
        )  # fmt: skip
    dense = Network(module, card, precision=net.precision)
    return dense, f"head.scores.{before}", 2 * net.blank().shape[-1]
