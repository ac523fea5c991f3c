"""Grad-CAM (Grad-CAM paper, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from camlucida import taps
from camlucida.errors import LayerError
from camlucida.maps.gradients import scored
from camlucida.networks.network import Network
from camlucida.targets import ClassTarget, Target
from camlucida.values import Batch, HeatMaps


@dataclass(frozen=True)
class GradCAM:
    """L = ReLU(Σ_k α_k A^k), α_k = mean over cells of ∂y/∂A^k.

    `layer`: a name or a module; None: the tensor before pooling, else the last spatial layer. `relu=False`
    keeps the sign. Costs one forward pass and, per target, a backward pass through what lies above the layer
    only.
    """

    layer: str | nn.Module | None = None
    relu: bool = True

    def __call__(self, network: Network, batch: Batch | Tensor, target: Target | None = None) -> HeatMaps:
        batch = Batch.of(batch)
        target = target or ClassTarget.predicted()
        layer = network.find_layer(self.layer, batch.pixels)
        with taps.borrowed(network.module):
            run = scored(
                network, batch, target, layer.point, f"layer {layer.name}",
                "choose a layer that the target depends on: net.layers()",
            )  # fmt: skip
            cells = layer.cells(run.at.detach()).float().flatten(2)
            maps, dead = [], []
            for gradient in run.gradients():
                by_cell = layer.cells(gradient).flatten(2)
                dead.append((by_cell == 0).all(2).all(1))
                if layer.prefix and dead[-1].all() and gradient.any():
                    live = network.structure(batch.pixels).features
                    raise LayerError(
                        f"layer {layer.name}: the gradient reaches its class token alone, none of its cells",
                        do=f"live: {live.name}"
                        if live is not None
                        else "choose an earlier layer: net.layers()",
                    )
                maps.append((by_cell.mean(2, keepdim=True) * cells).sum(1))
            values = torch.stack(maps, 1).unflatten(2, layer.size)
            grid = network.structure(batch.pixels).grid(layer, tuple(batch.pixels.shape[2:]))
        return HeatMaps(
            values.relu() if self.relu else values, run.bound.classes, run.scores.detach(), grid, batch.views,
            "grad-cam", run.bound.words, layer.name, logits=run.logits, no_gradient=torch.stack(dead, 1),
        )  # fmt: skip
