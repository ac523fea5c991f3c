"""What needs no network: figures mean little without these beside them. Constant boxes are in `localization`."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from camlucida.values import Size


def centre_gaussian(size: Size, spread: float = 0.25) -> NDArray[np.float64]:
    """The same map `(H, W)` for every picture: a Gaussian in the middle, 0 to 1, whose standard deviation is this share of
    each side, so that its boxes are centred and have the picture's shape."""
    y = (np.arange(size.height) + 0.5) / size.height - 0.5
    x = (np.arange(size.width) + 0.5) / size.width - 0.5
    return np.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * spread**2))


def random_map(pixels: NDArray[np.float32], seed: int = 0) -> NDArray[np.float32]:
    """A map `(H, W)` of independent uniform numbers, 0 to 1, that hang on the pixels `(C, H, W)` and the seed alone: another
    picture, or the same one masked, gets others; another network the same."""
    drawn = np.random.default_rng([seed, zlib.crc32(np.ascontiguousarray(pixels).tobytes())])
    return drawn.random(pixels.shape[1:], dtype=np.float32)


def edges(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The Sobel edges `(H, W)`, ≥ 0, of the mean over the channels of pixels `(C, H, W)`: what looks like an explanation
    and knows no network ("Sanity Checks for Saliency Maps", section 5.1)."""
    from skimage.filters import sobel

    return sobel(np.asarray(pixels, np.float64).mean(0)).astype(np.float32)
