"""Occlusion sensitivity (ZF paper, section 4.2), by plain batched inference."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from camlucida import taps
from camlucida.errors import UsageError
from camlucida.networks.network import Network
from camlucida.targets import ClassTarget, Output, Target
from camlucida.values import Batch, Grid, HeatMaps


@dataclass(frozen=True)
class Occlusion:
    """How much of the target is lost when a square hides a place: clean − occluded, on the grid of places.

    `patch`, `stride` in view pixels; valid places only, ⌊(L − patch)/stride⌋ + 1 per axis; `fill` in the
    normalised space, 0 = the mean colour; `batch`: occluded copies per forward pass.
    """

    patch: int = 32
    stride: int = 8
    fill: float = 0.0
    batch: int = 64

    def __call__(self, network: Network, batch: Batch | Tensor, target: Target | None = None) -> HeatMaps:
        batch = Batch.of(batch)
        target = target or ClassTarget.predicted()
        pixels = batch.pixels
        view = tuple(pixels.shape[2:])
        if self.patch < 1 or self.stride < 1 or self.batch < 1 or self.patch > min(view):
            raise UsageError(
                "Occlusion",
                got=f"patch {self.patch}, stride {self.stride}, batch {self.batch}",
                allowed=f"patch 1 … {min(view)}, stride ≥ 1, batch ≥ 1",
            )
        places = tuple((side - self.patch) // self.stride + 1 for side in view)
        corners = list(itertools.product(*(range(0, n * self.stride, self.stride) for n in places)))
        layers = {name: network.find_layer(name, pixels) for name in target.layers}
        points = [one.point for one in layers.values()]

        def output_of(shown: Tensor) -> Output:
            run = network.run(shown, points)
            tapped = {name: one.cells(run.tapped[one.point]) for name, one in layers.items()}
            return Output(run.output, tapped)

        with taps.borrowed(network.module):
            clean = output_of(pixels)
            bound = target.bind(clean)
            scores = bound.scores(clean, None).float()
            values = scores.new_empty(len(pixels), scores.shape[1], len(corners))
            jobs = [(picture, place) for picture in range(len(pixels)) for place in range(len(corners))]
            for start in range(0, len(jobs), self.batch):
                chunk = jobs[start : start + self.batch]
                rows = torch.tensor([picture for picture, _ in chunk], device=scores.device)
                shown = pixels[rows.to(pixels.device)].clone()
                for copy, (_, place) in zip(shown, chunk, strict=True):
                    copy[(slice(None), *(slice(c, c + self.patch) for c in corners[place]))] = self.fill
                lost = scores[rows] - bound.scores(output_of(shown), rows).float()
                values[rows, :, torch.tensor([place for _, place in chunk], device=scores.device)] = lost
        ones = (1.0,) * len(view)
        grid = Grid(
            view,
            tuple(self.patch / 2 * o for o in ones),
            tuple(self.stride * o for o in ones),
            tuple(self.patch * o for o in ones),
            "places",
        )
        return HeatMaps(
            values.unflatten(2, places),
            bound.classes,
            scores,
            grid,
            batch.views,
            "occlusion",
            bound.words,
            logits=clean.any_logits(),
        )
