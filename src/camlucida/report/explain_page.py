"""What explain shows of a picture: the overlay of a cell, all cells on one sheet, the page."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camlucida import render
from camlucida.report import figures
from camlucida.report import page as pages
from camlucida.report.explain import Cell, Explained, Row
from camlucida.report.explain_cost import duration

ON_PAGE = 384  # longer side of a picture on the page and on the sheet
MEANING = {**figures.MEANING, "ok": "", "refused": "this method does not explain this network"}


def overlay(one: Explained, cell: Cell, low: float, high: float) -> NDArray[np.uint8]:
    """The picture under the cell's map on that scale; a cell without one leaves it grey, with its word on it."""
    if cell.picture is not None:
        return cell.picture
    if cell.is_painted and cell.heat is not None:
        return render.painted(one.picture, cell.heat, low, high)
    grey = render.overlay(one.picture, np.zeros(one.picture.shape[:2], np.float32))
    words = cell.status if cell.status == "refused" else f"{cell.status}: {MEANING[cell.status]}"
    return figures.stamped(grey, words)


def captioned(
    one: Explained, row: Row | None, cell: Cell, low: float, high: float, longest: int
) -> Image.Image:
    """The overlay with its words and its colour bar. `row`: where the class is to be said too."""
    shown = Image.fromarray(overlay(one, cell, low, high))
    if max(shown.size) > longest:
        shown = shown.resize(figures.fitted(*shown.size, longest), Image.Resampling.LANCZOS)
    words = [cell.title + (f" at {cell.layer}" if cell.layer else "")]
    if row is not None:
        words.append(f"{row.label.name.split(',')[0]} {figures.sure(row.probability, row.logit)}")
    if cell.status == "refused":
        words.append(f"refused: {cell.reason}")
    else:
        said = (
            f"{cell.target}, grey is 0 ± {cell.magnitude:.3g}"
            if cell.picture is not None
            else f"{cell.target} {cell.score:.3g}"
        )
        words += [said, f"{cell.status}: {cell.reason}" if cell.reason else cell.status]
    if cell.cost is not None:
        words.append(f"cost {cell.cost}")
    bar = (low, high) if cell.is_painted else None
    return render.captioned(
        np.asarray(shown), plain(" · ".join(words)), bar=bar, colours="signed" if low < 0 else "heat"
    )


def heading(row: Row) -> str:
    """A class in words and numbers: `espresso 93.1 % · logit 12.3 · n07920052 · class 151`."""
    return f"{row.label.name.split(',')[0]} {' · '.join(_numbers(row.probability, row.logit))} · {row.label.id} · class {row.index}"


def _numbers(probability: float | None, logit: float) -> list[str]:
    """The probability, where the network gives one, and the logit."""
    return [*([] if probability is None else [figures.percent(probability)]), f"logit {logit:.3g}"]


def plain(text: str) -> str:
    """What Pillow's built-in font can draw; signs that messages use get a spelling."""
    for sign, plain in (("→", "->"), ("±", "+-"), ("×", "x"), ("−", "-"), ("≥", ">="), ("≤", "<=")):
        text = text.replace(sign, plain)
    return figures.latin(text)


def sheet(
    one: Explained, limits: Callable[[Cell], tuple[float, float]], longest: int = ON_PAGE
) -> Image.Image:
    """All of one picture as one picture: a row per class, the picture first, then its cells."""
    small = Image.fromarray(one.picture)
    small = small.resize(figures.fitted(*small.size, longest), Image.Resampling.LANCZOS)
    rows = []
    for row in one.rows:
        first = render.captioned(np.asarray(small), plain(heading(row)))
        cells = [captioned(one, None, cell, *limits(cell), longest) for cell in row.cells]
        rows.append(render.side_by_side([first, *cells]))
    return render.below(rows, gap=16)


def entry(one: Explained, limits: Callable[[Cell], tuple[float, float]]) -> dict[str, Any]:
    """What the page shows of one picture."""
    return {
        "name": one.source.relative,
        "size": one.size,
        "aspect": f"calc({one.picture.shape[1]} / {one.picture.shape[0]})",
        "picture": _jpeg(one.picture),
        "best": [
            {"name": label.name.split(",")[0], "probability": share, "logit": logit} for label, share, logit in one.best
        ],
        "bare": duration(one.bare),
        "columns": max((len(row.cells) for row in one.rows), default=1),
        "rows": [
            {
                "name": row.label.name, "id": row.label.id, "index": row.index,
                "numbers": " · ".join(_numbers(row.probability, row.logit)).replace("-", "−"),
                "cells": [_cell_entry(one, cell, *limits(cell)) for cell in row.cells],
            }
            for row in one.rows
        ],
    }  # fmt: skip


def _cell_entry(one: Explained, cell: Cell, low: float, high: float) -> dict[str, Any]:
    steps = render.shade(np.linspace(low, high, 15)[None], low, high)[0]
    return {
        "cell": cell,
        "meaning": MEANING.get(cell.status, ""),
        "picture": _jpeg(overlay(one, cell, low, high)),
        "low": low,
        "high": high,
        "bar": ", ".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in steps),
        "zero": 100 * -low / (high - low) if low < 0 < high else None,
    }


def page(
    entries: Sequence[Mapping[str, Any]],
    facts: Iterable[tuple[str, str]],
    command: Sequence[str],
    rejected: Sequence[tuple[str, str]] = (),
) -> str:
    """The whole page, one HTML file that asks nothing of any network and needs no script."""
    reconstructed = any(
        shown["cell"].picture is not None for one in entries for row in one["rows"] for shown in row["cells"]
    )
    signed = any(cell["low"] < 0 for one in entries for row in one["rows"] for cell in row["cells"])
    return (
        pages.environment()
        .get_template("explain.html.j2")
        .render(
            pictures=entries, facts=list(facts), command=pages.command_line(list(command)), rejected=list(rejected), signed=signed,
            reconstructed=reconstructed,
        )
    )  # fmt: skip


def _jpeg(picture: NDArray[np.uint8]) -> str:
    image = Image.fromarray(picture)
    if max(image.size) > ON_PAGE:
        image = image.resize(figures.fitted(*image.size, ON_PAGE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=88, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + pages._base64(stream.getvalue())
