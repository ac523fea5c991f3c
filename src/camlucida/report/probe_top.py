"""The state of a pass over many pictures as a file, and the sheets of the units it found."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from numpy.typing import NDArray
from PIL import Image

from camlucida import render
from camlucida.errors import InputError, LayerError, UnsupportedError, UsageError
from camlucida.images.read import MAX_PIXELS, read_picture
from camlucida.images.sources import Source, unique_names
from camlucida.networks.network import Network
from camlucida.networks.structure import Layer
from camlucida.probes import projections
from camlucida.probes.projections import likeness
from camlucida.probes.receptive_field import field_of
from camlucida.probes.top_activations import Peak, RunningTop, TopActivations
from camlucida.report.probe_folder import ProbeFolder
from camlucida.report.probe_page import Patch, Strip
from camlucida.report.writing import utf8
from camlucida.values import Size

STATE = "state"
DRAWS = 200  # of random pictures, for what chance gives


# --- the state -----------------------------------------------------------------------------------------------------


def save_state(folder: ProbeFolder, settings: Mapping[str, Any], found: TopActivations) -> None:
    """Writes `state.npz`, whole or not at all."""
    about = {"settings": settings, "layers": [*found.tops], "parts": found.parts, "pictures": found.pictures, "rejected": found.rejected}  # fmt: skip
    sizes = [[i, size.height, size.width] for i, size in found.sizes.items()]
    arrays = {
        f"{i}-{what}": one for i, top in enumerate(found.tops.values()) for what, one in top.arrays().items()
    }
    told = np.frombuffer(json.dumps(about).encode(), np.uint8)
    folder.arrays(STATE, {"about": told, "sizes": np.array(sizes, np.int64).reshape(-1, 3), **arrays})


def read_state(folder: Path, settings: Mapping[str, Any]) -> TopActivations | None:
    """What `save_state` wrote; None where there is nothing. Raises UsageError where one of these settings was another, or it
    cannot be read."""
    file = folder / f"{STATE}.npz"
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as stored:
            about = json.loads(stored["about"].tobytes())
            tops = {
                name: RunningTop.of_arrays(
                    {what: stored[f"{i}-{what}"] for what in ("values", "pictures", "cells")}
                )
                for i, name in enumerate(about["layers"])
            }
            sizes = {int(i): Size(int(h), int(w)) for i, h, w in stored["sizes"]}
            found = TopActivations(
                tops, about["parts"], about["pictures"], sizes, [tuple(one) for one in about["rejected"]]
            )
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"read {file}", got=str(error) or type(error).__name__, do="--overwrite starts again"
        ) from error
    old, new = about["settings"], json.loads(json.dumps(settings))
    if differing := [key for key in new if old.get(key) != new[key]]:
        got = ", ".join(f"{key} {_brief(new[key])} (there: {_brief(old.get(key))})" for key in differing)
        raise UsageError(f"go on with {file}", got=got, allowed="the settings it was made with", do="give the same, or --overwrite")  # fmt: skip
    return found


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "…"


# --- raw data ------------------------------------------------------------------------------------------------------


def rows(
    net: Network, layers: Sequence[Layer], sources: Sequence[Source], found: TopActivations, view: str
) -> Iterator[dict[str, Any]]:
    """A row for each unit and rank: where it is, and its receptive field in source pixels, clipped to the picture (null where
    the run does not tell)."""
    shape = net.card.preprocessing
    for layer in layers:
        top = found.tops[layer.name]
        each = zip(top.values.tolist(), top.pictures.tolist(), top.cells.tolist(), strict=True)
        for unit, (values, pictures, cells) in enumerate(each):
            for rank, (value, picture, cell) in enumerate(zip(values, pictures, cells, strict=True), 1):
                if picture < 0:
                    continue
                size = found.sizes[picture]
                field = field_of(layer, (cell[0], cell[1]))
                corners = (
                    shape.view(size, view).box_to_source(field).clipped(size).corners
                    if field
                    else (None,) * 4
                )
                yield {
                    "layer": layer.name, "unit": unit, "rank": rank, "path": utf8(sources[picture].name), "row": cell[0], "column": cell[1],
                    "activation": value, **dict(zip(("x0", "y0", "x1", "y1"), corners, strict=True)),
                }  # fmt: skip


def parquet(folder: ProbeFolder, name: str, rows: Iterator[dict[str, Any]]) -> str:
    """Rows → `NAME.parquet`."""
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*rows]), stream)
    return folder.write(f"{name}.parquet", stream.getvalue())


# --- sheets --------------------------------------------------------------------------------------------------------


def units_of(spec: str, top: RunningTop, layer: str) -> list[int]:
    """`3,17`: these units; `strongest:N`: those with the highest activations; `evenly:N`: spread over the layer, picked by
    nobody; `all`. Raises UsageError."""
    count = top.units
    kind, _, number = spec.partition(":")
    if spec == "all":
        return [*range(count)]
    if kind in ("strongest", "evenly") and number.isdigit() and int(number) > 0:
        if kind == "strongest":
            return top.values[:, 0].argsort(descending=True, stable=True)[: int(number)].tolist()
        return sorted({int(i) for i in np.linspace(0, count - 1, min(int(number), count)).round()})
    named = [one.strip() for one in spec.split(",") if one.strip()]
    if not named or not all(one.isdigit() for one in named):
        raise UsageError(
            "--units", got=repr(spec), allowed="numbers with commas between, strongest:N, evenly:N or all"
        )
    for one in named:
        if int(one) >= count:
            raise UsageError(f"--units {one}", got=f"{layer} with {count} units", allowed=f"0 … {count - 1}")
    return [*dict.fromkeys(map(int, named))]


@dataclass(frozen=True)
class Measured:
    """Of one layer: mean correlation of a unit's patches with one another, of its projections, and of the first projections
    of different units; `refused`: why there are no projections; `switches`: whether something of the picture enters them. Over all units: mean share of a unit's pictures that lie in
    one folder (None where all pictures do), and what chance gives; units that no picture excites."""

    patches: float | None
    projections: float | None
    between: float | None
    refused: str
    switches: bool
    folder: float | None
    chance: float | None
    silent: int


def sheets(
    net: Network,
    layer: Layer,
    units: Sequence[int],
    sources: Sequence[Source],
    found: TopActivations,
    view: str,
    folder: ProbeFolder,
    names: Mapping[int, str],
    max_pixels: int = MAX_PIXELS,
) -> tuple[list[Strip], Measured]:
    """For each unit the patches of its strongest places and their projections, cut to the same windows; and what was
    measured. A projection is scaled by itself: zero is mid-grey, its largest magnitude black or white."""
    shape, top, refused = net.card.preprocessing, found.tops[layer.name], ""
    strips: list[Strip] = []
    alike: dict[str, list[float | None]] = {"patches": [], "projections": []}
    firsts: list[tuple[NDArray, NDArray[np.bool_]]] = []

    @lru_cache(maxsize=32)
    def seen(number: int) -> Image.Image:
        return read_picture(sources[number].read(), shape.mean_colour, max_pixels)

    for unit in units:
        peaks = top.peaks(unit)
        places = [one for one in peaks if _readable(seen, one.picture)]
        views = [shape.view(found.sizes[one.picture], view) for one in places]
        windows = [
            projections.window(layer, peak.cell, one.size) for peak, one in zip(places, views, strict=True)
        ]
        where = [projections.inside(w, one.size) for w, one in zip(windows, views, strict=True)]
        patches = [
            projections.cut(
                np.asarray(one.show(seen(peak.picture), shape.interpolation)), w, shape.mean_colour
            )
            for peak, one, w in zip(places, views, windows, strict=True)
        ]
        links = [folder.picture(names[one.picture], seen(one.picture)) for one in places]
        words = [
            f"rank {i}, activation {_short(one.value)}, {PurePosixPath(sources[one.picture].relative).name}"
            for i, one in enumerate(places, 1)
        ]
        gone = len(peaks) - len(places)
        missing = f"{gone} of its pictures can no longer be read." if gone else ""
        strips.append(Strip(
            [Patch(a, f"patch of {layer.name} unit {unit}, {w}", _short(one.value), link) for a, w, one, link in zip(patches, words, places, links, strict=True)],
            f"{layer.name}, unit {unit}", missing if peaks else "No picture excites it.", "small",
        ))  # fmt: skip
        alike["patches"].append(likeness(patches, where))
        if refused or not places:
            continue
        try:
            made = _projected(net, layer, unit, places, views, seen)
        except (UnsupportedError, LayerError) as error:
            refused = str(error)
            continue
        shown = [projections.cut(one, w) for one, w in zip(made, windows, strict=True)]
        strips.append(Strip(
            [Patch(render.signed_rgb(np.moveaxis(a, -1, 0)), f"projection of {layer.name} unit {unit}, {w}", "", link) for a, w, link in zip(shown, words, links, strict=True)],
            size="small",
        ))  # fmt: skip
        alike["projections"].append(likeness(shown, where))
        firsts.append((shown[0], where[0]))
    switches = bool(firsts) and projections.has_switches(net, layer)
    between = likeness([one for one, _ in firsts], [mask for _, mask in firsts])
    one_folder, chance = same_folder(top, sources)
    silent = int((~top.excited).sum())
    return strips, Measured(
        _mean(alike["patches"]),
        _mean(alike["projections"]),
        between,
        refused,
        switches,
        one_folder,
        chance,
        silent,
    )


def _readable(seen: Any, number: int) -> bool:
    try:
        seen(number)
    except InputError:  # it was there a moment ago
        return False
    return True


def _projected(
    net: Network, layer: Layer, unit: int, places: Sequence[Peak], views: Sequence[Any], seen: Any
) -> list[NDArray]:  # fmt: skip
    """Projections `(H, W, channels)` over the views, in red, green, blue; pictures of one shape together."""
    shape = net.card.preprocessing
    made: dict[int, NDArray] = {}
    for size in dict.fromkeys(one.size for one in views):
        same = [i for i, one in enumerate(views) if one.size == size]
        shown = torch.stack([shape.pixels(seen(places[i].picture), views[i]) for i in same])
        pixels = shape.normalise(shown).to(net.device)
        here = layer if layer.prefix is None else net.find_layer(layer.name, pixels)
        values = projections.projected(net, pixels, here, [unit] * len(same), [places[i].cell for i in same])
        values = values.flip(1) if shape.channels == "BGR" else values
        made |= {i: np.moveaxis(one.numpy(), 0, -1) for i, one in zip(same, values, strict=True)}
    return [made[i] for i in range(len(places))]


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def same_folder(top: RunningTop, sources: Sequence[Source]) -> tuple[float | None, float | None]:
    """Mean over units of the share of their pictures that lie in the commonest folder, and the same of pictures drawn at
    random; None where all lie in one."""
    folders = [PurePosixPath(source.relative).parent.as_posix() for source in sources]
    if len({*folders}) < 2:
        return None, None

    def share(numbers: Sequence[int]) -> float:
        return Counter(folders[i] for i in numbers).most_common(1)[0][1] / len(numbers)

    units = [[i for i in row if i >= 0] for row in top.pictures[top.excited].tolist()]
    rng = np.random.default_rng(0)
    drawn = [
        share(rng.choice(len(folders), min(top.k, len(folders)), replace=False).tolist())
        for _ in range(DRAWS)
    ]
    return _mean([share(row) for row in units if row]), _mean(drawn)


def shown_names(
    sources: Sequence[Source], tops: Mapping[str, RunningTop], units: Mapping[str, Sequence[int]]
) -> dict[int, str]:
    """Names of the files that patches link to, for the pictures of these units."""
    numbers = sorted({p.picture for name, some in units.items() for i in some for p in tops[name].peaks(i)})
    return dict(zip(numbers, unique_names([sources[i] for i in numbers]), strict=True))
