"""Arrays → pictures: the only place with colour maps and scaling. RGB, uint8, (H, W, 3) throughout."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from camlucida.errors import UsageError, nearest

# Control points, evenly spaced from lowest to highest; linear in between. `heat` rises in lightness all the
# way and `signed` has equal lightness on both sides of zero, so both survive colour blindness and grey
# printing.
COLOUR_MAPS: dict[str, tuple[str, ...]] = {
    "heat": ("#0b0724", "#3b0f6f", "#8c2981", "#d8456c", "#fb8861", "#fed395", "#fcfdbf"),
    "signed": ("#123a7a", "#3b78b8", "#9cc4e0", "#f4f4f2", "#f2b98a", "#cf6a2e", "#7d2f0c"),
    "jet": (
        "#000080",
        "#0000ff",
        "#0080ff",
        "#00ffff",
        "#80ff80",
        "#ffff00",
        "#ff8000",
        "#ff0000",
        "#800000",
    ),
}
SCALINGS = ("none", "minmax", "max", "symmetric", "percentile")
HEAT_OPACITY, SIGNED_OPACITY = 0.55, 0.7
TRUTH, FOUND = (64, 200, 96), (255, 66, 66)


def scaled(values: NDArray, how: str = "minmax") -> NDArray[np.float32]:
    """`(..., h, w)` values scaled map by map.

    minmax: [0, 1], a constant map gives zeros; max: divided by the maximum, negatives cut to 0; symmetric:
    [−1, 1] by the largest magnitude; percentile: minmax between the 1st and 99th percentile, clipped; none:
    as they are. Non-finite values become 0.
    """
    if how not in SCALINGS:
        raise UsageError("scaling", got=repr(how), do=nearest(how, SCALINGS))
    values = np.nan_to_num(np.asarray(values, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if how == "none" or values.size == 0:
        return values
    axes = (-2, -1)
    if how == "max":
        low, high = np.zeros_like(values.max(axes, keepdims=True)), values.max(axes, keepdims=True)
        values = np.clip(values, 0, None)
    elif how == "symmetric":
        high = np.abs(values).max(axes, keepdims=True)
        low = np.zeros_like(high)
    elif how == "percentile":
        low, high = np.percentile(values, [1, 99], axis=axes, keepdims=True).astype(np.float32)
        values = np.clip(values, low, high)
    else:
        low, high = values.min(axes, keepdims=True), values.max(axes, keepdims=True)
    span = high - low
    return np.divide(values - low, span, out=np.zeros_like(values), where=span > 0)


@lru_cache(maxsize=64)
def palette(name: str, steps: int = 256) -> NDArray[np.uint8]:
    """Colour table `(steps, 3)` of a colour map."""
    if name not in COLOUR_MAPS:
        raise UsageError("colour map", got=repr(name), do=nearest(name, COLOUR_MAPS))
    points = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOUR_MAPS[name]], np.float64)
    at = np.linspace(0, len(points) - 1, steps)
    table = np.stack([np.interp(at, np.arange(len(points)), points[:, i]) for i in range(3)], axis=1)
    colours = np.rint(table).astype(np.uint8)
    colours.flags.writeable = False  # it is kept
    return colours


def colourise(unit: NDArray, colours: str = "heat") -> NDArray[np.uint8]:
    """`(h, w)` values in [0, 1] → `(h, w, 3)`; values outside are clipped."""
    return palette(colours)[np.rint(np.clip(unit, 0, 1) * 255).astype(np.int64)]


def overlay(
    picture: NDArray[np.uint8], heat: NDArray, *, colours: str = "heat", opacity: float = 0.55
) -> NDArray[np.uint8]:
    """`(H, W, 3)` picture under a raw `(H, W)` map of the same size: 0 and below is the coldest colour, the
    map's maximum the hottest, linear between. A map with no positive value leaves the picture as it is, in
    grey."""
    return overlays(picture, colours=colours, opacity=opacity)(heat)


def overlays(
    picture: NDArray[np.uint8], *, colours: str = "heat", opacity: float = 0.55
) -> Callable[[NDArray], NDArray[np.uint8]]:
    """Lays one map after another over the same picture: see `overlay`."""
    # Both shares of the blend are rounded to 8 bits beforehand, so that a pixel costs one look-up and one
    # addition, at most one step from the blend of floats. The picture's share leaves room for the map's.
    levels = np.arange(256)
    fainter = np.minimum(np.rint(levels * (1 - opacity)), 255 - np.rint(255 * opacity)).astype(np.uint8)
    table = np.zeros((256, 4), np.uint8)  # four bytes a colour are looked up as one number
    table[:, :3] = np.rint(palette(colours) * opacity)
    faint = np.zeros((*picture.shape[:2], 4), np.uint8)
    faint[..., :3] = fainter[picture]

    def lay(heat: NDArray) -> NDArray[np.uint8]:
        if heat.shape != picture.shape[:2]:
            raise UsageError(
                "overlay",
                got=f"a map of {heat.shape} for a picture of {picture.shape[:2]}",
                allowed="equal sizes",
            )
        heat = np.asarray(heat, np.float32)
        highest = heat.max()
        if not np.isfinite(highest):
            heat = np.nan_to_num(heat, nan=0.0, posinf=0.0, neginf=0.0)
            highest = heat.max()
        if highest <= 0:
            grey = picture.astype(np.float32).mean(axis=2, keepdims=True)
            return np.rint(np.repeat(grey, 3, axis=2)).astype(np.uint8)
        unit = heat / highest
        np.clip(unit, 0, 1, out=unit)
        unit *= 255
        hot = np.take(table.view(np.uint32)[:, 0], np.rint(unit, out=unit).astype(np.uint8))
        mixed = hot.view(np.uint8).reshape(faint.shape)
        mixed += faint
        size = (mixed.shape[1], mixed.shape[0])
        return np.asarray(
            Image.frombytes("RGB", size, mixed.tobytes(), "raw", "RGBX")
        )  # drops the fourth byte

    return lay


def captioned(
    picture: NDArray[np.uint8],
    caption: str,
    *,
    boxes: Sequence[Sequence[float]] = (),
    truth: Sequence[Sequence[float]] = (),
    bar: tuple[float, float] | None = None,
    colours: str = "heat",
    minimum: int = 320,
) -> Image.Image:
    """A picture with its boxes (found: red, given: green; source pixels), and a strip with the caption and,
    for `bar=(lowest, highest)`, a colour bar in the map's own units. Small pictures are enlarged to `minimum`
    pixels."""
    factor = max(1, -(-minimum // max(picture.shape[:2])))
    image = Image.fromarray(picture)
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(image)
    line = max(2, round(min(image.size) / 150))
    for colour, group in ((TRUTH, truth), (FOUND, boxes)):
        for x0, y0, x1, y1 in group:
            corners = [
                x0 * factor,
                y0 * factor,
                max(x1 * factor - 1, x0 * factor),
                max(y1 * factor - 1, y0 * factor),
            ]
            draw.rectangle(corners, outline=colour, width=line)
    lettering = font(max(12, round(image.width / 32)))
    line_height = round(lettering.getbbox("Ag")[3] * 1.35)
    lines = wrapped(caption, lettering, image.width - 12)
    sheet = Image.new(
        "RGB", (image.width, image.height + line_height * (len(lines) + (bar is not None)) + 8), "white"
    )
    sheet.paste(image, (0, 0))
    draw = ImageDraw.Draw(sheet)
    y = image.height + 4
    for text in lines:
        draw.text((6, y), text, fill="black", font=lettering)
        y += line_height
    if bar is not None:
        low, high = (f"{v:.3g}" for v in bar)
        left, right = (
            draw.textlength(low, font=lettering) + 12,
            image.width - draw.textlength(high, font=lettering) - 12,
        )
        if right > left:
            strip = np.repeat(_bar_colours(*bar, colours)[None], 2, axis=0)
            sheet.paste(
                Image.fromarray(strip).resize((int(right - left), int(line_height * 0.6))),
                (int(left), int(y + line_height * 0.15)),
            )
        draw.text((6, y), low, fill="black", font=lettering)
        draw.text((right + 6, y), high, fill="black", font=lettering)
    return sheet


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's built-in font, unpacked once for each size; laid out letter by letter, which does for its Latin letters
    and takes a fraction of the time."""
    default = ImageFont.load_default(size=size)
    if not isinstance(default, ImageFont.FreeTypeFont):  # a Pillow without FreeType
        return default
    return default.font_variant(layout_engine=ImageFont.Layout.BASIC)


def wrapped(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Text broken at its spaces into lines of at most `width` pixels."""
    if font.getlength(text) <= width:
        return [" ".join(text.split())]
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _bar_colours(low: float, high: float, colours: str) -> NDArray[np.uint8]:
    """Colours `(256, 3)` along a bar from `low` to `high`, as `overlay` paints them: all below zero is the
    coldest."""
    if colours == "signed":
        return shade(np.linspace(low, high, 256)[None], low, high, colours)[0]
    if not low < 0 < high:
        return palette(colours)
    return colourise(np.linspace(low, high, 256)[None] / high, colours)[0]


def side_by_side(images: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """Pictures in a row, top edges aligned, on white."""
    width = sum(i.width for i in images) + gap * (len(images) - 1)
    sheet = Image.new("RGB", (width, max(i.height for i in images)), "white")
    x = 0
    for image in images:
        sheet.paste(image, (x, 0))
        x += image.width + gap
    return sheet


def png(image: Image.Image | NDArray[np.uint8], *, packed: bool = True) -> bytes:
    """Encoded PNG of an RGB picture. `packed`: each line is kept as its difference from the line above and packed by its
    runs: files about as small as Pillow's in a third of the time, most of which goes into choosing a filter line by line.
    Otherwise the pixels are stored as they are: for a photograph under a map one and a half to two times as large, in a
    tenth of the time."""
    pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
    height, width = pixels.shape[:2]
    lines = pixels.reshape(height, -1)
    filtered = np.empty((height, 1 + lines.shape[1]), np.uint8)
    filtered[:, 0] = 2 if packed else 0  # "up", or as they are
    if packed:
        filtered[0, 1:] = lines[0]
        np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
    else:
        filtered[:, 1:] = lines
    packer = zlib.compressobj(1 if packed else 0, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    data = packer.compress(filtered.data) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        part
        for kind, content in chunks
        for part in (
            struct.pack(">I", len(content)),
            kind,
            content,
            struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))),
        )
    )


def span(*maps: NDArray) -> tuple[float, float]:
    """The scale that holds all these maps: from the lowest value, at most 0, to the highest, at least 0."""
    return min(0.0, *(float(m.min()) for m in maps)), max(0.0, *(float(m.max()) for m in maps))


def shade(values: NDArray, low: float, high: float, colours: str | None = None) -> NDArray[np.uint8]:
    """`(h, w)` raw values → `(h, w, 3)` on the scale from `low` to `high`, values beyond it clipped. `heat`:
    linear from low to high. `signed`: linear, centred at zero, equally steep on both sides. None: `signed`
    where the scale reaches below zero, else `heat`."""
    values = np.clip(np.asarray(values, np.float64), low, high)
    if (colours or ("signed" if low < 0 else "heat")) == "signed":
        return colourise(0.5 + values / (2 * (max(-low, high) or 1.0)), "signed")
    return colourise((values - low) / ((high - low) or 1.0), colours or "heat")


def painted(
    picture: NDArray[np.uint8],
    heat: NDArray,
    low: float,
    high: float,
    *,
    colours: str | None = None,
    opacity: float | None = None,
) -> NDArray[np.uint8]:
    """`(H, W, 3)` picture under a raw `(H, W)` map of the same size, coloured as `shade` does. Under `signed`
    colours the picture is grey and fainter, because its own reds and darks would pass for the map's."""
    if heat.shape != picture.shape[:2]:
        raise UsageError(
            "painted",
            got=f"a map of {heat.shape} for a picture of {picture.shape[:2]}",
            allowed="equal sizes",
        )
    colours = colours or ("signed" if low < 0 else "heat")
    under = picture.astype(np.float64)
    under = under.mean(axis=2, keepdims=True) if colours == "signed" else under
    opacity = opacity if opacity is not None else SIGNED_OPACITY if colours == "signed" else HEAT_OPACITY
    return np.rint((1 - opacity) * under + opacity * shade(heat, low, high, colours)).astype(np.uint8)


def as_rgb(values: NDArray) -> NDArray[np.uint8]:
    """`(C, H, W)` values in [0, 1] → `(H, W, 3)`: three channels as red, green and blue, others as the grey of
    their mean."""
    if len(values) != 3:
        values = np.repeat(values.mean(0, keepdims=True), 3, axis=0)
    return np.rint(np.clip(np.moveaxis(values, 0, -1), 0, 1) * 255).astype(np.uint8)


def signed_rgb(values: NDArray, most: float | None = None) -> NDArray[np.uint8]:
    """`(C, H, W)` signed values → `(H, W, 3)`, channels as in `as_rgb`: zero is mid-grey, `most` (by default the largest
    magnitude) white, −`most` black; what is not finite counts as zero."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    most = np.abs(values).max() if most is None else most
    return as_rgb(0.5 + values / (2 * (most or 1.0)))


def fitted(picture: Image.Image, longest: int = 224) -> Image.Image:
    """A picture whose longer side is `longest`: enlarged in whole pixels, or shrunk."""
    factor = longest / max(picture.size)
    how = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    return picture.resize(
        (max(1, round(picture.width * factor)), max(1, round(picture.height * factor))), how
    )


def below(images: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """Pictures under one another, left edges aligned, on white."""
    height = sum(i.height for i in images) + gap * (len(images) - 1)
    sheet = Image.new("RGB", (max(i.width for i in images), height), "white")
    y = 0
    for image in images:
        sheet.paste(image, (0, y))
        y += image.height + gap
    return sheet


def html(
    title: str,
    facts: Iterable[tuple[str, object]],
    pictures: Iterable[tuple[str, Image.Image]] = (),
    more: str = "",
) -> str:
    """A value as a notebook shows it: pairs of words, pictures with captions, what is not shown. All words are
    escaped; colours are left to the page, which may be dark."""
    cell = "text-align: left; vertical-align: top; padding: 0 1em 0 0"
    rows = "".join(
        f'<tr style="background: none"><th style="{cell}; font-weight: normal; opacity: .65">{escape(str(word))}</th>'
        f'<td style="{cell}; overflow-wrap: anywhere">{escape(str(value))}</td></tr>'
        for word, value in facts
    )
    shown = "".join(
        f'<figure style="display: inline-block; margin: .5em 1em 0 0; vertical-align: top; max-width: {picture.width}px">'
        f'<img alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(png(picture)).decode("ascii")}">'
        f'<figcaption style="font-size: .85em; opacity: .8">{escape(words)}</figcaption></figure>'
        for words, picture in pictures
    )
    rest = f'<p style="opacity: .65">{escape(more)}</p>' if more else ""
    return f'<div class="camlucida"><b>{escape(title)}</b><table>{rows}</table>{shown}{rest}</div>'
