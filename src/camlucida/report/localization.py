"""What the localization protocols say, as a page: the figures with their intervals beside what they must beat, the whole
accuracy–threshold curve, and the pictures of `localization_pictures`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from camlucida import render
from camlucida.evaluate.judge import CURVE, LEVELS
from camlucida.evaluate.predictions import utf8
from camlucida.evaluate.tally import CENTRED, GAUSSIAN, NETWORK, RANDOM, WHOLE, Tally, title
from camlucida.report import page
from camlucida.report.writing import replacing

PAGE = "report.html"
COLOURS = {
    NETWORK: "#b0307c", GAUSSIAN: "#2f7fb5", RANDOM: "#8a7a1f", WHOLE: "#777777", CENTRED: "#777777",
}  # fmt: skip
DASHES = {NETWORK: "", GAUSSIAN: "7 3", RANDOM: "2 3", WHOLE: "12 4 2 4", CENTRED: "1 5"}
REJECTED_SHOWN = 200


def threshold_words(report: dict[str, Any]) -> str:
    """The threshold and where it comes from."""
    value = report["threshold"]["value"]
    return report["threshold"]["origin"] if value is None else f"{value:g}, {report['threshold']['origin']}"


def counted_words(report: dict[str, Any]) -> str:
    """How many pictures the figures are of."""
    masks = f", {report['masked']} with masks" if report["masked"] else ""
    return f"{report['counted']} of {report['cases']} pictures that count{masks}"


def tables(report: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Headings and rows: a figure's name, and for the network and each baseline its percent and interval in words."""
    best = report.get("oracle_figures")
    own = "at a threshold " + report["threshold"]["origin"] if report["threshold"]["oracle"] else ""
    names = [name for name in (WHOLE, CENTRED, GAUSSIAN, RANDOM) if name in report["baselines"]]
    who = "this network" if report["network"] else "these maps"
    found = []
    parts = [(f"Figures {own}".strip(), report["figures"], report["baselines"])]
    if best:
        parts.append(("Oracle figures: " + best["note"], best[NETWORK], best["baselines"]))
    for heading, mine, others in parts:
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
    with replacing(folder / "pictures.parquet") as temporary:
        pyarrow.parquet.write_table(table, temporary)


def _write(file: Path, text: str) -> None:
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


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
            "path": utf8(case.path), "class_index": case.label, "counted": case.counted, "blacklisted": case.blacklisted,
            "rank": guess.rank if guess else None, "probability": guess.probability if guess else None,
            "predicted_index": guess.made[0][0] if guess and guess.made else None,
            "x0": box[0], "y0": box[1], "x1": box[2], "y1": box[3],
            "overlap": score.overlap if score else None, "gt_known": right,
            "top1_localization": None if right is None or guess is None or tally.protocol.several else right and guess.rank == 1,
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


# --- the page ----------------------------------------------------------------------------------------------


def write(
    report: dict[str, Any], shown: Sequence[dict[str, Any]], rejected: Sequence[tuple[str, str]] = ()
) -> str:
    """The whole page: one file, nothing fetched."""
    who = report["network"] or "Maps of another tool"
    facts = [
        ("Judged", counted_words(report)),
        ("Data", f"{', '.join(Path(d).name for d in report['data'])}, split {report['split']}"),
        ("Map", report["method"] + (f", views {report['views']}" if report.get("views") else "")),
        ("Box rule", report["rule"]),
        ("Threshold", threshold_words(report)),
        ("A box is right", f"from IoU {report['iou']:g} on"),
    ]
    if report["blacklisted"]:
        facts.append(("Blacklisted, left out", str(report["blacklisted"])))
    facts += [("Note", note) for note in report["notes"]]
    has, drawn = "figures" in report, "curve" in report
    context = {
        "who": who, "facts": facts, "command": page.command_line(report["command"]),
        "oracle": report["threshold"]["oracle"], "tables": tables(report) if has else [],
        "names": list(tables(report)[0][1][0]["cells"]) if has else [],
        "centred": report["baselines"].get(CENTRED) if has else None,
        "curve": Markup(curve_svg(report["curve"])) if drawn else "",
        "best": report["curve"]["best_on_these_pictures"] if drawn else None,
        "chosen": _chosen_words(report["curve"]) if drawn else "",
        "sections": shown, "rejected": list(rejected)[:REJECTED_SHOWN], "rejected_total": len(rejected),
        "found_colour": "rgb({}, {}, {})".format(*render.FOUND), "truth_colour": "rgb({}, {}, {})".format(*render.TRUTH),
        "bar": ", ".join("#{:02x}{:02x}{:02x}".format(*c) for c in render.palette("heat", 15)),
    }  # fmt: skip
    return page.environment().get_template("localization.html.j2").render(context)
