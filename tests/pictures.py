"""Pictures of known pixels, as files: encoded in every format and turned in every way a camera turns them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ORIENTATION = 0x0112

# EXIF orientation → the upright pixels of those stored.
UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: np.rot90,
}


def stored_for(upright: NDArray, orientation: int) -> NDArray:
    """The pixels to store so that a reader who turns them sees `upright`."""
    return UPRIGHT[{6: 8, 8: 6}.get(orientation, orientation)](upright)


def colours(height: int = 45, width: int = 61, seed: int = 0) -> NDArray[np.uint8]:
    """Noise, so that no mirror image or turn of it looks like itself."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def smooth(height: int = 45, width: int = 61) -> NDArray[np.uint8]:
    """Slow gradients, which JPEG and WebP keep within a few levels."""
    y, x = np.mgrid[:height, :width]
    return (
        np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 2], -1)
        .clip(0, 255)
        .astype(np.uint8)
    )


def encoded(
    pixels: NDArray | Image.Image, kind: str, orientation: int | None = None, **options: Any
) -> bytes:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.ascontiguousarray(pixels))
    if orientation is not None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif.tobytes() if kind != "TIFF" else exif
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()
