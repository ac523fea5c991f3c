"""Occlusion sensitivity (ZF paper, section 4.2): by computing what each occluder changes, or by plain batched
inference."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from camlucida import taps
from camlucida.errors import UnsupportedError, UsageError
from camlucida.maps import incremental
from camlucida.maps.incremental.approximate import approximate, words
from camlucida.networks.network import Network
from camlucida.targets import ClassTarget, Output, Target
from camlucida.values import Batch, Grid, HeatMaps

FEW = 64  # places; for fewer, following the network costs more than it saves


@dataclass(frozen=True)
class Occlusion:
    """How much of the target is lost when a square hides a place: clean − occluded, on the grid of places.

    `patch`, `stride` in view pixels; valid places only, ⌊(L − patch)/stride⌋ + 1 per axis; `fill` in the
    normalised space, 0 = the mean colour; `batch`: occluded copies per forward pass. `engine`: `incremental` computes
    in each layer only what the occluder changes and raises UnsupportedError where it cannot; `plain` runs the network
    on every occluded copy; `auto` is incremental from 64 places on, plain where that cannot be: `notes` of the maps
    say which, and why. The values are the same to 1e-4 of the range of the logits.

    Two approximations (section 11.2), off by default; `notes` then give their error, measured at a sample of places.
    `field` < 1: no window wider than that share of its map (the projective-field threshold; incremental only).
    `drill_down` < 1/3: every place only around that fraction of coarse places where most is lost, the coarse value
    elsewhere.
    """

    patch: int = 32
    stride: int = 8
    fill: float = 0.0
    batch: int = 64
    engine: Literal["auto", "incremental", "plain"] = "auto"
    field: float = 1.0
    drill_down: float = 1.0

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
        if self.engine not in ("auto", "incremental", "plain"):
            raise UsageError(
                "Occlusion(engine=…)", got=repr(self.engine), allowed="auto | incremental | plain"
            )
        if not 0 < self.field <= 1 or not (0 < self.drill_down < 1 / 3 or self.drill_down == 1):
            raise UsageError(
                "Occlusion",
                got=f"field {self.field}, drill_down {self.drill_down}",
                allowed="field above 0, at most 1 (1: exact); drill_down above 0, below 1/3, or 1 (exact)",
            )
        places = tuple((side - self.patch) // self.stride + 1 for side in view)
        corners = torch.tensor(
            list(itertools.product(*(range(0, n * self.stride, self.stride) for n in places)))
        )
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

            def lost(output: Output, rows: Tensor) -> Tensor:
                return scores[rows] - bound.scores(output, rows).float()

            notes: list[str] = []
            if self.engine == "incremental" or (self.engine == "auto" and len(corners) >= FEW):
                try:
                    notes += self._incremental(network, pixels, corners, places, clean, lost, values)
                except UnsupportedError as error:
                    if self.engine == "incremental":
                        raise
                    notes.append(f"plain loop: {error}")
            if not notes or notes[0].startswith("plain"):
                self._plain(pixels, corners, output_of, lost, values)
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
            notes=tuple(notes),
        )

    def _plain(
        self,
        pixels: Tensor,
        corners: Tensor,
        output_of: Callable[[Tensor], Output],
        lost: Callable[[Output, Tensor], Tensor],
        values: Tensor,
    ) -> None:
        """The whole network on every occluded copy."""
        jobs = [(picture, place) for picture in range(len(pixels)) for place in range(len(corners))]
        for start in range(0, len(jobs), self.batch):
            chunk = jobs[start : start + self.batch]
            rows, places = torch.tensor(chunk, device=values.device).T
            shown = pixels[rows.to(pixels.device)].clone()
            for copy, (_, place) in zip(shown, chunk, strict=True):
                copy[(slice(None), *(slice(c, c + self.patch) for c in corners[place].tolist()))] = self.fill
            values[rows, :, places] = lost(output_of(shown), rows)

    def _incremental(
        self,
        network: Network,
        pixels: Tensor,
        corners: Tensor,
        places: tuple[int, ...],
        clean: Output,
        lost: Callable[[Output, Tensor], Tensor],
        values: Tensor,
    ) -> list[str]:
        """What each occluder changes, picture by picture; how far that went, in words."""
        if clean.layers:
            raise UnsupportedError("the target looks inside the network")
        patch = torch.full((pixels.shape[1], *(self.patch,) * len(places)), self.fill)
        measured = []
        for picture in range(len(pixels)):
            own: Any = pytree.tree_map(lambda t, i=picture: t[i : i + 1], clean.raw)
            edits = incremental.Edits(network, pixels[picture : picture + 1], own)

            def look(at: Tensor, field: float, picture: int = picture, edits: Any = edits) -> Tensor:
                found = values.new_empty(values.shape[1], len(at))
                for some, output in edits.outputs(corners[at], patch, field=field):
                    rows = torch.full_like(some, picture)
                    found[:, some] = lost(Output(output, {}), rows).T
                return found

            if self.field == self.drill_down == 1:
                values[picture] = look(torch.arange(len(corners)), 1.0)
            else:
                values[picture], about = approximate(
                    look, (places[0], places[1]), self.drill_down, self.field
                )
                measured.append(about)
        edits.graph.transformed.clear()  # up to four times the weights
        notes = [f"incremental: {edits.words}"]
        return [*notes, words(measured, len(corners))] if measured else notes
