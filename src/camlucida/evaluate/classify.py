"""Classification protocols (VGG paper, section 3.2): which views of a picture a network is shown, and how what it says
of them becomes one posterior. `classify` streams the posteriors of many pictures."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camlucida import specs, taps
from camlucida.errors import InputError, UsageError
from camlucida.images.read import MAX_PIXELS, ahead, read_picture
from camlucida.images.sources import name_of, payload
from camlucida.images.views import Preprocessing
from camlucida.networks import heads
from camlucida.networks.network import Network
from camlucida.values import Size, View

PAPER_CROP, PAPER_RESIZED, PAPER_STEP = 224, 256, 32  # side of a crop, S, and the step of the test scales
PART, PART_BYTES = 256, 128 * 2**20  # pictures, and bytes of their pixels, that are in memory at once

Pool = Literal["logit", "probability"]
Scales = tuple[int, ...] | Literal["single", "multiple"]


@dataclass(frozen=True)
class Look:
    """One view of a picture and its share of the picture's posterior; the shares of a picture sum to 1. `dense`: the
    network runs over the whole view as a convolution and its score map is pooled so; None: the plain network."""

    view: View
    share: float
    dense: Pool | None = None


@dataclass(frozen=True)
class CentreCrop:
    """The card's own view: its resize and its centre crop."""

    def looks(self, source: Size, shape: Preprocessing) -> tuple[Look, ...]:
        return (Look(shape.view(source), 1.0),)


@dataclass(frozen=True)
class TenCrop:
    """Four corners and the centre of the card's resized picture, and their mirror images. Where the card has no crop
    smaller than its resize, the picture is made larger first, in the ratio 256 : 224."""

    def looks(self, source: Size, shape: Preprocessing) -> tuple[Look, ...]:
        side, short = crop_side(shape), shape.size
        short = short if short > side else round(side * PAPER_RESIZED / PAPER_CROP)
        resized = Size(short, short) if shape.resize == "squash" else source.with_short_side(short)
        bottom, right = resized.height - side, resized.width - side
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (_half(bottom), _half(right))]
        return _averaged(_crop(source, resized, corner, side, flip) for corner in corners for flip in (False, True))  # fmt: skip


@dataclass(frozen=True)
class Dense:
    """The whole picture, shorter side Q for each of `scales` (pixels; see `sides`), and its mirror image if
    `flips`; the network runs as a convolution and gives a map of scores.

    `pool="logit"`: the scores are averaged over places, then made probabilities; `"probability"`: the other way round,
    which the paper's text leaves open (specification, section 21). Either way views and scales are averaged as
    probabilities. Sides beyond eight times the shorter one are squeezed to that.
    """

    scales: Scales = "single"
    flips: bool = True
    pool: Pool = "logit"

    def looks(self, source: Size, shape: Preprocessing) -> tuple[Look, ...]:
        flips = (False, True) if self.flips else (False,)
        views = []
        least = shape.minimum if shape.any_size else crop_side(shape)
        for q in sides(self.scales, shape, least):
            whole = replace(shape, size=q, resize="short", any_size=True, minimum=1)
            views += [whole.view(source, "whole", flip=flip) for flip in flips]
        return _averaged(views, self.pool)


@dataclass(frozen=True)
class MultiCrop:
    """`grid` × `grid` crops of the picture at each of `scales`, and their mirror images: 5 × 5 × 2 = 50 a scale, 150 at
    three. Crops have the card's size; their offsets are spread evenly from 0 to side − crop, rounded half up."""

    scales: Scales = "multiple"
    grid: int = 5

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise UsageError("multi-crop: grid", got=self.grid, allowed="≥ 1")

    def looks(self, source: Size, shape: Preprocessing) -> tuple[Look, ...]:
        side, views = crop_side(shape), []
        for q in sides(self.scales, shape, side):
            resized = source.with_short_side(q)
            for top in offsets(resized.height, side, self.grid):
                for left in offsets(resized.width, side, self.grid):
                    views += [_crop(source, resized, (top, left), side, flip) for flip in (False, True)]
        return _averaged(views)


@dataclass(frozen=True)
class Together:
    """The mean of what `Dense` and `MultiCrop` say: they differ in what lies beyond a crop's edge, zeros or the
    neighbouring pixels."""

    scales: Scales = "multiple"
    flips: bool = True
    pool: Pool = "logit"
    grid: int = 5

    def looks(self, source: Size, shape: Preprocessing) -> tuple[Look, ...]:
        dense = Dense(self.scales, self.flips, self.pool).looks(source, shape)
        crops = MultiCrop(self.scales, self.grid).looks(source, shape)
        return tuple(replace(look, share=look.share / 2) for look in (*dense, *crops))


Protocol = CentreCrop | TenCrop | Dense | MultiCrop | Together

PROTOCOLS: dict[str, str] = {
    "centre-crop": "camlucida.evaluate.classify:CentreCrop",
    "ten-crop": "camlucida.evaluate.classify:TenCrop",
    "dense": "camlucida.evaluate.classify:Dense",
    "multi-crop": "camlucida.evaluate.classify:MultiCrop",
    "together": "camlucida.evaluate.classify:Together",
}


def protocol(spec: str) -> Protocol:
    """The protocol that a spec describes, such as `dense:scales=224/256/288,pool=probability`. Raises UsageError."""
    return cast("Protocol", specs.build(spec, PROTOCOLS, "protocol"))


def crop_side(shape: Preprocessing) -> int:
    """Side of the crops that the network was made for."""
    return max(shape.crop or shape.size, shape.minimum)


def sides(scales: Scales, shape: Preprocessing, least: int) -> tuple[int, ...]:
    """Shorter sides Q that pictures are shown at, none below `least`. `single`: S, the card's size. `multiple`: S − 32,
    S and S + 32 for crops of 224, the step in proportion to the crop for others; all three move up where S − 32 would
    be less than a crop. Raises UsageError for a Q below `least`."""
    side = crop_side(shape)
    if scales == "single":
        return (max(shape.size, least),)
    if scales == "multiple":
        step = max(round(PAPER_STEP * side / PAPER_CROP), 1)
        first = max(shape.size - step, side)
        return (first, first + step, first + 2 * step)
    if not scales or min(scales) < least:
        raise UsageError("test scales", got="/".join(map(str, scales)) or "none", allowed=f"each ≥ {least}, which the network was made for")  # fmt: skip
    return scales


def offsets(length: int, side: int, count: int) -> tuple[int, ...]:
    """Where `count` crops of `side` begin in `length` pixels: evenly from 0 to length − side, rounded half up; one alone
    in the middle."""
    if count == 1:
        return (_half(length - side),)
    return tuple(math.floor(i * (length - side) / (count - 1) + 0.5) for i in range(count))


def _half(room: int) -> int:
    return math.floor(room / 2 + 0.5)


def _crop(source: Size, resized: Size, corner: tuple[int, int], side: int, flip: bool) -> View:
    return View(source, resized, (*corner, side, side), flip)


def _averaged(views: Iterable[View], dense: Pool | None = None) -> tuple[Look, ...]:
    """Views of equal share; one that comes several times is looked at once and counts so often."""
    counts: dict[View, int] = defaultdict(int)
    for view in views:
        counts[view] += 1
    total = sum(counts.values())
    return tuple(Look(view, count / total, dense) for view, count in counts.items())


@dataclass(frozen=True)
class Classified:
    """What was said of one picture: its posterior `probabilities (C,)` float64, or why there is none."""

    path: str
    probabilities: NDArray[np.float64] | None
    problem: str = ""


def classify(
    net: Network,
    how: Protocol,
    pictures: Sequence[Any],
    *,
    batch: int = 64,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Classified]:
    """Posteriors of pictures, in order, as a stream; a picture that cannot be read is among them with its reason.

    `pictures`: `Source`s, paths, PIL pictures or arrays. Views of one shape share a forward pass: `batch` of the card's
    crop, fewer of larger views. `workers` threads read ahead. Raises UsageError for scales that the network does not
    take, UnsupportedError for a dense protocol on a network that has no dense form.
    """
    shape = net.card.preprocessing
    score = _scorer(net, any(look.dense for look in how.looks(Size(64, 64), shape)))
    pool = ThreadPoolExecutor(max(workers, 1))
    try:
        reads = ahead(pool, lambda one: _read(one, how, shape, max_pixels), pictures, 2 * max(workers, 1))
        for part in _parts(reads):
            yield from _posteriors(part, score, shape, batch)
    finally:
        pool.shutdown(cancel_futures=True)


def fused(streams: Sequence[Iterator[Classified]]) -> Iterator[Classified]:
    """The mean posterior of several networks, each given as its stream over the same pictures. Raises UsageError where
    they differ in their number of classes."""
    for each in zip(*streams, strict=True):
        problem = next((one.problem for one in each if one.probabilities is None), "")
        if problem:
            yield Classified(each[0].path, None, problem)
            continue
        said = [one.probabilities for one in each if one.probabilities is not None]
        if len({len(p) for p in said}) > 1:
            raise UsageError("fusing networks", got=f"{' and '.join(str(len(p)) for p in said)} classes", allowed="networks of the same classes")  # fmt: skip
        yield Classified(each[0].path, np.mean(said, axis=0))


@dataclass(frozen=True)
class _Read:
    path: str
    looks: tuple[Look, ...]
    pixels: dict[View, Tensor]  # uint8 (C, H, W) of each view that is not mirrored
    problem: str = ""

    @property
    def bytes(self) -> int:
        return sum(one.numel() for one in self.pixels.values())


def _read(given: Any, how: Protocol, shape: Preprocessing, max_pixels: int) -> _Read:
    path = name_of(given)
    try:
        picture = read_picture(payload(given), shape.mean_colour, max_pixels)
    except InputError as error:
        return _Read(path, (), {}, str(error))
    looks = how.looks(Size(picture.height, picture.width), shape)
    straight = dict.fromkeys(replace(look.view, flip=False) for look in looks)
    return _Read(path, looks, {view: shape.pixels(picture, view) for view in straight})


def _parts(pictures: Iterable[_Read]) -> Iterator[list[_Read]]:
    """The pictures in slices that fit into memory."""
    part: list[_Read] = []
    held = 0
    for one in pictures:
        part.append(one)
        held += one.bytes
        if len(part) == PART or held >= PART_BYTES:
            yield part
            part, held = [], 0
    if part:
        yield part


def _posteriors(
    part: Sequence[_Read], score: Callable[[Tensor, Pool | None], Tensor], shape: Preprocessing, batch: int
) -> Iterator[Classified]:
    """Equal shapes share batches, in an order that the part alone fixes."""
    groups: dict[tuple[Size, Pool | None], list[tuple[int, Look]]] = defaultdict(list)
    for i, one in enumerate(part):
        for look in one.looks:
            groups[look.view.size, look.dense].append((i, look))
    posteriors: list[NDArray[np.float64] | None] = [None] * len(part)
    for (size, dense), members in groups.items():
        most = max(1, batch * crop_side(shape) ** 2 // (size.height * size.width))
        for start in range(0, len(members), most):
            chunk = members[start : start + most]
            said = score(torch.stack([_pixels(part[i], look.view) for i, look in chunk]), dense)
            for (i, look), row in zip(chunk, said.double().cpu().numpy(), strict=True):
                before = posteriors[i]
                posteriors[i] = look.share * row if before is None else before + look.share * row
    for one, posterior in zip(part, posteriors, strict=True):
        yield Classified(one.path, posterior, one.problem)


def _pixels(one: _Read, view: View) -> Tensor:
    return one.pixels[replace(view, flip=False)].flip(2) if view.flip else one.pixels[view]


def _scorer(net: Network, dense: bool) -> Callable[[Tensor, Pool | None], Tensor]:
    """Pixels uint8 `(N, C, H, W)` → posteriors `(N, classes)`."""
    convolution = (
        replace(net, module=heads.dense(net.module, size=crop_side(net.card.preprocessing)), _structures={})
        if dense
        else net
    )

    def score(pixels: Tensor, pool: Pool | None) -> Tensor:
        given = net.card.preprocessing.normalise(pixels.to(net.device))
        if pool is None:
            return net.probabilities(net(given))
        with taps.borrowed(convolution.module):
            scores = convolution.forward(given).float()  # (N, classes, h, w)
        if pool == "logit":
            return net.probabilities(scores.mean((2, 3)))
        return net.probabilities(scores).mean((2, 3))

    return score
