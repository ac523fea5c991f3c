"""The box of backpropagation saliency: two colour models and a minimum cut (section 4.2; Boykov and Jolly's energy)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import sparse
from scipy.sparse import csgraph

from camlucida.boxes.from_map import (
    Boxes,
    as_map,
    check_between,
    components,
    corners_of,
    in_pictures,
    relative_peak,
    to_source,
    whole_picture,
)
from camlucida.errors import UsageError
from camlucida.values import Box, HeatMaps, ScoredBox, Size

VARIANCE = 10.0  # added to each colour's variance, in squared levels of 255: a flat colour is a model, too
FARTHEST = 30.0  # nats; a colour that a model holds for less likely than this counts as this
NEIGHBOURS = ((0, 1, 1.0), (1, 0, 1.0), (1, 1, 2**-0.5), (1, -1, 2**-0.5))  # rows, columns, 1 / distance
LARGEST = 2**31 - 1  # what scipy's maximum flow counts up to


@dataclass(frozen=True)
class GraphCut:
    """The largest component of what a minimum cut through the picture's colours calls foreground.

    Pixels of the map above its quantile `foreground` are the foreground's marks, below `background` the
    background's seeds. A Gaussian is fitted to the colours of each; a pixel costs −log of its likelihood under its side's Gaussian,
    and two neighbours (8) on different sides cost `smoothness` · exp(−|a − b|² / 2⟨|a − b|²⟩) / distance. It needs the picture:
    `on_picture`, or `cl.localize(…, boxes="graph-cut")`. A map that is constant or not finite, or a cut that leaves no
    foreground, gives the whole picture, flagged.
    """

    foreground: float = 0.95
    """Quantile of the map above which pixels are foreground marks."""
    background: float = 0.3
    """Quantile of the map below which pixels are background seeds."""
    smoothness: float = 4.0
    """What it costs, in nats, that neighbours of one colour lie on different sides."""
    fixed: bool = False
    """Marks and seeds keep their side, whatever their colour; else they only teach the colours."""
    side: int = 96
    """Longest side of the grid that is cut; larger pictures are averaged down to it."""

    def __post_init__(self) -> None:
        check_between("GraphCut.foreground", self.foreground, 0, 1)
        check_between("GraphCut.background", self.background, 0, self.foreground)
        check_between("GraphCut.smoothness", self.smoothness, 0, 1e6)
        check_between("GraphCut.side", self.side, 2, 1024)

    @property
    def level(self) -> None:
        """There are two quantiles: nothing to report."""
        return None

    def on_map(self, heat: NDArray[Any], size: Size) -> tuple[ScoredBox, ...]:
        """UsageError: a map has no colours."""
        raise UsageError(
            "GraphCut on a map alone", allowed="a map and its picture",
            do="rule.on_picture(heat, picture), or cl.localize(…, boxes='graph-cut')",
        )  # fmt: skip

    def on_picture(self, heat: NDArray[Any], picture: Image.Image) -> tuple[ScoredBox, ...]:
        """The box, in its pixels, of a map `(H, W)` laid over a picture."""
        size = Size(picture.height, picture.width)
        cut = self.mask(heat, picture)
        found = components(cut, 8, "largest")[1] if cut is not None else []
        if not found:
            return (whole_picture(size),)
        (label_and_window,) = found
        window = label_and_window[1]
        values = _resized(as_map(heat), cut.shape)  # type: ignore[union-attr]
        score = relative_peak(values[window], float(values.max()))
        return (ScoredBox(Box(*to_source(corners_of(window), values.shape, size).tolist()), score),)

    def mask(self, heat: NDArray[Any], picture: Image.Image) -> NDArray[np.bool_] | None:
        """Foreground `(h, w)` on the grid that is cut; None for a map that is constant or not finite."""
        values = as_map(heat)
        if not np.isfinite(values).all() or values.min() == values.max():
            return None
        factor = min(1.0, self.side / max(picture.size))
        width, height = (max(1, round(side * factor)) for side in picture.size)
        small = picture.convert("RGB").resize((width, height), Image.Resampling.BOX)
        colours = np.asarray(small, np.float64)
        values = _resized(values, (height, width))
        # At least one pixel each: of a map with many equal values none may lie beyond a quantile.
        marks = values >= min(np.nextafter(np.quantile(values, self.foreground), np.inf), values.max())
        seeds = values <= max(np.nextafter(np.quantile(values, self.background), -np.inf), values.min())
        costs = np.stack([_unlikely(colours, colours[seeds]), _unlikely(colours, colours[marks])])
        if self.fixed:
            costs[0][marks], costs[1][marks] = np.inf, 0
            costs[1][seeds], costs[0][seeds] = np.inf, 0
        return minimum_cut(costs[0], costs[1], colours, self.smoothness)

    def __call__(self, maps: HeatMaps, pictures: Sequence[Image.Image] | None = None) -> Boxes:
        """Boxes of every map; `pictures`: the source pictures, one each."""
        if pictures is None or len(pictures) != len(maps.values):
            got = "none" if pictures is None else len(pictures)
            raise UsageError(
                "GraphCut()(maps, pictures)", got=f"{got} pictures", allowed=f"{len(maps.values)}"
            )
        return tuple(
            tuple(self.on_picture(heat, picture) for heat in heats)
            for (heats, _), picture in zip(in_pictures(maps), pictures, strict=True)
        )


def minimum_cut(
    background: NDArray[np.float64],
    foreground: NDArray[np.float64],
    colours: NDArray[np.float64],
    smoothness: float,
) -> NDArray[np.bool_]:
    """The foreground `(h, w)` of least cost: `background`, `foreground (h, w)`: what a pixel costs on that side
    (nats; infinite: never there), `colours (h, w, 3)`; ties go to the background."""
    height, width = background.shape
    index = np.arange(height * width).reshape(height, width)
    starts, ends, weights = [], [], []
    for down, right, near in NEIGHBOURS:
        a, b = _pairs(index, down, right)
        one, other = _pairs(colours, down, right)
        starts.append(a.ravel())
        ends.append(b.ravel())
        weights.append((np.square(one - other).sum(-1).ravel(), np.full(a.size, near)))
    squares, nearness = (np.concatenate(part) for part in zip(*weights, strict=True))
    mean = squares.mean() if squares.size else 0.0
    between = smoothness * nearness * np.exp(-squares / (2 * mean) if mean > 0 else np.zeros_like(squares))
    # Only the difference of a pixel's two costs matters; a side that is forbidden costs more than all else.
    finite = np.isfinite(background) & np.isfinite(foreground)
    difference = np.where(
        finite, np.subtract(background, foreground, where=finite, out=np.zeros_like(background)), 0
    )
    never = np.abs(difference).sum() + between.sum() + 1
    difference[np.isinf(background) & ~np.isinf(foreground)] = never
    difference[np.isinf(foreground) & ~np.isinf(background)] = -never
    source, sink, pixels = height * width, height * width + 1, index.ravel()
    difference = difference.ravel()
    rows = np.concatenate([*starts, *ends, np.full(len(pixels), source), pixels])
    columns = np.concatenate([*ends, *starts, pixels, np.full(len(pixels), sink)])
    capacity = np.concatenate([between, between, difference.clip(0), (-difference).clip(0)])
    # Whole numbers; as fine as the largest single capacity and the whole flow allow.
    flow = min(difference.clip(0).sum(), (-difference).clip(0).sum())
    scale = min(1000.0, LARGEST / 4 / max(float(capacity.max(initial=0)), float(flow), 1.0))
    whole = np.rint(capacity * scale).astype(np.int32)
    kept = whole > 0
    graph = sparse.csr_array(
        (whole[kept], (rows[kept].astype(np.int32), columns[kept].astype(np.int32))), (sink + 1, sink + 1)
    )
    left = graph - csgraph.maximum_flow(graph, source, sink).flow
    left.data[left.data < 0] = 0
    left.eliminate_zeros()
    reached = csgraph.breadth_first_order(left, source, return_predecessors=False)
    found = np.zeros(sink + 1, bool)
    found[reached] = True
    return found[: height * width].reshape(height, width)


def _pairs(values: NDArray[Any], down: int, right: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Each pixel that has one, and its neighbour so far down and to the right."""
    height, width = values.shape[:2]
    left, far = max(-right, 0), width - max(right, 0)
    return values[: height - down, left:far], values[down:, left + right : far + right]


def _unlikely(colours: NDArray[np.float64], taught: NDArray[np.float64]) -> NDArray[np.float64]:
    """−log likelihood (up to a constant that both models share) of `colours (h, w, 3)` under the Gaussian of
    the colours `taught (n, 3)`, at most `FARTHEST` above the most likely colour's."""
    away = colours - taught.mean(0)
    covariance = np.cov(taught.T, bias=True).reshape(3, 3) + VARIANCE * np.eye(3)
    distance = np.einsum("...i,ij,...j", away, np.linalg.inv(covariance), away) / 2
    return np.minimum(distance, FARTHEST) + np.linalg.slogdet(covariance)[1] / 2


def _resized(values: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """A map on another grid over the same picture: averaged where that is coarser, bilinear where finer."""
    if values.shape == tuple(shape):
        return values
    image = Image.fromarray(values.astype(np.float32))
    how = Image.Resampling.BOX if values.size > shape[0] * shape[1] else Image.Resampling.BILINEAR
    return np.asarray(image.resize((shape[1], shape[0]), how), np.float64)
