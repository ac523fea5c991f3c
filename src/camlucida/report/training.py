"""A training run as a page: its curves, its recipe and its figures in one HTML file, read from the run's log."""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from camlucida.report import page

FILE, PICTURE = "training.html", "curves.png"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 250, 72, 16, 12, 30  # of a chart, its axes inside; CSS pixels
POINTS = 600  # of a curve at most: more are averaged in groups
REJECTED_SHOWN = 500

Point = tuple[float, float]


@dataclass
class Log:
    """What a log says of a run. Steps that were made again after a kill count once, as they were made last."""

    commands: list[list[str]] = field(default_factory=list)
    start: dict[str, Any] = field(default_factory=dict)
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)
    epochs: dict[int, dict[str, Any]] = field(default_factory=dict)
    done: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def read(file: Path) -> Log:
    """Lines that were cut by a kill are passed over."""
    log, session = Log(), 0.0
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
            kind = values.pop("kind")
        except (ValueError, AttributeError, KeyError):
            continue
        if kind == "command":
            log.commands.append(values["command"])
        elif kind == "start":
            log.start, log.done, log.seconds, session = values, {}, log.seconds + session, 0.0
        elif kind == "step":
            log.steps[values["step"]] = values
        elif kind == "epoch":
            log.epochs[values["epoch"]] = values
        elif kind == "done":
            log.done = values
        session = float(values.get("seconds", session))
    log.seconds += session
    return log


def rejected(out: Path) -> dict[str, str]:
    """Paths and reasons of a run's `rejected.csv`; empty without one."""
    file = out / "rejected.csv"
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", newline="") as table:
        return {row["path"]: row["reason"] for row in csv.DictReader(table)}


def save(out: Path) -> Path:
    """Writes `training.html` of the run in this folder, whole or not at all, and `curves.png` where matplotlib is
    installed. Gives the page's path."""
    log = read(out / "log.jsonl")
    recipe = out / "recipe.toml"
    text = write(log, recipe.read_text(encoding="utf-8") if recipe.is_file() else "", rejected(out))
    file = out / FILE
    temporary = file.with_name(f".{FILE}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    _draw(log, out / PICTURE)
    return file


def write(log: Log, recipe: str = "", broken: Mapping[str, str] | None = None) -> str:
    """The whole page."""
    broken = broken or {}
    per_epoch = steps_per_epoch(log)
    charts = [
        {"title": title, "about": about, "svg": chart(curves, per_epoch, unit, log_scale), "keys": [(name, i) for i, (name, _) in enumerate(curves)]}
        for title, about, curves, unit, log_scale in panels(log)
    ]  # fmt: skip
    names = [n for n in ("loss", "error", "top1", "top5", "labels", "squared_error", "seconds") if any(n in e for e in log.epochs.values())]  # fmt: skip
    context = {
        "title": f"{log.start.get('recipe', 'A run')}: {outcome(log)}",
        "facts": facts(log, len(broken)),
        "charts": charts,
        "columns": [HEADINGS[n] for n in names],
        "rows": [[str(e["epoch"]), *(_number(e.get(n)) for n in names)] for e in log.epochs.values()],
        "recipe": recipe,
        "commands": [shlex.join([*words[0].split(), *words[1:]]) for words in log.commands if words],
        "rejected": list(broken.items())[:REJECTED_SHOWN],
        "rejected_total": len(broken),
    }
    return page.environment().get_template("training.html.j2").render(context)


TUNING = {
    "top1": "top-1 {:.1f} %",
    "top5": "top-5 {:.1f} %",
    "labels": "labels {:.1f} %",
    "squared_error": "squared error {:.4g}",
}
HEADINGS = {
    "loss": "Loss", "error": "Training error", "top1": "Tuning top-1 (%)", "top5": "Tuning top-5 (%)", "labels": "Tuning labels right (%)",
    "squared_error": "Tuning squared error", "seconds": "Seconds",
}  # fmt: skip


def _judged(figures: Mapping[str, Any], names: Collection[str]) -> str:
    words = {"epoch": "epoch {}"} | TUNING
    return ", ".join(words[n].format(figures[n]) for n in names if n in figures)


def outcome(log: Log) -> str:
    """The run in a few words."""
    best = log.done.get("best") or {}
    if "top1" in best:
        return f"{best['top1']:.1f} % of the tuning split right, after epoch {best['epoch']}"
    if "squared_error" in best:
        return f"squared error {best['squared_error']:.4g} on the tuning split, after epoch {best['epoch']}"
    losses = [e["loss"] for e in log.epochs.values() if "loss" in e]
    return f"loss {losses[-1]:.3f} after epoch {max(log.epochs)}" if losses else "no epoch is done"


def facts(log: Log, broken: int) -> list[tuple[str, str]]:
    start, best = log.start, log.done.get("best") or {}
    last = list(log.epochs.values())[-1:] or [{}]
    of_classes = f" of {start['classes']:,} classes" if start.get("classes") else ""  # numbers have none
    found = [
        ("Pictures", f"{start['pictures']:,}{of_classes}" if "pictures" in start else ""),
        ("Weights from", "{started_from}: {copied}; new: {fresh_layers}".format(**start) if "started_from" in start else ""),
        ("Epochs", str(max(log.epochs, default=0))),
        ("Steps", f"{max([*log.steps, *(e['step'] for e in log.epochs.values())], default=0):,}"),
        ("Time", _time(log.seconds)),
        ("Loss at the end", _number(last[0].get("loss"))),
        ("Best on the tuning split", _judged(best, ("epoch", *TUNING))),
        ("At the end on the tuning split", _judged(last[0], TUNING)),
        ("Parameters", f"{start['parameters']:,}" if "parameters" in start else ""),
        ("Device", f"{start['processes']} × {start['device']}" if start.get("processes", 1) > 1 else str(start.get("device", ""))),
        ("Precision", str(start.get("precision", ""))),
        ("Versions", ", ".join(f"{n} {v}" for n, v in start.get("versions", {}).items())),
        ("Rejected", f"{broken:,} picture{'s' * (broken > 1)}" if broken else ""),
    ]  # fmt: skip
    return [(name, value) for name, value in found if value]


def steps_per_epoch(log: Log) -> float:
    if "steps_per_epoch" in log.start:
        return float(log.start["steps_per_epoch"])
    return next((e["step"] / number for number, e in log.epochs.items()), 1.0)


def panels(log: Log) -> list[tuple[str, str, list[tuple[str, list[Point]]], str, bool]]:
    """Title, explanation, curves by name over steps, unit, logarithmic or not."""

    def of(name: str, lines: Mapping[int, Mapping[str, Any]]) -> list[Point]:
        found = sorted((one["step"], one.get(name)) for one in lines.values())
        return [(step, float(v)) for step, v in found if v is not None and math.isfinite(v)]

    tuning = [(step, 100 - v) for step, v in of("top1", log.epochs)] or of("squared_error", log.epochs)
    percent = "" if any("squared_error" in e for e in log.epochs.values()) else " %"
    every, error = (max(of(name, log.steps), of(name, log.epochs), key=len) for name in ("loss", "error"))
    rates = of("rate", log.steps)
    about = "training: on the pictures as augmented, while they are learnt"
    found = [
        ("Loss", "mean over the pictures since the point before", [("training", every)], "", False),
        ("Error", about, [("training", error), ("tuning split", tuning)], percent, False),
        ("Learning rate", "", [("rate", rates)], "", _drops(rates)),
    ]
    kept = [(t, a, [(n, c) for n, c in curves if c], u, s) for t, a, curves, u, s in found]
    return [one for one in kept if one[2]]


def _drops(points: Sequence[Point]) -> bool:
    """Whether a tenth of the values and more lie far below the largest: a rate that goes down by factors."""
    values = sorted(y for _, y in points)
    return bool(values) and 0 < values[len(values) // 10] < values[-1] / 20


def chart(
    curves: Sequence[tuple[str, Sequence[Point]]], per_epoch: float, unit: str = "", log_scale: bool = False
) -> Markup:
    """Curves over steps as an SVG picture, the x axis in epochs. `log_scale`: powers of ten; points at 0 are left out."""
    shown = [[(x, y) for x, y in points if y > 0 or not log_scale] for _, points in curves]
    shown = [thinned(points) for points in shown]
    every = [point for points in shown for point in points]
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    measure: Callable[[float], float] = math.log10 if log_scale else float
    low, high = min(measure(y) for _, y in every), max(measure(y) for _, y in every)
    marks = ticks(low, high)
    low, high = min(low, marks[0]), max(high, marks[-1])
    end = max(x for _, points in curves for x, _ in points) / per_epoch or 1.0

    def place(point: Point) -> str:
        x = LEFT + width * point[0] / per_epoch / end
        return f"{x:.1f},{TOP + height * (high - measure(point[1])) / ((high - low) or 1.0):.1f}"

    parts = []
    for mark in marks:
        y = TOP + height * (high - mark) / ((high - low) or 1.0)
        said = _number(10**mark if log_scale else mark) + unit
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="mark" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(said)}</text>')  # fmt: skip
    for mark in ticks(0, end):
        if mark <= end:
            x = LEFT + width * mark / end
            parts.append(f'<text class="mark" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{_number(mark)}</text>')  # fmt: skip
    for i, points in enumerate(shown):
        if len(points) == 1:
            cx, cy = place(points[0]).split(",")
            parts.append(f'<circle class="curve-{i}" cx="{cx}" cy="{cy}" r="3"/>')
        else:
            parts.append(f'<polyline class="curve-{i}" points="{" ".join(map(place, points))}"/>')
    label = f"{', '.join(name for name, _ in curves)} over epochs 0 to {_number(end)}"
    inside = "".join(parts)
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{inside}</svg>'
    )


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most `POINTS` points: the means of as many groups of neighbours, evenly large but for the last."""
    size = -(-len(points) // POINTS)
    if size <= 1:
        return list(points)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers that enclose the interval: multiples of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    step = next(s for e in (-1, 0) for m in (1, 2, 5) if (s := m * 10.0 ** (math.floor(math.log10(span)) + e)) >= span / 5)  # fmt: skip
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def _draw(log: Log, file: Path) -> None:
    """The same curves as a PNG picture, where matplotlib is installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    found, per_epoch = panels(log), steps_per_epoch(log)
    if not found:
        return
    drawing = Figure(figsize=(4.2 * len(found), 3.2), layout="constrained")
    FigureCanvasAgg(drawing)
    for axes, (title, _, curves, unit, log_scale) in zip(
        drawing.subplots(1, len(found), squeeze=False)[0], found, strict=True
    ):
        for name, points in curves:
            axes.plot([x / per_epoch for x, _ in points], [y for _, y in points], label=name, marker="." if len(points) == 1 else None)  # fmt: skip
        axes.set(title=title + (f" ({unit.strip()})" if unit else ""), xlabel="epoch", yscale="log" if log_scale else "linear")  # fmt: skip
        if len(curves) > 1:
            axes.legend(frameon=False)
    temporary = file.with_name(f".{file.stem}.{os.getpid()}.tmp.png")
    try:
        drawing.savefig(temporary, dpi=150)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–" if value is None else str(value)
    return (f"{value:,}" if isinstance(value, int) else f"{value:.4g}").replace("-", "−")


def _time(seconds: float) -> str:
    minutes, hours = round(seconds / 60), seconds / 3600
    return f"{seconds:.1f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{hours:.1f} h"
