"""The strongest pictures of units (top 9): one pass over any number of pictures keeps the k strongest places of every unit
of the chosen layers, at most one a picture. For the units that are shown: patches cut to the receptive field beside their
deconvnet projections. For all units: top.parquet.

camlucida probe top photos/ --out strongest/                                        the layer before pooling, nine places
camlucida probe top photos/ --layers stages.1,stages.3 --units evenly:12 --out spread/
camlucida probe top photos/ --layers stem --units 3,17 --k 4 --out two/
camlucida probe top 'shards/train-*.tar' --layers stages.3 --out all/ --resume       goes on after a kill

Several processes: each takes a share into a folder of its own, the last command joins them; the result is the same.

camlucida probe top photos/ --layers stages.3 --shard 1/2 --out half-1/
camlucida probe top photos/ --layers stages.3 --shard 2/2 --out half-2/
camlucida probe top photos/ --layers stages.3 --join half-1 half-2 --out both/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from camlucida.cli import probing

if TYPE_CHECKING:
    from pathlib import Path

    from camlucida.errors import UsageError
    from camlucida.images.sources import Source
    from camlucida.networks.network import Network
    from camlucida.networks.structure import Layer
    from camlucida.probes.top_activations import TopActivations
    from camlucida.report.probe_folder import ProbeFolder
    from camlucida.report.probe_page import Page
    from camlucida.report.probe_top import Measured


@dataclass(frozen=True, kw_only=True)
class Options(probing.Common):
    pictures: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Pictures, folders, globs, zip and tar archives, WebDataset and Parquet shards, manifests."""
    layers: str | None = None
    """Layers with commas between; by default the one before pooling. camlucida layers lists them."""
    units: str = "strongest:8"
    """Units that are shown, of each layer: 3,17; strongest:N; evenly:N (spread over the layer); all. Kept are all."""
    k: int = 9
    """Places a unit."""
    view: Literal["card", "whole"] = "card"
    """What the network sees of a picture: the card's resize and crop, or the whole of it."""
    batch: int = 32
    """Pictures a forward pass; results are equal for equal batches and parts."""
    part: int = 512
    """Pictures a part holds: what a kill loses at most."""
    max_pixels: int = 89_478_485
    """Pictures of more pixels are rejected, before they are unpacked."""
    workers: int = 2
    """Threads that read pictures."""
    shard: str | None = None
    """I/N: of the parts only every N-th from the I-th on, 1/N to N/N; --join makes one result of them."""
    join: tuple[str, ...] = ()
    """Folders of all shares of a run, instead of a pass."""
    resume: bool = False
    """Go on with the pass in --out where an earlier run stopped; after a finished one, show other --units."""


def run(options: Options, command: Sequence[str]) -> int:
    import sys
    from pathlib import Path

    from camlucida import report
    from camlucida.cli import choices
    from camlucida.errors import UsageError
    from camlucida.probes import RunningTop
    from camlucida.report import probe_top as sheets
    from camlucida.report.probe_folder import ProbeFolder

    probing.positive(options, "k", "batch", "part", "workers", "max_pixels")
    if options.resume and options.overwrite:
        raise UsageError("--resume and --overwrite together", do="give one of them")
    if options.join and (options.shard or options.resume):
        raise UsageError("--join", got="--shard or --resume", do="leave them out: --join makes no pass")
    share = _share(options.shard)
    sources, others = _listed(options.pictures)
    net = choices.network(options.network)
    layers = probing.layers_of(net, options.layers) if options.layers else [net.find_layer(None, net.blank())]
    if not layers:
        raise UsageError("--layers", got=repr(options.layers), do="camlucida layers lists them")
    if any(len(one.size) != 2 for one in layers):
        raise UsageError(
            "probe top", got=f"cells over {len(layers[0].size)} axes", allowed="networks of pictures"
        )
    if len(sources) < options.k:
        raise _few(options.k, f"{len(sources)} pictures")
    for one in layers:  # a wrong word is said now, not after the pass
        sheets.units_of(options.units, RunningTop.empty(one.channels, 1), one.name)
    settings = _settings(options, net, layers, sources)
    joined = _joined([Path(one) for one in options.join], settings, options.part) if options.join else None
    with report.alone(options.out):
        folder = ProbeFolder.open(
            options.out, "top", command, overwrite=options.overwrite, resume=options.resume
        )
        if options.overwrite:
            (folder.folder / f"{sheets.STATE}.npz").unlink(missing_ok=True)
        if joined is not None:
            sheets.save_state(folder, {**settings, "shard": "1/1"}, joined)
        found = joined or _passed(options, net, layers, sources, settings, share, folder)
        rejected = [(path, reason) for _, path, reason in found.rejected]
        if share[1] > 1:
            return _ended(options, folder, net, found, len(sources), rejected)
        usable = len(sources) - len({number for number, _, _ in found.rejected})
        if usable < options.k:
            reason = f"; {rejected[0][0]}: {rejected[0][1]}" if rejected else ""
            raise _few(options.k, f"{usable} usable pictures{reason}")
        page, figures = _page(options, folder, net, layers, sources, found)
        if others:
            print(f"{others} other files passed over", file=sys.stderr)
        return probing.finish(options, folder, page, net, figures, page.finding, rejected)


def _few(k: int, got: str) -> UsageError:
    from camlucida.errors import UsageError

    return UsageError(f"the {k} strongest pictures of a unit", got=got, do="give more, or a smaller --k")


def _share(shard: str | None) -> tuple[int, int]:
    """(0, 2) of `1/2`."""
    import re

    from camlucida.errors import UsageError

    found = re.fullmatch(r"(\d+)/(\d+)", shard or "1/1")
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UsageError("--shard", got=repr(shard), allowed="1/N to N/N")
    return int(found[1]) - 1, int(found[2])


def _listed(given: Sequence[str]) -> tuple[tuple[Source, ...], int]:
    """The pictures, shards opened, and how many other files were passed over. Raises UsageError."""
    from camlucida.errors import UsageError
    from camlucida.images import shards, sources

    files = [file for one in given for file in (shards.files(one) or [one])]
    listing = sources.expand(files)
    if not listing.sources:
        raise UsageError(f"no pictures in {', '.join(given)}", got=f"{listing.others} other files", allowed="JPEG, PNG, WebP, TIFF, BMP, GIF")  # fmt: skip
    return listing.sources, listing.others


def _settings(
    options: Options, net: Network, layers: Sequence[Layer], sources: Sequence[Source]
) -> dict[str, Any]:
    """Whatever decides the result."""
    import hashlib

    names = "\0".join(one.name for one in sources).encode("utf-8", "surrogatepass")
    return {
        "network": net.card.name, "network_sha256": net.card.sha256, "weights": options.network.weights,
        "preprocessing": asdict(net.card.preprocessing), "precision": options.network.precision, "layers": [one.name for one in layers],
        "k": options.k, "view": options.view, "batch": options.batch, "part": options.part, "max_pixels": options.max_pixels,
        "pictures": len(sources), "pictures_sha256": hashlib.sha256(names).hexdigest(),
    }  # fmt: skip


def _passed(
    options: Options, net: Network, layers: Sequence[Layer], sources: Sequence[Source], settings: dict[str, Any],
    share: tuple[int, int], folder: ProbeFolder,
) -> TopActivations:  # fmt: skip
    """The pass, its state saved after every part."""
    import sys

    from camlucida.cli import progress
    from camlucida.probes.top_activations import running
    from camlucida.report import probe_top as sheets

    kept = {**settings, "shard": options.shard or "1/1"}
    begun = sheets.read_state(folder.folder, kept) if options.resume else None
    found = begun
    try:
        with progress.bar("pictures", len(sources)) as bar:
            bar(begun.pictures if begun else 0)
            for found in running(
                net, sources, layers, options.k, view=options.view, batch=options.batch, workers=options.workers, part=options.part,
                share=share, begun=begun, max_pixels=options.max_pixels, progress=bar,
            ):  # fmt: skip
                sheets.save_state(folder, kept, found)
    except KeyboardInterrupt:
        print("the same command with --resume goes on", file=sys.stderr)
        raise
    assert found is not None
    return found


def _joined(folders: Sequence[Path], settings: dict[str, Any], part: int) -> TopActivations:
    """The shares of a run as one result. Raises UsageError where one is missing, comes twice or is of another run."""
    from functools import reduce

    from camlucida.errors import UsageError
    from camlucida.probes.top_activations import TopActivations
    from camlucida.report import probe_top as sheets

    shares = []
    for one in folders:
        found = sheets.read_state(one, settings)
        if found is None:
            raise UsageError(
                f"--join {one}", got="no state.npz", allowed="folders that probe top --shard wrote"
            )
        shares.append(found)
    joined = reduce(TopActivations.merge, shares)
    count = -(-settings["pictures"] // part)
    if len(joined.parts) < count:
        raise UsageError("--join", got=f"{len(joined.parts)} of {count} parts", do="name the folders of all shares; --resume finishes one")  # fmt: skip
    return joined


def _ended(
    options: Options, folder: ProbeFolder, net: Network, found: TopActivations, total: int, rejected: list[tuple[str, str]]
) -> int:  # fmt: skip
    """A share is done: its state is all there is of it."""
    from camlucida.report.probe_page import Page

    words = f"Share {options.shard} is done: {found.pictures:,} of {total:,} pictures. --join makes one result of all shares."
    page = Page(
        "Strongest pictures: a share",
        words,
        [("Network", net.card.name), ("Pictures", f"{found.pictures:,}")],
        [],
    )
    return probing.finish(
        options, folder, page, net, {"shard": options.shard, "pictures": found.pictures}, words, rejected
    )


def _page(
    options: Options, folder: ProbeFolder, net: Network, layers: Sequence[Layer], sources: Sequence[Source], found: TopActivations
) -> tuple[Page, dict[str, Any]]:  # fmt: skip
    from camlucida.cli import progress
    from camlucida.report import probe_top as sheets
    from camlucida.report.probe_page import Page, Section, Table

    units = {one.name: sheets.units_of(options.units, found.tops[one.name], one.name) for one in layers}
    names = sheets.shown_names(sources, found.tops, units)
    sections, table, figures = [], [], []
    measured: dict[str, Measured] = {}
    with progress.bar("units", sum(map(len, units.values()))) as bar:
        for layer in layers:
            strips, one = sheets.sheets(
                net, layer, units[layer.name], sources, found, options.view, folder, names, options.max_pixels
            )
            bar(len(units[layer.name]))
            measured[layer.name] = one
            field = layer.receptive_field and " × ".join(f"{side:g}" for side in layer.receptive_field)
            words = f"{layer.channels} units, of which {len(units[layer.name])} are shown; a unit sees {field or 'an unknown number of'} pixels of the view."
            if one.silent:
                words += f" No picture excites {one.silent} of them."
            if one.refused:
                words += f" No projections: {one.refused}."
            sections.append(Section(layer.name, words, strips))
            table.append(
                [layer.name, field, one.patches, one.projections, one.between, one.folder, one.chance]
            )
            figures.append(
                {"layer": layer.name, "units": layer.channels, "shown": units[layer.name], **asdict(one)}
            )
    head = ["layer", "field", "patches", "projections", "of different units", "one folder", "by chance"]
    about = (
        f"Mean correlation, pixel by pixel, among the {options.k} patches of a unit, among its projections, and among the first "
        "projections of different units, of the units shown; where both patches lie in the picture. Of all units: the share of a "
        "unit’s pictures that lie in one folder, and the same of pictures drawn at random."
    )
    how = (
        "Strongest first, with the activation; equal ones in the order of the pictures. A patch is the part of the picture that the cell "
        "sees, as the network was shown it; what lies beyond its borders has the mean colour. Below it its projection by deconvnet: "
        "each is scaled by itself, zero is mid-grey. Where nothing is max-pooled on the way "
        "down, no switch of the picture enters it: it is the unit’s own, the same in every picture. Patches lead to the pictures."
    )  # fmt: skip
    folder_rows = sheets.rows(net, layers, sources, found, options.view)
    sheets.parquet(folder, "top", folder_rows)
    facts = [
        ("Network", net.card.name), ("Pictures", f"{found.pictures:,}"), ("Places a unit", str(options.k)),
        ("View", options.view), ("Units shown", options.units), ("All units", "top.parquet"),
    ]  # fmt: skip
    first = Section("How alike", about, [Table(head, table)])
    page = Page(
        "The strongest pictures of units",
        _finding(measured),
        facts,
        [first, Section("Sheets", how), *sections],
    )
    return page, {
        "pictures": found.pictures,
        "rejected": len(found.rejected),
        "k": options.k,
        "layers": figures,
    }


def _finding(measured: dict[str, Measured]) -> str:
    """In words: in how many layers projections are more alike than patches, and the deepest layer's figures."""
    pairs = [*measured.items()]
    (first, shallow), (last, deep) = pairs[0], pairs[-1]
    compared = [one for one in measured.values() if one.patches is not None and one.projections is not None]
    less = sum((one.projections or 0) > (one.patches or 0) for one in compared)
    if not compared:
        said = f"There are no projections to compare with the patches; those of a unit of {last} correlate {_number(deep.patches)} with one another."  # fmt: skip
    else:
        among = f"in {less} of {len(compared)} layers" if len(compared) > 1 else "" if less else "no"
        start = "The projections of a unit vary no less than its patches" if among == "no" else f"The projections of a unit vary less than its patches{' ' * bool(among)}{among}"  # fmt: skip
        said = f"{start}: those of {last} correlate {_number(deep.projections)} with one another, the patches {_number(deep.patches)}."
        if deep.between is not None:
            said += f" Projections of different units correlate {_number(deep.between)}."
        if deep.projections is not None and not deep.switches:
            said += f" But no maximum is pooled on the way to {last}: a projection is the unit’s own, whatever the picture."
    if deep.folder is not None and deep.chance is not None:
        said += f" Of the strongest pictures of a unit of {last} {100 * deep.folder:.0f} % lie in one folder (by chance {100 * deep.chance:.0f} %)"
        said += (
            f", of {first} {100 * shallow.folder:.0f} %."
            if first != last and shallow.folder is not None
            else "."
        )
    return said


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")
