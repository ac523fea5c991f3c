"""Correspondence as a page: the hidden parts, the sign changes of each layer, and in words what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from camlucida.errors import UsageError
from camlucida.geometry import Box, Size, View
from camlucida.images.parts import Part
from camlucida.images.views import Preprocessing
from camlucida.networks.network import Network
from camlucida.probes.correspondence import ALL_PARTS, Correspondence, SignChange, square_of
from camlucida.report import charts, figures
from camlucida.report.probe_page import Page, Patch, Section, Strip, Table
from camlucida.values import Batch

OBJECT = "object"  # in a file of parts: the box of the whole object, on which random places lie
SAME = 0.02  # difference of two advantages, for words
LEVEL = 0.05  # of the permutation test, for words
OUTLINES = (
    "#e69f00",
    "#56b4e9",
    "#f0e442",
    "#cc79a7",
    "#009e73",
    "#d55e00",
)  # apart for the colour-blind (Okabe, Ito)

Boxes = dict[str, dict[int, Box]]


def prepared(
    network: Network, pictures: Mapping[str, Image.Image], rows: Sequence[Part], how: str, file: str
) -> tuple[Batch, Boxes]:
    """The pictures in one shape, and each part's boxes in their views. Raises UsageError for a box that leaves its picture,
    or the view of it."""
    shape = network.card.preprocessing
    views = {path: one_shape(shape, Size(p.height, p.width), how) for path, p in pictures.items()}
    boxes: Boxes = {}
    for row in rows:
        boxes.setdefault(row.name, {})
        if row.path not in views:
            continue
        view, where = views[row.path], f"{file}, line {row.line}: {row.name!r} of {row.path}"
        size = view.source
        if row.box.clipped(size) != row.box:
            raise UsageError(
                where,
                got=f"a box {row.box}",
                allowed=f"inside the picture of {size.width} × {size.height} pixels",
            )
        seen = view.box_to_view(row.box)
        if row.name == OBJECT:
            seen = seen.clipped(view.size)  # what is seen of it
        if seen.clipped(view.size) != seen:
            raise UsageError(
                where, got="a box that the central square cuts off",
                do="--view squash shows the whole picture; or cut the pictures closer",
            )  # fmt: skip
        boxes[row.name][list(views).index(row.path)] = seen
    if not boxes.keys() - {OBJECT}:
        raise UsageError(f"parts in {file}", got=f"{OBJECT!r} alone", allowed="a part or more besides")
    pixels = torch.stack([shape.pixels(p, views[path]) for path, p in pictures.items()])
    return Batch(shape.normalise(pixels).to(network.device), tuple(views.values()), shape), boxes


def one_shape(shape: Preprocessing, source: Size, how: str) -> View:
    """The card's square: the middle of the picture (`crop`), or all of it (`squash`)."""
    side = shape.crop or shape.size
    if how == "squash":
        return View.whole(source, Size(side, side))
    resized = source.with_short_side(max(side, shape.size))
    return View(source, resized, ((resized.height - side) // 2, (resized.width - side) // 2, side, side))


def rows(result: Correspondence) -> list[dict[str, Any]]:
    """A row per layer and part."""
    names = (
        "layer",
        "part",
        "pictures",
        "mean",
        "std",
        "random_mean",
        "random_std",
        "together_mean",
        "together_std",
        "together_as_low",
        "p_value",
    )
    return [{name: getattr(one, name) for name in names} for one in result.changes]


def pairs(result: Correspondence, boxes: Boxes, paths: Sequence[str]) -> list[dict[str, Any]]:
    """A row per layer, part and pair of pictures."""
    made = []
    for one in result.changes:
        if one.pairs is None:
            continue
        own = [paths[i] for i in sorted(boxes[one.part])]
        made += [
            {
                "layer": one.layer,
                "part": one.part,
                "first": own[i],
                "second": own[j],
                "sign_change": one.pairs[i, j],
            }
            for i in range(len(own))
            for j in range(i + 1, len(own))
        ]
    return made


def finding(result: Correspondence) -> str:
    """What came out, layer by layer; of several layers, whether the gap closes towards the last."""
    layers = list(result.units)
    words = []
    for layer in layers:
        one = result.of(layer)
        words.append(
            f"At {layer} {one.mean:.3f} ± {one.std:.3f} of the signs differ between pictures where a part is hidden, "
            f"{one.random_mean:.3f} ± {one.random_std:.3f} at random places: {verdict(one)} ({chance(one, result)}). "
            f"Of random places that all pictures share {one.together_as_low:.0%} are as consistent as the parts ({one.together_mean:.3f})."
        )
    if len(layers) > 1:
        first, last = (advantage(result.of(layer)) for layer in (layers[0], layers[-1]))
        words.append(
            f"The parts' share is {_less(first)} than the random one at {layers[0]}, {_less(last)} at {layers[-1]}: their advantage "
            f"{'is about the same' if abs(last - first) < SAME else 'shrinks' if last < first else 'grows'}."
        )
    return " ".join(words)


def advantage(one: SignChange) -> float:
    """By which share of the random places' sign change the parts lie below it."""
    return 1 - one.mean / one.random_mean if one.random_mean else 0.0


def verdict(one: SignChange) -> str:
    if one.mean >= one.random_mean:
        return "parts correspond no better than random"
    return (
        "parts correspond better than random"
        if one.p_value <= LEVEL
        else "better than random, but as chance may have it"
    )


def chance(one: SignChange, result: Correspondence) -> str:
    """`p = 0.012`; `p ≤ 0.0001` where no labelling did as well."""
    least = 1 / (result.permutations + 1)
    return f"p ≤ {least:.2g}" if one.p_value <= least * 1.001 else f"p = {one.p_value:.2g}"


def _less(share: float) -> str:
    return f"{abs(share):.0%} {'lower' if share >= 0 else 'higher'}"


def page(
    result: Correspondence, network: str, batch: Batch, boxes: Boxes, links: Mapping[str, str], words: str, how: str, where: str
) -> Page:  # fmt: skip
    shown = batch.pictures()
    paths = list(links)
    outlined = [
        Patch(
            _outlined(picture, {name: of[i] for name, of in boxes.items() if i in of}, list(boxes)),
            f"{paths[i]}, outlined: {', '.join(name for name, of in boxes.items() if i in of)}", paths[i].rsplit("/", 1)[-1],
            links[paths[i]], True,
        )
        for i, picture in enumerate(shown)
    ]  # fmt: skip
    grey = batch.preprocessing.mean_colour
    hidden = []
    for name, of in boxes.items():
        if name == OBJECT:
            continue
        first = min(of)
        hidden.append(
            Patch(
                _hidden(shown[first], of[first], grey), f"{name} hidden in {paths[first]}", name, photo=True
            )
        )
    sections = [
        Section(
            "The pictures and their parts",
            f"As the network sees them ({'the central square' if how == 'crop' else 'squashed to a square'}). Each part is hidden by itself.",
            [Strip(outlined), Strip(hidden, "Hidden, one at a time")],
        )
    ]
    for layer, units in result.units.items():
        of_layer = [one for one in result.changes if one.layer == layer]
        values = {one.part: one.mean for one in of_layer if one.part != ALL_PARTS}
        both = result.of(layer)
        values |= {"random places": both.random_mean, "one random place for all": both.together_mean}
        head = [
            "part",
            "pictures",
            "mean",
            "±",
            "random, mean",
            "±",
            "p",
            "one place for all, mean",
            "±",
            "as consistent",
        ]
        body = [
            [
                o.part,
                o.pictures,
                o.mean,
                o.std,
                o.random_mean,
                o.random_std,
                o.p_value,
                o.together_mean,
                o.together_std,
                figures.percent(o.together_as_low),
            ]
            for o in of_layer
        ]
        text = (
            f"{units:,} units. Share whose sign of change differs between two pictures, mean over the ordered pairs; lower is more consistent. "
            f"Random: {result.draws} squares of the part's size for each picture, {where}. One place for all: the random square lies at the same "
            f"place {'of every object' if where.startswith('on') else 'in every picture'}, and how many of these {result.draws} are at least as consistent: where "
            f"objects lie alike, such a place is a part that nobody named."
        )
        chart = Patch(charts.bars(values, f"Sign change at {layer}"), f"Sign change at {layer}")
        sections.append(Section(layer, text, [Strip([chart], size="large"), Table(head, body)]))
    sections.append(
        Section(
            "The permutation test",
            "If a part were a place like any other, then in each picture the label of the part could as well stand at one of its random "
            f"places. It is dealt anew {result.permutations:,} times, in each picture evenly over the part and its {result.draws} random places; p is the "
            "share of labellings, the one found among them, whose mean over pairs is no higher than the one found. For all parts together "
            "the mean over parts is compared, each part dealt by itself.",
        )
    )
    facts = [
        ("Network", network), ("Layers", ", ".join(result.units)), ("Pictures", str(len(paths))), ("Parts", ", ".join(name for name in boxes if name != OBJECT)),
        ("Random places", f"{result.draws} a part and picture, {where}"), ("Permutations", f"{result.permutations:,}"), ("Seed", str(result.seed)),
    ]  # fmt: skip
    return Page("The same part in different pictures", words, facts, sections)


def _outlined(picture: Image.Image, boxes: Mapping[str, Box], order: Sequence[str]) -> Image.Image:
    factor = max(1, round(384 / max(picture.size)))
    made = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(made)
    for name, box in boxes.items():
        colour = OUTLINES[order.index(name) % len(OUTLINES)]
        draw.rectangle([c * factor for c in box.corners], outline=colour, width=max(2, made.width // 120))
    return made


def _hidden(picture: Image.Image, box: Box, grey: tuple[int, int, int]) -> Image.Image:
    pixels = np.array(picture)
    top, left, bottom, right = square_of(box, pixels.shape[:2])
    pixels[top:bottom, left:right] = grey
    return Image.fromarray(pixels)
