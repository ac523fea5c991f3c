"""What `probes.invariance` measured, as a page: curves per transformation, figures of the curves, the paper's claims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from camlucida.probes.invariance import TRANSFORMATIONS, Invariance
from camlucida.report import charts
from camlucida.report.probe_page import Patch, Section, Strip, Table
from camlucida.values import Batch

LINES = 6  # with more pictures than this, a band stands for their lines
SHOWN = 7  # steps of the first picture
AT_ONCE, STRAIGHT = 0.5, 0.15


def words(name: str) -> str:
    return name.replace("-", " ")


def figures(results: Sequence[Invariance]) -> dict[str, Any]:
    """The numbers of the curves, by transformation."""
    return {
        one.transformation: {
            "probability_intact": _number(np.mean(one.intact)),
            "probability_kept": _number(one.kept),
            "layers": {
                layer: {key: _number(value) for key, value in vars(one.movement(i)).items()}
                | {"another_picture": _number(one.apart[i] / np.sqrt(np.mean(one.norms[:, i] ** 2)))}
                for i, layer in enumerate(one.layers)
            },
        }
        for one in results
    }


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def claims(results: Sequence[Invariance]) -> list[tuple[str, str, bool]]:
    """Each claim of the paper, what was measured, and whether it holds here; of the first and the last layer."""
    moved = {
        one.transformation: (one.movement(0), one.movement(len(one.layers) - 1))
        for one in results
        if len(one.layers) > 1
    }
    moved = {name: pair for name, pair in moved.items() if all(math.isfinite(m.area) for m in pair)}
    if not moved:
        return []
    first, last = results[0].layers[0], results[0].layers[-1]
    easy = {name: pair for name, pair in moved.items() if name != "rotation"}
    found = []

    def said(values: Mapping[str, float], spell: str) -> str:
        return ", ".join(f"{spell.format(value)} ({words(name)})" for name, value in values.items())

    at_once = {name: one.at_a_tenth for name, (one, _) in moved.items()}
    slowly = {name: other.at_a_tenth for name, (_, other) in moved.items()}
    found.append((
        f"The first layer moves at once: {first} has half of its largest change after a tenth of the range",
        said(at_once, "{:.0%}"), min(at_once.values()) >= AT_ONCE,
    ))  # fmt: skip
    found.append((
        f"The last layer moves more slowly than the first: {last} has less of its own after a tenth",
        said(slowly, "{:.0%}"), all(slowly[name] < at_once[name] for name in moved),
    ))  # fmt: skip
    if easy:
        areas = {name: other.area for name, (_, other) in easy.items()}
        found.append((
            f"… and nearly in proportion, under shift and scale: the area under {last}'s curve is 0.5 ± {STRAIGHT:g}",
            said(areas, "{:.2f}"), all(abs(area - 0.5) <= STRAIGHT for area in areas.values()),
        ))  # fmt: skip
        far = {name: (one.farthest, other.farthest) for name, (one, other) in easy.items()}
        spoken = ", ".join(f"{b:.2f} against {a:.2f} ({words(name)})" for name, (a, b) in far.items())
        found.append((
            f"… and little, under shift and scale: {last} goes less far than {first}", spoken, all(b < a for a, b in far.values())
        ))  # fmt: skip
    if easy and "rotation" in moved:
        kept = {one.transformation: one.kept for one in results if one.transformation in moved}
        far_last = {name: other.farthest for name, (_, other) in moved.items()}
        found.append((
            f"Rotation breaks {last}: it goes farther than under shift and scale",
            said(far_last, "{:.2f}"), all(far_last["rotation"] > far_last[name] for name in easy),
        ))  # fmt: skip
        if all(map(math.isfinite, kept.values())):
            found.append((
                "… and costs more of the class's probability than shift and scale",
                said(kept, "{:.0%} kept"), all(kept["rotation"] < kept[name] for name in easy),
            ))  # fmt: skip
    return found


def finding(results: Sequence[Invariance]) -> str:
    """What came out, in words made from the numbers."""
    one = next((r for r in results if r.transformation == "vertical-shift"), results[0])
    said = []
    each = {layer: one.movement(i) for i, layer in enumerate(one.layers)}
    if all(math.isfinite(m.area) for m in each.values()):
        parts = [f"{m.at_a_tenth:.0%} of its largest change at {layer}" for layer, m in each.items()]
        said.append(
            f"After a tenth of the range, a {words(one.transformation)} has made {' and '.join(parts)}."
        )
    kept = {words(r.transformation): r.kept for r in results if math.isfinite(r.kept)}
    if kept:
        parts = [f"{value:.0%} under {name}" for name, value in kept.items()]
        said.append(f"Of the class's probability is left, on average over the range, {', '.join(parts)}.")
    listed = claims(results)
    if listed:
        said.append(f"{sum(holds for *_, holds in listed)} of the paper's {len(listed)} claims hold here.")
    return " ".join(said) or "Nothing moved: the features are the same for every transformed picture."


def sections(
    results: Sequence[Invariance], names: Sequence[str], first: Batch, truth: str, link: str
) -> list[Section]:
    """One section per transformation, and the claims. `first`: the first picture, to be shown transformed; `truth`: what
    the class is."""
    made = []
    for one in results:
        how = TRANSFORMATIONS[one.transformation]
        steps = [one.amounts[i] for i in np.linspace(0, len(one.amounts) - 1, min(SHOWN, len(one.amounts))).round().astype(int)]  # fmt: skip
        shown = [
            Patch(
                _picture(first, how.apply(first.pixels, amount)),
                f"{names[0]}, {words(one.transformation)} {amount:g}", f"{amount:g}", link, photo=True,
            )
            for amount in steps
        ]  # fmt: skip
        x_title = f"{words(one.transformation)}, {how.unit}"
        panels = [
            Patch(
                _chart(one, one.relative[:, i], names, f"Distance at {layer}", x_title, "distance ÷ norm of the intact"),
                "", f"{layer}: how far the features are from those of the intact picture",
            )
            for i, layer in enumerate(one.layers)
        ]  # fmt: skip
        panels.append(
            Patch(
                _chart(one, one.probabilities, names, f"Probability of {truth}", x_title, "probability", (0.0, 1.0)),
                "", f"Probability of {truth}",
            )
        )  # fmt: skip
        rows = []
        for i, layer in enumerate(one.layers):
            move, norm = one.movement(i), float(np.sqrt(np.mean(one.norms[:, i] ** 2)))
            rows.append([layer, move.rate, move.at_a_tenth, move.area, move.farthest, one.apart[i] / norm])
        head = ["Layer", f"Rate near zero, per {_unit(one)}", "Share after a tenth", "Area", "Farthest", "Another picture"]  # fmt: skip
        made.append(
            Section(
                words(one.transformation).capitalize(), "",
                [Strip(shown, "", "The first picture at some of the steps.", "small"), Strip(panels, size="large"),
                 Table(head, rows, "Of the mean curve; distances in norms of the intact picture's features.")],
            )
        )  # fmt: skip
    listed = claims(results)
    if listed:
        rows = [[claim, f"{'Yes' if holds else 'No'}: {measured}"] for claim, measured, holds in listed]
        text = "As the ZF paper (section 4.1) states them for its network; the measures are this page's."
        made.insert(0, Section("The paper's claims", text, [Table(["Claim", "Does it hold here?"], rows)]))
    text = (
        "Rate near zero: relative distance per unit over the smallest step. Share after a tenth: part of the largest change "
        "that a tenth of the range has made; a straight line has 0.1. Area under the curve over its maximum: a straight line "
        "has 0.5, a jump 1. Another picture: the root-mean-square distance between two different pictures, the yardstick for "
        "Farthest. What comes into the frame is the mean colour (0 after normalisation), so a large change also loses content."
    )
    made.append(Section("How to read the figures", text))
    return made


def _unit(one: Invariance) -> str:
    return {"scale": "unit of scale", "rotation": "degree"}.get(one.transformation, "pixel of 224")


def _picture(first: Batch, pixels: Any) -> Image.Image:
    return Batch(pixels[:1].cpu(), first.views[:1], first.preprocessing).pictures(1)[0]


def _chart(
    one: Invariance, values: Any, names: Sequence[str], title: str, x_title: str, y_title: str,
    y_range: tuple[float, float] | None = None,
) -> str:  # fmt: skip
    """A line per picture and their mean; of many pictures the mean, and the band that holds the middle 80 %."""
    if y_range and not (np.nanmin(values) >= 0 and np.nanmax(values) <= 1):
        y_range, y_title = None, "logit"
    order = np.argsort(one.amounts)
    x = np.array(one.amounts)[order]
    with np.errstate(all="ignore"):
        mean = np.array([column[np.isfinite(column)].mean() if np.isfinite(column).any() else np.nan for column in values.T])[order]  # fmt: skip
    series = {"mean": (x, mean)}
    if len(values) > LINES:
        low, high = (np.nanpercentile(values, q, axis=0)[order] for q in (10, 90))
        return charts.lines(series, title, x_title, y_title, bands={"mean": (low, high)}, y_range=y_range)
    if len(values) > 1:
        series |= {name: (x, row[order]) for name, row in zip(names, values, strict=True)}
    else:
        series = {names[0]: (x, mean)}
    return charts.lines(series, title, x_title, y_title, y_range=y_range)
