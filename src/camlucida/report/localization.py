"""What the localization protocols say, as a page: the figures with their intervals beside what they must beat, the whole
accuracy–threshold curve, and pictures after the CAM paper's Figures 3 to 6 and 8."""

from __future__ import annotations

import base64
import csv
import io
import json
import shlex
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from camlucida import metrics, render
from camlucida.boxes import FractionOfMax, GraphCut
from camlucida.boxes.from_map import MAX_SIDE, Rule, boxes_of
from camlucida.errors import InputError
from camlucida.evaluate.judge import CURVE, LEVELS, laid_over
from camlucida.evaluate.maps_folder import open_folder, read_map
from camlucida.evaluate.tally import CENTRED, GAUSSIAN, NETWORK, RANDOM, WHOLE, Tally, title
from camlucida.images.datasets import DataSet, Example
from camlucida.images.read import read_picture
from camlucida.maps.merge import Views
from camlucida.maps.saliency import Saliency
from camlucida.pipeline import Plan, Rejected, Seen, look
from camlucida.report import figures, page
from camlucida.report import save as saving
from camlucida.values import Box, Localization, Size

PAGE = "report.html"
LONGEST = 360
ROW = 6  # pictures of the saliency comparison
CLASS_ROWS, CLASS_PICTURES = 2, 4  # Figures 3 and 8: classes, and pictures of each
SEVERAL = 3  # Figure 4: pictures whose five best classes are shown
COLOURS = {
    NETWORK: "#b0307c", GAUSSIAN: "#2f7fb5", RANDOM: "#8a7a1f", WHOLE: "#777777", CENTRED: "#777777",
}  # fmt: skip
DASHES = {NETWORK: "", GAUSSIAN: "7 3", RANDOM: "2 3", WHOLE: "12 4 2 4", CENTRED: "1 5"}
REJECTED_SHOWN = 200


def threshold_words(report: dict[str, Any]) -> str:
    """The threshold and where it comes from."""
    value = report["threshold"]["value"]
    return report["threshold"]["origin"] if value is None else f"{value:g}, {report['threshold']['origin']}"


def tables(report: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Headings and rows: a figure's name, and for the network and each baseline its percent and interval in words."""
    best = report["oracle_figures"]
    own = "at a threshold " + report["threshold"]["origin"] if report["threshold"]["oracle"] else ""
    names = [name for name in (WHOLE, CENTRED, GAUSSIAN, RANDOM) if name in report["baselines"]]
    who = "this network" if report["network"] else "these maps"
    found = []
    for heading, mine, others in (
        (f"Figures {own}".strip(), report["figures"], report["baselines"]),
        ("Oracle figures: " + best["note"], best[NETWORK], best["baselines"]),
    ):
        rows = [
            {
                "name": title(key),
                "key": key,
                "cells": {who: _cell(figure)} | {n: _cell(others.get(n, {}).get(key)) for n in names},
            }
            for key, figure in mine.items()
        ]
        found.append((heading, rows))
    return found


def _cell(figure: dict[str, Any] | None) -> dict[str, str]:
    if figure is None or figure["percent"] is None:
        return {"percent": "–", "interval": ""}
    low, high = figure["interval"]
    interval = "" if low is None or high is None else f"{low:.1f} … {high:.1f}"
    at = f" at {figure['threshold']:g}" if "threshold" in figure else ""
    return {"percent": f"{figure['percent']:.2f}", "interval": interval + at}


def save(report: dict[str, Any], tally: Tally, shown: Sequence[dict[str, Any]], folder: Path) -> None:
    """Writes localization.json, curve.csv, curve.svg, pictures.parquet, rejected.csv and report.html."""
    import pyarrow
    import pyarrow.parquet

    _write(folder / "localization.json", json.dumps(report, indent=1) + "\n")
    _write(folder / PAGE, write(report, shown, tally.rejected))
    rejected = io.StringIO()
    csv.writer(rejected, lineterminator="\n").writerows([("path", "reason"), *tally.rejected])
    _write(folder / "rejected.csv", rejected.getvalue())
    if "curve" in report:
        _write(folder / "curve.svg", curve_svg(report["curve"]))
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(
            ("figure", "of", "iou", "threshold", "percent", "low", "high", "chosen", "threshold_origin")
        )
        writer.writerows(_curve_rows(report, tally))
        _write(folder / "curve.csv", stream.getvalue())
    rows = [*_picture_rows(report, tally)]
    table = pyarrow.Table.from_pylist(rows)
    with saving.replacing(folder / "pictures.parquet") as temporary:
        pyarrow.parquet.write_table(table, temporary)


def _write(file: Path, text: str) -> None:
    with saving.replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _curve_rows(report: dict[str, Any], tally: Tally) -> Iterator[tuple[Any, ...]]:
    """The curve that is drawn, then the benchmark's."""
    curve, origin = report["curve"], report["threshold"]["origin"]
    at = None if curve["chosen"] is None else int(np.abs(CURVE - curve["chosen"]).argmin())
    for name in tally.contenders:
        for i, threshold in enumerate(CURVE):
            values = (curve[name][part][i] for part in ("percent", "low", "high"))
            yield "gt_known", name, report["iou"], f"{threshold:g}", *values, int(i == at), origin
    for key, by_iou in tally.box_curves(NETWORK).items():
        for iou, values in by_iou.items():
            best = int(np.argmax(values))
            for i, (threshold, percent) in enumerate(zip(LEVELS, values, strict=True)):
                oracle = "best on these very pictures"
                yield key, NETWORK, iou, f"{threshold:g}", percent, "", "", int(i == best), oracle


def _picture_rows(report: dict[str, Any], tally: Tally) -> Iterator[dict[str, Any]]:
    one = tally.contenders[NETWORK]
    for case, score, guess in zip(tally.cases, one.scores, one.guesses, strict=True):
        box = score.box if score is not None else (None,) * 4
        right = None if score is None or not case.counted else score.overlap >= tally.protocol.iou
        yield {
            "path": case.path, "class_index": case.label, "counted": case.counted, "blacklisted": case.blacklisted,
            "rank": guess.rank if guess else None, "probability": guess.probability if guess else None,
            "predicted_index": guess.made[0][0] if guess and guess.made else None,
            "x0": box[0], "y0": box[1], "x1": box[2], "y1": box[3],
            "overlap": score.overlap if score else None, "gt_known": right,
            "top1_localization": None if right is None or guess is None else right and guess.rank == 1,
            "points": score.points if score else None, "energy": score.energy if score else None,
            "flat": score.flat if score else None,
            "threshold": report["threshold"]["value"], "threshold_origin": report["threshold"]["origin"],
        }  # fmt: skip


# --- the curve ---------------------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, TOP = 480, 300, 42, 14


def curve_svg(curve: dict[str, Any]) -> str:
    """The accuracy–threshold curve as an SVG of its own: with the interval as a band, what stands beside it, the chosen
    threshold and who chose it, all in words, too."""
    plot_width, plot_height = WIDTH - LEFT - 12, HEIGHT - TOP - 34
    names = [n for n in (NETWORK, GAUSSIAN, RANDOM, WHOLE, CENTRED) if n in curve]
    top = max(10.0, min(100.0, 10 * np.ceil(_highest(curve, names) / 10)))

    def x(threshold: float) -> float:
        return LEFT + plot_width * threshold

    def y(percent: float) -> float:
        return TOP + plot_height * (1 - percent / top)

    parts: list[str] = []
    for level in np.arange(0, top + 1, 20 if top > 50 else 10):
        parts.append(
            f'<line x1="{LEFT}" y1="{y(level):.1f}" x2="{WIDTH - 12}" y2="{y(level):.1f}" stroke="currentColor" stroke-opacity=".15"/>'
            f'<text x="{LEFT - 6}" y="{y(level) + 4:.1f}" text-anchor="end">{level:g}</text>'
        )
    for share in np.arange(0, 1.01, 0.2):
        parts.append(f'<text x="{x(share):.1f}" y="{TOP + plot_height + 15}" text-anchor="middle">{share:g}</text>')  # fmt: skip
    parts.append(
        f'<text x="{LEFT + plot_width / 2}" y="{HEIGHT - 4}" text-anchor="middle">threshold: share of the map’s maximum</text>'
        f'<text x="{LEFT + 4}" y="{TOP - 3}">percent</text>'
    )
    thresholds = curve["threshold"]
    own = curve[NETWORK]
    forth = [f"{x(t):.1f},{y(v):.1f}" for t, v in zip(thresholds, own["high"], strict=True)]
    back = [f"{x(t):.1f},{y(v):.1f}" for t, v in zip(thresholds, own["low"], strict=True)][::-1]
    parts.append(f'<polygon points="{" ".join(forth + back)}" fill="{COLOURS[NETWORK]}" fill-opacity=".18"/>')
    for name in names[::-1]:
        values = curve[name]["percent"] if isinstance(curve[name], dict) else [curve[name]] * len(thresholds)
        line = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in zip(thresholds, values, strict=True))
        parts.append(f'<polyline points="{line}" {_stroke(name)}/>')
    height = HEIGHT
    if curve["chosen"] is not None:
        at = x(curve["chosen"])
        side = "end" if curve["chosen"] > 0.6 else "start"
        place = at - 5 if side == "end" else at + 5
        parts.append(
            f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{TOP + plot_height}" stroke="currentColor" stroke-width="1.5" stroke-dasharray="3 2"/>'
            f'<text x="{place:.1f}" y="{TOP + plot_height - 6}" text-anchor="{side}">chosen: {curve["chosen"]:g}</text>'
        )
    height += 8
    for name in names:
        height += 16
        parts.append(
            f'<line x1="{LEFT}" y1="{height - 4}" x2="{LEFT + 34}" y2="{height - 4}" {_stroke(name)}/>'
            f'<text x="{LEFT + 42}" y="{height}">{escape(_legend(name))}</text>'
        )
    for line in _lines(f"Threshold {_chosen_words(curve)}.", 70):
        height += 16
        parts.append(f'<text x="{LEFT}" y="{height}">{escape(line)}</text>')
    words = escape(
        f"Ground-truth-known accuracy against the threshold; {_chosen_words(curve)}; best on these pictures "
        f"{curve['best_on_these_pictures']['percent']:g} % at {curve['best_on_these_pictures']['threshold']:g}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height + 10}" role="img" aria-label="{words}" '
        f'font-family="sans-serif" font-size="11" fill="currentColor" stroke-linejoin="round">'
        f"<title>{words}</title>{''.join(parts)}</svg>\n"
    )


def _highest(curve: dict[str, Any], names: Sequence[str]) -> float:
    return max(max(curve[n]["high"]) if isinstance(curve[n], dict) else curve[n] for n in names)


def _stroke(name: str) -> str:
    width = 2.2 if name == NETWORK else 1.6
    return f'fill="none" stroke="{COLOURS[name]}" stroke-width="{width}" stroke-dasharray="{DASHES[name]}"'


def _legend(name: str) -> str:
    return {
        NETWORK: "what is judged, solid, with its 95 % interval as a band",
        GAUSSIAN: "centre Gaussian, dashed",
        RANDOM: "the same network with a randomised head, dotted",
        WHOLE: "the whole picture as box, dashes and dots",
        CENTRED: "best centred box (its size chosen on these pictures), wide dots",
    }[name]


def _chosen_words(curve: dict[str, Any]) -> str:
    return curve["origin"] if curve["chosen"] is None else f"{curve['chosen']:g}, {curve['origin']}"


def _lines(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) < width or not lines[-1]:
            lines[-1] = f"{lines[-1]} {word}".strip()
        else:
            lines.append(word)
    return lines


# --- pictures ----------------------------------------------------------------------------------------------


def pictures(
    plan: Plan | None,
    data: DataSet,
    count: int,
    maps: str | Path | None = None,
    rule: Rule | None = None,
    rejected: Container[str] = (),
) -> list[dict[str, Any]]:
    """Sections of figures: `title`, `about`, `rows` of a title and panels (`data`, `alt`, `words`). The pictures are spread
    evenly over those that have boxes and are not `rejected`; nobody picked them."""
    boxed = [e for e in data.examples if e.boxes and not e.blacklisted and e.source.name not in rejected]
    chosen = boxed[:: max(1, len(boxed) // max(count, 1))][:count]
    if not chosen:
        return []
    if plan is None:
        return [_of_maps(chosen, data, Path(maps or ""), rule or FractionOfMax())]
    kinds = Counter(e.label for e in boxed)
    common = [label for label, number in kinds.most_common(CLASS_ROWS) if number > 1]
    sections = [_truth_and_prediction(plan, chosen), _several_classes(plan, chosen[:SEVERAL])]
    sections.append(_beside_saliency(plan, chosen[:ROW]))
    if common:
        of_class = [[e for e in boxed if e.label == label][:CLASS_PICTURES] for label in common]
        sections.append(_one_class(plan, of_class))
    return [one for one in sections if one["rows"]]


def _truth_and_prediction(plan: Plan, chosen: Sequence[Example]) -> dict[str, Any]:
    panels = []
    for example, seen in _looked(plan, chosen):
        found = seen.found[0]
        best, own = _best_overlap(found, seen), example.label in (found.class_index,)
        verdict = "right" if own and best >= 0.5 else "box wrong" if own else "class wrong"
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
    rows: dict[str, list[dict[str, str]]] = {}
    for name, way in ways:
        for example, seen in _looked(way, chosen, known=True):
            found = seen.found[0]
            called = name or found.map_method
            words = f"{called}: overlap {_best_overlap(found, seen):.2f}"
            panel = _panel(seen.picture, seen.maps[0], _boxes(found), seen.truth, words, found.status)
            true = plan.network.card.label(example.label).name.split(",")[0]
            rows.setdefault(f"{true}, {Path(seen.source.relative).name}", []).append(panel)
    return {
        "title": "Beside backpropagation saliency",
        "about": "The true class’s map by this method and by the gradient at the pixels (after Figures 5 and 6).",
        "rows": [{"title": name, "panels": panels} for name, panels in rows.items()],
    }


def _one_class(plan: Plan, groups: Sequence[Sequence[Example]]) -> dict[str, Any]:
    rows = []
    for group in groups:
        name = plan.network.card.label(group[0].label).name.split(",")[0]
        panels = [
            _panel(seen.picture, seen.maps[0], (), (), f"{name}, {figures.percent(seen.found[0].probability)}", seen.found[0].status)
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
        boxes = [one.box for one in boxes_of(rule, heat, size, lambda picture=picture: picture)]  # type: ignore[misc]
        best = max(_overlap(box, example.boxes) for box in boxes)
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
    return f"{found.class_name.split(',')[0]} {figures.percent(found.probability)}"


def _boxes(found: Localization) -> list[Box]:
    return [scored.box for scored in found.boxes]


def _best_overlap(found: Localization, seen: Seen) -> float:
    return max((_overlap(box, seen.truth) for box in _boxes(found)[:1]), default=0.0)


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


# --- the page ----------------------------------------------------------------------------------------------


def write(
    report: dict[str, Any], shown: Sequence[dict[str, Any]], rejected: Sequence[tuple[str, str]] = ()
) -> str:
    """The whole page: one file, nothing fetched."""
    who = report["network"] or "Maps of another tool"
    facts = [
        ("Pictures that count", f"{report['counted']} of {report['cases']}"),
        ("Data", f"{', '.join(Path(d).name for d in report['data'])}, split {report['split']}"),
        ("Map", report["method"] + (f", views {report['views']}" if report.get("views") else "")),
        ("Box rule", report["rule"]),
        ("Threshold", threshold_words(report)),
        ("A box is right", f"from IoU {report['iou']:g} on"),
    ]
    if report["blacklisted"]:
        facts.append(("Blacklisted, left out", str(report["blacklisted"])))
    facts += [("Note", note) for note in report["notes"]]
    has = "figures" in report
    context = {
        "who": who, "facts": facts, "command": shlex.join(report["command"]) if report["command"] else "",
        "oracle": report["threshold"]["oracle"], "tables": tables(report) if has else [],
        "names": list(tables(report)[0][1][0]["cells"]) if has else [],
        "centred": report["baselines"][CENTRED] if has else None,
        "curve": Markup(curve_svg(report["curve"])) if has else "",
        "best": report["curve"]["best_on_these_pictures"] if has else None,
        "chosen": _chosen_words(report["curve"]) if has else "",
        "sections": shown, "rejected": list(rejected)[:REJECTED_SHOWN], "rejected_total": len(rejected),
        "found_colour": "rgb({}, {}, {})".format(*render.FOUND), "truth_colour": "rgb({}, {}, {})".format(*render.TRUTH),
        "bar": ", ".join("#{:02x}{:02x}{:02x}".format(*c) for c in render.palette("heat", 15)),
    }  # fmt: skip
    return page.environment().get_template("localization.html.j2").render(context)
