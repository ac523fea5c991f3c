"""Fine-grained recognition with crops that the class maps make (CAM paper, section 4.1): whole pictures, own crops, given
boxes, an SVM for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from camlucida import metrics
from camlucida.boxes import FractionOfMax
from camlucida.boxes.from_map import MAX_SIDE, Rule, boxes_of
from camlucida.errors import UsageError
from camlucida.features.class_maps import class_maps
from camlucida.features.extract import TINY, Descriptor, Extractor, Wanted
from camlucida.features.folder import Features
from camlucida.features.judge import Judged, Split, judge
from camlucida.features.svm import LinearSVM
from camlucida.geometry import sample, source_samples
from camlucida.images.datasets import Example
from camlucida.images.read import MAX_PIXELS, read_picture
from camlucida.networks.network import Network
from camlucida.values import Box, Label, ScoredBox, Size

IOU = 0.5
DRAWS = 2000  # random boxes a picture, of each definition of chance
WHOLE, CROP, BOX = "whole pictures", "own crops", "given boxes"


@dataclass(frozen=True)
class Cropping:
    """How own crops are made. `maps`: the map of the class that the SVM on whole pictures predicts; `top`: the mean of the
    maps of its best `top` classes; `true`: training pictures by their own class's map, test pictures by the predicted
    one's. `margin` widens own and given boxes by a share of their sides. A test picture's label is never looked at."""

    maps: Literal["predicted", "top", "true"] = "predicted"
    top: int = 5
    rule: Rule = field(default_factory=FractionOfMax)
    margin: float = 0.0

    def __post_init__(self) -> None:
        if self.maps not in ("predicted", "top", "true"):
            raise UsageError("maps", got=repr(self.maps), allowed="predicted | top | true")
        if self.top < 1:
            raise UsageError("top", got=self.top, allowed="≥ 1")


@dataclass(frozen=True)
class Made:
    """The crop of one picture of `size`: the rule's box (`box.whole`: the map had no component), and whether the whole
    picture stands for it, because of that or because a side is below 16 pixels."""

    size: Size
    box: ScoredBox

    @property
    def is_picture(self) -> bool:
        x0, y0, x1, y1 = self.box.box.corners
        return self.box.whole or min(x1 - x0, y1 - y0) < TINY


@dataclass(frozen=True, eq=False)
class FineGrained:
    """N pictures in two or three settings. `settings`: name → what its SVM scored; `predicted`: name → class of each test
    row (in the order of `split.test`); `crops (N,)`; `given (N,)`: annotated boxes, of which the largest is cut out;
    `iou (N,)`: the best overlap of the own box with one of them, NaN without. `rejected`: path and reason."""

    examples: tuple[Example, ...]
    classes: tuple[Label, ...]
    split: Split
    settings: Mapping[str, Judged]
    predicted: Mapping[str, NDArray[np.int64]]
    crops: tuple[Made, ...]
    given: tuple[tuple[Box, ...], ...]
    iou: NDArray[np.float64]
    rejected: tuple[tuple[str, str], ...]

    @property
    def truth(self) -> NDArray[np.int64]:
        """The class of each test row."""
        return np.array([self.examples[i].label for i in self.split.test])

    def right(self, setting: str) -> NDArray[np.bool_]:
        """Which test rows the setting's SVM names rightly."""
        return self.predicted[setting] == self.truth


def own_box(
    svm: LinearSVM, extractor: Extractor, picture: Image.Image, rule: Rule, *, top: int = 1, label: int | None = None
) -> ScoredBox:  # fmt: skip
    """The rule's first box of the map of class `label`, or of the mean map of the `top` classes of highest decision value:
    maps of all views are added up over the picture."""
    found = class_maps(svm, [extractor], picture)
    chosen = (
        metrics.top_k(found.decisions[None], top)[0] if label is None else np.array([label], dtype=np.int64)
    )
    heat: Any = 0.0
    for one in found.views:
        mean, shown = torch.from_numpy(one.values[chosen].mean(0)), one.view.size
        y, x = source_samples(one.view, 2, MAX_SIDE)
        mean = sample(mean, 0, y * (mean.shape[0] / shown.height) - 0.5)
        heat = heat + sample(mean, 1, x * (mean.shape[1] / shown.width) - 0.5).numpy()
    return boxes_of(rule, heat, Size(picture.height, picture.width), lambda: picture)[0]


def fine_grained(
    net: Network,
    train: Sequence[Example],
    test: Sequence[Example],
    classes: Sequence[Label],
    *,
    how: Descriptor | None = None,
    cropping: Cropping | None = None,
    batch: int = 64,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    heard: Callable[[int], None] = lambda pictures: None,
    **options: Any,
) -> FineGrained:
    """The settings of section 4.1, each with an SVM trained and tested in that setting. The third is left out where no
    picture has a box; where some have one, pictures without are rejected from all settings, so that these compare.

    `how`: features of the whole picture, its scales averaged; crops are described alike. `options` as in `judge`: C,
    normalise … `heard` is told of pictures done, in four passes. Raises UsageError for a class without a
    training picture, or nothing to test.
    """
    how, cropping = how or Descriptor(), cropping or Cropping()
    if how.region != "picture" or (how.combine == "stack" and len(how.scales) > 1):
        raise UsageError("features of whole pictures and crops", got=f"region {how.region}, {how.combine}", allowed="region picture, one scale or their average")  # fmt: skip
    whole = Extractor(net, how)
    cut = Extractor(net, replace(how, region="box", margin=cropping.margin))
    every = [(one, i >= len(train)) for i, one in enumerate((*train, *test))]
    rejected: list[tuple[str, str]] = []
    boxed = any(one.boxes for one, _ in every)
    if boxed:
        rejected += [(one.source.name, "no box on this picture") for one, _ in every if not one.boxes]
        every = [(one, part) for one, part in every if one.boxes]
    run = {"batch": batch, "workers": workers, "max_pixels": max_pixels}

    def described(extractor: Extractor, wanted: Sequence[Wanted]) -> list[Any]:
        found = []
        for one in extractor(wanted, **run):
            found.append(one)
            heard(1)
        return found

    of_whole = described(whole, [Wanted(one.source) for one, _ in every])
    of_box = described(cut, [Wanted(one.source, largest(one.boxes)) for one, _ in every]) if boxed else of_whole  # fmt: skip
    usable = []
    for i, (first, second) in enumerate(zip(of_whole, of_box, strict=True)):
        if first.problem or second.problem:
            rejected.append((first.path, first.problem or second.problem))
        else:
            usable.append(i)
    examples = tuple(every[i][0] for i in usable)
    tested = np.array([every[i][1] for i in usable], bool)
    split = Split(np.flatnonzero(~tested), np.flatnonzero(tested))
    if not len(split.test):
        raise UsageError("pictures to test", got="none that can be used", do=rejected[0][1] if rejected else None)  # fmt: skip

    def features(of: Extractor, rows: Sequence[Any]) -> Features:
        return Features(
            np.stack(rows), tuple(e.source.name for e in examples), tuple((e.label,) for e in examples),
            tuple(classes), of.blocks,
        )  # fmt: skip

    vectors = {WHOLE: features(whole, [of_whole[i].vector for i in usable])}
    settings = {WHOLE: judge(vectors[WHOLE], split, **options)}
    made = []
    for one, is_test in zip(examples, tested, strict=True):
        label = one.label if cropping.maps == "true" and not is_test else None
        made.append(_made(settings[WHOLE].svm, whole, one, cropping, label, max_pixels))
        heard(1)
    of_crop = described(
        cut, [Wanted(e.source, m.box.box) for e, m in zip(examples, made, strict=True)]
    )  # the whole picture's vector where a crop gives none
    filled = [vectors[WHOLE].values[i] if one.problem else one.vector for i, one in enumerate(of_crop)]
    vectors[CROP] = features(cut, filled)
    if boxed:
        vectors[BOX] = features(cut, [of_box[i].vector for i in usable])
    for name in list(vectors)[1:]:
        settings[name] = judge(vectors[name], split, **options)
    predicted = {
        name: settings[name].svm.decide(of.values[split.test]).argmax(1) for name, of in vectors.items()
    }
    given = tuple(one.boxes for one in examples)
    iou = np.array([overlap(m.box.box, of) for m, of in zip(made, given, strict=True)])
    return FineGrained(
        examples,
        tuple(classes),
        split,
        settings,
        predicted,
        tuple(made),
        given,
        iou,
        tuple(rejected),
    )


def _made(
    svm: LinearSVM, whole: Extractor, one: Example, cropping: Cropping, label: int | None, max_pixels: int
) -> Made:
    picture = read_picture(one.source.read(), whole.net.card.preprocessing.mean_colour, max_pixels)
    top = cropping.top if cropping.maps == "top" else 1
    box = own_box(svm, whole, picture, cropping.rule, top=top, label=label)
    return Made(Size(picture.height, picture.width), box)


def largest(boxes: Sequence[Box]) -> Box:
    """The box of most area, the first of equals."""
    return max(boxes, key=lambda box: box.area)


def overlap(box: Box, given: Sequence[Box]) -> float:
    """The best intersection over union with one of the given boxes; NaN where there is none."""
    if not given:
        return float("nan")
    return float(metrics.box_iou(np.array(box.corners), np.array([one.corners for one in given])).max())


def chance(
    truths: Sequence[tuple[Sequence[Box], Size]],
    training: Sequence[tuple[Box, Size]],
    *,
    iou: float = IOU,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[float, float]:
    """Share of random boxes that overlap a given one by at least `iou`, in two readings of the paper's chance, which it
    does not define: boxes with the sides of a random training box (as shares of its picture's) at a place uniform in the
    picture; boxes between two points uniform in the picture. `draws` of each a picture."""
    if not truths or not training:
        raise UsageError(
            "chance", got=f"{len(truths)} test, {len(training)} training boxes", allowed="≥ 1 of each"
        )
    generator = np.random.default_rng(seed)
    sides = np.array(
        [[min((b.x1 - b.x0) / s.width, 1), min((b.y1 - b.y0) / s.height, 1)] for b, s in training]
    )
    hits = np.zeros(2)
    for boxes, size in truths:
        corners = np.array([box.corners for box in boxes]) / ((size.width, size.height) * 2)
        size_of = sides[generator.integers(0, len(sides), draws)]
        low = generator.random((draws, 2)) * (1 - size_of)
        two = np.sort(generator.random((draws, 2, 2)), axis=1)
        for k, drawn in enumerate((np.c_[low, low + size_of], two.reshape(draws, 4))):
            hits[k] += (metrics.box_iou(drawn[:, None], corners[None]).max(1) >= iou).mean()
    first, second = hits / len(truths)
    return float(first), float(second)
