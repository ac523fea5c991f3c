"""Follows many local edits of one picture through a graph: windows where they carry, whole maps from there on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from camlucida.maps.incremental import winograd
from camlucida.maps.incremental.export import filled, name_of, named, run_node
from camlucida.maps.incremental.graph import FRESH, LocalGraph, Step
from camlucida.maps.incremental.intervals import Group, groups
from camlucida.maps.incremental.pieces import Piece, Table, raster

SHORT_PRODUCTS = 64.0  # C·O / (C + O) from which Winograd's products pay for their transforms


class Runner:
    """One picture `(1, C, H, W)` in a graph: its clean maps, once; then `run` for edits."""

    def __init__(self, graph: LocalGraph, pixels: Tensor) -> None:
        self.graph = graph
        self.clean: dict[fx.Node, Any] = dict(graph.constants)
        self.tables: dict[fx.Node, Table] = {}
        self.clean[graph.pixels] = pixels
        for node in graph.steps:
            if node is not graph.pixels:
                self.clean[node] = run_node(node, 1, self.clean)
        whole = {n: self.clean[n] for n in graph.boundary}
        self.output = self._rest(whole, 1)
        users = {n: [u for u in n.users if u in graph.steps] for n in graph.steps}
        self.last_use = {n: max(us, key=list(graph.steps).index) if us else n for n, us in users.items()}
        self.alone = {n for n, us in users.items() if len(n.users) == 1}
        self.folded = {
            n: us[0]
            for n, us in users.items()
            if name_of(n) in ("conv2d", "linear")
            and n in self.alone
            and us
            and name_of(us[0]) == "batch_norm"
        }

    def run(
        self, corners: Tensor, contents: Tensor, chunk: int, whole_maps: int, field: float = 1.0
    ) -> Iterator[tuple[Tensor, Any]]:
        """For edits with top-left `corners (P, 2)` and new pixels `contents (C, h, w)` or `(P, C, h, w)`: positions in
        that list, and the network's own output for them."""
        size = (contents.shape[-2], contents.shape[-1])
        waiting: list[tuple[Tensor, dict[fx.Node, Tensor]]] = []
        count = 0
        for group in groups(corners.cpu().numpy(), size, self.graph.steps, chunk, field):
            members = torch.from_numpy(group.members).to(contents.device)
            waiting.append((members, self._windows(group, members, contents)))
            count += len(members)
            if count >= whole_maps:
                yield self._finish(waiting)
                waiting, count = [], 0
        if waiting:
            yield self._finish(waiting)

    def _finish(self, waiting: list[tuple[Tensor, dict[fx.Node, Tensor]]]) -> tuple[Tensor, Any]:
        members = torch.cat([m for m, _ in waiting])
        whole = {n: torch.cat([maps[n] for _, maps in waiting]) for n in self.graph.boundary}
        return members, self._rest(whole, len(members))

    def _rest(self, whole: dict[fx.Node, Tensor], count: int) -> Any:
        """Runs what no window carries, on whole maps."""
        values = {**self.graph.constants, **whole}
        for node in self.graph.rest:
            values[node] = run_node(node, count, values)
        flat = filled(self.graph.output.args[0], values)
        form = self.graph.module._out_spec
        assert form is not None  # an exported module has one
        return pytree.tree_unflatten(list(flat), form)

    def table(self, node: fx.Node) -> Table:
        if node not in self.tables:
            self.tables[node] = Table(self.clean.pop(node), self.graph.steps[node].axes)
        return self.tables[node]

    def _windows(self, group: Group, members: Tensor, contents: Tensor) -> dict[fx.Node, Tensor]:
        """The boundary maps of a group of edits."""
        device = members.device
        pieces: dict[fx.Node, Piece] = {}
        found: dict[fx.Node, Tensor] = {}
        for node, step in self.graph.steps.items():
            top, left = (torch.from_numpy(c).to(device) for c in group.corners[node])
            height, width = group.sides[node]
            if not step.inputs:
                new = contents[members] if contents.ndim == 4 else contents.expand(len(members), -1, -1, -1)
                rows = new.permute(0, 2, 3, 1).reshape(-1, new.shape[1], 1, 1)
                pieces[node] = raster(rows, top, left, height, width)
            elif step.inputs[0] in self.folded and self.folded[step.inputs[0]] is node:
                pieces[node] = pieces[step.inputs[0]]
            elif step.reach:
                pieces[node] = self._reach(step, pieces[step.inputs[0]], top, left, height, width)
            else:
                pieces[node] = self._cells(step, pieces, top, left, height, width)
            if node in self.graph.boundary:
                found[node] = self.table(node).whole(pieces[node])
            for given in step.inputs:
                if self.last_use[given] is node:
                    del pieces[given]
                    if given in self.tables:
                        self.tables[given].holds = None
        for table in self.tables.values():
            table.holds = None
        return found

    def _cells(
        self, step: Step, pieces: dict[fx.Node, Piece], top: Tensor, left: Tensor, height: int, width: int
    ) -> Piece:
        """A step that works cell by cell, on the cells of its inputs in one window."""
        place = pieces[step.inputs[0]]
        given = [pieces[n] for n in step.inputs]
        same = place.sides == (height, width) and all(place.same_place(p) for p in given[1:])
        if same:
            values = {n: p.cells for n, p in zip(step.inputs, given, strict=True)}
        else:
            place = raster(None, top, left, height, width)
            values = {n: self._moved(n, p, place) for n, p in zip(step.inputs, given, strict=True)}
        name = name_of(step.node)
        count = len(values[step.inputs[0]]) if isinstance(values[step.inputs[0]], Tensor) else 0
        if name in ("view", "reshape", "_unsafe_view"):
            made = values[step.inputs[0]].reshape(count, *step.shape[:-2], 1, 1)
        elif name == "linear":
            weight, bias = self._weights(step.node)
            made = F.linear(values[step.inputs[0]], weight, bias)
        elif name == "batch_norm":
            scale, shift = self._affine(step.node)
            made = torch.addcmul(shift[:, None, None], values[step.inputs[0]], scale[:, None, None])
        elif self._in_place(step, same):
            first = values[step.inputs[0]]
            made = first.relu_() if name == "relu" else first.add_(values[step.node.args[1]])  # type: ignore[index]
        else:
            made = run_node(step.node, count, {**self.graph.constants, **values})
        return Piece(made, place.top, place.left, place.by_edit, place.by_row, place.by_column)

    def _in_place(self, step: Step, same: bool) -> bool:
        """Whether a step may overwrite the cells of its first input."""
        node, first = step.node, step.inputs[0]
        if name_of(node) not in ("relu", "add") or node.args[0] is not first or node.kwargs:
            return False
        others = [self.graph.steps.get(n) for n in node.args[1:]]  # type: ignore[arg-type]
        alike = all(o is not None and o.shape == self.graph.steps[first].shape for o in others)
        kept = first not in self.alone or first in self.graph.boundary or name_of(first) not in FRESH
        return alike and not (same and kept)

    def _moved(self, node: fx.Node, piece: Piece, place: Piece) -> Any:
        """The cells of a node in another window."""
        table = self.table(node)
        rows, columns = _span(place.top, len(place.by_row)), _span(place.left, len(place.by_column))
        cells = table.take(piece, rows, columns)
        return cells.view(-1, *piece.cells.shape[1:])

    def _reach(self, step: Step, piece: Piece, top: Tensor, left: Tensor, height: int, width: int) -> Piece:
        """A convolution, pooling or padding, on the cells that its window reads."""
        assert step.reach is not None
        node, name, (down, across) = step.node, name_of(step.node), step.reach
        table = self.table(step.inputs[0])
        first_row, first_column = top * down.stride - down.pad, left * across.stride - across.pad
        if name == "conv2d" and self._short(step):
            return self._short_products(step, piece, table, top, left, height, width)
        if down.kernel == 1 and across.kernel == 1:
            rows, columns = (
                _span(first_row, height, down.stride),
                _span(first_column, width, across.stride),
            )
        else:
            rows = _span(first_row, (height - 1) * down.stride + down.kernel)
            columns = _span(first_column, (width - 1) * across.stride + across.kernel)
        arguments = named(node)
        plain = all((r.kernel, r.stride, r.pad) == (1, 1, 0) for r in step.reach) and name == "conv2d"
        if plain and piece.sides == (height, width):
            cells, place = piece.cells.flatten(1), piece
        else:
            given = table.take(piece, rows, columns, step.outside)
            place, cells = raster(None, top, left, height, width), given
        if name == "conv2d":
            weight, bias = self._weights(node)
            if down.kernel == 1 and across.kernel == 1 and arguments["groups"] == 1:
                made = F.linear(cells.reshape(-1, cells.shape[-1]), weight.flatten(1), bias)
            else:
                strides = (
                    (down.stride, across.stride) if len(rows[0]) > height or len(columns[0]) > width else 1
                )
                cells = cells.view(len(top), rows.shape[1], columns.shape[1], -1)
                maps = F.conv2d(
                    cells.permute(0, 3, 1, 2), weight, bias, strides, 0, arguments["dilation"], arguments["groups"]
                )  # fmt: skip
                made = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
        elif name in ("constant_pad_nd", "pad"):
            made = cells.view(-1, cells.shape[-1])
        else:
            maps = self._pooled(step, arguments, cells.permute(0, 3, 1, 2), top, left, height, width)
            made = maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
        made = made.view(*made.shape, 1, 1)
        return Piece(made, place.top, place.left, place.by_edit, place.by_row, place.by_column)

    def _pooled(
        self,
        step: Step,
        arguments: dict[str, Any],
        maps: Tensor,
        top: Tensor,
        left: Tensor,
        height: int,
        width: int,
    ) -> Tensor:
        assert step.reach is not None
        down, across = step.reach
        kernel, stride = (down.kernel, across.kernel), (down.stride, across.stride)
        if name_of(step.node) == "max_pool2d":
            spans = (
                [arguments["kernel_size"]]
                if isinstance(arguments["kernel_size"], int)
                else arguments["kernel_size"]
            )
            return F.max_pool2d(maps, tuple(spans), stride, 0, arguments["dilation"])
        if name_of(step.node) == "adaptive_avg_pool2d":
            return F.avg_pool2d(maps, kernel, stride)
        sums = F.avg_pool2d(maps, kernel, stride, divisor_override=1)
        if arguments["divisor_override"]:
            return sums / arguments["divisor_override"]
        size = self.graph.steps[step.inputs[0]].size
        counts = []
        for start, number, reach, length in zip((top, left), (height, width), step.reach, size, strict=True):
            begin = _span(start, number) * reach.stride - reach.pad
            end = (begin + reach.kernel).clamp(max=length + reach.pad)
            if not arguments["count_include_pad"]:
                begin, end = begin.clamp(min=0), end.clamp(max=length)
            counts.append((end - begin).to(sums.dtype))
        return sums / (counts[0][:, :, None] * counts[1][:, None])[:, None]

    def _short(self, step: Step) -> bool:
        """Whether Winograd's products are for this convolution."""
        weight = self.graph.constants[named(step.node)["weight"]]
        number, channels, *kernel = weight.shape
        return (
            kernel in ([3, 3], [5, 5])
            and all((r.kernel, r.stride) == (kernel[0], 1) for r in step.reach or ())
            and named(step.node)["groups"] == 1
            and weight.dtype in (torch.float32, torch.float64)
            and weight.device.type == "cpu"
            and channels * number / (channels + number) >= SHORT_PRODUCTS
        )

    def _short_products(
        self, step: Step, piece: Piece, table: Table, top: Tensor, left: Tensor, height: int, width: int
    ) -> Piece:
        assert step.reach is not None
        kernel = step.reach[0].kernel
        weight, bias = self._weights(step.node)
        key = ("winograd", step.node)
        if key not in self.graph.transformed:
            self.graph.transformed[key] = winograd.transformed(weight)
        side, points = winograd.POINTS - kernel + 1, winograd.POINTS
        high, wide = -(-height // side), -(-width // side)
        within = torch.arange(points, device=top.device)

        def tiles(start: Tensor, number: int) -> Tensor:
            begins = torch.arange(number, device=top.device) * side
            return (start[:, None, None] + begins[:, None] + within).flatten(1)

        rows, columns = tiles(top - step.reach[0].pad, high), tiles(left - step.reach[1].pad, wide)
        table.lay(piece)
        table.rows[0] = step.outside
        found = table.find(piece, rows, columns).view(len(top), high, points, wide, points)
        found = found.permute(2, 4, 0, 1, 3).reshape(points * points, -1).int()
        made = winograd.convolve(table.rows, found, self.graph.transformed[key], bias, kernel)
        count = torch.arange(max(len(top), height, width), device=top.device)
        number = found.shape[1]
        y, x = count[:height], count[:width]
        return Piece(
            made.view(*made.shape, 1, 1),
            top,
            left,
            count[: len(top)] * (high * wide),
            (y % side) * side * number + y // side * wide,
            (x % side) * number + x // side,
        )

    def _weights(self, node: fx.Node) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a layer, with the batch normalisation that follows it."""
        arguments, constants = named(node), self.graph.constants
        weight = constants[arguments["weight"]]
        bias = constants[arguments["bias"]] if arguments["bias"] is not None else None
        if node not in self.folded:
            return weight, bias
        if ("folded", node) not in self.graph.transformed:
            scale, shift = self._affine(self.folded[node])
            moved = shift if bias is None else torch.addcmul(shift, bias, scale)
            self.graph.transformed["folded", node] = (
                weight * scale.view(-1, *(1,) * (weight.ndim - 1)),
                moved,
            )
        return self.graph.transformed["folded", node]

    def _affine(self, node: fx.Node) -> tuple[Tensor, Tensor]:
        """Batch normalisation in evaluation as scale and shift."""
        if ("affine", node) not in self.graph.transformed:
            given = named(node)
            parts = ("running_mean", "running_var", "weight", "bias")
            mean, variance, weight, bias = (
                None if given[k] is None else self.graph.constants[given[k]].double() for k in parts
            )
            assert mean is not None  # a batch normalisation without statistics is no step
            assert variance is not None
            scale = (variance + given["eps"]).rsqrt() * (1 if weight is None else weight)
            shift = (0 if bias is None else bias) - mean * scale
            dtype = self.graph.constants[given["running_mean"]].dtype
            self.graph.transformed["affine", node] = (scale.to(dtype), shift.to(dtype))
        return self.graph.transformed["affine", node]


def _span(start: Tensor, count: int, stride: int = 1) -> Tensor:
    """`(B, count)`: positions from each start on."""
    return start[:, None] + torch.arange(count, device=start.device) * stride
