"""Score-CAM (Score-CAM paper, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camlucida import taps
from camlucida.errors import TargetError, UsageError
from camlucida.maps.perturbation import Intact, intact, pictures_and
from camlucida.maps.saliency import SIDE, blurred
from camlucida.networks.network import Network, logits_of
from camlucida.targets import ClassTarget, Target
from camlucida.values import Batch, HeatMaps

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
BLUR = 5.0  # σ of the blurred baseline, in pixels of a view whose shorter side is 224


@dataclass(frozen=True)
class ScoreCAM:
    """L = ReLU(Σ_k α_k A^k), the weight of a channel from what the network says of the picture seen through it:
    s_k = y(x ⊙ H_k), H_k = A^k laid over the view and scaled to 0 … 1.

    `weighting`: `softmax` of s over the channels (the paper's formula, in which a baseline cancels); `probability` of the
    class on the masked picture (the authors' code; class targets only); `increase` over the baseline, s_k − y(x_b), signed.
    `baseline` of `increase`: `black`, nothing seen (0 after normalisation, the mean colour), or `blurred` (Gaussian).
    `span`: H_k reaches 0 and 1 on the `pixels` (the paper) or on the `cells` of the layer (as torchcam has it).
    `channels`: only so many of each picture, those whose activation spans most; None: all. A channel that is constant
    shows nothing and is left out. `layer`, `relu`: as for GradCAM. Costs one forward pass a channel.
    """

    layer: str | nn.Module | None = None
    weighting: Literal["softmax", "probability", "increase"] = "softmax"
    baseline: Literal["black", "blurred"] = "black"
    span: Literal["pixels", "cells"] = "pixels"
    channels: int | None = None
    relu: bool = True

    def __post_init__(self) -> None:
        for field, allowed in (
            ("weighting", ("softmax", "probability", "increase")), ("baseline", ("black", "blurred")), ("span", ("pixels", "cells")),
        ):  # fmt: skip
            if getattr(self, field) not in allowed:
                raise UsageError(
                    f"ScoreCAM.{field}", got=repr(getattr(self, field)), allowed=" | ".join(allowed)
                )
        if self.channels is not None and self.channels < 1:
            raise UsageError("ScoreCAM.channels", got=self.channels, allowed="≥ 1, or None for all")

    def __call__(self, network: Network, batch: Batch | Tensor, target: Target | None = None) -> HeatMaps:
        batch = Batch.of(batch)
        layer = network.find_layer(self.layer, batch.pixels)
        with taps.borrowed(network.module):
            clean = intact(network, batch, target or ClassTarget.predicted(), [layer.point])
            self._check(clean)
            cells = layer.cells(clean.tapped[layer.point]).float()
            spans = _span(cells)
            chosen = spans.argsort(dim=1, descending=True, stable=True)[:, : self.channels]
            live = spans.gather(1, chosen) != 0
            scores = self._scores(clean, cells, chosen, live)
            weights = scores.new_zeros(*cells.shape[:2], scores.shape[2])
            weights.scatter_(1, chosen[..., None].expand_as(scores), self._weights(clean, scores, live))
            values = torch.einsum("nck,nc...->nk...", weights, cells)
            grid = layer.grid(tuple(batch.pixels.shape[2:]))
        return HeatMaps(
            values.relu() if self.relu else values, clean.bound.classes, clean.scores, grid, batch.views,
            "score-cam", clean.bound.words, layer.name, logits=clean.logits,
        )  # fmt: skip

    def _check(self, clean: Intact) -> None:
        one_class = clean.bound.classes is not None and clean.bound.coefficients is None
        if self.weighting == "probability" and not one_class:
            raise TargetError(
                "ScoreCAM(weighting='probability')", got=clean.bound.words, allowed="a class",
                do="use weighting='softmax' or 'increase'",
            )  # fmt: skip

    def _scores(self, clean: Intact, cells: Tensor, chosen: Tensor, live: Tensor) -> Tensor:
        """s `(N, channels, K)`; probabilities for that weighting."""
        view = clean.pixels.shape[2:]
        picture, place = (which[live.flatten()] for which in pictures_and(chosen.shape, cells.device))
        scores = clean.scores.new_zeros(*chosen.shape, clean.scores.shape[1])

        def show(part: slice) -> None:
            rows, which = picture[part], place[part]
            seen = cells[rows, chosen[rows, which]][:, None]
            over = F.interpolate(seen, view, mode=MODES[len(view)], align_corners=False)
            low, span = _low_and_span(over if self.span == "pixels" else seen)
            mask = over.sub_(low).div_(span.where(span != 0, 1.0))
            shown = torch.mul(clean.pixels[rows], mask.to(clean.pixels.dtype))
            if self.weighting != "probability":
                scores[rows, which] = clean.scores_of(shown, rows)
            else:
                assert clean.bound.classes is not None
                logits = logits_of(clean.output_of(shown).raw).float()
                scores[rows, which] = clean.network.probabilities(logits).gather(1, clean.bound.classes[rows])

        clean.each("score-cam", len(picture), show)
        return scores

    def _weights(self, clean: Intact, scores: Tensor, live: Tensor) -> Tensor:
        """α of the chosen channels, from their s; 0 where a channel is constant."""
        live = live[..., None]
        if self.weighting == "softmax":
            best = scores.masked_fill(~live, -torch.inf).amax(1, keepdim=True)
            powers = torch.where(live, (scores - best).exp(), 0.0)
            return torch.where(live, powers / powers.sum(1, keepdim=True), 0.0)
        if self.weighting == "increase":
            nothing = torch.zeros_like(clean.pixels)
            if self.baseline == "blurred":
                sigma = BLUR * min(clean.pixels.shape[2:]) / SIDE
                nothing = blurred(clean.pixels, sigma)
            every = torch.arange(len(nothing), device=nothing.device)
            scores = scores - clean.scores_of(nothing, every)[:, None]
        return torch.where(live, scores, 0.0)


def _low_and_span(maps: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest value of each map `(N, 1, *cells)` and how far the highest lies above it, to go with the map."""
    low, high = maps.flatten(1).aminmax(dim=1)
    return tuple(t.view(-1, *(1,) * (maps.ndim - 1)) for t in (low, high - low))  # type: ignore[return-value]


def _span(cells: Tensor) -> Tensor:
    """Highest minus lowest activation of each channel, `(N, channels)`; one that is not finite counts as endless."""
    low, high = cells.flatten(2).aminmax(dim=2)
    return (high - low).nan_to_num(nan=torch.inf, posinf=torch.inf)
