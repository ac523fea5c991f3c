"""Anything a person may hand over → one upright RGB picture of 8 bits, or an InputError that says why not."""

from __future__ import annotations

import io
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from camlucida.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
MAX_PIXELS = 89_478_485  # Pillow's own line between a large picture and a decompression bomb
MEAN_COLOUR = (124, 116, 104)  # of ImageNet; transparent pixels show it unless the network's card has another

RGB = tuple[int, int, int]

_QUIET = threading.Lock()  # warning filters belong to the process, and pictures are read by many threads

Image.init()  # the decoders of FORMATS; Pillow itself knows fewer until a first picture fails


def read_picture(source: Any, background: RGB = MEAN_COLOUR, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A path, encoded bytes, a PIL picture, an array `(H, W[, 1|3|4])` or a tensor `([1|3|4,] H, W)` →
    upright RGB.

    Numbers: uint8 0…255, uint16 0…65535, floats 0…1. EXIF orientation is applied, alpha is laid onto
    `background`, animated and multi-page files give their first frame. Raises InputError with the reason.
    """
    if isinstance(source, (str, Path)):
        try:
            source = Path(source).read_bytes()
        except OSError as error:
            raise InputError(f"cannot read: {error.strerror or error}") from error
    if isinstance(source, (bytes, bytearray, memoryview)):
        return decode(bytes(source), background, max_pixels)
    if isinstance(source, Image.Image):
        return _upright(source, background)
    if isinstance(source, np.ndarray):
        return _from_array(source, background)
    if hasattr(source, "detach") and hasattr(source, "numpy"):  # a tensor, without importing torch here
        array = source.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
        return _from_array(np.moveaxis(array, 0, -1) if array.ndim == 3 else array, background)
    raise InputError(
        "a picture",
        got=type(source).__name__,
        allowed="a path, bytes, a PIL picture, an array (H, W, 3) or a tensor (3, H, W)",
    )


def decode(data: bytes, background: RGB = MEAN_COLOUR, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Encoded bytes → upright RGB. What does not decode to its end is refused, never partly used."""
    if not data:
        raise InputError("empty file")
    try:
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bomb and odd metadata only warn; the size is judged below
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise InputError("not a picture, or broken in its header", allowed=", ".join(FORMATS)) from None
    except Image.DecompressionBombError as error:
        raise InputError(f"decompression bomb: {error}") from error
    except Exception as error:  # decoders fail in many ways; each becomes this picture's reason
        raise InputError(f"broken picture: {error or type(error).__name__}") from error
    if picture.width * picture.height > max_pixels:
        raise InputError(
            f"decompression bomb: {picture.width} × {picture.height} pixels in {len(data)} bytes",
            allowed=f"up to {max_pixels} pixels",
        )
    return _upright(picture, background)


def _upright(picture: Image.Image, background: RGB) -> Image.Image:
    """Decodes to the end, turns as EXIF says, converts."""
    if 0 in picture.size:
        raise InputError("a picture", got=f"{picture.height} × {picture.width}", allowed="at least 1 × 1")
    try:
        picture.load()
        return _to_rgb(ImageOps.exif_transpose(picture), background)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"broken picture: {error or type(error).__name__}") from error


def _from_array(array: NDArray, background: RGB) -> Image.Image:
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InputError(
            "a picture", got=f"shape {array.shape}", allowed="(H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        )
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = _sixteen_to_eight(array)
    elif np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise InputError(
                "a picture of floats", got=f"values {array.min():g} … {array.max():g}", allowed="0 … 1"
            )
        array = np.rint(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise InputError("a picture", got=f"dtype {array.dtype}", allowed="uint8, uint16, or floats in 0 … 1")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)), background)


def _sixteen_to_eight(array: NDArray) -> NDArray[np.uint8]:
    return np.rint(array.astype(np.float32) / 257).astype(np.uint8)


def _to_rgb(picture: Image.Image, background: RGB) -> Image.Image:
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I;16"):
        return Image.fromarray(_sixteen_to_eight(np.asarray(picture))).convert("RGB")
    if picture.mode in ("I", "F"):
        values = np.asarray(picture, np.float64)
        top = 1.0 if picture.mode == "F" and values.max() <= 1 else 255.0 if values.max() <= 255 else 65535.0
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 65535:
            raise InputError(
                "a grey picture", got=f"values {values.min():g} … {values.max():g}", allowed="0 … 65535"
            )
        return Image.fromarray(np.rint(values / top * 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        seen = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, (*background, 255)), seen).convert("RGB")
    return picture.convert("RGB")
