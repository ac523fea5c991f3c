"""Ablation-CAM (Ablation-CAM paper, section 3)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from camlucida import taps
from camlucida.errors import CamlucidaError, UsageError
from camlucida.maps.perturbation import Intact, intact, pictures_and
from camlucida.networks.network import Network
from camlucida.networks.structure import Head, Layer
from camlucida.targets import ClassTarget, Output, Target
from camlucida.values import Batch, HeatMaps

FAILS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError, CamlucidaError)


@dataclass(frozen=True)
class AblationCAM:
    """L = ReLU(Σ_k w_k A^k), w_k = (y − y_k) / |y|: how much of the score is lost with channel k of the layer at zero.

    At the layer before a head of pool → linear, y − y_k = w_k · F_k in closed form, for targets on logits: no pass more
    than the one on the intact picture. Elsewhere what lies above the layer runs once a channel, what lies below once a
    chunk; where the network cannot run so (copies of other numbers of pictures meet above the layer), all of it runs once
    a channel. A score ≤ 0 is divided by its magnitude, so that what holds it up stays positive, and a warning says so;
    one of 0 is not divided. `channels`: only so many of each picture, those of largest mean magnitude; None: all.
    `layer`, `relu`: as for GradCAM.
    """

    layer: str | nn.Module | None = None
    channels: int | None = None
    relu: bool = True

    def __post_init__(self) -> None:
        if self.channels is not None and self.channels < 1:
            raise UsageError("AblationCAM.channels", got=self.channels, allowed="≥ 1, or None for all")

    def __call__(self, network: Network, batch: Batch | Tensor, target: Target | None = None) -> HeatMaps:
        batch = Batch.of(batch)
        layer = network.find_layer(self.layer, batch.pixels)
        with taps.borrowed(network.module):
            clean = intact(network, batch, target or ClassTarget.predicted(), [layer.point])
            found = network.structure(batch.pixels)
            cells = layer.cells(clean.tapped[layer.point]).float()
            size = cells.flatten(2).abs().mean(2)
            chosen = size.argsort(dim=1, descending=True, stable=True)[:, : self.channels]
            at_head = found.features is not None and layer.point == found.features.point
            if found.head is not None and found.head.is_exact and at_head and clean.bound.classes is not None:
                scores = _at_the_head(clean, found.head, cells, chosen)
            else:
                scores = _above(clean, layer, chosen)
            y = clean.scores
            if bool((y <= 0).any()):
                warnings.warn(
                    "Ablation-CAM divides by the score, and not every one is above 0: there by its magnitude",
                    stacklevel=2,
                )
            lost = (y[:, None] - scores) / torch.where(y == 0, 1.0, y.abs())[:, None]
            weights = lost.new_zeros(*cells.shape[:2], y.shape[1])
            weights.scatter_(1, chosen[..., None].expand_as(lost), lost)
            values = torch.einsum("nck,nc...->nk...", weights, cells)
            grid = layer.grid(tuple(batch.pixels.shape[2:]))
        return HeatMaps(
            values.relu() if self.relu else values, clean.bound.classes, y, grid, batch.views, "ablation-cam",
            clean.bound.words, layer.name, logits=clean.logits,
        )  # fmt: skip


def _at_the_head(clean: Intact, head: Head, cells: Tensor, chosen: Tensor) -> Tensor:
    """The scores `(N, channels, K)` without each channel, from the head's weights: its logits lose w_k · F_k."""
    assert clean.logits is not None
    logits = clean.logits
    weight, pooled = head.linear(cells)[0][0], head.pooled(cells)
    picture, place = pictures_and(chosen.shape, cells.device)
    scores = clean.scores.new_empty(*chosen.shape, clean.scores.shape[1])

    def ablate(part: slice) -> None:
        rows, which = picture[part], place[part]
        gone = chosen[rows, which]
        without = logits[rows] - weight.T[gone] * pooled[rows, gone, None]
        scores[rows, which] = clean.bound.scores(Output(without, {}), rows).float()

    clean.each("ablation-cam", len(picture), ablate, bytes_each=12 * logits.shape[1], passes=0)
    return scores


def _above(clean: Intact, layer: Layer, chosen: Tensor) -> Tensor:
    """The scores `(N, channels, K)` without each channel, from runs of the network above the layer, or of all of it."""
    scores = clean.scores.new_empty(*chosen.shape, clean.scores.shape[1])
    picture, place = pictures_and(chosen.shape, chosen.device)
    bytes_above = _runs_alone(clean, layer)

    def ablate(part: slice) -> None:
        rows, which = picture[part], place[part]
        keep = torch.arange(layer.channels, device=chosen.device) != chosen[rows, which][:, None]
        if bytes_above is None:
            scores[rows, which] = _kept(clean, layer, clean.pixels[rows], rows, keep)
            return
        for n in rows.unique().tolist():
            of = rows == n
            scores[n, which[of]] = _kept(clean, layer, clean.pixels[n : n + 1], rows[of], keep[of])

    unit = "forward passes" if bytes_above is None else f"passes above {layer.name}"
    clean.each("ablation-cam", len(picture), ablate, bytes_each=bytes_above, unit=unit)
    return scores


def _kept(
    clean: Intact, layer: Layer, pixels: Tensor, rows: Tensor, keep: Tensor,
    reached: Callable[[], None] = lambda: None,
) -> Tensor:  # fmt: skip
    """The scores `(rows, K)` with only some channels of the layer, `keep (rows, channels)`; `pixels`: a picture for each
    row, or the one picture of them all, which is then multiplied at the layer."""

    def ablated(value: Tensor) -> Tensor:
        reached()
        copies = value.expand(len(keep), *value.shape[1:]).clone()
        cells = layer.cells(copies)
        cells.masked_fill_(~keep[(..., *(None,) * (cells.ndim - 2))], 0)
        return copies

    output = clean.output_of(pixels, {layer.point: ablated})
    return clean.bound.scores(output, rows).float()


def _runs_alone(clean: Intact, layer: Layer) -> int | None:
    """Bytes that a copy takes above the layer; None where one picture below it and several copies above do not give what
    as many pictures give. Tried with half of the channels of the first picture, and with the other half."""
    first = torch.zeros(2, dtype=torch.int64, device=clean.pixels.device)
    keep = (
        torch.arange(layer.channels, device=first.device) % 2 == torch.arange(2, device=first.device)[:, None]
    )
    whole = _kept(clean, layer, clean.pixels[first], first, keep)
    start = 0
    with taps.Footprint() as footprint:

        def reached() -> None:
            nonlocal start
            start = footprint.peak = footprint.now

        try:
            alone = _kept(clean, layer, clean.pixels[:1], first, keep, reached)
        except FAILS:
            return None
    scale = float(whole.abs().max())
    if alone.shape != whole.shape or not torch.allclose(
        alone, whole, rtol=1e-2, atol=1e-3 * scale, equal_nan=True
    ):
        return None
    return max(1, footprint.peak - start)
