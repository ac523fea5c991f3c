"""One picture's maps against its objects, by all localization protocols at once (section 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from camlucida import metrics
from camlucida.boxes import FractionOfMax, TightLoose
from camlucida.boxes.component_tree import sweep
from camlucida.boxes.from_map import MAX_SIDE, Rule, boxes_of
from camlucida.errors import InputError
from camlucida.evaluate import pointing, wsol
from camlucida.evaluate.baselines import centre_gaussian
from camlucida.evaluate.localization import guessed
from camlucida.images.datasets import Example
from camlucida.values import Box, ScoredBox, Size

SIDE = 224
"""MaxBoxAcc and PxAP squash picture, boxes and masks to this side."""
LEVELS = np.arange(1000) / 1000
"""Their thresholds, of maps scaled from minimum to maximum."""
CURVE = np.arange(100) / 100
"""Thresholds of the accuracy curve: shares of the map's maximum, as in the rule fraction-of-max."""
CURVE_SIDE = 256
"""The curve's boxes are read off maps of at most this many samples a side."""
IOUS = (0.3, 0.5, 0.7)


@dataclass(frozen=True)
class Protocol:
    """How maps become boxes, and from which overlap on a box is right. `convention`: as in `wsol.box_accuracy`."""

    rule: Rule
    iou: float = 0.5
    top: int = 5
    convention: wsol.Convention = "half-open"
    several: bool = False
    """Pictures carry several labels: a pair of picture and class is one case, and classes are not ranked."""

    @property
    def ious(self) -> tuple[float, ...]:
        return tuple(sorted({*IOUS, self.iou}))


@dataclass(frozen=True, slots=True)
class Objects:
    """What is there to be found: the boxes of one class (half-open, source pixels) and, where given, its mask `(H, W)`."""

    size: Size
    boxes: tuple[Box, ...]
    mask: NDArray[np.uint8] | None = None

    @property
    def corners(self) -> NDArray[np.float64]:
        return np.array([box.corners for box in self.boxes]).reshape(-1, 4)


@dataclass(frozen=True, slots=True)
class MapScore:
    """The map of the true class: its box by the rule, and what each protocol says of it. `curve`, `largest` (at each of
    `Protocol.ious`) and `every`: whether the box at each threshold is right, packed to bits."""

    box: tuple[float, float, float, float]
    overlap: float
    curve: NDArray[np.uint8]
    largest: NDArray[np.uint8]
    every: NDArray[np.uint8]
    flat: bool
    points: bool
    energy: float
    squashed: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Guesses:
    """What the network took the picture for: rank of the true class from 1, its probability, and guesses of a class and
    a box, best first."""

    rank: int
    probability: float
    made: tuple[tuple[int, Box], ...]


def guesses(
    rule: Rule, classes: Sequence[int], boxes: Sequence[Sequence[ScoredBox]], top: int = 5
) -> tuple[tuple[int, Box], ...]:
    """The first `top` guesses: one box for each class, best first; the rule tight-loose gives two for the first, two for the
    second and one for the third (section 3.2: loose before tight)."""
    if not isinstance(rule, TightLoose):
        return tuple((c, found[0].box) for c, found in zip(classes, boxes, strict=True))[:top]
    both = [(c, one.box) for c, found in zip(classes, boxes, strict=True) for one in reversed(tuple(found))]
    return tuple(both[: min(top, 5)])


def squashed(raw: NDArray[Any]) -> NDArray[np.float32]:
    """A map on `SIDE` × `SIDE` samples, cubic, as the WSOL benchmark does; one that is not finite becomes zeros."""
    values = np.ascontiguousarray(raw, np.float32)
    if not np.isfinite(values).all():
        return np.zeros((SIDE, SIDE), np.float32)
    peak = float(np.abs(values).max()) or 1.0  # so that tiny values keep their digits
    small = torch.from_numpy(values / peak)[None, None]
    return F.interpolate(small, (SIDE, SIDE), mode="bicubic", align_corners=False)[0, 0].numpy()


def score_map(
    protocol: Protocol,
    heat: NDArray[Any],
    raw: NDArray[Any],
    objects: Objects,
    picture: Callable[[], Image.Image],
    own: ScoredBox | None = None,
) -> MapScore:
    """Judges one map: `heat (H, W)` over the whole picture, `raw` the same before upsampling; `own`: the rule's box, if
    it is known already. There must be a box or a mask."""
    size, truth = objects.size, objects.corners
    small = squashed(raw)
    box = own or guessed(protocol.rule, boxes_of(protocol.rule, heat, size, picture))
    like: dict[str, Any] = (
        {"connectivity": protocol.rule.connectivity, "normalise": protocol.rule.normalise}
        if isinstance(protocol.rule, FractionOfMax)
        else {}
    )
    swept = sweep(_coarse(heat), size, CURVE, **like)
    if len(truth):
        given = _on_square(truth, size, protocol.convention)
        largest, every = (
            wsol.box_accuracy(
                [small], [given], LEVELS, protocol.ious, which, protocol.convention, normalise=True
            )
            for which in ("largest", "all")
        )
        hits = [np.concatenate([one.packed_hits[iou] for iou in protocol.ious]) for one in (largest, every)]
        curve = metrics.box_iou(swept[:, None], truth[None]).max(1) >= protocol.iou
    else:
        hits = [np.zeros((len(protocol.ious), len(LEVELS) // 8), np.uint8)] * 2
        curve = np.zeros(len(CURVE), bool)
    flat, points, inside = _places(heat, objects)
    return MapScore(
        box.box.corners, overlap(box.box, truth), np.packbits(curve), hits[0], hits[1], flat, points, inside,
        squashed=small if objects.mask is not None else None,
    )  # fmt: skip


def _places(heat: NDArray[Any], objects: Objects) -> tuple[bool, bool, float]:
    """Whether the map is flat; whether it points at the object; its energy inside."""
    flat = not np.isfinite(heat).all() or float(np.min(heat)) == float(np.max(heat))
    where: dict[str, Any]
    scale = np.array([heat.shape[1] / objects.size.width, heat.shape[0] / objects.size.height])
    if objects.boxes:
        where = {"boxes": objects.corners * np.tile(scale, 2)}
    else:
        assert objects.mask is not None
        where = {"mask": nearest(objects.mask, heat.shape) == 1}
    near = pointing.TOLERANCE * float(scale.min())
    return flat, pointing.pointing_hit(heat, tolerance=near, **where), pointing.energy(heat, **where)


class CentreGaussian:
    """`score_map` of the map that is the same for every picture: swept once."""

    def __init__(self, protocol: Protocol) -> None:
        square = Size(SIDE, SIDE)
        self.protocol, self.map = protocol, centre_gaussian(square)
        self.levels = sweep(self.map, square, LEVELS, normalise=True)
        self.curve = sweep(self.map, square, CURVE) / SIDE

    def score(self, objects: Objects, picture: Callable[[], Image.Image]) -> MapScore:
        size, truth = objects.size, objects.corners
        scale = np.array([size.width, size.height, size.width, size.height])
        rule, ious = self.protocol.rule, np.array(self.protocol.ious)
        box = guessed(rule, boxes_of(rule, self.map, size, picture)).box
        right, curve = np.zeros((len(ious), len(LEVELS)), bool), np.zeros(len(CURVE), bool)
        if len(truth):
            given = _on_square(truth, size, "half-open")
            right = metrics.box_iou(self.levels[:, None], given[None]).max(1) >= ious[:, None]
            found = (self.curve * scale)[:, None]
            curve = metrics.box_iou(found, truth[None]).max(1) >= self.protocol.iou
        packed = np.packbits(right, axis=1)
        factor = min(1.0, MAX_SIDE / max(size.height, size.width))
        heat = centre_gaussian(Size(max(1, round(size.height * factor)), max(1, round(size.width * factor))))
        return MapScore(
            box.corners, overlap(box, truth), np.packbits(curve), packed, packed, *_places(heat, objects),
            squashed=self.map.astype(np.float32) if objects.mask is not None else None,
        )  # fmt: skip


def objects_of(example: Example, size: Size) -> Objects:
    """What the picture holds of its label, boxes cut to the picture. Raises InputError where none of them lies in it."""
    boxes = tuple(box for one in example.boxes if (box := one.clipped(size)).area > 0)
    if example.boxes and not boxes:
        raise InputError(
            "boxes outside the picture", got=f"{example.boxes[0].corners}", allowed=f"inside {size.width} × {size.height}"
        )  # fmt: skip
    return Objects(size, boxes, read_mask(example.masks, size) if example.masks else None)


def read_mask(files: Sequence[str], size: Size) -> NDArray[np.uint8]:
    """The union `(H, W)`, 1 where some file has a pixel above 0, of mask pictures; laid over a picture of `size`. Raises
    InputError."""
    found = np.zeros((size.height, size.width), np.uint8)
    for file in files:
        try:
            with Image.open(file) as image:
                mask = np.asarray(image.convert("I" if image.mode.startswith("I") else "L"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"mask {file}", got=str(error) or type(error).__name__) from error
        found |= (nearest(mask, found.shape) > 0).astype(np.uint8)
    return found


def laid_over(raw: NDArray[Any], size: Size, limit: int) -> NDArray[np.float32]:
    """A map stretched over a picture of `size`, bilinear, at most `limit` samples a side."""
    factor = min(1.0, limit / max(size.height, size.width))
    shape = [max(1, round(side * factor)) for side in (size.height, size.width)]
    values = torch.from_numpy(np.ascontiguousarray(raw, np.float32))[None, None]
    return F.interpolate(values, shape, mode="bilinear", align_corners=False)[0, 0].numpy()


def nearest(mask: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """A mask on another grid: the value at each sample's upper left corner, as OpenCV's nearest neighbour."""
    rows, columns = (
        np.minimum(np.arange(n) * (1 / (n / m)), m - 1).astype(int)
        for n, m in zip(shape, mask.shape, strict=True)
    )
    return mask[rows][:, columns]


def _coarse(heat: NDArray[Any]) -> NDArray[Any]:
    """Every nth sample, so that at most `CURVE_SIDE` are left a side."""
    step = -(-max(heat.shape) // CURVE_SIDE)
    return heat[step // 2 :: step, step // 2 :: step] if step > 1 else heat


def overlap(box: Box, truth: NDArray[np.float64]) -> float:
    return float(metrics.box_iou(np.array(box.corners)[None], truth).max(initial=0.0))


def _on_square(truth: NDArray[np.float64], size: Size, convention: wsol.Convention) -> NDArray[np.float64]:
    """Boxes on the squashed picture; the benchmark's are inclusive and cut to whole pixels."""
    sides = np.array([size.width, size.height] * 2)
    if convention == "half-open":
        return truth * SIDE / sides
    return np.trunc((truth - (0, 0, 1, 1)) * SIDE / sides)  # divided last: whole numbers stay whole
