"""Grad-CAM (Grad-CAM paper, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from camlucida import taps
from camlucida.errors import LayerError
from camlucida.networks.network import Network
from camlucida.targets import ClassTarget, Output, Target
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
        others = {name: network.find_layer(name, batch.pixels) for name in target.layers}
        points = list(dict.fromkeys([layer.point, *(o.point for o in others.values())]))
        with taps.borrowed(network.module):
            run = network.run(batch.pixels, points, gradient_at=layer.point)
            output = Output(
                run.output,
                {name: run.tapped[one.point].movedim(one.channel_axis, 1) for name, one in others.items()},
            )
            activations = run.tapped[layer.point]
            bound = target.bind(output)
            scores = bound.scores(output, None).float()
            if not scores.requires_grad:
                raise LayerError(
                    f"no gradient reaches layer {layer.name}",
                    do="choose a layer that the target depends on: net.layers()",
                )
            maps, dead = [], []
            for k in range(scores.shape[1]):
                (gradient,) = torch.autograd.grad(
                    scores[:, k].sum(), activations, retain_graph=k + 1 < scores.shape[1], allow_unused=True
                )
                gradient = torch.zeros_like(activations) if gradient is None else gradient
                gradient = gradient.float().movedim(layer.channel_axis, 1).flatten(2)
                weight = gradient.mean(2, keepdim=True)
                cells = activations.detach().float().movedim(layer.channel_axis, 1).flatten(2)
                maps.append((weight * cells).sum(1))
                dead.append((gradient == 0).all(2).all(1))
            values = torch.stack(maps, 1).unflatten(2, layer.size)
            grid = network.structure(batch.pixels).grid(layer, tuple(batch.pixels.shape[2:]))
        return HeatMaps(
            values.relu() if self.relu else values, bound.classes, scores.detach(), grid, batch.views,
            "grad-cam", bound.words, layer.name, logits=output.any_logits(), no_gradient=torch.stack(dead, 1),
        )  # fmt: skip
