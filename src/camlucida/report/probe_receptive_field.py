"""Figures of receptive fields: nested fields of one cell, and what a unit really sees beside what it could."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from camlucida import render
from camlucida.geometry import Box, Grid, Size, coverage_mean
from camlucida.networks.structure import Layer
from camlucida.probes.receptive_field import Discrepancy, EmpiricalField, field_of
from camlucida.report.faithfulness_curves import COLOURS, DASHES

SHOWN = 8  # fields in one drawing
LONGEST = 288  # longer side of a drawn field
UNSEEN = (128, 128, 128)  # places that too few pictures reach
THEORY, EFFECTIVE = (64, 200, 96), (255, 255, 255)


def drawn(layers: Sequence[Layer]) -> list[Layer]:
    """At most eight layers with different fields, from the smallest to the largest: the outermost modules first (stages before
    what is in them); where these alone are more, evenly spread ones."""
    known = [one for one in layers if one.receptive_field and len(one.size) == 2]
    chosen: dict[tuple[float, ...] | None, Layer] = {}
    for depth in sorted({one.name.count(".") for one in known}):
        level = {one.receptive_field: one for one in known if one.name.count(".") == depth}
        joined = level | chosen
        if len(joined) > SHOWN and len(chosen) > 1:
            break
        chosen = joined
    found = sorted(chosen.values(), key=lambda one: one.receptive_field or ())
    if len(found) > SHOWN:
        found = [found[round(i * (len(found) - 1) / (SHOWN - 1))] for i in range(SHOWN)]
    return found


def middle(layer: Layer) -> tuple[int, int]:
    return layer.size[0] // 2, layer.size[1] // 2


def nested(layers: Sequence[Layer], view: Size, width: int = 560) -> str:
    """SVG: the fields of the middle cell of each layer over the view, to scale; names below."""
    boxes = [(one, box) for one in layers if (box := field_of(one, middle(one))) is not None]
    low_x, low_y = min([0.0, *(b.x0 for _, b in boxes)]), min([0.0, *(b.y0 for _, b in boxes)])
    high_x, high_y = (
        max([view.width, *(b.x1 for _, b in boxes)]),
        max([view.height, *(b.y1 for _, b in boxes)]),
    )
    scale = (width - 20) / max(high_x - low_x, 1.0)
    tall = 20 + scale * (high_y - low_y)

    def rectangle(box: Box, style: str, words: str) -> str:
        x, y = 10 + scale * (box.x0 - low_x), 10 + scale * (box.y0 - low_y)
        w, h = scale * (box.x1 - box.x0), scale * (box.y1 - box.y0)
        return f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" {style}><title>{escape(words)}</title></rect>'

    whole = Box(0, 0, view.width, view.height)
    parts = [
        rectangle(
            whole,
            'fill="currentColor" fill-opacity=".08" stroke="currentColor" stroke-width="3"',
            f"the view, {view}",
        )
    ]
    for i, (one, box) in reversed(list(enumerate(boxes))):
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[(i // len(COLOURS) + i) % len(DASHES)]
        words = f"{one.name}: {_side(one)} pixels, a cell every {one.stride[0]:g}" if one.stride else one.name
        style = f'style="fill: {colour}; fill-opacity: .06; stroke: {colour}" stroke-width="2" stroke-dasharray="{dash}"'
        parts.append(rectangle(box, style, words))
        y = tall + 14 + 18 * i
        parts.append(
            f'<line x1="10" y1="{y - 4:.1f}" x2="38" y2="{y - 4:.1f}" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
            f'<text x="46" y="{y:.1f}">{escape(words)}</text>'
        )
    y = tall + 14 + 18 * len(boxes)
    parts.append(
        f'<rect x="10" y="{y - 10:.1f}" width="28" height="11" fill="currentColor" fill-opacity=".08" stroke="currentColor" stroke-width="3"/><text x="46" y="{y:.1f}">the view, {view} pixels</text>'
    )
    said = escape(
        "Fields of the middle cell: " + "; ".join(f"{one.name} {_side(one)} pixels" for one, _ in boxes)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 12:.0f}" role="img" aria-label="{said}" '
        f'font-family="sans-serif" font-size="13" fill="currentColor">{"".join(parts)}</svg>'
    )


def _side(layer: Layer) -> str:
    height, width = layer.receptive_field or (0, 0)
    return f"{height:g}" if height == width else f"{height:g} × {width:g}"


def field_picture(found: EmpiricalField) -> Image.Image:
    """The mean discrepancy around the peak, black to bright from 0 to its highest value; grey where too few pictures reach; white
    box: at least half of the highest; green: the field by recurrence. Shown as far as the larger of the two goes."""
    theory = None
    if found.theory is not None:
        height, width = found.theory
        theory = Box(-width / 2, -height / 2, width / 2, height / 2)
    boxes = [(box, colour) for box, colour in ((theory, THEORY), (found.box, EFFECTIVE)) if box is not None]
    furthest = max([abs(c) for box, _ in boxes for c in box.corners], default=np.inf) * 1.15
    n, m = (side // 2 for side in found.values.shape)
    down, across = (min(side, np.ceil(furthest / found.stride)) for side in (n, m))
    values = found.values[int(n - down) : int(n + down) + 1, int(m - across) : int(m + across) + 1]
    known = np.isfinite(values)
    rgb = render.colourise(np.where(known, values, 0) / (float(np.nanmax(found.values)) or 1.0), "heat")
    rgb[~known] = UNSEEN
    side = max(1, LONGEST // max(rgb.shape[:2]))
    picture = Image.fromarray(rgb).resize(
        (rgb.shape[1] * side, rgb.shape[0] * side), Image.Resampling.NEAREST
    )
    draw = ImageDraw.Draw(picture)
    for box, colour in boxes:
        at = [
            c * side / found.stride + length / 2
            for c, length in zip(box.corners, picture.size * 2, strict=True)
        ]
        inside = [
            max(0.0, at[0]),
            max(0.0, at[1]),
            min(picture.width - 1.0, at[2]),
            min(picture.height - 1.0, at[3]),
        ]
        draw.rectangle(inside, outline=colour, width=2)
    return picture


def over_view(found: Discrepancy, patch: int, stride: int, shown: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One picture's discrepancy laid over what the network was shown, `(H, W, 3)`: each pixel the mean over the patches that
    covered it."""
    first = float(found.tops[0]) + patch / 2, float(found.lefts[0]) + patch / 2
    grid = Grid(shown.shape[:2], first, (stride, stride), (patch, patch), "places")
    heat = coverage_mean(torch.from_numpy(found.values)[None, None], grid)[0, 0].numpy()
    return render.overlay(shown, heat)
