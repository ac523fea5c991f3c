"""LayerCAM ("LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camlucida.errors import UsageError
from camlucida.maps.gradients import SignedMethod
from camlucida.networks.network import Network
from camlucida.targets import Target
from camlucida.values import Batch, HeatMaps

GAMMA = 2.0


@dataclass(frozen=True)
class LayerCAM(SignedMethod):
    """L = ReLU(Σ_k ReLU(∂y/∂A^k) ⊙ A^k), which also works at shallow layers.

    `fuse`: further layers, whose maps are laid over the first one: each is scaled to tanh(2 L / max L), stretched over
    the finest grid among them (bilinear), and the largest value counts. One pass per layer.
    """

    relu: bool = True
    fuse: tuple[str | nn.Module, ...] = field(default=(), kw_only=True)
    name: ClassVar[str] = "layer-cam"

    def __post_init__(self) -> None:
        if isinstance(self.fuse, (str, nn.Module)):
            raise UsageError("LayerCAM.fuse", got=repr(self.fuse)[:40], allowed="a tuple of layers")

    def formula(self, activations: Tensor, gradient: Tensor) -> Tensor:
        values = (gradient.relu() * activations).sum(1)
        return values.relu() if self.relu else values

    def __call__(self, network: Network, batch: Batch | Tensor, target: Target | None = None) -> HeatMaps:
        if not self.fuse:
            return super().__call__(network, batch, target)
        each = (replace(self, layer=layer, fuse=()) for layer in (self.layer, *self.fuse))
        return fused([one(network, batch, target) for one in each])


def fused(maps: Sequence[HeatMaps]) -> HeatMaps:
    """Maps of one target at several layers as one, on the finest of their grids."""
    finest = max(maps, key=lambda one: math.prod(one.values.shape[2:]))
    size = finest.values.shape[2:]
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    scaled = []
    for one in maps:
        most = one.values.flatten(2).amax(2).unflatten(1, (-1, *(1,) * len(size)))
        share = torch.where(most > 0, one.values / torch.where(most > 0, most, 1), 0)
        share = torch.where(most.isfinite(), share, torch.nan)  # what is not finite is not hidden
        scaled.append(F.interpolate(torch.tanh(GAMMA * share), size, mode=mode, align_corners=False))
    dead = [one.no_gradient for one in maps if one.no_gradient is not None]
    return replace(
        finest, values=torch.stack(scaled).amax(0), layer=" + ".join(str(one.layer) for one in maps),
        no_gradient=torch.stack(dead).all(0),
    )  # fmt: skip
