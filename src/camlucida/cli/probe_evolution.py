"""How units come to see what they see: over the checkpoints of a run, the strongest activation of chosen units and its deconvnet
projection, a strip per unit; the epochs at which another picture took over; how early each layer settles.

camlucida train pictures/train --recipe alexnet-twin --keep-epochs 1,2,5,10,20,30,40,64 --out runs/alexnet-twin
camlucida probe evolution runs/alexnet-twin --data pictures/train --out evolved/
camlucida probe evolution runs/alexnet-twin --data val.zip --layers features.relu1,features.relu5 --units 0,7,12 --out evolved/
camlucida probe evolution early.safetensors late.safetensors --data photos/ --out evolved/

CHECKPOINTS: the folder of a run (its epochs/ is read), or packed files, which stay in the order given. All must be of one
network. strongest.csv has a row per unit and checkpoint, rates.csv one per layer and checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from camlucida.cli import choices, probing

if TYPE_CHECKING:
    from camlucida.networks.network import Network

OF_RUNNING = ("device", "precision")  # options of a network that are not about which


@dataclass(frozen=True, kw_only=True)
class Options(probing.Common):
    checkpoints: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINTS")]
    """Folder of a run that kept epochs, or packed FILE.safetensors in order."""
    data: tuple[str, ...] = ()
    """Pictures: files, folders, archives, manifests. The paper takes the training pictures."""
    layers: str | None = None
    """Layers with commas between, below the fully connected ones; by default up to five, from the first convolution to the last."""
    units: str | None = None
    """Units of each layer that are shown, counted from 0, as 3,7,20-31; by default --count, spread evenly."""
    count: int = 4
    """Units of each layer that are shown where --units names none."""
    limit: int | None = None
    """Only this many pictures, spread evenly."""
    batch: int = 32
    """Pictures a forward pass."""
    workers: int = 2
    """Threads that read pictures."""


def run(options: Options, command: Sequence[str]) -> int:
    from camlucida.cli import progress
    from camlucida.errors import UsageError
    from camlucida.images import datasets, sources
    from camlucida.probes.evolution import evolution, main_layers, units_of
    from camlucida.report import probe_evolution as report
    from camlucida.report.probe_folder import ProbeFolder
    from camlucida.report.probe_page import Page

    _check(options)
    files = _files(options.checkpoints)
    listed = sources.expand(options.data).sources
    pictures = datasets.evenly(listed, options.limit or len(listed))
    if not pictures:
        raise UsageError("probe evolution", got=f"no picture in {', '.join(options.data)}")
    units = probing.numbers(options.units) if options.units is not None else None
    last = None

    def networks() -> Iterator[tuple[str, Network]]:
        nonlocal last
        for name, file in files.items():
            last = _load(file, options)
            yield name, last

    net = _load(next(iter(files.values())), options)
    layers = (
        [one.name for one in probing.layers_of(net, options.layers)] if options.layers else main_layers(net)
    )
    units_of(net, layers, units, options.count)
    folder = ProbeFolder.open(options.out, "evolution", command, overwrite=options.overwrite)
    with progress.bar("pictures × checkpoints", len(pictures) * len(files)) as bar:
        found = evolution(
            networks(), pictures, layers, units, count=options.count, batch=options.batch, workers=options.workers, progress=bar
        )  # fmt: skip
    names = sources.unique_names(pictures)
    shown = sorted({m.picture for one in found.histories for m in one.moments if m.picture is not None})
    assert last is not None
    links = {i: folder.picture(names[i], last.preprocess(pictures[i].read()).pictures(1)[0]) for i in shown}
    folder.table("strongest", report.strongest(found, names))
    folder.table("rates", report.rates(found))
    finding = report.finding(found)
    facts = [
        ("Network", last.card.name), ("Checkpoints", ", ".join(found.checkpoints)), ("Pictures", f"{found.pictures:,}"),
        ("Compared", f"{found.compared:,} pictures, all units"), ("Layers", str(len(found.layers))),
    ]  # fmt: skip
    page = Page(
        "Feature evolution", finding, facts, report.sections(found, {i: names[i] for i in shown}, links)
    )
    figures = {
        "checkpoints": {name: str(file) for name, file in files.items()}, "pictures": found.pictures, "layers": report.figures(found),
        "units": [{"layer": one.layer, "unit": one.unit, "takeovers": [found.checkpoints[i] for i in one.takeovers]} for one in found.histories],
        "claims": [{"claim": c, "measured": m, "holds": h} for c, m, h in report.claims(found)],
    }  # fmt: skip
    rejected = [(path, reason) for _, path, reason in found.rejected]
    return probing.finish(options, folder, page, last, figures, finding, rejected)


def _check(options: Options) -> None:
    from camlucida.errors import UsageError

    for one in fields(choices.NetworkOptions):
        if one.name not in OF_RUNNING and getattr(options.network, one.name) != getattr(
            choices.DEFAULT, one.name
        ):
            asked = f"--{one.name.replace('_', '-')} {getattr(options.network, one.name)}"
            raise UsageError(asked, do="leave it out: the checkpoints are the networks")
    if not options.data:
        raise UsageError("--data", got="nothing", allowed="pictures: files, folders, archives, manifests")
    probing.positive(options, "count", "batch", "workers", "limit")


def _files(given: Sequence[str]) -> dict[str, Path]:
    """The checkpoints by name (the epoch, where all files are called by it), in order; each is opened and compared with the first, before
    anything runs."""
    from camlucida.errors import UsageError
    from camlucida.networks import cards
    from camlucida.probes.evolution import alike

    found: list[Path] = []
    for one in map(Path, given):
        if not one.is_dir():
            found.append(one)
            continue
        inside = sorted((one / "epochs").glob("*.safetensors"), key=_epoch) or sorted(
            one.glob("epoch-*.safetensors"), key=_epoch
        )
        if not inside:
            raise UsageError(f"no checkpoints in {one}", allowed="the folder of a run with epochs/", do="camlucida train … --keep-epochs 1,2,5,10 keeps them")  # fmt: skip
        found += inside
    if len(found) < 2:
        raise UsageError("probe evolution", got=f"{len(found)} checkpoint", allowed="two or more, in order")
    named = all(re.fullmatch(r"epoch-\d+", file.stem) for file in found)
    names = [str(_epoch(file)) if named else file.stem for file in found]
    names = names if len(set(names)) == len(found) else [str(file) for file in found]
    if len(set(names)) < len(names):
        raise UsageError("probe evolution", got=f"{max(names, key=names.count)} twice", allowed="each once")
    first = cards.read_card(found[0])
    for file in found:
        card = cards.read_card(file)
        alike(str(file), card, str(found[0]), first)
        cards.read_weights(file, card)  # says whether the file is whole
    return dict(zip(names, found, strict=True))


def _epoch(file: Path) -> int:
    number = re.search(r"(\d+)$", file.stem)
    return int(number[1]) if number else -1


def _load(file: Path, options: Options) -> Network:
    from dataclasses import replace

    from camlucida.networks import cards, catalogue

    network = catalogue.load(str(file), device=options.network.device, precision=options.network.precision)
    return replace(network, card=replace(network.card, sha256=cards.read_card(file).sha256))
