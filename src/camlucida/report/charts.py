"""Charts as SVG text: lines over a numeric axis, in colours and dashes that stay apart without colour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

from camlucida.report.faithfulness_curves import COLOURS, DASHES

LEFT, TOP, RIGHT, BOTTOM, LINE = 56, 14, 14, 40, 17


def lines(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    title: str,
    x_title: str,
    y_title: str,
    *,
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    y_range: tuple[float, float] | None = None,
    marks: bool = False,
    width: int = 400,
    height: int = 260,
) -> str:
    """`series`: name → (x, y), equally long; values that are not finite break the line. `bands`: name → (low, high) of the
    same x, shaded. `y_range`: fixed; otherwise from the values, with zero where it is near. `marks`: a dot at each value.
    The names stand below, in lines. `title` goes to people who cannot see it, with each series' range."""
    shown = {name: (np.asarray(x, float), np.asarray(y, float)) for name, (x, y) in series.items()}
    shaded = {name: (np.asarray(a, float), np.asarray(b, float)) for name, (a, b) in (bands or {}).items()}
    every_x = np.concatenate([x for x, _ in shown.values()] or [np.zeros(1)])
    every_y = np.concatenate(
        [*(y for _, y in shown.values()), *(b for pair in shaded.values() for b in pair)] or [np.zeros(1)]
    )
    every_y = every_y[np.isfinite(every_y)] if np.isfinite(every_y).any() else np.zeros(1)
    x_ticks, y_ticks = ticks(float(every_x.min()), float(every_x.max())), ticks(*(y_range or _span(every_y)))
    x_low, x_high = float(every_x.min()), max(float(every_x.max()), float(every_x.min()) + 1e-9)
    y_low, y_high = y_range or (y_ticks[0], y_ticks[-1])
    across, down = width - LEFT - RIGHT, height - TOP - BOTTOM

    def x_at(value: float) -> float:
        return LEFT + across * (value - x_low) / (x_high - x_low)

    def y_at(value: float) -> float:
        return TOP + down * (y_high - value) / ((y_high - y_low) or 1.0)

    parts = []
    for value in y_ticks:
        if y_low - 1e-9 <= value <= y_high + 1e-9:
            parts.append(
                f'<line x1="{LEFT}" y1="{y_at(value):.1f}" x2="{width - RIGHT}" y2="{y_at(value):.1f}" stroke="currentColor" '
                f'stroke-opacity="{".5" if abs(value) < 1e-12 else ".15"}"/>'
                f'<text x="{LEFT - 6}" y="{y_at(value) + 4:.1f}" text-anchor="end">{_words(value)}</text>'
            )
    for value in x_ticks:
        if x_low - 1e-9 <= value <= x_high + 1e-9:
            parts.append(
                f'<text x="{x_at(value):.1f}" y="{TOP + down + 16}" text-anchor="middle">{_words(value)}</text>'
            )
    parts.append(
        f'<text x="{LEFT + across / 2:.1f}" y="{TOP + down + 33}" text-anchor="middle" opacity=".7">{escape(x_title)}</text>'
    )
    parts.append(
        f'<text transform="translate(13 {TOP + down / 2:.1f}) rotate(-90)" text-anchor="middle" opacity=".7">{escape(y_title)}</text>'
    )
    styles = dict(zip(shown, (_style(i) for i in range(len(shown))), strict=True))
    for name, (low, high) in shaded.items():
        x = shown[name][0]
        edge = [
            f"{x_at(a):.1f},{y_at(b):.1f}"
            for a, b in [*zip(x, high, strict=True), *zip(x[::-1], low[::-1], strict=True)]
            if np.isfinite(b)
        ]
        parts.append(f'<polygon points="{" ".join(edge)}" fill="{styles[name][0]}" fill-opacity=".15"/>')
    for name, (x, y) in shown.items():
        colour, dash = styles[name]
        for piece in _pieces(x, y):
            points = " ".join(f"{x_at(a):.1f},{y_at(b):.1f}" for a, b in piece)
            parts.append(
                f'<polyline fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}" points="{points}"><title>{escape(name)}</title></polyline>'
            )
            if marks or len(piece) == 1:
                parts += [
                    f'<circle cx="{x_at(a):.1f}" cy="{y_at(b):.1f}" r="2.6" fill="{colour}"/>'
                    for a, b in piece
                ]
    below, at = height + 4, LEFT
    for name, (colour, dash) in styles.items() if len(shown) > 1 else ():
        long = 34 + 6.2 * len(name) + 14
        if at + long > width and at > LEFT:
            below, at = below + LINE, LEFT
        parts.append(
            f'<line x1="{at}" y1="{below + 5}" x2="{at + 26}" y2="{below + 5}" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
            f'<text x="{at + 32}" y="{below + 9}">{escape(name)}</text>'
        )
        at += round(long)
    tall = below + LINE + 4 if len(shown) > 1 else height
    ranges = "; ".join(
        f"{name} from {_words(float(y[0]))} to {_words(float(y[-1]))}"
        for name, (_, y) in shown.items()
        if len(y)
    )
    words = escape(f"{title}. {y_title} over {x_title}: {ranges}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {tall}" role="img" aria-label="{words}" font-family="sans-serif" '
        f'font-size="11" fill="currentColor" stroke-linejoin="round">{"".join(parts)}</svg>'
    )


def bars(values: Mapping[str, float], title: str, *, width: int = 400, unit: str = "") -> str:
    """Horizontal bars, one a name, from zero; negative ones in another colour. Values that are not finite are a dash."""
    finite = [v for v in values.values() if math.isfinite(v)]
    low, high = min(0.0, *finite, 0.0), max(0.0, *finite, 0.0)
    left = min(220, 14 + round(6.4 * max((len(name) for name in values), default=0)))
    across = width - left - 64

    def x_at(value: float) -> float:
        return left + across * (value - low) / ((high - low) or 1.0)

    parts = []
    for i, (name, value) in enumerate(values.items()):
        y = 6 + i * (LINE + 5)
        start, end = sorted((x_at(0), x_at(value if math.isfinite(value) else 0)))
        colour = COLOURS[0] if value >= 0 else COLOURS[1]
        said = f"{_words(value)}{unit}" if math.isfinite(value) else "–"
        parts.append(
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{start:.1f}" y="{y}" width="{max(end - start, 0.5):.1f}" height="{LINE}" style="fill: {colour}; stroke: none"/>'
            f'<text x="{x_at(max(value, 0) if math.isfinite(value) else 0) + 6:.1f}" y="{y + 13}">{said}</text>'
        )
    words = escape(f"{title}: " + "; ".join(f"{name} {_words(v)}{unit}" for name, v in values.items()))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {12 + len(values) * (LINE + 5)}" role="img" aria-label="{words}" '
        f'font-family="sans-serif" font-size="11" fill="currentColor">{"".join(parts)}</svg>'
    )


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers from at most `low` to at least `high`, in steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / max(about - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _span(values: NDArray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if 0 < low < 0.5 * high:
        low = 0.0
    return low, high


def _pieces(x: NDArray, y: NDArray) -> Sequence[Sequence[tuple[float, float]]]:
    """The line between values that are not finite."""
    found: list[list[tuple[float, float]]] = [[]]
    for a, b in zip(x, y, strict=True):
        if np.isfinite(b):
            found[-1].append((a, b))
        elif found[-1]:
            found.append([])
    return [piece for piece in found if piece]


def _style(i: int) -> tuple[str, str]:
    return COLOURS[i % len(COLOURS)], DASHES[(i // len(COLOURS) + i) % len(DASHES)]


def _words(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{value:.4g}".replace("-", "−")
