"""All pictures together: every localization figure with its interval, and beside the network what it must beat: the whole
picture, the best centred box, a Gaussian in the middle, the same network with a random head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from camlucida import metrics
from camlucida.boxes import FractionOfMax
from camlucida.evaluate import ilsvrc, wsol
from camlucida.evaluate.judge import (
    CURVE,
    IOUS,
    LEVELS,
    SIDE,
    CentreGaussian,
    Guesses,
    MapScore,
    Objects,
    Protocol,
    nearest,
    overlap,
)
from camlucida.evaluate.localization import best_centred
from camlucida.values import Box, Size

NETWORK, RANDOM, GAUSSIAN = "network", "randomised head", "centre Gaussian"
WHOLE, CENTRED = "whole picture", "best centred box"
FIGURES = {
    "gt_known": "GT-known",
    "top1_localization": "Top-1 Loc",
    "top5_localization": "Top-5 Loc",
    "error_at_1": "ILSVRC error@1",
    "corloc": "CorLoc",
    "pointing_game": "pointing game",
    "energy": "energy inside",
    "pxap": "PxAP",
}
"""What each figure is called (GT-known: of the true class's own box); error@k for other k follows error@1."""
ORACLES = {"max_box_accuracy": "MaxBoxAcc", "max_box_accuracy_v2": "MaxBoxAccV2"}
"""Figures whose threshold is the best one on the very pictures, by definition."""


@dataclass
class Contender:
    """Whatever gives maps of the same pictures: the network, or what stands beside it."""

    name: str
    protocol: Protocol
    scores: list[MapScore | None] = field(default_factory=list)
    guesses: list[Guesses | None] = field(default_factory=list)
    pixels: wsol.PixelTally = field(default_factory=lambda: wsol.PixelTally(LEVELS))

    def add(self, score: MapScore | None, made: Guesses | None, mask: NDArray[np.uint8] | None) -> None:
        if score is not None and score.squashed is not None and mask is not None:
            self.pixels.add(score.squashed, nearest(mask, (SIDE, SIDE)), normalise=True)
            score = replace(score, squashed=None)
        self.scores.append(score)
        self.guesses.append(made)


@dataclass(frozen=True, slots=True)
class Case:
    """One picture and class that was judged; `counted`: it has boxes and is on no blacklist; `judged`: boxes or a mask."""

    path: str
    label: int
    objects: Objects
    blacklisted: bool = False
    masked: bool = False

    @property
    def counted(self) -> bool:
        return bool(self.objects.boxes) and not self.blacklisted

    @property
    def judged(self) -> bool:
        return self.counted or (self.masked and not self.blacklisted)


class Tally:
    """Collects pictures one by one (some kilobytes of each are kept); `report` gives all figures."""

    def __init__(self, protocol: Protocol, seed: int = 0) -> None:
        self.protocol, self.seed = protocol, seed
        self.cases: list[Case] = []
        self.rejected: list[tuple[str, str]] = []
        self.notes: tuple[str, ...] = ()
        self.method = ""  # that made the maps, where it was left open
        self.contenders: dict[str, Contender] = {}
        self.gaussian = CentreGaussian(protocol)

    def add(self, case: Case, found: Mapping[str, tuple[MapScore | None, Guesses | None]]) -> None:
        """One picture: for each contender the score of its map (None without objects) and its guesses."""
        for name, (score, made) in found.items():
            self.contenders.setdefault(name, Contender(name, self.protocol)).add(
                score, made, case.objects.mask
            )
        mask = case.objects.mask
        slim = replace(case.objects, mask=None) if mask is not None else case.objects
        self.cases.append(replace(case, objects=slim, masked=mask is not None))

    @property
    def counted(self) -> NDArray[np.bool_]:
        return np.array([case.counted for case in self.cases], bool)

    def figures(self, name: str) -> dict[str, Any]:
        """Every figure of one contender, percent with 95 % intervals (bootstrap over pictures)."""
        one, counted = self.contenders[name], self.counted
        scores = [s for s, c in zip(one.scores, counted, strict=True) if c and s is not None]
        made = [g for g, c in zip(one.guesses, counted, strict=True) if c]
        found: dict[str, Any] = {}
        if scores:
            hits = np.array([s.overlap for s in scores]) >= self.protocol.iou
            found |= self._of_boxes(hits, made, [Box(*s.box) for s in scores])
        pairs = zip(one.scores, self.cases, strict=True)
        judged = [(s, case.label) for s, case in pairs if case.judged and s is not None]
        if judged:
            found |= self._of_points(*zip(*judged, strict=True))
        if one.pixels.pictures:
            precise = one.pixels.result()
            found["pxap"] = _figure(precise.value, precise.interval, one.pixels.pictures)
        return found | (self._of_maps(scores) if scores else {})

    def constant(self, width: float, height: float, name: str = NETWORK) -> dict[str, Any]:
        """The figures of one centred box, in shares of the picture, with the network's guesses of classes."""
        cases = [case for case in self.cases if case.counted]
        boxes = [_centred(case.objects.size, width, height) for case in cases]
        overlaps = [overlap(b, case.objects.corners) for b, case in zip(boxes, cases, strict=True)]
        made = [g for g, c in zip(self.contenders[name].guesses, self.counted, strict=True) if c]
        moved = [
            g and replace(g, made=tuple((c, b) for c, _ in g.made)) for g, b in zip(made, boxes, strict=True)
        ]
        return self._of_boxes(np.array(overlaps) >= self.protocol.iou, moved, boxes) if cases else {}

    def _of_boxes(
        self, hits: NDArray[np.bool_], made: Sequence[Guesses | None], boxes: Sequence[Box]
    ) -> dict[str, Any]:
        cases = [case for case in self.cases if case.counted]
        found = {"gt_known": _share(hits, self.seed)}
        ranked = [g for g in made if g is not None]
        if len(ranked) == len(hits) and not self.protocol.several:
            which = ilsvrc.localized(hits, [g.rank for g in ranked], self.seed)
            found["top1_localization"] = _figure(which.top1, which.top1_interval, len(hits))
            found["top5_localization"] = _figure(which.top5, which.top5_interval, len(hits))
            error = ilsvrc.localization_error(
                [g.made for g in ranked],
                [[(case.label, box) for box in case.objects.boxes] for case in cases],
                iou=self.protocol.iou,
            )
            for k in sorted({1, self.protocol.top}):
                found[f"error_at_{k}"] = _figure(error.error(k), error.interval(k, self.seed), len(hits))
        found["corloc"] = _by_class(hits, [case.label for case in cases], self.seed)
        return found

    def _of_points(self, scores: Sequence[MapScore], labels: Sequence[int]) -> dict[str, Any]:
        inside = [100 * s.energy for s in scores]
        drawn = metrics.bootstrap_interval(inside, seed=self.seed)
        return {
            "pointing_game": _by_class([s.points for s in scores], labels, self.seed),
            "energy": _figure(float(np.mean(inside)), drawn, len(scores)),
        }

    def _of_maps(self, scores: Sequence[MapScore]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        largest, every = (self.box_accuracy(scores, which) for which in ("largest", "every"))
        iou = self.protocol.iou
        v2 = replace(
            every,
            correct={one: every.correct[one] for one in IOUS},
            packed_hits={one: every.packed_hits[one] for one in IOUS},
        )
        found["max_box_accuracy"] = _figure(
            largest.max_box_accuracy[iou], largest.interval(iou, self.seed), len(scores)
        ) | {"threshold": largest.best_threshold[iou]}
        found["max_box_accuracy_v2"] = _figure(v2.mean, v2.interval(None, self.seed), len(scores)) | {
            "thresholds": {f"{one:g}": v2.best_threshold[one] for one in IOUS}
        }
        return found

    def box_accuracy(self, scores: Sequence[MapScore], which: str) -> wsol.BoxAccuracy:
        """What the WSOL benchmark's protocol says of these maps: the `largest` component, or `every` one."""
        packed = np.array([getattr(s, which) for s in scores])
        bits = np.unpackbits(packed, axis=2, count=len(LEVELS)).sum(0, dtype=np.int64)
        yes = np.ones(len(scores), bool)
        ious = self.protocol.ious
        return wsol.BoxAccuracy(
            LEVELS,
            {iou: bits[i] for i, iou in enumerate(ious)},
            yes,
            np.array([s.flat for s in scores]),
            {iou: packed[:, i] for i, iou in enumerate(ious)},
        )

    def curve(self, name: str) -> dict[str, list[float]]:
        """Ground-truth-known accuracy in percent at each threshold of `CURVE`, with its 95 % interval."""
        scores = [
            s for s, c in zip(self.contenders[name].scores, self.counted, strict=True) if c and s is not None
        ]
        if not scores:
            return {}
        hits = np.unpackbits(np.array([s.curve for s in scores]), axis=1, count=len(CURVE))
        shares, means = hits.mean(0), metrics.bootstrap_means(hits, self.seed)
        drawn = np.quantile(means, [0.025, 0.975], axis=0).T
        low, high = np.transpose(
            [metrics.with_width(s, (a, b), len(hits)) for s, (a, b) in zip(shares, drawn, strict=True)]
        )
        return {
            "percent": _rounded(100 * shares), "low": _rounded(100 * low), "high": _rounded(100 * high)
        }  # fmt: skip

    def box_curves(self, name: str) -> dict[str, Any]:
        """The accuracies behind MaxBoxAcc and MaxBoxAccV2 at each of `LEVELS`, percent: {name: {IoU: values}}."""
        scores = [
            s for s, c in zip(self.contenders[name].scores, self.counted, strict=True) if c and s is not None
        ]
        return {
            key: {f"{iou:g}": _rounded(v) for iou, v in self.box_accuracy(scores, which).curve.items()}
            for key, which in (("max_box_accuracy", "largest"), ("max_box_accuracy_v2", "every"))
        } if scores else {}  # fmt: skip

    def centred(self) -> tuple[float, float]:
        """Width and height, in shares of the picture, of the centred box that does best on these pictures."""
        truths = [(c.objects.boxes, c.objects.size) for c in self.cases if c.counted]
        return best_centred(truths, self.protocol.iou)


def _centred(size: Size, width: float, height: float) -> Box:
    x, y = size.width * width / 2, size.height * height / 2
    return Box(size.width / 2 - x, size.height / 2 - y, size.width / 2 + x, size.height / 2 + y)


def _share(hits: NDArray[np.bool_], seed: int) -> dict[str, Any]:
    low, high = metrics.bootstrap_interval(hits, seed=seed)
    return _figure(100 * float(np.mean(hits)), (100 * low, 100 * high), len(hits))


def _by_class(hits: ArrayLike, labels: Sequence[int], seed: int, repeats: int = 1000) -> dict[str, Any]:
    """Mean over classes of their shares of hits. Whole pictures are drawn, whatever their class, so that one picture a class
    does not pass for certainty."""
    right, of = np.asarray(hits, np.float64), np.unique(np.asarray(labels), return_inverse=True)[1]
    draw = np.random.default_rng(seed)

    def mean(rows: NDArray[np.int64]) -> float:
        count = np.bincount(of[rows])
        return float(100 * (np.bincount(of[rows], right[rows])[count > 0] / count[count > 0]).mean())

    every = np.arange(len(of))
    drawn = np.array([mean(draw.integers(0, len(of), len(of))) for _ in range(repeats)])
    return _figure(mean(every), metrics.middle(drawn), len(of))


def _figure(percent: float, interval: tuple[float, float], count: int) -> dict[str, Any]:
    """`count`: the pictures behind it."""
    low, high = metrics.with_width(percent / 100, (interval[0] / 100, interval[1] / 100), count)

    def kept(value: float) -> float | None:
        return round(float(value), 2) if np.isfinite(value) else None

    return {"percent": kept(percent), "interval": [kept(100 * low), kept(100 * high)]}


def _rounded(values: NDArray[np.float64]) -> list[float]:
    return [round(float(v), 2) for v in values]


def report(tally: Tally, origin: str, oracle: bool = False) -> dict[str, Any]:
    """Everything for JSON. `origin`: where the rule's threshold comes from, in words; `oracle`: whether it was chosen on these
    very pictures."""
    chosen = tally.protocol.rule.level
    found: dict[str, Any] = {
        "iou": tally.protocol.iou, "convention": tally.protocol.convention,
        "cases": len(tally.cases), "counted": int(tally.counted.sum()), "masked": sum(case.masked for case in tally.cases),
        "blacklisted": sum(case.blacklisted for case in tally.cases), "rejected": len(tally.rejected),
        "notes": list(tally.notes), "threshold": {"value": chosen, "origin": origin, "oracle": oracle},
    }  # fmt: skip
    if not any(case.judged for case in tally.cases):
        return found
    every = {name: tally.figures(name) for name in tally.contenders}
    boxed = bool(tally.counted.any())
    if boxed:
        width, height = tally.centred()
        every[WHOLE] = tally.constant(1, 1)
        every[CENTRED] = tally.constant(width, height)
    own = {name: {k: v for k, v in figures.items() if k not in ORACLES} for name, figures in every.items()}
    best = {name: {k: v for k, v in figures.items() if k in ORACLES} for name, figures in every.items()}
    found["figures"] = own.pop(NETWORK)
    found["baselines"] = own
    if not boxed:  # masks alone
        return found
    for name in (WHOLE, CENTRED):  # constant boxes have no threshold
        best[name] = {"max_box_accuracy": own[name]["gt_known"]}
    found["baselines"][CENTRED] |= {"width": width, "height": height, "chosen": "on these very pictures"}
    found["oracle_figures"] = {
        "note": "the best threshold on these very pictures, by definition: an upper bound",
        NETWORK: best.pop(NETWORK),
        "baselines": best,
    }
    curves = {name: tally.curve(name) for name in tally.contenders}
    peak = int(np.argmax(curves[NETWORK]["percent"]))
    found["curve"] = {
        "of": "ground-truth-known accuracy of the largest component above a share of the map's maximum",
        "threshold": CURVE.tolist(), **curves,
        WHOLE: own[WHOLE]["gt_known"]["percent"], CENTRED: own[CENTRED]["gt_known"]["percent"],
        # A rule of another kind has no place on this axis.
        "chosen": chosen if isinstance(tally.protocol.rule, FractionOfMax) else None,
        "origin": origin, "oracle": oracle,
        "best_on_these_pictures": {"threshold": float(CURVE[peak]), "percent": curves[NETWORK]["percent"][peak]},
    }  # fmt: skip
    return found


def title(figure: str) -> str:
    """A figure's name in words."""
    names = FIGURES | ORACLES
    return names.get(figure) or figure.replace("error_at_", "ILSVRC error@")
