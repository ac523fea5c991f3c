"""One picture, explained: every chosen class by every method and layer, side by side; as a page, a sheet, overlays and
raw maps."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from camlucida import maps, render, specs
from camlucida.errors import CamlucidaError, TargetError, UsageError
from camlucida.images.read import read_picture
from camlucida.images.sources import Source
from camlucida.maps.catalogue import Method
from camlucida.maps.merge import Views, merge
from camlucida.networks.labels import find_class
from camlucida.networks.network import Network
from camlucida.report import figures
from camlucida.report import page as pages
from camlucida.report.save import _text
from camlucida.targets import ClassTarget
from camlucida.values import Batch, Grid, Label, Reconstruction, Size, status_words

SCHEMA_VERSION = 1
TOOL = "camlucida explain"
MOST = 20  # pictures of one run
ON_PAGE = 384  # longer side of a picture on the page and on the sheet
MEANING = {**figures.MEANING, "ok": "", "refused": "this method does not explain this network"}

Note = Callable[[Method, tuple[Batch, ...]], None]
"""Told of each column before it is made: the method, and the batches it will look at, one per view."""


@dataclass(frozen=True)
class Scale:
    """How raw values become colours. `per-map`: each map from its lowest to its highest value, 0 always on the
    scale; `shared`: the same for all maps of one method at one layer, over classes and pictures, because
    only they have one unit; `fixed:LO:HI`. A scale that reaches below zero is centred there."""

    how: str = "per-map"
    fixed: tuple[float, float] | None = None

    @classmethod
    def of(cls, spec: str) -> Scale:
        """Raises UsageError."""
        if spec in ("per-map", "shared"):
            return cls(spec)
        match = re.fullmatch(r"fixed:([^:]+):([^:]+)", spec)
        try:
            low, high = map(float, match.groups() if match else ("0", "0"))
        except ValueError:
            low = high = 0.0
        if not (np.isfinite([low, high]).all() and low < high and high > 0):
            raise UsageError(
                "--scale", got=repr(spec), allowed="per-map | shared | fixed:LO:HI with LO < HI and HI > 0"
            )
        return cls("fixed", (low, high))

    def limits(self, explained: Sequence[Explained]) -> Callable[[Cell], tuple[float, float]]:
        """The scale of every cell of these pictures."""
        if self.fixed is not None:
            fixed = self.fixed
            return lambda cell: fixed
        if self.how == "per-map":
            return lambda cell: (
                render.span(cell.heat) if cell.heat is not None and cell.is_painted else (0.0, 0.0)
            )
        columns: dict[tuple[str, str | None], list[NDArray]] = {}
        for cell in (cell for one in explained for row in one.rows for cell in row.cells if cell.is_painted):
            assert cell.heat is not None
            columns.setdefault((cell.method, cell.layer), []).append(cell.heat)
        spans = {column: render.span(*heats) for column, heats in columns.items()}
        return lambda cell: spans.get((cell.method, cell.layer), (0.0, 0.0))


@dataclass(frozen=True)
class Cell:
    """One class by one method at one layer. `method`: as a spec; `target`, `score`: what was explained, and its
    value; `raw`: the map as the method gave it (merged over views: in the drawn frame); `heat (H, W)`: over the
    drawn picture. A refused cell has neither, and says why in `reason`; a reconstruction has `picture`
    instead of `heat`."""

    method: str
    layer: str | None
    status: str
    reason: str = ""
    target: str = ""
    score: float = float("nan")
    raw: NDArray[np.float32] | None = None
    heat: NDArray[np.float32] | None = None
    picture: NDArray[np.uint8] | None = None
    grid: Grid | None = None
    seed: int | None = None

    @property
    def is_painted(self) -> bool:
        """Whether there is a map with something to show; negative values have a colour too."""
        return self.heat is not None and self.status in ("ok", "all-negative")

    @property
    def title(self) -> str:
        """The method with its options; the layer is said apart."""
        return re.sub(r"layer=[^,]*,?", "", self.method).rstrip(":,")


@dataclass(frozen=True)
class Row:
    """One class of one picture."""

    index: int
    label: Label
    probability: float
    logit: float
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Explained:
    """One picture with its rows. `picture`: RGB as drawn; `size`: of the source; `best`: the most probable
    classes, as (label, probability)."""

    source: Source
    size: Size
    picture: NDArray[np.uint8]
    rows: tuple[Row, ...]
    best: tuple[tuple[Label, float], ...]


def methods(spec: str, layers: str | None = None) -> tuple[Method, ...]:
    """The columns: methods with options, `cam,occlusion:patch=16,stride=8`, or `all`; a method that looks at a
    layer and has none given is taken once at each of `layers`. Raises UsageError."""
    # A comma before `option=` goes on with the method's options.
    names = list(maps.METHODS) if spec.strip() == "all" else re.split(r",(?![^,:]*=)", spec)
    at = [name.strip() for name in layers.split(",")] if layers else []
    if not all(at):
        raise UsageError("--layers", got=repr(layers), allowed="names with commas between")
    found: list[Method] = []
    for method in (maps.method(name.strip()) for name in names):
        takes = getattr(method, "layer", "none to choose") is None
        found += [dataclasses.replace(method, layer=name) for name in at] if at and takes else [method]  # type: ignore[type-var]
    return tuple(dict.fromkeys(found))


def classes(spec: str, labels: Sequence[Label]) -> tuple[int | str, ...]:
    """What `--classes` asks for: indices, and `top:k` as it stands. Raises UsageError."""
    found: list[int | str] = []
    for text in (part.strip() for part in spec.split(",")):
        if re.fullmatch(r"top:\s*\d+", text, re.IGNORECASE):
            if int(text[4:]) < 1:
                raise UsageError("--classes", got=repr(text), allowed="top:1 or more")
            found.append(f"top:{int(text[4:])}")
        else:
            found.append(find_class(text, labels))
    return tuple(found)


def explain(
    network: Network,
    source: Source,
    asked: Sequence[int | str],
    columns: Sequence[Method],
    views: Views,
    note: Note = lambda method, batches: None,
) -> Explained:
    """Looks at the whole of one picture. Raises InputError for a picture that cannot be used, TargetError for a
    class that is not there, LayerError for a layer that is not there, UsageError if every method refuses the
    network."""
    shape = network.card.preprocessing
    picture = read_picture(source.read(), shape.mean_colour)
    size = Size(picture.height, picture.width)
    seen = views.of(size, shape)
    batches = tuple(
        Batch(shape.normalise(shape.pixels(picture, view)[None]).to(network.device), (view,), shape)
        for view in seen
    )
    each = [network(batch) for batch in batches]
    logits = torch.stack(each).mean(0)
    probabilities = torch.stack([network.probabilities(one) for one in each]).mean(0)
    labels = network.card.labels
    if labels and len(labels) != logits.shape[1]:
        raise UsageError(
            f"labels for {network.card.name}", got=len(labels), allowed=f"{logits.shape[1]}, one per output"
        )
    chosen = _chosen(asked, probabilities)
    for layer in {getattr(method, "layer", None) for method in columns} - {None}:
        network.find_layer(layer, batches[0].pixels)
    drawn = figures.sized(picture, figures.LONGEST)[0]
    made: list[list[Cell]] = []
    for method in columns:
        note(method, batches)
        made.append(_column(method, network, batches, chosen, drawn.shape[:2], views))
    refused = [column[0] for column in made if column[0].status == "refused"]
    if len(refused) == len(made):
        raise UsageError(f"no method of these explains {network.card.name}", got=refused[0].reason)
    rows = tuple(
        Row(
            c,
            network.card.label(c),
            float(probabilities[0, c]),
            float(logits[0, c]),
            tuple(col[k] for col in made),
        )
        for k, c in enumerate(chosen)
    )
    best = ClassTarget.top(min(5, logits.shape[1])).classes(probabilities)[0].tolist()
    return Explained(
        source, size, drawn, rows, tuple((network.card.label(c), float(probabilities[0, c])) for c in best)
    )


def _chosen(asked: Sequence[int | str], probabilities: torch.Tensor) -> list[int]:
    """Indices, each once, in the order asked."""
    found: list[int] = []
    for one in asked:
        if isinstance(one, int):
            found += ClassTarget(one).classes(probabilities)[0].tolist()
        else:
            most = min(int(one.removeprefix("top:")), probabilities.shape[1])
            found += ClassTarget.top(most).classes(probabilities)[0].tolist()
    return list(dict.fromkeys(found))


def _column(
    method: Method,
    network: Network,
    batches: Sequence[Batch],
    chosen: Sequence[int],
    drawn: tuple[int, ...],
    views: Views,
) -> list[Cell]:
    """The cells of one method; the method's own words where it refuses."""
    name, layer = specs.describe(method, maps.METHODS), getattr(method, "layer", None)
    try:
        try:
            return _cells(method, name, network, batches, [list(chosen)], drawn, views)
        except TargetError:  # a method of one target a picture is asked class by class
            return [cell for c in chosen for cell in _cells(method, name, network, batches, c, drawn, views)]
    except CamlucidaError as error:
        return [Cell(name, layer, "refused", str(error)) for _ in chosen]


def _cells(
    method: Method,
    name: str,
    network: Network,
    batches: Sequence[Batch],
    index: Any,
    drawn: tuple[int, ...],
    views: Views,
) -> list[Cell]:
    made = [method(network, batch, ClassTarget(index)) for batch in batches]
    first = made[0]
    if isinstance(first, Reconstruction):
        if isinstance(index, list) and len(index[0]) > 1:
            raise TargetError("a reconstruction of several classes")  # class by class, then
        picture = first.picture().resize((drawn[1], drawn[0]), Image.Resampling.BICUBIC)
        raw = first.values[0].detach().float().cpu().numpy()
        return [Cell(name, None, "ok", "", first.target, raw=raw, picture=np.asarray(picture))]
    (merged,) = merge(made, max(drawn), views.how)
    raws = first.values[0] if len(made) == 1 else merged
    words = first.status[0] if len(made) == 1 else status_words(merged)
    grid = first.grid if len(made) == 1 else None
    scores = torch.stack([one.scores[0].detach().float() for one in made]).mean(0)
    return [
        Cell(
            name, first.layer, word, "", first.target, float(score), raw.detach().float().cpu().numpy(),
            figures.stretched(heat.detach().float().cpu().numpy(), *drawn), grid=grid, seed=first.seed,
        )
        for word, score, raw, heat in zip(words, scores, raws, merged, strict=True)
    ]  # fmt: skip


def overlay(one: Explained, cell: Cell, low: float, high: float) -> NDArray[np.uint8]:
    """The picture under the cell's map on that scale; a cell without one leaves it grey, with its word on it."""
    if cell.picture is not None:
        return cell.picture
    if cell.is_painted and cell.heat is not None:
        return render.painted(one.picture, cell.heat, low, high)
    grey = render.overlay(one.picture, np.zeros(one.picture.shape[:2], np.float32))
    words = cell.status if cell.status == "refused" else f"{cell.status}: {MEANING[cell.status]}"
    return figures.stamped(grey, words)


def captioned(
    one: Explained, row: Row | None, cell: Cell, low: float, high: float, longest: int
) -> Image.Image:
    """The overlay with its words and its colour bar. `row`: where the class is to be said too."""
    shown = Image.fromarray(overlay(one, cell, low, high))
    if max(shown.size) > longest:
        shown = shown.resize(figures.fitted(*shown.size, longest), Image.Resampling.LANCZOS)
    words = [cell.title + (f" at {cell.layer}" if cell.layer else "")]
    if row is not None:
        words.append(f"{row.label.name.split(',')[0]} {figures.percent(row.probability)}")
    if cell.status == "refused":
        words.append(f"refused: {cell.reason}")
    else:
        words += [cell.target if cell.picture is not None else f"{cell.target} {cell.score:.3g}", cell.status]
    bar = (low, high) if cell.is_painted else None
    return render.captioned(
        np.asarray(shown), _plain(" · ".join(words)), bar=bar, colours="signed" if low < 0 else "heat"
    )


def _plain(text: str) -> str:
    """What Pillow's built-in font can draw; signs that messages use get a spelling."""
    for sign, plain in (("→", "->"), ("×", "x"), ("−", "-"), ("≥", ">="), ("≤", "<=")):
        text = text.replace(sign, plain)
    return figures.latin(text)


def sheet(
    one: Explained, limits: Callable[[Cell], tuple[float, float]], longest: int = ON_PAGE
) -> Image.Image:
    """All of one picture as one picture: a row per class, the picture first, then its cells."""
    small = Image.fromarray(one.picture)
    small = small.resize(figures.fitted(*small.size, longest), Image.Resampling.LANCZOS)
    rows = []
    for row in one.rows:
        words = f"{row.label.name.split(',')[0]} {figures.percent(row.probability)} · logit {row.logit:.3g} · {row.label.id} · class {row.index}"
        plain = render.captioned(np.asarray(small), _plain(words))
        cells = [captioned(one, None, cell, *limits(cell), longest) for cell in row.cells]
        rows.append(render.side_by_side([plain, *cells]))
    return render.below(rows, gap=16)


def entry(one: Explained, limits: Callable[[Cell], tuple[float, float]]) -> dict[str, Any]:
    """What the page shows of one picture."""
    return {
        "name": one.source.relative,
        "size": one.size,
        "aspect": f"calc({one.picture.shape[1]} / {one.picture.shape[0]})",
        "picture": _jpeg(one.picture),
        "best": [(label.name.split(",")[0], share) for label, share in one.best],
        "columns": max((len(row.cells) for row in one.rows), default=1),
        "rows": [
            {
                "name": row.label.name, "id": row.label.id, "index": row.index, "probability": row.probability, "logit": row.logit,
                "cells": [_cell_entry(one, cell, *limits(cell)) for cell in row.cells],
            }
            for row in one.rows
        ],
    }  # fmt: skip


def _cell_entry(one: Explained, cell: Cell, low: float, high: float) -> dict[str, Any]:
    steps = render.shade(np.linspace(low, high, 15)[None], low, high)[0]
    return {
        "cell": cell,
        "meaning": MEANING.get(cell.status, ""),
        "picture": _jpeg(overlay(one, cell, low, high)),
        "low": low,
        "high": high,
        "bar": ", ".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in steps),
        "zero": 100 * -low / (high - low) if low < 0 < high else None,
    }


def page(
    entries: Sequence[Mapping[str, Any]],
    facts: Iterable[tuple[str, str]],
    command: Sequence[str],
    rejected: Sequence[tuple[str, str]] = (),
) -> str:
    """The whole page, one HTML file that asks nothing of any network and needs no script."""
    signed = any(cell["low"] < 0 for one in entries for row in one["rows"] for cell in row["cells"])
    return (
        pages.environment()
        .get_template("explain.html.j2")
        .render(
            pictures=entries, facts=list(facts), command=shlex.join(command), rejected=list(rejected), signed=signed,
        )
    )  # fmt: skip


def _jpeg(picture: NDArray[np.uint8]) -> str:
    image = Image.fromarray(picture)
    if max(image.size) > ON_PAGE:
        image = image.resize(figures.fitted(*image.size, ON_PAGE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=88, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + pages._base64(stream.getvalue())


def table(one: Explained, stem: str, limits: Callable[[Cell], tuple[float, float]]) -> list[dict[str, Any]]:
    """One row of plain values per cell, as `--json` prints it and the manifest keeps it. `map` names the array in
    maps.npz, `overlay` the picture; numbers that are not finite are null."""
    rows = []
    for r, row in enumerate(one.rows, 1):
        for c, cell in enumerate(row.cells, 1):
            name = (
                f"{stem}-{r}-{_safe(row.label.name.split(',')[0])}-{c}-{_safe(cell.method.partition(':')[0])}"
            )
            low, high = limits(cell)
            raw = cell.raw
            finite = raw is not None and bool(np.isfinite(raw).all())
            rows.append(
                {
                    "path": _text(one.source.name), "width": one.size.width, "height": one.size.height,
                    "class_index": row.index, "class_id": row.label.id, "class_name": row.label.name,
                    "probability": _number(row.probability), "logit": _number(row.logit),
                    "method": cell.method, "layer": cell.layer, "target": cell.target, "score": _number(cell.score),
                    "status": cell.status, "reason": cell.reason or MEANING.get(cell.status, ""),
                    "minimum": float(raw.min()) if raw is not None and finite else None,
                    "maximum": float(raw.max()) if raw is not None and finite else None,
                    "scale": [low, high] if cell.is_painted else None,
                    "overlay": f"overlays/{name}.png", "map": name if raw is not None else None,
                    "grid": asdict(cell.grid) if cell.grid else None, "seed": cell.seed,
                }
            )  # fmt: skip
    return rows


def _safe(words: str) -> str:
    kept = "".join(c if c.isalnum() or c in "-._" else "-" for c in words).strip("-._").lower()
    return kept.encode()[:40].decode(errors="ignore") or "x"


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


@dataclass
class Folder:
    """Where one run of explain is written. Its manifest lists every file that we made there, so that
    `--overwrite` removes these and no others."""

    folder: Path
    manifest: dict[str, Any]
    earlier: list[str]

    @classmethod
    def open(cls, folder: str | Path, manifest: Mapping[str, Any], overwrite: bool = False) -> Folder:
        """Looks, and writes nothing yet. Raises UsageError for a folder that holds results already, unless
        `overwrite`, and for one that is not ours."""
        folder = Path(folder)
        earlier: list[str] = []
        taken = folder.is_symlink() or folder.exists()
        if taken and not (folder.is_dir() and not any(folder.iterdir())):
            earlier = _files_of(folder)
            if not overwrite:
                raise UsageError(
                    f"write results to {folder}",
                    got="a folder that holds the results of an earlier run",
                    do="--overwrite replaces it, or name another folder",
                )
        return cls(folder, {"tool": TOOL, "schema_version": SCHEMA_VERSION, **manifest}, earlier)

    def save(
        self,
        explained: Sequence[Explained],
        stems: Sequence[str],
        limits: Callable[[Cell], tuple[float, float]],
        facts: Iterable[tuple[str, str]],
        rejected: Sequence[tuple[str, str]] = (),
    ) -> list[dict[str, Any]]:
        """Writes everything, the manifest first and last; returns the rows of `table`."""
        rows = [table(one, stem, limits) for one, stem in zip(explained, stems, strict=True)]
        sheets = ["explain.png"] if len(stems) == 1 else [f"explain-{stem}.png" for stem in stems]
        every = [cell for some in rows for cell in some]
        files = ["explain.html", "maps.npz", *sheets, *(cell["overlay"] for cell in every)]
        manifest = {
            **self.manifest,
            "rejected": [{"path": _text(p), "reason": _text(r)} for p, r in rejected],
            "cells": every,
        }
        try:
            (self.folder / "overlays").mkdir(parents=True, exist_ok=True)
            self._manifest({**manifest, "state": "running", "files": sorted({*files, *self.earlier})})
            for name in set(self.earlier) - set(files):
                (self.folder / name).unlink(missing_ok=True)
            for one, some, name in zip(explained, rows, sheets, strict=True):
                cells = [(row, cell) for row in one.rows for cell in row.cells]
                for (row, cell), about in zip(cells, some, strict=True):
                    shown = captioned(one, row, cell, *limits(cell), figures.LONGEST)
                    self._write(about["overlay"], render.png(shown))
                self._write(name, render.png(sheet(one, limits)))
            raws = [cell.raw for one in explained for row in one.rows for cell in row.cells]
            stream = io.BytesIO()
            np.savez(
                stream,
                **{about["map"]: raw for about, raw in zip(every, raws, strict=True) if raw is not None},  # type: ignore[arg-type]
            )
            self._write("maps.npz", stream.getvalue())
            text = page([entry(one, limits) for one in explained], facts, self.manifest["command"], rejected)
            self._write("explain.html", text.encode("utf-8", "replace"))
            self._manifest({**manifest, "state": "done", "files": files})
        except OSError as error:
            raise UsageError(
                f"cannot write to {error.filename or self.folder}",
                got=error.strerror or error,
                do="mend that and run again",
            ) from error
        return every

    def _manifest(self, manifest: Mapping[str, Any]) -> None:
        text = json.dumps(manifest, indent=1, allow_nan=False, default=str)
        self._write("manifest.json", (text + "\n").encode())

    def _write(self, name: str, data: bytes) -> None:
        """Whole or not at all."""
        file = self.folder / name
        partial = file.with_name(f".{file.name[-200:]}.partial")
        try:
            partial.write_bytes(data)
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)


def _files_of(folder: Path) -> list[str]:
    """The files that an earlier run of explain wrote into a folder. Raises UsageError if none did."""
    try:
        stored = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        stored = None
    if not isinstance(stored, dict) or stored.get("tool") != TOOL:
        raise UsageError(
            f"write results to {folder}",
            got="a folder with other files" if folder.is_dir() else "something that is not a folder",
            allowed="a new or empty folder, or one that camlucida explain wrote",
            do="nothing was touched; name another folder",
        )
    known = re.compile(r"explain\.html|maps\.npz|explain(-[^/]+)?\.png|overlays/[^/]+\.png")
    return [name for name in stored.get("files", []) if isinstance(name, str) and known.fullmatch(name)]
