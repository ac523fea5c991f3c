"""Transfer curves: a new softmax on the vectors of a frozen network, from few training pictures a class to many.

camlucida features transfer vectors/ --counts 1 5 15 30 --splits 3 --out curves/

camlucida features transfer vectors/ random/ --test 50 --out curves/      a curve a folder, on the same draws

VECTORS are folders that camlucida features extract wrote of the same pictures: of several networks, of several layers, or of a
network with random weights (extract … --weights none). Each softmax minimises C · Σ −log p(its class) + ½‖W‖² over its
training pictures; all are judged on the same pictures, left over by the largest count. Mean ± standard deviation over the
splits. Needs scikit-learn: pip install 'camlucida[features]'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from camlucida.features import Features


@dataclass(frozen=True, kw_only=True)
class Options:
    features: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="VECTORS")]
    """Folders that camlucida features extract wrote, a curve each."""
    out: str
    """Folder for report.html and the raw numbers; made if it is not there."""
    counts: tuple[int, ...] = (1, 5, 15, 30)
    """Training pictures of each class."""
    test: int | None = None
    """At most so many of each class's rest judge; by default all."""
    splits: int = 3
    """How many times pictures are drawn."""
    seed: int = 0
    """Of the first draw; the n-th takes seed + n."""
    normalise: Literal["l2", "standard", "none"] = "standard"
    """As in camlucida features svm. standard makes networks alike, so that one C serves all."""
    c: float = 0.1
    """Weight of the training pictures against that of small weights."""
    overwrite: bool = False
    """Replace the results of an earlier run in --out."""
    json: bool = False
    """Print the figures as JSON instead of words."""


def run(options: Options, command: Sequence[str]) -> int:
    import json
    import sys

    from camlucida import features as library
    from camlucida.cli import progress
    from camlucida.errors import UsageError
    from camlucida.report import features_transfer as figures
    from camlucida.report.probe_folder import ProbeFolder
    from camlucida.report.probe_page import Page

    if not options.features:
        raise UsageError("VECTORS", got="nothing", allowed="folders that camlucida features extract wrote")
    if not options.counts or min(options.counts) < 1:
        raise UsageError("--counts", got=options.counts, allowed="≥ 1")
    if options.c <= 0:
        raise UsageError("--c", got=options.c, allowed="> 0")
    several = _read(options.features)
    first = next(iter(several.values()))
    next(
        library.random_splits(first, max(options.counts), options.test, options.splits, options.seed)
    )  # refuses before anything is written
    folder = ProbeFolder.open(options.out, "transfer", command, overwrite=options.overwrite, tool="camlucida features")  # fmt: skip
    curves = {}
    with progress.bar("softmaxes", len(several) * options.splits * len(set(options.counts))) as moved:
        for name, vectors in several.items():
            curves[name] = library.transfer(
                vectors, options.counts, options.splits, options.seed, test=options.test, normalise=options.normalise, c=options.c, heard=moved,
            )  # fmt: skip
    for note in dict.fromkeys(note for one in curves.values() for note in one.notes):
        print(note, file=sys.stderr)
    rows = figures.rows(curves)
    folder.table("transfer", rows)
    finding = figures.finding(curves)
    facts = [
        ("Vectors", "; ".join(f"{name}: {', '.join(f'{b.name}, {b.layer}' for b in v.blocks)}" for name, v in several.items())),
        ("Pictures", f"{len(first):,} of {len(first.classes)} classes"), ("Judged on", f"{next(iter(curves.values())).tested[0]:,}"),
        ("Splits", str(options.splits)), ("C", f"{options.c:g}"), ("Normalised", options.normalise), ("Seed", str(options.seed)),
    ]  # fmt: skip
    page = Page("Transfer: training pictures of a new task", finding, facts, figures.sections(curves, rows))
    found: dict[str, Any] = {"curves": rows, "finding": finding}
    folder.save(page, {"figures": found, "vectors": list(options.features)})
    print(json.dumps(found) if options.json else f"{figures.words(rows)}\n{finding}")
    print((folder.folder / "report.html").resolve(), file=sys.stderr if options.json else sys.stdout)
    return 0


def _read(folders: Sequence[str]) -> dict[str, Features]:
    """By the folder's name, by the whole path where two are called the same. Raises UsageError for other pictures or labels."""
    from pathlib import Path

    from camlucida import features as library
    from camlucida.errors import UsageError

    names = [Path(folder).absolute().name for folder in folders]
    if len(set(names)) < len(names):
        names = list(folders)
    if len(set(names)) < len(names):
        raise UsageError("VECTORS", got="a folder twice", allowed="each once")
    found = {name: library.Features.read(folder) for name, folder in zip(names, folders, strict=True)}
    first = found[names[0]]
    for name, one in found.items():
        if (one.paths, one.labels, one.classes) != (first.paths, first.labels, first.classes):
            raise UsageError(f"curves of {names[0]} and {name}", got="other pictures or labels", allowed="vectors of the same pictures", do="extract both from the same data; a picture that one network rejected is in its rejected.csv")  # fmt: skip
    if not first.classes:
        raise UsageError("vectors without labels", do="extract them from labelled pictures")
    return found
