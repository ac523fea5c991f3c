"""Do the units of a layer treat the same part alike in different pictures? The part is hidden in each of them; the share of
units whose sign of change differs from picture to picture is set against squares at random places. Low: they correspond.

camlucida probe correspondence faces/ --parts parts.csv --out eyes/       the last layer before pooling, and the logits
camlucida probe correspondence faces.zip --parts parts.csv --layers stages.2,stages --draws 20 --out eyes/

parts.csv has the columns path,part,x0,y0,x1,y1, boxes in pixels of the picture; every part in two pictures or more. Where it
has the part "object" of a picture, random places lie inside that box, as the paper has them; else anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from camlucida.cli import probing


@dataclass(frozen=True, kw_only=True)
class Options(probing.Common):
    pictures: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURES")]
    """Pictures, folders, archives, globs; those that --parts names are looked at."""
    parts: str
    """CSV with the columns path,part,x0,y0,x1,y1; path as below the folder or archive."""
    corners: Literal["half-open", "inclusive"] = "half-open"
    """How its boxes are written: x1 and y1 past the last pixel, or the last pixel."""
    layers: str | None = None
    """Layers with commas between, fully connected ones too, and logits, the output. By default the last before pooling, and logits."""
    view: Literal["crop", "squash"] = "crop"
    """How pictures of all shapes become one: the central square of the card's size, or the whole picture squashed to it."""
    draws: int = 10
    """Random places for each part and picture."""
    permutations: int = 9999
    """Labellings of the permutation test."""
    seed: int = 0
    """Of the random places and the permutations."""


def run(options: Options, command: Sequence[str]) -> int:
    from camlucida.cli import choices, progress
    from camlucida.errors import InputError, UsageError
    from camlucida.images import sources
    from camlucida.images.parts import pictures_of, read_parts
    from camlucida.images.read import read_picture
    from camlucida.maps import schedule
    from camlucida.probes import measure_correspondence
    from camlucida.report import probe_correspondence as report
    from camlucida.report.probe_folder import ProbeFolder

    folder = ProbeFolder.open(options.out, "correspondence", command, overwrite=options.overwrite)
    rows = read_parts(options.parts, options.corners)
    found = pictures_of(rows, sources.expand(options.pictures).sources, options.parts)
    net = choices.network(options.network)
    rejected: list[tuple[str, str]] = []
    pictures: dict[str, Any] = {}
    for path, source in found.items():
        try:
            pictures[path] = read_picture(source.read(), net.card.preprocessing.mean_colour)
        except InputError as error:
            rejected.append((source.name, str(error)))
    if len(pictures) < 2:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected[:3])
        raise UsageError(
            "pictures to compare", got=reasons or f"{len(pictures)}", allowed="2 or more that can be read"
        )
    batch, boxes = report.prepared(net, pictures, rows, options.view, options.parts)
    layers = probing.separate(options.layers or "")
    layers = layers or [net.find_layer(None, batch.pixels).name, "logits"]
    within = boxes.get(report.OBJECT, {})
    parts = {name: of for name, of in boxes.items() if name != report.OBJECT}
    with progress.of_maps() as hear, schedule.heard_by(hear):
        result = measure_correspondence(
            net,
            batch,
            parts,
            layers,
            draws=options.draws,
            permutations=options.permutations,
            seed=options.seed,
            within=within,
        )
    where = (
        "on the object"
        if len(within) == len(pictures)
        else "anywhere"
        if not within
        else "on the object where it is boxed"
    )
    kept = [found[path] for path in pictures]
    names = dict(zip(pictures, sources.unique_names(kept), strict=True))
    links = {path: folder.picture(names[path], picture) for path, picture in pictures.items()}
    folder.table("sign-changes", report.rows(result))
    folder.table("pairs", report.pairs(result, boxes, list(pictures)))
    finding = report.finding(result)
    page = report.page(result, net.card.name, batch, boxes, links, finding, options.view, where)
    figures = {"random_places": where, "units": dict(result.units), "sign_changes": report.rows(result)}
    return probing.finish(options, folder, page, net, figures, finding, rejected)
