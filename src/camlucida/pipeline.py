"""Picture → map → box: the whole way on one screen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from camlucida import maps, specs
from camlucida.boxes import RULES, FractionOfMax, rule
from camlucida.boxes.component_tree import sweeps
from camlucida.boxes.from_map import MAX_SIDE, Rule, boxes_of
from camlucida.errors import InputError, UsageError
from camlucida.evaluate.localization import Measured, Tally, finite, guessed
from camlucida.images import sources
from camlucida.images.datasets import DataSet
from camlucida.images.read import MAX_PIXELS, read_picture
from camlucida.images.sources import Source
from camlucida.maps.cam import CAM
from camlucida.maps.catalogue import Method, as_heat_map, for_network
from camlucida.maps.merge import Views, merge, of_classes
from camlucida.networks.network import Network
from camlucida.targets import Bound, ClassTarget, Output, Target
from camlucida.values import Batch, Box, HeatMaps, Localization, Size, View, status_words

THRESHOLDS = np.arange(100) / 100  # of the page's slider and of the evaluation's curve
SWEEP_SIDE = (
    96  # the page's swept boxes are read off maps of at most this many samples a side: they are for looking
)
MEASURED_SIDE = 256  # the same for the curve of an evaluation
GRID_SIDE = 64  # the same for the grids of merged maps that the page draws
KEPT_PIXELS = 2_000_000  # a larger picture is read again when it is drawn, rather than kept
KEPT_IN_ALL = 32_000_000  # and so are pictures beyond so many pixels in a part: 100 MB


@dataclass(frozen=True)
class Plan:
    """How pictures are localized: everything but the pictures."""

    network: Network
    method: Method | None  # None: CAM where the head allows it, else Grad-CAM
    rule: Rule
    views: Views
    top: int = 5
    max_pixels: int = MAX_PIXELS  # a larger picture is rejected

    @property
    def method_name(self) -> str:
        return specs.describe(self.method, maps.METHODS) if self.method is not None else "auto"

    @property
    def rule_name(self) -> str:
        return specs.describe(self.rule, RULES)


@dataclass(frozen=True)
class Seen:
    """All that was found in one picture. `maps (K, h, w)`: raw maps of the K localized classes, their grid
    laid over the whole picture; `sweep (K, T, 4)`: the box of each class at each of `thresholds (T,)` (shares
    of the map's maximum); `probabilities (C,)` of all classes."""

    source: Source
    picture: Image.Image
    found: tuple[Localization, ...]
    maps: NDArray[np.float32]
    thresholds: NDArray[np.float64]
    sweep: NDArray[np.float64]
    truth: tuple[Box, ...] = ()
    probabilities: NDArray[np.float32] | None = None
    judged: Any = None


Judge = Callable[[int, "Looked"], Any]
"""What is made of a picture, number i of its part, while its maps are at hand."""


@dataclass(frozen=True)
class Looked:
    """Maps of the K localized classes of one picture, `merged (K, H, W)` over the whole of it (at most `MAX_SIDE` a
    side), and `raw`, the same before any upsampling where there is one view; with what was found."""

    size: Size
    found: tuple[Localization, ...]
    merged: NDArray[np.float32]
    raw: NDArray[np.float32]
    probabilities: NDArray[np.float32]
    picture: Callable[[], Image.Image]


@dataclass(frozen=True)
class Rejected:
    """A picture that could not be used, and why."""

    source: Source
    reason: str


def plan(
    net: Network, *, top: int = 5, method: Any = "auto", boxes: Any = "auto", views: Any = "auto"
) -> Plan:
    """Resolves names: `auto` is what the network's card was tuned to; specs such as `occlusion:patch=16`,
    `fraction-of-max:threshold=0.3`, `flip+1+1.5`; or the objects themselves. Raises UsageError."""
    tuned = net.card.localization
    method = tuned.method if method == "auto" else method
    chosen = (
        maps.method(method)
        if isinstance(method, str) and method != "auto"
        else None
        if method == "auto"
        else as_heat_map(method)
    )
    boxes = tuned.boxes if isinstance(boxes, str) and boxes == "auto" else boxes
    views = tuned.views if isinstance(views, str) and views == "auto" else views
    return Plan(net, chosen, rule(boxes) if isinstance(boxes, str) else boxes, Views.parse(views), top)


def localize(
    net: Network, images: Any, *, top: int = 5, method: Any = "auto", boxes: Any = "auto", views: Any = "auto"
) -> Iterator[tuple[Localization, ...]]:
    """For each picture its `top` classes with their boxes, best first; streams. `images`: a path, folder,
    glob, archive or manifest, a PIL picture, array or tensor, or several of them. Raises InputError at a
    picture that cannot be used."""
    chosen = plan(net, top=top, method=method, boxes=boxes, views=views)
    for part in _parts(images, 32):
        for seen in look(chosen, part, sweeping=False):
            if isinstance(seen, Rejected):
                raise InputError(f"{seen.source.name}: {seen.reason}")
            yield seen.found


def look(
    chosen: Plan,
    part: Sequence[Source | Any],
    *,
    batch: int = 32,
    workers: int = 2,
    classes: Sequence[int] | None = None,
    truth: Sequence[tuple[Box, ...]] | None = None,
    sweeping: bool = True,
    sweep_side: int = SWEEP_SIDE,
    besides: bool = False,
    judge: Judge | None = None,
) -> Iterator[Seen | Rejected]:
    """Localizes one part of a run, in order. Pictures that the network sees at one shape share batches, in an
    order that the part alone fixes; the boxes of a batch are found by `workers` threads while the network runs
    on the next. `classes`: localize this class of each picture instead of the predicted ones; with `besides`, before them.
    `judge` runs in those threads; what it gives is in `Seen.judged`."""
    side = sweep_side if sweeping else 0
    pool = ThreadPoolExecutor(max(workers, 1))
    try:
        read = _kept(pool.map(lambda source: _read(chosen, source), part))
        groups: dict[tuple, list[int]] = defaultdict(list)
        for i, one in enumerate(read):
            if not isinstance(one, Rejected):
                groups[tuple(tuple(p.shape) for p in one.pixels)].append(i)
        results: dict[int, Future[_Boxed]] = {}
        given = iter(range(len(read)))
        following = next(given, None)
        chunks = [m[start : start + batch] for m in groups.values() for start in range(0, len(m), batch)]
        for chunk in [*chunks, []]:
            wanted = None if classes is None else [classes[i] for i in chunk]
            mapped = _map(chosen, [read[i] for i in chunk], wanted, besides) if chunk else []  # type: ignore[misc]
            for i, one_mapped in zip(chunk, mapped, strict=True):
                one_judge = partial(judge, i) if judge else None
                results[i] = pool.submit(_boxed, chosen, read[i], one_mapped, side, one_judge)  # type: ignore[arg-type]
            # What is ready is given away, so that its picture need not be kept; at the end, what is left.
            while following is not None:
                one = read[following]
                ready = isinstance(one, Rejected) or (following in results and results[following].done())
                if chunk and not ready:
                    break
                found = truth[following] if truth else ()
                yield _seen(chosen, one, results.pop(following, None), found, sweeping)
                read[following] = None  # type: ignore[call-overload]
                following = next(given, None)
    finally:
        pool.shutdown(cancel_futures=True)


def _kept(read: Iterable[_Read | Rejected]) -> list[_Read | Rejected]:
    """What was read, with as many of the pictures as may be kept; the others are read again when they are drawn."""
    kept, pixels = [], 0
    for one in read:
        if isinstance(one, _Read) and one.picture is not None:
            pixels += one.size.height * one.size.width
            one = one if pixels <= KEPT_IN_ALL else replace(one, picture=None)
        kept.append(one)
    return kept


def _seen(
    chosen: Plan,
    one: _Read | Rejected,
    result: Future[_Boxed] | None,
    truth: tuple[Box, ...],
    sweeping: bool,
) -> Seen | Rejected:
    if isinstance(one, Rejected) or result is None:
        assert isinstance(one, Rejected)
        return one
    try:
        picture, boxed = _picture(chosen, one), result.result()
    except InputError as error:  # it was there a moment ago
        return Rejected(one.source, str(error))
    thresholds = THRESHOLDS if sweeping else THRESHOLDS[:0]
    return Seen(
        one.source, picture, boxed.found, boxed.grid, thresholds, boxed.sweep, truth, boxed.probabilities,
        boxed.judged,
    )  # fmt: skip


def measure(
    chosen: Plan, data: DataSet, *, batch: int = 64, workers: int = 2, part: int = 256
) -> Iterator[int | Measured]:
    """Judges the plan on labelled pictures by the true class's map. Yields how many pictures each part held,
    and last the figures. Raises UsageError if not a single picture could be used."""
    tally = Tally(chosen.rule.level)
    for start in range(0, len(data), part):
        examples = data.examples[start : start + part]
        labels, truth = [e.label for e in examples], [() if e.blacklisted else e.boxes for e in examples]
        looked = look(
            chosen,
            [e.source for e in examples],
            batch=batch,
            workers=workers,
            classes=labels,
            truth=truth,
            sweep_side=MEASURED_SIDE,
        )
        for label, seen in zip(labels, looked, strict=True):
            if isinstance(seen, Rejected):
                tally.rejected.append((seen.source.name, seen.reason))
            elif seen.probabilities is not None:
                try:
                    finite(seen.probabilities)
                except InputError as error:
                    tally.rejected.append((seen.source.name, str(error)))
                    continue
                size = Size(seen.picture.height, seen.picture.width)
                tally.add(
                    label,
                    seen.probabilities,
                    size,
                    seen.truth,
                    [guessed(chosen.rule, seen.found[0].boxes)],
                    seen.sweep[0],
                    seen.thresholds,
                )
        yield len(examples)
    yield tally.measured()


@dataclass(frozen=True)
class _Read:
    source: Source
    size: Size
    picture: Image.Image | None
    pixels: tuple[Tensor, ...]  # uint8, one per view
    views: tuple[View, ...]


@dataclass(frozen=True)
class _Mapped:
    probabilities: NDArray[np.float32]
    logits: NDArray[np.float32]
    classes: list[int]
    maps: tuple[HeatMaps, ...]  # of this picture alone, one for each view


@dataclass(frozen=True)
class _Boxed:
    found: tuple[Localization, ...]
    grid: NDArray[np.float32]
    sweep: NDArray[np.float64]
    probabilities: NDArray[np.float32]
    judged: Any = None


def _read(chosen: Plan, source: Source | Any) -> _Read | Rejected:
    shape = chosen.network.card.preprocessing
    named = source if isinstance(source, Source) else _Given(source)
    try:
        picture = read_picture(_payload(named), shape.mean_colour, chosen.max_pixels)
    except InputError as error:
        return Rejected(named, str(error))
    size = Size(picture.height, picture.width)
    views = chosen.views.of(size, shape)
    straight = tuple(replace(view, flip=False) for view in views)
    shown = {view: shape.pixels(picture, view) for view in dict.fromkeys(straight)}
    pixels = tuple(
        shown[key].flip(2) if view.flip else shown[key] for key, view in zip(straight, views, strict=True)
    )
    return _Read(named, size, picture if size.height * size.width <= KEPT_PIXELS else None, pixels, views)


def _picture(chosen: Plan, one: _Read) -> Image.Image:
    """The picture that was kept, or read again."""
    return one.picture or read_picture(
        _payload(one.source), chosen.network.card.preprocessing.mean_colour, chosen.max_pixels
    )


def _map(
    chosen: Plan, pictures: Sequence[_Read], wanted: Sequence[int] | None, besides: bool = False
) -> list[_Mapped]:
    """Maps of one batch in each view; the views agree on the classes by their mean probability."""
    net, count = chosen.network, chosen.views.count
    shared = _sharing(pictures[0])

    def batch(views: Sequence[int]) -> Batch:
        pixels = torch.stack([p.pixels[v] for v in views for p in pictures])
        shown = net.card.preprocessing.normalise(pixels).to(net.device)
        # Convolutions run faster so, whatever the layout of their weights.
        shown = shown.contiguous(memory_format=torch.channels_last)
        return Batch(shown, tuple(p.views[v] for v in views for p in pictures))

    batches = [batch(views) for views in shared]
    method = chosen.method or for_network(net, batches[0])
    probabilities = logits = None

    def apart(each: Sequence[Tensor]) -> list[Tensor]:
        """What batches hold, one tensor for each view."""
        return [view for one in each for view in one.split(len(pictures))]

    def agreed(each: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        every = apart(each)
        return torch.stack([net.probabilities(one) for one in every]).mean(0), torch.stack(every).mean(0)

    def over(classes: Tensor, views: Sequence[int]) -> Tensor:
        return classes.repeat(len(views), 1)

    made: list[HeatMaps] = []
    top = chosen.top if wanted is None or besides else 0
    targets: list[Target] = [
        _Wanted(None if wanted is None else [*wanted] * len(views), top) for views in shared
    ]
    if count > 1 and top:
        # CAM has the maps of all classes after one pass; other methods need one more once the classes are agreed on.
        if isinstance(method, CAM):
            made = [method(net, b, ClassTarget.all()) for b in batches]
            probabilities, logits = agreed([one.scores for one in made])
        else:
            probabilities, logits = agreed([net(b) for b in batches])
        classes = _Wanted(wanted, top).classes(probabilities)
        made = [of_classes(one, over(classes, views)) for one, views in zip(made, shared, strict=False)]
        targets = [ClassTarget(over(classes, views)) for views in shared]
    made = made or [method(net, b, target) for b, target in zip(batches, targets, strict=True)]
    if logits is None or probabilities is None:
        each = [net(b) if one.logits is None else one.logits for one, b in zip(made, batches, strict=True)]
        probabilities, logits = agreed(each)
    if net.card.labels and len(net.card.labels) != logits.shape[1]:
        raise UsageError(
            f"labels for {net.card.name}",
            got=len(net.card.labels),
            allowed=f"{logits.shape[1]}, one per output",
        )
    assert made[0].classes is not None
    rows = zip(
        probabilities.cpu().numpy(),
        logits.cpu().numpy(),
        made[0].classes[: len(pictures)].tolist(),
        strict=True,
    )
    name = specs.describe(method, maps.METHODS)
    made = [replace(one, method=name, values=one.values.cpu()) for one in made]
    places = [
        (one, start * len(pictures))
        for one, views in zip(made, shared, strict=True)
        for start in range(len(views))
    ]
    return [
        _Mapped(p, z, c, tuple(_of_picture(one, start + i) for one, start in places))
        for i, (p, z, c) in enumerate(rows)
    ]  # fmt: skip


def _sharing(one: _Read) -> list[list[int]]:
    """Which views go through the network together: a view and its mirror image, which have one shape."""
    shared: list[list[int]] = []
    for v, pixels in enumerate(one.pixels):
        first = shared[-1][0] if shared else None
        if first is not None and len(shared[-1]) == 1 and pixels.shape == one.pixels[first].shape:
            shared[-1].append(v)
        else:
            shared.append([v])
    return shared


def _of_picture(every: HeatMaps, i: int) -> HeatMaps:
    """Of maps of several pictures, those of picture i."""
    only = slice(i, i + 1)
    return replace(
        every,
        values=every.values[only],
        classes=None if every.classes is None else every.classes[only],
        scores=every.scores[only],
        views=every.views[only],
        logits=None,
        no_gradient=None if every.no_gradient is None else every.no_gradient[only],
    )


def _boxed(
    chosen: Plan,
    one: _Read,
    mapped: _Mapped,
    sweep_side: int,
    judge: Callable[[Looked], Any] | None = None,
) -> _Boxed:
    """The maps of one picture merged over its views, boxed and, unless `sweep_side` is 0, swept."""
    first, many, how = mapped.maps[0], len(mapped.maps) > 1, chosen.views.how
    (merged,) = merge(mapped.maps, MAX_SIDE, how)
    states = status_words(merged) if many else first.status[0]
    plain = not many and first.grid.kind == "features"
    grid = first.values[0] if plain else merge(mapped.maps, GRID_SIDE, how)[0]
    rule_name, level = chosen.rule_name, chosen.rule.level
    picture = cache(lambda: _picture(chosen, one))  # a large one is read again, but once
    found = []
    for rank, (index, status, heat) in enumerate(zip(mapped.classes, states, merged.numpy(), strict=True), 1):
        boxes = boxes_of(chosen.rule, heat, one.size, picture)
        label = chosen.network.card.label(index)
        word: Any = "whole-picture" if status == "ok" and boxes[0].whole else status
        found.append(
            Localization(
                one.source.name,
                rank,
                index,
                label.id,
                label.name,
                None if chosen.network.card.activation == "none" else float(mapped.probabilities[index]),
                float(mapped.logits[index]),
                boxes,
                word,
                first.method,
                rule_name,
                level,
                first.layer,
            )
        )
    same: dict[str, Any] = (
        {"connectivity": chosen.rule.connectivity, "normalise": chosen.rule.normalise}
        if isinstance(chosen.rule, FractionOfMax)
        else {}
    )
    swept = np.zeros((len(found), 0, 4))
    if sweep_side:
        small = max(one.size.height, one.size.width) <= sweep_side
        coarse = (merged if small else merge(mapped.maps, sweep_side, how)[0]).numpy()
        swept = sweeps(coarse, one.size, THRESHOLDS, **same)
    judged = None
    if judge is not None:
        raw = (first.values[0] if plain else merged).numpy()
        looked = Looked(one.size, tuple(found), merged.numpy(), raw, mapped.probabilities, picture)
        judged = judge(looked)
    return _Boxed(tuple(found), grid.numpy(), swept, mapped.probabilities, judged)


@dataclass(frozen=True)
class _Wanted:
    """The class asked for, one a picture, if any; then the `top` most probable ones, best first, or all, where the
    network has fewer."""

    asked: Sequence[int] | None
    top: int
    layers: tuple[str, ...] = ()

    def classes(self, logits: Tensor) -> Tensor:
        count = len(logits)
        asked = [] if self.asked is None else [ClassTarget(list(self.asked)).classes(logits)]
        best = ClassTarget.top(min(self.top, logits.shape[1])).classes(logits) if self.top else None
        return torch.cat([*asked, *([] if best is None else [best])], 1).reshape(count, -1)

    def bind(self, output: Output) -> Bound:
        return ClassTarget(self.classes(output.logits)).bind(output)


class _Given(Source):
    """A picture handed over in memory."""

    payload: Any

    def __init__(self, payload: Any) -> None:
        super().__init__("<picture in memory>", "picture", "")
        object.__setattr__(self, "payload", payload)


def _payload(source: Source) -> Any:
    return source.payload if isinstance(source, _Given) else source.read()


def _parts(images: Any, size: int) -> Iterator[list[Any]]:
    """Inputs in slices: paths are expanded into the pictures below them, other things are pictures
    themselves."""
    if (
        isinstance(images, (str, Path, bytes, Image.Image))
        or not isinstance(images, Iterable)
        or getattr(images, "ndim", 4) < 4
    ):
        images = [images]
    part: list[Any] = []
    for image in images:
        for one in sources.expand([image]).sources if isinstance(image, (str, Path)) else [image]:
            part.append(one)
            if len(part) == size:
                yield part
                part = []
    if part:
        yield part
