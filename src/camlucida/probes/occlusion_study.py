"""What a picture's parts are worth (ZF paper, section 4.2; section 11): a grey square slides over it, and at every place
three things are noted: the activity of the strongest map of a layer, the probability of a class, the most probable class."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from camlucida import taps
from camlucida.errors import NetworkError, TargetError, UnsupportedError, UsageError
from camlucida.geometry import Box, coverage_mean
from camlucida.maps import incremental, schedule
from camlucida.networks.network import Network, logits_of
from camlucida.networks.structure import Layer
from camlucida.values import Grid

WHOLE_MAPS = 2**28
"""Bytes that the layer's maps of one batch of occluded copies may take."""


@dataclass(frozen=True)
class OcclusionStudy:
    """One picture. Arrays `(rows, columns)` over the places of the occluder, which `grid` lays in the view.

    `unit`: the map of `layer` with the largest sum in the clean picture; `activity`: that sum at each place; `label`: the
    class whose `probability` is followed (logit or score where the network's card has no probabilities); `best`: the most
    probable class. `clean_…`: the same of the picture as it is. `note`: how it was computed."""

    layer: str
    unit: int
    label: int
    grid: Grid
    activity: NDArray[np.float32]
    probability: NDArray[np.float32]
    best: NDArray[np.int64]
    clean_activity: float
    clean_probability: float
    clean_best: int
    note: str

    @property
    def drop(self) -> NDArray[np.float32]:
        """Clean − occluded probability: what hiding the place costs; below zero where it raises the score."""
        return np.float32(self.clean_probability) - self.probability

    def over_pixels(self, values: NDArray) -> NDArray[np.float32]:
        """`(rows, columns)` → `(height, width)` of the view: each pixel the mean of the places whose square covers it, NaN
        where none does."""
        both = torch.from_numpy(np.stack([values, np.ones_like(values)])).float()[None]
        mean, covered = coverage_mean(both, self.grid)[0].numpy()
        return np.where(covered > 0, mean, np.float32(np.nan))

    def hides(self, point: tuple[float, float]) -> NDArray[np.bool_]:
        """At which places the square covers a point (x, y) of the view."""
        down, across = self._edges()
        return _outer(
            (down[0] <= point[1]) & (point[1] < down[1]), (across[0] <= point[0]) & (point[0] < across[1])
        )

    def clears(self, box: Box) -> NDArray[np.bool_]:
        """At which places the square leaves a box of the view untouched."""
        down, across = self._edges()
        return ~_outer((down[0] < box.y1) & (box.y0 < down[1]), (across[0] < box.x1) & (box.x0 < across[1]))

    def _edges(self) -> list[tuple[NDArray, NDArray]]:
        """Per axis, where the square begins and ends at each place."""
        starts = [
            offset - extent / 2 + stride * np.arange(places)
            for offset, extent, stride, places in zip(
                self.grid.offset, self.grid.extent, self.grid.stride, self.activity.shape, strict=True
            )
        ]
        return [(start, start + extent) for start, extent in zip(starts, self.grid.extent, strict=True)]


def _outer(rows: NDArray, columns: NDArray) -> NDArray[np.bool_]:
    return rows[:, None] & columns[None]


class WithLayer(nn.Module):
    """A network's module that also gives what the maps of a layer sum to: `pixels → (logits (N, C), sums (N, K))`, so that
    one graph, and one pass of it, holds both."""

    def __init__(self, module: nn.Module, layer: Layer) -> None:
        super().__init__()
        self.module, self.layer = module, layer

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        with taps.watched(self.module, [self.layer.point]) as tapped:
            output = self.module(pixels)
        return logits_of(output), self.layer.cells(tapped[self.layer.point]).flatten(2).sum(2)


def study_occlusion(
    network: Network,
    pixels: Tensor,
    label: int | None = None,
    *,
    layer: str | nn.Module | None = None,
    patch: int | None = None,
    stride: int | None = None,
    fill: float = 0.0,
    engine: Literal["auto", "incremental", "plain"] = "auto",
) -> OcclusionStudy:
    """One picture `pixels (1, C, H, W)` with a square of `patch` pixels hidden at every place, `stride` pixels apart, valid
    places only; by default a seventh of the shorter side, and a quarter of that: 32 and 8 at 224. `label`: the class to
    follow, by default the predicted one; `layer`: by default the one that Grad-CAM looks at, the last before pooling;
    `fill` in the normalised space, 0 = the mean colour.

    `engine`: as of `Occlusion`; `auto` computes only what the square changes, and runs the whole network where it cannot be
    followed; `note` says which, and why. Raises UsageError, LayerError, TargetError, NetworkError; UnsupportedError of
    `incremental`."""
    view = (int(pixels.shape[-2]), int(pixels.shape[-1]))
    if pixels.ndim != 4 or len(pixels) != 1:
        raise UsageError("an occlusion study", got=f"pixels {tuple(pixels.shape)}", allowed="(1, C, H, W)")
    patch, stride = sizes(view, patch, stride)
    if not 1 <= patch <= min(view) or stride < 1:
        raise UsageError(
            "an occlusion study", got=f"patch {patch}, stride {stride} for a view of {view[0]} × {view[1]} pixels",
            allowed=f"patch 1 … {min(view)}, stride ≥ 1",
        )  # fmt: skip
    if engine not in ("auto", "incremental", "plain"):
        raise UsageError("engine", got=repr(engine), allowed="auto | incremental | plain")
    both, found = with_layer(network, pixels, layer)
    places = (view[0] - patch) // stride + 1, (view[1] - patch) // stride + 1
    corners = torch.tensor([(y * stride, x * stride) for y, x in itertools.product(*map(range, places))])
    with taps.borrowed(both.module):
        clean_logits, clean_sums = both.forward(pixels)
        if not bool(clean_logits.isfinite().all() and clean_sums.isfinite().all()):
            raise NetworkError(f"the logits or layer {found.name} are not finite for the clean picture")
        logits = clean_logits.new_empty(len(corners), clean_logits.shape[1])
        sums = clean_sums.new_empty(len(corners), clean_sums.shape[1])
        square = torch.full((pixels.shape[1], patch, patch), fill)
        note = _run(both, found, pixels, corners, square, engine, (logits, sums))
    chances = network.probabilities(clean_logits.float())[0]
    best = int(chances.argmax())
    label = best if label is None else label
    if not 0 <= label < len(chances):
        raise TargetError("class of an occlusion study", got=label, allowed=f"0 … {len(chances) - 1}")
    unit = int(clean_sums[0].argmax())
    hidden = network.probabilities(logits.float())

    def laid(values: Tensor) -> NDArray:
        return values.cpu().numpy().reshape(places)

    side, step = (float(patch), float(patch)), (float(stride), float(stride))
    return OcclusionStudy(
        found.name, unit, label, Grid(view, (patch / 2, patch / 2), step, side, "places"),
        laid(sums[:, unit].float()), laid(hidden[:, label]), laid(hidden.argmax(1)),
        float(clean_sums[0, unit]), float(chances[label]), best, note,
    )  # fmt: skip


def peaks(network: Network, pixels: Tensor, layer: str | nn.Module | None = None) -> Tensor:
    """The highest activation of each map of a layer, `(N, K)`: for the pictures that excite one most."""
    found = network.find_layer(layer, pixels)
    with taps.borrowed(network.module):
        run = network.run(pixels, [found.point])
    return found.cells(run.tapped[found.point]).flatten(2).amax(2).float().cpu()


def sizes(view: tuple[int, int], patch: int | None, stride: int | None) -> tuple[int, int]:
    """Patch and stride for a view, where they are not given."""
    patch = max(1, round(min(view) / 7)) if patch is None else patch
    return patch, max(1, round(patch / 4)) if stride is None else stride


def with_layer(network: Network, pixels: Tensor, layer: str | nn.Module | None) -> tuple[Network, Layer]:
    """The network whose output is logits and the sums of the layer's maps, kept while no weight changes; and the layer.
    Raises LayerError."""
    found = network.find_layer(layer, pixels)
    key = ("with layer", found.name, tuple(pixels.shape[1:]))
    made = network.keep(
        key, lambda: replace(network, module=WithLayer(network.module, found), _structures={}, _kept={})
    )
    return made, found


def _run(
    both: Network, layer: Layer, pixels: Tensor, corners: Tensor, square: Tensor, engine: str, found: tuple[Tensor, Tensor]
) -> str:  # fmt: skip
    """Fills `found`, logits and sums of every place; says how."""
    why = ""
    if engine != "plain":
        try:
            return _incremental(both, layer, pixels, corners, square, found)
        except UnsupportedError as error:
            if engine == "incremental":
                raise
            why = f": {error}"
    _plain(both, layer, pixels, corners, square, found)
    return f"the whole network at every place{why}"


def _incremental(
    both: Network, layer: Layer, pixels: Tensor, corners: Tensor, square: Tensor, found: tuple[Tensor, Tensor]
) -> str:  # fmt: skip
    edits = incremental.Edits(both, pixels, both.forward(pixels))
    tell = schedule.announced(schedule.Work("occlusion", len(corners), 1, len(corners), "places"))
    many = max(1, min(incremental.WHOLE_MAPS, WHOLE_MAPS // _bytes(layer)))
    done = 0
    for at, output in edits.outputs(corners, square, whole_maps=many, chunk=min(many, incremental.CHUNK)):
        for all_places, some in zip(found, output, strict=True):
            all_places[at] = some
        done += len(at)
        tell(done)
    edits.graph.transformed.clear()  # up to four times the weights
    return f"incremental: {edits.words.replace(' of module.', ' of ')}"  # in the network's own names


def _plain(
    both: Network, layer: Layer, pixels: Tensor, corners: Tensor, square: Tensor, found: tuple[Tensor, Tensor]
) -> None:  # fmt: skip
    with taps.Footprint() as footprint:
        both.forward(pixels)

    def hide(part: slice) -> None:
        shown = pixels.repeat(part.stop - part.start, 1, 1, 1)
        for copy, (y, x) in zip(shown, corners[part].tolist(), strict=True):
            copy[:, y : y + square.shape[1], x : x + square.shape[2]] = square
        for all_places, some in zip(found, both.forward(shown), strict=True):
            all_places[part] = some

    each = footprint.peak + _bytes(layer) + 2 * 4 * pixels[0].numel()
    schedule.run("occlusion", len(corners), hide, bytes_each=each, device=both.device, most=64)


def _bytes(layer: Layer) -> int:
    """Of the layer's maps, for one picture."""
    return 4 * layer.channels * int(np.prod(layer.size))
