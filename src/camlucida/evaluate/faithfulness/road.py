"""ROAD: the most, or the least, relevant pixels replaced by what their neighbours say ("A Consistent and Efficient
Evaluation Strategy for Attribution Methods", section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import splu
from torch import Tensor

from camlucida.errors import UsageError
from camlucida.evaluate.faithfulness.explain import Classes, chosen, probability, ranks, usable
from camlucida.networks.network import Network

PERCENTAGES = (10, 20, 30, 40, 50, 60, 70, 80, 90)
NOISE = 0.01
DIRECT, DIAGONAL = 1 / 6, 1 / 12


@dataclass(frozen=True)
class Road:
    """The class's probability `(N, P)` with the P shares of the pixels replaced: `morf`, most relevant first, falls early
    for a good map; `lerf`, least relevant first, late."""

    morf: Tensor
    lerf: Tensor
    percentages: tuple[float, ...]

    @property
    def combined(self) -> Tensor:
        """(LeRF − MoRF) / 2, mean over the shares, `(N,)` float64; higher is better, 0 for a constant map."""
        return (self.lerf.double() - self.morf.double()).mean(1) / 2


def road(
    network: Network, pixels: Tensor, maps: Tensor, classes: Classes = None, *, percentages: Sequence[float] = PERCENTAGES,
    noise: float = NOISE, seed: int = 0, batch: int = 64,
) -> Road:  # fmt: skip
    """`maps (N, H, W)` in the view; `classes`: the predicted ones; `noise`, `seed` as in `impute`; `batch`: pictures a
    forward pass. Ties go in raster order both ways."""
    if not percentages or not all(0 <= p <= 100 for p in percentages):
        raise UsageError("road(percentages=…)", got=tuple(percentages), allowed="0 … 100, at least one")
    found, heat = chosen(network, pixels, classes), usable(maps, pixels)
    area = heat[0].numel() if len(heat) else 0
    ways = []
    for place in (ranks(heat), ranks(-heat)):
        scores = []
        for p in percentages:
            removed = (place < round(area * p / 100)).view(heat.shape)
            shown = impute(pixels, removed, noise=noise, seed=seed)
            scores.append(probability(network, shown, found, batch))
        ways.append(torch.stack(scores, 1))
    morf, lerf = ways
    return Road(morf, lerf, tuple(percentages))


def impute(pixels: Tensor, removed: Tensor, *, noise: float = NOISE, seed: int = 0) -> Tensor:
    """Noisy linear imputation: each removed pixel becomes the weighted mean of its 8 neighbours, removed ones included
    (direct 1/6, diagonal 1/12; at borders in that ratio), by one sparse linear system a picture; then Gaussian noise is
    added there.

    `pixels (N, C, H, W)` as the network takes them, `removed (N, H, W)` bool. `noise`: its standard deviation, in units of
    the pixels. The noise is one field for all pictures, so that a picture's figures do not hang on its neighbours in the
    batch. A picture that is removed whole becomes zeros (the mean colour) and noise.
    """
    if removed.shape != (len(pixels), *pixels.shape[2:]):
        raise UsageError(
            "impute", got=f"removed {tuple(removed.shape)}", allowed=f"{(len(pixels), *pixels.shape[2:])}"
        )
    channels, *size = pixels.shape[1:]
    values = pixels.detach().cpu().double().numpy().reshape(len(pixels), channels, -1)
    field = noise * np.random.default_rng(seed).standard_normal((channels, size[0] * size[1]))
    filled = values.copy()
    for picture, gone in enumerate(removed.cpu().numpy().reshape(len(pixels), -1)):
        filled[picture][:, gone] = _solved(values[picture], gone, _neighbours(*size)) + field[:, gone]
    return torch.from_numpy(filled).to(pixels).view_as(pixels)


def _solved(values: NDArray[np.float64], gone: NDArray[np.bool_], weights: sparse.csr_array) -> NDArray[np.float64]:  # fmt: skip
    """The values `(C, R)` of the R pixels that are gone."""
    if gone.all() or not gone.any():
        return np.zeros((len(values), int(gone.sum())))
    rows = weights[np.flatnonzero(gone)]
    known = rows[:, np.flatnonzero(~gone)] @ values[:, ~gone].T
    system = sparse.eye_array(rows.shape[0]) - rows[:, np.flatnonzero(gone)]
    # The pattern is symmetric, the diagonal dominant: no pivoting, and an order made for such systems.
    factors = splu(
        system.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True}
    )
    return factors.solve(known).T


@lru_cache(maxsize=8)
def _neighbours(height: int, width: int) -> sparse.csr_array:
    """`(H·W, H·W)`: the share of each pixel in the mean of the neighbours of another."""
    place = np.arange(height * width).reshape(height, width)
    rows, columns, shares = [], [], []
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            if down or right:
                here = place[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
                rows.append(here.ravel())
                columns.append(here.ravel() + down * width + right)
                shares.append(np.full(here.size, DIAGONAL if down and right else DIRECT))
    entries = (np.concatenate(shares), (np.concatenate(rows), np.concatenate(columns)))
    weights = sparse.csr_array(entries, shape=(height * width, height * width))
    whole = np.asarray(weights.sum(1)).ravel()
    return sparse.csr_array(sparse.diags_array(1 / np.where(whole > 0, whole, 1)) @ weights)
