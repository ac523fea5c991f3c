"""Element-wise Grad-CAM: HiResCAM's products, each rectified before they are summed (as the grad-cam library has it)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from camlucida.maps.gradients import SignedMethod


@dataclass(frozen=True)
class ElementWiseGradCAM(SignedMethod):
    """L = Σ_k ReLU(∂y/∂A^k ⊙ A^k): what speaks for y in one channel is not set off by another."""

    name: ClassVar[str] = "element-wise-grad-cam"

    def formula(self, activations: Tensor, gradient: Tensor) -> Tensor:
        return (gradient * activations).relu().sum(1)
