"""One picture, explained: every chosen class by every method and layer, and the scale of their colours."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from camlucida import maps, render
from camlucida.errors import CamlucidaError, TargetError, UsageError
from camlucida.images.read import read_picture
from camlucida.images.sources import Source
from camlucida.maps.catalogue import Method, Reconstructor
from camlucida.maps.merge import Views, merge
from camlucida.networks.labels import find_class
from camlucida.networks.network import Network
from camlucida.report import figures
from camlucida.report.explain_cost import Cost, bare_pass, costed
from camlucida.targets import ClassTarget
from camlucida.values import Batch, Grid, HeatMaps, Label, Reconstruction, Size, status_words

MOST = 20  # pictures of one run

Column = Method | Reconstructor
Note = Callable[[Column, float], None]
"""Told of each column before it is made: the method, and the seconds that one forward pass of the picture takes."""

DEAR = (
    "saliency", "guided-backprop", "full-grad", "guided-grad-cam",  # a pass back to the pixels
    "ablation-cam", "deconvnet", "smooth-grad", "captum", "occlusion", "score-cam", "rise",  # many passes
)  # fmt: skip
"""What `all` takes last, the dearest at the end; the others cost about one forward pass."""
QUICK = {
    "rise": "rise:masks=400",
    "occlusion": "occlusion:stride=16",
    "score-cam": "score-cam:channels=64",
    "smooth-grad": "smooth-grad:n=10",
}
"""What `all` takes instead when it is to be quick: coarser maps for a tenth of the time or so."""


@dataclass(frozen=True)
class Scale:
    """How raw values become colours. `per-map`: each map from its lowest to its highest value, 0 on the scale too
    unless the whole map lies nearer to its highest value than to 0, as RISE's may; `shared`: the same for all maps of one method at one layer, over classes and pictures, because
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
            return _own_limits
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
    instead of `heat`. `cost`: of the method for all classes together. `reason` of another cell: what the method warned
    of."""

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
    cost: Cost | None = None

    @property
    def is_painted(self) -> bool:
        """Whether there is a map with something to show; negative values have a colour too."""
        return self.heat is not None and self.status in ("ok", "all-negative")

    @property
    def magnitude(self) -> float:
        """Of a reconstruction: how far from zero its black and white are."""
        return 0.0 if self.raw is None else float(np.abs(self.raw).max())

    @property
    def title(self) -> str:
        """The method with its options; the layer is said apart."""
        return re.sub(r"layer=[^,]*,?", "", self.method).rstrip(":,")


@dataclass(frozen=True)
class Row:
    """One class of one picture. `probability`: None where the network gives none."""

    index: int
    label: Label
    probability: float | None
    logit: float
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Explained:
    """One picture with its rows. `picture`: RGB as drawn; `size`: of the source; `best`: the most probable
    classes, as (label, probability, logit); `bare`: seconds that one forward pass of it takes."""

    source: Source
    size: Size
    picture: NDArray[np.uint8]
    rows: tuple[Row, ...]
    best: tuple[tuple[Label, float | None, float], ...]
    bare: float = float("nan")


def _own_limits(cell: Cell) -> tuple[float, float]:
    if cell.heat is None or not cell.is_painted:
        return 0.0, 0.0
    low, high = render.span(cell.heat)
    lowest = float(cell.heat.min())
    return (lowest, high) if high / 2 < lowest < high else (low, high)


def is_all(spec: str) -> bool:
    """Whether every method is asked for."""
    return spec.strip() == "all"


def methods(spec: str, layers: str | None = None, quick: bool = False) -> tuple[Column, ...]:
    """The columns: methods with options, `cam,occlusion:patch=16,stride=8`, or `all`: every heat map and reconstruction,
    from cheap to dear, `quick`: with fewer passes; a method that looks at a layer and has none given is taken once at
    each of `layers`. Raises UsageError."""
    if quick and not is_all(spec):
        raise UsageError(
            "--quick", got=f"--methods {spec}", allowed="--methods all", do="give options: rise:masks=400"
        )
    # A comma before `option=` goes on with the method's options.
    names = every(quick) if is_all(spec) else re.split(r",(?![^,:]*=)", spec)
    at = [name.strip() for name in layers.split(",")] if layers else []
    if not all(at):
        raise UsageError("--layers", got=repr(layers), allowed="names with commas between")
    found: list[Column] = []
    for method in (maps.any_method(name.strip()) for name in names):
        takes = getattr(method, "layer", "none to choose") is None
        found += [dataclasses.replace(method, layer=name) for name in at] if at and takes else [method]  # type: ignore[type-var]
    return tuple(dict.fromkeys(found))


def every(quick: bool = False) -> list[str]:
    """Every method that is installed, from cheap to dear."""
    names = [*maps.available(), *maps.RECONSTRUCTIONS]
    names.sort(key=lambda name: DEAR.index(name) if name in DEAR else -1)
    return [QUICK.get(name, name) if quick else name for name in names]


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
    columns: Sequence[Column],
    views: Views,
    note: Note = lambda method, bare: None,
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
    seconds, work = bare_pass(network, batches[0])
    made: list[list[Cell]] = []
    for method in columns:
        note(method, seconds)
        made.append(_column(method, network, batches, chosen, drawn.shape[:2], views, work))
    refused = [column[0] for column in made if column[0].status == "refused"]
    if len(refused) == len(made):
        raise UsageError(f"no method of these explains {network.card.name}", got=refused[0].reason)

    def about(c: int) -> tuple[Label, float | None, float]:
        share = None if network.card.activation == "none" else float(probabilities[0, c])
        return network.card.label(c), share, float(logits[0, c])

    rows = tuple(Row(c, *about(c), tuple(column[k] for column in made)) for k, c in enumerate(chosen))
    best = ClassTarget.top(min(5, logits.shape[1])).classes(probabilities)[0].tolist()
    return Explained(source, size, drawn, rows, tuple(about(c) for c in best), seconds)


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
    method: Column,
    network: Network,
    batches: Sequence[Batch],
    chosen: Sequence[int],
    drawn: tuple[int, ...],
    views: Views,
    bare: float,
) -> list[Cell]:
    """The cells of one method with what they cost and what it warned of; the method's own words where it refuses.
    `bare`: seconds of work of one forward pass."""
    name, layer = maps.describe(method), getattr(method, "layer", None)

    def costed_cells(indices: Sequence[Any]) -> tuple[list[Cell], Cost]:
        def make() -> list[Cell]:
            return [cell for i in indices for cell in _cells(method, name, network, batches, i, drawn, views)]

        return costed(make, network.device, bare)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            try:
                cells, cost = costed_cells([[list(chosen)]])
            except TargetError:  # a method of one target a picture is asked class by class
                cells, cost = costed_cells(chosen)
        except CamlucidaError as error:
            return [Cell(name, layer, "refused", str(error)) for _ in chosen]
    words = "; ".join(dict.fromkeys(str(one.message) for one in caught if one.category is UserWarning))
    for one in caught:
        if one.category is not UserWarning:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return [dataclasses.replace(cell, cost=cost, reason=words) for cell in cells]


def _cells(
    method: Column,
    name: str,
    network: Network,
    batches: Sequence[Batch],
    index: Any,
    drawn: tuple[int, ...],
    views: Views,
) -> list[Cell]:
    first = method(network, batches[0], ClassTarget(index))
    if isinstance(
        first, Reconstruction
    ):  # of the first view: signed pictures have no mean that says anything
        if isinstance(index, list) and len(index[0]) > 1:
            raise TargetError("a reconstruction of several classes")  # class by class, then
        return [_reconstructed(first, name, batches[0], drawn)]
    made = [first, *(cast(HeatMaps, method(network, batch, ClassTarget(index))) for batch in batches[1:])]
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


def _reconstructed(made: Reconstruction, name: str, batch: Batch, drawn: tuple[int, ...]) -> Cell:
    """The cell of a signed picture, laid where the view looked."""
    colours = made
    if getattr(batch.preprocessing, "channels", "") == "BGR":
        colours = dataclasses.replace(made, values=made.values.flip(1))
    grey = colours.picture(0, "source", max(drawn)).resize((drawn[1], drawn[0]), Image.Resampling.BICUBIC)
    ok = made.status[0] == "ok"
    return Cell(
        name, made.layer, made.status[0], "", ": ".join([made.target, *made.details]),
        float("nan") if made.scores is None else float(made.scores[0]),
        made.values[0].detach().float().cpu().numpy(), picture=np.asarray(grey) if ok else None, seed=made.seed,
    )  # fmt: skip
