"""Measures of faithfulness written out slowly in float64, one picture and one pixel at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Probability = Callable[[NDArray[np.float64]], float]
"""Of the class, on a picture (C, H, W)."""


def falling(heat: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Pixels in falling order, ties in raster order."""
    places = [(y, x) for y in range(heat.shape[0]) for x in range(heat.shape[1])]
    return sorted(places, key=lambda at: -heat[at])


def curve(start: NDArray, end: NDArray, heat: NDArray, at_once: int, probability: Probability) -> list[float]:
    shown, scores, order = start.astype(np.float64).copy(), [], falling(heat)
    scores.append(probability(shown))
    while order:
        for y, x in order[:at_once]:
            shown[:, y, x] = end[:, y, x]
        order = order[at_once:]
        scores.append(probability(shown))
    return scores


def area(scores: list[float]) -> float:
    n = len(scores) - 1
    return sum((scores[i] + scores[i + 1]) / 2 for i in range(n)) / n


def blurred(picture: NDArray, kernel: int, sigma: float) -> NDArray[np.float64]:
    """The unit impulse under a Gaussian cut off at 4 σ, its tails folded back at the ends of the kernel (… c b a | a b c …)
    as often as they reach, over both axes; zeros around the picture."""
    far = int(4 * sigma + 0.5)
    weights = [math.exp(-(d**2) / (2 * sigma**2)) for d in range(-far, far + 1)]
    folded, middle = np.zeros(kernel), kernel // 2
    for d, weight in zip(range(-far, far + 1), weights, strict=True):
        at = (middle + d) % (2 * kernel)
        folded[at if at < kernel else 2 * kernel - 1 - at] += weight / sum(weights)
    channels, height, width = picture.shape
    out = np.zeros(picture.shape)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                for i in range(kernel):
                    for j in range(kernel):
                        row, column = y + i - middle, x + j - middle
                        if 0 <= row < height and 0 <= column < width:
                            out[c, y, x] += folded[i] * folded[j] * picture[c, row, column]
    return out


def unit(heat: NDArray) -> NDArray[np.float64]:
    low, high = float(heat.min()), float(heat.max())
    return np.zeros(heat.shape) if low == high else (heat - low) / (high - low)


def imputed(picture: NDArray, gone: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Every equation written out: a dense system."""
    height, width = gone.shape
    unknown = {place: i for i, place in enumerate(zip(*np.nonzero(gone), strict=True))}
    out = picture.astype(np.float64).copy()
    for c in range(len(picture)):
        system, right = np.zeros((len(unknown), len(unknown))), np.zeros(len(unknown))
        for (y, x), i in unknown.items():
            around = [
                (y + a, x + b, 1 / 6 if a == 0 or b == 0 else 1 / 12)
                for a in (-1, 0, 1)
                for b in (-1, 0, 1)
                if a or b
            ]
            around = [one for one in around if 0 <= one[0] < height and 0 <= one[1] < width]
            whole = sum(weight for _, _, weight in around)
            system[i, i] += 1
            for row, column, weight in around:
                if (row, column) in unknown:
                    system[i, unknown[row, column]] -= weight / whole
                else:
                    right[i] += weight / whole * picture[c, row, column]
        for place, value in zip(unknown, np.linalg.solve(system, right), strict=True):
            out[(c, *place)] = value
    return out  # fmt: skip


def pearson(a: NDArray, b: NDArray) -> float:
    a, b = [float(v) for v in a.ravel()], [float(v) for v in b.ravel()]
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    both = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return both / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def spearman(a: NDArray, b: NDArray) -> float:
    def places(values: list[float]) -> NDArray[np.float64]:
        return np.array([sum(v < one for v in values) + (sum(v == one for v in values) + 1) / 2 for one in values])  # fmt: skip

    return pearson(places([*map(float, a.ravel())]), places([*map(float, b.ravel())]))
