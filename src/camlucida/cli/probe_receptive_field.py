"""What each layer's units see of the picture: size, stride and offset of their receptive fields by recurrence over the graph, a
drawing of them, and how far gradients reach. With pictures also what chosen units really see: their empirical fields,
by hiding small patches of the pictures that excite them most.

camlucida probe receptive-field --out fields/                                  every layer of the network in the package

camlucida probe receptive-field --network vgg-d --weights none --out fields/

camlucida probe receptive-field photos/ --out fields/                          the three strongest units of the last layer

camlucida probe receptive-field photos/ --layers stages.1,stages.2 --units 4,17 --top 10 --out fields/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from camlucida.cli import probing

if TYPE_CHECKING:
    from camlucida.networks.network import Network
    from camlucida.networks.structure import Layer
    from camlucida.probes.looking import Pictures
    from camlucida.probes.receptive_field import EmpiricalField
    from camlucida.report.probe_folder import ProbeFolder
    from camlucida.report.probe_page import Section

OVERLAYS = 4  # pictures shown of a unit


@dataclass(frozen=True, kw_only=True)
class Options(probing.Common):
    pictures: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURES")] = ()
    """What camlucida localize takes; none: theory alone."""
    layers: str | None = None
    """Layers with commas between; by default all, and of pictures the last before pooling."""
    units: str = "top:3"
    """Units of each layer: numbers with commas between, or top:K, those that some picture excites most."""
    top: int = 25
    """Pictures of each unit, its strongest; all, where there are fewer."""
    patch: int | None = None
    """Side of the patch, in pixels of the view; by default 11 at a shorter side of 224, others in proportion."""
    stride: int | None = None
    """Pixels between places; by default 3 at a shorter side of 224, others in proportion."""
    seed: int = 0
    """Of the patches' random pixels."""
    engine: Literal["auto", "incremental", "plain"] = "auto"
    """incremental computes only what a patch changes, plain runs the network on every copy; auto: plain where the first cannot be."""


def run(options: Options, command: Sequence[str]) -> int:
    from camlucida.cli import choices
    from camlucida.errors import UsageError
    from camlucida.images import sources
    from camlucida.probes.looking import Pictures
    from camlucida.report.probe_folder import ProbeFolder
    from camlucida.report.probe_page import Page

    wanted = _units(options.units)
    probing.positive(options, "top")
    listing = sources.expand(options.pictures)
    if options.pictures and not listing.sources:
        raise UsageError(f"no pictures in {', '.join(options.pictures)}", got=f"{listing.others} other files")
    folder = ProbeFolder.open(options.out, "receptive-field", command, overwrite=options.overwrite)
    net = choices.network(options.network)
    named = probing.layers_of(net, options.layers) if options.layers else None
    theory, rows, finding = _theory(folder, net, named or list(net.layers()))
    sections, fields, rejected = [theory], list[dict[str, Any]](), list[tuple[str, str]]()
    facts = [("Network", net.card.name), ("Layers", str(len(rows)))]
    if listing.sources:
        pictures = Pictures(net, listing.sources)
        found = _measured(
            options, pictures, [one.name for one in named or [net.find_layer(None, net.blank())]], wanted
        )
        rejected = [(pictures.name(i), reason) for i, reason in pictures.rejected.items()]
        probing.say_fewer(len(pictures) - len(rejected), options.top)
        more, fields, finding = _empirical(folder, pictures, found, sources.unique_names(listing.sources))
        sections = [*more, theory]
        first = found[0]
        facts += [
            ("Pictures", f"{len(pictures) - len(rejected)}, at most {options.top} a unit"),
            ("Patch, stride", f"{first.patch}, {first.stride} pixels"),
            ("Seed", str(options.seed)),
            ("Computed", _computed([note for one in found for note in one.notes])),
        ]
    page = Page("What the units of each layer see", finding, facts, sections)
    return probing.finish(options, folder, page, net, {"layers": rows, "fields": fields}, finding, rejected)


def _computed(notes: Sequence[str]) -> str:
    whole = list(dict.fromkeys(note for note in notes if not note.startswith("incremental")))
    return "; ".join(whole) or "only what each patch changes"


def _units(text: str) -> int | list[int]:
    """`top:K` → K; numbers → a list. Raises UsageError."""
    import re

    from camlucida.errors import UsageError

    if match := re.fullmatch(r"top:(\d+)", text.strip()):
        if int(match[1]) > 0:
            return int(match[1])
    elif re.fullmatch(r"\d+(\s*,\s*\d+)*", text.strip()):
        return list(dict.fromkeys(int(one) for one in text.split(",")))
    raise UsageError(f"--units {text}", allowed="top:K, or numbers with commas between: 4,17")


def _theory(
    folder: ProbeFolder, net: Network, layers: Sequence[Layer]
) -> tuple[Section, list[dict[str, Any]], str]:
    """The drawing and the table, with what gradients reach on noise for the layers drawn; the table's rows; the finding."""
    import torch

    from camlucida.errors import LayerError, UnsupportedError
    from camlucida.geometry import Size
    from camlucida.probes.receptive_field import field_by_gradient, field_of
    from camlucida.report import probe_receptive_field as figures
    from camlucida.report.probe_page import Patch, Section, Strip, Table

    if not layers:
        raise LayerError(
            f"{net.card.name} has no layer with cells", got="no map and no tokens on the way to the logits"
        )
    blank = net.blank()
    view = Size(blank.shape[2], blank.shape[3])
    noise = torch.randn(blank.shape, generator=torch.Generator().manual_seed(0))
    shown = figures.drawn(layers)
    reached: dict[str, str] = {}
    agree = 0
    for one in shown:
        theory = field_of(one, figures.middle(one))
        try:
            box = field_by_gradient(net, noise, one.name, figures.middle(one))
        except (LayerError, UnsupportedError):  # the network cuts gradients off: a dash
            box = None
        if box is not None and theory is not None:
            reached[one.name] = f"{box.y1 - box.y0:g} × {box.x1 - box.x0:g}"
            agree += box == theory.clipped(view)
    rows = [
        {
            "layer": one.name, "channels": one.channels, "cells": " × ".join(map(str, one.size)),
            "stride": one.stride and one.stride[0], "offset": one.offset and one.offset[0],
            "field": one.receptive_field and one.receptive_field[0], "gradient": reached.get(one.name),
        }
        for one in layers
    ]  # fmt: skip
    folder.table("layers", rows)
    last = layers[-1]
    field = last.receptive_field
    finding = (
        f"A unit of {last.name} sees {field[0]:g} pixels a side{' of a view of ' + str(view) if field[0] <= min(blank.shape[2:]) else ', more than the view of ' + str(view) + ' has'}."
        if field
        else f"How much a unit of {last.name} sees, the recurrence does not tell: an operation on the way reaches everywhere."
    )
    text = (
        f"By recurrence over the traced graph, in pixels of a view of {view}. Gradient: the box that the gradient of the middle cell reaches in "
        f"a picture of noise, cut to the view; measured for the layers drawn, and the same as by recurrence for {agree} of {len(reached)}. A dash: not drawn, or cut off by the network. ReLU and max pooling may stop it at an edge."
    )
    blocks: list[Any] = [Table([*rows[0]], [[*row.values()] for row in rows])]
    if shown:
        drawing = Patch(figures.nested(shown, view), "Nested fields of the middle cell")
        blocks.insert(0, Strip([drawing], "Fields of the middle cell", size="wide"))
    return Section("By recurrence", text, blocks), rows, finding


def _measured(
    options: Options, pictures: Pictures, layers: Sequence[str], wanted: int | list[int]
) -> list[EmpiricalField]:
    from camlucida.cli import progress
    from camlucida.errors import TargetError, UsageError
    from camlucida.probes.receptive_field import empirical_field, strongest_of

    net = pictures.network
    with progress.bar("looking for the strongest pictures", len(pictures)) as moved:
        strongest = strongest_of(pictures, layers, options.top, moved)
    asked: list[tuple[str, int]] = []
    for name, kept in strongest.items():
        units = kept.ranked()[:wanted] if isinstance(wanted, int) else wanted
        wrong = [unit for unit in units if unit >= kept.units]
        if wrong:
            raise TargetError(f"unit {wrong[0]} of layer {name}", allowed=f"0 … {kept.units - 1}")
        if not units:
            raise UsageError(
                f"layer {name}", got="no activation above zero in any picture", do="choose another layer"
            )
        asked += [(name, unit) for unit in units]
    total = sum(len(strongest[name].peaks(unit)) for name, unit in asked)
    with progress.bar("hiding parts of them", total) as moved:
        return [
            empirical_field(
                net, name, unit, pictures, top=options.top, patch=options.patch, stride=options.stride, seed=options.seed,
                engine=options.engine, peaks=strongest[name].peaks(unit), heard=moved,
            )
            for name, unit in asked
        ]  # fmt: skip


def _empirical(
    folder: ProbeFolder, pictures: Pictures, found: Sequence[EmpiricalField], names: Sequence[str]
) -> tuple[list[Section], list[dict[str, Any]], str]:
    import math

    import numpy as np

    from camlucida.report import probe_receptive_field as figures
    from camlucida.report.probe_page import Patch, Section, Strip, Table

    rows: list[dict[str, Any]] = []
    strips: list[Any] = []
    for one in found:
        size, box = one.size, one.box
        theory = one.theory
        side = None if size is None else math.sqrt(size[0] * size[1])
        rows.append(
            {
                "layer": one.layer, "unit": one.unit, "pictures": len(one.pictures), "height": size and size[0], "width": size and size[1], "half_of_all": one.half,
                "centre_y": box and (box.y0 + box.y1) / 2, "centre_x": box and (box.x0 + box.x1) / 2,
                "theory": theory and theory[0], "share_of_side": None if side is None or theory is None else side / math.sqrt(theory[0] * theory[1]),
                "highest": float(np.nanmax(one.values)), "activation": one.pictures[0].peak.value,
            }
        )  # fmt: skip
        words = "no patch changes the unit" if size is None else f"{size[0]:g} × {size[1]:g} pixels"
        theory_words = "unknown" if theory is None else f"{theory[0]:g} × {theory[1]:g}"
        patches = [
            Patch(
                figures.field_picture(one), f"Mean discrepancy of unit {one.unit} of {one.layer} around its peak: {words}, by recurrence {theory_words}",
                f"mean of {len(one.pictures)}",
            )
        ]  # fmt: skip
        for each in one.pictures[:OVERLAYS]:
            at = each.peak.picture
            shown = np.asarray(pictures[at].pictures()[0])
            link = folder.picture(names[at], pictures.source(at))
            patches.append(
                Patch(
                    figures.over_view(each, one.patch, one.stride, shown), f"Where unit {one.unit} of {one.layer} is hurt by a patch in {names[at]}",
                    f"{each.peak.value:.3g}", link, photo=True,
                )
            )  # fmt: skip
        strips.append(
            Strip(
                patches,
                f"{one.layer}, unit {one.unit}",
                f"{words}, half of all change within {one.half or 0:g}; by recurrence {theory_words}.",
            )
        )
    folder.table("fields", rows)
    arrays = {f"{one.layer}-{one.unit}": one.values for one in found}
    folder.arrays("fields", arrays | {f"{one.layer}-{one.unit}-counts": one.counts for one in found})
    text = (
        "How much a unit's strongest cell changes when a patch of random pixels hides a place: left the mean over the unit's strongest pictures "
        "around that cell, black 0, bright the highest; white: the box of what is above half of that; green: the field by recurrence; grey: too few "
        "pictures reach there. Then the strongest pictures, each on its own scale, with the unit's activation. A patch blurs the map by its own side."
    )
    table = Table(
        [*rows[0]],
        [[*row.values()] for row in rows],
        "Sizes and centres in pixels of the view; a centre is relative to the cell's own place.",
    )
    return [Section("What units really see", text, [*strips, table])], rows, _finding(rows)


def _finding(rows: Sequence[dict[str, Any]]) -> str:
    """What the measured sizes say, layer by layer."""
    words = []
    for name in dict.fromkeys(row["layer"] for row in rows):
        some = [row for row in rows if row["layer"] == name and row["height"] is not None]
        if not some:
            words.append(f"No patch changes the units of {name}.")
            continue
        sizes = [f"{row['height']:g} × {row['width']:g}" for row in some]
        shares = [row["share_of_side"] for row in some if row["share_of_side"] is not None]
        end = (
            ""
            if not shares
            else f": {100 * sum(shares) / len(shares):.0f} % of the side of {some[0]['theory']:g} that the recurrence gives"
        )
        what = (
            f"{len(some)} units of {name} see" if len(some) > 1 else f"Unit {some[0]['unit']} of {name} sees"
        )
        words.append(
            f"{what} {', '.join(dict.fromkeys(sizes))} pixels{end}{' on average' if len(shares) > 1 else ''}."
        )
    return " ".join(words)
