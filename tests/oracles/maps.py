"""The formulas of sections 2, 11 and 19, as loops in float64; nothing here uses the package."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from oracles.geometry import stretched


def cam(features: NDArray[np.float64], weight: NDArray[np.float64], c: int) -> NDArray[np.float64]:
    """Class map `(h, w)` of one picture: features `(K, h, w)`, head weight `(C, K)`, class c (section 2)."""
    channels, height, width = features.shape
    found = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            for k in range(channels):
                found[y, x] += weight[c, k] * features[k, y, x]
    return found


def grad_cam(
    below: Callable[[Tensor], Tensor], above: Callable[[Tensor], Tensor], picture: Tensor, relu: bool = True
) -> NDArray[np.float64]:
    """Grad-CAM `(h, w)` of one picture `(C, H, W)`: `below` gives the activations, `above` makes one number
    of them; both in float64 (section 19)."""
    activations = below(picture.double()[None])
    activations.requires_grad_()
    activations.retain_grad()
    above(activations).sum().backward()
    gradient = activations.grad
    assert gradient is not None
    a, g = activations.detach().numpy()[0], gradient.numpy()[0]
    channels, height, width = a.shape
    found = np.zeros((height, width))
    for k in range(channels):
        alpha = sum(g[k, y, x] for y in range(height) for x in range(width)) / (height * width)
        for y in range(height):
            for x in range(width):
                found[y, x] += alpha * a[k, y, x]
    return np.maximum(found, 0) if relu else found


def occlusion(
    score: Callable[[Tensor], float], picture: Tensor, patch: int, stride: int, fill: float
) -> NDArray[np.float64]:
    """Clean score minus the score of each occluded copy of a picture `(C, H, W)` (section 11)."""
    _, height, width = picture.shape
    rows = list(range(0, height - patch + 1, stride))
    columns = list(range(0, width - patch + 1, stride))
    found = np.zeros((len(rows), len(columns)))
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            copy = picture.clone()
            copy[:, top : top + patch, left : left + patch] = fill
            found[i, j] = score(picture) - score(copy)
    return found


def score_cam(
    score: Callable[[Tensor], float], activations: NDArray[np.float64], picture: Tensor, nothing: float | None = None,
    on_cells: bool = False,
) -> NDArray[np.float64]:  # fmt: skip
    """Score-CAM `(h, w)` before its ReLU, of one picture `(C, H, W)`: `activations (K, h, w)`; `score` of a picture. The
    weights are the softmax of the scores; with `nothing`, the score of the baseline, what lies above it. `on_cells`: masks
    scaled by the extremes of the cells instead of the pixels. Constant channels are left out (section 19)."""
    _, height, width = picture.shape
    scores = {}
    for k, cells in enumerate(activations):
        if cells.max() == cells.min():
            continue
        over = stretched(cells.tolist(), height, width)
        of = cells if on_cells else over
        mask = (over - of.min()) / (of.max() - of.min())
        scores[k] = score(picture * torch.from_numpy(mask))
    total = sum(np.exp(s) for s in scores.values())
    found = np.zeros(activations.shape[1:])
    for k, s in scores.items():
        found += (np.exp(s) / total if nothing is None else s - nothing) * activations[k]
    return found


def ablation_cam(above: Callable[[Tensor], float], activations: Tensor) -> NDArray[np.float64]:
    """Ablation-CAM `(h, w)` before its ReLU: `above` makes a score of activations `(K, h, w)` (section 19)."""
    y = above(activations)
    found = np.zeros(activations.shape[1:])
    for k in range(len(activations)):
        without = activations.clone()
        without[k] = 0
        found += (y - above(without)) / abs(y) * activations[k].numpy()
    return found


def rise_mask(
    cells: NDArray[np.float64], shift: tuple[int, int], height: int, width: int
) -> NDArray[np.float64]:
    """One mask of RISE: s × s cells over s + 1 times ⌈side / s⌉ pixels, of which `height` × `width` from the shift on are
    kept (section 19)."""
    s = len(cells)
    large = stretched(cells.tolist(), (s + 1) * math.ceil(height / s), (s + 1) * math.ceil(width / s))
    return large[shift[0] : shift[0] + height, shift[1] : shift[1] + width]


def rise(
    score: Callable[[Tensor], float], picture: Tensor, masks: Iterable[NDArray[np.float64]], p: float
) -> NDArray[np.float64]:
    """The masks' mean, weighted by the score of the picture `(C, H, W)` behind each, over p."""
    every = list(masks)
    found = np.zeros(picture.shape[1:])
    for mask in every:
        found += score(picture * torch.from_numpy(mask)) * mask
    return found / (len(every) * p)


def saliency(
    score: Callable[[Tensor], float], picture: Tensor, rows: Iterable[int], columns: Iterable[int]
) -> NDArray[np.float64]:
    """max over channels of |∂score/∂pixel| by central differences, for a picture `(C, H, W)` in float64, at
    these rows and columns (section 4.2)."""
    step, rows, columns = 1e-4, list(rows), list(columns)
    found = np.zeros((len(rows), len(columns)))
    for i, y in enumerate(rows):
        for j, x in enumerate(columns):
            for c in range(len(picture)):
                more, less = picture.clone(), picture.clone()
                more[c, y, x] += step
                less[c, y, x] -= step
                found[i, j] = max(found[i, j], abs(score(more) - score(less)) / (2 * step))
    return found


def pixels_reached(module: nn.Module, shape: tuple[int, ...], cell: tuple[int, ...]) -> list[tuple[int, int]]:
    """Per axis the first and last input pixel that a cell's gradient touches, `module` being linear with
    positive weights; `shape (C, *spatial)`."""
    picture = torch.ones(1, *shape, dtype=torch.float64, requires_grad=True)
    output = module.double()(picture)
    output[(0, slice(None), *cell)].sum().backward()
    assert picture.grad is not None
    touched = picture.grad[0].abs().sum(0) > 0
    found = []
    for axis in range(touched.ndim):
        others = tuple(a for a in range(touched.ndim) if a != axis)
        line = torch.nonzero(touched.any(dim=others) if others else touched).flatten()
        found.append((int(line[0]), int(line[-1])))
    return found
