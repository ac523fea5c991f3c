"""Maps of one picture side by side, for chosen classes, methods and layers: a page, a sheet, overlays, raw maps.

A row per class, a column per method and layer; every cell says what was explained, its scale in raw units, and how the
map came out. The whole of the picture is looked at. A method that cannot explain the network says why in its cell.

camlucida explain cup.jpg --out why/                                      the three most probable classes, CAM and Grad-CAM

camlucida explain cup.jpg --out why/ --classes espresso,n03063599,17      by name, by id, by number

camlucida explain cup.jpg --out why/ --methods grad-cam,occlusion:patch=16,stride=8

camlucida explain cup.jpg --out why/ --methods guided-backprop,deconvnet:unit=strongest --layers stages.1

camlucida explain cup.jpg --out why/ --methods all --layers stage2,stage3 --network mine.safetensors --scale shared
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from camlucida.cli import choices


@dataclass(frozen=True)
class Options:
    pictures: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")]
    """One picture, or a few (up to 20); what camlucida localize takes."""
    out: str
    """Folder for the results; made if it is not there."""
    network: choices.Chosen = choices.DEFAULT
    classes: str = "top:3"
    """Rows: top:K, the K most probable; or classes by name, id or number; several with commas between."""
    methods: Annotated[str, tyro.conf.arg(aliases=("--method",))] = "cam,grad-cam"
    """Columns: methods with commas between, options after a colon, as occlusion:patch=16,stride=8; or all, which is every
    heat map. Pictures instead of maps: guided-backprop, guided-grad-cam, deconvnet."""
    layers: str | None = None
    """Layers with commas between, for the methods that look at one; by default each method's own."""
    views: str = "1"
    """Views merged into one map, as in camlucida localize; auto: what the card was tuned with."""
    memory: str | None = None
    """Most that the tensors of one pass may take in occlusion, Score-CAM, Ablation-CAM and RISE, as 500MB or 2GiB; it is halved where memory runs out. By default half of a GPU's; on a CPU 40 MB, beyond which it gets slower."""
    scale: str = "per-map"
    """Colours: per-map; shared, by all maps of one method and layer; or fixed:LO:HI in raw units."""
    json: bool = False
    """Print a JSON line per cell instead of the table."""
    overwrite: bool = False
    """Replace the results of an earlier run in --out."""


def run(options: Options, command: Sequence[str]) -> int:
    import json
    import sys
    from pathlib import Path

    from camlucida.errors import InputError, UsageError
    from camlucida.images import sources
    from camlucida.maps.merge import Views
    from camlucida.report import explain, explain_folder

    columns = explain.methods(options.methods, options.layers)
    scale = explain.Scale.of(options.scale)
    listing = sources.expand(options.pictures)
    if not 1 <= len(listing.sources) <= explain.MOST:
        raise UsageError(
            "explain",
            got=f"{len(listing.sources)} pictures in {', '.join(options.pictures)}",
            allowed=f"1 … {explain.MOST}",
            do="camlucida localize takes whole folders",
        )
    explain_folder.Folder.open(options.out, {}, options.overwrite)  # before anything slow
    net = choices.network(options.network)
    asked = explain.classes(options.classes, net.card.labels)
    views = Views.parse(net.card.localization.views if options.views == "auto" else options.views)
    explained: list[explain.Explained] = []
    rejected: list[tuple[str, str]] = []
    with choices.perturbing(options.memory):
        for source in listing.sources:
            try:
                explained.append(explain.explain(net, source, asked, columns, views, _note))
            except InputError as error:
                rejected.append((source.name, str(error)))
    if not explained:
        raise InputError(f"{rejected[0][0]}: {rejected[0][1]}")
    settings = {
        "network": net.card.name, "network_sha256": net.card.sha256, "weights": options.network.weights, "labels": options.network.labels,
        "classes": options.classes, "methods": options.methods, "layers": options.layers, "views": str(views),
        "scale": options.scale, "precision": options.network.precision,
    }  # fmt: skip
    manifest = {"command": list(command), "settings": settings, **choices.provenance(net)}
    facts = [
        ("Network", net.card.name), ("Classes", options.classes), ("Methods", options.methods.replace(",", ", ")),
        *([("Layers", options.layers.replace(",", ", "))] if options.layers else []),
        ("Views", str(views)), ("Colour scale", options.scale),
    ]  # fmt: skip
    folder = explain_folder.Folder.open(options.out, manifest, options.overwrite)
    names = dict(zip((s.name for s in listing.sources), sources.unique_names(listing.sources), strict=True))
    stems = [names[one.source.name] for one in explained]
    cells = folder.save(explained, stems, scale.limits(explained), facts, rejected)
    if options.json:
        for cell in cells:
            print(json.dumps(cell, ensure_ascii=False))
    else:
        _show(cells)
    for path, reason in rejected:
        print(f"rejected: {path}: {reason}", file=sys.stderr)
    print(Path(options.out, "explain.html").resolve(), file=sys.stderr if options.json else sys.stdout)
    return 3 if rejected else 0


def _note(method: Any, batches: Any) -> None:
    """On a terminal, what comes next; a method that takes many passes says how many when it begins."""
    import sys

    from camlucida import maps

    if sys.stderr.isatty():
        print(maps.describe(method), file=sys.stderr)


def _show(cells: Sequence[dict[str, Any]]) -> None:
    from pathlib import PurePath

    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    many = len({cell["path"] for cell in cells}) > 1
    for column in [*(["picture"] if many else []), "class", "method", "raw values", "status"]:
        table.add_column(column, overflow="fold")
    for cell in cells:
        spread = "" if cell["minimum"] is None else f"{cell['minimum']:.3g} … {cell['maximum']:.3g}"
        table.add_row(
            *([PurePath(cell["path"]).name] if many else []),
            f"{cell['class_name'].split(',')[0]} {100 * (cell['probability'] or 0):.1f} %",
            cell["method"] + (f" at {cell['layer']}" if cell["layer"] and "layer=" not in cell["method"] else ""),
            spread,
            cell["status"],
        )  # fmt: skip
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    for method, reason in {(c["method"], c["reason"]): None for c in cells if c["status"] == "refused"}:
        console.print(f"{method} refused: {reason}", markup=False)
