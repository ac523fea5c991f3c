"""Figures of transfer curves: one chart, its table, and what the numbers say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from camlucida.features.transfer import Transfer
from camlucida.report import charts
from camlucida.report.probe_page import Patch, Section, Strip, Table

RECALL, ACCURACY = "mean class recall", "accuracy"


def rows(curves: Mapping[str, Transfer]) -> list[dict[str, Any]]:
    """A row a curve and count, in percent: mean and standard deviation (n − 1) over the splits."""
    found = []
    for name, one in curves.items():
        every = [[100 * v for v in values] for figure in (RECALL, ACCURACY) for values in (one.mean(figure), one.deviation(figure))]  # fmt: skip
        for i, count in enumerate(one.counts):
            recall, recall_std, accuracy, accuracy_std = (round(float(values[i]), 2) for values in every)
            found.append({
                "vectors": name, "pictures_a_class": count, "mean_class_recall": recall, "recall_std": recall_std,
                "accuracy": accuracy, "accuracy_std": accuracy_std,
            })  # fmt: skip
    return found


def finding(curves: Mapping[str, Transfer]) -> str:
    """What each curve begins and ends with, and how many training pictures of the others the best one replaces."""
    parts = []
    for name, one in curves.items():
        values = 100 * one.mean(RECALL)
        if len(values) > 1:
            parts.append(f"{name}: mean class recall {values[0]:.1f} % from {_pictures(one.counts[0])} a class, {values[-1]:.1f} % from {one.counts[-1]}.")  # fmt: skip
        else:
            parts.append(f"{name}: mean class recall {values[0]:.1f} % from {_pictures(one.counts[0])} a class.")  # fmt: skip
    best = max(curves, key=lambda name: curves[name].mean(RECALL)[-1])
    for name, one in curves.items():
        if name == best:
            continue
        enough = [count for count, v in zip(one.counts, curves[best].mean(RECALL), strict=True) if v >= one.mean(RECALL)[-1]]  # fmt: skip
        parts.append(
            f"With {_pictures(enough[0])} a class {best} is no worse than {name} with {one.counts[-1]}."
        )
    return " ".join(parts)


def _pictures(count: int) -> str:
    return f"{count} training picture{'s' if count != 1 else ''}"


def words(table: Sequence[Mapping[str, Any]]) -> str:
    """The table for a terminal."""
    wide = max(len(row["vectors"]) for row in table)
    return "\n".join(
        f"{row['vectors']:<{wide}}  {row['pictures_a_class']:>4} a class  mean class recall {row['mean_class_recall']:5.2f} ± {row['recall_std']:.2f} %  "
        f"accuracy {row['accuracy']:5.2f} ± {row['accuracy_std']:.2f} %"
        for row in table
    )  # fmt: skip


def sections(curves: Mapping[str, Transfer], table: Sequence[Mapping[str, Any]]) -> list[Section]:
    bands = {}
    for name, one in curves.items():
        mean, deviation = 100 * one.mean(RECALL), 100 * one.deviation(RECALL)
        bands[name] = mean - deviation, mean + deviation
    drawing = charts.lines(
        {name: (one.counts, 100 * one.mean(RECALL)) for name, one in curves.items()}, "Mean class recall over training pictures a class",
        "training pictures a class", "mean class recall, percent", bands=bands, y_range=(0.0, 100.0), marks=True, width=560, height=320,
    )  # fmt: skip
    cells = [[row["vectors"], row["pictures_a_class"], f"{row['mean_class_recall']:.2f} ± {row['recall_std']:.2f}", f"{row['accuracy']:.2f} ± {row['accuracy_std']:.2f}"] for row in table]  # fmt: skip
    text = "Shaded: one standard deviation to either side, over the splits. Every softmax of a split is judged on the same pictures, and more training pictures hold the fewer."
    return [
        Section("Curves", text, [Strip([Patch(drawing, "Mean class recall over training pictures a class")], size="wide")]),
        Section("Numbers", "Also in transfer.csv.", [Table(["vectors", "training pictures a class", "mean class recall, %", "accuracy, %"], cells)]),
    ]  # fmt: skip
