"""Deletion and insertion ("RISE", section 4.2): the probability of a class while the map's pixels go, or come."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from camlucida.errors import UsageError
from camlucida.evaluate.faithfulness.explain import Classes, chosen, probability, ranks, usable
from camlucida.networks.network import Network

SIDE = 224
STEP = 224.0
"""Pixels a step, of a view of 224 × 224; of other views the same share."""
SPEED = 8 * STEP
"""The step of the quick mode."""


@dataclass(frozen=True)
class Curves:
    """`scores (N, n + 1)`: the class's probability after 0 … n steps; `shares (n + 1,)`: of the pixels changed by then."""

    scores: Tensor
    shares: Tensor

    @property
    def auc(self) -> Tensor:
        """Area under each curve `(N,)` float64: (Σ s − s₀/2 − sₙ/2) / n."""
        scores = self.scores.double()
        ends = (scores[:, 0] + scores[:, -1]) / 2
        return (scores.sum(1) - ends) / (scores.shape[1] - 1)


def deletion(
    network: Network, pixels: Tensor, maps: Tensor, classes: Classes = None, *, step: float = STEP, fill: float = 0.0,
    batch: int = 64,
) -> Curves:  # fmt: skip
    """From the picture to `fill` (0: the mean colour), the highest pixels of the map first; lower is better.

    `maps (N, H, W)` in the view; `classes`: the predicted ones; `step`: pixels at once, of a view of 224 × 224;
    `batch`: pictures a forward pass. Ties go in raster order, so a constant map deletes from the top."""
    found = chosen(network, pixels, classes)
    return _curves(network, pixels, torch.full_like(pixels, fill), maps, found, step, batch)


def insertion(
    network: Network, pixels: Tensor, maps: Tensor, classes: Classes = None, *, step: float = STEP, kernel: int = 11,
    sigma: float = 5.0, batch: int = 64,
) -> Curves:  # fmt: skip
    """From the blurred picture to the picture; higher is better. The rest as in `deletion`."""
    found = chosen(network, pixels, classes)
    return _curves(network, blurred(pixels, kernel, sigma), pixels, maps, found, step, batch)


def blurred(pixels: Tensor, kernel: int = 11, sigma: float = 5.0) -> Tensor:
    """Pixels `(N, C, H, W)` under a Gaussian, as the paper's code makes it: of so many pixels a side, what of it lies
    further out folded back, zeros (the mean colour) around the picture."""
    from scipy.ndimage import gaussian_filter1d

    if kernel < 1 or kernel % 2 == 0 or sigma <= 0:
        raise UsageError("the blur", got=f"kernel {kernel}, sigma {sigma}", allowed="kernel odd, sigma > 0")
    peak = torch.zeros(kernel, dtype=torch.float64)
    peak[kernel // 2] = 1
    weights = torch.from_numpy(gaussian_filter1d(peak.numpy(), sigma)).to(pixels)
    channels = pixels.shape[1]
    down = weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    across = weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    half = F.conv2d(pixels, down, padding=(kernel // 2, 0), groups=channels)
    return F.conv2d(half, across, padding=(0, kernel // 2), groups=channels)


def _curves(
    network: Network, start: Tensor, end: Tensor, maps: Tensor, classes: Tensor, step: float, batch: int
) -> Curves:
    """Probabilities on the way from `start` to `end`."""
    if step <= 0 or batch < 1:
        raise UsageError(
            "deletion and insertion", got=f"step {step}, batch {batch}", allowed="step > 0, batch ≥ 1"
        )
    place = ranks(usable(maps, start))
    count, area = place.shape
    at_once = max(1, round(step * area / SIDE**2))
    steps = -(-area // at_once)
    changed = (torch.arange(steps + 1, device=place.device) * at_once).clamp(max=area)
    scores = torch.empty(count * (steps + 1), device=classes.device)
    for first in range(0, len(scores), batch):
        jobs = torch.arange(first, min(first + batch, len(scores)), device=place.device)
        picture, step_number = jobs // (steps + 1), jobs % (steps + 1)
        new = (place[picture] < changed[step_number][:, None]).view(-1, 1, *start.shape[2:])
        shown = torch.where(new, end[picture], start[picture])
        rows = picture.to(classes.device)
        scores[first : first + len(jobs)] = probability(network, shown, classes[rows], batch)
    return Curves(scores.view(count, steps + 1), changed.double() / area)
