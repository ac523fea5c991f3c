"""A map against what is measured: the mean of the map under each occluder, and what the occluder cost ("On the
(In)fidelity and Sensitivity of Explanations", section 2, with squares for perturbations)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from camlucida.errors import UsageError
from camlucida.evaluate.faithfulness.drop import pearson
from camlucida.evaluate.faithfulness.explain import usable
from camlucida.maps.occlusion import Occlusion
from camlucida.values import HeatMaps

SHARE = 7  # of the shorter side in a patch: 32 pixels of 224
STEPS = 2  # a patch


@dataclass(frozen=True)
class Agreement:
    """`correlation (N,)`: Spearman's over the places, −1 … 1, higher is better; `infidelity (N,)`: 0 … 1, lower is
    better."""

    correlation: Tensor
    infidelity: Tensor


def occluder(height: int, width: int) -> Occlusion:
    """The occluder for a view: a square of a seventh of the shorter side (32 pixels of 224), moved by half of it."""
    patch = max(1, round(min(height, width) / SHARE))
    return Occlusion(patch=patch, stride=max(1, patch // STEPS))


def agreement(maps: Tensor, drops: HeatMaps) -> Agreement:
    """`maps (N, H, W)` in the view; `drops`: the first target of `cl.Occlusion` on the same pictures.

    With m the map's mean under each square and d what the square cost, infidelity is min over β ≥ 0 of Σ(βm − d)² / Σd²:
    β puts the map into the units of d, 0 is a map that says to scale what each place costs, 1 one that knows no better than
    zeros; one that says the contrary has 1, too. Where no square costs anything it is 0. A constant map, or d, correlates
    with nothing (0)."""
    grid, lost = drops.grid, drops.values[:, 0].double().cpu()
    if grid.kind != "places" or len(lost) != len(maps) or tuple(maps.shape[1:]) != tuple(grid.view):
        raise UsageError(
            "agreement", got=f"maps {tuple(maps.shape)} and {len(lost)} pictures at {grid.kind} of {tuple(grid.view)}",
            allowed="maps (N, H, W) in the view of the N pictures that cl.Occlusion looked at",
        )  # fmt: skip
    patch, stride = (tuple(int(side) for side in sides) for sides in (grid.extent, grid.stride))
    heat = usable(maps, maps[:, None]).double().cpu()
    largest = heat.abs().amax((1, 2), keepdim=True)
    heat = heat / largest.where(largest > 0, 1.0).log2().ceil().exp2()  # a power of two: ties stay ties
    means = F.avg_pool2d(heat[:, None], patch, stride)[:, 0].flatten(1)
    lost = lost.flatten(1).nan_to_num(0.0, 0.0, 0.0)
    both, own, whole = (means * lost).sum(1), means.square().sum(1), lost.square().sum(1)
    explained = torch.where(own > 0, both.clamp(min=0).square() / own.where(own > 0, 1.0), 0.0)
    rest = (1 - explained / whole.where(whole > 0, 1.0)).clamp(min=0)
    return Agreement(
        spearman(means, lost).nan_to_num(0.0), torch.where(whole > 0, rest, torch.zeros_like(rest))
    )


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation `(N,)` float64 of maps `(N, …)`; ties share their mean rank; NaN where one is constant or not
    finite."""
    ranked = [torch.from_numpy(rankdata(one.detach().double().cpu().flatten(1).numpy(), axis=1)) for one in (a, b)]  # fmt: skip
    return pearson(*ranked)
