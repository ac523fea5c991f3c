"""Where maps lie, written slowly: one pixel after another, in Python numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Plane = Sequence[Sequence[float]]


def bilinear(cells: Plane, y: float, x: float) -> float:
    """The value at cell coordinates (0 = centre of the first cell); beyond the outer centres the edge
    repeats."""
    height, width = len(cells), len(cells[0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    v, u = y - top, x - left
    above = (1 - u) * cells[top][left] + u * cells[top][right]
    below = (1 - u) * cells[bottom][left] + u * cells[bottom][right]
    return (1 - v) * above + v * below


def stretched(cells: Plane, height: int, width: int) -> NDArray[np.float64]:
    """The grid of cells laid over a view: cell i of n covers its n-th part."""
    ys = [(row + 0.5) * len(cells) / height - 0.5 for row in range(height)]
    xs = [(column + 0.5) * len(cells[0]) / width - 0.5 for column in range(width)]
    return np.array([[bilinear(cells, y, x) for x in xs] for y in ys])


def at_receptive_fields(
    cells: Plane, height: int, width: int, offset: tuple[float, float], stride: tuple[float, float]
) -> NDArray[np.float64]:
    """Cell (i, j) at its own centre, offset + i · stride."""
    ys = [(row + 0.5 - offset[0]) / stride[0] for row in range(height)]
    xs = [(column + 0.5 - offset[1]) / stride[1] for column in range(width)]
    return np.array([[bilinear(cells, y, x) for x in xs] for y in ys])


def in_source(
    cells: Plane,
    source: tuple[int, int],
    resized: tuple[int, int],
    crop: tuple[int, int, int, int],
    flip: bool,
    sampled: tuple[int, int] | None = None,
) -> NDArray[np.float64]:
    """The grid stretched over a view, seen from the source picture (on `sampled` points, default its
    pixels)."""
    top, left, height, width = crop
    rows, columns = sampled or source
    out = np.zeros((rows, columns))
    for row in range(rows):
        y = (row + 0.5) / rows * resized[0] - top
        for column in range(columns):
            x = (column + 0.5) / columns * resized[1] - left
            if 0 < y < height and 0 < x < width:
                x = width - x if flip else x
                out[row, column] = bilinear(
                    cells, y / height * len(cells) - 0.5, x / width * len(cells[0]) - 0.5
                )
    return out


def coverage_mean(
    places: Plane, height: int, width: int, patch: tuple[int, int], stride: tuple[int, int]
) -> NDArray[np.float64]:
    """Each pixel: the mean over the squares that covered it; 0 where none did."""
    total, count = np.zeros((height, width)), np.zeros((height, width))
    for i, line in enumerate(places):
        for j, value in enumerate(line):
            for y in range(i * stride[0], i * stride[0] + patch[0]):
                for x in range(j * stride[1], j * stride[1] + patch[1]):
                    total[y, x] += value
                    count[y, x] += 1
    return total / np.maximum(count, 1)
