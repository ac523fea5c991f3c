"""The filters of the first layer in one scale, which of them are dead, and the gaps between their frequencies; with
pictures also how often each unit of each layer answers, and what the second layer sees. Two networks beside each other
with --against.

camlucida probe filters --out filters/                                         weights alone, of the network in the package

camlucida probe filters photos/ --out filters/                                 dead units, strongest pictures, projections

camlucida probe filters photos/ --network mine.safetensors --against other.safetensors --out both/

camlucida probe filters --network alexnet --against zfnet --weights none --out random/       11 × 11 / 4 beside 7 × 7 / 2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import tyro

from camlucida.cli import choices, probing

if TYPE_CHECKING:
    from camlucida.networks.network import Network


@dataclass(frozen=True, kw_only=True)
class Options(probing.Common):
    pictures: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURES")] = ()
    """Files, folders, globs, archives and manifests, as in camlucida localize; without any, weights alone."""
    against: str | None = None
    """A second network beside --network: a name or a packed file, as --network takes it. It shares --weights default or
    none, --num-classes, --device, --precision and --download."""
    layers: str | None = None
    """Layers whose units are counted, with commas between; by default all with an activation function."""
    second: str | None = None
    """Layer whose strongest pictures are projected to the pixels; by default the second with an activation function."""
    k: int = 9
    """Strongest pictures of each of its units."""
    units: int = 16
    """How many of its units are projected, evenly chosen among those that answer any picture."""
    limit: int | None = None
    """Use so many pictures at most, evenly chosen."""
    batch: int = 32
    """Pictures a forward pass, at most."""
    workers: int = 2
    """Threads that read pictures."""


def run(options: Options, command: Sequence[str]) -> int:
    from camlucida.cli import progress
    from camlucida.errors import UsageError
    from camlucida.images import sources
    from camlucida.images.datasets import evenly
    from camlucida.images.read import read_picture
    from camlucida.probes import activity
    from camlucida.probes.filters import filters_and_units, second_layer
    from camlucida.report import probe_filters
    from camlucida.report.probe_folder import ProbeFolder
    from camlucida.report.probe_page import Page

    _check(options)
    pictures = sources.expand(options.pictures).sources if options.pictures else ()
    if options.pictures and not pictures:
        raise UsageError("probe filters", got=f"no picture in {', '.join(options.pictures)}")
    if options.limit is not None:
        pictures = evenly(pictures, options.limit)
    if pictures and len(pictures) < options.k:
        raise UsageError(f"the {options.k} strongest pictures of a unit (--k)", got=f"{len(pictures)} pictures", allowed=f"--k up to {len(pictures)}")  # fmt: skip
    nets = _networks(options)
    layers = probing.separate(options.layers) if options.layers else None
    for net in nets.values():  # before the folder is made
        activity.units(net, layers or [])
        if options.second:
            second_layer(net, options.second)
    folder = ProbeFolder.open(options.out, "filters", command, overwrite=options.overwrite)
    looks = {}
    with progress.bar("pictures", len(pictures) * len(nets)) as bar:
        for name, net in nets.items():
            looks[name] = filters_and_units(
                net, pictures, layers=layers, second=options.second, k=options.k, units=options.units,
                batch=options.batch, workers=options.workers, progress=bar,
            )  # fmt: skip
    files = sources.unique_names(pictures)

    def link(number: int) -> str:
        picture = read_picture(pictures[number].read(), net.card.preprocessing.mean_colour)
        return folder.picture(files[number], picture)

    names = [one.name for one in pictures]
    folder.table("filters", probe_filters.filter_rows(looks))
    folder.arrays("filters", probe_filters.arrays(looks))
    if pictures:
        folder.table("units", probe_filters.unit_rows(looks))
        folder.table("layers", probe_filters.layer_rows(looks))
        folder.table("projections", probe_filters.projection_rows(looks, names))
    rejected = list(dict.fromkeys(one for seen in looks.values() for one in seen.rejected))
    facts = [
        ("Network" if len(nets) == 1 else "Networks", ", ".join(nets)),
        ("Pictures", f"{len(pictures) - len(rejected):,}" if pictures else "none: weights alone"),
        *([("Strongest pictures", f"{options.k} of each of {options.units} units")] if pictures else []),
        *([("Weights", "random")] if options.network.weights == "none" else []),
    ]  # fmt: skip
    words = probe_filters.words(looks)
    page = Page(
        "First-layer filters and dead units", words, facts, probe_filters.sections(looks, link, names)
    )
    found = {name: probe_filters.figures(seen) for name, seen in looks.items()}
    return probing.finish(options, folder, page, next(iter(nets.values())), found, words, rejected)


def _check(options: Options) -> None:
    from camlucida.errors import UsageError

    probing.positive(options, "k", "units", "limit", "batch", "workers")
    if not options.pictures:
        for name in ("layers", "second", "limit"):
            if getattr(options, name) is not None:
                raise UsageError(f"--{name} without pictures", do="name pictures, or leave it out")


def _networks(options: Options) -> dict[str, Network]:
    """The networks by their names, made different where two are called alike."""
    first = choices.network(options.network)
    if options.against is None:
        return {first.card.name: first}
    given = options.network
    other = choices.network(
        replace(
            choices.DEFAULT, network=options.against, weights="none" if given.weights == "none" else "default",
            num_classes=given.num_classes, device=given.device, precision=given.precision, download=given.download,
        )
    )  # fmt: skip
    a, b = first.card.name, other.card.name
    return {a: first, b: other} if a != b else {f"{a} (1)": first, f"{b} (2)": other}
