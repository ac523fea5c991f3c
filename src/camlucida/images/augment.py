"""Training views and colours: scale jitter, crop, flip, colour shift; and mixing of pictures. Every draw
comes from the generator handed in, so that a picture's fate depends on seed, epoch and index alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camlucida.values import Size, View

# Eigenvectors (columns) and eigenvalues of ImageNet's RGB pixels in [0, 1] (VGG paper, section 3.1; AlexNet's
# colour shift).
PCA_VECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32
)
PCA_VALUES = np.array([0.2175, 0.0188, 0.0045], np.float32)


@dataclass(frozen=True)
class Augmentation:
    """`area`: share of the picture a crop covers, drawn uniformly; `ratio`: width over height, log-uniform;
    `flip`: probability of mirroring; `jitter`: largest relative change of brightness, contrast and
    saturation; `pca`: deviation of the colour shift along the principal components; `mixup`, `cutmix`: Beta
    parameters, 0 = off (one of the two per batch)."""

    area: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.0
    pca: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0


def random_view(rng: np.random.Generator, source: Size, size: int, augmentation: Augmentation) -> View:
    """A random crop of the source shown at `size` × `size`, perhaps mirrored."""
    flip = bool(rng.random() < augmentation.flip)
    low, high = (math.log(r) for r in augmentation.ratio)
    for _ in range(10):
        area = rng.uniform(*augmentation.area) * source.height * source.width
        ratio = math.exp(rng.uniform(low, high))
        width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if width <= source.width and height <= source.height:
            break
    else:
        width = height = float(min(source.height, source.width))
    resized = Size(
        max(size, round(source.height * size / height)), max(size, round(source.width * size / width))
    )
    top, left = (
        int(rng.integers(0, resized.height - size + 1)),
        int(rng.integers(0, resized.width - size + 1)),
    )
    return View(source, resized, (top, left, size, size), flip)


def colour_shift(
    rng: np.random.Generator, pixels: NDArray[np.uint8], augmentation: Augmentation
) -> NDArray[np.uint8]:
    """`(H, W, 3)` with brightness, contrast and saturation jittered and all pixels moved along the RGB
    components."""
    if not augmentation.jitter and not augmentation.pca:
        return pixels
    values = pixels.astype(np.float32)
    if augmentation.jitter:
        brightness, contrast, saturation = rng.uniform(
            1 - augmentation.jitter, 1 + augmentation.jitter, 3
        ).astype(np.float32)
        grey = values @ np.array([0.299, 0.587, 0.114], np.float32)
        values = saturation * values + (1 - saturation) * grey[..., None]
        values = brightness * (contrast * values + (1 - contrast) * grey.mean())
    if augmentation.pca:
        alpha = rng.normal(0, augmentation.pca, 3).astype(np.float32)
        values = values + 255 * (PCA_VECTORS @ (alpha * PCA_VALUES))
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def mix(
    rng: np.random.Generator, pixels: Tensor, truth: Tensor, augmentation: Augmentation
) -> tuple[Tensor, Tensor]:
    """Mixes each picture of a batch `(N, C, H, W)` with another, and its soft labels `(N, classes)` likewise:
    mixup blends, cutmix pastes a rectangle; where both are on, one of the two is drawn per batch."""
    kinds = [k for k in ("mixup", "cutmix") if getattr(augmentation, k) > 0]
    if not kinds:
        return pixels, truth
    kind = kinds[int(rng.integers(len(kinds)))]
    share = float(rng.beta(getattr(augmentation, kind), getattr(augmentation, kind)))
    other = torch.from_numpy(rng.permutation(len(pixels))).to(pixels.device)
    if kind == "mixup":
        return share * pixels + (1 - share) * pixels[other], share * truth + (1 - share) * truth[other]
    height, width = pixels.shape[2:]
    side = math.sqrt(1 - share)
    cy, cx = rng.uniform(0, height), rng.uniform(0, width)
    y0, y1 = (int(np.clip(round(cy + s * side * height / 2), 0, height)) for s in (-1, 1))
    x0, x1 = (int(np.clip(round(cx + s * side * width / 2), 0, width)) for s in (-1, 1))
    pasted = pixels.clone()
    pasted[:, :, y0:y1, x0:x1] = pixels[other, :, y0:y1, x0:x1]
    kept = 1 - (y1 - y0) * (x1 - x0) / (height * width)
    return pasted, kept * truth + (1 - kept) * truth[other]
