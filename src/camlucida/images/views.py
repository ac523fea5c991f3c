"""Which view of a picture a network gets, and its pixels: the whole preprocessing, as one value."""

from __future__ import annotations

import base64
import binascii
import io
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from camlucida.errors import UsageError
from camlucida.values import Size, View

LONGEST = (
    8  # sides of a whole view differ at most so much: a picture of 10 × 5,000 pixels must not become a wall
)


@dataclass(frozen=True)
class Preprocessing:
    """From an upright RGB picture to the network's pixels.

    `size`: shorter side after resizing (`resize="short"`) or side of the square it is squashed to
    (`"squash"`); `crop`: side of the centre crop, None for none; `channels`: RGB, BGR or L; `scale`: what 255
    becomes before mean and std, one number per channel; `any_size`: takes pictures of any shape (else the
    square `crop or size` only); `minimum`: the smallest side it takes.
    """

    size: int = 224
    crop: int | None = None
    resize: Literal["short", "squash"] = "short"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    channels: Literal["RGB", "BGR", "L"] = "RGB"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    any_size: bool = True
    minimum: int = 1
    mean_picture: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        expected = len(self.channels)
        if len(self.mean) != expected or len(self.std) != expected or min(self.std) <= 0:
            raise UsageError(
                "preprocessing",
                got=f"mean {self.mean}, std {self.std}",
                allowed=f"{expected} numbers each for {self.channels}, std > 0",
            )

    @property
    def mean_colour(self) -> tuple[int, int, int]:
        """RGB colour, 0…255, that normalisation maps to zero."""
        colour = [round(m / self.scale * 255) for m in self.mean]
        colour = colour * 3 if self.channels == "L" else colour[::-1] if self.channels == "BGR" else colour
        r, g, b = (min(max(c, 0), 255) for c in colour)
        return (r, g, b)

    def view(self, source: Size, kind: str = "card", zoom: float = 1.0, flip: bool = False) -> View:
        """`card`: the card's own resize and crop. `whole`: the whole picture, its shorter side `size · zoom`;
        squashed to the card's square where the network takes no other shape, and to `LONGEST` times the shorter side
        where the picture is longer still."""
        if kind not in ("card", "whole"):
            raise UsageError("view", got=repr(kind), allowed="card | whole")
        square = self.crop or self.size
        if kind == "whole":
            if not self.any_size:
                return View.whole(source, Size(square, square), flip)
            short = max(round(self.size * zoom), self.minimum)
            resized = Size(short, short) if self.resize == "squash" else source.with_short_side(short)
            longest = LONGEST * short
            return View.whole(source, Size(min(resized.height, longest), min(resized.width, longest)), flip)
        resized = Size(self.size, self.size) if self.resize == "squash" else source.with_short_side(self.size)
        if self.crop is None and self.any_size:
            return View.whole(source, resized, flip)
        side = Size(min(square, resized.height), min(square, resized.width))
        top, left = round((resized.height - side.height) / 2), round((resized.width - side.width) / 2)
        return View(source, resized, (top, left, side.height, side.width), flip)

    def pixels(self, picture: Image.Image, view: View) -> Tensor:
        """uint8 `(C, H, W)` of the picture through the view, in the network's channel order."""
        shown = view.show(picture, self.interpolation)
        array = np.asarray(shown.convert("L") if self.channels == "L" else shown)
        array = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
        return torch.from_numpy(np.array(array[::-1] if self.channels == "BGR" else array, order="C"))

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 `(N, C, H, W)` → float32 as the network wants it."""
        std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1)
        return (pixels.float() * (self.scale / 255) - self._subtracted(pixels)) / std

    def subtracting(self, mean_picture: NDArray[np.uint8]) -> Preprocessing:
        """This, with the mean `(H, W, 3)` of the training pictures, RGB, 0…255, subtracted pixel by pixel."""
        stream = io.BytesIO()
        Image.fromarray(mean_picture).save(stream, "PNG", optimize=True)
        return replace(self, mean_picture=base64.b64encode(stream.getvalue()).decode())

    def _subtracted(self, pixels: Tensor) -> Tensor:
        """What `normalise` subtracts from `(…, C, H, W)`: `(C, 1, 1)` or `(C, H, W)`."""
        if not self.mean_picture:
            return torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        mean = _mean_picture(self.mean_picture, self.channels) * (self.scale / 255)
        if mean.shape[1:] != pixels.shape[-2:]:
            mean = F.interpolate(mean[None], pixels.shape[-2:], mode="bilinear", align_corners=False)[0]
        return mean.to(pixels.device)

    def picture(self, pixels: Tensor) -> Image.Image:
        """The RGB picture that normalised pixels `(C, H, W)` show: `normalise` undone, rounded to 8 bits."""
        pixels, std = pixels.detach().float().cpu(), torch.tensor(self.std).view(-1, 1, 1)
        raw = (pixels * std + self._subtracted(pixels)) * (255 / self.scale)
        array = raw.round().clamp(0, 255).to(torch.uint8).numpy()
        array = np.repeat(array, 3, axis=0) if self.channels == "L" else array
        return Image.fromarray(
            np.ascontiguousarray(np.moveaxis(array[::-1] if self.channels == "BGR" else array, 0, -1))
        )


@lru_cache(maxsize=8)
def _mean_picture(text: str, channels: str) -> Tensor:
    """`(C, H, W)` in the network's channel order, 0…255."""
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
        array = np.asarray(picture.convert("L") if channels == "L" else picture.convert("RGB"), np.float32)
    except (OSError, binascii.Error) as error:
        raise UsageError("the mean picture of a card cannot be read", got=str(error)) from error
    planes = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    return torch.from_numpy(np.array(planes[::-1] if channels == "BGR" else planes, order="C"))
