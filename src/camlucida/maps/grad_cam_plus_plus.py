"""Grad-CAM++ ("Grad-CAM++: Improved Visual Explanations for Deep Convolutional Networks", section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from camlucida.maps.gradients import SignedMethod

NOTHING = 1e-6  # a denominator below this share of its terms is a rounding error


@dataclass(frozen=True)
class GradCAMPlusPlus(SignedMethod):
    """L = ReLU(Σ_k w_k A^k), w_k = Σ_ij a^k_ij ReLU(g^k_ij), a = g² / (2g² + g³ Σ_ab A^k_ab); g = ∂y/∂A^k.

    For Y = exp(y), whose common factor exp(y) is left out. a = 0 where the denominator is 0; g² is cancelled, so that
    small gradients lose nothing. `relu=False` keeps the sign of the map.
    """

    relu: bool = True
    name: ClassVar[str] = "grad-cam++"

    def formula(self, activations: Tensor, gradient: Tensor) -> Tensor:
        cells, g = activations.flatten(2), gradient.flatten(2)
        product = cells.sum(2, keepdim=True) * g
        denominator = 2 + product
        usable = denominator.abs() > NOTHING * (2 + product.abs())
        a = torch.where(usable, 1 / torch.where(usable, denominator, 1), 0)
        weights = (a * g.relu()).sum(2, keepdim=True)
        values = (weights * cells).sum(1).unflatten(1, activations.shape[2:])
        return values.relu() if self.relu else values
