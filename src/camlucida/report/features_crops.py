"""Fine-grained crops as a page: the settings side by side, how well the crops localize, and what was cut out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from camlucida import metrics, render
from camlucida.evaluate.localization import constant_boxes
from camlucida.features.crops import BOX, CROP, DRAWS, IOU, WHOLE, FineGrained, chance, largest
from camlucida.report.probe_page import Page, Patch, Section, Strip, Table
from camlucida.values import Box

EXAMPLES = 5  # of each kind on the page
SIDE = 220  # height of a picture on the page, pixels
FOUND, GIVEN = (214, 39, 40), (44, 160, 44)  # the paper's colours: found red, given green

Shown = Callable[[int], Image.Image]  # row → its picture


def figures_of_run(result: FineGrained, seed: int = 0) -> dict[str, Any]:
    """All figures, percent with 95 % intervals; ready for JSON."""
    count, base = len(result.split.test), result.right(WHOLE)
    found: dict[str, Any] = {"train": len(result.split.train), "test": count, "classes": len(result.classes), "settings": {}}  # fmt: skip
    for name, judged in result.settings.items():
        right = result.right(name)
        one = {
            "boxes_needed": "train and test" if name == BOX else "none",
            "c": judged.svm.c,
            "accuracy": _percent(right.mean()),
            "interval": _pair(metrics.wilson_interval(int(right.sum()), count)),
            "mean_class_recall": _percent(judged.figures["mean class recall"]),
        }
        if name != WHOLE:
            lost, gained = int((base & ~right).sum()), int((right & ~base).sum())
            one |= {
                "against_whole": _percent(right.mean() - base.mean()),
                "against_whole_interval": _pair(metrics.paired_interval(lost, gained, count)),
                "gained": gained,
                "lost": lost,
            }
        found["settings"][name] = one
    own = [result.crops[i] for i in result.split.test]
    shares = [one.box.box.area / (one.size.height * one.size.width) for one in own]
    found["crops"] = {
        "mean_share_of_picture": _percent(np.mean(shares)),
        "whole_picture_instead": sum(one.is_picture for one in own),
    }
    if BOX in result.settings:
        found["localization"] = _localization(result, seed)
    return found


def _localization(result: FineGrained, seed: int) -> dict[str, Any]:
    test, train = result.split.test, result.split.train
    hits = result.iou[test] >= IOU
    truths = [(result.given[i], result.crops[i].size) for i in test]
    training = [(largest(result.given[i]), result.crops[i].size) for i in train]
    of_training, anywhere = chance(truths, training, seed=seed)
    return {
        "iou": IOU,
        "own_crops": _percent(hits.mean()),
        "interval": _pair(metrics.wilson_interval(int(hits.sum()), len(hits))),
        "mean_iou": _percent(result.iou[test].mean()),
        "chance_training_sides": _percent(of_training),
        "chance_two_points": _percent(anywhere),
        **constant_boxes(truths),
    }


def finding(found: dict[str, Any]) -> str:
    """What came out, in two or three sentences."""
    settings = found["settings"]
    whole, crop = settings[WHOLE], settings[CROP]
    words = f"Of {found['test']:,} test pictures the SVM on whole pictures names {whole['accuracy']:.1f} % rightly, the one on crops that the maps made {crop['accuracy']:.1f} %: {_against(crop)}."
    if BOX in settings:
        box, located = settings[BOX], found["localization"]
        words += f" On given boxes: {box['accuracy']:.1f} %, {_against(box)}."
        words += (
            f" {located['own_crops']:.1f} % of the own crops overlap a given box by half or more; of random boxes {located['chance_training_sides']:.1f} % with the "
            f"sides of training boxes, {located['chance_two_points']:.1f} % between two random points; of whole pictures {located['whole_picture']:.1f} %."
        )
    return words


def _against(one: dict[str, Any]) -> str:
    low, high = one["against_whole_interval"]
    verdict = (
        "better than whole pictures"
        if low > 0
        else "worse than whole pictures"
        if high < 0
        else "no difference beyond chance"
    )
    return f"{one['against_whole']:+.1f} points (95 % interval {low:+.1f} … {high:+.1f}), {verdict}".replace(
        "-", "−"
    )


def rows(result: FineGrained) -> list[dict[str, Any]]:
    """A row per picture: its part, own and given box, overlap, and of test pictures the class named in each setting."""
    named = {i: at for at, i in enumerate(result.split.test)}
    made = []
    for i, (one, crop) in enumerate(zip(result.examples, result.crops, strict=True)):
        x0, y0, x1, y1 = crop.box.box.corners
        row: dict[str, Any] = {
            "path": one.source.name, "part": "test" if i in named else "train", "class_id": result.classes[one.label].id,
            "width": crop.size.width, "height": crop.size.height, "x0": x0, "y0": y0, "x1": x1, "y1": y1,
            "box_score": crop.box.score, "whole_picture_instead": crop.is_picture,
        }  # fmt: skip
        if BOX in result.settings:
            row |= dict(zip(("given_x0", "given_y0", "given_x1", "given_y1"), largest(result.given[i]).corners, strict=True))  # fmt: skip
            row["iou"] = result.iou[i]
        for name, of in result.predicted.items():
            row[f"class_by_{name.replace(' ', '_')}"] = result.classes[of[named[i]]].id if i in named else ""
        made.append(row)
    return made


def per_class(result: FineGrained) -> list[dict[str, Any]]:
    """A row per class: how many of its test pictures are named rightly in each setting."""
    made = []
    for k, label in enumerate(result.classes):
        mine = result.truth == k
        row: dict[str, Any] = {"class_id": label.id, "class_name": label.name, "test": int(mine.sum())}
        row |= {f"right_by_{name.replace(' ', '_')}": int(result.right(name)[mine].sum()) for name in result.settings}  # fmt: skip
        made.append(row)
    return made


def chosen(result: FineGrained) -> dict[str, list[int]]:
    """Rows to be looked at, spread evenly: where the crop makes it right, where it makes it wrong, and others."""
    whole, crop, test = result.right(WHOLE), result.right(CROP), result.split.test
    groups = {
        "Right on the crop, wrong on the whole picture": ~whole & crop,
        "Wrong on the crop, right on the whole picture": whole & ~crop,
        "Right on both": whole & crop,
        "Wrong on both": ~whole & ~crop,
    }
    found = {}
    for title, mask in groups.items():
        own = test[mask]
        found[title] = [int(own[i * len(own) // min(EXAMPLES, len(own))]) for i in range(min(EXAMPLES, len(own)))]  # fmt: skip
    return found


def page(
    result: FineGrained, found: dict[str, Any], facts: Sequence[tuple[str, str]], shown: Shown, links: dict[int, str]
) -> Page:  # fmt: skip
    """The page; `shown(row)` gives a picture, `links` the file that it is linked to."""
    head = ["setting", "boxes needed", "C", "accuracy %", "95 % interval", "mean class recall %", "against whole, points", "95 % interval"]  # fmt: skip
    body = [
        [
            name, one["boxes_needed"], one["c"], f"{one['accuracy']:.1f}", _span(one["interval"]), f"{one['mean_class_recall']:.1f}",
            f"{one['against_whole']:+.1f}".replace("-", "−") if "against_whole" in one else "–", _span(one["against_whole_interval"], "+") if "against_whole" in one else "–",
        ]
        for name, one in found["settings"].items()
    ]  # fmt: skip
    text = (
        "Each setting has an SVM of its own, trained and tested in that setting, on features of the same frozen network. Own crops: the SVM on whole "
        "pictures gives a map, the map a box, and the box is described again, of training and of test pictures; no box is given, and no test label is looked at. "
        f"A box with a side below 16 pixels, or none, stands for the whole picture: {found['crops']['whole_picture_instead']:,} of {found['test']:,} test pictures. "
        f"Crops cover {found['crops']['mean_share_of_picture']:.0f} % of a picture on average."
    )
    sections = [Section("Settings", text, [Table(head, body)])]
    if "localization" in found:
        sections.append(_located(found["localization"]))
    names = result.classes
    blocks = []
    for title, own in chosen(result).items():
        patches = []
        for i in own:
            at = int(np.flatnonzero(result.split.test == i)[0])
            truth, first, second = (
                names[k].name.split(",")[0]
                for k in (result.examples[i].label, *(result.predicted[s][at] for s in (WHOLE, CROP)))
            )
            iou = "" if np.isnan(result.iou[i]) else f", overlap {result.iou[i]:.2f}"
            alt = f"{truth} with the box of its map, and the crop beside it{iou}"
            patches.append(
                Patch(drawn(shown(i), result, i), alt, f"{truth}: {first} → {second}{iou}", links[i], True)
            )
        if patches:
            blocks.append(Strip(patches, title))
    words = "Test pictures: own box red, given box green, the crop beside it. Below: the class, then what is named on the whole picture → on the crop."
    sections.append(Section("What is cut out", words, blocks))
    return Page("Fine-grained classes on crops that the maps make", finding(found), facts, sections)


def _located(of: dict[str, Any]) -> Section:
    body = [
        ["own crops", of["own_crops"], _span(of["interval"])],
        ["chance: sides of a random training box, any place", of["chance_training_sides"], "–"],
        ["chance: between two random points", of["chance_two_points"], "–"],
        ["the whole picture", of["whole_picture"], "–"],
        [
            f"the best centred box, {of['best_centred_box_width']} × {of['best_centred_box_height']}",
            of["best_centred_box"],
            "–",
        ],
    ]
    for row in body:
        row[1] = f"{row[1]:.1f}"
    text = (
        f"Share of test pictures whose box overlaps a given one by {IOU:g} or more (intersection over union), the rule's box as it is; mean overlap {of['mean_iou']:.1f} %. The paper "
        f"gives a chance without its definition: both readings, {DRAWS:,} random boxes a picture. The best centred box is chosen on these very pictures."
    )
    return Section("Localization", text, [Table(["boxes", "localized %", "95 % interval"], body)])


def drawn(picture: Image.Image, result: FineGrained, row: int) -> Image.Image:
    """The picture with its boxes, and the crop in its own shape, side by side."""
    crop = result.crops[row]
    factor = SIDE / picture.height
    sized = picture.resize((max(round(picture.width * factor), 1), SIDE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(sized)
    boxes: list[tuple[Box, tuple[int, int, int]]] = [(b, GIVEN) for b in result.given[row]]
    for box, colour in (*boxes, (crop.box.box, FOUND)):
        x0, y0, x1, y1 = (c * factor for c in box.corners)
        draw.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=colour, width=3)
    inner = (
        picture if crop.is_picture else picture.crop(tuple(round(c) for c in crop.box.box.corners))  # type: ignore[arg-type]
    )
    scale = SIDE / max(inner.size)
    inner = inner.resize((max(round(inner.width * scale), 1), max(round(inner.height * scale), 1)), Image.Resampling.BICUBIC)  # fmt: skip
    return render.side_by_side([sized, inner])


def _percent(share: Any) -> float:
    return round(100 * float(share), 2)


def _pair(interval: Sequence[Any]) -> list[float]:
    return [_percent(one) for one in interval]


def _span(interval: Sequence[float], sign: str = "") -> str:
    low, high = (f"{one:{sign}.1f}" for one in interval)
    return f"{low}\u00a0…\u00a0{high}".replace("-", "−")
