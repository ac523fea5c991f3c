"""The pictures of the localization page, after the CAM paper's Figures 3 to 6 and 8: truth and prediction, several classes
of one picture, this method beside saliency, one class in several pictures."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from camlucida import metrics, render
from camlucida.boxes import FractionOfMax, GraphCut
from camlucida.boxes.from_map import MAX_SIDE, Rule, boxes_of
from camlucida.errors import InputError, LayerError, UnsupportedError
from camlucida.evaluate.judge import laid_over
from camlucida.evaluate.localization import guessed
from camlucida.evaluate.maps_folder import open_folder, read_map
from camlucida.images.datasets import DataSet, Example, evenly
from camlucida.images.read import read_picture
from camlucida.maps.merge import Views
from camlucida.maps.saliency import Saliency
from camlucida.pipeline import Plan, Rejected, Seen, look
from camlucida.protocols import one_label_each
from camlucida.report import figures
from camlucida.values import Box, Localization, Size

LONGEST = 360
ROW = 6  # pictures of the saliency comparison
CLASS_ROWS, CLASS_PICTURES = 2, 4  # Figures 3 and 8: classes, and pictures of each
SEVERAL = 3  # Figure 4: pictures whose five best classes are shown


def pictures(
    plan: Plan | None,
    data: DataSet,
    count: int,
    maps: str | Path | None = None,
    rule: Rule | None = None,
    rejected: Container[str] = (),
    iou: float = 0.5,
) -> list[dict[str, Any]]:
    """Sections of figures: `title`, `about`, `rows` of a title and panels (`data`, `alt`, `words`). The pictures are spread
    evenly over those that have boxes and are not `rejected`, one for each label; nobody picked them. `iou`: overlap from which
    a box is called right."""
    cases = one_label_each(data)
    boxed = [e for e in cases if e.boxes and not e.blacklisted and e.source.name not in rejected]
    chosen = evenly(boxed, count)
    if not chosen:
        return []
    if plan is None:
        return [_of_maps(chosen, data, Path(maps or ""), rule or FractionOfMax())]
    different = [*{e.source.name: e for e in reversed(chosen)}.values()][::-1]  # not for each label
    kinds = Counter(e.label for e in boxed)
    common = [label for label, number in kinds.most_common(CLASS_ROWS) if number > 1]
    sections = [
        _truth_and_prediction(plan, chosen, iou, data.multi_label),
        _several_classes(plan, different[:SEVERAL]),
    ]
    sections.append(_beside_saliency(plan, chosen[:ROW]))
    if common:
        of_class = [[e for e in boxed if e.label == label][:CLASS_PICTURES] for label in common]
        sections.append(_one_class(plan, of_class))
    return [one for one in sections if one["rows"]]


def _truth_and_prediction(plan: Plan, chosen: Sequence[Example], iou: float, several: bool) -> dict[str, Any]:
    panels = []
    for example, seen in _looked(plan, chosen):
        found = seen.found[0]
        best, own = _best_overlap(plan, found, seen), example.label == found.class_index
        verdict = "right" if own and best >= iou else "box wrong" if own else "class wrong"
        if several and not own:
            verdict = "another class"  # the picture may hold that one, too
        true = plan.network.card.label(example.label).name.split(",")[0]
        words = f"{true}: taken for {_class(found)}, overlap {best:.2f}: {verdict}"
        panels.append(_panel(seen.picture, seen.maps[0], _boxes(found), seen.truth, words, found.status))
    return {
        "title": "Truth and prediction",
        "about": "The map of the class that was predicted, its box, and the given boxes (after the CAM paper’s Figure 6).",
        "rows": [{"title": "", "panels": panels}] if panels else [],
    }


def _several_classes(plan: Plan, chosen: Sequence[Example]) -> dict[str, Any]:
    rows = []
    for example, seen in _looked(replace(plan, top=5), chosen):
        panels = [
            _panel(seen.picture, heat, _boxes(found), (), f"{found.rank}. {_class(found)}", found.status)
            for found, heat in zip(seen.found, seen.maps, strict=True)
        ]
        true = plan.network.card.label(example.label).name.split(",")[0]
        rows.append({"title": f"{Path(seen.source.relative).name}, truly {true}", "panels": panels})
    return {
        "title": "Several classes of one picture",
        "about": "The maps of the five most probable classes, each with the box that the rule draws (after Figure 4).",
        "rows": rows,
    }


def _beside_saliency(plan: Plan, chosen: Sequence[Example]) -> dict[str, Any]:
    plain = replace(plan, method=Saliency(), views=Views(), top=1)
    ways = (
        ("", replace(plan, top=1)),
        ("saliency, blurred, fraction of the maximum", replace(plain, method=Saliency(4), rule=FractionOfMax())),
        ("saliency, graph cut", replace(plain, rule=GraphCut())),
    )  # fmt: skip
    rows: dict[tuple[str, int], list[dict[str, str]]] = {}
    without = ""
    for name, way in ways:
        try:
            looked = list(_looked(way, chosen, known=True))
        except (LayerError, UnsupportedError) as error:  # the figures stand without the rival's pictures
            without = f" Without {name or 'this method'}: {error}"
            continue
        for example, seen in looked:
            found = seen.found[0]
            called = name or found.map_method
            words = f"{called}: overlap {_best_overlap(way, found, seen):.2f}"
            panel = _panel(seen.picture, seen.maps[0], _boxes(found), seen.truth, words, found.status)
            rows.setdefault((seen.source.name, example.label), []).append(panel)

    def headed(place: tuple[str, int]) -> str:
        return f"{plan.network.card.label(place[1]).name.split(',')[0]}, {Path(place[0]).name}"

    return {
        "title": "Beside backpropagation saliency",
        "about": "The true class’s map by this method and by the gradient at the pixels (after Figures 5 and 6)."
        + without,
        "rows": [{"title": headed(place), "panels": panels} for place, panels in rows.items()],
    }


def _one_class(plan: Plan, groups: Sequence[Sequence[Example]]) -> dict[str, Any]:
    rows = []
    for group in groups:
        name = plan.network.card.label(group[0].label).name.split(",")[0]
        panels = [
            _panel(seen.picture, seen.maps[0], (), (), f"{name}, {_sure(seen.found[0])}", seen.found[0].status)
            for _, seen in _looked(plan, group, known=True)
        ]  # fmt: skip
        rows.append({"title": name, "panels": panels})
    return {
        "title": "One class in several pictures",
        "about": "Which parts of the pictures speak for their own class (after Figures 3 and 8).",
        "rows": [row for row in rows if row["panels"]],
    }


def _of_maps(chosen: Sequence[Example], data: DataSet, folder: Path, rule: Rule) -> dict[str, Any]:
    panels = []
    for example in chosen:
        try:
            picture = read_picture(example.source.read())
            raw = read_map(open_folder(folder), example.source.relative)
        except InputError:
            continue  # listed among the rejected ones
        size = Size(picture.height, picture.width)
        heat = laid_over(raw, size, MAX_SIDE)
        scored = boxes_of(rule, heat, size, lambda picture=picture: picture)  # type: ignore[misc]
        boxes, best = [one.box for one in scored], _overlap(guessed(rule, scored).box, example.boxes)
        words = f"{data.labels[example.label].name.split(',')[0]}: overlap {best:.2f}"
        panels.append(_panel(picture, raw, boxes, example.boxes, words, "ok"))
    return {
        "title": "Truth and prediction",
        "about": "The given map, the rule’s box, and the given boxes (after the CAM paper’s Figure 6).",
        "rows": [{"title": "", "panels": panels}] if panels else [],
    }


def _looked(plan: Plan, chosen: Sequence[Example], known: bool = False) -> Iterator[tuple[Example, Seen]]:
    """The pictures with what is seen in them: the predicted classes, or the `known` one."""
    classes = [e.label for e in chosen] if known else None
    truth = [e.boxes for e in chosen]
    seen = look(
        plan, [e.source for e in chosen], batch=8, workers=1, classes=classes, truth=truth, sweeping=False
    )
    for example, one in zip(chosen, seen, strict=True):
        if not isinstance(one, Rejected):
            yield example, one


def _class(found: Localization) -> str:
    return f"{found.class_name.split(',')[0]} {_sure(found)}"


def _sure(found: Localization) -> str:
    return figures.sure(found.probability, found.logit)


def _boxes(found: Localization) -> list[Box]:
    return [scored.box for scored in found.boxes]


def _best_overlap(plan: Plan, found: Localization, seen: Seen) -> float:
    """Of the box that the figures count."""
    return _overlap(guessed(plan.rule, found.boxes).box, seen.truth)


def _overlap(box: Box, truth: Sequence[Box]) -> float:
    given = np.array([t.corners for t in truth]).reshape(-1, 4)
    return float(metrics.box_iou(np.array(box.corners)[None], given).max(initial=0.0))


def _panel(
    picture: Image.Image,
    heat: NDArray[Any],
    boxes: Sequence[Box],
    truth: Sequence[Box],
    words: str,
    status: str,
) -> dict[str, str]:
    """A picture under its map: truth green and solid, prediction red and dashed, both with a dark rim."""
    rgb, factor = figures.sized(picture, LONGEST)
    painted = status in figures.PAINTED and bool(np.isfinite(heat).all()) and float(heat.max()) > 0
    over = figures.stretched(heat, *rgb.shape[:2]) if painted else np.zeros(rgb.shape[:2], np.float32)
    image = Image.fromarray(render.overlay(rgb, over))
    draw = ImageDraw.Draw(image)
    for box in truth:
        _rectangle(draw, image.size, box, factor, render.TRUTH, dashed=False)
    for box in boxes:
        _rectangle(draw, image.size, box, factor, render.FOUND, dashed=True)
    said = [words] if painted else [f"{words} ({status})"]
    alt = said[0]
    if truth:
        alt += "; truth, green: " + ", ".join(_spoken(box) for box in truth)
    if boxes:
        alt += "; prediction, red: " + ", ".join(_spoken(box) for box in boxes)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=84)
    data = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    return {
        "data": data, "alt": alt, "words": said[0], "width": str(image.width), "height": str(image.height)
    }  # fmt: skip


def _spoken(box: Box) -> str:
    return "from ({:.0f}, {:.0f}) to ({:.0f}, {:.0f})".format(*box.corners)


def _rectangle(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: Box,
    factor: float,
    colour: tuple[int, int, int],
    dashed: bool,
) -> None:
    x0, y0, x1, y1 = (c * factor for c in box.corners)
    x0, y0 = max(x0, 1.0), max(y0, 1.0)
    x1, y1 = max(min(x1, size[0] - 2.0), x0), max(min(y1, size[1] - 2.0), y0)
    for a, b in (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0))):
        draw.line([a, b], fill=(15, 15, 15), width=6)
    for a, b in (((x0, y0), (x1, y0)), ((x1, y0), (x1, y1)), ((x1, y1), (x0, y1)), ((x0, y1), (x0, y0))):
        length = max(abs(b[0] - a[0]), abs(b[1] - a[1]), 1.0)
        for start in np.arange(0, length, 18.0) if dashed else [0.0]:
            end = min(start + 11.0, length) if dashed else length
            points = [
                (a[0] + (b[0] - a[0]) * t / length, a[1] + (b[1] - a[1]) * t / length) for t in (start, end)
            ]
            draw.line(points, fill=colour, width=3)
