"""The units that speak for a class: those of the last spatial layer with the largest weights in the head (CAM paper,
section 5; section 8)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from camlucida import taps
from camlucida.errors import TargetError, UnsupportedError, UsageError
from camlucida.geometry import Box, Grid, sample
from camlucida.networks.network import Network, logits_of
from camlucida.networks.structure import Head, Layer
from camlucida.probes.looking import Pictures, look, map_of
from camlucida.probes.receptive_field import EmpiricalField, empirical_field
from camlucida.probes.top_activations import Peak, RunningTop
from camlucida.targets import ClassTarget
from camlucida.values import Batch

UNITS = 3
LEVEL = 0.5  # of the map's maximum: where a segment begins
Field = Literal["empirical", "theoretical", "map"]


@dataclass(frozen=True)
class Contributions:
    """What each unit adds to a logit: `values (N, K)` = w_k^c · F_k for the class `classes (N,)` of each picture; `bias (N,)`
    and `logits (N,)`: Σ_k values + bias = logit. `weights (N, K)` are those of the class, F is `values / weights`."""

    classes: Tensor
    values: Tensor
    weights: Tensor
    bias: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Segment:
    """One picture that makes the unit most active: the unit's map `activation (h, w)`, and `mask (H, W)` of the view, where the
    unit looks. `predicted`: the class of the picture."""

    peak: Peak
    activation: NDArray[np.float32]
    mask: NDArray[np.bool_]
    predicted: int


@dataclass(frozen=True)
class ClassUnit:
    """A unit of a class: its weight, its rank among them (from 1), its segments, strongest first (none where no picture excites
    it), and its empirical field where that was measured."""

    unit: int
    rank: int
    weight: float
    segments: tuple[Segment, ...]
    field: EmpiricalField | None


@dataclass(frozen=True)
class ClassUnits:
    """The units of one class and the weights `(K,)` of all; the picture whose logit of it is highest (`best`), with what every
    unit adds to that."""

    index: int
    units: tuple[ClassUnit, ...]
    weights: NDArray[np.float32]
    best: int
    contributions: Contributions


@dataclass(frozen=True)
class Found:
    """Every class asked for; `predicted`: position → class, of each picture that was looked at."""

    layer: Layer
    classes: tuple[ClassUnits, ...]
    predicted: dict[int, int]


def head_of(network: Network, pixels: Tensor) -> tuple[Layer, Head]:
    """The last spatial layer and the linear head on it. Raises UnsupportedError for any other head."""
    found = network.pooled_structure(pixels)
    if found.head is None or found.features is None:
        raise UnsupportedError(
            "class-specific units need a head of pooling → linear", got=f"another head on {network.card.name}",
            do="take the network's GAP form (vgg-d-gap, alexnet-gap …), or put one on with --head gap (cl.load(…, head='gap')) and train it",
        )  # fmt: skip
    if found.head.weight is None:
        raise UnsupportedError(
            "class-specific units need a linear layer after the pooling", got="channels that are the logits: each class has one unit, its own",
            do="ask for the strongest pictures of that unit instead",
        )  # fmt: skip
    return found.features, found.head


def class_weights(network: Network, pixels: Tensor) -> Tensor:
    """`(C, K)` float32: the weight of each unit in each class, with the gain of a norm between pooling and linear layer (a layer
    norm also divides by the picture's own deviation, which changes no order)."""
    _, head = head_of(network, pixels)
    assert head.weight is not None
    weight = head.weight.detach().float()
    gain = None if head.norm is None else head.norm[1]
    return weight if gain is None else weight * gain.detach().float()


def contributions(network: Network, batch: Batch | Tensor, classes: Any = None) -> Contributions:
    """What each unit adds to the logit of one class of each picture (None: the predicted one): w_k^c · F_k, which sums to
    logit − bias; after a layer norm with that picture's own mean and deviation. Raises UnsupportedError for a head that
    is not pooling → linear, TargetError for a class that is not there."""
    pixels = Batch.of(batch).pixels
    layer, head = head_of(network, pixels)
    with taps.borrowed(network.module):
        run = network.run(pixels, [layer.point])
        return _contributions(
            head, layer.cells(run.tapped[layer.point]), logits_of(run.output).float(), classes
        )


def _contributions(head: Head, features: Tensor, logits: Tensor, classes: Any) -> Contributions:
    index = ClassTarget(classes).classes(logits)[:, 0]
    weight, shift, bias = head.linear(features)
    rows = torch.arange(len(features), device=features.device)
    chosen = weight.expand(len(features), -1, -1)[rows, index]
    bias = bias.expand(len(features), -1)[rows, index]
    return Contributions(index, chosen * (head.pooled(features) + shift), chosen, bias, logits[rows, index])


def class_units(
    network: Network,
    pictures: Any,
    classes: Sequence[int] | None = None,
    *,
    units: int = UNITS,
    top: int = 5,
    field: Field = "map",
    field_top: int = 5,
    patch: int | None = None,
    stride: int | None = None,
    seed: int = 0,
    heard: Callable[[int], None] | None = None,
) -> Found:
    """The `units` units of the last spatial layer with the largest weights for each class (None: the three classes that most
    pictures are predicted as), each with its `top` most activating pictures, cut out: where the unit's map, laid over the
    view, has at least half of its maximum, grown to the size of the unit's `field`. `empirical`: measured at `field_top`
    pictures with `patch`, `stride` and `seed` as in `empirical_field`, slow; `theoretical`: by recurrence; `map`: the map
    as it is. One pass over the pictures, then the strongest once more. Raises UnsupportedError for a head that is not
    pooling → linear, TargetError for a class that is not there."""
    pictures = Pictures.of(network, pictures)
    if field not in ("empirical", "theoretical", "map"):
        raise UsageError("class_units(field=…)", got=repr(field), allowed="empirical | theoretical | map")
    if min(units, top, field_top) < 1:
        raise UsageError(
            "class_units", got=f"units {units}, top {top}, field_top {field_top}", allowed="≥ 1 each"
        )
    first = pictures.first()
    layer, _ = head_of(network, first.pixels)
    weights = class_weights(network, first.pixels).cpu()
    asked = _asked(classes, len(weights))
    kept = RunningTop.empty(
        layer.channels, max(top, field_top if field == "empirical" else 1), len(layer.size)
    )
    positions: list[int] = []
    rows: list[Tensor] = []
    for looked in look(pictures, [layer.name], heard):
        kept.update(looked.maps[layer.name], looked.positions)
        positions += looked.positions
        rows.append(looked.logits.cpu())
    logits = torch.cat(rows)
    predicted = dict(zip(positions, logits.argmax(1).tolist(), strict=True))
    if asked is None:
        counts = torch.bincount(logits.argmax(1), minlength=len(weights))
        asked = [c for c in counts.argsort(descending=True, stable=True)[:3].tolist() if counts[c]]
    fields: dict[int, EmpiricalField] = {}
    made: list[ClassUnits] = []
    for index in asked:
        ranked = weights[index].argsort(descending=True, stable=True)[:units].tolist()
        chosen: list[ClassUnit] = []
        for rank, unit in enumerate(ranked, 1):
            peaks = kept.peaks(unit)
            if field == "empirical" and peaks and unit not in fields:
                fields[unit] = empirical_field(
                    network, layer.name, unit, pictures, top=field_top, patch=patch, stride=stride, seed=seed, peaks=peaks, heard=heard,
                )  # fmt: skip
            segments = tuple(
                _segment(pictures, layer.name, unit, peak, field, fields.get(unit), predicted[peak.picture])
                for peak in peaks[:top]
            )
            chosen.append(ClassUnit(unit, rank, float(weights[index, unit]), segments, fields.get(unit)))
        best = positions[int(logits[:, index].argmax())]
        share = contributions(network, pictures[best], index)
        made.append(ClassUnits(index, tuple(chosen), weights[index].numpy(), best, share))
    return Found(layer, tuple(made), predicted)


def _asked(classes: Sequence[int] | None, number: int) -> list[int] | None:
    wrong = [c for c in classes or () if not 0 <= c < number]
    if classes is not None and not classes:
        raise TargetError("class-specific units", got="no class", do="name some, or leave it to the pictures")
    if wrong:
        raise TargetError(f"class {wrong[0]}", allowed=f"0 … {number - 1}")
    return None if classes is None else list(dict.fromkeys(classes))


def _segment(
    pictures: Pictures,
    name: str,
    unit: int,
    peak: Peak,
    field: Field,
    measured: EmpiricalField | None,
    predicted: int,
) -> Segment:
    layer, batch, maps = map_of(pictures, peak.picture, name)
    activation = maps[unit].float().cpu().numpy()
    view = (batch.pixels.shape[2], batch.pixels.shape[3])
    grid = layer.grid(view)
    around: Box | None = None
    if field == "empirical" and measured is not None:
        around = measured.box
    elif field == "theoretical" and layer.receptive_field is not None:
        height, width = layer.receptive_field
        around = Box(-width / 2, -height / 2, width / 2, height / 2)
    return Segment(peak, activation, segment(activation, grid, around), predicted)


def segment(activation: NDArray[np.float32], grid: Grid, around: Box | None) -> NDArray[np.bool_]:
    """Where a unit looks, `(H, W)` of the view: its map `(h, w)`, bilinear, at least half of its maximum (where that is not above
    zero, the maximum's cell). `around`: the field of a cell, around its centre at (0, 0); what one cell alone is above half
    for, about a square of one stride, is grown to it, and each cell then lies at the centre of its field. None: the map is
    stretched over the view and stays as it is."""
    highest = float(activation.max())
    values = activation if highest > 0 else (activation == highest).astype(np.float32)
    laid = torch.from_numpy(values)[None, None]
    if around is None:
        over = F.interpolate(laid, grid.view, mode="bilinear", align_corners=False)[0, 0]
        return (over >= LEVEL * values.max()).numpy()
    for axis, (length, offset, stride) in enumerate(zip(grid.view, grid.offset, grid.stride, strict=True)):
        laid = sample(laid, 2 + axis, (np.arange(length, dtype=np.float64) + 0.5 - offset) / stride)
    mask = (laid >= LEVEL * values.max()).float()
    (down, across) = grid.stride
    sides = (-around.y0 - down / 2, around.y1 - down / 2, -around.x0 - across / 2, around.x1 - across / 2)
    up, low, left, right = (max(0, math.floor(side + 0.5)) for side in sides)
    mask = F.max_pool2d(F.pad(mask, (0, 0, low, up)), (up + low + 1, 1), 1)
    mask = F.max_pool2d(F.pad(mask, (right, left, 0, 0)), (1, left + right + 1), 1)
    return mask[0, 0].bool().numpy()
