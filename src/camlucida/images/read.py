"""Anything a person may hand over → one upright RGB picture of 8 bits, or an InputError that says why not."""

from __future__ import annotations

import ctypes
import io
import logging
import re
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from camlucida.errors import InputError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
MAX_PIXELS = 89_478_485  # Pillow's own line between a large picture and a decompression bomb
SEVERAL = "first of several frames"  # in the `info` of a picture whose file holds more; what tables say
MEAN_COLOUR = (124, 116, 104)  # of ImageNet; transparent pixels show it unless the network's card has another

RGB = tuple[int, int, int]
R = TypeVar("R")

_QUIET = threading.Lock()  # warning filters belong to the process, and pictures are read by many threads

Image.init()  # the decoders of FORMATS; Pillow itself knows fewer until a first picture fails
logging.getLogger("PIL").addHandler(
    logging.NullHandler()
)  # what it says of a broken file is that file's reason


def _quiet_libtiff() -> None:
    """Takes from the libtiff inside Pillow its habit of printing errors to stderr; Pillow raises them as well."""
    installed = Path(PIL.__file__).parent
    for place in (installed.parent / "pillow.libs", installed / ".dylibs"):
        for file in place.glob("libtiff*"):
            try:
                quiet = ctypes.CDLL(str(file)).TIFFSetErrorHandler
            except (OSError, AttributeError):  # another build: it will be noisy, not wrong
                continue
            quiet.argtypes, quiet.restype = [ctypes.c_void_p], ctypes.c_void_p
            quiet(None)


_quiet_libtiff()


def read_picture(source: Any, background: RGB = MEAN_COLOUR, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A path, encoded bytes, a PIL picture, an array `(H, W[, 1|3|4])` or a tensor `([1|3|4,] H, W)` →
    upright RGB.

    Numbers: uint8 0…255, uint16 0…65535, floats 0…1. EXIF orientation is applied, alpha is laid onto
    `background`, animated and multi-page files give their first frame, and `info[SEVERAL]` is set. Raises
    InputError with the reason, also above `max_pixels`.
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
        with _undisturbed(max_pixels):
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            if picture.format != "PNG":  # there it lies behind the pixels
                picture.getexif().get(0x0112)  # parsed here, where odd metadata may warn
            small = picture.width * picture.height <= max_pixels
            several = small and _has_several(picture, data)
            if small and picture.format == "TIFF":
                picture.load_prepare()  # asks for the limit of pixels once more
    except UnidentifiedImageError:
        raise InputError("not a picture, or broken in its header", allowed=", ".join(FORMATS)) from None
    except Image.DecompressionBombError:  # above twice the limit
        raise _bomb("far too many pixels", data, max_pixels) from None
    except Exception as error:  # decoders fail in many ways; each becomes this picture's reason
        raise InputError(f"broken picture: {error or type(error).__name__}") from error
    if not small:
        raise _bomb(f"{picture.width} × {picture.height} pixels", data, max_pixels)
    kind = picture.format
    if kind == "PNG":
        _check_png(data)
    upright = _upright(picture, background)
    if kind == "JPEG" and _ends_early(data, picture):
        raise InputError("broken picture: the file ends before its pixels do")
    if several:
        upright.info[SEVERAL] = True
    return upright


def _bomb(size: str, data: bytes, max_pixels: int) -> InputError:
    return InputError(
        f"decompression bomb: {size} in {len(data)} bytes",
        allowed=f"up to {max_pixels} pixels",
        do="raise --max-pixels for pictures that you trust",
    )


@contextmanager
def _undisturbed(max_pixels: int) -> Iterator[None]:
    """Pillow without its warnings, and with this limit of pixels, which it does not take for one picture alone."""
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _has_several(picture: Image.Image, data: bytes) -> bool:
    """Whether an animation or pages follow the first frame. Previews that cameras put into a JPEG are neither."""
    if picture.format in ("JPEG", "MPO"):
        return False
    if picture.format == "GIF":  # asked of a second reader: the question moves the first one on
        picture = Image.open(io.BytesIO(data), formats=("GIF",))
    try:
        return bool(getattr(picture, "is_animated", False))
    except Exception:  # what follows the first frame is broken: nobody can say that it is one
        return False


def _check_png(data: bytes) -> None:
    """Pillow does not compare the checksums of a PNG's pixels. Raises InputError where one is wrong."""
    view, at = memoryview(data), 8
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(view[at : at + 4])
        kind = view[at + 4 : at + 8]
        if kind == b"IDAT" and zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise InputError("broken picture: wrong checksum of its pixels")
        if kind == b"IEND":
            return
        at = end + 4


_END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_MISSING = ({128}, {127}, {127, 128})  # the grey of blocks that never came, as bands of the last pixel


def _ends_early(data: bytes, picture: Image.Image) -> bool:
    """Whether a JPEG of one scan ends before its last block. The decoder then paints the rest grey and says
    nothing. Asked where the last pixel is that grey: read again with zeros instead of what ended the scan, a
    whole picture stays as it is and a cut one lacks data."""
    last: Any = picture.getpixel((picture.width - 1, picture.height - 1))
    if set(last if isinstance(last, tuple) else (last,)) not in _MISSING or "progressive" in picture.info:
        return False
    at = 2
    while data[at + 1] != 0xDA:  # segment by segment to the scan
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])
    end = _END_OF_SCAN.search(data, at + 2 + int.from_bytes(data[at + 2 : at + 4]))
    if end is None or data[at + 4] != len(picture.getbands()):
        return False
    try:
        with _undisturbed(picture.width * picture.height):
            again = Image.open(io.BytesIO(data[: end.start()] + bytes(32)), formats=("JPEG",))
        return again.tobytes() != picture.tobytes()
    except OSError:
        return True


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


def ahead(
    pool: ThreadPoolExecutor, read: Callable[[Any], R], pictures: Iterable[Any], most: int
) -> Iterator[R]:
    """What is read of each picture, in order; at most so many before they are asked for."""
    rest, waiting = iter(pictures), deque[Future[R]]()
    waiting.extend(pool.submit(read, one) for one in islice(rest, most))
    while waiting:
        first = waiting.popleft().result()
        waiting.extend(pool.submit(read, one) for one in islice(rest, 1))
        yield first
