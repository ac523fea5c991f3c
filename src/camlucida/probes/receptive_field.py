"""What a unit sees: its field by recurrence over the traced graph, by gradients, and empirically, by hiding parts of the
pictures that excite it (section 8)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camlucida import taps
from camlucida.errors import LayerError, TargetError, UnsupportedError, UsageError
from camlucida.geometry import Box
from camlucida.maps import schedule
from camlucida.maps.incremental import Edits
from camlucida.maps.incremental.inner import unit_graph
from camlucida.maps.incremental.intervals import along
from camlucida.networks.network import Network
from camlucida.networks.structure import Layer
from camlucida.probes.looking import Pictures, look
from camlucida.probes.top_activations import Peak, RunningTop
from camlucida.values import Batch

TOP, PATCH, STRIDE, SIDE = 25, 11, 3, 224
"""The paper's pictures a unit, patch and stride, in pixels of a view whose shorter side is 224."""
HALF = 0.5  # of the maximum: where a field ends
SHARE = 0.25  # of the pictures that must reach a place, for it to count in the mean


def field_of(layer: Layer, cell: tuple[int, ...]) -> Box | None:
    """The receptive field of a cell (row, column) of a layer of a 2-D network, in pixels of the view; it may reach beyond its
    borders. None where the run does not tell (attention, global operations)."""
    if layer.stride is None or layer.offset is None or layer.receptive_field is None or len(layer.size) != 2:
        return None
    (y, x), (h, w) = (
        [o + i * s for o, i, s in zip(layer.offset, cell, layer.stride, strict=True)],
        layer.receptive_field,
    )
    return Box(x - w / 2, y - h / 2, x + w / 2, y + h / 2)


def field_by_gradient(
    network: Network, batch: Batch | Tensor, layer: str | None, cell: tuple[int, int], unit: int | None = None
) -> Box | None:
    """The smallest box around the pixels that the gradient of a cell reaches, of one unit or all, over all pictures of the
    batch; None where it reaches none. Never larger than `field_of`, cut to the view; as large where some picture lets the
    gradient through at the edges (ReLU and max pooling stop it here and there). float64 (`precision="64-true"`) keeps
    small shares from rounding to zero. Raises LayerError where the network cuts gradients off."""
    pixels = Batch.of(batch).pixels
    found = network.find_layer(layer, pixels)
    with taps.borrowed(network.module):
        run = network.run(pixels, [found.point], gradient_at=taps.PIXELS)
        cells = found.cells(run.tapped[found.point])[
            (slice(None), slice(unit, None if unit is None else unit + 1), *cell)
        ]
        if not cells.requires_grad:
            raise LayerError(
                f"no gradient leads from layer {found.name} to the pixels", do="cut off by no_grad or detach"
            )
        (gradient,) = torch.autograd.grad(cells.sum(), run.tapped[taps.PIXELS], allow_unused=True)
    if gradient is None or not gradient.any():
        return None
    reached = gradient.ne(0).flatten(0, 1).any(0).cpu()
    (y0, y1), (x0, x1) = (np.flatnonzero(reached.any(axis).numpy())[[0, -1]].tolist() for axis in (1, 0))
    return Box(x0, y0, x1 + 1, y1 + 1)


@dataclass(frozen=True)
class Discrepancy:
    """How much one picture's peak changes under each patch: `values (rows, columns)` = |activation − activation with the
    patch|, at the peak's cell; `tops`, `lefts`: where the patches begin; `position` (y, x): the cell's place. View pixels."""

    peak: Peak
    values: NDArray[np.float32]
    tops: NDArray[np.int64]
    lefts: NDArray[np.int64]
    position: tuple[float, float]


@dataclass(frozen=True)
class EmpiricalField:
    """The mean discrepancy around the peaks of a unit. `values (2n + 1, 2m + 1)`: place (n, m) is the peak, places lie `stride`
    view pixels apart; NaN where fewer than a quarter of the pictures reach. `counts`: how many do. `theory` (height, width):
    the field by recurrence, None where the run does not tell. `pictures`: each picture's own, strongest first."""

    layer: str
    unit: int
    values: NDArray[np.float32]
    counts: NDArray[np.int64]
    patch: int
    stride: int
    theory: tuple[float, ...] | None
    pictures: tuple[Discrepancy, ...] = field(repr=False)
    seed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def box(self) -> Box | None:
        """The box, around the peak at (0, 0), of the places with at least half of the highest value; a place is a square
        of `stride` pixels. No smaller than about half a patch, which is as sharp as patches see. None for a map of zeros."""
        with np.errstate(invalid="ignore"):
            above = self.values >= HALF * np.nanmax(self.values)
        if not np.nanmax(self.values) > 0:
            return None
        (y0, y1), (x0, x1) = (np.flatnonzero(above.any(axis))[[0, -1]] for axis in (1, 0))
        n, m = (side // 2 for side in self.values.shape)
        return Box(
            *((low - middle - 0.5) * self.stride for low, middle in ((x0, m), (y0, n))),
            *((high - middle + 0.5) * self.stride for high, middle in ((x1, m), (y1, n))),
        )

    @property
    def size(self) -> tuple[float, float] | None:
        """Height and width of `box`."""
        box = self.box
        return None if box is None else (box.y1 - box.y0, box.x1 - box.x0)

    @property
    def half(self) -> float | None:
        """Side of the smallest square around the peak within which lies half of all change: larger than `size` where much of
        it is faint and far out. None for a map of zeros."""
        known = np.nan_to_num(self.values)
        n, m = (side // 2 for side in known.shape)
        away = np.maximum(abs(np.arange(-n, n + 1))[:, None], abs(np.arange(-m, m + 1)))
        within = np.bincount(away.ravel(), known.ravel()).cumsum()
        if not within[-1] > 0:
            return None
        return float((2 * np.argmax(within >= within[-1] / 2) + 1) * self.stride)


def empirical_field(
    network: Network,
    layer: str | None,
    unit: int,
    pictures: Any,
    *,
    top: int = TOP,
    patch: int | None = None,
    stride: int | None = None,
    seed: int = 0,
    engine: Literal["auto", "incremental", "plain"] = "auto",
    peaks: Sequence[Peak] | None = None,
    heard: Callable[[int], None] | None = None,
) -> EmpiricalField:
    """The field of a unit of a layer (None: the one before pooling) over its `top` strongest pictures, or all where there are
    fewer. `pictures`: what `Pictures.of` takes. A patch of random pixels (seeded; each channel uniform between its lowest
    and highest value in the picture) is laid on every place, and what the unit loses or gains at its strongest cell is
    averaged around that cell. `patch`, `stride`: in view pixels; by default 11 and 3 at a shorter side of 224, others in
    proportion. `peaks`: of `strongest_of`, where known.

    `engine`: `incremental` computes only what a patch changes and raises UnsupportedError where it cannot; `plain` runs the
    network on every copy; `auto` is plain where the other cannot be: `notes` say why. Equal to float precision. Raises
    TargetError for a unit that is not there, UsageError for one that no picture excites."""
    pictures = Pictures.of(network, pictures)
    if engine not in ("auto", "incremental", "plain"):
        raise UsageError("empirical_field(engine=…)", got=repr(engine), allowed="auto | incremental | plain")
    if layer is None:  # the first picture's, for all shapes of pictures
        layer = network.find_layer(None, pictures.first().pixels).name
    if peaks is None:
        (ranked,) = strongest_of(pictures, [layer], top).values()
        if not 0 <= unit < ranked.units:
            raise TargetError(f"unit {unit} of layer {layer}", allowed=f"0 … {ranked.units - 1}")
        peaks = ranked.peaks(unit)
    if not peaks:
        raise UsageError(
            f"unit {unit} of layer {layer}",
            got=f"no activation above zero in any of {len(pictures)} pictures",
            do="choose another unit, or pictures that excite it",
        )
    found: list[Discrepancy] = []
    notes: dict[str, None] = {}
    for peak in peaks[:top]:
        one, note, at, side, step = _discrepancy(
            network, pictures[peak.picture], layer, unit, peak, patch, stride, seed, engine
        )
        patch, stride = side, step  # of the strongest picture, for all
        found.append(one)
        notes[note] = None
        if heard:
            heard(1)
    assert patch is not None
    assert stride is not None
    values, counts = _mean(found, patch, stride)
    theory = at.receptive_field
    return EmpiricalField(
        at.name, unit, values, counts, patch, stride, theory, tuple(found), seed, tuple(notes)
    )


def strongest_of(
    pictures: Pictures,
    layers: Sequence[str | None],
    top: int = TOP,
    heard: Callable[[int], None] | None = None,
) -> dict[str, RunningTop]:
    """The `top` strongest pictures of every unit of the layers, by position, in one pass."""
    if top < 1:
        raise UsageError("pictures for each unit", got=top, allowed="≥ 1")
    kept: dict[str, RunningTop] = {}
    for looked in look(pictures, layers, heard):
        for name, maps in looked.maps.items():
            if name not in kept:
                kept[name] = RunningTop.empty(maps.shape[1], top, maps.ndim - 2)
            kept[name].update(maps, looked.positions)
    return kept


def _discrepancy(
    network: Network, batch: Batch, name: str | None, unit: int, peak: Peak, patch: int | None, stride: int | None,
    seed: int, engine: str,
) -> tuple[Discrepancy, str, Layer, int, int]:  # fmt: skip
    """One picture's map; how it was computed; the layer, patch and stride."""
    pixels = network.as_input(batch.pixels)
    if pixels.ndim != 4:
        raise UnsupportedError(
            "empirical fields are measured in pictures", got=f"{pixels.ndim - 2} axes", allowed="2"
        )
    view = (pixels.shape[2], pixels.shape[3])
    patch = max(3, math.floor(PATCH * min(view) / SIDE + 0.5)) if patch is None else patch
    stride = max(1, math.ceil(STRIDE * min(view) / SIDE)) if stride is None else stride
    if not (0 < patch <= min(view) and stride > 0):
        raise UsageError(
            "empirical_field",
            got=f"patch {patch}, stride {stride}",
            allowed=f"patch 1 … {min(view)}, stride ≥ 1",
        )
    layer = network.find_layer(name, pixels)
    grid = layer.grid(view)
    position = tuple(o + c * s for o, c, s in zip(grid.offset, peak.cell, grid.stride, strict=True))
    tops, lefts = (_places(p, patch, stride, side) for p, side in zip(position, view, strict=True))
    if not (len(tops) and len(lefts)):
        raise UsageError(
            "empirical_field", got=f"no place for a patch of {patch} every {stride} pixels in a view of {view[0]} × {view[1]}",
            do="take a smaller stride or patch",
        )  # fmt: skip
    corners = torch.cartesian_prod(torch.from_numpy(tops), torch.from_numpy(lefts)).reshape(-1, 2)
    contents = _noise(pixels, (len(corners), patch), seed * 1_000_003 + peak.picture)
    with taps.borrowed(network.module):
        values, note = _changes(network, pixels, layer, unit, peak.cell, corners, contents, engine)
    array = values.float().cpu().numpy().reshape(len(tops), len(lefts))
    return Discrepancy(peak, array, tops, lefts, (position[0], position[1])), note, layer, patch, stride


def _places(position: float, patch: int, stride: int, side: int) -> NDArray[np.int64]:
    """Where patches begin along one axis: one centred at the position, to the nearest pixel, the others `stride` apart, all
    inside, so that the maps of several pictures fall on one lattice around their peaks."""
    middle = math.floor(position - patch / 2 + 0.5)
    first = middle + stride * math.ceil(-middle / stride)
    return np.arange(first, side - patch + 1, stride, dtype=np.int64)


def _noise(pixels: Tensor, shape: tuple[int, int], seed: int) -> Tensor:
    """Patches `(P, C, side, side)` of random pixels."""
    count, side = shape
    low, high = pixels.amin((0, 2, 3))[:, None, None], pixels.amax((0, 2, 3))[:, None, None]
    random = torch.rand(count, pixels.shape[1], side, side, generator=torch.Generator().manual_seed(seed))
    return low + random.to(pixels) * (high - low)


def _changes(
    network: Network, pixels: Tensor, layer: Layer, unit: int, cell: tuple[int, ...], corners: Tensor, contents: Tensor,
    engine: str,
) -> tuple[Tensor, str]:  # fmt: skip
    """|activation − activation with a patch| at the cell, for each patch `(P,)`; how it was computed."""
    with taps.Footprint() as footprint:
        whole = network.run(pixels, [layer.point]).tapped[layer.point]
    clean = layer.cells(whole)[0, unit, cell[0], cell[1]]
    if engine != "plain":
        try:
            return _incremental(network, pixels, layer, unit, cell, corners, contents, whole)
        except UnsupportedError as error:
            if engine == "incremental":
                raise
            note = f"plain loop: {error}"
    else:
        note = "plain loop"
    values = clean.new_empty(len(corners))
    bytes_each = footprint.peak + 3 * pixels.numel() * pixels.element_size()
    side = contents.shape[-1]
    for some in torch.arange(len(corners)).split(schedule.budget().copies(bytes_each, pixels.device)):
        copies = pixels.repeat(len(some), 1, 1, 1)
        for copy, (y, x), new in zip(copies, corners[some].tolist(), contents[some], strict=True):
            copy[:, y : y + side, x : x + side] = new
        maps = layer.cells(network.run(copies, [layer.point]).tapped[layer.point])
        values[some] = (maps[:, unit, cell[0], cell[1]] - clean).abs()
    return values, note


def _incremental(
    network: Network, pixels: Tensor, layer: Layer, unit: int, cell: tuple[int, ...], corners: Tensor, contents: Tensor,
    whole: Tensor,
) -> tuple[Tensor, str]:  # fmt: skip
    graph = unit_graph(network, pixels, layer, unit)
    axis = layer.channel_axis % whole.ndim
    edits = Edits(network, pixels, whole.narrow(axis, unit, 1), graph)
    reach = torch.ones(len(corners), dtype=torch.bool)
    if not graph.rest:  # windows all the way: a patch whose window misses the cell changes nothing there
        for side in (0, 1):
            starts = corners[:, side].numpy()
            low, high = along(side, starts, contents.shape[-1], graph.steps)[graph.boundary[0]]
            reach &= torch.from_numpy((low <= cell[side]) & (cell[side] <= high))
    near = reach.nonzero()[:, 0]
    values = whole.new_zeros(len(corners))
    clean = layer.cells(edits.runner.output)[0, 0, cell[0], cell[1]]
    for at, maps in edits.outputs(corners[near], contents[near]):
        values[near[at]] = (layer.cells(maps)[:, 0, cell[0], cell[1]] - clean).abs()
    return values, f"incremental: {edits.words.removesuffix(', whole maps from none on')}"


def _mean(
    found: Sequence[Discrepancy], patch: int, stride: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The maps laid over each other with their peaks in the middle, and how many lie at each place."""
    placed = []
    for one in found:
        first = [
            (int(starts[0]) - math.floor(p - patch / 2 + 0.5)) // stride
            for starts, p in zip((one.tops, one.lefts), one.position, strict=True)
        ]
        placed.append((one.values, first))
    reach = [
        max(max(-first[a], first[a] + values.shape[a] - 1, 0) for values, first in placed) for a in (0, 1)
    ]
    sums, counts = np.zeros([2 * r + 1 for r in reach]), np.zeros([2 * r + 1 for r in reach], np.int64)
    for values, first in placed:
        place = tuple(
            slice(r + f, r + f + side) for r, f, side in zip(reach, first, values.shape, strict=True)
        )
        sums[place] += values
        counts[place] += 1
    mean = np.full(sums.shape, np.nan, np.float32)
    np.divide(sums, counts, out=mean, where=counts >= max(1, SHARE * len(placed)), casting="unsafe")
    return mean, counts
