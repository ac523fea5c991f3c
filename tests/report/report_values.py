"""Hand-made values of what was seen, on pictures that are not square."""

from __future__ import annotations

import numpy as np
from PIL import Image

from camlucida.images.sources import Source
from camlucida.pipeline import Rejected, Seen
from camlucida.values import Box, Localization, ScoredBox

THRESHOLDS = np.linspace(0.01, 1.0, 100)
WIDTH, HEIGHT = 300, 200


def picture(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x % 256, y % 256, (x + y) % 256], -1).astype(np.uint8))


def source(relative: str) -> Source:
    return Source(f"photos/{relative}", relative, f"/nowhere/{relative}")


def localization(
    relative: str, rank: int, index: int, probability: float, boxes: tuple[ScoredBox, ...], **other: object
) -> Localization:
    words = {
        "status": "ok",
        "map_method": "cam",
        "box_rule": "fraction-of-max",
        "threshold": 0.2,
        "layer": "features.29",
    }
    return Localization(
        path=f"photos/{relative}",
        rank=rank,
        class_index=index,
        class_id=f"n{index:08d}",
        class_name=f"class {index}",
        probability=probability,
        logit=10.0 - rank,
        boxes=boxes,
        **{**words, **other},  # type: ignore[arg-type]
    )


def hot(row: int, column: int, rows: int = 4, columns: int = 6, value: float = 5.0) -> np.ndarray:
    """A map that is zero but for one cell."""
    heat = np.zeros((rows, columns), np.float32)
    heat[row, column] = value
    return heat


def swept(width: float, height: float) -> np.ndarray:
    """Boxes `(100, 4)` that shrink towards the picture's middle as the threshold rises; none at the last
    one."""
    inset = np.linspace(0, 0.4, 100)[:, None] * [width, height, -width, -height]
    boxes = np.array([0, 0, width, height]) + inset
    boxes[-1] = np.nan
    return boxes


def seen(
    relative: str, found: tuple[Localization, ...], maps: list, truth: tuple[Box, ...] = (), **size: int
) -> Seen:
    shown = picture(**size)
    sweep = np.stack([swept(shown.width, shown.height)] * len(found))
    return Seen(source(relative), shown, found, np.stack(maps).astype(np.float32), THRESHOLDS, sweep, truth)


def two_boxes(relative: str = "pets/cat.jpg") -> Seen:
    """Two classes: one with a tight and a loose box, one whose box is the whole picture."""
    tight, loose = ScoredBox(Box(50, 50, 100, 100.5), 1.0), ScoredBox(Box(25, 40, 150, 120), 0.75)
    whole = ScoredBox(Box(0, 0, WIDTH, HEIGHT), 0.5, whole=True)
    found = (
        localization(relative, 1, 7, 0.873, (tight, loose)),
        localization(relative, 2, 3, 0.1, (whole,), status="whole-picture"),
    )
    return seen(relative, found, [hot(1, 1), hot(3, 5, value=2.0) - 0.5], truth=(Box(40, 30, 120, 110),))


def broken_map(relative: str = "dogs/dog.jpg") -> Seen:
    """One class whose map is NaN, in a tall picture."""
    whole = ScoredBox(Box(0, 0, 120, 240), 0.0, whole=True)
    one = localization(relative, 1, 1, 0.4, (whole,), status="non-finite", threshold=None, layer=None)
    return seen(relative, (one,), [np.full((4, 6), np.nan)], width=120, height=240)


def refused(relative: str = "bad, file.jpg") -> Rejected:
    return Rejected(source(relative), "not a picture:\ntruncated")
