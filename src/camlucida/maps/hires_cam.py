"""HiResCAM ("Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks", section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from camlucida.maps.gradients import SignedMethod


@dataclass(frozen=True)
class HiResCAM(SignedMethod):
    """L = Σ_k ∂y/∂A^k ⊙ A^k: each cell with its own gradient.

    Where one linear layer on the flattened map is the head, the map sums to y − b. `relu=True` keeps the positive
    part, which the paper leaves open.
    """

    relu: bool = False
    name: ClassVar[str] = "hires-cam"

    def formula(self, activations: Tensor, gradient: Tensor) -> Tensor:
        values = (gradient * activations).sum(1)
        return values.relu() if self.relu else values
