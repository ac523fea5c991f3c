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
from camlucida.maps import incremental, schedule
from camlucida.maps.incremental.approximate import approximate, words
from camlucida.maps.perturbation import Intact, intact, pictures_and
from camlucida.networks.network import Network
from camlucida.targets import ClassTarget, Output, Target
from camlucida.values import Batch, Grid, HeatMaps

FEW = 64  # places; for fewer, following the network costs more than it saves
PLACES = "places, of which only what they change is computed,"


@dataclass(frozen=True)
class Occlusion:
    """How much of the target is lost when a square hides a place: clean − occluded, on the grid of places.

    `patch`, `stride` in view pixels; valid places only, ⌊(L − patch)/stride⌋ + 1 per axis; `fill` in the
    normalised space, 0 = the mean colour; `batch`: at most so many occluded copies in a forward pass, fewer where the
    budget of memory is tighter. `engine`: `incremental` computes in each layer only what the occluder changes and raises
    UnsupportedError where it cannot; `plain` runs the network on every occluded copy; `auto` is incremental from 64
    places on, plain where that cannot be: `notes` of the maps say which, and why. The values are the same to 1e-4 of the
    range of the logits.

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
        with taps.borrowed(network.module):
            clean = intact(network, batch, target)
            scores = clean.scores
            values = scores.new_empty(len(pixels), scores.shape[1], len(corners))
            notes: list[str] = []
            if self.engine == "incremental" or (self.engine == "auto" and len(corners) >= FEW):
                try:
                    notes += self._incremental(network, clean, corners, places, values)
                except UnsupportedError as error:
                    if self.engine == "incremental":
                        raise
                    notes.append(f"plain loop: {error}")
            if not notes or notes[0].startswith("plain"):
                self._plain(clean, corners, values)
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
            notes=tuple(notes),
        )

    def _plain(self, clean: Intact, corners: Tensor, values: Tensor) -> None:
        """The whole network on every occluded copy."""
        picture, place = pictures_and((len(clean.pixels), len(corners)), clean.pixels.device)

        def hide(part: slice) -> None:
            rows, places = picture[part], place[part]
            shown = clean.pixels[rows]
            for copy, corner in zip(shown, corners[places.cpu()].tolist(), strict=True):
                copy[(slice(None), *(slice(c, c + self.patch) for c in corner))] = self.fill
            values[rows, :, places] = clean.scores[rows] - clean.scores_of(shown, rows)

        clean.each("occlusion", len(picture), hide, most=self.batch)

    def _incremental(
        self, network: Network, clean: Intact, corners: Tensor, places: tuple[int, ...], values: Tensor
    ) -> list[str]:
        """What each occluder changes, picture by picture; how far that went, in words."""
        if clean.layers:
            raise UnsupportedError("the target looks inside the network")
        pixels = clean.pixels
        patch = torch.full((pixels.shape[1], *(self.patch,) * len(places)), self.fill)
        measured, done = [], 0
        most = schedule.budget().asked(clean.bytes_each) or incremental.WHOLE_MAPS
        chunk, whole_maps = min(most, incremental.CHUNK), min(most, incremental.WHOLE_MAPS)
        tell: Callable[[int], None] | None = None
        for picture in range(len(pixels)):
            own: Any = pytree.tree_map(lambda t, i=picture: t[i : i + 1], clean.output.raw)
            edits = incremental.Edits(network, pixels[picture : picture + 1], own)
            if tell is None:
                work = schedule.Work(
                    "occlusion", len(pixels) * len(corners), len(pixels), len(corners), PLACES
                )
                tell = schedule.announced(work)

            def look(
                at: Tensor, field: float, picture: int = picture, edits: Any = edits, tell: Any = tell
            ) -> Tensor:
                nonlocal done
                found = values.new_empty(values.shape[1], len(at))
                for some, output in edits.outputs(
                    corners[at], patch, field=field, chunk=chunk, whole_maps=whole_maps
                ):
                    rows = torch.full_like(some, picture)
                    found[:, some] = (
                        clean.scores[rows] - clean.bound.scores(Output(output, {}), rows).float()
                    ).T
                    done += len(some)
                    tell(min(done, (picture + 1) * len(corners)))
                return found

            if self.field == self.drill_down == 1:
                values[picture] = look(torch.arange(len(corners)), 1.0)
            else:
                values[picture], about = approximate(
                    look, (places[0], places[1]), self.drill_down, self.field
                )
                measured.append(about)
            done = (picture + 1) * len(corners)
            tell(done)
        edits.graph.transformed.clear()  # up to four times the weights
        notes = [f"incremental: {edits.words}"]
        return [*notes, words(measured, len(corners))] if measured else notes
