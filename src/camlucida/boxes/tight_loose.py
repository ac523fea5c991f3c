"""The tight/loose pair of boxes and the five guesses of the CAM paper's test-set result (section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from camlucida.boxes.from_map import (
    Boxes,
    FractionOfMax,
    Rule,
    check_between,
    check_choice,
    components,
    corners_of,
    in_pictures,
    over_maps,
    relative_peak,
    to_source,
    usable_map,
    whole_picture,
)
from camlucida.errors import UsageError
from camlucida.values import Box, HeatMaps, ScoredBox, Size


@dataclass(frozen=True)
class TightLoose:
    """Two boxes a map, (tight, loose): the loose one is the largest contour of three gray levels, the tight
    one the next that mostly lies elsewhere or is much smaller; both are the same if there is no other
    (section 3.2).

    The map is scaled to 8 bits (maximum → 255, negative → 0, rounded half up). A map that is constant, not
    finite, nowhere positive, or without a contour left of the border gives the whole picture twice, flagged.
    """

    levels: tuple[int, ...] = (20, 100, 110)
    """Gray levels, 0 to 254; pixels strictly above one are its mask."""
    erosion: float = 10.0
    """Pixels stay whose distance to the background, scaled to 255 at the deepest pixel, exceeds this."""
    overlap: float = 0.5
    """A box is dropped when it covers more than this share of a larger box that was kept."""
    border: float = 5.0
    """Right and bottom sides stay this many source pixels inside the picture; boxes left empty are
    dropped."""

    def __post_init__(self) -> None:
        if not isinstance(self.levels, tuple) or not self.levels:
            raise UsageError(
                "TightLoose.levels", got=repr(self.levels), allowed="a tuple of gray levels, 0 to 254"
            )
        for level in self.levels:
            check_between("TightLoose.levels", level, 0, 254)
        check_between("TightLoose.erosion", self.erosion, 0, 254)
        check_between("TightLoose.overlap", self.overlap, 0, 1)
        check_between("TightLoose.border", self.border, 0, 1e6)

    @property
    def level(self) -> None:
        """There are several: nothing to report."""
        return None

    def on_map(self, heat: NDArray[Any], size: Size) -> tuple[ScoredBox, ScoredBox]:
        nothing = (whole_picture(size), whole_picture(size))
        usable = usable_map(heat)
        if usable is None:
            return nothing
        maximum = float(usable.max())
        gray = np.floor(np.clip(usable / maximum, 0, 1) * 255 + 0.5)
        grid = np.array(
            [box for level in self.levels for box in _contour_boxes(_eroded(gray > level, self.erosion))]
        )
        corners = to_source(grid.reshape(-1, 4), usable.shape, size)
        np.minimum(corners[:, 2:], np.subtract((size.width, size.height), self.border), out=corners[:, 2:])
        left = np.flatnonzero((corners[:, 2:] > corners[:, :2]).all(axis=1))
        if not left.size:
            return nothing
        areas = np.prod(corners[left, 2:] - corners[left, :2], axis=1)
        order = left[np.argsort(-areas, kind="stable")]
        loose = tight = order[0]
        # Only the second box of the thinned list is wanted: whatever lay before it was dropped for the first.
        ends, begins = np.minimum(corners[order], corners[loose]), np.maximum(corners[order], corners[loose])
        shared = np.prod((ends[:, 2:] - begins[:, :2]).clip(0), axis=1)
        apart = shared <= self.overlap * areas.max()
        if apart[1:].any():
            tight = order[1:][apart[1:]][0]

        def scored(index: int) -> ScoredBox:
            x0, y0, x1, y1 = grid[index]
            return ScoredBox(Box(*corners[index].tolist()), relative_peak(usable[y0:y1, x0:x1], maximum))

        return scored(tight), scored(loose)

    def __call__(self, maps: HeatMaps) -> Boxes:
        return over_maps(self, maps)


def top5_guesses(
    maps: HeatMaps, mode: Literal["simple", "tight_loose"] = "simple", rule: Rule | None = None
) -> tuple[tuple[tuple[int, ScoredBox], ...], ...]:
    """For each picture exactly five `(index of the target in the maps, box)`, for top-5 localization.

    `maps` holds the best classes first. `simple`: the first box of each of five classes (`rule`, default
    `FractionOfMax()`). `tight_loose`: class 1 loose and tight, class 2 loose and tight, class 3 loose
    (`rule`: a `TightLoose`) (section 3.2). UsageError if the maps have fewer than five (three) targets.
    """
    check_choice("top5_guesses(mode=…)", mode, ("simple", "tight_loose"))
    needed = 5 if mode == "simple" else 3
    if maps.values.shape[1] < needed:
        raise UsageError(
            f"top5_guesses, mode {mode}",
            got=f"maps of {maps.values.shape[1]} targets",
            allowed=f"at least {needed}, best class first",
            do=f"make the maps with ClassTarget.top({needed})",
        )
    if mode == "simple":
        simple = rule or FractionOfMax()
        return tuple(
            tuple((k, simple.on_map(heats[k], size)[0]) for k in range(needed))
            for heats, size in in_pictures(maps)
        )
    pair = rule or TightLoose()
    if not isinstance(pair, TightLoose):
        raise UsageError("top5_guesses, mode tight_loose", got=f"rule {pair}", allowed="a TightLoose")
    guesses = []
    for heats, size in in_pictures(maps):
        both = [(k, box) for k in range(needed) for box in reversed(pair.on_map(heats[k], size))]
        guesses.append(tuple(both[:5]))
    return tuple(guesses)


def _eroded(mask: NDArray[np.bool_], erosion: float) -> NDArray[np.bool_]:
    """Pixels whose distance to the background, scaled to 255 at the deepest, is above `erosion`."""
    if mask.all():
        return mask  # no background, so no distance and no rim
    depth = ndimage.distance_transform_edt(mask)
    return depth * 255 > erosion * depth.max()


def _contour_boxes(mask: NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
    """Half-open boxes on the grid of all outer contours, then of all hole contours, of a mask `(H, W)`."""
    height, width = mask.shape
    boxes = [corners_of(window) for _, window in components(mask, 8)[1]]
    # A hole is a 4-connected piece of background (the foreground being 8-connected) that does not reach the
    # border. Its contour runs over the foreground pixels around it, so its rectangle is the hole's grown by
    # one pixel.
    for _, window in components(~mask, 4)[1]:
        x0, y0, x1, y1 = corners_of(window)
        if x0 > 0 and y0 > 0 and x1 < width and y1 < height:
            boxes.append((x0 - 1, y0 - 1, x1 + 1, y1 + 1))
    return boxes
