"""Grad-CAM (Grad-CAM paper, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from camlucida.maps.gradients import SignedMethod


@dataclass(frozen=True)
class GradCAM(SignedMethod):
    """L = ReLU(Σ_k α_k A^k), α_k = mean over cells of ∂y/∂A^k.

    `layer`: a name or a module; None: the tensor before pooling, else the last spatial layer. `relu=False`
    keeps the sign. `counterfactual=True` takes −∂y/∂A: what, taken away, would raise y. `differentiable=True` keeps
    the graph. Costs one forward pass and, per target, a backward pass through what lies above the layer only.
    """

    relu: bool = True
    name: ClassVar[str] = "grad-cam"

    def formula(self, activations: Tensor, gradient: Tensor) -> Tensor:
        alpha = gradient.flatten(2).mean(2, keepdim=True)
        values = (alpha * activations.flatten(2)).sum(1).unflatten(1, activations.shape[2:])
        return values.relu() if self.relu else values
