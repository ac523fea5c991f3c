"""The panels of an occlusion study: the places, what the map and the class lose at each, and which class is the most probable."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from camlucida import render
from camlucida.geometry import Box
from camlucida.probes.occlusion_study import OcclusionStudy

SIDE = 360  # pixels that a panel's picture has at least along its longer side
CLASS_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442")
"""Okabe and Ito's, which stay apart for the colour-blind; the followed class has the first."""
MAP_OPACITY = 0.7
REST = "#8a8a8a"  # all further classes


def enlarged(picture: Image.Image) -> Image.Image:
    """At least `SIDE` pixels, in whole steps."""
    factor = max(1, -(-SIDE // max(picture.size)))
    return picture.convert("RGB").resize(
        (picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC
    )


def places(
    seen: Image.Image, study: OcclusionStudy, boxes: Sequence[Box], colour: tuple[int, int, int]
) -> Image.Image:
    """The enlarged view with its boxes, all places, and the square, in this colour, at the one that costs most."""
    made, grid = seen.copy(), study.grid
    draw, factor = ImageDraw.Draw(made), seen.width / grid.view[1]
    for box in boxes:
        draw.rectangle([c * factor for c in box.corners], outline=render.TRUTH, width=3)
    worst = np.unravel_index(int(study.drop.argmax()), study.drop.shape)
    middle = [(o + s * int(i)) * factor for o, s, i in zip(grid.offset, grid.stride, worst, strict=True)]
    half = [e * factor / 2 for e in grid.extent]
    square = [middle[1] - half[1], middle[0] - half[0], middle[1] + half[1] - 1, middle[0] + half[0] - 1]
    draw.rectangle(square, fill=colour, outline="white", width=2)
    ys, xs = (
        [(o + s * i) * factor for i in range(n)]
        for o, s, n in zip(grid.offset, grid.stride, study.drop.shape, strict=True)
    )
    for y in ys:
        for x in xs:
            draw.ellipse([x - 1.5, y - 1.5, x + 1.5, y + 1.5], fill="white", outline="black")
    return made


def painted(seen: Image.Image, values: NDArray, low: float, high: float, colours: str) -> Image.Image:
    """A map over the pixels of the view, painted on it with its bar; what no square covered stays grey."""
    factor = seen.width // values.shape[1]
    values = np.kron(values, np.ones((factor, factor), np.float32))
    picture = np.asarray(seen)
    known = np.isfinite(values)
    made = render.painted(
        picture,
        np.where(known, values, 0.0 if colours == "signed" else low),
        low,
        high,
        colours=colours,
        opacity=MAP_OPACITY,
    )
    grey = np.repeat(picture.mean(2, keepdims=True), 3, 2).astype(np.uint8)
    return render.captioned(np.where(known[..., None], made, grey), "", bar=(low, high), colours=colours)


def classes(study: OcclusionStudy) -> list[tuple[int | None, str, float]]:
    """Classes with their colours and shares of the places: the followed one first, then the most frequent; None: the rest."""
    counts = Counter(study.best.ravel().tolist())
    ranked = [study.label, *(c for c, _ in counts.most_common() if c != study.label)]
    shown = ranked[: len(CLASS_COLOURS)]
    found: list[tuple[int | None, str, float]] = [
        (c, colour, counts[c] / study.best.size) for c, colour in zip(shown, CLASS_COLOURS, strict=False)
    ]
    rest = sum(counts[c] for c in ranked[len(CLASS_COLOURS) :])
    return [*found, (None, REST, rest / study.best.size)] if rest else found


def class_map(
    seen: Image.Image, study: OcclusionStudy, classes: Sequence[tuple[int | None, str, float]]
) -> NDArray[np.uint8]:
    """Each place's class around its centre, over the grey picture."""
    picture = np.asarray(seen).astype(np.float64)
    table = {c: [int(k[i : i + 2], 16) for i in (1, 3, 5)] for c, k, _ in classes}
    rest = table.get(None, [138, 138, 138])
    colours = np.array([[table.get(c, rest) for c in line] for line in study.best.tolist()], np.float64)
    cells, inside = [], []
    for length, view, o, s, n in zip(
        picture.shape[:2],
        study.grid.view,
        study.grid.offset,
        study.grid.stride,
        study.best.shape,
        strict=True,
    ):
        at = ((np.arange(length) + 0.5) * (view / length) - o) / s
        cells.append(np.clip(np.rint(at), 0, n - 1).astype(np.int64))
        inside.append((at >= -0.5) & (at <= n - 0.5))
    laid = colours[cells[0][:, None], cells[1][None]]
    grey = np.repeat(picture.mean(2, keepdims=True), 3, 2)
    known = (inside[0][:, None] & inside[1][None])[..., None]
    return np.rint(np.where(known, 0.3 * grey + 0.7 * laid, grey)).astype(np.uint8)


def legend(entries: Sequence[tuple[str, str, float]]) -> str:
    """Names beside their colours, with shares of the places."""
    height = 22 * len(entries) + 4
    parts = "".join(
        f'<rect x="2" y="{22 * i + 4}" width="15" height="15" style="fill: {colour}; stroke: none"/>'
        f'<text x="26" y="{22 * i + 16}">{escape(name[:44])} · {share:.1%} of the places</text>'
        for i, (name, colour, share) in enumerate(entries)
    )
    words = escape("Classes: " + "; ".join(f"{name} {share:.1%}" for name, _, share in entries))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 400 {height}" role="img" aria-label="{words}" font-family="sans-serif" '
        f'font-size="12" fill="currentColor">{parts}</svg>'
    )
