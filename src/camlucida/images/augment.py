"""Training views and colours: scale jitter, crop, flip, colour shift; and mixing of pictures. Every draw
comes from the generator handed in, so that a picture's fate depends on seed, epoch and index alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camlucida.errors import UsageError
from camlucida.values import Size, View

# Eigenvectors (columns) and eigenvalues of ImageNet's RGB pixels in [0, 1] (VGG paper, section 3.1; AlexNet's
# colour shift).
PCA_VECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32
)
PCA_VALUES = np.array([0.2175, 0.0188, 0.0045], np.float32)


@dataclass(frozen=True)
class Augmentation:
    """`area`: share of the picture a crop covers, drawn uniformly; `ratio`: width over height, log-uniform.
    `scale`: instead of both, the shorter side S to which the picture is first resized, uniform between two whole numbers (VGG paper,
    section 3.1; equal: a fixed scale); then `crops` are cut `any`where, within the central S × S `square`, or at its corners and centre (`five`:
    with flips ZF's ten). `flip`: probability of mirroring; `jitter`: largest relative change of brightness, contrast and
    saturation; `pca`: deviation of the colour shift along the principal components, `pca_vectors` (columns) and
    `pca_values` in [0, 1] (by default ImageNet's); `mixup`, `cutmix`: Beta parameters, 0 = off (one of the two per batch)."""

    area: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    scale: tuple[int, ...] = ()
    crops: Literal["any", "square", "five"] = "any"
    flip: float = 0.5
    jitter: float = 0.0
    pca: float = 0.1
    pca_vectors: tuple[tuple[float, ...], ...] = ()
    pca_values: tuple[float, ...] = ()
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.scale and (len(self.scale) != 2 or not 1 <= self.scale[0] <= self.scale[1]):
            raise UsageError("augmentation: scale", got=self.scale, allowed="smallest and largest side")
        for name, low, high in (("area", 0, 1), ("ratio", 0, math.inf)):
            smallest, largest = getattr(self, name)
            if not low < smallest <= largest <= high:
                raise UsageError(
                    f"augmentation: {name}", got=(smallest, largest), allowed=f"smallest and largest, > 0{', ≤ 1' * (high == 1)}"
                )  # fmt: skip
        for name, high in (
            ("flip", 1),
            ("jitter", 1),
            ("pca", math.inf),
            ("mixup", math.inf),
            ("cutmix", math.inf),
        ):
            if not 0 <= getattr(self, name) <= high:
                raise UsageError(
                    f"augmentation: {name}", got=getattr(self, name), allowed="0 to 1" if high == 1 else "≥ 0"
                )
        if self.crops not in ("any", "square", "five"):
            raise UsageError("augmentation: crops", got=repr(self.crops), allowed="any | square | five")
        shapes = [len(row) for row in self.pca_vectors], len(self.pca_values)
        if shapes not in (([], 0), ([3, 3, 3], 3)):
            raise UsageError(
                "augmentation: pca_vectors, pca_values", got=shapes, allowed="3 × 3 and 3 numbers"
            )


def random_view(rng: np.random.Generator, source: Size, size: int, augmentation: Augmentation) -> View:
    """A random crop of the source shown at `size` × `size`, perhaps mirrored."""
    flip = bool(rng.random() < augmentation.flip)
    if augmentation.scale:
        return _scaled_view(rng, source, size, augmentation, flip)
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


def _scaled_view(
    rng: np.random.Generator, source: Size, size: int, augmentation: Augmentation, flip: bool
) -> View:
    """Shorter side S drawn from `scale`, isotropic, then one crop."""
    low, high = augmentation.scale
    short = int(rng.integers(low, high + 1))
    resized = source.with_short_side(short)
    room = Size(short, short) if augmentation.crops != "any" else resized
    y0, x0 = (resized.height - room.height) // 2, (resized.width - room.width) // 2
    free_y, free_x = room.height - size, room.width - size
    if augmentation.crops == "five":
        places = [(0, 0), (0, free_x), (free_y, 0), (free_y, free_x), (free_y // 2, free_x // 2)]
        top, left = places[int(rng.integers(5))]
    else:
        top, left = int(rng.integers(0, free_y + 1)), int(rng.integers(0, free_x + 1))
    return View(source, resized, (y0 + top, x0 + left, size, size), flip)


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
        vectors, lengths = PCA_VECTORS, PCA_VALUES
        if augmentation.pca_values:
            vectors, lengths = (
                np.array(a, np.float32) for a in (augmentation.pca_vectors, augmentation.pca_values)
            )
        values = values + 255 * (vectors @ (alpha * lengths))
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def fit_pca(pictures: Iterable[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Principal components of all RGB pixels of the pictures (PIL or `(H, W, 3)` uint8), read one after another: unit
    vectors `(3, 3)`, one a column, and the eigenvalues `(3,)` of the covariance of pixels in [0, 1], largest first; those
    of pixels in 0…255 would be 255² times as large. Raises UsageError without pictures."""
    count, total, squares = 0, np.zeros(3), np.zeros((3, 3))
    for picture in pictures:
        pixels = _rgb(picture).reshape(-1, 3)
        count += len(pixels)
        total += pixels.sum(0)
        squares += pixels.T @ pixels  # whole numbers below 2⁵³: exact
    if not count:
        raise UsageError("fitting colours", got="no picture")
    mean = total / count
    values, vectors = np.linalg.eigh((squares / count - np.outer(mean, mean)) / 255**2)
    return vectors[:, ::-1].copy(), np.maximum(values[::-1], 0)


def fit_mean_picture(pictures: Iterable[Any]) -> NDArray[np.uint8]:
    """The mean of every pixel over pictures of one shape (PIL or `(H, W, 3)` uint8), rounded to 0…255, as
    `Preprocessing.subtracting` takes it. Raises UsageError without pictures or for another shape."""
    total, count = np.zeros(0), 0
    for picture in pictures:
        pixels = _rgb(picture)
        if count and pixels.shape != total.shape:
            raise UsageError("the mean picture", got=pixels.shape, allowed=f"one shape, {total.shape}")
        total, count = (total + pixels if count else pixels), count + 1
    if not count:
        raise UsageError("the mean picture", got="no picture")
    return np.floor(total / count + 0.5).astype(np.uint8)


def _rgb(picture: Any) -> NDArray[np.float64]:
    pixels = np.asarray(picture)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise UsageError("a picture", got=f"{pixels.dtype} {pixels.shape}", allowed="RGB, uint8 (H, W, 3)")
    return pixels.astype(np.float64)


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
