"""Eigen-CAM ("Eigen-CAM: Class Activation Map using Principal Components", section III) and Eigen-Grad-CAM."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from camlucida.maps.gradients import GradientMethod, Scored
from camlucida.maps.principal import leading
from camlucida.networks.network import Network
from camlucida.networks.structure import Layer
from camlucida.values import Batch

NOTHING = 1e-6  # a projection below this share of the activations is a rounding error


@dataclass(frozen=True)
class EigenCAM(GradientMethod):
    """L = A v₁: the activations, cells × channels, projected on their first right singular vector.

    It knows no class: all targets of a picture have the same map, and no gradient is needed. `centre=True` takes the
    mean of each channel off first, as common code does. The sign makes the value of largest magnitude positive.
    """

    centre: bool = field(default=False, kw_only=True)
    name: ClassVar[str] = "eigen-cam"
    uses_gradients: ClassVar[bool] = False
    explains_the_target: ClassVar[bool] = False

    def _maps(
        self, network: Network, batch: Batch, layer: Layer, run: Scored, activations: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        values = projected(activations, self.centre)[:, None]
        return values.expand(-1, run.scores.shape[1], *values.shape[2:]).clone(), None

    def words(self, words: str) -> str:
        return f"the layer's first component, whatever the {words}"


@dataclass(frozen=True)
class EigenGradCAM(GradientMethod):
    """Eigen-CAM of ∂y/∂A ⊙ A: L = (g ⊙ A) v₁, with `centre` and the sign as there."""

    centre: bool = field(default=False, kw_only=True)
    name: ClassVar[str] = "eigen-grad-cam"

    def formula(self, activations: Tensor, gradient: Tensor) -> Tensor:
        return projected(gradient * activations, self.centre)


def projected(tensor: Tensor, centre: bool) -> Tensor:
    """`(N, channels, *cells)` on the first right singular vector of each picture's cells × channels: `(N, *cells)`;
    0 where nothing but rounding is left."""
    rows = tensor.flatten(2).transpose(1, 2).double()
    size = torch.linalg.vector_norm(rows.detach(), dim=(1, 2))
    if centre:
        rows = rows - rows.mean(1, keepdim=True)
    values = (rows @ leading(rows)[..., None])[..., 0]
    largest = values.detach().gather(1, values.detach().abs().argmax(1, keepdim=True))
    values = values * torch.where(largest < 0, -1.0, 1.0)
    nothing = torch.linalg.vector_norm(values.detach(), dim=1) <= NOTHING * size
    values = torch.where(nothing[:, None], 0, values)
    return values.unflatten(1, tensor.shape[2:]).to(tensor.dtype)
