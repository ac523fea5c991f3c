"""The first principal direction of each picture's features."""

from __future__ import annotations

import torch
from torch import Tensor


def leading(rows: Tensor) -> Tensor:
    """The first right singular vector `(N, columns)` of each matrix `(N, rows, columns)` float64, of either sign; 0
    for a matrix of zeros, NaN for one that is not finite.

    By the smaller of the two Gram matrices G. Its first eigenvector v₀ is found without a graph; v₀ + (λ₀ − G)⁺ G v₀ has
    the same value and, to first order, the derivative, also where other eigenvalues coincide.
    """
    finite = rows.detach().isfinite().flatten(1).all(1)
    if not finite.all():
        rows = torch.where(finite[:, None, None], rows, 0)
    wide = rows.shape[2] > rows.shape[1]
    gram = rows @ rows.mT if wide else rows.mT @ rows
    values, vectors = torch.linalg.eigh(gram.detach())
    found = vectors[..., -1]
    if gram.requires_grad:
        gaps = values[:, -1:] - values
        inverse = torch.where(gaps > 1e-12 * values[:, -1:], 1 / gaps, 0)
        moved = vectors.mT @ (gram @ found[..., None])
        found = found + (vectors @ (inverse[..., None] * moved))[..., 0]
    found = torch.where(values[:, -1:] > 0, found, 0)
    if wide:
        found = (rows.mT @ found[..., None])[..., 0]
    length = torch.linalg.vector_norm(found, dim=1, keepdim=True)
    found = torch.where(length > 0, found / torch.where(length > 0, length, 1), 0)
    return torch.where(finite[:, None], found, torch.nan)
