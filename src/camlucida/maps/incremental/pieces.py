"""The changed part of a step's map, for a batch of edits, as rows of cells; and where each cell lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HEAD = 1  # a table's first row is what lies beyond the border


@dataclass
class Piece:
    """`cells`: a tensor (or several) of the step's rank, one row a cell, height and width 1. The cell of edit `b` at
    row `y` and column `x` of its window, which begins at `top[b], left[b]`, is number
    `by_edit[b] + by_row[y] + by_column[x]`."""

    cells: Any
    top: Tensor
    left: Tensor
    by_edit: Tensor
    by_row: Tensor
    by_column: Tensor

    @property
    def sides(self) -> tuple[int, int]:
        return len(self.by_row), len(self.by_column)

    def same_place(self, other: Piece) -> bool:
        """Whether the two windows, and the order of their cells, are the same."""
        return self is other or all(
            torch.equal(getattr(self, name), getattr(other, name))
            for name in ("top", "left", "by_edit", "by_row", "by_column")
        )


def raster(cells: Any, top: Tensor, left: Tensor, height: int, width: int) -> Piece:
    """Edit after edit, row after row."""
    count = torch.arange(max(len(top), height, width), device=top.device)
    return Piece(
        cells, top, left, count[: len(top)] * (height * width), count[:height] * width, count[:width]
    )


class Table:
    """The cells of one map as rows: one for what lies beyond the border, the clean map, then the changed windows of
    the edits at hand."""

    def __init__(self, clean: Tensor, axes: tuple[int, int]) -> None:
        """`clean`: the map of the intact picture, batch of one."""
        self.axes, self.shape = axes, clean.shape
        self.height, self.width = clean.shape[axes[0]], clean.shape[axes[1]]
        self.others = [d for d in range(1, clean.ndim) if d not in axes]
        rows = clean.permute(0, *axes, *self.others).reshape(self.height * self.width, -1)
        self.first_new = HEAD + len(rows)
        self.rows = torch.cat([torch.zeros_like(rows[:HEAD]), rows])
        self.holds: Piece | None = None

    def lay(self, piece: Piece) -> None:
        """Puts the windows of a batch of edits into the table."""
        if self.holds is piece:
            return
        cells = piece.cells.reshape(len(piece.cells), -1)
        needed = self.first_new + len(cells)
        if len(self.rows) < needed:
            grown = self.rows.new_empty(needed, self.rows.shape[1])
            grown[: self.first_new] = self.rows[: self.first_new]
            self.rows = grown
        self.rows[self.first_new : needed] = cells
        self.holds = piece

    def find(self, piece: Piece, rows: Tensor, columns: Tensor) -> Tensor:
        """Where the cells at `rows (B, h)` and `columns (B, w)` of the map lie for each edit: `(B, h, w)`."""
        y, x = rows - piece.top[:, None], columns - piece.left[:, None]
        height, width = piece.sides
        new = (self.first_new + piece.by_edit)[:, None] + piece.by_row[y.clamp(0, height - 1)]
        new_at = new[:, :, None] + piece.by_column[x.clamp(0, width - 1)][:, None]
        clean = (HEAD + rows * self.width)[:, :, None] + columns[:, None]
        changed = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None]
        found = torch.where(changed, new_at, clean)
        inside_y, inside_x = (rows >= 0) & (rows < self.height), (columns >= 0) & (columns < self.width)
        if not (bool(inside_y.all()) and bool(inside_x.all())):
            found.masked_fill_(~(inside_y[:, :, None] & inside_x[:, None]), 0)
        return found

    def take(self, piece: Piece, rows: Tensor, columns: Tensor, outside: float = 0.0) -> Tensor:
        """The cells there, `(B, h, w, …)`."""
        self.lay(piece)
        self.rows[0] = outside
        found = self.find(piece, rows, columns)
        return self.rows.index_select(0, found.view(-1)).view(*found.shape, -1)

    def whole(self, piece: Piece) -> Tensor:
        """The whole map of each edit, `(B, …)` as the network has it."""
        count = torch.arange(max(self.height, self.width), device=piece.top.device).expand(len(piece.top), -1)
        cells = self.take(piece, count[:, : self.height], count[:, : self.width])
        cells = cells.view(*cells.shape[:3], *(self.shape[d] for d in self.others))
        order = [0, *self.axes, *self.others]
        return cells.permute([order.index(d) for d in range(len(order))])
