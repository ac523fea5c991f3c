"""XGrad-CAM ("Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs", section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from camlucida.maps.gradients import SignedMethod

NOTHING = 1e-6  # a sum below this share of its terms is a rounding error


@dataclass(frozen=True)
class XGradCAM(SignedMethod):
    """L = ReLU(Σ_k α_k A^k), α_k = Σ_ij (A^k_ij / Σ_ab A^k_ab) ∂y/∂A^k_ij: gradients weighted by activations.

    α_k = 0 where the activations of a channel sum to 0. `relu=False` keeps the sign of the map, whose sum is then that
    of HiRes-CAM.
    """

    relu: bool = True
    name: ClassVar[str] = "xgrad-cam"

    def formula(self, activations: Tensor, gradient: Tensor) -> Tensor:
        cells = activations.flatten(2)
        total = cells.sum(2, keepdim=True)
        usable = total.abs() > NOTHING * cells.abs().sum(2, keepdim=True)
        weighted = (cells * gradient.flatten(2)).sum(2, keepdim=True)
        alpha = torch.where(usable, weighted / torch.where(usable, total, 1), 0)
        values = (alpha * cells).sum(1).unflatten(1, activations.shape[2:])
        return values.relu() if self.relu else values
