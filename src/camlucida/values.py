"""The values that travel: sizes, boxes and views (from `geometry`), batches, predictions, maps and what was found.
Frozen; change is `dataclasses.replace`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from camlucida import render
from camlucida.display import SHOWN, SHOWN_CLASSES, few, not_shown, sides
from camlucida.display import Shown as Shown
from camlucida.errors import UsageError
from camlucida.geometry import Box as Box
from camlucida.geometry import Grid as Grid
from camlucida.geometry import ScoredBox as ScoredBox
from camlucida.geometry import Size as Size
from camlucida.geometry import View as View
from camlucida.geometry import between_cells as between_cells
from camlucida.geometry import coverage_mean, sample
from camlucida.geometry import source_samples as source_samples

Status = Literal["ok", "flat", "all-negative", "no-gradient", "non-finite", "whole-picture"]


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
            yield "views", few(views)

    def _pictures(self) -> Iterable[tuple[str, Image.Image]]:
        if self.pixels.ndim == 4:
            for number, picture in enumerate(self.pictures(SHOWN), 1):
                yield f"{number}", render.fitted(picture)

    def _more(self) -> str:
        unknown = "Units unknown: shown from lowest to highest value." if self.preprocessing is None else ""
        return " ".join(filter(None, [not_shown(len(self) - SHOWN, "picture"), unknown]))

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
    """`logits (N, C)` float32, and `probabilities (N, C)` through the card's `activation`: the logits once more where
    it is `none`; `classes (N, k)` best first; `labels`: for each picture k labels."""

    logits: Tensor
    probabilities: Tensor
    classes: Tensor
    labels: tuple[tuple[Label, ...], ...]
    views: tuple[View | None, ...]
    activation: str = "softmax"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "pictures", len(self.logits)
        yield "classes", self.logits.shape[1]
        if len(self.classes) and self.classes.shape[1]:
            yield "best", few([f"{row[0][0]} {row[0][2]}" for row in self._rows(len(self.classes), 1)])

    def _rows(self, pictures: int, most: int) -> list[list[tuple[str, str, str, str, int]]]:
        """For each picture its best classes as words: name, id, probability, logit; and the index."""
        spoken = "{:.3g}" if self.activation == "none" else "{:.1%}"
        return [
            [
                (one.name, one.id, spoken.format(self.probabilities[i, c]), f"{self.logits[i, c]:.3g}", c)
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
        return render.html("Prediction", facts, (), not_shown(len(self.logits) - SHOWN, "picture"))


@dataclass(frozen=True, repr=False)
class HeatMaps(Shown):
    """Raw maps `values (N, K, *grid)` float32, unscaled, signed wherever the formula is, on the device they
    were made on. `classes (N, K)` or None; `scores (N, K)`: the scalar explained; `target`: what was
    explained, in words; `logits (N, C)`: the network's output in the same pass, where it is logits; `notes`: how
    the values came about, where a method has several ways."""

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
    notes: tuple[str, ...] = ()

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
            return coverage_mean(self.values, self.grid)
        if align == "stretch":
            mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(self.grid.view)]
            return F.interpolate(self.values, self.grid.view, mode=mode, align_corners=False)
        if align != "receptive-field":
            raise UsageError("in_view(align=…)", got=repr(align), allowed="stretch | receptive-field")
        values = self.values
        for axis, (length, offset, stride) in enumerate(
            zip(self.grid.view, self.grid.offset, self.grid.stride, strict=True)
        ):
            values = sample(values, 2 + axis, (np.arange(length, dtype=np.float64) + 0.5 - offset) / stride)
        return values

    def in_source(self, limit: int | None = None) -> tuple[Tensor, ...]:
        """Maps over the pixels of each source picture: a tuple of `(K, H, W)`; 0 where the view did not look.

        `limit`: longest side of the result; a larger picture's frame is then sampled on a coarser grid.
        """
        values, cells = self.values, self.values.shape[2:]
        if self.grid.kind == "places":
            values = coverage_mean(self.values, self.grid)
            cells = values.shape[2:]
        return tuple(_in_source(values[i], cells, view, limit) for i, view in enumerate(self.views))

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
        about: dict[str, Any] = {
            name: getattr(self, name) for name in ("method", "target", "layer", "seed", "notes")
        }
        about |= {"status": self.status, "grid": asdict(self.grid)}
        about["views"] = [view and asdict(view) for view in self.views]
        (folder / "maps.json").write_text(json.dumps(about, indent=1), encoding="utf-8")

    def _facts(self) -> Iterable[tuple[str, object]]:
        pictures, targets = self.values.shape[:2]
        yield "pictures", pictures
        yield "maps each", f"{targets} of {sides(self.values.shape[2:])} cells"
        yield "method", self.method + (f" at {self.layer}" if self.layer else "")
        yield "explained", self.target
        words = [word for row in self.status for word in row]
        yield "status", few([f"{words.count(w)} {w}" for w in dict.fromkeys(words)])
        if self.seed is not None:
            yield "seed", self.seed
        if self.notes:
            yield "computed", "; ".join(self.notes)

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
                    not_shown(targets - SHOWN_CLASSES, "map", " of each picture"),
                    not_shown(pictures - SHOWN, "picture"),
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


@dataclass(frozen=True, repr=False)
class Reconstruction(Shown):
    """A signed picture `(N, C, *spatial)` float32 from deconvnet or guided backpropagation, over the pixels of the
    view: no heat map, so nothing boxes it.

    `target`: what was explained, in words; `details`: more of it for each picture, where pictures differ; `scores (N,)`
    and `classes (N,)`: the scalar explained and its class. `windows`: per picture and axis the first pixel that
    can differ from zero and the one past the last, from the receptive field; `layer`, `seed`: where they matter.
    """

    values: Tensor
    views: tuple[View | None, ...]
    method: str
    target: str
    layer: str | None = None
    scores: Tensor | None = None
    classes: Tensor | None = None
    details: tuple[str, ...] = ()
    windows: tuple[tuple[tuple[int, int], ...], ...] | None = None
    seed: int | None = None

    @cached_property
    def status(self) -> tuple[Status, ...]:
        """One word per picture: ok, flat (zero everywhere) or non-finite."""
        flat = self.values.flatten(1)
        return tuple(
            "non-finite" if not finite else "ok" if some else "flat"
            for finite, some in zip(flat.isfinite().all(1).tolist(), flat.any(1).tolist(), strict=True)
        )

    def picture(
        self, index: int = 0, frame: Literal["view", "source", "window"] = "view", limit: int | None = None
    ) -> Image.Image:
        """One of them as a picture: zero is mid-grey, the largest magnitude black or white. `frame`: over the view,
        over the source picture (of at most `limit` pixels a side), or its window alone. Raises UsageError for
        input that is not 2-D."""
        if self.values.ndim != 4:
            got = f"values {tuple(self.values.shape)}"
            raise UsageError("Reconstruction.picture", got=got, allowed="(N, C, H, W)")
        if frame not in ("view", "source", "window"):
            raise UsageError("picture(frame=…)", got=repr(frame), allowed="view | source | window")
        values = self.values[index]
        if frame == "source":
            values = _in_source(values, values.shape[1:], self.views[index], limit)
        elif frame == "window" and self.windows is not None:
            (top, bottom), (left, right) = self.windows[index]
            values = values[:, top:bottom, left:right]
        return Image.fromarray(render.signed_rgb(values.detach().float().cpu().numpy()))

    def in_source(self, limit: int | None = None) -> tuple[Tensor, ...]:
        """Over the pixels of each source picture: a tuple of `(C, H, W)`, 0 where the view did not look. `limit`: longest
        side of the result."""
        size = self.values.shape[2:]
        return tuple(
            _in_source(v, size, view, limit) for v, view in zip(self.values, self.views, strict=True)
        )

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "pictures", len(self.values)
        yield "values", _shape(self.values)
        yield "method", self.method + (f" at {self.layer}" if self.layer else "")
        yield "explained", self.target
        if any(word != "ok" for word in self.status):
            yield "status", few(self.status)
        if self.seed is not None:
            yield "seed", self.seed

    def _pictures(self) -> Iterable[tuple[str, Image.Image]]:
        if self.values.ndim == 4:
            for i in range(min(SHOWN, len(self.values))):
                most = float(self.values[i].abs().max())
                words = [f"{i + 1}", *self.details[i : i + 1], f"± {most:.3g}"]
                yield " · ".join(words), render.fitted(self.picture(i))

    def _more(self) -> str:
        return not_shown(len(self.values) - SHOWN, "picture")


@dataclass(frozen=True, repr=False)
class Localization(Shown):
    """One class of one picture: where it is and how sure. `rank` counts from 1; `probability` is None where the
    network gives none (activation `none`: regression, SVM); `layer` is where the map was taken."""

    path: str
    rank: int
    class_index: int
    class_id: str
    class_name: str
    probability: float | None
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
        if self.probability is not None:
            yield "probability", f"{self.probability:.1%}"
        yield "logit", f"{self.logit:.4g}"
        yield "boxes", few([str(box) for box in self.boxes]) or "none"
        yield "status", self.status
        yield "map", self.map_method + (f" at {self.layer}" if self.layer else "")
        yield "rule", self.box_rule


def _spread(values: NDArray) -> NDArray:
    """Finite values of a picture from its lowest, 0, to its highest, 1."""
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = values.min(), values.max()
    return (values - low) / ((high - low) or 1.0)


def _in_source(values: Tensor, cells: Sequence[int], view: View | None, limit: int | None) -> Tensor:
    """Maps `(K, *cells)` that cover a view, over the source picture; 0 where the view did not look."""
    y, x = source_samples(view, len(cells), limit)
    assert view is not None  # source_samples has refused maps without a view
    out = sample(values, 1, y * (cells[0] / view.size.height) - 0.5)
    out = sample(out, 2, x * (cells[1] / view.size.width) - 0.5)
    if not view.is_whole:
        seen = np.outer((y > 0) & (y < view.size.height), (x > 0) & (x < view.size.width))
        out = out * torch.from_numpy(seen).to(out)
    return out


def _shape(tensor: Tensor) -> str:
    return sides(tensor.shape)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
