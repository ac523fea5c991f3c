"""PC1, the first principal component of the feature maps ("CAM Back Again: Large Kernel CNNs from a Weakly Supervised
Object Localization Perspective", section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from camlucida.maps.gradients import GradientMethod
from camlucida.maps.principal import leading

NOTHING = 1e-6  # a spread below this share of the values is a rounding error


@dataclass(frozen=True)
class PC1(GradientMethod):
    """The cells' loadings on the first principal component of the weighted feature maps, 0 … 1.

    As the authors' code: each channel α_k A^k is scaled to 0 … 1; channels are the samples of a principal component
    analysis, cells its variables; the loading of largest magnitude is made positive, and if then more than half of the
    border's cells lie above the mean, the map is turned over.
    α_k = mean over cells of ∂y/∂A^k, the class weight where the head is pool → linear; only its sign matters, so that
    classes may share a map. A channel that is flat counts as 0, and channels that are all alike give
    a flat map. The authors' border takes in a second row and column
    at the far sides; this is the outermost cells. The loadings are then scaled to 0 … 1.
    """

    name: ClassVar[str] = "pc1"

    def formula(self, activations: Tensor, gradient: Tensor) -> Tensor:
        alpha = gradient.flatten(2).mean(2, keepdim=True)
        rows = spread(alpha * activations.flatten(2)).double()
        size = torch.linalg.vector_norm(rows.detach(), dim=(1, 2), keepdim=True)
        rows = rows - rows.mean(1, keepdim=True)
        alike = torch.linalg.vector_norm(rows.detach(), dim=(1, 2), keepdim=True) <= NOTHING * size
        rows = torch.where(alike, 0, rows)
        loadings = leading(rows)
        largest = loadings.detach().gather(1, loadings.detach().abs().argmax(1, keepdim=True))
        loadings = (loadings * torch.where(largest < 0, -1.0, 1.0)).unflatten(1, activations.shape[2:])
        fixed = loadings.detach()
        above = (fixed > fixed.flatten(1).mean(1).reshape(-1, *(1,) * (fixed.ndim - 1))).double()
        turned = above[:, border(fixed.shape[1:])].mean(1) > 0.5
        sign = torch.where(turned, -1.0, 1.0).reshape(-1, *(1,) * (fixed.ndim - 1))
        return spread((sign * loadings).flatten(1)).unflatten(1, activations.shape[2:]).to(activations.dtype)


def spread(values: Tensor) -> Tensor:
    """The last axis from its lowest value, 0, to its highest, 1; 0 where they are the same."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    size = torch.maximum(low.abs(), high.abs())
    flat = high - low <= NOTHING * size
    return torch.where(flat, 0, (values - low) / torch.where(flat, 1, high - low))


def border(cells: torch.Size) -> Tensor:
    """Which cells of a grid are outermost, `(*cells)` bool."""
    inside = torch.zeros(cells, dtype=torch.bool)
    inside[tuple(slice(1, -1) for _ in cells)] = True
    return ~inside
