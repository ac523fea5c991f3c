"""What predictions score (VGG paper, section 4): top-1, top-5, per class, confusion, calibration, average precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camlucida import metrics
from camlucida.errors import UsageError
from camlucida.evaluate.predictions import Predictions
from camlucida.values import Label

TOP = 5
BINS = 15  # of the calibration
CONFUSED = 20  # pairs of classes that are named
REPEATS = 1000  # of the bootstrap; of average precision, which costs more:
REPEATS_PRECISION = 100
NAMES = {
    "top1": "top-1", "top5": "top-5", "mean_per_class": "mean over classes", "calibration_error": f"expected calibration error, {BINS} bins",
    "mean_average_precision": "mean average precision, all points", "mean_average_precision_11": "mean average precision, 11 points",
}  # fmt: skip
"""What the figures with an interval are called."""


def figures(predictions: Predictions) -> dict[str, Any]:
    """All figures of the labelled pictures, percent, with 95 % intervals: Wilson's for shares, of resampled pictures for
    the rest; ready for JSON. Raises UsageError where no picture has a label."""
    known = [i for i, row in enumerate(predictions.labels) if row]
    if not known:
        why = f"; the first: {predictions.rejected[0][1]}" if predictions.rejected else ""
        raise UsageError(
            "evaluate", got=f"no picture with a label, {len(predictions.rejected)} rejected{why}"
        )
    found: dict[str, Any] = {
        "network": predictions.network, "protocol": predictions.protocol, "pictures": len(known), "classes_known": len(predictions.classes),
        "rejected": len(predictions.rejected),
    }  # fmt: skip
    scores = predictions.probabilities[known]
    if predictions.multi_label:
        return found | _multi_label(predictions, scores, known)
    return found | _one_label(predictions, scores, np.array([predictions.labels[i][0] for i in known]))


def _one_label(predictions: Predictions, scores: NDArray[np.float32], truth: NDArray[np.int64]) -> dict[str, Any]:  # fmt: skip
    classes = len(predictions.classes)
    ranks, predicted = metrics.ranks(scores, truth), scores.argmax(1)
    right = predicted == truth
    confusion = metrics.confusion_matrix(predicted, truth, classes)
    found: dict[str, Any] = {"top1": _share(int((ranks <= 1).sum()), len(truth))}
    if classes > TOP:
        found["top5"] = _share(int((ranks <= TOP).sum()), len(truth))

    def per_class(rows: NDArray[np.float64]) -> float:
        return float(np.nanmean(metrics.per_class_accuracy(rows[:, 0], rows[:, 1].astype(np.int64), classes)))

    found["mean_per_class"] = _resampled(np.stack([predicted, truth], 1), per_class)
    if predictions.activation == "softmax":
        confidence = scores.max(1).astype(np.float64)

        def calibration(rows: NDArray[np.float64]) -> float:
            return metrics.expected_calibration_error(rows[:, 0], rows[:, 1], BINS)

        found["calibration_error"] = _resampled(np.stack([confidence, right], 1), calibration)
        low, high = metrics.bootstrap_interval(briers := metrics.brier_scores(scores, truth))
        low, high = (2 * v for v in metrics.with_width(briers.mean() / 2, (low / 2, high / 2), len(briers)))
        found["brier"] = {"score": round(float(briers.mean()), 4), "interval": [round(low, 4), round(high, 4)]}  # fmt: skip
        found["mean_confidence"] = _percent(confidence.mean())
        bins = metrics.calibration_bins(confidence, right, BINS)
        found["calibration"] = [
            {"from": round(b / BINS, 4), "to": round((b + 1) / BINS, 4), "pictures": int(row[0]), "confidence": _percent(row[1]), "right": _percent(row[2])}
            for b, row in enumerate(bins)
        ]  # fmt: skip
    known = np.flatnonzero(confusion.sum(1)).tolist()
    found["classes"] = [_class(predictions.classes[i], i, confusion) for i in known]
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSED]
    found["confused"] = [
        {"true": predictions.classes[t].name, "predicted": predictions.classes[p].name, "pictures": int(wrong[t, p]), "percent": _percent(wrong[t, p] / confusion[t].sum())}
        for t, p in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[t, p]
    ]  # fmt: skip
    found["confusion"] = [[int(t), int(p), int(confusion[t, p])] for t, p in np.argwhere(confusion)]
    return found


def _class(label: Label, index: int, confusion: NDArray[np.int64]) -> dict[str, Any]:
    count, right = int(confusion[index].sum()), int(confusion[index, index])
    said = int(confusion[:, index].sum())
    return {
        "index": index, "id": label.id, "name": label.name, "pictures": count, "right": right, **_share(right, count),
        "precision": _percent(right / said) if said else None,
    }  # fmt: skip


def _multi_label(predictions: Predictions, scores: NDArray[np.float32], known: Sequence[int]) -> dict[str, Any]:  # fmt: skip
    """Average precision per class and its mean; a class that is only difficult in a picture is not scored there."""
    count, classes = scores.shape
    truth, scored = np.zeros((count, classes), bool), np.ones((count, classes), bool)
    for row, i in enumerate(known):
        truth[row, list(predictions.labels[i])] = True
        scored[row, list(predictions.difficult[i])] = False
    present = np.flatnonzero((truth & scored).any(0))

    def precisions(rows: NDArray[np.int64], points: int | None) -> NDArray[np.float64]:
        return np.array([metrics.average_precision(scores[rows[s := scored[rows, c]], c], truth[rows[s], c], points) for c in present])  # fmt: skip

    every = np.arange(count)
    found: dict[str, Any] = {}
    for name, points in (("mean_average_precision", None), ("mean_average_precision_11", 11)):

        def mean(rows: NDArray[np.float64], points: int | None = points) -> float:
            each = precisions(rows.astype(np.int64), points)  # NaN: a class that no picture drawn shows
            return float(np.nanmean(each)) if np.isfinite(each).any() else float("nan")

        found[name] = _resampled(every, mean, REPEATS_PRECISION)
    both = (precisions(every, None), precisions(every, 11))
    found["classes"] = [
        {"index": int(c), "id": predictions.classes[c].id, "name": predictions.classes[c].name, "pictures": int((truth & scored)[:, c].sum()), "percent": _percent(a), "percent_11": _percent(b)}
        for c, a, b in zip(present, *both, strict=True)
    ]  # fmt: skip
    return found


def _share(right: int, total: int) -> dict[str, Any]:
    low, high = metrics.wilson_interval(right, total)
    return {"percent": _percent(right / total), "interval": [_percent(low), _percent(high)]}


def _resampled(rows: NDArray, statistic: Callable[[NDArray[np.float64]], float], repeats: int = REPEATS) -> dict[str, Any]:  # fmt: skip
    share = statistic(np.asarray(rows, np.float64))
    drawn = metrics.bootstrap_interval(rows, statistic, repeats=repeats)
    low, high = metrics.with_width(share, drawn, len(rows))
    return {"percent": _percent(share), "interval": [_percent(low), _percent(high)]}  # fmt: skip


def _percent(share: float) -> float | None:
    return round(100 * float(share), 2) if np.isfinite(share) else None
