"""The page and tables of `camlucida probe filters`: one network, or two beside each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camlucida import render
from camlucida.probes.activity import Activity
from camlucida.probes.aliasing import Projection
from camlucida.probes.filters import Filters, FiltersAndUnits
from camlucida.probes.spectra import BANDS
from camlucida.report import charts
from camlucida.report.figures import percent
from camlucida.report.probe_page import Patch, Section, Strip, Table

TILE, GAP = 44, 3  # pixels of a filter on the sheet, and between two
PAIR = 102  # of a patch and of its projection
DEAD_FRAME = (213, 94, 0)
SHOWN_UNITS, CURVES = 8, 6
Looks = Mapping[str, FiltersAndUnits]
"""By the networks' names."""


# --- figures -----------------------------------------------------------------------------------------------


def figures(seen: FiltersAndUnits) -> dict[str, Any]:
    """The figures of one network, by name; None where there are none."""
    filters, first, second = seen.filters, seen.first, seen.second
    low, middle, high = filters.mean(filters.bands)
    answering = seen.activities
    found = {
        "layer": filters.layer, "filters": len(filters.weights), "size": filters.weights.shape[2:], "stride": filters.stride,
        "dead_by_weights": int(filters.dead.sum()), "largest_rms_over_median": filters.dominance,
        "energy_low": low, "energy_middle": middle, "energy_high": high, "peaks_middle": filters.peaks_in_bands[1],
        "energy_beyond_grid": filters.mean(filters.beyond), "pictures": seen.pictures,
        "never_active": int(first.dead.sum()) if first else None,
        "nearly_constant": int(first.nearly_constant.sum()) if first else None, "dead": int(seen.dead.sum()),
        "units": sum(len(one.mean) for one in answering) if answering else None,
        "units_never_active": int(sum(one.dead.sum() for one in answering)) if answering else None,
        "units_nearly_constant": int(sum(one.nearly_constant.sum() for one in answering)) if answering else None,
        "second_layer": second.layer if second else None, "second_layer_high": second.high if second else None,
        "second_layer_interval": second.interval if second else None, "refused": seen.refused or None,
    }  # fmt: skip
    return {name: _finite(value) for name, value in found.items()}


def _finite(value: Any) -> Any:
    """As JSON has it: NaN and infinity are None."""
    if isinstance(value, tuple):
        return [_finite(one) for one in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def words(looks: Looks) -> str:
    """What came out: a sentence for each network, and how two of them compare."""
    every = {name: figures(seen) for name, seen in looks.items()}
    said = [_sentence(name, one) for name, one in every.items()]
    if len(every) == 2:
        (a, one), (b, other) = every.items()
        mine, others = (found["dead"] / found["filters"] for found in (one, other))
        text = f"{a} has {_than(mine, others, 'a smaller', 'a larger', 'the same')} share of dead filters {'as' if mine == others else 'than'} {b}"
        if one["second_layer_high"] is not None and other["second_layer_high"] is not None:
            less = _than(one["second_layer_high"], other["second_layer_high"], "less", "more", "as much")
            overlap = one["second_layer_interval"][0] is not None and _overlap(one, other)
            text += f", and {less} energy at high frequencies in its second layer{', within the intervals of both' if overlap else ''}"
        said.append(text + ".")
    return " ".join(said)


def _than(a: float, b: float, less: str, more: str, same: str) -> str:
    return less if a < b else more if a > b else same


def _overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    (low, high), (below, above) = one["second_layer_interval"], other["second_layer_interval"]
    return below is not None and bool(low <= above and below <= high)


def _sentence(name: str, found: Mapping[str, Any]) -> str:
    height, width = found["size"]
    count = found["filters"]
    text = f"{name}: {found['dead_by_weights']} of {count} filters of {found['layer']} ({height} × {width}, stride {found['stride'][0]}) are dead by their weights"
    if found["never_active"] is not None:
        text += f" and {found['never_active']} never active over {found['pictures']:,} pictures"
    if found["peaks_middle"] is not None:
        text += f"; {percent(found['peaks_middle'])} of the live ones are tuned to the middle third of the frequencies"
    if found["second_layer_high"] is not None:
        text += f"; {percent(found['second_layer_high'])} of the energy of projections from {found['second_layer']} lies above half the Nyquist rate"
    return text + "."


def filter_rows(looks: Looks) -> list[dict[str, Any]]:
    """A row per filter of the first layer."""
    rows = []
    for name, seen in looks.items():
        filters, first = seen.filters, seen.first
        median = float(np.median(filters.rms)) or math.nan
        for i in range(len(filters.weights)):
            row = {
                "network": name, "layer": filters.layer, "filter": i, "rms": filters.rms[i], "rms_over_median": filters.rms[i] / median,
                "peak_cycles_per_pixel": filters.peaks[i],
                **{f"energy_{band}": filters.bands[i, j] for j, band in enumerate(BANDS)},
                "energy_beyond_grid": filters.beyond[i], "dead_by_weights": bool(filters.dead[i]),
                "never_active": bool(first.dead[i]) if first else None,
            }  # fmt: skip
            rows.append(row)
    return rows


def unit_rows(looks: Looks) -> list[dict[str, Any]]:
    """A row per unit of each layer."""
    return [
        {
            "network": name, "layer": one.layer, "unit": i, "mean": one.mean[i], "std": one.std[i], "maximum": one.maximum[i],
            "cells_active": one.active[i], "pictures_active": one.pictures_active[i], "dead": bool(one.dead[i]),
            "nearly_constant": bool(one.nearly_constant[i]),
        }
        for name, seen in looks.items() for one in seen.activities for i in range(len(one.mean))
    ]  # fmt: skip


def layer_rows(looks: Looks) -> list[dict[str, Any]]:
    """A row per layer."""
    return [
        {
            "network": name, "layer": one.layer, "units": len(one.mean), "pictures": one.pictures, "cells": one.cells,
            "dead": int(one.dead.sum()), "nearly_constant": int(one.nearly_constant.sum()),
            "cells_active": float(one.active.mean()), "pictures_active": float(one.pictures_active.mean()),
            "mean": float(one.mean.mean()), "std": float(one.std.mean()), "maximum": float(one.maximum.max()),
        }
        for name, seen in looks.items() for one in seen.activities
    ]  # fmt: skip


def projection_rows(looks: Looks, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row per projection. `names` of the pictures."""
    return [
        {
            "network": name, "layer": seen.second.layer, "unit": one.unit, "rank": rank, "picture": names[one.picture],
            "activation": one.activation, "top": one.window[0], "left": one.window[1], "height": one.window[2],
            "width": one.window[3], "energy_high": one.high,
        }
        for name, seen in looks.items() if seen.second for unit in seen.second.units for rank, one in enumerate(unit, 1)
    ]  # fmt: skip


# --- pictures ----------------------------------------------------------------------------------------------


def sheet(filters: Filters, shared: bool = True) -> Image.Image:
    """All filters in reading order, grey is zero: black and white the largest magnitude of the layer (`shared`), or of each
    filter. Three channels as colour, others as the grey of their mean; dead filters are framed."""
    count, _, height, width = filters.weights.shape
    factor = max(1, round(TILE / max(height, width)))
    columns = min(count, math.ceil(math.sqrt(count * 1.5 * height / width)))
    down, across = height * factor + GAP, width * factor + GAP
    image = np.full((-(-count // columns) * down + GAP, columns * across + GAP, 3), 255, np.uint8)
    most = np.abs(filters.weights).max() if shared else np.abs(filters.weights).max((1, 2, 3))
    limits = np.broadcast_to(most, count)
    for i, one in enumerate(filters.weights):
        y, x = GAP + i // columns * down, GAP + i % columns * across
        if filters.dead[i]:
            image[y - GAP : y + down, x - GAP : x + across] = DEAD_FRAME
        tile = render.signed_rgb(one, float(limits[i]))
        image[y : y + height * factor, x : x + width * factor] = tile.repeat(factor, 0).repeat(factor, 1)
    return Image.fromarray(image)


def _beside(projection: Projection) -> Image.Image:
    """The patch above its projection, in which grey is zero."""
    shown = (projection.patch, render.signed_rgb(projection.values))
    pair = [render.fitted(Image.fromarray(one), PAIR) for one in shown]
    return render.below(pair, 4)


# --- page --------------------------------------------------------------------------------------------------


def sections(looks: Looks, link: Callable[[int], str], names: Sequence[str]) -> list[Section]:
    """`link`: the file of a picture by its number; `names` of the pictures."""
    made = [_summary(looks), _filters(looks), _spectra(looks)]
    watched = {name: seen for name, seen in looks.items() if seen.activities}
    if watched:
        made.append(_activities(watched))
        made += [_second(name, seen, link, names) for name, seen in watched.items()]
    return made


def _summary(looks: Looks) -> Section:
    every = [figures(seen) for seen in looks.values()]

    def of(word: str, total: str) -> list[str | None]:
        return [None if one[word] is None else f"{one[word]} of {one[total]} ({percent(one[word] / one[total])})" for one in every]  # fmt: skip

    def share(word: str) -> list[str | None]:
        return [None if one[word] is None else percent(one[word]) for one in every]

    def interval(one: Mapping[str, Any]) -> str | None:
        if one["second_layer_high"] is None:
            return None
        low, high = one["second_layer_interval"]
        return percent(one["second_layer_high"]) + (
            f" ({percent(low)} to {percent(high)})" if low is not None else ""
        )

    rows: list[list[str | None]] = [
        ["First convolution", *(f"{one['layer']}, {one['size'][0]} × {one['size'][1]} / {one['stride'][0]}" for one in every)],
        ["Dead filters, by weights", *of("dead_by_weights", "filters")],
        ["Largest RMS over the median", *(None if one["largest_rms_over_median"] is None else f"{one['largest_rms_over_median']:.3g}" for one in every)],
        ["Filters tuned to the middle band", *share("peaks_middle")],
        ["Energy in the low band", *share("energy_low")],
        ["Energy in the middle band", *share("energy_middle")],
        ["Energy in the high band", *share("energy_high")],
        ["Energy that the stride folds", *share("energy_beyond_grid")],
        ["Never active in the first layer", *of("never_active", "filters")],
        ["Nearly constant in the first layer", *of("nearly_constant", "filters")],
        ["Never active, all layers", *of("units_never_active", "units")],
        ["Nearly constant, all layers", *of("units_nearly_constant", "units")],
        ["Second layer", *(_seen_by(seen) for seen in looks.values())],
        ["Its energy above half the Nyquist rate", *(interval(one) for one in every)],
    ]  # fmt: skip
    kept = [row for row in rows if any(cell is not None for cell in row[1:])]
    text = (
        "Dead by weights: the root mean square of a filter's weights is below a tenth of the layer's median. The bands are thirds "
        "of the way to the Nyquist rate of half a cycle a pixel; white noise has 8.7, 26.2 and 65.1 % of its energy in them. "
        "The stride folds what lies above half a cycle per stride, which of white noise is 1 − 1 / stride². Never active: not "
        "above 0 in any cell of any picture; nearly constant: a standard deviation below 5 % of the layer's median. "
        "White noise has 80 % of its energy above half the Nyquist rate; in brackets the 95 % interval over units. Fields of a few "
        "pixels hold nothing but high frequencies: compare networks whose second layers see about as much."
    )
    return Section("In figures", text, [Table(["", *looks], kept)])


def _seen_by(seen: FiltersAndUnits) -> str | None:
    if seen.second is None or not any(seen.second.units):
        return None
    _, _, height, width = next(one.window for unit in seen.second.units for one in unit)
    return f"{seen.second.layer}, sees {height} × {width} pixels"


def _filters(looks: Looks) -> Section:
    def patch(name: str, filters: Filters, shared: bool) -> Patch:
        most = float(np.abs(filters.weights).max())
        scale = f"black and white are ∓{most:.3g}" if shared else "each filter in a scale of its own"
        dead = ", ".join(map(str, filters.dead.nonzero()[0])) or "none"
        alt = f"The {len(filters.weights)} filters of {filters.layer} of {name}; grey is 0, {scale}. Dead: {dead}."
        return Patch(sheet(filters, shared), alt, f"{name}, {filters.layer}: {scale}. Dead: {dead}.")

    channels = {seen.filters.weights.shape[1] for seen in looks.values()}
    how = (
        "in red, green and blue"
        if channels == {3}
        else "three channels in red, green and blue, others by their mean"
    )
    return Section(
        "The filters of the first layer",
        f"In reading order from 0, {how}; grey is zero. A dead filter has an orange frame.",
        [
            Strip([patch(name, seen.filters, shared) for name, seen in looks.items()], title, size="large")
            for shared, title in (
                (True, "In one scale"),
                (False, "Each in its own scale, which shows faint ones"),
            )
        ],
    )


def _spectra(looks: Looks) -> Section:
    with np.errstate(divide="ignore"):
        curves = {
            name: (one.filters.distances, 10 * np.log10(one.filters.mean(one.filters.rings)))
            for name, one in looks.items()
        }
    level = next(iter(looks.values())).filters.distances
    spectrum = charts.lines(
        {**curves, "white noise": (level, np.zeros_like(level))}, "Mean spectrum of the filters", "cycles per pixel",
        "energy, dB above white noise",
    )  # fmt: skip
    patches = [Patch(spectrum, "", "Mean energy of the filters by frequency; dead ones are left out")]
    for name, seen in looks.items():
        shares = dict(zip(BANDS, 100 * seen.filters.peaks_in_bands, strict=True))
        drawn = charts.bars(shares, f"{name}: filters by the band that they are tuned to", unit=" %")
        patches.append(Patch(drawn, "", f"{name}: share of filters whose spectrum is strongest in each band"))
    return Section(
        "The frequencies that they pass",
        "Of the pixels that the network is shown.",
        [Strip(patches, size="large")],
    )


def _activities(looks: Looks) -> Section:
    blocks: list[Strip | Table] = [Strip([Patch(_curves(name, seen.activities), "", name) for name, seen in looks.items()], size="large")]  # fmt: skip
    for name, seen in looks.items():
        rows = [
            [one.layer, len(one.mean), int(one.dead.sum()), int(one.nearly_constant.sum()), percent(float(one.active.mean())),
             percent(float(one.pictures_active.mean())), float(one.mean.mean()), float(one.std.mean())]
            for one in seen.activities
        ]  # fmt: skip
        head = [
            "layer",
            "units",
            "never active",
            "nearly constant",
            "cells active",
            "pictures active",
            "mean",
            "std",
        ]
        blocks.append(
            Table(
                head,
                rows,
                f"{name}, over {seen.pictures:,} pictures; the last four are means over the units.",
            )
        )
    return Section("How the units of each layer answer", "Units from the rarest to the most frequent, and each layer's means. All units lie in units.csv.", blocks)  # fmt: skip


def _curves(name: str, activities: Sequence[Activity]) -> str:
    shown = [activities[i] for i in _spread(len(activities), CURVES)]
    series = {
        one.layer: (
            (np.arange(len(one.mean)) + 0.5) / len(one.mean) * 100,
            100 * np.sort(one.pictures_active),
        )
        for one in shown
    }
    return charts.lines(
        series,
        f"{name}: pictures that each unit answers",
        "% of the layer's units",
        "% of pictures",
        y_range=(0, 100),
    )


def _second(name: str, seen: FiltersAndUnits, link: Callable[[int], str], names: Sequence[str]) -> Section:
    title = f"The second layer of {name}"
    second = seen.second
    if second is None:
        return Section(title, f"No projections: {seen.refused}.")
    if not any(second.units):
        return Section(title, f"No projections: no unit of {second.layer} answers any picture.")
    shown = [second.units[i] for i in _spread(len(second.units), SHOWN_UNITS)]
    strips = []
    for unit in shown:
        patches = [
            Patch(_beside(one), f"Patch of {names[one.picture]} above its projection from unit {one.unit}", f"{one.activation:.3g}", link(one.picture))
            for one in unit
        ]  # fmt: skip
        high = [one.high for one in unit if math.isfinite(one.high)]
        words = f": {percent(float(np.mean(high)))} of the energy above half the Nyquist rate" if high else ""
        strips.append(Strip(patches, f"{second.layer}, unit {unit[0].unit}{words}", size="small"))
    low, high_end = second.interval
    spread = f", 95 % interval over units {percent(low)} to {percent(high_end)}" if math.isfinite(low) else ""
    text = (
        f"The pictures that a unit answers most strongly, cut to its receptive field, above the deconvnet's projection of that answer "
        f"(grey is zero, each in its own scale; its activation below). Over {len(second.units)} units of {second.layer}, "
        f"{percent(second.high)} of the projections' energy lies above half the Nyquist rate{spread}."
    )
    return Section(title, text, strips)


def _spread(count: int, most: int) -> list[int]:
    """At most so many of 0 … count − 1, evenly, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def arrays(looks: Looks) -> dict[str, NDArray]:
    """Weights and spectra of each network, numbered from 1."""
    found: dict[str, NDArray] = {}
    for i, seen in enumerate(looks.values(), 1):
        found |= {
            f"weights_{i}": seen.filters.weights,
            f"rings_{i}": seen.filters.rings,
            f"distances_{i}": seen.filters.distances,
        }
    return found
