"""What each part of a picture is worth: a grey square slides over it, and at every place are noted the activity of the
strongest map of a layer, the probability of the class, and the most probable class. Beside them that map led back to the
pixels, for this picture and for the others that excite it most. Places that raise the score are shown as well.

camlucida probe occlusion cat.jpg --out hidden/                                the predicted class
camlucida probe occlusion cat.jpg --class "tabby" --patch 16 --stride 4 --out hidden/
camlucida probe occlusion pictures/val --limit 20 --others photos/ --out hidden/    the classes and boxes of class folders

Only what the square changes is computed, where the network can be followed; the page says how far that went.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from camlucida.cli import probing

if TYPE_CHECKING:
    from camlucida.images.sources import Source
    from camlucida.networks.network import Network
    from camlucida.values import Box


@dataclass(frozen=True, kw_only=True)
class Options(probing.Common):
    pictures: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURES")]
    """What camlucida localize takes; of class folders, manifests and published data sets the true classes and boxes are used."""
    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """The class of every picture, by name, id or number; by default the true one where it is known, else the predicted one."""
    layer: str | None = None
    """Layer whose strongest map is watched; by default the last before pooling."""
    patch: int | None = None
    """Side of the square in pixels of the view; by default a seventh of the view's shorter side, 32 at 224."""
    stride: int | None = None
    """Pixels between places; by default a quarter of the patch."""
    others: tuple[str, ...] = ()
    """More pictures, folders or archives in which to look for what excites the map."""
    top: int = 4
    """Of all other pictures, so many that excite the map most."""
    limit: int = 12
    """At most so many pictures, spread evenly."""


def run(options: Options, command: Sequence[str]) -> int:
    from camlucida.cli import choices, progress
    from camlucida.errors import InputError, UsageError
    from camlucida.images import sources
    from camlucida.maps import schedule
    from camlucida.report import probe_occlusion as report
    from camlucida.report.probe_folder import ProbeFolder

    if options.limit < 1 or options.top < 0:
        raise UsageError("--limit and --top", got=f"{options.limit}, {options.top}", allowed="≥ 1, ≥ 0")
    folder = ProbeFolder.open(options.out, "occlusion", command, overwrite=options.overwrite)
    net = choices.network(options.network)
    asked, told, why = _asked(options, net)
    others = list(sources.expand(options.others).sources) if options.others else []
    rejected: list[tuple[str, str]] = []
    gallery = report.Gallery(net, options.layer)
    studied: list[report.Studied] = []
    refused: UsageError | None = None
    with progress.bar("pictures", len(asked)) as moved:
        for one, label, boxes in asked:
            try:
                picture, batch = gallery.see(one)
                with progress.of_maps() as hear, schedule.heard_by(hear):
                    studied.append(
                        report.studied(
                            net,
                            one,
                            picture,
                            batch,
                            label,
                            boxes,
                            gallery.layer,
                            options.patch,
                            options.stride,
                        )
                    )
            except (InputError, UsageError) as error:  # a square too large for one picture may fit the others
                rejected.append((one.name, str(error)))
                refused = refused or (error if isinstance(error, UsageError) else None)
            moved(1)
    if not studied:
        raise refused or InputError(f"{rejected[0][0]}: {rejected[0][1]}")
    with progress.bar("others", len(others)) as moved:
        for one in others:
            try:
                gallery.see(one)
            except InputError as error:
                rejected.append((one.name, str(error)))
            moved(1)
    names = dict(zip(gallery.sources, sources.unique_names(list(gallery.sources.values())), strict=True))
    rows = [report.row(one, net) for one in studied]
    folder.table("occlusion", rows)
    folder.arrays("maps", report.arrays(studied, names))
    finding = report.finding(studied)
    sections = [report.summary(studied, net, why)]
    for done in studied:
        sections.append(report.section(done, net, gallery, options.top, names, folder.picture))
    page = report.page(studied, net.card.name, sections, finding, told, len(gallery.sources))
    figures = {"pictures": rows, "together": report.together(studied), "classes_from": told, "why": why}
    return probing.finish(options, folder, page, net, figures, finding, rejected)


def _asked(
    options: Options, net: Network
) -> tuple[list[tuple[Source, int | None, tuple[Box, ...]]], str, str]:
    """Pictures with the class to follow (None: the predicted one) and the boxes of its objects; in words where the classes are
    from, and why the true ones are not known."""
    from camlucida.errors import UsageError
    from camlucida.images import datasets, sources
    from camlucida.networks.labels import find_class

    if options.class_ is not None:
        label = find_class(options.class_, net.card.labels)
        outputs = net(net.blank()).shape[1]
        if label >= outputs:
            raise UsageError(f"--class {options.class_}", got=f"class {label}", allowed=f"0 … {outputs - 1}")
        chosen = datasets.evenly(sources.expand(options.pictures).sources, options.limit)
        return [(one, label, ()) for one in _some(chosen, options)], f"--class {options.class_}", ""
    try:
        found = datasets.load(options.pictures).relabelled(net.card.labels)
    except UsageError as error:
        chosen = datasets.evenly(sources.expand(options.pictures).sources, options.limit)
        return (
            [(one, None, ()) for one in _some(chosen, options)],
            "predicted",
            f"The true classes are not known: {error}.",
        )
    examples = datasets.evenly(found.examples, options.limit)
    return [(e.source, e.label if e.label >= 0 else None, e.boxes) for e in examples], "the data's own", ""


def _some(chosen: Sequence[Source], options: Options) -> Sequence[Source]:
    from camlucida.errors import UsageError

    if not chosen:
        raise UsageError("pictures", got=f"none in {', '.join(options.pictures)}", allowed="1 or more")
    return chosen
