"""Picture → map → box: the whole way on one screen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camlucida.images.sources import Source
from camlucida.values import Box, Localization


@dataclass(frozen=True)
class Seen:
    """All that was found in one picture. `maps (K, h, w)`: raw maps of the K localized classes, their grid laid over the
    whole picture; `sweep (K, T, 4)`: the box of each class at each of `thresholds (T,)` (shares of the map's maximum)."""

    source: Source
    picture: Image.Image
    found: tuple[Localization, ...]
    maps: NDArray[np.float32]
    thresholds: NDArray[np.float64]
    sweep: NDArray[np.float64]
    truth: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Rejected:
    """A picture that could not be used, and why."""

    source: Source
    reason: str
