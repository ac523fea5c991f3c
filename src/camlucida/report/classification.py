"""What a classification run found, for people and machines: one page, one JSON file, tables."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from camlucida import render
from camlucida.evaluate.scores import BINS, NAMES
from camlucida.report import page

PAGE = "classification.html"
REJECTED_SHOWN = 500
SMALLEST = 640  # pixels a side of the confusion matrix, at least
ABOUT = {
    "top1": "the class of the highest probability is the true one",
    "top5": "the true class is among the five of the highest probability",
    "mean_per_class": "share right in each class, averaged over classes",
    "calibration_error": f"distance between confidence and share right over {BINS} bins of equal width; resampling adds to it, the more the fewer the pictures",
    "mean_average_precision": "area under precision over recall, mean over classes (VOC 2010 and later)",
    "mean_average_precision_11": "the same at recalls 0, 0.1 … 1 (VOC 2007)",
}


def save(report: Mapping[str, Any], rejected: Sequence[tuple[str, str]], folder: Path) -> None:
    """Writes `classification.html`, `evaluation.json`, `classes.csv`, for one class a picture `confusion.csv` (true class,
    predicted class, pictures), and `rejected.csv` where pictures were rejected. `report`: of `scores.figures`."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = report["classes"]
    names = [name for name in classes[0] if name != "interval"] if classes else ["index"]
    _write(folder / "evaluation.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    _write(folder / "classes.csv", _table(names, ([one[name] for name in names] for one in classes)))
    if "confusion" in report:
        _write(folder / "confusion.csv", _table(("true", "predicted", "pictures"), report["confusion"]))
    if rejected:
        _write(folder / "rejected.csv", _table(("path", "reason"), rejected))
    _write(folder / PAGE, write(report, rejected))


def write(report: Mapping[str, Any], rejected: Sequence[tuple[str, str]] = ()) -> str:
    """The whole page."""
    figures = [
        {"name": name, "about": ABOUT[key], "percent": report[key]["percent"], "interval": report[key]["interval"]}
        for key, name in NAMES.items()
        if key in report
    ]  # fmt: skip
    heat = render.palette("heat", 15)
    context = {
        "report": report, "figures": figures, "bins": report.get("calibration", ()), "rejected": rejected[:REJECTED_SHOWN],
        "rejected_total": len(rejected), "command": page.command_line(report.get("command", ())), "matrix": _matrix(report),
        "classes": sorted(report["classes"], key=lambda one: (one["percent"], one["index"])),
        "most": max((one["pictures"] for one in report.get("calibration", ())), default=0),
        "bar": ", ".join("#{:02x}{:02x}{:02x}".format(*c) for c in heat),
    }  # fmt: skip
    return page.environment().get_template("classification.html.j2").render(context)


def _matrix(report: Mapping[str, Any]) -> str:
    """The confusion matrix of the classes that have pictures, as a PNG: row = true class, column = predicted, light =
    large share of the row."""
    at = {one["index"]: i for i, one in enumerate(report["classes"])}
    if "confusion" not in report or len(at) < 2:
        return ""
    shares = np.zeros((len(at), len(at)))
    for true, predicted, count in report["confusion"]:
        if predicted in at:
            shares[at[true], at[predicted]] = count / report["classes"][at[true]]["pictures"]
    larger = -(-SMALLEST // len(at))
    painted = render.colourise(np.sqrt(shares)).repeat(larger, 0).repeat(larger, 1)
    return "data:image/png;base64," + base64.b64encode(render.png(painted)).decode("ascii")


def _table(names: Sequence[str], rows: Any) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    writer.writerows(rows)
    return stream.getvalue()


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
