"""Maps of one picture side by side, for chosen classes, methods and layers: a page, a sheet, overlays, raw maps.

A row per class, a column per method and layer; every cell says what was explained, its scale in raw units, how the
map came out, and what it cost. The whole of the picture is looked at. A method that cannot explain the network says why.

camlucida explain cup.jpg --out why/                                      the three most probable classes, CAM and Grad-CAM

camlucida explain cup.jpg --out why/ --classes espresso,n03063599,17      by name, by id, by number

camlucida explain cup.jpg --out why/ --methods grad-cam,occlusion:patch=16,stride=8

camlucida explain cup.jpg --out why/ --methods guided-backprop,deconvnet:unit=strongest --layers stages.1

camlucida explain cup.jpg --out why/ --layers stage2,stage3 --network mine.safetensors --scale shared

camlucida explain cup.jpg --out why/ --methods all --quick                every method for the best class, on a contact sheet
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from camlucida.cli import choices

SLOW = 100  # forward passes of which the time is said beforehand
FEW = 6  # columns that need no counting


@dataclass(frozen=True)
class Options:
    pictures: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURE")]
    """One picture, or a few (up to 20); what camlucida localize takes."""
    out: str
    """Folder for the results; made if it is not there."""
    network: choices.Chosen = choices.DEFAULT
    classes: str | None = None
    """Rows: top:K, the K most probable; or classes by name, id or number; several with commas between. By default top:3, of
    --methods all top:1."""
    methods: Annotated[str, tyro.conf.arg(aliases=("--method",))] = "cam,grad-cam"
    """Columns: methods with commas between, options after a colon, as occlusion:patch=16,stride=8. Pictures instead of maps:
    guided-backprop, guided-grad-cam, deconvnet. all: every one of both, from cheap to dear, and contact-sheet.png; the
    last, RISE, runs the network 4,000 times, which takes minutes on a CPU."""
    quick: bool = False
    """With --methods all: rise:masks=400, occlusion:stride=16, score-cam:channels=64 and smooth-grad:n=10 instead of the
    defaults; the sheet says so."""
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

    columns = explain.methods(options.methods, options.layers, options.quick)
    everything = explain.is_all(options.methods)
    classes = options.classes or ("top:1" if everything else "top:3")
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
    asked = explain.classes(classes, net.card.labels)
    views = Views.parse(net.card.localization.views if options.views == "auto" else options.views)
    note = _note(columns) if sys.stderr.isatty() else _silent
    explained: list[explain.Explained] = []
    rejected: list[tuple[str, str]] = []
    with choices.perturbing(options.memory):
        for source in listing.sources:
            try:
                explained.append(explain.explain(net, source, asked, columns, views, note))
            except InputError as error:
                rejected.append((source.name, str(error)))
    if not explained:
        raise InputError(f"{rejected[0][0]}: {rejected[0][1]}")
    settings = {
        "network": net.card.name, "network_sha256": net.card.sha256, "weights": options.network.weights, "labels": options.network.labels,
        "classes": classes, "methods": options.methods, "quick": options.quick, "layers": options.layers, "views": str(views),
        "scale": options.scale, "precision": options.network.precision,
    }  # fmt: skip
    manifest = {"command": list(command), "settings": settings, **choices.provenance(net)}
    facts = [
        ("Network", net.card.name + (", random weights" if options.network.weights == "none" else "")), ("Classes", classes), ("Methods", options.methods.replace(",", ", ")),
        *([("Settings", "quick" if options.quick else "defaults")] if everything else []),
        *([("Layers", options.layers.replace(",", ", "))] if options.layers else []),
        ("Views", str(views)), ("Colour scale", options.scale),
    ]  # fmt: skip
    folder = explain_folder.Folder.open(options.out, manifest, options.overwrite)
    names = dict(zip((s.name for s in listing.sources), sources.unique_names(listing.sources), strict=True))
    stems = [names[one.source.name] for one in explained]
    cells = folder.save(explained, stems, scale.limits(explained), facts, rejected, everything)
    if options.json:
        for cell in cells:
            print(json.dumps(cell, ensure_ascii=False))
    else:
        _show(cells)
    for path, reason in rejected:
        print(f"rejected: {path}: {reason}", file=sys.stderr)
    print(Path(options.out, "explain.html").resolve(), file=sys.stderr if options.json else sys.stdout)
    return 3 if rejected else 0


def _note(columns: Sequence[Any]) -> Any:
    """On a terminal: before the first method what is known of the whole cost, then each method as it begins; one that takes
    many passes says how many by itself."""
    import sys

    from camlucida import maps
    from camlucida.report.explain_cost import duration

    masks, begun = sum(getattr(method, "masks", 0) for method in columns), 0

    def note(method: Any, bare: float) -> None:
        nonlocal begun
        if begun == 0 and masks >= SLOW:
            rise = f"RISE alone runs {masks:,}: about {duration(masks * bare)}"
            print(f"one forward pass takes {duration(bare)}; {rise}", file=sys.stderr)
        begun += 1
        of = f" ({(begun - 1) % len(columns) + 1} of {len(columns)})" if len(columns) > FEW else ""
        print(maps.describe(method) + of, file=sys.stderr)

    return note


def _silent(method: Any, bare: float) -> None:
    """Nothing, where nobody watches."""


def _show(cells: Sequence[dict[str, Any]]) -> None:
    from collections import Counter
    from pathlib import PurePath

    from rich.console import Console
    from rich.table import Table

    from camlucida.report.explain_cost import Cost
    from camlucida.report.figures import sure

    table = Table(box=None, pad_edge=False)
    several = {column: len({cell[column] for cell in cells}) > 1 for column in ("path", "class_index")}
    several["class_index"] |= several["path"]  # whose probabilities differ
    heads = [*(["picture"] if several["path"] else []), *(["class"] if several["class_index"] else [])]
    for column in [*heads, "method", "raw values", "cost", "status"]:
        table.add_column(column, overflow="fold")
    console = Console(soft_wrap=True, highlight=False)
    for cell in cells:
        spread = "" if cell["minimum"] is None else f"{cell['minimum']:.3g} … {cell['maximum']:.3g}"
        words = f"{cell['class_name'].split(',')[0]} {sure(cell['probability'], cell['logit'])}"
        table.add_row(
            *([PurePath(cell["path"]).name] if several["path"] else []),
            *([words] if several["class_index"] else []),
            cell["method"] + (f" at {cell['layer']}" if cell["layer"] and "layer=" not in cell["method"] else ""),
            spread,
            "" if cell["seconds"] is None else str(Cost(cell["seconds"], cell["passes"])),
            cell["status"],
        )  # fmt: skip
    if not several["class_index"]:
        console.print(words, markup=False)
    console.print(table)
    for method, reason in {(c["method"], c["reason"]): None for c in cells if c["status"] == "refused"}:
        console.print(f"{method} refused: {reason}", markup=False)
    if len(cells) > FEW:
        counts = Counter(cell["status"] for cell in cells).most_common()
        console.print(", ".join(f"{count} {word}" for word, count in counts))
