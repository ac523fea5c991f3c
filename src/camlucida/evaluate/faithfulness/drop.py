"""What is left of a class where only the map's part of the picture is shown: average drop, increase, win ("Grad-CAM++",
section 5.1) and ADCC ("Revisiting the Evaluation of Class Activation Mapping for Explainability", section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from camlucida.errors import UsageError
from camlucida.evaluate.faithfulness.explain import Classes, chosen, probability, unit, usable
from camlucida.images.views import Preprocessing
from camlucida.networks.network import Network


@dataclass(frozen=True)
class Confidence:
    """The class's probability on the picture, `clean (N,)`, and on the masked one, `masked (N,)`."""

    clean: Tensor
    masked: Tensor

    @property
    def drop(self) -> Tensor:
        """max(0, Y − O) / Y, 0 … 1 `(N,)`; 0 where Y is 0. 100 times its mean is the average drop; lower is better."""
        clean, masked = self.clean.double(), self.masked.double()
        share = (clean - masked).clamp(min=0) / clean.where(clean > 0, 1.0)
        return torch.where(clean > 0, share, torch.zeros_like(share))

    @property
    def increase(self) -> Tensor:
        """Whether Y < O `(N,)`. Its share is the increase in confidence; higher is better."""
        return self.clean < self.masked


def confidence(
    network: Network, pixels: Tensor, maps: Tensor, classes: Classes = None, *, fill: float | Tensor = 0.0, batch: int = 64
) -> Confidence:  # fmt: skip
    """Probabilities before and after masking. `maps (N, H, W)` in the view; `classes`: the predicted ones; `fill` as in
    `masked`."""
    found = chosen(network, pixels, classes)
    clean = probability(network, pixels, found, batch)
    return Confidence(clean, probability(network, masked(pixels, maps, fill), found, batch))


def masked(pixels: Tensor, maps: Tensor, fill: float | Tensor = 0.0) -> Tensor:
    """x ⊙ L of the pixels as the network takes them, L the map from its minimum, 0, to its maximum, 1 (a constant one hides
    all). `fill`: what takes the place of the rest: 0, the mean colour, is the product after normalisation; `black(…)` that
    before it."""
    heat = unit(usable(maps, pixels))[:, None].to(pixels.dtype)
    return fill + heat * (pixels - fill)


def black(preprocessing: Preprocessing, pixels: Tensor) -> Tensor:
    """What a black picture is for the network, in the shape of `pixels (N, C, H, W)`."""
    return preprocessing.normalise(torch.zeros_like(pixels[:1])).to(pixels).expand_as(pixels)


def win(drops: Tensor, rival: Tensor) -> float:
    """Share of pictures whose drop is smaller than the rival's; ties win nothing."""
    if drops.shape != rival.shape or not len(drops):
        raise UsageError(
            "win", got=f"{tuple(drops.shape)} and {tuple(rival.shape)}", allowed="equally many, ≥ 1"
        )
    return float((drops < rival).double().mean())


def coherency(maps: Tensor, again: Tensor) -> Tensor:
    """(1 + Pearson correlation) / 2, 0 … 1 `(N,)`, of the maps of x and of x ⊙ L; 0 where either is constant or not
    finite: a map that says nothing is coherent with nothing."""
    return torch.where((r := pearson(maps, again)).isnan(), torch.zeros_like(r), (1 + r) / 2)


def complexity(maps: Tensor) -> Tensor:
    """The mean of L, 0 … 1 `(N,)`; 0 for a constant map."""
    return unit(_finite(maps)).double().mean((1, 2))


def adcc(drop: Tensor, coherency: Tensor, complexity: Tensor) -> Tensor:
    """3 / (1/coherency + 1/(1 − complexity) + 1/(1 − drop)), 0 … 1 `(N,)`; 0 where one of the three is 0. Higher is
    better."""
    three = torch.stack([coherency.double(), 1 - complexity.double(), 1 - drop.double()])
    earned = (three > 0).all(0)
    return torch.where(earned, 3 / (1 / three.where(three > 0, 1.0)).sum(0), torch.zeros_like(three[0]))


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation `(N,)` float64 of maps `(N, …)`; NaN where one is constant or not finite."""
    x, y = (_scaled(one) for one in (a, b))
    size = (x.square().sum(1) * y.square().sum(1)).sqrt()
    return torch.where(size > 0, (x * y).sum(1) / size.where(size > 0, 1.0), torch.nan).clamp(-1, 1)


def _scaled(maps: Tensor) -> Tensor:
    """Rows less their mean, at most 1 in magnitude; a row that is constant, up to rounding, or not finite is zeros."""
    flat = _finite(maps).double().flatten(1)
    largest = flat.abs().amax(1, keepdim=True)
    flat = flat / largest.where(largest > 0, 1.0)
    centred = flat - flat.mean(1, keepdim=True)
    varied = (flat.amax(1, keepdim=True) - flat.amin(1, keepdim=True)) > 0
    return torch.where(varied, centred, torch.zeros_like(centred))


def _finite(maps: Tensor) -> Tensor:
    finite = maps.flatten(1).isfinite().all(1)
    return torch.where(finite.view(-1, *[1] * (maps.ndim - 1)), maps.detach(), torch.zeros_like(maps))
