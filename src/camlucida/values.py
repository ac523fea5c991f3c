"""The values that travel: sizes, boxes, views, batches, predictions, maps and what was found. Frozen; change
is `dataclasses.replace`. Coordinates are continuous, pixel centres at +0.5, x along width, y along height."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from camlucida import render
from camlucida.errors import UsageError

Status = Literal["ok", "flat", "all-negative", "no-gradient", "non-finite", "whole-picture"]
SHOWN = 4  # pictures of a batch that a notebook shows; and of each picture, so many classes:
SHOWN_CLASSES = 6


class Shown:
    """How a value shows itself: `__repr__` in one line, and in a notebook as a table with small pictures.
    A value says its facts and, if it has any, its pictures; nothing of a notebook needs to be installed."""

    def _facts(self) -> Iterable[tuple[str, object]]:
        """Pairs of words."""
        return ()

    def _pictures(self) -> Iterable[tuple[str, Image.Image]]:
        """Captions and pictures, a few at most."""
        return ()

    def _more(self) -> str:
        """What is not shown, in words."""
        return ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{word} {value}' for word, value in self._facts())})"

    def _repr_html_(self) -> str:
        return render.html(type(self).__name__, self._facts(), self._pictures(), self._more())

    def _repr_png_(self) -> bytes | None:
        pictures = [picture for _, picture in self._pictures()]
        return render.png(render.side_by_side(pictures)) if pictures else None


@dataclass(frozen=True, order=True)
class Size(Shown):
    """Height and width in pixels, both ≥ 1."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise UsageError("Size", got=f"{self.height} × {self.width}", allowed="at least 1 × 1")

    def with_short_side(self, short: int) -> Size:
        """The same shape with its shorter side `short`; the other side is rounded half up (isotropic, section
        0)."""
        scale = short / min(self.height, self.width)
        return Size(
            max(1, math.floor(self.height * scale + 0.5)), max(1, math.floor(self.width * scale + 0.5))
        )

    def __str__(self) -> str:
        return f"{self.height} × {self.width}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        return [("height", self.height), ("width", self.width)]


@dataclass(frozen=True)
class Box(Shown):
    """Half-open box in source pixels (the picture after EXIF rotation): x0 ≤ x < x1, y0 ≤ y < y1, floats."""

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        if not (self.x0 <= self.x1 and self.y0 <= self.y1):  # also refuses NaN
            raise UsageError("Box", got=f"{self.corners}", allowed="x0 ≤ x1 and y0 ≤ y1")

    @property
    def corners(self) -> tuple[float, float, float, float]:
        return (self.x0, self.y0, self.x1, self.y1)

    @property
    def area(self) -> float:
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def clipped(self, size: Size) -> Box:
        """The part inside a picture of that size."""
        x0, x1 = (min(max(x, 0.0), size.width) for x in (self.x0, self.x1))
        y0, y1 = (min(max(y, 0.0), size.height) for y in (self.y0, self.y1))
        return Box(x0, y0, x1, y1)

    def __str__(self) -> str:
        return f"({self.x0:g}, {self.y0:g}) to ({self.x1:g}, {self.y1:g})"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "corners (x, y)", str(self)
        yield "width × height", f"{self.x1 - self.x0:g} × {self.y1 - self.y0:g} source pixels"


@dataclass(frozen=True)
class ScoredBox(Shown):
    """A box in source pixels; `score` in [0, 1] is the peak inside it over the map's maximum. `whole` says
    that the map had no component and the box is the whole picture."""

    box: Box
    score: float
    whole: bool = False

    def __str__(self) -> str:
        return f"{self.box} score {self.score:.3g}" + (" (the whole picture)" if self.whole else "")

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield from self.box._facts()
        yield "score", f"{self.score:.4g}"
        yield "whole picture", "yes: the map had no component" if self.whole else "no"


@dataclass(frozen=True)
class View(Shown):
    """What a network is shown of a picture: resize the whole, cut `crop`, mirror if `flip`.

    `crop` is `(top, left, height, width)` in resized pixels. `to_view` and `to_source` are exact inverses.
    """

    source: Size
    resized: Size
    crop: tuple[int, int, int, int]
    flip: bool = False

    def __post_init__(self) -> None:
        top, left, height, width = self.crop
        if height < 1 or width < 1:
            raise UsageError("View.crop", got=self.crop, allowed="a crop of at least 1 × 1 pixel")
        if top < 0 or left < 0 or top + height > self.resized.height or left + width > self.resized.width:
            raise UsageError(
                "View.crop", got=self.crop, allowed=f"inside {self.resized.height} × {self.resized.width}"
            )

    @classmethod
    def whole(cls, source: Size, resized: Size | None = None, flip: bool = False) -> View:
        """The whole picture, at `resized` (default: its own size)."""
        resized = resized or source
        return cls(source, resized, (0, 0, resized.height, resized.width), flip)

    @property
    def size(self) -> Size:
        """Size of what the network sees."""
        return Size(self.crop[2], self.crop[3])

    @property
    def is_whole(self) -> bool:
        return self.crop == (0, 0, self.resized.height, self.resized.width)

    def to_view(self, points: ArrayLike) -> NDArray[np.float64]:
        """Points `(..., 2)` as (x, y), source pixels → view pixels."""
        points = np.asarray(points, np.float64)
        top, left, _, width = self.crop
        x = points[..., 0] * (self.resized.width / self.source.width) - left
        y = points[..., 1] * (self.resized.height / self.source.height) - top
        return np.stack([width - x if self.flip else x, y], axis=-1)

    def to_source(self, points: ArrayLike) -> NDArray[np.float64]:
        """Points `(..., 2)` as (x, y), view pixels → source pixels."""
        points = np.asarray(points, np.float64)
        top, left, _, width = self.crop
        x = width - points[..., 0] if self.flip else points[..., 0]
        x = (x + left) * (self.source.width / self.resized.width)
        y = (points[..., 1] + top) * (self.source.height / self.resized.height)
        return np.stack([x, y], axis=-1)

    def box_to_view(self, box: Box) -> Box:
        return _box_through(self.to_view, box)

    def box_to_source(self, box: Box) -> Box:
        return _box_through(self.to_source, box)

    def show(self, picture: Image.Image, interpolation: str = "bilinear") -> Image.Image:
        """The picture (of size `source`) through this view, antialiased when shrinking."""
        if (picture.height, picture.width) != (self.source.height, self.source.width):
            raise UsageError(
                "View.show",
                got=f"a picture of {picture.height} × {picture.width}",
                allowed=f"{self.source.height} × {self.source.width}",
            )
        top, left, height, width = self.crop
        x0, y0 = left * self.source.width / self.resized.width, top * self.source.height / self.resized.height
        x1 = min((left + width) * self.source.width / self.resized.width, self.source.width)
        y1 = min((top + height) * self.source.height / self.resized.height, self.source.height)
        how = Image.Resampling[interpolation.upper()]
        # Resizing the region alone equals, up to a rounding of one grey level, resizing the whole and cutting: Pillow's
        # kernel reads past the region.
        shown = (
            picture
            if self.is_whole and self.resized == self.source
            else picture.resize((width, height), how, (x0, y0, x1, y1))
        )
        return shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else shown

    def __str__(self) -> str:
        top, left, *_ = self.crop
        cut = "" if self.is_whole else f", cut to {self.size} from row {top}, column {left}"
        return f"{self.source} → {self.resized}{cut}{', mirrored' if self.flip else ''}"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "source", f"{self.source} pixels"
        yield "resized", f"{self.resized} pixels"
        top, left, *_ = self.crop
        yield "crop", "none" if self.is_whole else f"{self.size} from row {top}, column {left}"
        yield "mirrored", "yes" if self.flip else "no"


def _box_through(move: Any, box: Box) -> Box:
    (ax, ay), (bx, by) = move([(box.x0, box.y0), (box.x1, box.y1)])
    return Box(min(ax, bx), min(ay, by), max(ax, bx), max(ay, by))


@dataclass(frozen=True, repr=False)
class Batch(Shown):
    """`pixels (N, C, *spatial)` as the network wants them; `views`, one per picture (None for 1-D and 3-D
    input); `preprocessing`: the card's, where known, so that the pictures can be shown again."""

    pixels: Tensor
    views: tuple[View | None, ...]
    preprocessing: Any = None

    def __post_init__(self) -> None:
        if self.pixels.ndim < 3 or len(self.views) != len(self.pixels):
            raise UsageError(
                "Batch",
                got=f"pixels {tuple(self.pixels.shape)} and {len(self.views)} views",
                allowed="(N, C, *spatial) and N views",
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def pictures(self, most: int | None = None) -> tuple[Image.Image, ...]:
        """What the network is shown, as RGB pictures of the views' sizes; of the first `most` only. Pixels
        without their preprocessing are spread from the lowest to the highest value of each picture. Raises
        UsageError for input that is not 2-D."""
        if self.pixels.ndim != 4:
            raise UsageError(
                "Batch.pictures", got=f"pixels {tuple(self.pixels.shape)}", allowed="(N, C, H, W)"
            )
        chosen = self.pixels[:most].detach()
        if self.preprocessing is not None:
            return tuple(self.preprocessing.picture(one) for one in chosen)
        arrays = chosen.float().cpu().numpy()
        return tuple(Image.fromarray(render.as_rgb(_spread(one))) for one in arrays)

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "pictures", len(self)
        yield "pixels", f"{_shape(self.pixels)} {_kind(self.pixels)}"
        views = list(dict.fromkeys(str(view) for view in self.views if view is not None))
        if views:
            yield "views", _few(views)

    def _pictures(self) -> Iterable[tuple[str, Image.Image]]:
        if self.pixels.ndim == 4:
            for number, picture in enumerate(self.pictures(SHOWN), 1):
                yield f"{number}", render.fitted(picture)

    def _more(self) -> str:
        unknown = "Units unknown: shown from lowest to highest value." if self.preprocessing is None else ""
        return " ".join(filter(None, [_not_shown(len(self) - SHOWN, "picture"), unknown]))

    @classmethod
    def of(cls, batch_or_pixels: Batch | Tensor) -> Batch:
        """A batch as it is; bare pixels get identity views."""
        if isinstance(batch_or_pixels, Batch):
            return batch_or_pixels
        if not isinstance(batch_or_pixels, Tensor) or batch_or_pixels.ndim < 3:
            got = (
                tuple(batch_or_pixels.shape)
                if isinstance(batch_or_pixels, Tensor)
                else type(batch_or_pixels).__name__
            )
            raise UsageError(
                "a batch",
                got=got,
                allowed="a Batch or a tensor (N, C, *spatial)",
                do="net.preprocess(images) makes one",
            )
        view = View.whole(Size(*batch_or_pixels.shape[2:])) if batch_or_pixels.ndim == 4 else None
        return cls(batch_or_pixels, (view,) * len(batch_or_pixels))


@dataclass(frozen=True)
class Label(Shown):
    """A class: `id` (WordNet id where it has one) and `name` in words."""

    id: str
    name: str

    def _facts(self) -> Iterable[tuple[str, object]]:
        return [("id", self.id), ("name", self.name)]


@dataclass(frozen=True, repr=False)
class Prediction(Shown):
    """`logits`, `probabilities (N, C)` float32; `classes (N, k)` best first; `labels`: for each picture k
    labels."""

    logits: Tensor
    probabilities: Tensor
    classes: Tensor
    labels: tuple[tuple[Label, ...], ...]
    views: tuple[View | None, ...]

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "pictures", len(self.logits)
        yield "classes", self.logits.shape[1]
        if len(self.classes) and self.classes.shape[1]:
            yield "best", _few([f"{row[0][0]} {row[0][2]}" for row in self._rows(len(self.classes), 1)])

    def _rows(self, pictures: int, most: int) -> list[list[tuple[str, str, str, str, int]]]:
        """For each picture its best classes as words: name, id, probability, logit; and the index."""
        return [
            [
                (one.name, one.id, f"{self.probabilities[i, c]:.1%}", f"{self.logits[i, c]:.3g}", c)
                for one, c in zip(self.labels[i][:most], self.classes[i, :most].tolist(), strict=True)
            ]
            for i in range(min(pictures, len(self.classes)))
        ]

    def _repr_html_(self) -> str:
        tables = [
            (f"{picture + 1} · {name}", f"{probability} · logit {logit} · {id} · class {index}")
            for picture, row in enumerate(self._rows(SHOWN, SHOWN_CLASSES))
            for name, id, probability, logit, index in row
        ]
        facts = list(self._facts())[:2] + tables
        return render.html("Prediction", facts, (), _not_shown(len(self.logits) - SHOWN, "picture"))


@dataclass(frozen=True)
class Grid(Shown):
    """Where the cells of a map lie in view pixels, per axis: centre of cell 0, stride, extent (receptive
    field or occluder). `kind` is `features` (cells of a layer) or `places` (positions of an occluder)."""

    view: tuple[int, ...]
    offset: tuple[float, ...]
    stride: tuple[float, ...]
    extent: tuple[float, ...]
    kind: Literal["features", "places"] = "features"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "cells are", "cells of a layer" if self.kind == "features" else "places of an occluder"
        yield "view", f"{_sides(self.view)} pixels"
        yield "centre of cell 0", f"{', '.join(f'{o:g}' for o in self.offset)} (axes as in the view)"
        yield "stride", f"{_sides(self.stride)} pixels"
        yield "extent", f"{_sides(self.extent)} pixels"


@dataclass(frozen=True, repr=False)
class HeatMaps(Shown):
    """Raw maps `values (N, K, *grid)` float32, unscaled, signed wherever the formula is, on the device they
    were made on. `classes (N, K)` or None; `scores (N, K)`: the scalar explained; `target`: what was
    explained, in words; `logits (N, C)`: the network's output in the same pass, where it is logits."""

    values: Tensor
    classes: Tensor | None
    scores: Tensor
    grid: Grid
    views: tuple[View | None, ...]
    method: str
    target: str
    layer: str | None = None
    seed: int | None = None
    logits: Tensor | None = field(default=None, repr=False)
    no_gradient: Tensor | None = field(default=None, repr=False)

    @cached_property
    def status(self) -> tuple[tuple[Status, ...], ...]:
        """One word per map: ok, flat, all-negative, no-gradient or non-finite."""
        return tuple(
            status_words(maps, None if self.no_gradient is None else self.no_gradient[i])
            for i, maps in enumerate(self.values)
        )

    def in_view(self, align: Literal["stretch", "receptive-field"] = "stretch") -> Tensor:
        """Maps over the pixels of the view, `(N, K, *view)`.

        Cells of a layer: `stretch` lays the grid over the whole view (bilinear, `align_corners=False`);
        `receptive-field` puts each cell at the centre of its receptive field. Occluder places: each pixel
        gets the mean over the occluders that covered it, 0 where none did (section 11).
        """
        if self.grid.kind == "places":
            return _coverage_mean(self.values, self.grid)
        if align == "stretch":
            mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(self.grid.view)]
            return F.interpolate(self.values, self.grid.view, mode=mode, align_corners=False)
        if align != "receptive-field":
            raise UsageError("in_view(align=…)", got=repr(align), allowed="stretch | receptive-field")
        values = self.values
        for axis, (length, offset, stride) in enumerate(
            zip(self.grid.view, self.grid.offset, self.grid.stride, strict=True)
        ):
            values = _sample(values, 2 + axis, (np.arange(length, dtype=np.float64) + 0.5 - offset) / stride)
        return values

    def in_source(self, limit: int | None = None) -> tuple[Tensor, ...]:
        """Maps over the pixels of each source picture: a tuple of `(K, H, W)`; 0 where the view did not look.

        `limit`: longest side of the result; a larger picture's frame is then sampled on a coarser grid.
        """
        values, cells = self.values, self.values.shape[2:]
        if self.grid.kind == "places":
            values = _coverage_mean(self.values, self.grid)
            cells = values.shape[2:]
        return tuple(self._one_in_source(values[i], cells, view, limit) for i, view in enumerate(self.views))

    def _one_in_source(
        self, values: Tensor, cells: Sequence[int], view: View | None, limit: int | None
    ) -> Tensor:
        y, x = source_samples(view, len(cells), limit)
        assert view is not None  # source_samples has refused maps without a view
        out = _sample(values, 1, y * (cells[0] / view.size.height) - 0.5)
        out = _sample(out, 2, x * (cells[1] / view.size.width) - 0.5)
        if not view.is_whole:
            seen = np.outer((y > 0) & (y < view.size.height), (x > 0) & (x < view.size.width))
            out = out * torch.from_numpy(seen).to(out)
        return out

    def scaled(self, how: str = "minmax") -> Tensor:
        """Values scaled map by map for display: see `render.scaled`. Raw values stay in `values`."""
        flat = self.values.detach().float().cpu().numpy().reshape(*self.values.shape[:2], 1, -1)
        return torch.from_numpy(render.scaled(flat, how).reshape(self.values.shape))

    def overlay(
        self, pictures: Sequence[Image.Image] | Batch, colours: str = "heat"
    ) -> tuple[tuple[Image.Image, ...], ...]:
        """For each picture its K maps laid over it, with a colour bar: `pictures` are the source pictures
        (PIL, the size its view names), or the batch itself, whose pixels are then shown as the network sees
        them. `colours`: `heat`, 0 and below the coldest; `signed`, centred at zero."""
        in_view = isinstance(pictures, Batch)
        pictures = pictures.pictures() if isinstance(pictures, Batch) else pictures
        if len(pictures) != len(self.values):
            raise UsageError(
                "overlay", got=f"{len(pictures)} pictures", allowed=f"{len(self.values)}, one each"
            )
        sheets = []
        painted: Iterable[Tensor] = self.in_view() if in_view else self.in_source()
        for picture, maps, words in zip(pictures, painted, self.status, strict=True):
            rgb = np.asarray(picture.convert("RGB"))
            row = []
            for heat, status in zip(maps.detach().float().cpu().numpy(), words, strict=True):
                usable = heat if status == "ok" else np.zeros_like(heat)
                bar: tuple[float, float] | None
                if colours == "signed" and status in ("ok", "all-negative"):
                    bar = render.span(heat)
                    shown = render.painted(rgb, heat, *render.span(heat), colours=colours)
                else:
                    shown = render.overlay(rgb, usable, colours=colours)
                    bar = (min(0.0, float(heat.min())), float(heat.max())) if status == "ok" else None
                caption = f"{self.method}: {self.target} ({status})"
                row.append(render.captioned(shown, caption, bar=bar, colours=colours))
            sheets.append(tuple(row))
        return tuple(sheets)

    def save(self, folder: str | Path) -> None:
        """Writes `maps.npz` (values, classes, scores) and `maps.json` (the rest) into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        classes = np.empty((0,), np.int64) if self.classes is None else self.classes.cpu().numpy()
        np.savez(
            folder / "maps.npz",
            values=self.values.detach().cpu().numpy(),
            classes=classes,
            scores=self.scores.detach().cpu().numpy(),
        )
        about: dict[str, Any] = {name: getattr(self, name) for name in ("method", "target", "layer", "seed")}
        about |= {"status": self.status, "grid": asdict(self.grid)}
        about["views"] = [view and asdict(view) for view in self.views]
        (folder / "maps.json").write_text(json.dumps(about, indent=1), encoding="utf-8")

    def _facts(self) -> Iterable[tuple[str, object]]:
        pictures, targets = self.values.shape[:2]
        yield "pictures", pictures
        yield "maps each", f"{targets} of {_sides(self.values.shape[2:])} cells"
        yield "method", self.method + (f" at {self.layer}" if self.layer else "")
        yield "explained", self.target
        words = [word for row in self.status for word in row]
        yield "status", _few([f"{words.count(w)} {w}" for w in dict.fromkeys(words)])
        if self.seed is not None:
            yield "seed", self.seed

    def _pictures(self) -> Iterable[tuple[str, Image.Image]]:
        """The maps on their own, each on its own scale: from 0, or centred at zero where signed."""
        if self.values.ndim != 4:
            return
        height, width = (max(1, round(224 * side / max(self.grid.view))) for side in self.grid.view)
        for n, row in enumerate(self.values[:SHOWN, :SHOWN_CLASSES].detach().float().cpu().numpy()):
            for k, heat in enumerate(row):
                finite = np.nan_to_num(heat, nan=0.0, posinf=0.0, neginf=0.0)
                low, high = render.span(finite)
                what = "" if self.classes is None else f" · class {int(self.classes[n, k])}"
                words = f"{n + 1}{what} · {float(self.scores[n, k]):.3g} · {self.status[n][k]}"
                if self.status[n][k] in ("ok", "all-negative"):
                    words += f" · {low:.3g} … {high:.3g}"
                picture = Image.fromarray(render.shade(finite, low, high))
                yield words, picture.resize((width, height), Image.Resampling.NEAREST)

    def _more(self) -> str:
        pictures, targets = self.values.shape[:2]
        return " ".join(
            filter(
                None,
                [
                    _not_shown(targets - SHOWN_CLASSES, "map", " of each picture"),
                    _not_shown(pictures - SHOWN, "picture"),
                ],
            )
        )


def status_words(maps: Tensor, no_gradient: Tensor | None = None) -> tuple[Status, ...]:
    """The status of each of K maps `(K, *cells)`; `no_gradient (K,)`: whether none reached the layer."""
    flat = maps.flatten(1)
    low, high = flat.aminmax(dim=-1)
    finite = low.isfinite() & high.isfinite()  # which NaN goes through to
    dead = torch.zeros_like(finite) if no_gradient is None else no_gradient.to(finite.device)
    codes = torch.where(high <= 0, 2, torch.zeros_like(high, dtype=torch.int64))
    codes = torch.where(low == high, 1, codes)
    codes = torch.where(dead, 3, codes)
    codes = torch.where(finite, codes, 4)
    words: tuple[Status, ...] = ("ok", "flat", "all-negative", "no-gradient", "non-finite")
    return tuple(words[c] for c in codes.tolist())


def source_samples(
    view: View | None, axes: int, limit: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the samples of a map over the source picture lie, in view pixels: y `(H,)` and x `(W,)`. `axes`
    of the map, and `limit`, the longest side: as for `HeatMaps.in_source`."""
    if view is None or axes != 2:
        raise UsageError(
            "in_source", got=f"maps over {axes} axes", allowed="2-D pictures", do="use .in_view()"
        )
    height, width = view.source.height, view.source.width
    if limit is not None and max(height, width) > limit:
        factor = limit / max(height, width)
        height, width = max(1, round(height * factor)), max(1, round(width * factor))
    xs = (np.arange(width) + 0.5) * (view.source.width / width)
    ys = (np.arange(height) + 0.5) * (view.source.height / height)
    x = view.to_view(np.stack([xs, np.zeros_like(xs)], -1))[:, 0]
    y = view.to_view(np.stack([np.zeros_like(ys), ys], -1))[:, 1]
    return y, x


def between_cells(
    at: NDArray[np.float64], cells: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The two cells between which coordinates `at` lie (0 = centre of the first cell; edges repeated), and the
    share of the second."""
    at = np.clip(at, 0, cells - 1)
    low = np.minimum(np.floor(at).astype(np.int64), max(cells - 2, 0))
    return low, np.minimum(low + 1, cells - 1), at - low


def _sample(values: Tensor, axis: int, at: NDArray[np.float64]) -> Tensor:
    """Linear interpolation along one axis at cell coordinates `at`."""
    low, high, share = between_cells(at, values.shape[axis])
    part = torch.from_numpy(share).to(values.device, values.dtype)
    part = part.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    below = values.index_select(axis, torch.from_numpy(low).to(values.device))
    above = values.index_select(axis, torch.from_numpy(high).to(values.device))
    return torch.lerp(below, above, part)


def _coverage_mean(values: Tensor, grid: Grid) -> Tensor:
    """Mean over the occluders covering each pixel: a sum and a count, separable because occluders are
    boxes."""
    for axis, (length, offset, stride, extent) in enumerate(
        zip(grid.view, grid.offset, grid.stride, grid.extent, strict=True)
    ):
        places = values.shape[2 + axis]
        starts = torch.arange(places, device=values.device) * stride + (offset - extent / 2)
        pixels = torch.arange(length, device=values.device)[:, None] + 0.5
        covered = ((pixels > starts) & (pixels < starts + extent)).to(values.dtype)
        covered = covered / covered.sum(1, keepdim=True).clamp(min=1)
        values = torch.movedim(torch.movedim(values, 2 + axis, -1) @ covered.T, -1, 2 + axis)
    return values


@dataclass(frozen=True, repr=False)
class Reconstruction(Shown):
    """A signed picture `(N, C, *spatial)` from deconvnet or guided backpropagation: no heat map, so nothing
    boxes it."""

    values: Tensor
    views: tuple[View | None, ...]
    method: str
    target: str

    def picture(self, index: int = 0) -> Image.Image:
        """One of them as a picture: zero is mid-grey, the largest magnitude black or white. Raises UsageError
        for input that is not 2-D."""
        if self.values.ndim != 4:
            got = f"values {tuple(self.values.shape)}"
            raise UsageError("Reconstruction.picture", got=got, allowed="(N, C, H, W)")
        values = self.values[index].detach().float().cpu().numpy()
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        return Image.fromarray(render.as_rgb(0.5 + values / (2 * (np.abs(values).max() or 1.0))))

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "pictures", len(self.values)
        yield "values", _shape(self.values)
        yield "method", self.method
        yield "explained", self.target

    def _pictures(self) -> Iterable[tuple[str, Image.Image]]:
        if self.values.ndim == 4:
            for i in range(min(SHOWN, len(self.values))):
                most = float(self.values[i].abs().max())
                yield f"{i + 1} · ± {most:.3g}", render.fitted(self.picture(i))

    def _more(self) -> str:
        return _not_shown(len(self.values) - SHOWN, "picture")


@dataclass(frozen=True, repr=False)
class Localization(Shown):
    """One class of one picture: where it is and how sure. `rank` counts from 1; `layer` is where the map was
    taken."""

    path: str
    rank: int
    class_index: int
    class_id: str
    class_name: str
    probability: float
    logit: float
    boxes: tuple[ScoredBox, ...]
    status: Status
    map_method: str
    box_rule: str
    threshold: float | None
    layer: str | None = None

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "path", self.path
        yield "rank", self.rank
        yield "class", f"{self.class_name} ({self.class_id}, {self.class_index})"
        yield "probability", f"{self.probability:.1%}"
        yield "logit", f"{self.logit:.4g}"
        yield "boxes", _few([str(box) for box in self.boxes]) or "none"
        yield "status", self.status
        yield "map", self.map_method + (f" at {self.layer}" if self.layer else "")
        yield "rule", self.box_rule


def _spread(values: NDArray) -> NDArray:
    """Finite values of a picture from its lowest, 0, to its highest, 1."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    return (values - low) / ((high - low) or 1.0)


def _sides(sides: Iterable[float]) -> str:
    return " × ".join(f"{side:g}" for side in sides)


def _shape(tensor: Tensor) -> str:
    return _sides(tensor.shape)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def _few(words: Sequence[str]) -> str:
    """The first few of a list, and how many more."""
    more = len(words) - SHOWN
    return ", ".join(words[:SHOWN]) + (f", and {more} more" if more > 0 else "")


def _not_shown(more: int, what: str, of: str = "") -> str:
    return f"And {more} more {what}{'s' if more > 1 else ''}{of}." if more > 0 else ""
