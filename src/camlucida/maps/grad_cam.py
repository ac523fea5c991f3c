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
            output = Output(run.output, {n: one.cells(run.tapped[one.point]) for n, one in others.items()})
            activations = run.tapped[layer.point]
            bound = target.bind(output)
            scores = bound.scores(output, None).float()
            if not scores.requires_grad:
                raise LayerError(
                    f"no gradient reaches layer {layer.name}",
                    do="choose a layer that the target depends on: net.layers()",
                )
            cells = layer.cells(activations.detach()).float().flatten(2)
            maps, dead = [], []
            for k in range(scores.shape[1]):
                gradient = gradient_of(scores[:, k].sum(), activations, is_half(network))
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
            values.relu() if self.relu else values, bound.classes, scores.detach(), grid, batch.views,
            "grad-cam", bound.words, layer.name, logits=output.any_logits(), no_gradient=torch.stack(dead, 1),
        )  # fmt: skip


def is_half(network: Network) -> bool:
    parameter = next(network.module.parameters(), None)
    return network.precision == "16-mixed" or (parameter is not None and parameter.dtype == torch.float16)


def gradient_of(score: Tensor, activations: Tensor, half: bool) -> Tensor:
    """∂score/∂activations in float32. In float16 the share of one cell of a large map rounds to zero, so the score
    is scaled up by as much as each picture's numbers bear."""
    found = torch.full_like(activations, torch.nan, dtype=torch.float32)
    for scale in (2.0**14, 2.0**7, 1.0) if half else (1.0,):
        (gradient,) = torch.autograd.grad(score * scale, activations, retain_graph=True, allow_unused=True)
        if gradient is None:
            return torch.zeros_like(found)
        unfinished = ~found.flatten(1).isfinite().all(1)
        found[unfinished] = gradient[unfinished].float() / scale
        if found.isfinite().all():
            break
    return found
