"""From map to box by the formulas of section 3, written slowly: flood fill, one threshold after another, all
in Python numbers and lists."""

from __future__ import annotations

import math

Pixel = tuple[int, int]
Corners = tuple[float, float, float, float]

EDGES = [(-1, 0), (1, 0), (0, -1), (0, 1)]
CORNERS = [(-1, -1), (-1, 1), (1, -1), (1, 1)]


def flood_fill(mask: list[list[bool]], connectivity: int) -> list[list[Pixel]]:
    """Components in the order in which reading the mask row by row meets them."""
    height, width = len(mask), len(mask[0])
    seen = [[False] * width for _ in range(height)]
    steps = EDGES + (CORNERS if connectivity == 8 else [])
    found = []
    for y in range(height):
        for x in range(width):
            if not mask[y][x] or seen[y][x]:
                continue
            seen[y][x] = True
            component = [(y, x)]
            for cy, cx in component:  # grows while it is walked
                for dy, dx in steps:
                    ny, nx = cy + dy, cx + dx
                    inside = 0 <= ny < height and 0 <= nx < width
                    if inside and mask[ny][nx] and not seen[ny][nx]:
                        seen[ny][nx] = True
                        component.append((ny, nx))
            found.append(component)
    return found


def bounds(component: list[Pixel]) -> tuple[int, int, int, int]:
    """Half-open x0, y0, x1, y1."""
    ys, xs = [y for y, _ in component], [x for _, x in component]
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def largest_component(heat, threshold: float, connectivity: int = 8, normalise: bool = False):
    """Section 3.1: corners on the map's own grid and the peak inside over the maximum, or None."""
    rows = [[float(v) for v in row] for row in heat]
    values = [v for row in rows for v in row]
    if not all(map(math.isfinite, values)) or min(values) == max(values):
        return None
    if normalise:
        low, high = min(values), max(values)
        rows = [[(v - low) / (high - low) for v in row] for row in rows]
        values = [v for row in rows for v in row]
    if max(values) <= 0:
        return None
    cut = threshold * max(values)
    best: list[Pixel] = []
    for component in flood_fill([[v > cut for v in row] for row in rows], connectivity):
        if len(component) > len(best):
            best = component
    if not best:
        return None
    return bounds(best), max(rows[y][x] for y, x in best) / max(values)


def loop_over_thresholds(heat, thresholds, connectivity: int = 8, normalise: bool = False) -> list[Corners]:
    """A box for each threshold, on the map's own grid; the whole map where there is no component."""
    boxes = []
    for threshold in thresholds:
        found = largest_component(heat, float(threshold), connectivity, normalise)
        boxes.append(found[0] if found else (0, 0, len(heat[0]), len(heat)))
    return boxes


def tight_loose(
    heat, levels=(20, 100, 110), erosion=10.0, overlap=0.5, border=5.0
) -> tuple[Corners, Corners] | None:
    """Section 3.2: (tight, loose) for a map sampled at the picture's pixels, or None if no contour is
    left."""
    rows = [[float(v) for v in row] for row in heat]
    height, width = len(rows), len(rows[0])
    maximum = max(v for row in rows for v in row)
    gray = [[math.floor(max(v, 0.0) / maximum * 255 + 0.5) for v in row] for row in rows]
    boxes = []
    for level in levels:
        mask = [[v > level for v in row] for row in gray]
        background = [(y, x) for y in range(height) for x in range(width) if not mask[y][x]]
        if background:
            depth = [
                [min(math.hypot(y - by, x - bx) for by, bx in background) for x in range(width)]
                for y in range(height)
            ]
            deepest = max(d for row in depth for d in row)
            mask = [[deepest > 0 and d / deepest * 255 > erosion for d in row] for row in depth]
        outer = flood_fill(mask, 8)
        holes = flood_fill([[not inside for inside in row] for row in mask], 4)
        boxes += [bounds(component) for component in sorted(outer, key=len, reverse=True)]
        for hole in sorted(holes, key=len, reverse=True):
            x0, y0, x1, y1 = bounds(hole)
            if x0 > 0 and y0 > 0 and x1 < width and y1 < height:
                boxes.append((x0 - 1, y0 - 1, x1 + 1, y1 + 1))
    limited = [(x0, y0, min(x1, width - border), min(y1, height - border)) for x0, y0, x1, y1 in boxes]
    limited = [b for b in limited if b[2] > b[0] and b[3] > b[1]]
    kept: list[Corners] = []
    for box in sorted(limited, key=_area, reverse=True):
        if all(_shared(box, other) <= overlap * _area(other) for other in kept):
            kept.append(box)
    if not kept:
        return None
    return kept[min(1, len(kept) - 1)], kept[0]


def cut_energy(foreground, background_cost, foreground_cost, colours, smoothness: float) -> float:
    """What a labelling costs: rows of True (foreground) and False; for each pixel its cost on either side; RGB
    colours; neighbours at 8 places (section 4.2)."""
    height, width = len(foreground), len(foreground[0])
    pairs = []
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
                if y + dy < height and 0 <= x + dx < width:
                    square = sum(
                        (a - b) ** 2 for a, b in zip(colours[y][x], colours[y + dy][x + dx], strict=True)
                    )
                    pairs.append((square, math.hypot(dy, dx), foreground[y][x] != foreground[y + dy][x + dx]))
    mean = sum(square for square, _, _ in pairs) / len(pairs)
    cost = sum(smoothness * math.exp(-square / (2 * mean)) / far for square, far, apart in pairs if apart)
    for y in range(height):
        for x in range(width):
            cost += (foreground_cost if foreground[y][x] else background_cost)[y][x]
    return cost


def _area(box: Corners) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _shared(a: Corners, b: Corners) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(wide, 0) * max(high, 0)
