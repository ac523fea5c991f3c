"""Figures of features layer by layer: one chart, its table, and what the numbers say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from camlucida.features.layers import PIXELS, LayerScore
from camlucida.report import charts
from camlucida.report.probe_page import Patch, Section, Strip, Table

RECALL, ACCURACY = "mean class recall", "accuracy"


def rows(scores: Sequence[LayerScore]) -> list[dict[str, Any]]:
    """A row a layer, in percent: mean and standard deviation (n − 1) over the splits."""
    found = []
    for one in scores:
        recall, accuracy = ([round(100 * v, 2) for v in one.figure(name)] for name in (RECALL, ACCURACY))
        found.append({
            "network": one.network, "layer": one.layer, "numbers": one.width, "mean_class_recall": recall[0], "recall_std": recall[1],
            "accuracy": accuracy[0], "accuracy_std": accuracy[1], "c": " ".join(f"{j.svm.c:g}" for j in one.judged),
        })  # fmt: skip
    return found


def split_rows(scores: Sequence[LayerScore]) -> list[dict[str, Any]]:
    """A row a layer and split, figures in 0 … 1."""
    return [
        {
            "network": one.network, "layer": one.layer, "seed": j.split.seed, "train": len(j.split.train), "test": len(j.split.test), "c": j.svm.c,
            "mean_class_recall": round(j.figures[RECALL], 6), "accuracy": round(j.figures[ACCURACY], 6),
        }
        for one in scores for j in one.judged
    ]  # fmt: skip


def finding(scores: Sequence[LayerScore]) -> str:
    """Whether higher layers are better up to a point, as the ZF paper found, and what training is worth."""
    trained = [one for one in scores if one.network == scores[0].network]
    values = [100 * one.figure(RECALL)[0] for one in trained]
    best = int(np.argmax(values))
    name, top = trained[best].layer, values[best]
    parts = [f"A linear SVM does best on {name}: mean class recall {top:.1f} %."]
    falls = [
        f"{trained[i + 1].layer} ({values[i + 1]:.1f} % after {values[i]:.1f} %)"
        for i in range(best)
        if values[i + 1] <= values[i]
    ]
    if best == 0 and len(trained) > 1:
        parts.append(f"No higher layer is better: the last, {trained[-1].layer}, gives {values[-1]:.1f} %.")
    elif best and falls:
        parts.append(f"From {trained[0].layer} ({values[0]:.1f} %) on it does not rise with every layer: not at {', '.join(falls)}.")  # fmt: skip
    elif best:
        parts.append(f"It rises with every layer from {trained[0].layer} ({values[0]:.1f} %) to there{_after(trained, values, best)}.")  # fmt: skip
    others: dict[str, float] = {}
    for one in scores:
        if one.network != trained[0].network:
            others[one.network] = max(others.get(one.network, 0.0), 100 * one.figure(RECALL)[0])
    if others:
        words = [f"the best layer with {name} {value:.1f} %" if name != PIXELS else f"raw pixels {value:.1f} %" for name, value in others.items()]  # fmt: skip
        parts.append(f"Beside it: {', '.join(words)}.")
    return " ".join(parts)


def _after(trained: Sequence[LayerScore], values: Sequence[float], best: int) -> str:
    if best == len(trained) - 1:
        return ", the last"
    return f", and is {values[best] - values[-1]:.1f} points lower on the last, {trained[-1].layer}"


def sections(scores: Sequence[LayerScore], table: Sequence[dict[str, Any]]) -> list[Section]:
    names = list(dict.fromkeys(one.network for one in scores))
    count = sum(one.network == names[0] for one in scores)
    x = list(range(1, count + 1))
    series: dict[str, tuple[list[int], list[float]]] = {}
    bands: dict[str, tuple[list[float], list[float]]] = {}
    for name in names:
        figures = [one.figure(RECALL) for one in scores if one.network == name]
        if name == PIXELS:
            name, figures = "raw pixels", figures * count
        series[name] = x, [100 * mean for mean, _ in figures]
        bands[name] = [100 * (m - s) for m, s in figures], [100 * (m + s) for m, s in figures]
    drawing = charts.lines(
        series, "Mean class recall layer by layer", "layer, first to last", "mean class recall, percent",
        bands=bands, y_range=(0.0, 100.0), marks=True, width=560, height=320,
    )  # fmt: skip
    order = ", ".join(f"{i} {one.layer}" for i, one in enumerate(scores[:count], 1))
    text = f"Layers: {order}. Shaded: one standard deviation to either side, over the splits; every layer is judged on the same splits."
    cells = [[row["network"], row["layer"], row["numbers"], f"{row['mean_class_recall']:.2f} ± {row['recall_std']:.2f}", f"{row['accuracy']:.2f} ± {row['accuracy_std']:.2f}", row["c"]] for row in table]  # fmt: skip
    head = ["network", "layer", "numbers", "mean class recall, %", "accuracy, %", "C of each split"]
    return [
        Section("Recall over layers", text, [Strip([Patch(drawing, "Mean class recall layer by layer")], size="wide")]),
        Section("Numbers", "Also in layers.csv; each split's in splits.csv.", [Table(head, cells)]),
    ]  # fmt: skip
