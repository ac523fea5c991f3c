"""The units that speak for a class: of the last spatial layer those with the largest weights in the head, each with the pictures
that excite it most, cut out where it looks; and what every unit adds to the logit of the surest picture. Needs a head of
pooling → linear: the networks named …-gap, residual ones, a linear SVM packed on a trunk.

camlucida probe class-units photos/ --out units/                              the classes that most pictures are predicted as

camlucida probe class-units photos/ --classes espresso,n02124075 --units 3 --top 5 --out units/

camlucida probe class-units photos/ --classes espresso --field empirical --out units/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from camlucida.cli import probing

if TYPE_CHECKING:
    from camlucida.probes.class_units import ClassUnits
    from camlucida.probes.looking import Pictures
    from camlucida.report.probe_folder import ProbeFolder
    from camlucida.report.probe_page import Section

FIELDS = {
    "empirical": "grown to its empirical field",
    "theoretical": "grown to its field by recurrence",
    "map": "not grown",
}


@dataclass(frozen=True, kw_only=True)
class Options(probing.Common):
    pictures: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURES")]
    """What camlucida localize takes."""
    classes: str | None = None
    """Names, ids or numbers with commas between; by default the three that most pictures are predicted as."""
    units: int = 3
    """Units of each class: those with the largest weights."""
    top: int = 5
    """Pictures of each unit: those that excite it most."""
    field: Literal["empirical", "theoretical", "map"] = "map"
    """What a unit's map, cut at half of its maximum, is grown to: its empirical field (runs the network on many copies of pictures: minutes), its field by recurrence, or nothing."""
    field_top: int = 5
    """Pictures of each empirical field."""
    patch: int | None = None
    """Of the empirical field, as in camlucida probe receptive-field."""
    stride: int | None = None
    """Likewise."""
    seed: int = 0
    """Of the empirical field's patches."""


def run(options: Options, command: Sequence[str]) -> int:
    from camlucida.cli import choices, progress
    from camlucida.errors import UsageError
    from camlucida.images import sources
    from camlucida.networks.labels import find_class
    from camlucida.probes.class_units import class_units
    from camlucida.probes.looking import Pictures
    from camlucida.report import probe_class_units as figures
    from camlucida.report.probe_folder import ProbeFolder
    from camlucida.report.probe_page import Page

    probing.positive(options, "units", "top", "field_top")
    listing = sources.expand(options.pictures)
    if not listing.sources:
        raise UsageError(f"no pictures in {', '.join(options.pictures)}", got=f"{listing.others} other files")
    folder = ProbeFolder.open(options.out, "class-units", command, overwrite=options.overwrite)
    net = choices.network(options.network)
    classes = None
    if options.classes is not None:
        classes = [find_class(one, net.card.labels) for one in probing.separate(options.classes)]
    pictures = Pictures(net, listing.sources)
    with progress.bar("pictures", len(pictures)) as moved:
        found = class_units(
            net, pictures, classes, units=options.units, top=options.top, field=options.field, field_top=options.field_top,
            patch=options.patch, stride=options.stride, seed=options.seed, heard=moved,
        )  # fmt: skip
    rejected = [(pictures.name(i), reason) for i, reason in pictures.rejected.items()]
    probing.say_fewer(len(found.predicted), options.top)
    rows = figures.figures(found)

    def name(index: int) -> str:
        return net.card.label(index).name.split(",")[0]

    folder.table("units", figures.table(found, pictures, name))
    folder.table("classes", rows)
    folder.arrays("units", figures.arrays(found))
    finding = _finding(rows)
    facts = [
        ("Network", net.card.name), ("Layer", f"{found.layer.name}, {found.layer.channels} units"), ("Pictures", str(len(found.predicted))),
        ("Cut out", f"half of the map's maximum, {FIELDS[options.field]}"), *([("Seed", str(options.seed))] if options.field == "empirical" else []),
    ]  # fmt: skip
    names = sources.unique_names(listing.sources)
    sections = [_section(folder, pictures, one, name, names) for one in found.classes]
    page = Page("The units that speak for a class", finding, facts, sections)
    return probing.finish(options, folder, page, net, {"classes": rows}, finding, rejected)


def _finding(rows: Sequence[dict[str, Any]]) -> str:
    pictures, hits = sum(row["pictures"] for row in rows), sum(row["predicted_as_it"] for row in rows)
    known = [row["share_of_positive"] for row in rows if row["share_of_positive"] is not None]
    units = max((len(row["units"]) for row in rows), default=0)
    which = f"the {units} units with the largest weights" if units > 1 else "the unit with the largest weight"
    words = (
        f"Of the {pictures} pictures that most excite {which} of a class, {hits} are predicted as that class."
    )
    if known:
        words += f" In the surest picture of each class these units add {100 * sum(known) / len(known):.0f} % of all that speaks for it."
    return words


def _section(
    folder: ProbeFolder, pictures: Pictures, one: ClassUnits, name: Any, names: Sequence[str]
) -> Section:
    from camlucida.report import probe_class_units as figures
    from camlucida.report.probe_page import Patch, Section, Strip

    strips = []
    for unit in one.units:
        patches = []
        for s in unit.segments:
            at = s.peak.picture
            source, view = pictures.source(at), pictures[at].views[0]
            shown = figures.cut_out(figures.in_view(source, view), s.mask)
            said = f"{names[at]} where unit {unit.unit} looks; predicted {name(s.predicted)}"
            patches.append(Patch(shown, said, f"{name(s.predicted)} · {s.peak.value:.3g}", folder.picture(names[at], source), photo=True))  # fmt: skip
        text = "" if patches else "No picture excites it."
        if unit.field is not None and unit.field.size is not None:
            text = f"Empirical field {unit.field.size[0]:g} × {unit.field.size[1]:g} pixels of the view."
        strips.append(Strip(patches, f"Unit {unit.unit}, weight {unit.weight:.3g}", text, size="medium"))
    source, view = pictures.source(one.best), pictures[one.best].views[0]
    link = folder.picture(names[one.best], source)
    logit = float(one.contributions.logits[0])
    evidence = Strip(
        [
            Patch(figures.in_view(source, view), f"{names[one.best]}, the surest picture", f"logit {logit:.3g}", link, photo=True),
            Patch(figures.bars(one, name(one.index)), "", ""),
        ],
        "What units add",
        f"Weight times pooled activation of each unit, in the picture of these whose logit of {name(one.index)} is highest; with the bias they sum to the logit.",
        size="large",
    )  # fmt: skip
    label = pictures.network.card.label(one.index)
    title = f"{name(one.index)}" + (f" ({label.id})" if label.id and label.id != name(one.index) else "")
    return Section(
        title,
        "Each unit's strongest pictures, with the class that the network sees and the unit's activation.",
        [*strips, evidence],
    )
