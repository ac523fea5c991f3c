"""Does the map change when the network does? ("Sanity Checks for Saliency Maps", sections 4 and 5)"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camlucida.errors import UsageError
from camlucida.evaluate.faithfulness.drop import pearson
from camlucida.evaluate.faithfulness.explain import Explainer, unit, usable
from camlucida.evaluate.faithfulness.infidelity import spearman
from camlucida.networks.network import Network
from camlucida.networks.randomise import randomised_layers, weighted_layers
from camlucida.values import Batch

How = Literal["cascading", "independent"]
SIMILARITIES = ("spearman", "absolute", "ssim", "hog")
LAYERS = 6
"""How many layers are looked at unless told, spread over the network."""
CELLS, BLOCK, BINS = 14, 3, 9  # of HOG: cells along the shorter side, cells a side of a block, directions


@dataclass(frozen=True)
class Sanity:
    """`layers`: what was randomised, the head first (cascading: with all above it); `values`: by each of `SIMILARITIES`, of
    each picture and layer `(N, L)`. A sound method decays towards 0."""

    how: How
    layers: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]


def randomisation(
    network: Network, explain: Explainer, batch: Batch, classes: Tensor, maps: Tensor, *, how: How = "cascading",
    layers: int = LAYERS, seed: int = 0,
) -> Sanity:  # fmt: skip
    """How alike the maps `(N, H, W)` of these classes `(N,)` are to those of the network with random weights.

    `cascading`: from the head downwards, each layer together with all above it; `independent`: one layer at a time, the
    others as trained. `layers`: at how many of them one looks, first and last included, evenly spread. Weights are their
    own entries, shuffled, on copies: the network stays as it is."""
    values: dict[str, list[NDArray[np.float64]]] = {name: [] for name in SIMILARITIES}
    names = []
    for name, other in randomised(network, batch.pixels, how, layers, seed):
        names.append(name)
        for kind, value in similarities(maps, explain(other, batch, classes)).items():
            values[kind].append(value)
    return Sanity(how, tuple(names), {kind: np.stack(each, 1) for kind, each in values.items()})


def randomised(
    network: Network, pixels: Tensor, how: How, layers: int = LAYERS, seed: int = 0
) -> Iterator[tuple[str, Network]]:
    """The layers that are looked at, the head first, each with the network that is random there (or down to there)."""
    if layers < 1 or how not in ("cascading", "independent"):
        raise UsageError(
            "randomisation", got=f"{how}, {layers} layers", allowed="cascading | independent, ≥ 1"
        )
    every = weighted_layers(network, pixels)[::-1]
    for at in np.unique(np.linspace(0, len(every) - 1, min(layers, len(every))).round().astype(int)):
        these = every[: at + 1] if how == "cascading" else every[at : at + 1]
        yield every[at], randomised_layers(network, these, seed)


def similarities(maps: Tensor, others: Tensor) -> dict[str, NDArray[np.float64]]:
    """How alike two stacks of maps `(N, H, W)` are, −1 … 1 `(N,)`: Spearman's correlation of their values and of their
    magnitudes, SSIM and the correlation of histograms of oriented gradients (HOG), these two of maps scaled to 0 … 1. What
    is undefined, because a map is constant or not finite, is 0."""
    maps, others = (usable(one.detach().cpu(), one.detach().cpu()[:, None]) for one in (maps, others))
    first, second = (unit(one).double().numpy() for one in (maps, others))
    both = [*zip(first, second, strict=True)]
    correlated = {
        "spearman": spearman(maps, others), "absolute": spearman(maps.abs(), others.abs()),
        "hog": pearson(torch.from_numpy(hog(first)), torch.from_numpy(hog(second))),
    }  # fmt: skip
    found = {name: value.nan_to_num(0.0).numpy() for name, value in correlated.items()}
    found["ssim"] = np.array([_ssim(a, b) for a, b in both], np.float64)
    return {name: found[name] for name in SIMILARITIES}


def _ssim(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    from skimage.metrics import structural_similarity

    window = min(7, *a.shape)
    window -= window % 2 == 0
    if a.min() == a.max() or b.min() == b.max() or window < 3:
        return 0.0
    return float(structural_similarity(a, b, data_range=1.0, win_size=window))


def hog(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Histograms of oriented gradients of maps `(N, H, W)` → `(N, features)`: 9 directions without sign, cells of 16 pixels of
    224, in proportion, blocks of 3 × 3 cells normalised (L2-Hys); as scikit-image's, which takes a map and a block at a time."""
    cell = max(1, min(maps.shape[1:]) // CELLS)
    down, across = np.zeros_like(maps), np.zeros_like(maps)
    down[:, 1:-1], across[:, :, 1:-1] = maps[:, 2:] - maps[:, :-2], maps[:, :, 2:] - maps[:, :, :-2]
    direction = np.rad2deg(np.arctan2(down, across)) % 180 // (180 / BINS)
    strength = np.hypot(down, across)
    height, width = (side // cell for side in maps.shape[1:])
    each = np.stack([strength * (direction == b) for b in range(BINS)], -1)[
        :, : height * cell, : width * cell
    ]
    cells = each.reshape(len(maps), height, cell, width, cell, BINS).mean((2, 4))
    side = min(BLOCK, height, width)
    blocks = np.lib.stride_tricks.sliding_window_view(cells, (side, side), (1, 2))
    blocks = np.moveaxis(blocks, 3, 5).reshape(*blocks.shape[:3], side * side * BINS)
    return _normalised(np.minimum(_normalised(blocks), 0.2)).reshape(len(maps), -1)


def _normalised(blocks: NDArray[np.float64]) -> NDArray[np.float64]:
    return blocks / np.sqrt((blocks**2).sum(-1, keepdims=True) + 1e-10)
