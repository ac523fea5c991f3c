"""Which outputs of each step an edit changes (section 11.1), and which edits may share a batch of windows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import fx

from camlucida.maps.incremental.graph import Reach, Step

Interval = tuple[NDArray[np.int64], NDArray[np.int64]]  # first and last position changed, one each per edit


def changed(low: NDArray, high: NDArray, reach: Reach, length: int) -> Interval:
    """Outputs that read any of the inputs `low … high`. Where there are none, one that is computed for nothing."""
    first = -(-(low + reach.pad - reach.kernel + 1) // reach.stride)
    last = (high + reach.pad) // reach.stride
    first, last = first.clip(0, length - 1), last.clip(0, length - 1)
    return first, np.maximum(first, last)


def along(
    axis: int, starts: NDArray, length: int, steps: dict[fx.Node, Step], field: float = 1.0
) -> dict[fx.Node, Interval]:
    """The changed interval of every step along one axis, for edits of `length` pixels that begin at `starts`. With
    `field` < 1 no window is wider than that share of its map: what lies further out stays as it was (section 11.2)."""
    found: dict[fx.Node, Interval] = {}
    for node, step in steps.items():
        if not step.inputs:
            found[node] = starts, starts + length - 1
            continue
        low = np.min([found[n][0] for n in step.inputs], 0)
        high = np.max([found[n][1] for n in step.inputs], 0)
        if step.reach:
            low, high = changed(low, high, step.reach[axis], step.size[axis])
            widest = max(1, round(field * step.size[axis]))
            low = low + (high - low + 1 - widest).clip(0) // 2
            high = np.minimum(high, low + widest - 1)
        found[node] = low, high
    return found


@dataclass(frozen=True)
class Group:
    """Edits whose windows have one size at each step. `members`: positions in the list of edits; `sides[node]`: height
    and width of its window; `corners[node]`: where it begins, `(rows, columns)`, one each per member."""

    members: NDArray[np.int64]
    sides: dict[fx.Node, tuple[int, int]]
    corners: dict[fx.Node, tuple[NDArray[np.int64], NDArray[np.int64]]]


def groups(
    corners: NDArray[np.int64],
    size: tuple[int, int],
    steps: dict[fx.Node, Step],
    most: int,
    field: float = 1.0,
) -> Iterator[Group]:
    """Edits `(P, 2)` in groups of at most `most`. Along each axis, positions whose windows differ little are laid
    together, with the larger window: what it computes beyond the change is what was there before."""
    parts: list[list[NDArray]] = []
    intervals: list[dict[fx.Node, Interval]] = []
    position: list[NDArray] = []
    wanted = max(1, round((len(corners) / max(1, min(24, most))) ** 0.5))
    for axis in (0, 1):
        starts, where = np.unique(corners[:, axis], return_inverse=True)
        found = along(axis, starts, size[axis], steps, field)
        parts.append(clustered(found, steps, wanted, np.bincount(where)))
        intervals.append(found)
        position.append(where.reshape(-1))
    for rows in parts[0]:
        in_rows = np.isin(position[0], rows)
        for columns in parts[1]:
            members = np.flatnonzero(in_rows & np.isin(position[1], columns))
            if not len(members):
                continue
            sides, begins = {}, {}
            for node, step in steps.items():
                side, begin = [], []
                for axis, part in enumerate((rows, columns)):
                    low, high = intervals[axis][node]
                    side.append(int((high - low)[part].max()) + 1)
                    begin.append(np.minimum(low[position[axis][members]], step.size[axis] - side[axis]))
                sides[node], begins[node] = (side[0], side[1]), (begin[0], begin[1])
            for chunk in np.array_split(np.arange(len(members)), -(-len(members) // most)):
                yield Group(members[chunk], sides, {n: (y[chunk], x[chunk]) for n, (y, x) in begins.items()})


def clustered(
    intervals: dict[fx.Node, Interval], steps: dict[fx.Node, Step], wanted: int, counts: NDArray
) -> list[NDArray]:
    """Positions along one axis in at most `wanted` groups, those joined first that cost least: each step's multiply-adds
    times the square of the largest window in the group."""
    sides = np.stack([high - low + 1 for low, high in intervals.values()], 1)
    weights = np.array([step.cost for step in steps.values()])
    distinct, belongs = np.unique(sides, axis=0, return_inverse=True)
    belongs = belongs.reshape(-1)
    largest = distinct.astype(np.float64)
    number = np.bincount(belongs, weights=counts, minlength=len(distinct))
    parts: list[list[int]] = [[i] for i in range(len(distinct))]
    cost = number * (largest**2 @ weights)

    def joint(i: int) -> NDArray:
        both = (np.maximum(largest, largest[i]) ** 2) @ weights * (number + number[i]) - cost - cost[i]
        both[i] = np.inf
        return both

    extra = np.stack([joint(i) for i in range(len(distinct))])
    while len(parts) - int(np.isinf(number).sum()) > wanted:
        i, j = sorted(divmod(int(extra.argmin()), len(parts)))
        parts[i] += parts[j]
        largest[i] = np.maximum(largest[i], largest[j])
        number[i] += number[j]
        cost[i] = number[i] * float(largest[i] ** 2 @ weights)
        parts[j], number[j], extra[j, :], extra[:, j] = [], np.inf, np.inf, np.inf
        renewed = joint(i)
        renewed[np.isinf(number)] = np.inf
        extra[i, :] = extra[:, i] = renewed
    return [np.flatnonzero(np.isin(belongs, part)) for part in parts if part]
