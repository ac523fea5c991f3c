"""Rows of all pictures → means with intervals, ranks, who wins against whom, mean curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from camlucida import metrics
from camlucida.errors import UsageError
from camlucida.evaluate.faithfulness.measure import METRICS, Row

REPEATS = 1000
RIVAL = "random"
"""The baseline that every method is held against."""
POINTS = 51
"""Samples of a mean curve of deletion or insertion, from 0 to 1 of the pixels."""

Values = Mapping[str, Mapping[str, NDArray[np.float64]]]
"""By method and metric the values of the same pictures in the same order."""


def figures(rows: Sequence[Row], seed: int = 0) -> dict[str, Any]:
    """All figures, ready for JSON. `ranking`: methods, best first, by their mean rank over the metrics that rank;
    `figures`: of each method and metric the mean, its 95 % interval (bootstrap over pictures, the same draws for all), its
    rank, and whether it is better or worse than the random map (`against_random`: the interval of the difference of the same
    pictures); `wins[a][b]`: share of pictures whose probability drops less under a's map than under b's; `curves`.
    Raises UsageError where there are no rows."""
    if not rows:
        raise UsageError("faithfulness", got="no picture that could be used")
    values = by_method(rows)
    present = [m for m in METRICS if any(m in of for of in values.values())]
    found: dict[str, dict[str, Any]] = {name: {} for name in values}
    order: dict[str, dict[str, float]] = {}
    for metric in present:
        names = [name for name in values if metric in values[name]]
        table = np.stack([values[name][metric] for name in names], 1)
        drawn = metrics.bootstrap_means(table, seed, REPEATS)
        order[metric] = dict(zip(names, _ranked(table.mean(0), metric).tolist(), strict=True))
        for i, name in enumerate(names):
            found[name][metric] = {
                "mean": _round(table[:, i].mean()), "interval": _interval(table[:, i], drawn[:, i], metric),
                "rank": order[metric][name],
            }  # fmt: skip
            if RIVAL in names and name != RIVAL:
                gain = _badness(drawn[:, names.index(RIVAL)], metric) - _badness(drawn[:, i], metric)
                found[name][metric]["against_random"] = _verdict(gain)
    ranking = _mean_ranks(values, [m for m in present if METRICS[m].ranks], seed)
    pictures = len({row.picture for row in rows})
    return {
        "pictures": pictures, "ranking": ranking, "figures": found,
        "metrics": {m: {"title": METRICS[m].title, "better": METRICS[m].better, "about": METRICS[m].about, "ranks": METRICS[m].ranks} for m in present},
        "wins": _wins(values), "curves": _curves(rows),
    }  # fmt: skip


def by_method(rows: Sequence[Row]) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Values of each method and metric, pictures in their order. Raises UsageError where methods saw other pictures."""
    gathered: dict[str, dict[str, dict[int, float]]] = {}
    for row in rows:
        gathered.setdefault(row.method, {}).setdefault(row.metric, {})[row.picture] = row.value
    every = {tuple(sorted(of)) for metric in gathered.values() for of in metric.values()}
    if len(every) > 1:
        raise UsageError(
            "figures of methods", got="other pictures for some than for others", allowed="the same for all"
        )
    (pictures,) = every
    return {
        name: {metric: np.array([of[i] for i in pictures], np.float64) for metric, of in each.items()}
        for name, each in gathered.items()
    }


def _badness(means: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    better = METRICS[metric].better
    return -means if better == "higher" else np.abs(means) if better == "zero" else means


def _ranked(means: NDArray[np.float64], metric: str) -> NDArray[np.float64]:
    """Ranks `(…, M)` from 1, the best, over the last axis; ties share their mean rank."""
    return rankdata(_badness(means, metric), axis=-1)


def _mean_ranks(values: Values, ranking: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Methods with their mean rank over the metrics that all of them have, and its interval, best first."""
    shared = [m for m in ranking if all(m in of for of in values.values())]
    names = [*values]
    if not shared:
        return [{"method": name, "mean_rank": None, "interval": None} for name in names]
    own, drawn = [], []
    for metric in shared:
        table = np.stack([values[name][metric] for name in names], 1)
        own.append(_ranked(table.mean(0), metric))
        drawn.append(_ranked(metrics.bootstrap_means(table, seed, REPEATS), metric))
    mean, spread = np.mean(own, 0), np.mean(drawn, 0)
    return [
        {"method": names[i], "mean_rank": _round(mean[i]), "interval": [_round(v) for v in metrics.middle(spread[:, i])]}
        for i in np.argsort(mean, kind="stable")
    ]  # fmt: skip


def _interval(values: NDArray[np.float64], drawn: NDArray[np.float64], metric: str) -> list[float]:
    low, span = METRICS[metric].lowest, 1 - METRICS[metric].lowest
    share = (float(values.mean()) - low) / span
    first, last = metrics.middle(drawn)
    between = metrics.with_width(share, ((first - low) / span, (last - low) / span), len(values))
    return [_round(low + span * edge) for edge in between]


def _verdict(gain: NDArray[np.float64]) -> str:
    low, high = metrics.middle(gain)
    return "better" if low > 0 else "worse" if high < 0 else "no different"


def _wins(values: Values) -> dict[str, dict[str, float]]:
    drops = {name: of["average-drop"] for name, of in values.items() if "average-drop" in of}
    return {
        one: {rival: _round(np.mean(drops[one] < drops[rival])) for rival in drops if rival != one}
        for one in drops
    }


def _curves(rows: Sequence[Row]) -> dict[str, dict[str, list[float]]]:
    """Mean curves by metric and method; those of deletion and insertion, whose steps hang on the picture's size, at
    `POINTS` shares of the pixels."""
    sums: dict[tuple[str, str], NDArray[np.float64]] = {}
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.curve is None:
            continue
        curve = np.array(row.curve)
        if row.metric in ("deletion", "insertion"):
            curve = np.interp(np.linspace(0, 1, POINTS), np.linspace(0, 1, len(curve)), curve)
        place = (row.metric, row.method)
        sums[place], counts[place] = sums.get(place, 0) + curve, counts.get(place, 0) + 1
    found: dict[str, dict[str, list[float]]] = {}
    for (metric, name), total in sums.items():
        found.setdefault(metric, {})[name] = [_round(v) for v in total / counts[metric, name]]
    return found


def _round(value: Any) -> float:
    return round(float(value), 4)
