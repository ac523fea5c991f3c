"""Fewer places than asked for, and smaller windows (section 11.2): both approximate, both measured on a sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TARGET = 3.0  # the speed-up that sets the first, coarse stride of the drill-down
SAMPLED = 16  # places at which the error is measured

Look = Callable[[Tensor, float], Tensor]
"""`look(places, field)` → what is lost at these places `(K, len(places))`."""


@dataclass(frozen=True)
class Measured:
    """Of one picture: the largest difference to exact values at the sampled places, the range of its maps, how many
    places were looked at."""

    error: float
    span: float
    sampled: int
    looked: int


def coarse_step(fraction: float) -> int:
    """Places per coarse place along an axis: S₁/S₂ = √(target / (1 − fraction · target))."""
    return max(2, round((TARGET / (1 - fraction * TARGET)) ** 0.5))


def approximate(
    look: Look, places: tuple[int, int], fraction: float, field: float
) -> tuple[Tensor, Measured]:
    """Values `(K, rows · columns)`. With `fraction` < 1, coarse places first, which stand for those around them, then
    every place around the `fraction` of them that lost most (of any target)."""
    rows, columns = places
    everywhere = torch.arange(rows * columns)
    known = torch.ones(rows * columns, dtype=torch.bool)
    if fraction < 1:
        step = coarse_step(fraction)
        down, across = (torch.arange(n) for n in places)
        nearest = [(d + step // 2).div(step, rounding_mode="floor") for d in (down, across)]
        nearest = [n.clamp(max=(size - 1) // step) * step for n, size in zip(nearest, places, strict=True)]
        stands = (nearest[0][:, None] * columns + nearest[1]).flatten()  # for each place, its coarse one
        coarse = stands.unique()
        first = look(coarse, field)
        values = first[:, torch.searchsorted(coarse, stands)]
        best = (
            first.amax(0).cpu().argsort(descending=True, stable=True)[: max(1, round(fraction * len(coarse)))]
        )
        fine = torch.isin(stands, coarse[best]) & ~torch.isin(everywhere, coarse)
        values[:, fine.nonzero()[:, 0]] = look(everywhere[fine], field) if fine.any() else values[:, :0]
        known = fine | torch.isin(everywhere, coarse)
    else:
        values = look(everywhere, field)
    guessed = everywhere if field < 1 else everywhere[~known]
    sample = guessed[torch.linspace(0, len(guessed) - 1, min(SAMPLED, len(guessed))).round().long()]
    error = 0.0
    if len(sample):
        exact = look(sample, 1.0)
        error = float((values[:, sample] - exact).abs().max())
        values[:, sample] = exact
    return values, Measured(error, float(values.max() - values.min()), len(sample), int(known.sum()))


def words(measured: list[Measured], places: int) -> str:
    """What was measured, over pictures."""
    shares = [m.error / m.span if m.span else 0.0 for m in measured]
    worst = shares.index(max(shares))
    looked = round(sum(m.looked for m in measured) / len(measured))
    return (
        f"approximate: {looked} of {places} places looked at; at {measured[worst].sampled} sampled places off by at "
        f"most {measured[worst].error:.3g}, {shares[worst]:.1%} of the map's range"
    )
