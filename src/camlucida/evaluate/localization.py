"""Ground-truth-known localization over the whole threshold curve (section 4), and what constant boxes score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camlucida import metrics
from camlucida.boxes import TightLoose
from camlucida.boxes.from_map import Rule
from camlucida.errors import InputError, UsageError
from camlucida.values import Box, ScoredBox, Size

IOU = 0.5  # "0.5 or more" (CAM paper, section 3.2)


@dataclass(frozen=True)
class Measured:
    """One network and plan on one set of N pictures. `hits (N, T)`: whether the true class's box at each threshold
    overlaps a given box by at least `IOU`; `rule_hits (N,)`: the same for the plan's own box; `ranks (N,)`: place of the
    true class among the probabilities, from 1; the M ≤ N pictures without boxes count for classification only."""

    thresholds: NDArray[np.float64]
    hits: NDArray[np.bool_]
    rule_hits: NDArray[np.bool_]
    boxed: NDArray[np.bool_]
    ranks: NDArray[np.int64]
    rejected: tuple[tuple[str, str], ...]
    baselines: dict[str, float]
    level: float | None

    @property
    def curve(self) -> NDArray[np.float64]:
        """Ground-truth-known accuracy (T,) in percent at each threshold."""
        return (
            100 * self.hits[self.boxed].mean(0) if self.boxed.any() else np.full(len(self.thresholds), np.nan)
        )

    def report(self) -> dict[str, Any]:
        """All figures, percent, with 95 % intervals; ready for JSON."""
        count, boxed = len(self.ranks), int(self.boxed.sum())
        found: dict[str, Any] = {"pictures": count, "with_boxes": boxed, "rejected": len(self.rejected)}
        for name, right, total in (
            ("top1", self.ranks <= 1, count),
            ("top5", self.ranks <= 5, count),
            ("gt_known", self.rule_hits & self.boxed, boxed),
            ("top1_localization", self.rule_hits & self.boxed & (self.ranks <= 1), boxed),
        ):
            if total:
                low, high = metrics.wilson_interval(int(right.sum()), total)
                found[name] = {
                    "percent": round(100 * float(right.sum()) / total, 2),
                    "interval": [round(100 * low, 2), round(100 * high, 2)],
                }
        if boxed:
            best = int(self.curve.argmax())
            found["threshold"] = self.level
            found["best_on_this_set"] = {
                "threshold": float(self.thresholds[best]),
                "gt_known": round(float(self.curve[best]), 2),
            }
            found["baselines"] = self.baselines
            found["curve"] = {
                "threshold": self.thresholds.tolist(),
                "gt_known": [round(float(v), 2) for v in self.curve],
            }
        return found


class Tally:
    """Collects pictures one by one; `measured` gives the figures."""

    def __init__(self, level: float | None = None) -> None:
        self.level = level
        self.rejected: list[tuple[str, str]] = []
        self._thresholds: NDArray[np.float64] = np.zeros(0)
        self._rows: list[tuple[NDArray[np.bool_], bool, bool, int]] = []
        self._truths: list[tuple[tuple[Box, ...], Size]] = []

    def add(
        self,
        label: int,
        probabilities: NDArray,
        size: Size,
        truth: tuple[Box, ...],
        own: Sequence[ScoredBox],
        sweep: NDArray,
        thresholds: NDArray,
    ) -> None:
        """One picture of class `label`: `probabilities (C,)`, its size, given boxes, the rule's boxes for the true class
        (the first counts) and that class's box `sweep (T, 4)` at each threshold."""
        self._thresholds = thresholds
        hits, hit = np.zeros(len(thresholds), bool), False
        if truth:
            corners = np.array([box.corners for box in truth])
            hits = metrics.box_iou(sweep[:, None], corners[None]).max(1) >= IOU
            hit = bool(metrics.box_iou(np.array(own[0].box.corners)[None], corners).max() >= IOU)
        self._rows.append((hits, hit, bool(truth), rank_of(probabilities, label)))
        self._truths.append((truth, size))

    def measured(self) -> Measured:
        """The figures. Raises UsageError if no picture was added."""
        if not self._rows:
            why = f"; the first: {self.rejected[0][1]}" if self.rejected else ""
            raise UsageError(
                "evaluate", got=f"no picture that could be used, {len(self.rejected)} rejected{why}"
            )
        hits, rule_hits, boxed, ranks = zip(*self._rows, strict=True)
        return Measured(
            self._thresholds, np.array(hits), np.array(rule_hits), np.array(boxed), np.array(ranks), tuple(self.rejected),
            constant_boxes([t for t in self._truths if t[0]]), self.level,
        )  # fmt: skip


def guessed(rule: Rule, boxes: Sequence[ScoredBox]) -> ScoredBox:
    """The one box that counts: the first; of tight and loose the loose one (section 3.2)."""
    return boxes[-1] if isinstance(rule, TightLoose) else boxes[0]


def finite(probabilities: NDArray) -> None:
    """Raises InputError for a network's answer that ranks nothing."""
    if not np.isfinite(probabilities).all():
        raise InputError("the network's answer holds NaN or infinite values")


def rank_of(probabilities: NDArray, label: int) -> int:
    """The place of a class among the probabilities `(C,)`, from 1; of equal ones the lower index comes first; one that is
    no number comes after all."""
    mine = probabilities[label]
    if np.isnan(mine):
        return len(probabilities) + 1
    return 1 + int((probabilities > mine).sum() + (probabilities[:label] == mine).sum())


def constant_boxes(truths: Sequence[tuple[tuple[Box, ...], Size]]) -> dict[str, float]:
    """What one answer for all pictures scores, percent at IoU ≥ 0.5: the whole picture, and the `best_centred` box."""
    if not truths:
        return {}
    corners = _relative(truths)
    width, height = best_centred(truths)
    return {
        "whole_picture": round(_constant(corners, 1, 1, IOU), 2),
        "best_centred_box": round(_constant(corners, width, height, IOU), 2),
        "best_centred_box_width": width,
        "best_centred_box_height": height,
    }


def best_centred(truths: Sequence[tuple[tuple[Box, ...], Size]], iou: float = IOU) -> tuple[float, float]:
    """Width and height, in shares of the picture's (steps of 0.02), of the centred box that overlaps a box of most of these
    very pictures by at least `iou`."""
    corners = _relative(truths)
    sides = np.arange(0.4, 1.0001, 0.02)
    _, width, height = max(
        ((_constant(corners, w, h, iou), w, h) for w in sides for h in sides), key=lambda found: found[0]
    )
    return round(float(width), 2), round(float(height), 2)


def _constant(corners: NDArray[np.float64], width: float, height: float, iou: float) -> float:
    box = np.array([0.5 - width / 2, 0.5 - height / 2, 0.5 + width / 2, 0.5 + height / 2])
    return 100 * float((metrics.box_iou(box, corners).max(1) >= iou).mean())


def _relative(truths: Sequence[tuple[tuple[Box, ...], Size]]) -> NDArray[np.float64]:
    """Boxes in shares of their picture, `(N, B, 4)`; where a picture has fewer than B, its last one again."""
    most = max(len(boxes) for boxes, _ in truths)
    corners = np.zeros((len(truths), most, 4))
    for i, (boxes, size) in enumerate(truths):
        for j in range(most):
            sides = [size.width, size.height, size.width, size.height]
            corners[i, j] = np.array(boxes[min(j, len(boxes) - 1)].corners) / sides
    return corners
