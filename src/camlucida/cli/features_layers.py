"""Layer by layer: how well a linear SVM names a new data set's classes from each layer of a network that is not trained again.

One pass over the pictures gives the vectors of all layers; the same with random weights and the raw pixels stand beside.

camlucida features layers caltech101.zip --train 30 --splits 3 --out layers/

camlucida features layers pictures/ --network alexnet.safetensors --layers features.pool1,features.pool2,features.relu5,classifier.relu7 --train 30 --out layers/

camlucida features layers pictures/ --train 15 --test 50 --c 0.01 --grid 2 --pool max --out layers/      quicker; 2 × 2 parts of each map

One label a picture: mean class recall and accuracy, mean ± standard deviation over the splits. Needs scikit-learn:
pip install 'camlucida[features]'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from camlucida.cli import probing

if TYPE_CHECKING:
    from camlucida.networks.network import Network

TRAINED, RANDOM = "trained", "random weights"


@dataclass(frozen=True, kw_only=True)
class Options(probing.Common):
    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Zips or folders of class folders, manifests, published data sets."""
    layers: str | None = None
    """Layers with commas between, first to last (camlucida layers lists them), also fully connected ones; by default at most eight, the outermost modules."""
    train: int = 30
    """Pictures of each class that train, drawn at random."""
    test: int | None = None
    """At most so many of each class's rest judge; by default all."""
    splits: int = 3
    """How many times pictures are drawn; every layer is judged on the same draws."""
    seed: int = 0
    """Of the first draw and of the random weights; the n-th draw takes seed + n."""
    normalise: Literal["l2", "standard", "none"] = "standard"
    """As in camlucida features svm. standard makes layers alike, so that one range of C serves all."""
    c: tuple[float, ...] = (0.001, 0.01, 0.1)
    """Cost of a training picture on the wrong side: one number, or candidates, among which each layer and split chooses on a fifth of its training pictures."""
    pool: Literal["average", "max"] = "average"
    """What is taken of each channel's map."""
    grid: int = 1
    """Parts of each side of the map that are pooled apart: 2 gives four numbers a channel."""
    pixels: int = 16
    """Side of the small picture that the raw pixels are; 0: none."""
    no_random: bool = False
    """Leave out the same layers with random weights."""
    subset: str | None = None
    """Published split to read."""
    limit: int | None = None
    """Only this many pictures, spread evenly over the set."""
    batch: int = 64
    """Pictures a forward pass."""
    workers: int = 2
    """Threads that read pictures."""
    max_pixels: int = 89_478_485
    """As in camlucida localize."""


def run(options: Options, command: Sequence[str]) -> int:
    from dataclasses import replace

    from camlucida import features as library
    from camlucida.cli import choices, progress
    from camlucida.errors import UsageError
    from camlucida.features.layers import labelled
    from camlucida.images import datasets
    from camlucida.report import features_layers as figures
    from camlucida.report.probe_folder import ProbeFolder
    from camlucida.report.probe_page import Page

    _check(options)
    data = datasets.load(options.data, None, options.subset)
    if options.limit is not None:
        data = replace(data, examples=datasets.evenly(data.examples, options.limit))

    def draw(rows: Any) -> list[library.Split]:
        return list(library.random_splits(rows, options.train, options.test, options.splits, options.seed))

    draw(labelled(data.examples, data.labels))  # refuses before an hour's work is done
    folder = ProbeFolder.open(options.out, "layers", command, overwrite=options.overwrite, tool="camlucida features")  # fmt: skip
    net = choices.network(options.network)
    names = _layers(options, net)
    networks = {TRAINED: net}
    if not options.no_random:
        networks[RANDOM] = _random(options)
    with progress.bar("pictures", len(data.examples)) as moved:
        vectors, rejected = library.layer_vectors(
            networks, names, data.examples, data.labels, pool=options.pool, grid=options.grid, pixels=options.pixels,
            batch=options.batch, workers=options.workers, max_pixels=options.max_pixels, heard=moved,
        )  # fmt: skip
    splits = draw(vectors[0].features)
    c: Any = options.c[0] if len(options.c) == 1 else options.c
    with progress.bar("SVMs", len(vectors) * len(splits)) as moved:
        scores = library.judge_layers(vectors, splits, c=c, normalise=options.normalise, heard=moved)
    if not scores[0].judged[0].figures:
        raise UsageError("layers", got="no picture to judge", do="a smaller --train")
    rows = figures.rows(scores)
    folder.table("layers", rows)
    folder.table("splits", figures.split_rows(scores))
    finding = figures.finding(scores)
    facts = [
        ("Network", net.card.name), ("Pictures", f"{len(vectors[0].features):,} of {len(data.labels)} classes"),
        ("Training pictures", f"{options.train} a class"), ("Judged on", f"{len(splits[0].test):,}"), ("Splits", str(len(splits))),
        ("Pooling", f"{options.pool}, {options.grid} × {options.grid}"), ("C", ", ".join(f"{v:g}" for v in options.c)), ("Normalised", options.normalise),
        ("Seed", str(options.seed)),
    ]  # fmt: skip
    page = Page("Layer by layer", finding, facts, figures.sections(scores, rows))
    return probing.finish(options, folder, page, net, {"layers": rows}, _words(rows, finding), rejected)


def _check(options: Options) -> None:
    from camlucida.errors import UsageError

    for name, least in (("batch", 1), ("workers", 1), ("max_pixels", 1), ("grid", 1), ("limit", 1), ("pixels", 0), ("train", 1), ("splits", 1)):  # fmt: skip
        value = getattr(options, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')}", got=value, allowed=f"≥ {least}")
    if not options.c or min(options.c) <= 0:
        raise UsageError("--c", got=options.c, allowed="> 0")
    if not options.data:
        raise UsageError("DATA", got="nothing", do="name what is to be read")


def _layers(options: Options, net: Network) -> list[str]:
    from camlucida.errors import LayerError
    from camlucida.report.probe_receptive_field import drawn

    if options.layers is not None:
        named = list(dict.fromkeys(one.strip() for one in options.layers.split(",") if one.strip()))
        if named:
            return named
    found = [one.name for one in drawn(net.layers())]
    if not found:
        raise LayerError(f"{net.card.name} has no layer with a known field", do="--layers names some")
    return found


def _random(options: Options) -> Network:
    """The same network before any training, from the seed."""
    from dataclasses import replace

    import torch

    from camlucida.cli import choices

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return choices.network(replace(options.network, weights="none"))


def _words(rows: Sequence[dict[str, Any]], finding: str) -> str:
    wide = max(len(row["layer"]) for row in rows)
    lines = [
        f"{row['network']:<14}  {row['layer']:<{wide}}  {row['numbers']:>6,} numbers  mean class recall {row['mean_class_recall']:5.2f} ± {row['recall_std']:.2f} %  "
        f"accuracy {row['accuracy']:5.2f} ± {row['accuracy_std']:.2f} %"
        for row in rows
    ]  # fmt: skip
    return "\n".join([*lines, finding])
