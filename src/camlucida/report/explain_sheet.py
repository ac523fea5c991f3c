"""The contact sheet: every method's map of a class as one tile, with what it cost and how it came out, on one picture that
can be read as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from camlucida import render
from camlucida.report import figures
from camlucida.report.explain import Cell, Explained
from camlucida.report.explain_cost import duration
from camlucida.report.explain_page import MEANING, heading, overlay, plain

TILE, TALL, COLUMNS, GAP, MARGIN = 240, 300, 6, 14, 16  # pixels; tiles side by side
INK, SOFT, WARN = (20, 20, 20), (95, 95, 95), (160, 40, 0)
Line = tuple[str, int, tuple[int, int, int]]
"""Words, the size of their letters in pixels, their colour."""


def contact_sheet(
    one: Explained, limits: Callable[[Cell], tuple[float, float]], facts: Iterable[tuple[str, str]] = ()
) -> Image.Image:
    """All of one picture: for each class its name and numbers, the picture, then a tile per cell. `facts`: what the run was,
    for the head."""
    width = 2 * MARGIN + COLUMNS * TILE + (COLUMNS - 1) * GAP
    name = one.source.relative.rsplit("/", 1)[-1]
    parts = [_text([(name, 22, INK), (" · ".join(f"{k}: {v}" for k, v in facts), 14, SOFT)], width)]
    height, across = one.picture.shape[:2]
    factor = min(TILE / across, TALL / height)
    size = (max(1, round(across * factor)), max(1, round(height * factor)))
    small = Image.fromarray(one.picture).resize(size, Image.Resampling.LANCZOS)
    for row in one.rows:
        words = f"{len(row.cells)} tiles: {summary(row.cells)}"
        tiles = [_tile(small, [(f"{one.size.width} × {one.size.height} pixels", 14, SOFT)])]
        tiles += [_tile(_shown(one, cell, small, *limits(cell)), _lines(cell)) for cell in row.cells]
        parts.append(_text([(heading(row), 18, INK), (words, 14, SOFT)], width))
        parts += [_band(tiles[i : i + COLUMNS], width) for i in range(0, len(tiles), COLUMNS)]
    parts.append(_text([(key(one), 14, SOFT)], width))
    return render.below(parts, gap=GAP)


def summary(cells: Iterable[Cell]) -> str:
    """How many came out how: `19 ok, 1 flat, 2 refused`."""
    return ", ".join(
        f"{count} {word}" for word, count in Counter(cell.status for cell in cells).most_common()
    )


def key(one: Explained) -> str:
    """How to read the costs and the colours."""
    cost = (
        f"Cost: time in forward passes of this picture ({duration(one.bare)} each), then the seconds waited"
    )
    cost += f", for all {len(one.rows)} classes together." if len(one.rows) > 1 else "."
    return (
        f"{cost} Where a map has both signs, orange speaks for the class, blue against it; grey tiles are signed pixels, "
        "grey is zero."
    )


def _shown(one: Explained, cell: Cell, small: Image.Image, low: float, high: float) -> Image.Image:
    if cell.is_painted or cell.picture is not None:
        return Image.fromarray(overlay(one, cell, low, high)).resize(small.size, Image.Resampling.LANCZOS)
    return Image.fromarray(figures.stamped(np.asarray(small.convert("L").convert("RGB")), cell.status))


def _lines(cell: Cell) -> list[Line]:
    found: list[Line] = [(cell.title.replace(",", ", "), 17, INK)]
    if cell.layer:
        found.append((f"at {cell.layer}", 14, SOFT))
    if cell.cost:
        found.append((str(cell.cost), 14, INK))
        if cell.cost.runs:
            found.append((f"runs {cell.cost.runs}", 14, SOFT))
    ok = cell.status == "ok"
    about = cell.reason or MEANING.get(cell.status, "")
    found.append((f"{cell.status}: {about}" if about else cell.status, 14, SOFT if ok else WARN))
    if cell.target:
        found.append((cell.target, 14, SOFT))
    return found


def _tile(picture: Image.Image, lines: Sequence[Line]) -> Image.Image:
    words = _text(lines, TILE, margin=0)
    tile = Image.new("RGB", (TILE, picture.height + 6 + words.height), "white")
    tile.paste(picture, (0, 0))
    tile.paste(words, (0, picture.height + 6))
    return tile


def _band(tiles: Sequence[Image.Image], width: int) -> Image.Image:
    band = Image.new("RGB", (width, max(tile.height for tile in tiles)), "white")
    for i, tile in enumerate(tiles):
        band.paste(tile, (MARGIN + i * (TILE + GAP), 0))
    return band


def _text(lines: Sequence[Line], width: int, margin: int = MARGIN) -> Image.Image:
    """Lines under one another, each broken where it is too long."""
    broken = [
        (text, size, colour)
        for words, size, colour in lines
        if words
        for text in render.wrapped(plain(words), render.font(size), width - 2 * margin)
    ]
    image = Image.new("RGB", (width, sum(_step(size) for _, size, _ in broken) + margin), "white")
    draw, y = ImageDraw.Draw(image), margin
    for text, size, colour in broken:
        draw.text((margin, y), text, fill=colour, font=render.font(size))
        y += _step(size)
    return image


def _step(size: int) -> int:
    return round(size * 1.3)
