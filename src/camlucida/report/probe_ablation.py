"""Figures of an ablation: bars, the strip of units by classes, tables."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camlucida import render
from camlucida.probes.ablation import Ablation
from camlucida.probes.variants import Depth, Variant
from camlucida.report import charts
from camlucida.report.probe_page import Patch, Section, Strip, Table

CELL, SIDE, TALL = (
    14,
    24,
    900,
)  # of the labelled strip: pixels a cell, units and classes at most; of the whole: pixels
CLASS_ROWS = 200_000  # of classes.csv: more are in the NPZ alone


def finding(units: Ablation | None, layers: Ablation | None) -> str:
    """In sentences made of the numbers."""
    words = []
    if units is not None:
        first, (low, high) = int(np.argmin(units.change)), units.interval
        sure, risen = int((high < 0).sum()), int((low > 0).sum())
        by_chance = f"{0.025 * len(units.parts):.1f}".removesuffix(".0")
        words.append(
            f"Of the {_count(units.parts, 'unit')} of {units.layer}, silenced one at a time, {_some(sure, 'costs', 'cost')} top-1 "
            f"accuracy ({units.before:.1%}) beyond its 95 % interval and {_some(risen, 'holds', 'hold')} it down, where of so many "
            f"chance alone would make {by_chance} of each."
        )
        if units.change[first] < 0:
            words.append(
                f"Most is lost with unit {units.parts[first]}: {_points(units.change[first])} points "
                f"({_points(low[first])} … {_points(high[first])})" + _of_classes(units, first, 1) + "."
            )
    if layers is not None:
        seeing = [i for i in range(len(layers.parts)) if not layers.blind[i]]
        blind = int(layers.blind.sum())
        if seeing:
            worst, best = (f(seeing, key=lambda i: layers.change[i]) for f in (min, max))
            words.append(
                f"Without one whole layer top-1 moves by {_points(layers.change[worst])} ({layers.parts[worst]}) to "
                f"{_points(layers.change[best])} points ({layers.parts[best]})."
            )
        if blind:
            whose = "its" if blind == 1 else "their"
            words.append(
                f"Above {_count(range(blind), 'layer')} at {whose} mean, nothing of the picture is left."
            )
    return " ".join(words)


def units_section(found: Ablation, shown: int) -> Section:
    order = [int(i) for i in found.order]
    best = order[:shown]
    bars = {f"unit {found.parts[i]}": round(100 * float(found.probability_lost[i]), 3) for i in best}
    lost = charts.bars(bars, f"Probability of the true class lost without each unit of {found.layer}, points")
    spread = charts.lines(
        {"probability lost": (np.arange(1, len(order) + 1), 100 * found.probability_lost[order])},
        f"Probability lost over the units of {found.layer}, from the most to the least", "units in order", "points lost",
    )  # fmt: skip
    blocks: list[Strip | Table] = [
        Strip(
            [Patch(lost, "", f"the {len(best)} that lose most"), Patch(spread, "", "all of them, in order")],
            "Probability of the true class that is lost",
            "Mean over all pictures, in percentage points.",
            "large",
        )
    ]
    change = -100 * found.probability_drop[order]
    seen = np.flatnonzero(found.pictures)
    weight = np.abs(change[:SIDE][:, seen]).max(0)
    columns = seen[np.argsort(-weight, kind="stable")[:SIDE]]
    limit = float(np.nanmax(np.abs(change[:, seen]))) or 1.0
    names = [str(found.parts[i]) for i in order[:SIDE]]
    strip = heat(change[:SIDE][:, columns], names, [_name(found, c) for c in columns], limit)
    patches = [
        Patch(strip, "", f"the {len(names)} units that lose most, the {len(columns)} classes that move most")
    ]
    if len(order) > SIDE or len(seen) > SIDE:
        whole = render.shade(change[:, seen], -limit, limit, "signed")
        scale = max(1, round(352 / len(seen)))
        tall = max(1, min(scale, TALL // len(order)))
        alt = f"{len(order)} units in the order of what they lose, by {len(seen)} classes; from −{limit:.1f} to {limit:.1f} points"
        patches.append(
            Patch(
                whole.repeat(tall, 0).repeat(scale, 1),
                alt,
                "all units, in the same order, by all classes in theirs",
            )
        )
    blocks.append(
        Strip(
            patches,
            "Which classes fall with which unit",
            f"Change of the mean probability of a class over its pictures, from −{limit:.0f} (blue) over 0 to {limit:.0f} points (red).",
            "large",
        )
    )
    blocks.append(_table(found, best, "unit"))
    return Section(
        f"Units of {found.layer}",
        "One unit at a time gives " + ("nothing" if found.put[0] == "zero" else "its mean over all pictures") + " in all cells.",
        blocks,
    )  # fmt: skip


def layers_section(found: Ablation) -> Section:
    bars = charts.bars(
        {str(name): round(100 * float(found.change[i]), 2) for i, name in enumerate(found.parts)}, "Change of top-1 without each layer, points",
    )  # fmt: skip
    text = (
        "identity: the layer gives what it is given, where both have one shape. mean: each of its units gives its mean over "
        "all pictures and cells; where nothing passes by the layer, no picture is told from another any more (blind)."
    )
    blocks: list[Strip | Table] = [
        Strip([Patch(bars, "", "top-1, percentage points")], size="large"),
        _table(found, range(len(found.parts)), "layer"),
    ]
    if found.refused:
        blocks.append(Table(["layer", "why it could not be silenced"], found.refused))
    return Section("Whole layers", text, blocks)


def rows(found: Ablation, what: str) -> list[dict[str, Any]]:
    """A row a part, for CSV; shares as fractions."""
    low, high = found.interval
    return [
        {
            what: part, "put": found.put[i], "blind": bool(found.blind[i]), "top1_before": found.before,
            "top1_after": found.before + found.change[i], "change": found.change[i], "low": low[i], "high": high[i],
            "lost": int(found.lost[i].sum()), "gained": int(found.gained[i].sum()), "probability_lost": found.probability_lost[i],
        }
        for i, part in enumerate(found.parts)
    ]  # fmt: skip


def class_rows(found: Ablation, what: str) -> list[dict[str, Any]]:
    """A row a part and class that has pictures, for CSV; empty where these would be too many."""
    seen = np.flatnonzero(found.pictures)
    if len(seen) * len(found.parts) > CLASS_ROWS:
        return []
    return [
        {
            what: part, "class_index": int(c), "class_id": found.labels[c].id, "class_name": found.labels[c].name,
            "pictures": int(found.pictures[c]), "right": int(found.right[c]), "lost": int(found.lost[i, c]),
            "gained": int(found.gained[i, c]), "logit_drop": found.logit_drop[i, c], "probability_drop": found.probability_drop[i, c],
        }
        for i, part in enumerate(found.parts) for c in seen
    ]  # fmt: skip


def arrays(found: Ablation) -> dict[str, NDArray]:
    names = ("pictures", "right", "lost", "gained", "logit_drop", "probability_drop")
    return {"parts": np.array(found.parts), **{name: getattr(found, name) for name in names}}


def heat(values: NDArray, rows: Sequence[str], columns: Sequence[str], limit: float) -> str:
    """An SVG of `(rows, columns)` from −limit over 0 to limit, with the names of both."""
    left = 14 + round(6.4 * max(map(len, rows), default=0))
    top = 14 + round(5.2 * max(map(len, columns), default=0))
    across, down = CELL * len(columns), CELL * len(rows)
    picture = base64.b64encode(render.png(render.shade(values, -limit, limit, "signed"))).decode()
    parts = [
        f'<image x="{left}" y="{top}" width="{across}" height="{down}" preserveAspectRatio="none" '
        f'style="image-rendering: pixelated" href="data:image/png;base64,{picture}"/>'
    ]
    parts += [
        f'<text x="{left - 5}" y="{top + CELL * i + 11}" text-anchor="end">{escape(name)}</text>'
        for i, name in enumerate(rows)
    ]
    parts += [
        f'<text transform="translate({left + CELL * i + 11} {top - 5}) rotate(-90)">{escape(name)}</text>'
        for i, name in enumerate(columns)
    ]
    words = f"{len(rows)} units by {len(columns)} classes"
    if values.size:
        row, column = divmod(int(np.nanargmin(values)), len(columns))
        words += f"; the deepest fall, {values[row, column]:.1f} points, is of {columns[column]} without unit {rows[row]}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {max(left + across + 8, 240)} {top + down + 6}" role="img" '
        f'aria-label="{escape(words)}" font-family="sans-serif" font-size="10" fill="currentColor">{"".join(parts)}</svg>'
    )


def variants_table(variants: Sequence[Variant], logged: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a run, for page and CSV: errors in percent. `logged`: what each run's own log says, where pictures were not
    given: of augmented crops, and of the tuning split."""
    base = next((one for one in variants if not one.change), None)
    found = []
    for one, log in zip(variants, logged, strict=True):
        row: dict[str, Any] = {
            "run": one.name, "change": one.change or "as the recipe", "seed": one.seed, "epochs": one.epochs,
            "parameters": one.parameters, "train_top1": 100 * one.training.error(1) if one.training else log.get("error"),
        }  # fmt: skip
        for top in (1, 5):
            judged = one.validation
            row[f"val_top{top}"] = 100 * judged.error(top) if judged else _error(log.get(f"top{top}"))
            low, high = judged.interval(top) if judged else (None, None)
            row |= {f"val_top{top}_low": _percent(low), f"val_top{top}_high": _percent(high)}
        more = one.validation.more_errors(base.validation) if _comparable(one, base) else (None, (None, None))  # type: ignore[union-attr,arg-type]
        row |= {
            "more_than_base": _percent(more[0]),
            "more_low": _percent(more[1][0]),
            "more_high": _percent(more[1][1]),
        }
        found.append(row)
    return found


def variants_section(rows: Sequence[dict[str, Any]], source: str) -> Section:
    def ranged(row: dict[str, Any], name: str, low: str, high: str) -> str | None:
        if row[name] is None:
            return None
        between = "" if row[low] is None else f" ({row[low]:.1f}\u00a0…\u00a0{row[high]:.1f})"
        return f"{row[name]:.1f}{between}".replace("-", "−")

    head = [
        "change",
        "seed",
        "parameters",
        "train top-1",
        "val top-1",
        "val top-5",
        "val top-1 above the unchanged",
    ]
    table = [
        [
            row["change"], row["seed"], row["parameters"], None if row["train_top1"] is None else f"{row['train_top1']:.1f}",
            ranged(row, "val_top1", "val_top1_low", "val_top1_high"), ranged(row, "val_top5", "val_top5_low", "val_top5_high"),
            ranged(row, "more_than_base", "more_low", "more_high"),
        ]
        for row in rows
    ]  # fmt: skip
    bars = charts.bars(
        {f"{r['change']}": r["val_top1"] for r in rows if r["val_top1"] is not None}, "Top-1 error", unit=" %"
    )
    return Section(
        "Variants", source,
        [Strip([Patch(bars, "", "top-1 error on the validation pictures, percent")], size="large"), Table(head, table, "Error in percent")],
    )  # fmt: skip


def variants_finding(claim: Depth | None, rows: Sequence[dict[str, Any]]) -> str:
    """What the table says of "depth matters more than any one layer"."""
    if claim is None:
        known = [row for row in rows if row["val_top1"] is not None]
        if not known:
            return f"{len(rows)} runs; none has an error that can be compared."
        best = min(known, key=lambda row: row["val_top1"])
        return f"The lowest top-1 error of {len(rows)} runs is {best['val_top1']:.1f} %: {best['change']}."
    more, (low, high) = claim.more
    said = (
        "together they count for more than any part of them" if low > 0
        else "together they count for less than a part of them" if high < 0
        else "that they count for more together than in part is not shown by these pictures"
    )  # fmt: skip
    return (
        f"{claim.whole.change.capitalize()} the top-1 error moves by {_points(claim.cost[0])} points against the unchanged "
        f"network's ({_points(claim.cost[1][0])} … {_points(claim.cost[1][1])}), {claim.worst.change}, the worst of its parts, "
        f"by {_points(claim.worst_cost[0])} ({_points(claim.worst_cost[1][0])} … {_points(claim.worst_cost[1][1])}): {said} "
        f"(difference {_points(more)}, {_points(low)} … {_points(high)})."
    )


def _comparable(one: Variant, base: Variant | None) -> bool:
    return base is not None and base is not one and one.validation is not None and base.validation is not None


def _table(found: Ablation, which: Sequence[int], what: str) -> Table:
    low, high = found.interval
    head = [
        what,
        "top-1 change, points",
        "95 % interval",
        "probability lost, points",
        "classes that fall most",
    ]
    table = [
        [
            found.parts[i], round(100 * float(found.change[i]), 2), f"{_points(low[i])}\u00a0…\u00a0{_points(high[i])}",
            round(100 * float(found.probability_lost[i]), 2), _of_classes(found, i, 3).removeprefix(", most of ") or "–",
        ]
        for i in which
    ]  # fmt: skip
    if what == "layer":
        head.insert(1, "gives instead")
        for row, i in zip(table, which, strict=True):
            row.insert(1, found.put[i] + (", blind" if found.blind[i] else ""))
    return Table(head, table, f"Top-1 before: {found.before:.1%} of {found.pictures.sum():,} pictures")


def _of_classes(found: Ablation, part: int, most: int) -> str:
    change = found.class_change[part]
    fallen = [
        f"{_name(found, c)} ({_points(change[c])} of {found.pictures[c]})" for c in found.falls(part, most)
    ]
    return f", most of {', '.join(fallen)}" if fallen else ""


def _name(found: Ablation, index: int) -> str:
    return found.labels[index].name.split(",")[0]


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _error(accuracy: float | None) -> float | None:
    return None if accuracy is None else 100 - accuracy


def _some(count: int, one: str, several: str) -> str:
    return f"{count or 'none'} {one if count < 2 else several}"


def _count(things: Sequence[Any], word: str) -> str:
    return f"{len(things):,} {word}{'s' * (len(things) != 1)}"
