"""The box of the largest component at every threshold, from one component tree per map (sections 3.1 and 4).

Every pixel climbs to a peak; where two climbs meet, the lower of the two touching pixels is the pass between
their peaks. Peaks and passes alone say which pixels hang together above any level (Kruskal's algorithm over a
few peaks), so the nodes of the tree, the components at each level, follow without a loop over pixels or
thresholds. Equal to thresholding again and again, ties included; skimage.morphology.max_tree takes three to
ten times as long for the tree alone. Where numba is installed, `union_find` makes the same boxes in a third of
the time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from camlucida.boxes.from_map import check_choice, cut, in_pictures, to_source, usable_map, whole_picture
from camlucida.errors import UsageError
from camlucida.values import HeatMaps, Size

Integers = NDArray[np.int64]

PATIENCE = 500
"""Maps of a process before numba is used: importing it takes as long as some forty, compiling, once on a machine, as
long as a thousand."""
_maps = itertools.count(1)


def at_thresholds(
    maps: HeatMaps, thresholds: ArrayLike, *, connectivity: Literal[8, 4] = 8, normalise: bool = False
) -> tuple[NDArray[np.float64], ...]:
    """For each picture the boxes `(K, T, 4)` of its K maps at T thresholds, in source pixels: see `sweep`."""
    levels = _checked(thresholds)
    return tuple(sweeps(heats, size, levels, connectivity, normalise) for heats, size in in_pictures(maps))


def sweep(
    heat: NDArray[Any],
    size: Size,
    thresholds: ArrayLike,
    connectivity: Literal[8, 4] = 8,
    normalise: bool = False,
) -> NDArray[np.float64]:
    """Half-open boxes `(T, 4)`, x0, y0, x1, y1, in pixels of the picture of `size` that the map `(H, W)`
    covers.

    Row i is exactly what `FractionOfMax(thresholds[i], "largest", connectivity, normalise)` gives, the whole
    picture where it finds no component. `thresholds (T,)`: shares of the maximum, 0 to 1, in any order.
    """
    return sweeps(np.asarray(heat)[None], size, thresholds, connectivity, normalise)[0]


def sweeps(
    heats: NDArray[Any],
    size: Size,
    thresholds: ArrayLike,
    connectivity: Literal[8, 4] = 8,
    normalise: bool = False,
) -> NDArray[np.float64]:
    """`sweep` of each of K maps `(K, H, W)` of one picture, `(K, T, 4)`, in one pass over all of them."""
    thresholds = _checked(thresholds)
    check_choice("sweep(connectivity=…)", connectivity, (8, 4))
    boxes = np.tile(np.array(whole_picture(size).box.corners), (len(heats), len(thresholds), 1))
    usable = {k: one for k, heat in enumerate(heats) if (one := usable_map(heat, normalise)) is not None}
    if not usable or not len(thresholds):
        return boxes
    height, width = heats.shape[1:]
    cuts = {k: cut(one, thresholds) for k, one in usable.items()}
    orders = {k: np.argsort(own, kind="stable") for k, own in cuts.items()}
    fast = _union_find(len(usable))
    if fast:
        each = [fast.largest(one, cuts[k][orders[k]], connectivity) for k, one in usable.items()]
    else:
        # One above the other, a line of level 0 between them: nothing hangs together across it.
        levels = np.zeros((len(usable), height + 1, width), np.int64)
        for own, (k, one) in zip(levels, usable.items(), strict=True):
            own[:height] = _levels(one, cuts[k][orders[k]])
        each = _largest_per_level(levels, connectivity)
    for (k, order), found in zip(orders.items(), each, strict=True):
        boxes[k, order[: len(found)]] = to_source(found, (height, width), size)
    return boxes


def best_over_components(
    heat: NDArray[Any],
    score: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    thresholds: ArrayLike,
    connectivity: Literal[8, 4] = 8,
    normalise: bool = False,
) -> NDArray[np.float64]:
    """At each of T thresholds the highest score `(T,)` that the box of any component of the map `(H, W)` has.

    `score`: half-open boxes `(M, 4)` in pixels of the map → `(M,)`, at least 0. The whole map is scored where
    there is no component. Thresholds as in `sweep`.
    """
    thresholds = _checked(thresholds)
    check_choice("best_over_components(connectivity=…)", connectivity, (8, 4))
    usable = usable_map(heat, normalise)
    height, width = np.shape(heat)
    best = np.repeat(np.asarray(score(np.array([[0, 0, width, height]])), np.float64), len(thresholds))
    if usable is None or not len(thresholds):
        return best
    cuts = cut(usable, thresholds)
    order = np.argsort(cuts, kind="stable")
    fast = _union_find()
    if fast:
        below, level, boxes = fast.nodes(usable, cuts[order], connectivity)
    else:
        levels = _levels(usable, cuts[order])
        if not levels.any():
            return best
        below, level, _, _, boxes = _nodes(levels, connectivity)
    if len(level):
        top = int(level.max())
        best[order[:top]] = _highest_over(below, level - 1, np.asarray(score(boxes), np.float64), top)
    return best


def _union_find(maps: int = 1) -> ModuleType | None:
    """The compiled way, once it pays; None before that or without numba."""
    return _numba() if max(next(_maps) for _ in range(maps)) > PATIENCE else None


@cache
def _numba() -> ModuleType | None:
    try:
        from camlucida.boxes import union_find
    except ImportError:
        return None
    return union_find


def _levels(usable: NDArray[np.float64], cuts: NDArray[np.float64]) -> Integers:
    """The number of the rising cuts that lie strictly below each pixel."""
    return np.searchsorted(cuts, usable.ravel(), side="left").reshape(usable.shape)


def _checked(thresholds: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(thresholds, np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise UsageError("thresholds", got=f"{values}", allowed="a list of numbers from 0 to 1")
    return values


def _largest_per_level(maps: Integers, connectivity: int) -> list[Integers]:
    """For each map of `(K, H, W)`, whose last line is 0, half-open boxes `(max level, 4)` on the grid: row t − 1 is
    the largest component of `levels >= t`."""
    many, lines, width = maps.shape
    tops, top = maps.max((1, 2)), int(maps.max())
    if top == 0:
        return [np.empty((0, 4), np.int64)] * many
    below, level, area, first, boxes = _nodes(maps.reshape(many * lines, width), connectivity)
    ranked = np.lexsort((-first, area))
    rank = np.empty_like(ranked)
    rank[ranked] = np.arange(len(ranked))
    # Each map has places of its own, one for each level.
    which = first // (width * lines)
    best = ranked[_highest_over(which * top + below, which * top + level - 1, rank, many * top)]
    boxes[:, 1::2] -= (which * lines)[:, None]
    return [one[:own] for one, own in zip(boxes[best].reshape(many, top, 4), tops, strict=True)]


def _nodes(levels: Integers, connectivity: int) -> tuple[Integers, Integers, Integers, Integers, Integers]:
    """Every component of `levels >= t`, t from 1 to the highest level, once: the level below its lowest, its
    highest level, its pixels, the first of them in raster order, all `(M,)`, and half-open boxes `(M, 4)`."""
    width, top = levels.shape[1], int(levels.max())
    flat = levels.ravel()
    peak_of, peaks = _peaks(levels, connectivity)
    into, height = _merges(*_passes(levels, peak_of, peaks, connectivity), peaks)

    # A node is a component at a level where it has pixels: (its representative peak, level), sorted by both.
    pixels = np.flatnonzero(flat)
    owner = _representative(peak_of[pixels], flat[pixels], into, height)
    code = owner * (top + 1) + flat[pixels]
    few = peaks * (top + 1) <= 2**16  # numbers of 16 bits are sorted in one pass, by radix
    order = np.argsort(code.astype(np.uint16) if few else code, kind="stable")
    pixels, owner, code = pixels[order], owner[order], code[order]
    starts = np.flatnonzero(np.concatenate([[True], code[1:] != code[:-1]]))
    code, owner = code[starts], owner[starts]
    level = code - owner * (top + 1)

    # The parent is the next level down of the same peak; from its last level, what the peak is merged into.
    count = len(starts)
    parent = np.arange(-1, count - 1)
    ends = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
    dying, death = owner[ends], height[owner[ends]]
    heir = _representative(dying, np.maximum(death, 1), into, height)
    parent[ends] = np.where(death > 0, np.searchsorted(code, heir * (top + 1) + death), count)
    below = np.concatenate([level, [0]])[parent]

    column = pixels % width
    area, first, last, left, right = _up_the_tree(
        parent,
        np.diff(starts, append=len(pixels)),
        pixels[starts],  # sorting was stable, so pixels of a node are in raster order
        pixels[np.append(starts[1:], len(pixels)) - 1],
        np.minimum.reduceat(column, starts),
        np.maximum.reduceat(column, starts),
    )
    boxes = np.stack([left, first // width, right + 1, last // width + 1], axis=1)
    return below, level, area, first, boxes


def _peaks(levels: Integers, connectivity: int) -> tuple[Integers, int]:
    """The peak, numbered from 0, to which each pixel `(H·W,)` climbs by its highest neighbour, ties by the
    later pixel; and how many peaks there are. Every step keeps or raises the level."""
    places = levels.size
    bits = places.bit_length()
    key = (levels << bits) | np.arange(places).reshape(levels.shape)
    wide = key.copy()
    np.maximum(wide[:, 1:], key[:, :-1], out=wide[:, 1:])
    np.maximum(wide[:, :-1], key[:, 1:], out=wide[:, :-1])
    best, rows = wide.copy(), wide if connectivity == 8 else key
    np.maximum(best[1:], rows[:-1], out=best[1:])
    np.maximum(best[:-1], rows[1:], out=best[:-1])
    climb = best.ravel() & ((1 << bits) - 1)
    number = np.cumsum(climb == np.arange(places)) - 1
    while True:
        further = climb[climb]
        if np.array_equal(further, climb):
            return number[climb], int(number[-1]) + 1
        climb = further


def _passes(
    levels: Integers, peak_of: Integers, peaks: int, connectivity: int
) -> tuple[list[int], list[int], list[int]]:
    """The highest pass between each pair of touching peaks, highest first: peak, other peak, level ≥ 1."""
    flat, width = levels.ravel(), levels.shape[1]
    # How far apart two neighbours lie in raster order, and the column that has no such neighbour.
    steps = [(1, width - 1), (width, -1)]
    if connectivity == 8 and width > 1:
        steps += [(width + 1, width - 1), (width - 1, 0)]
    pairs, heights = [], []
    for step, edge in steps:
        here = np.flatnonzero(peak_of[:-step] != peak_of[step:])
        height = np.minimum(flat[here], flat[here + step])
        met = (height > 0) & (here % width != edge)
        here, height = here[met], height[met]
        one, other = peak_of[here], peak_of[here + step]
        pairs.append(np.minimum(one, other) * peaks + np.maximum(one, other))
        heights.append(height)
    pair, height = np.concatenate(pairs), np.concatenate(heights)
    order = np.lexsort((-height, pair))
    pair, height = pair[order], height[order]
    if len(pair):
        best = np.concatenate([[True], pair[1:] != pair[:-1]])
        pair, height = pair[best], height[best]
    order = np.argsort(-height, kind="stable")
    pair, height = pair[order], height[order]
    return (pair // peaks).tolist(), (pair % peaks).tolist(), height.tolist()


def _merges(one: list[int], other: list[int], heights: list[int], peaks: int) -> tuple[Integers, Integers]:
    """Which peak each is merged into and at which level (itself and 0 if never). The peak that stands for
    fewer peaks gives way, so that no chain of merges is longer than log2 of their number."""
    group, members = list(range(peaks)), [1] * peaks
    into, height = list(range(peaks)), [0] * peaks
    for a, b, level in zip(one, other, heights, strict=True):
        while group[a] != a:
            group[a] = a = group[group[a]]
        while group[b] != b:
            group[b] = b = group[group[b]]
        if a != b:
            if members[a] < members[b]:
                a, b = b, a
            group[b] = into[b] = a
            height[b] = level
            members[a] += members[b]
    return np.array(into, np.int64), np.array(height, np.int64)


def _representative(peak: Integers, level: Integers, into: Integers, height: Integers) -> Integers:
    """The peak that stands for the component holding `peak` at `level` (≥ 1), elementwise."""
    peak = peak.copy()
    moving = np.flatnonzero(height[peak] >= level)
    while moving.size:
        peak[moving] = into[peak[moving]]
        moving = moving[height[peak[moving]] >= level[moving]]
    return peak


def _up_the_tree(
    parent: Integers, area: Integers, first: Integers, last: Integers, left: Integers, right: Integers
) -> tuple[Integers, Integers, Integers, Integers, Integers]:
    """Own values of the nodes → values of their whole subtrees: sum of `area`, minimum of `first` and `left`,
    maximum of `last` and `right`. A root's parent is the number of nodes.

    After round r a node holds its descendants less than 2^r generations down, so few rounds do.
    """
    area, first, last, left, right = (values.copy() for values in (area, first, last, left, right))
    ancestor = np.append(parent, len(parent))
    nodes = np.flatnonzero(parent < len(parent))
    while nodes.size:
        above = ancestor[nodes]
        np.add.at(area, above, area[nodes])
        np.minimum.at(first, above, first[nodes])
        np.maximum.at(last, above, last[nodes])
        np.minimum.at(left, above, left[nodes])
        np.maximum.at(right, above, right[nodes])
        ancestor[nodes] = ancestor[above]
        nodes = nodes[ancestor[nodes] < len(parent)]
    return area, first, last, left, right


def _highest_over(low: Integers, high: Integers, value: NDArray[Any], length: int) -> NDArray[Any]:
    """For each place 0 … length − 1 the highest value (≥ 0) of the ranges low … high (inclusive) that hold it;
    each place must be in a range. A range is written as two overlapping ranges of a power of two, which are then
    halved down to places."""
    power = np.frexp(high - low + 1)[1].astype(np.int64) - 1
    table = np.full((int(power.max()) + 1, length), -1, value.dtype)
    np.maximum.at(table.reshape(-1), power * length + low, value)
    np.maximum.at(table.reshape(-1), power * length + high + 1 - 2**power, value)
    for row in range(len(table) - 1, 0, -1):
        half = 2 ** (row - 1)
        np.maximum(table[row - 1], table[row], out=table[row - 1])
        np.maximum(table[row - 1, half:], table[row, :-half], out=table[row - 1, half:])
    return table[0]
