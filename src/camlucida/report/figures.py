"""What was seen, as pictures: one class's map over its picture, and a picture beside its maps."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from camlucida import render
from camlucida.errors import UsageError
from camlucida.pipeline import Seen
from camlucida.values import Localization, between_cells

LONGEST, SHORTEST = 1024, 320
OVERLAY = 384  # longer side of the overlays and of the page's pictures in a result folder: they are many
PAINTED = ("ok", "whole-picture")
MEANING = {
    "ok": "a map with a region above the threshold",
    "flat": "the map has one value everywhere",
    "all-negative": "no value of the map is above zero: nothing speaks for this class",
    "no-gradient": "no gradient of this class reaches the layer",
    "non-finite": "the map holds NaN or infinite values",
    "whole-picture": "no region of the map rose above the threshold, so the box is the whole picture",
}


def sheet(seen: Seen, rank: int, *, longest: int = LONGEST) -> Image.Image:
    """The picture, its longer side at most `longest` pixels, under the map of the class of that `rank`, with
    the found boxes (red), the given ones (green), a caption and a colour bar in the map's own units. A map
    that has nothing to show leaves the picture grey with its status printed on it. Raises UsageError for a
    rank that was not localized."""
    found, heat = of_rank(seen, rank)
    picture, factor = sized(seen.picture, longest)
    return _sheet(seen, found, heat, picture, factor, render.overlays(picture))


def sheets(
    seen: Seen, *, longest: int = LONGEST, small: Image.Image | None = None
) -> Iterator[tuple[int, Image.Image]]:
    """The rank and the `sheet` of every localized class, the picture made ready once. `small`: the picture, no
    longer than `longest`, where it is there already."""
    picture, _ = sized(seen.picture if small is None else small, longest)
    factor = max(picture.shape[:2]) / max(seen.picture.size)
    lay = render.overlays(picture)
    for found, heat in zip(seen.found, seen.maps, strict=True):
        yield found.rank, _sheet(seen, found, heat, picture, factor, lay)


def _sheet(
    seen: Seen, found: Localization, heat: NDArray, picture: NDArray[np.uint8], factor: float,
    lay: Callable[[NDArray], NDArray[np.uint8]],
) -> Image.Image:  # fmt: skip
    boxes = [[c * factor for c in scored.box.corners] for scored in found.boxes]
    truth = [[c * factor for c in box.corners] for box in seen.truth]
    caption = latin(f"{found.class_name} {sure(found.probability, found.logit)} · {found.status}")
    if not paintable(found, heat):
        words = latin(f"{found.status}: {MEANING.get(found.status, 'no map to show')}")
        grey = stamped(lay(np.zeros(picture.shape[:2], np.float32)), words)
        return render.captioned(grey, caption, boxes=boxes, truth=truth)
    shown = lay(stretched(heat, picture.shape[0], picture.shape[1]))
    bar = (min(0.0, float(heat.min())), float(heat.max()))
    return render.captioned(shown, caption, boxes=boxes, truth=truth, bar=bar)


def row(seen: Seen, *, longest: int = 384) -> Image.Image:
    """The picture with its given boxes, then the sheet of every localized class, side by side."""
    picture, factor = sized(seen.picture, longest)
    truth = [[c * factor for c in box.corners] for box in seen.truth]
    name = latin(seen.source.relative.rsplit("/", 1)[-1])
    plain = render.captioned(picture, f"{name} · {seen.picture.width} x {seen.picture.height}", truth=truth)
    return render.side_by_side([plain, *(shown for _, shown in sheets(seen, longest=longest))])


def of_rank(seen: Seen, rank: int) -> tuple[Localization, NDArray[np.float32]]:
    """The class of that rank and its raw map `(h, w)`."""
    for found, heat in zip(seen.found, seen.maps, strict=True):
        if found.rank == rank:
            return found, heat
    ranks = ", ".join(str(found.rank) for found in seen.found) or "none"
    raise UsageError(f"rank of {seen.source.name}", got=rank, allowed=ranks)


def paintable(found: Localization, heat: NDArray) -> bool:
    """Whether the map may be painted: its status allows it, it is finite and somewhere above zero."""
    return (
        found.status in PAINTED and heat.size > 0 and bool(np.isfinite(heat).all()) and float(heat.max()) > 0
    )


def stretched(heat: NDArray, height: int, width: int) -> NDArray[np.float32]:
    """A map `(h, w)` laid over `(height, width)` pixels: bilinear between cell centres, edges repeated."""
    down, across = _weights(height, heat.shape[0]), _weights(width, heat.shape[1])
    return down @ (np.asarray(heat, np.float32) @ across.T)


@lru_cache(maxsize=64)
def _weights(pixels: int, cells: int) -> NDArray[np.float32]:
    """`(pixels, cells)`: the share of each cell in a pixel, on an axis that both cover."""
    low, high, share = between_cells((np.arange(pixels) + 0.5) * (cells / pixels) - 0.5, cells)
    weights, every = np.zeros((pixels, cells), np.float32), np.arange(pixels)
    weights[every, low] = 1 - share
    weights[every, high] += share
    return weights


def sure(probability: float | None, logit: float | None) -> str:
    """How sure the network is: in percent, or its own number where it gives no probabilities."""
    return percent(probability) if probability is not None or logit is None else f"{logit:.3g}"


def percent(share: float | None) -> str:
    """A probability as people read it: `87.3 %`."""
    if share is None or not np.isfinite(share):
        return "–"
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def fitted(width: int, height: int, longest: int) -> tuple[int, int]:
    """Width and height of a picture made small enough, never enlarged."""
    factor = min(1.0, longest / max(width, height))
    return max(1, round(width * factor)), max(1, round(height * factor))


def small(picture: Image.Image, longest: int = OVERLAY) -> Image.Image:
    """The picture in RGB, its longer side at most `longest`."""
    rgb, size = picture.convert("RGB"), fitted(*picture.size, longest)
    return rgb if size == rgb.size else rgb.resize(size, Image.Resampling.HAMMING, reducing_gap=3.0)


def sized(picture: Image.Image, longest: int) -> tuple[NDArray[np.uint8], float]:
    """The picture small enough to keep and large enough to read a map on; and by how much it was scaled."""
    rgb = picture.convert("RGB")
    size = fitted(*rgb.size, longest)
    if max(size) < SHORTEST:
        size = (size[0] * -(-SHORTEST // max(size)), size[1] * -(-SHORTEST // max(size)))
    if size != rgb.size:
        rgb = rgb.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.asarray(rgb), max(size) / max(picture.size)


def stamped(picture: NDArray[np.uint8], words: str) -> NDArray[np.uint8]:
    """Words on a dark band across the middle of a picture."""
    height, width = picture.shape[:2]
    font = render.font(max(11, round(width / 28)))
    lines = render.wrapped(words, font, max(40, round(width * 0.9)))
    step = round(font.getbbox("Ag")[3] * 1.35)
    image = Image.fromarray(picture)
    middle, half = height / 2, step * len(lines) / 2 + step * 0.4
    band = Image.new("L", image.size, 0)
    ImageDraw.Draw(band).rectangle((0, middle - half, width, middle + half), fill=200)
    image.paste((20, 20, 20), mask=band)
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        left, top = (width - draw.textlength(line, font=font)) / 2, middle - step * len(lines) / 2 + i * step
        draw.text((left, top), line, fill="white", font=font)
    return np.asarray(image)


def latin(text: str) -> str:
    """What Pillow's built-in font can draw: ASCII; accents are dropped, the rest becomes question marks."""
    plain = "".join(
        c for c in unicodedata.normalize("NFKD", text.replace("–", "-")) if not unicodedata.combining(c)
    )
    return "".join(c if c.isascii() or c in "·…" else "?" for c in plain)
