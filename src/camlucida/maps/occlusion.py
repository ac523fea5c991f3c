"""Occlusion sensitivity (ZF paper, section 4.2), by plain batched inference."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor

from camlucida import taps
from camlucida.errors import UsageError
from camlucida.maps.perturbation import intact, pictures_and
from camlucida.networks.network import Network
from camlucida.targets import ClassTarget, Target
from camlucida.values import Batch, Grid, HeatMaps


@dataclass(frozen=True)
class Occlusion:
    """How much of the target is lost when a square hides a place: clean − occluded, on the grid of places.

    `patch`, `stride` in view pixels; valid places only, ⌊(L − patch)/stride⌋ + 1 per axis; `fill` in the
    normalised space, 0 = the mean colour; `batch`: at most so many occluded copies in a forward pass, fewer where the
    budget of memory is tighter.
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
        with taps.borrowed(network.module):
            clean = intact(network, batch, target)
            scores = clean.scores
            values = scores.new_empty(len(pixels), scores.shape[1], len(corners))
            picture, place = pictures_and((len(pixels), len(corners)), clean.pixels.device)

            def hide(part: slice) -> None:
                rows, places = picture[part], place[part]
                shown = clean.pixels[rows]
                for copy, corner in zip(shown, places.tolist(), strict=True):
                    copy[(slice(None), *(slice(c, c + self.patch) for c in corners[corner]))] = self.fill
                values[rows, :, places] = scores[rows] - clean.scores_of(shown, rows)

            clean.each("occlusion", len(picture), hide, most=self.batch)
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
            clean.bound.classes,
            scores,
            grid,
            batch.views,
            "occlusion",
            clean.bound.words,
            logits=clean.logits,
        )
