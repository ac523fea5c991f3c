"""Convolutions of stride 1 by Winograd's short products (Lavin and Gray, 2016), on rows of cells.

Tiles of 6 × 6 inputs give 4 × 4 outputs of a 3 × 3 kernel by 36 products instead of 144, or 2 × 2 of a 5 × 5 kernel by 36
instead of 100. The result is that of the convolution to float rounding.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

POINTS = 6  # tile side: outputs + kernel − 1
INTERPOLATED = (Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-2))  # and infinity
BLOCK = 4096  # tiles times channels that are transformed at once: they stay in the processor's cache


@cache
def matrices(kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of inputs `(6, 6)`, weights `(6, kernel)` and products `(outputs, 6)`, float64: Toom and Cook's interpolation.

    `outputs = A · (G·w ⊙ B·x)`: evaluated at five points and infinity, and interpolated, transposed.
    """
    outputs = POINTS - kernel + 1
    points, last = INTERPOLATED, POINTS - 1

    # The polynomial (x − p) over all finite points, and over all but one of them.
    def product(roots: list[Fraction]) -> list[Fraction]:
        found = [Fraction(1)]
        for r in roots:
            found = [a - r * b for a, b in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)]
        return found  # from the constant upwards

    data, weights, results = [], [], []
    for i, p in enumerate(points):
        others = [q for j, q in enumerate(points) if j != i]
        scale = Fraction(1)
        for q in others:
            scale *= p - q
        data.append([*product(others), Fraction(0)])
        weights.append([p**k / scale for k in range(kernel)])
        results.append([p**k for k in range(outputs)])
    data.append(product(list(points)))
    weights.append([Fraction(int(k == kernel - 1)) for k in range(kernel)])
    results.append([Fraction(int(k == outputs - 1)) for k in range(outputs)])
    assert len(data) == last + 1
    b, g, a = (
        torch.tensor([[float(v) for v in row] for row in m], dtype=torch.float64)
        for m in (data, weights, results)
    )
    return b, g, a.T.contiguous()


def transformed(weight: Tensor) -> Tensor:
    """Weights `(O, C, k, k)` → `(36, C, O)`."""
    _, g, _ = matrices(weight.shape[2])
    g = torch.kron(g, g).to(weight.device)
    made = (weight.double().flatten(2) @ g.T).to(weight.dtype)
    return made.permute(2, 1, 0).contiguous()


def convolve(table: Tensor, rows: Tensor, weight: Tensor, bias: Tensor | None, kernel: int) -> Tensor:
    """Convolution of tiles: `rows (36, T)` says where the cells of each tile lie in `table (R, C)`; `weight` as
    `transformed` gives it. → `(outputs² · T, O)`, first all tiles' first output."""
    b, _, a = (m.to(table.device, table.dtype) for m in matrices(kernel))
    into, out_of = torch.kron(b, b), torch.kron(a, a)
    tiles, channels, number = rows.shape[1], table.shape[1], weight.shape[2]
    spread = table.new_empty(len(into), tiles, channels)
    step = max(8, BLOCK // channels)
    for start in range(0, tiles, step):
        part = rows[:, start : start + step]
        cells = table.index_select(0, part.reshape(-1)).view(len(into), -1)
        shape = (len(into), cells.shape[1])
        torch.mm(into, cells, out=spread.as_strided(shape, (tiles * channels, 1), start * channels))
    products = torch.bmm(spread, weight)
    made = table.new_empty(len(out_of), tiles, number)
    step = max(8, BLOCK // number)
    for start in range(0, tiles, step):
        shape = (len(into), min(step, tiles - start) * number)
        offset, stride = start * number, (tiles * number, 1)
        part = products.as_strided(shape, stride, offset)
        torch.mm(out_of, part, out=made.as_strided((len(out_of), shape[1]), stride, offset))
    made = made.view(-1, number)
    return made if bias is None else made.add_(bias)
