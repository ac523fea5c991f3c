"""Curves of several methods over one axis, as an SVG; each method keeps its colour and dashes on the whole page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 480, 280, 42, 14, 12, 30
COLOURS = ("#b0307c", "#2f7fb5", "#8a7a1f", "#2e8b57", "#c4622d", "#6a5acd")
DASHES = ("", "7 3", "2 3")
GREY = "#808080"
GREY_DASHES = ("1 4", "10 4", "10 3 2 3")


def strokes(names: Sequence[str], baselines: Sequence[str]) -> dict[str, str]:
    """Line attributes by name: methods in colour, baselines in grey."""
    found, methods = {}, 0
    for name in names:
        if name in baselines:
            colour, dash, width = GREY, GREY_DASHES[list(baselines).index(name) % len(GREY_DASHES)], 1.6
        else:
            colour = COLOURS[methods % len(COLOURS)]
            dash, width = DASHES[methods // len(COLOURS) % len(DASHES)], 2.0
            methods += 1
        found[name] = f'fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dash}"'
    return found


def curve_svg(
    curves: Mapping[str, Sequence[float]], names: Sequence[str], baselines: Sequence[str], title: str, ticks: Sequence[str]
) -> str:  # fmt: skip
    """The curves, equally many points each, from the first of the words `ticks` to the last."""
    shown = [name for name in names if name in curves]
    every = np.array([curves[name] for name in shown])
    low, high = min(0.0, float(every.min())), max(0.1, float(every.max()))
    low, high = np.floor(low * 10) / 10, np.ceil(high * 10) / 10
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(share: float) -> float:
        return LEFT + plot_width * share

    def y(value: float) -> float:
        return TOP + plot_height * (high - value) / (high - low)

    parts = []
    spacing = 0.1 if high - low <= 0.6 else 0.2
    for value in np.arange(np.ceil(low / spacing - 1e-9), high / spacing + 1e-9) * spacing:
        strength = ".5" if abs(value) < 1e-9 else ".15"
        parts.append(
            f'<line x1="{LEFT}" y1="{y(value):.1f}" x2="{WIDTH - RIGHT}" y2="{y(value):.1f}" stroke="currentColor" stroke-opacity="{strength}"/>'
            f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{round(value, 1) + 0.0:g}</text>'
        )
    for i, words in enumerate(ticks):
        at = x(i / (len(ticks) - 1)) if len(ticks) > 1 else x(0.5)
        anchor = "middle" if 0 < i < len(ticks) - 1 or len(ticks) == 1 else "start" if i == 0 else "end"
        parts.append(f'<text x="{at:.1f}" y="{TOP + plot_height + 18}" text-anchor="{anchor}">{escape(words)}</text>')  # fmt: skip
    line = strokes(names, baselines)
    for name in shown[::-1]:
        points = [*curves[name]]
        places = [i / (len(points) - 1) for i in range(len(points))] if len(points) > 1 else [0.5]
        drawn = " ".join(f"{x(p):.1f},{y(v):.1f}" for p, v in zip(places, points, strict=True))
        if len(points) == 1:
            drawn = f"{x(0.46):.1f},{y(points[0]):.1f} {x(0.54):.1f},{y(points[0]):.1f}"
        parts.append(f'<polyline {line[name]} points="{drawn}"><title>{escape(name)}</title></polyline>')
    means = "; ".join(f"{name} {np.mean(curves[name]):.3f}" for name in shown)
    words = escape(f"{title}: means {means}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}" font-family="sans-serif" '
        f'font-size="11" fill="currentColor" stroke-linejoin="round">{"".join(parts)}</svg>'
    )


def legend(names: Sequence[str], baselines: Sequence[str]) -> str:
    """The lines with their names, as list items."""
    return "".join(
        f'<li><svg viewBox="0 0 36 8" aria-hidden="true"><line x1="0" y1="4" x2="36" y2="4" {stroke}/></svg>{escape(name)}</li>'
        for name, stroke in strokes(names, baselines).items()
    )
