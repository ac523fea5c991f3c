"""BagCAMs ("Bagging Regional Classification Activation Maps for Weakly Supervised Object Localization", section 3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from camlucida.maps.gradients import SignedMethod


@dataclass(frozen=True)
class BagCAM(SignedMethod):
    """L = Σ_k ReLU((1 + m_k) h^k), h^k = ∂log y/∂A^k ⊙ A^k, m_k = mean over cells of h^k: the regional localizers, one
    per cell, of a classifier that was trained on the whole, put together as the authors' code does.

    `log=True`: of log |y|, ∂y/∂A / |y|, which keeps its sign where y < 0 (there the authors' logarithm is undefined);
    False: of y itself. Theirs also lets no negative gradient through ReLU modules above the layer, which this does not;
    at the layer before pooling there are none.
    """

    log: bool = field(default=True, kw_only=True)
    name: ClassVar[str] = "bag-cam"

    def direction(self, gradient: Tensor, scores: Tensor) -> Tensor:
        gradient = super().direction(gradient, scores)
        if not self.log:
            return gradient
        size = scores.abs()
        size = torch.where(size > 0, size, 1)
        return gradient / size.reshape(-1, *(1,) * (gradient.ndim - 1))

    def formula(self, activations: Tensor, gradient: Tensor) -> Tensor:
        products = (gradient * activations).flatten(2)
        values = ((1 + products.mean(2, keepdim=True)) * products).relu().sum(1)
        return values.unflatten(1, activations.shape[2:])
