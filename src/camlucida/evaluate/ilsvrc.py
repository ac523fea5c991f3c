"""Localization error as ILSVRC counts it: guesses of a class and a box (section 4)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from camlucida import metrics
from camlucida.errors import InputError, UsageError
from camlucida.values import Box, ScoredBox

Guess: TypeAlias = "tuple[int, Box | ScoredBox | ArrayLike]"
"""Class index and box; bare numbers are x0, y0, x1, y1 in the convention that is asked for, a `Box` is half-open."""
Convention = Literal["inclusive", "half-open"]


@dataclass(frozen=True)
class LocalizationError:
    """Which guesses are right, on N pictures of which some may be left out."""

    right: NDArray[np.bool_]
    """Whether guess j of picture i is right, `(N, G)`; guesses that were not made are wrong."""
    counted: NDArray[np.bool_]
    """Whether picture i counts, `(N,)`: it has a box and is not on the blacklist."""

    def hits(self, k: int) -> NDArray[np.bool_]:
        """Whether one of the first k guesses is right, for each picture that counts."""
        return np.asarray(self.right[self.counted, :k].any(axis=1))

    def error(self, k: int) -> float:
        """Localization error@k in percent: share of pictures without a right guess among the first k; NaN for none."""
        hits = self.hits(k)
        return 100 * float(1 - hits.mean()) if len(hits) else float("nan")

    def interval(
        self, k: int, seed: int = 0, repeats: int = 1000, level: float = 0.95
    ) -> tuple[float, float]:
        """Bootstrap interval, over pictures, of `error(k)`."""
        low, high = metrics.bootstrap_interval(~self.hits(k), "mean", seed, repeats, level)
        return 100 * low, 100 * high


def localization_error(
    guesses: Iterable[Sequence[Guess]],
    truths: Iterable[Sequence[Guess]],
    *,
    iou: float = 0.5,
    strict: bool = False,
    convention: Convention = "inclusive",
    blacklist: Collection[int | str] = (),
    names: Iterable[str] | None = None,
) -> LocalizationError:
    """ILSVRC's localization error: a guess is right if its class is a true one and its box overlaps some true box of that
    class by at least `iou` (`strict`: by more); a picture is right if one of its first k guesses is.

    `guesses`: for each picture (class, box), best first, any number (five for error@5: `boxes.top5_guesses`, of which
    the tight/loose mode gives some classes two). `truths`: for each picture (class, box), one per object; a picture
    without any does not count. `convention`: corners are pixels that belong to the box (ILSVRC's files), or half-open.
    `blacklist`: pictures left out, by position from 0, or by entries matched with `names` (`on_blacklist`).
    """
    if convention not in metrics.CONVENTIONS:
        raise UsageError(
            "localization_error(convention=…)", got=repr(convention), allowed=" | ".join(metrics.CONVENTIONS)
        )
    made, given = list(guesses), list(truths)
    called: Sequence[str | None] = [None] * len(made) if names is None else list(names)
    if not len(made) == len(given) == len(called):
        raise UsageError(
            "localization_error",
            got=f"guesses for {len(made)} pictures, truths for {len(given)}, {len(called)} names",
            allowed="equally many",
        )
    entries = frozenset(map(str, blacklist))
    right = np.zeros((len(made), max(map(len, made), default=0)), bool)
    counted = np.zeros(len(made), bool)
    for i, (tried, true, name) in enumerate(zip(made, given, called, strict=True)):
        counted[i] = bool(true) and not (str(i) in entries if name is None else on_blacklist(name, entries))
        if tried and true:
            right[i, : len(tried)] = _right(tried, true, iou, strict, convention)
    return LocalizationError(right, counted)


def _right(
    tried: Sequence[Guess], true: Sequence[Guess], iou: float, strict: bool, convention: str
) -> NDArray[np.bool_]:
    """Whether each guess is right, `(G,)`."""
    same = np.array([c for c, _ in tried])[:, None] == np.array([c for c, _ in true])[None]
    overlap = metrics.box_iou(
        _corners((b for _, b in tried), convention)[:, None],
        _corners((b for _, b in true), convention)[None],
        convention,
    )
    return (same & (overlap > iou if strict else overlap >= iou)).any(axis=1)


def _corners(boxes: Iterable[Box | ScoredBox | ArrayLike], convention: str) -> NDArray[np.float64]:
    """x0, y0, x1, y1 of boxes, `(B, 4)`, in the convention."""
    last = (0, 0, 1, 1) if convention == "inclusive" else (0, 0, 0, 0)
    rows = []
    for box in boxes:
        if isinstance(box, ScoredBox):
            box = box.box
        rows.append(np.subtract(box.corners, last) if isinstance(box, Box) else np.asarray(box, np.float64))
    return np.array(rows).reshape(-1, 4)


@dataclass(frozen=True)
class Localized:
    """Shares of pictures in percent, with 95 % bootstrap intervals over pictures; NaN without pictures."""

    gt_known: float
    """The true class's box is right (ground-truth-known)."""
    top1: float
    """The class ranked first is true, and its box is right (Top-1 Loc)."""
    top5: float
    """The true class is among the first five, and its box is right (Top-5 Loc)."""
    gt_known_interval: tuple[float, float]
    top1_interval: tuple[float, float]
    top5_interval: tuple[float, float]


def localized(box_hits: ArrayLike, ranks: ArrayLike, seed: int = 0, repeats: int = 1000) -> Localized:
    """Ground-truth-known accuracy, Top-1 and Top-5 Loc of N pictures, from whether the box of the true class is right
    `(N,)` (say, `BoxAccuracy.hits(0.5)[:, i]`) and that class's place among the scores `(N,)`, from 1."""
    hits, places = np.asarray(box_hits, bool), np.asarray(ranks)
    if hits.shape != places.shape or hits.ndim != 1:
        raise UsageError("localized", got=f"hits {hits.shape}, ranks {places.shape}", allowed="(N,) both")
    if (places < 1).any():
        raise UsageError("localized(ranks=…)", got=f"{places.min()}", allowed="places from 1")
    columns = np.stack([hits, hits & (places <= 1), hits & (places <= 5)], axis=1)
    if not len(columns):
        nothing = (float("nan"), float("nan"))
        return Localized(float("nan"), float("nan"), float("nan"), nothing, nothing, nothing)
    means = 100 * metrics.bootstrap_means(columns, seed, repeats)
    shares = 100 * columns.mean(0)
    return Localized(
        float(shares[0]),
        float(shares[1]),
        float(shares[2]),
        metrics.middle(means[:, 0]),
        metrics.middle(means[:, 1]),
        metrics.middle(means[:, 2]),
    )


def read_blacklist(path: str | Path) -> frozenset[str]:
    """The entries of a blacklist file, one a line: ILSVRC's numbers of validation pictures, or names of pictures."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"blacklist {path}", got=str(error)) from error
    return frozenset(line.strip() for line in lines if line.strip())


def on_blacklist(name: str, entries: Collection[str]) -> bool:
    """Whether a picture's path, file name, stem, or the number its stem ends with (ILSVRC2012_val_00000036: 36) is listed."""
    path = Path(name)
    number = path.stem.rpartition("_")[2]
    forms = {name, path.name, path.stem} | (
        {number, str(int(number))} if number.isascii() and number.isdigit() else set()
    )
    return not forms.isdisjoint(entries)
