"""How far features move, and the true class's probability falls, while pictures are shifted, enlarged and turned: curves at
two or more layers, one figure per transformation.

camlucida probe invariance photos/ --out moved/                                layer 1 and the last hidden layer
camlucida probe invariance val.zip --network mine.safetensors --layers features.pool1,classifier.relu7 --limit 30 --out moved/
camlucida probe invariance photos/ --transformations rotation --out turned/

PICTURES with labels (class folders, manifests, published data sets) give the true class; where there are none, or the network
does not know them, the class that it predicts for the intact picture stands in, and the page says so. curves.csv has every
distance as measured, movement.csv the figures of the mean curves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from camlucida.cli import probing

if TYPE_CHECKING:
    from camlucida.images.sources import Source
    from camlucida.networks.network import Network
    from camlucida.probes.invariance import Invariance
    from camlucida.values import Batch


@dataclass(frozen=True, kw_only=True)
class Options(probing.Common):
    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURES")]
    """Files, folders, archives, manifests, published data sets."""
    layers: str | None = None
    """Names of modules with commas between, convolutional or fully connected; by default layer 1 and the last hidden one."""
    transformations: str = "vertical-shift,horizontal-shift,scale,rotation"
    """Which, with commas between."""
    limit: int = 5
    """Only this many pictures, spread evenly; the paper has 5."""
    batch: int = 16
    """Pictures a forward pass."""


def run(options: Options, command: Sequence[str]) -> int:
    from camlucida.cli import choices, progress
    from camlucida.errors import UsageError, nearest
    from camlucida.images import sources
    from camlucida.probes.feature_points import feature_points
    from camlucida.probes.invariance import TRANSFORMATIONS, invariance
    from camlucida.report import probe_invariance as report
    from camlucida.report.probe_folder import ProbeFolder
    from camlucida.report.probe_page import Page

    asked = list(dict.fromkeys(probing.separate(options.transformations)))
    for name in asked:
        if name not in TRANSFORMATIONS:
            raise UsageError("--transformations", got=repr(name), do=nearest(name, TRANSFORMATIONS))
    probing.positive(options, "limit", "batch")
    if not asked:
        raise UsageError("--transformations", got="none", allowed=", ".join(TRANSFORMATIONS))
    net = choices.network(options.network)
    layers = probing.separate(options.layers) if options.layers else None
    layers = [str(point) for point in feature_points(net, net.blank(), layers)] if layers else None
    listed, labels, note = _labelled(options.data, net, options.limit)
    read, rejected = _read(net, listed)
    names = dict(zip((i for i, _ in read), sources.unique_names([listed[i] for i, _ in read]), strict=True))
    usable = [one for one in read if net(one[1]).isfinite().all()]
    kept = {i for i, _ in usable}
    rejected += [(listed[i].name, "the network says NaN or infinity of it") for i, _ in read if i not in kept]
    if not usable:
        raise UsageError("probe invariance", got=f"no picture that can be used: {rejected[0][1]}")
    folder = ProbeFolder.open(options.out, "invariance", command, overwrite=options.overwrite)
    results = []
    with progress.bar("transformations", len(asked)) as bar:
        for name in asked:
            given = [labels[i] for i, _ in usable] if labels else None
            shown = [batch for _, batch in usable]
            results.append(invariance(net, shown, given, layers, name, batch=options.batch))
            bar(1)
    called = [names[i] for i, _ in usable]
    links = [folder.picture(names[i], batch.pictures(1)[0]) for i, batch in usable]
    folder.table("curves", _curves(results, called))
    folder.table("probabilities", _probabilities(results, called, net))
    figures = report.figures(results)
    folder.table("movement", _movement(figures))
    truth = "the true class" if labels else "the class predicted for the intact picture"
    finding = report.finding(results)
    facts = [
        ("Network", net.card.name), ("Pictures", str(len(usable))), ("Layers", ", ".join(results[0].layers)),
        ("Class", note or "true, from the data's labels"), ("Mean probability, intact", f"{results[0].intact.mean():.3g}"),
    ]  # fmt: skip
    page = Page(
        "Feature invariance", finding, facts,
        report.sections(results, called, usable[0][1], truth, links[0]),
    )  # fmt: skip
    listed_claims = [{"claim": c, "measured": m, "holds": h} for c, m, h in report.claims(results)]
    found: dict[str, Any] = {
        "pictures": len(usable),
        "class": truth,
        "transformations": figures,
        "claims": listed_claims,
    }
    return probing.finish(options, folder, page, net, found, finding, rejected)


def _labelled(data: Sequence[str], net: Network, limit: int) -> tuple[list[Source], list[int] | None, str]:
    """Pictures, their classes as the network counts them, and why there are none."""
    from camlucida.errors import UsageError
    from camlucida.images import datasets, sources

    try:
        examples = datasets.load(data).relabelled(net.card.labels).examples
        kept = datasets.evenly([one for one in examples if one.label >= 0], limit)
        if kept:
            return [one.source for one in kept], [one.label for one in kept], ""
        why = "the data has values, no classes"
    except UsageError as error:
        why = str(error)
    found = datasets.evenly(sources.expand(data).sources, limit)  # raises what is wrong with the path
    if not found:
        raise UsageError("probe invariance", got=f"no picture in {', '.join(data)}")
    return list(found), None, f"predicted for the intact picture ({why})"


def _read(net: Network, listed: Sequence[Source]) -> tuple[list[tuple[int, Batch]], list[tuple[str, str]]]:
    """The pictures as the card's view shows them, by their number, and those that cannot be read."""
    from camlucida.errors import InputError

    read, rejected = [], []
    for i, source in enumerate(listed):
        try:
            read.append((i, net.preprocess(source.read())))
        except InputError as error:
            rejected.append((source.name, str(error)))
    return read, rejected


def _curves(results: Sequence[Invariance], names: Sequence[str]) -> Iterable[dict[str, Any]]:
    for one in results:
        for p, picture in enumerate(names):
            for i, layer in enumerate(one.layers):
                for a, amount in enumerate(one.amounts):
                    yield {
                        "transformation": one.transformation, "picture": picture, "layer": layer, "amount": amount,
                        "distance": one.distances[p, i, a], "norm": one.norms[p, i], "relative": one.relative[p, i, a],
                    }  # fmt: skip


def _probabilities(
    results: Sequence[Invariance], names: Sequence[str], net: Network
) -> Iterable[dict[str, Any]]:
    for one in results:
        for p, picture in enumerate(names):
            for a, amount in enumerate(one.amounts):
                yield {
                    "transformation": one.transformation, "picture": picture, "class_index": one.labels[p],
                    "class_name": net.card.label(one.labels[p]).name, "amount": amount,
                    "probability": one.probabilities[p, a], "intact": one.intact[p],
                }  # fmt: skip


def _movement(figures: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for name, one in figures.items():
        for layer, numbers in one["layers"].items():
            yield {
                "transformation": name,
                "layer": layer,
                **numbers,
                "probability_kept": one["probability_kept"],
            }
