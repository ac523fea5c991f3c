"""Backpropagation saliency ("Deep Inside Convolutional Networks"), the rival of the CAM paper's tables (section 4.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from camlucida import taps
from camlucida.errors import UsageError
from camlucida.maps.gradients import Scored, check_differentiable, scored
from camlucida.networks.network import Network
from camlucida.targets import ClassTarget, Target
from camlucida.values import Batch, Grid, HeatMaps

SIDE = 224
"""The side of the view in whose pixels `blur` is given."""


@dataclass(frozen=True)
class Saliency:
    """M = max over channels of |∂S/∂I|, S before the softmax: one value ≥ 0 per pixel of the view, unscaled.

    `blur`: σ of a Gaussian over the map, in pixels of a view whose shorter side is 224 (other views in
    proportion), cut off at 4 σ, edges mirrored; 0: none. `blur=4` with `FractionOfMax` is the simple fallback to the
    graph cut. `differentiable=True` keeps the graph, for maps inside a training loss: `values` then has gradients with
    respect to pixels and parameters (with respect to pixels 0 where the network is linear in pieces: ReLU and pooling;
    float64 stays float64). Costs one forward pass and, per target, one backward pass through the whole network. Raises
    LayerError where no gradient reaches the pixels.
    """

    blur: float = 0.0
    differentiable: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.blur <= SIDE:
            raise UsageError("Saliency.blur", got=self.blur, allowed=f"0 … {SIDE} pixels")

    def __call__(self, network: Network, batch: Batch | Tensor, target: Target | None = None) -> HeatMaps:
        batch = Batch.of(batch)
        gradients, run = self.gradients(network, batch, target or ClassTarget.predicted())
        return self.maps(gradients, run, batch)

    def gradients(self, network: Network, batch: Batch, target: Target) -> tuple[Tensor, Scored]:
        """∂S/∂I with its sign, `(N, K, C, *view)` float32."""
        check_differentiable(self.differentiable)
        with taps.borrowed(network.module):
            run = scored(
                network, batch, target, taps.PIXELS, "the pixels",
                "the network cuts it off (no_grad, detach, rounding): use cl.Occlusion()",
                differentiable=self.differentiable,
            )  # fmt: skip
            return torch.stack(list(run.gradients()), 1), run

    def maps(self, gradients: Tensor, run: Scored, batch: Batch) -> HeatMaps:
        """The maps that these gradients make."""
        view = tuple(batch.pixels.shape[2:])
        values = gradients.abs().amax(2)
        dead = (values == 0).flatten(2).all(2)
        ones = (1.0,) * len(view)
        return HeatMaps(
            blurred(values, self.blur * min(view) / SIDE), run.bound.classes, run.scores.detach(),
            Grid(view, tuple(o / 2 for o in ones), ones, ones), batch.views, "saliency", run.bound.words,
            logits=run.logits, no_gradient=dead,
        )  # fmt: skip


def blurred(values: Tensor, sigma: float) -> Tensor:
    """Maps `(N, K, *spatial)` under a Gaussian of `sigma` cells, cut off at 4 σ, over every spatial axis; edges
    mirrored (d c b a | a b c d | d c b a), so that the sum stays."""
    radius = math.floor(4 * sigma + 0.5)
    if radius < 1:
        return values
    at = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (at / sigma) ** 2)
    weights = (weights / weights.sum()).to(values)
    for axis in range(2, values.ndim):
        length = values.shape[axis]
        places = torch.arange(-radius, length + radius) % (2 * length)
        mirrored = torch.minimum(places, 2 * length - 1 - places).to(values.device)
        windows = values.index_select(axis, mirrored).unfold(axis, 2 * radius + 1, 1)
        values = windows @ weights
    return values
