"""Occlusion sensitivity (ZF paper, section 4.2): by computing what each occluder changes, or by plain batched
inference."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from camlucida import taps
from camlucida.errors import UnsupportedError, UsageError
from camlucida.maps import incremental
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
    """

    patch: int = 32
    stride: int = 8
    fill: float = 0.0
    batch: int = 64
    engine: Literal["auto", "incremental", "plain"] = "auto"

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
            raise UsageError("Occlusion(engine=…)", got=repr(self.engine), allowed="auto | incremental | plain")
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

            def found(rows: Tensor, at: Tensor, output: Output) -> None:
                values[rows, :, at] = scores[rows] - bound.scores(output, rows).float()

            note = ""
            if self.engine == "incremental" or (self.engine == "auto" and len(corners) >= FEW):
                try:
                    note = self._incremental(network, pixels, corners, clean, found)
                except UnsupportedError as error:
                    if self.engine == "incremental":
                        raise
                    note = f"plain loop: {error}"
            if not note.startswith("incremental"):
                self._plain(pixels, corners, output_of, found, scores.device)
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
            notes=(note,) if note else (),
        )

    def _plain(
        self,
        pixels: Tensor,
        corners: Sequence[tuple[int, ...]],
        output_of: Callable[[Tensor], Output],
        found: Callable[[Tensor, Tensor, Output], None],
        device: torch.device,
    ) -> None:
        """The whole network on every occluded copy."""
        jobs = [(picture, place) for picture in range(len(pixels)) for place in range(len(corners))]
        for start in range(0, len(jobs), self.batch):
            chunk = jobs[start : start + self.batch]
            rows = torch.tensor([picture for picture, _ in chunk], device=device)
            shown = pixels[rows.to(pixels.device)].clone()
            for copy, (_, place) in zip(shown, chunk, strict=True):
                copy[(slice(None), *(slice(c, c + self.patch) for c in corners[place]))] = self.fill
            found(rows, torch.tensor([place for _, place in chunk], device=device), output_of(shown))

    def _incremental(
        self,
        network: Network,
        pixels: Tensor,
        corners: Sequence[tuple[int, ...]],
        clean: Output,
        found: Callable[[Tensor, Tensor, Output], None],
    ) -> str:
        """What each occluder changes, picture by picture; how far that went, in words."""
        if clean.layers:
            raise UnsupportedError("the target looks inside the network")
        words = ""
        for picture in range(len(pixels)):
            own: Any = pytree.tree_map(lambda t, i=picture: t[i : i + 1], clean.raw)
            edits = incremental.Edits(network, pixels[picture : picture + 1], own)
            patch = torch.full((pixels.shape[1], self.patch, self.patch), self.fill)
            for places, output in edits.outputs(torch.tensor(corners), patch):
                found(torch.full_like(places, picture), places, Output(output, {}))
            words = edits.words
        edits.graph.transformed.clear()  # up to four times the weights
        return f"incremental: {words}"
