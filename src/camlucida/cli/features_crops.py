"""Fine-grained classes in three settings: an SVM on whole pictures, one on crops that its class maps make, one on given boxes.

  camlucida features crops CUB_200_2011/ --out birds/                                    its published split
  camlucida features crops pictures/ --train 30 --test 20 --out seen/                    drawn of each class
  camlucida features crops pictures.zip --classes n02099601 n02085620 --train 20 --out dogs/
  camlucida features crops pictures/ --train 30 --maps top --top 3 --threshold 0.3 --out seen/

Features are those of a frozen network; each setting's SVM is trained and tested in that setting. Own crops ask for no box,
and no test label is looked at. Beside accuracy: how many own crops overlap a given box by half or more, and what chance does.
--out then holds report.html, pictures.csv (boxes, overlap and classes of every picture), classes.csv and manifest.json.
Needs scikit-learn: pip install 'camlucida[features]'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from camlucida.cli import probing

if TYPE_CHECKING:
    from camlucida.features import Extractor, FineGrained, Split
    from camlucida.images.datasets import DataSet


@dataclass(frozen=True, kw_only=True)
class Options(probing.Common):
    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Labelled pictures, one label each, with or without boxes: zips or folders of class folders, manifests, published data sets (CUB-200-2011)."""
    classes: tuple[str, ...] = ()
    """Only these, ids or names."""
    split: Literal["all", "train", "tuning"] = "all"
    """Of DATA all pictures, or tuning: one in five by file name, which camlucida train leaves out; train: the others."""
    train: str = "auto"
    """Pictures that train: a number drawn of each class, or names of published splits, train+val. auto: the published split train."""
    test: str = "rest"
    """Pictures that judge: with a number in --train at most so many of each class's rest, or rest; else names of published splits, or rest: all others that are named."""
    maps: Literal["predicted", "top", "true"] = "predicted"
    """Whose map makes a crop: the class that the SVM on whole pictures predicts; the mean of its best --top; true: training pictures by their own class's map, test pictures by the predicted one's."""
    top: int = 5
    """Classes whose maps are averaged under --maps top."""
    boxes: str = "fraction-of-max"
    """Rule that makes a box of a map, as in camlucida localize."""
    threshold: float | None = None
    """The rule's threshold, quantile or level; 0.2 of the maximum where nothing is said."""
    margin: float = 0.0
    """Added around own and given boxes, a share of their sides."""
    layer: str | None = None
    """Layer whose average is taken, as in camlucida features extract; by default the map before the head's pooling."""
    scales: tuple[int, ...] = ()
    """Shorter sides that pictures and crops are shown at, averaged; by default the card's."""
    flips: bool = False
    """Average each view with its mirror image."""
    normalise: Literal["l2", "standard", "none"] = "l2"
    """As in camlucida features svm."""
    c: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)
    """Cost of a training picture on the wrong side: one number, or candidates to choose among on a fifth of the training pictures, in each setting."""
    tolerance: float = 0.1
    """Where the solver stops."""
    seed: int = 0
    """Of the draw, the held-out fifth, the solver and the random boxes."""
    corners: Literal["half-open", "inclusive"] | None = None
    """How boxes are written, as in camlucida evaluate."""
    batch: int = 64
    """Pictures a forward pass."""
    workers: int = 2
    """Threads that read pictures."""
    max_pixels: int = 89_478_485
    """As in camlucida localize."""


def run(options: Options, command: Sequence[str]) -> int:
    import sys
    from dataclasses import asdict

    from camlucida import features as library
    from camlucida import specs
    from camlucida.boxes import catalogue
    from camlucida.cli import choices, progress
    from camlucida.errors import UsageError
    from camlucida.images.read import read_picture
    from camlucida.report import features_crops as report
    from camlucida.report.probe_folder import ProbeFolder

    for name in ("batch", "workers", "max_pixels"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')}", got=getattr(options, name), allowed="≥ 1")
    if not options.c or min(options.c) <= 0:
        raise UsageError("--c", got=options.c, allowed="> 0")
    rule = choices.at_threshold(catalogue.rule(options.boxes), options.threshold)
    words_of_rule = specs.describe(rule, catalogue.RULES)
    cropping = library.Cropping(options.maps, options.top, rule, options.margin)
    how = library.Descriptor(options.layer, options.scales, flips=options.flips)
    data = _data(options)
    for note in data.notes:
        print(note, file=sys.stderr)
    net = choices.network(options.network)
    extractor = library.Extractor(net, how)
    split = _split(options, data, extractor)
    train, test = ([data.examples[i] for i in rows] for rows in (split.train, split.test))
    boxed = any(one.boxes for one in (*train, *test))
    if not boxed:
        print("no picture has a box: the setting of given boxes and localization are left out", file=sys.stderr)  # fmt: skip
    folder = ProbeFolder.open(
        options.out, "crops", command, overwrite=options.overwrite, tool="camlucida features"
    )
    c: Any = options.c[0] if len(options.c) == 1 else options.c
    with progress.bar("pictures", (4 if boxed else 3) * (len(train) + len(test))) as bar:
        result = library.fine_grained(
            net, train, test, data.labels, how=how, cropping=cropping, c=c, normalise=options.normalise,
            tolerance=options.tolerance, seed=options.seed, batch=options.batch, workers=options.workers,
            max_pixels=options.max_pixels, heard=bar,
        )  # fmt: skip
    for note in dict.fromkeys(note for one in result.settings.values() for note in one.svm.notes):
        print(note, file=sys.stderr)
    found = report.figures_of_run(result, options.seed)
    folder.table("pictures", report.rows(result))
    folder.table("classes", report.per_class(result))
    grey = net.card.preprocessing.mean_colour

    def shown(row: int) -> Any:
        return read_picture(result.examples[row].source.read(), grey, options.max_pixels)

    links = _links(folder, result, [i for rows in report.chosen(result).values() for i in rows], shown)
    sizes = ", ".join(map(str, extractor.scales))
    facts = [
        ("Network", net.card.name), ("Trained on", net.card.trained_on or "not said"),
        ("Features", f"{extractor.layer.name}, {extractor.width:,} numbers, shorter side {sizes}{', mirrored too' if options.flips else ''}"),
        ("Maps", {"predicted": "of the predicted class", "top": f"mean of the best {options.top} classes", "true": "of the true class in training, of the predicted one in testing"}[options.maps]),
        ("Box rule", words_of_rule), ("Pictures", f"{found['train']:,} train, {found['test']:,} test, {found['classes']} classes"),
        ("Normalised", options.normalise), ("Seed", str(options.seed)),
    ]  # fmt: skip
    page = report.page(result, found, facts, shown, links)
    figures = {**found, "descriptor": asdict(how), "maps": options.maps, "margin": options.margin, "box_rule": words_of_rule, "seed": options.seed}  # fmt: skip
    words = "\n".join([*_lines(found), report.finding(found)])
    return probing.finish(options, folder, page, net, figures, words, result.rejected)


def _lines(found: dict[str, Any]) -> list[str]:
    return [
        f"{name:<15} {one['accuracy']:5.1f} %  ({one['interval'][0]:.1f} … {one['interval'][1]:.1f})  C = {one['c']:g}"
        for name, one in found["settings"].items()
    ]


def _links(folder: Any, result: FineGrained, rows: Sequence[int], shown: Any) -> dict[int, str]:
    from camlucida.images import sources

    names = sources.unique_names([result.examples[i].source for i in rows])
    return {i: folder.picture(name, shown(i)) for i, name in zip(rows, names, strict=True)}


def _data(options: Options) -> DataSet:
    """The pictures of the wanted classes, under a vocabulary of those alone. Raises UsageError for several labels a picture."""
    from dataclasses import replace

    from camlucida.errors import UsageError, nearest
    from camlucida.images import datasets

    data = datasets.load(options.data, options.corners).split(options.split)
    several = next((one for one in data.examples if len(one.labels) != 1), None)
    if several is not None:
        raise UsageError(
            f"{several.source.name}: {len(several.labels)} labels", allowed="one label a picture"
        )
    kept = set(range(len(data.labels)))
    if options.classes:
        kept = set()
        for word in options.classes:
            own = [i for i, one in enumerate(data.labels) if word in (one.id, one.name)]
            if len(own) != 1:
                known = [one.id for one in data.labels] + [one.name for one in data.labels]
                raise UsageError(f"--classes {word}", got=f"{len(own)} classes of that id or name", do=nearest(word, known))  # fmt: skip
            kept |= set(own)
    examples = tuple(one for one in data.examples if one.label in kept)
    labels = [data.labels[i] for i in sorted({one.label for one in examples})]
    if len(labels) < 2:
        raise UsageError("classes to tell apart", got=len(labels), allowed="2 or more with pictures")
    return replace(data, examples=examples).relabelled(labels)


def _split(options: Options, data: DataSet, extractor: Extractor) -> Split:
    """Pictures that train and that judge, before any is described."""
    import numpy as np

    from camlucida import features as library
    from camlucida.errors import UsageError

    blank = library.Features(
        np.zeros((len(data), extractor.width), np.float32), tuple(one.source.name for one in data.examples),
        tuple(one.labels for one in data.examples), data.labels, extractor.blocks, subsets=tuple(one.subsets for one in data.examples),
    )  # fmt: skip
    known, train = sorted({name for row in blank.subsets for name in row}), options.train
    if train.isdigit():
        if options.test != "rest" and not options.test.isdigit():
            raise UsageError(f"--train {train} with --test {options.test}", allowed="a number, or rest")
        most = None if options.test == "rest" else int(options.test)
        return next(library.random_splits(blank, int(train), most, 1, options.seed))
    if train == "auto":
        if "train" not in known or len(known) < 2:
            raise UsageError("--train", got="pictures without published splits train and another", do="--train NUMBER draws so many of each class")  # fmt: skip
        train = "train"
    names = train.split("+")
    tests = [name for name in known if name not in names] if options.test == "rest" else options.test.split("+")  # fmt: skip
    return library.published_split(blank, names, tests)
