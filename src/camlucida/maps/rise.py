"""RISE: randomized input sampling for explanation (RISE paper, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from camlucida import taps
from camlucida.errors import UsageError
from camlucida.maps.perturbation import intact, pictures_and
from camlucida.networks.network import Network
from camlucida.targets import ClassTarget, Target
from camlucida.values import Batch, Grid, HeatMaps


@dataclass(frozen=True)
class RISE:
    """L = 1/(N p) Σ_i y(x ⊙ m_i) m_i over N random masks: one value per pixel of the view.

    A mask: `s` cells along each axis, each 1 with probability `p`, else 0; stretched bilinearly and shifted by a random
    part of a cell. All pictures and targets get the same `masks`, drawn from `seed` on the CPU, so that devices agree.
    The paper explains the probability, `cl.ProbabilityTarget()`, with 4,000 masks for VGG-16 and 8,000 for ResNet-50.
    Costs one forward pass a mask. Raises UsageError.
    """

    masks: int = 4000
    s: int = 7
    p: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.masks < 1 or self.s < 1 or not 0 < self.p <= 1:
            raise UsageError(
                "RISE",
                got=f"masks {self.masks}, s {self.s}, p {self.p}",
                allowed="masks ≥ 1, s ≥ 1, 0 < p ≤ 1",
            )

    def __call__(self, network: Network, batch: Batch | Tensor, target: Target | None = None) -> HeatMaps:
        batch = Batch.of(batch)
        view = tuple(batch.pixels.shape[2:])
        with taps.borrowed(network.module):
            clean = intact(network, batch, target or ClassTarget.predicted())
            device = clean.pixels.device
            cells, shifts = (drawn.to(device) for drawn in self.drawn(view))
            picture, number = pictures_and((len(batch), self.masks), device)
            values = clean.scores.new_zeros(*clean.scores.shape, math.prod(view))

            def show(part: slice) -> None:
                rows, which = picture[part], number[part]
                mask = laid_over(cells[which], shifts[which], view)
                shown = torch.mul(clean.pixels[rows], mask[:, None].to(clean.pixels.dtype))
                scores = clean.scores_of(shown, rows)
                some = slice(int(rows[0]), int(rows[-1]) + 1)
                of = scores.new_zeros(some.stop - some.start, scores.shape[1], len(rows))
                of[rows - some.start, :, torch.arange(len(rows), device=device)] = scores
                # One addition, the last step: a chunk that runs out of memory has added nothing.
                values[some] += torch.matmul(of, mask.flatten(1))

            clean.each("rise", len(picture), show)
        ones = (1.0,) * len(view)
        return HeatMaps(
            (values / (self.masks * self.p)).unflatten(2, view), clean.bound.classes, clean.scores,
            Grid(view, tuple(o / 2 for o in ones), ones, ones), batch.views, "rise", clean.bound.words,
            seed=self.seed, logits=clean.logits,
        )  # fmt: skip

    def drawn(self, view: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The masks before they are stretched: cells `(N, s, …)`, 0 or 1, and how far each is shifted, `(N, axes)` in
        pixels."""
        random = torch.Generator().manual_seed(self.seed)
        cells = (
            torch.rand(self.masks, *(self.s,) * len(view), generator=random, dtype=torch.float32) < self.p
        ).float()
        shifts = [
            torch.randint(0, math.ceil(side / self.s), (self.masks,), generator=random) for side in view
        ]
        return cells, torch.stack(shifts, 1)


def laid_over(cells: Tensor, shifts: Tensor, view: tuple[int, ...]) -> Tensor:
    """Masks `(N, *view)`: cells `(N, s, …)` stretched bilinearly to s + 1 times ⌈side / s⌉ pixels, of which those from
    the shift on are kept."""
    for axis, side in enumerate(view):
        s = cells.shape[1]  # the axes go round: the first is stretched and becomes the last
        size = (s + 1) * math.ceil(side / s)
        at = torch.arange(side, device=cells.device) + shifts[:, axis, None].float()
        at = ((at + 0.5) * (s / size) - 0.5).clamp(0, s - 1)
        near = (1 - (at[..., None] - torch.arange(s, device=cells.device)).abs()).clamp(min=0)  # (N, side, s)
        stretched = torch.bmm(near, cells.reshape(len(cells), s, -1))
        cells = stretched.reshape(len(cells), side, *cells.shape[2:]).movedim(1, -1)
    return cells
