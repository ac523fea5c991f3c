"""Where the values of a run keep their cells: which axis holds the channels, and in which the cells of a map stand in a row
of tokens, to be laid back on their grid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from camlucida.taps import Operation, Trace, Value

RESHAPING = ("flatten", "view", "reshape")
POOLS = {"max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool"}
JOINING = ("cat", "concat", "concatenate")


@dataclass(frozen=True)
class Tokens:
    """A value that holds the cells of a map of `size` in a row of `total` tokens, after `prefix` others; `axis`: which
    one the row is (1 or 2), None while it is folded otherwise (inside attention)."""

    size: tuple[int, ...]
    prefix: int
    total: int
    axis: int | None

    @property
    def readable(self) -> bool:
        return self.axis == 1

    @property
    def bare(self) -> bool:
        """Nothing but the cells."""
        return self.total == math.prod(self.size)


def layouts(trace: Trace, axes: int) -> tuple[dict[Value, int], dict[Value, Tokens]]:
    """Where the channels are, 1 or −1 (last), in values with the axes of the input; and the values whose cells were
    put in a row of tokens; both as far as the run tells."""
    places = {trace.input: 1}
    shapes: dict[Value, tuple[int, ...]] = {trace.input: trace.shape}
    tokens: dict[Value, Tokens] = {}
    sizes = {trace.shape[2:]}
    for operation in trace.operations:
        value, shape = operation.output, operation.shape
        shapes[value] = shape
        place = _place(operation, axes, places, shapes, tokens)
        folded = any(v in tokens for v in operation.inputs)
        if place is None and len(shape) == axes + 2 and shape[2:] in sizes and not folded:
            place = 1  # as before a shuffle of its channels
        if place is not None:
            places[value] = place
            sizes |= {shape[2:]} if place == 1 else set()
        elif axes > 1:
            row = _row(operation, axes, places, shapes, tokens)
            if row is not None:
                tokens[value] = row
    return places, tokens


def _order(operation: Operation) -> list[int]:
    """Which axis of the input each axis of a permutation's output is."""
    rank = len(operation.shape)
    order = list(range(rank))
    if operation.name == "permute":
        asked = operation.argument(1, "dims")
        return [d % rank for d in (asked if isinstance(asked, (tuple, list)) else operation.args[1:])]
    if operation.name in ("transpose", "swapaxes", "swapdims"):
        a, b = (operation.argument(i, f"dim{i - 1}", operation.argument(i, f"axis{i - 1}")) for i in (1, 2))
        order[a], order[b] = order[b], order[a]
    elif operation.name in ("mT", "T"):
        order[-2:] = order[:-3:-1]
    return order


def _place(
    operation: Operation, axes: int, places: dict[Value, int], shapes: dict[Value, tuple[int, ...]],
    tokens: dict[Value, Tokens],
) -> int | None:  # fmt: skip
    rank = len(operation.shape)
    if rank != axes + 2:
        return None
    if operation.base in ("conv", "conv_transpose", *POOLS):
        return 1
    given = next((v for v in operation.inputs if v in places), None)
    if given is not None and len(shapes[given]) == rank:
        place = _order(operation).index(places[given] % rank)
        return {1: 1, rank - 1: -1}.get(place)
    row = tokens.get(operation.inputs[0]) if operation.inputs else None
    if row is not None:  # tokens folded into a map again
        if operation.name in RESHAPING and row.bare and row.axis:
            if row.axis == 1 and operation.shape[1:-1] == row.size:
                return -1
            if row.axis == 2 and operation.shape[2:] == row.size:
                return 1
        return None
    over_last = operation.name == "linear" or (
        operation.name == "layer_norm" and len(operation.argument(1, "normalized_shape")) == 1
    )
    return -1 if over_last else None


def _row(
    operation: Operation, axes: int, places: dict[Value, int], shapes: dict[Value, tuple[int, ...]],
    tokens: dict[Value, Tokens],
) -> Tokens | None:  # fmt: skip
    if not operation.inputs:
        return None
    shape, first, batch = operation.shape, operation.inputs[0], next(iter(shapes.values()))[0]
    if first in places:
        map_shape = shapes[first]
        axis = 2 if places[first] == 1 else 1
        size = map_shape[2:] if axis == 2 else map_shape[1:-1]
        put = operation.name in RESHAPING and len(shape) == 3 and shape[0] == map_shape[0]
        count = math.prod(size)
        return Tokens(size, 0, count, axis) if put and count > 1 and shape[axis] == count else None
    position = next((i for i, v in enumerate(operation.inputs) if v in tokens), None)
    if position is None:
        return None
    row = tokens[operation.inputs[position]]
    hidden = replace(row, axis=None)
    if len(shape) != 3 or shape[0] != batch:
        return hidden
    if operation.name in JOINING and row.axis == 1:
        parts = operation.argument(0, "tensors")
        if operation.argument(1, "dim", 0) in (1, -2):
            before = sum(part.shape[1] for part in parts[:position])
            return replace(row, prefix=row.prefix + before, total=shape[1])
    if operation.name == "__getitem__" and row.axis == 1:
        index = operation.args[1]
        cut = index[1] if isinstance(index, tuple) and len(index) > 1 else slice(None)
        if isinstance(index, slice) or not isinstance(cut, slice) or cut.step not in (None, 1):
            return hidden
        start, stop, _ = cut.indices(row.total)
        if start > row.prefix or stop < row.prefix + math.prod(row.size):
            return hidden
        return replace(row, prefix=row.prefix - start, total=stop - start)
    if row.axis is not None and len(shapes[operation.inputs[position]]) == 3:
        axis = _order(operation).index(row.axis)
        return replace(row, axis=axis) if axis and shape[axis] == row.total else hidden
    return replace(row, axis=1) if shape[1] == row.total else hidden
