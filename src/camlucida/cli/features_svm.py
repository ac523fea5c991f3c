"""Linear SVMs on features: fitted, judged on held-out pictures, and packed as the head of the network.

  camlucida features svm vectors/ --pack mine.safetensors                      every picture trains; then localize --network mine.safetensors
  camlucida features svm vectors/ --train 30 --test 50 --splits 3              drawn of each class, as for Caltech-101
  camlucida features svm vectors/ --train train+val --test test --out judged/  published splits
  camlucida features svm vgg-d/ vgg-e/ --train 30                              two networks' vectors, side by side

One against the rest, squared hinge (LIBLINEAR); C is chosen on a fifth of the training pictures, then all train again.
One label a picture: mean class recall and accuracy. Several: mean average precision, PASCAL VOC's of 2012 and 2007.
With --pack the SVM of the first split becomes a network: its maps are the SVM's, mean of the map + bias = decision value.
Needs scikit-learn: pip install 'camlucida[features]'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from camlucida.cli import choices

if TYPE_CHECKING:
    from pathlib import Path

    from camlucida.features import Features, Judged, LinearSVM, Split


@dataclass(frozen=True)
class Options:
    features: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="VECTORS")]
    """Folders that camlucida features extract wrote; several of the same pictures are stacked."""
    train: str = "auto"
    """Pictures that train: a number drawn of each class; names of published splits, train+val; all. auto: the published split train where there are others, else all."""
    test: str = "rest"
    """Pictures that judge: with a number in --train at most so many of each class's rest, or rest; else names of published splits, or rest: all others that are named."""
    splits: int = 1
    """How many times pictures are drawn; the figures are mean and standard deviation."""
    seed: int = 0
    """Of the first draw, the held-out fifth and the solver; the n-th draw takes seed + n."""
    normalise: Literal["l2", "standard", "none"] = "l2"
    """l2: each block of columns divided by its norm, and the whole again; standard: mean 0 and deviation 1 over the training pictures; none."""
    c: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)
    """Cost of a training picture on the wrong side: one number, or candidates to choose among."""
    tolerance: float = 0.1
    """Where the solver stops."""
    annotations: str | None = None
    """Manifest (path, label or labels) for vectors of pictures without labels, or instead of theirs."""
    svm: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Fit nothing: judge this svm.safetensors on all vectors, or on those of --test."""
    pack: Annotated[str | None, tyro.conf.arg(metavar="FILE.safetensors")] = None
    """Write the SVM as a network that camlucida localize and all others take."""
    name: str | None = None
    """What the packed network is called; by default as the file."""
    network: choices.Chosen = choices.DEFAULT
    out: str | None = None
    """Folder for svm.json (all figures), classes.csv and svm.safetensors (the SVM of the first split)."""
    overwrite: bool = False
    """Replace the file of --pack and the files in --out."""
    json: bool = False
    """Print the figures as JSON."""


def run(options: Options, command: Sequence[str]) -> int:
    import json
    import sys
    from dataclasses import replace
    from pathlib import Path

    from camlucida import features as library
    from camlucida.cli import progress
    from camlucida.errors import UsageError

    for given in (options.pack, options.out and f"{options.out}/svm.json"):
        if given and Path(given).exists() and not options.overwrite:
            raise UsageError(f"{given} is there already", do="--overwrite replaces it, or name another")
    if options.pack and Path(options.pack).suffix != ".safetensors":
        raise UsageError(f"--pack {options.pack}", allowed="a file name that ends with .safetensors")
    if not options.c or min(options.c) <= 0:
        raise UsageError("--c", got=options.c, allowed="> 0")
    if not options.features:
        raise UsageError("VECTORS", got="nothing", allowed="folders that camlucida features extract wrote")
    vectors = library.stacked([library.Features.read(folder) for folder in options.features])
    if options.annotations:
        vectors = _labelled(vectors, Path(options.annotations))
    if not vectors.classes:
        raise UsageError("features without labels", do="--annotations MANIFEST gives them")
    if options.svm:
        judged = [_judge_only(options, vectors)]
    else:
        splits = _splits(options, vectors)
        judged = []
        with progress.bar("splits", len(splits)) as bar:
            for split in splits:
                c: Any = options.c[0] if len(options.c) == 1 else options.c
                judged.append(library.judge(vectors, split, c=c, seed=options.seed if split.seed is None else split.seed, normalise=options.normalise, tolerance=options.tolerance))  # fmt: skip
                bar(1)
    figures = _figures(options, vectors, judged, command)
    for note in dict.fromkeys(note for one in judged for note in one.svm.notes):
        print(note, file=sys.stderr)
    first = judged[0].svm
    if not options.svm:
        about = {"command": " ".join(command), "data": (vectors.about or {}).get("data"), "train": len(judged[0].split.train), "figures": judged[0].figures}  # fmt: skip
        first = replace(first, about=about)
    if options.out:
        _write(Path(options.out), figures, vectors, judged, first)
    if not options.json:
        _show(figures)
    if options.pack:
        _pack(options, vectors, first, judged[0], figures, command)
    if options.json:
        print(json.dumps(figures))
    return 0


def _splits(options: Options, vectors: Features) -> list[Split]:
    import numpy as np

    from camlucida import features as library
    from camlucida.errors import UsageError

    known = sorted({name for row in vectors.subsets for name in row})
    train, everything = options.train, np.arange(len(vectors))
    if train == "auto":
        train = "train" if "train" in known and len(known) > 1 else "all"
    if train.isdigit():
        if options.test != "rest" and not options.test.isdigit():
            raise UsageError(f"--train {train} with --test {options.test}", allowed="a number, or rest")
        most = None if options.test == "rest" else int(options.test)
        return list(library.random_splits(vectors, int(train), most, options.splits, options.seed))
    if options.splits != 1:
        raise UsageError(f"--splits {options.splits}", got=f"--train {train}", allowed="--train NUMBER, drawn at random")  # fmt: skip
    if train == "all":
        if options.test != "rest":
            raise UsageError(f"--test {options.test} with --train all", got="no picture is left", do="--train says which train")  # fmt: skip
        return [library.Split(everything, everything[:0])]
    names = train.split("+")
    tests = [name for name in known if name not in names] if options.test == "rest" else options.test.split("+")  # fmt: skip
    if not tests and set(names) <= set(known):
        raise UsageError(f"--train {train}", got="no other published split", allowed=", ".join(known) or "none", do="--train NUMBER, or all")  # fmt: skip
    return [library.published_split(vectors, names, tests)]


def _judge_only(options: Options, vectors: Features) -> Judged:
    import numpy as np

    from camlucida import features as library
    from camlucida.errors import UsageError

    found = library.LinearSVM.read(options.svm or "")
    rows = np.arange(len(vectors))
    if options.test != "rest":
        names = set(options.test.split("+"))
        rows = np.array([i for i, row in enumerate(vectors.subsets) if names & set(row)], np.int64)
    if not len(rows):
        raise UsageError(f"--test {options.test}", got="no picture")
    if [one.id for one in found.classes] != [one.id for one in vectors.classes]:
        raise UsageError(f"{options.svm} knows other classes", got=f"{len(vectors.classes)} classes: {vectors.classes[0].id} …", allowed=f"{len(found.classes)}: {found.classes[0].id} …")  # fmt: skip
    figures, per_class = library.figures_of(found.decide(vectors)[rows], library.svm.truth(vectors, rows))
    return library.Judged(library.Split(rows[:0], rows), found, figures, per_class, {})


def _labelled(vectors: Features, file: Path) -> Features:
    """The vectors under a manifest's labels, matched by path as listed or as the manifest's folder has it. Raises
    UsageError where one names pictures that the other does not."""
    from dataclasses import replace
    from pathlib import Path as Local

    from camlucida.errors import UsageError
    from camlucida.images import datasets

    data = datasets.load([file])
    given: dict[str, Any] = {}
    for one in data.examples:
        given |= dict.fromkeys(
            (one.source.name, one.source.relative, str(Local(one.source.file).resolve())), one
        )
    matched = [given.get(path) or given.get(str(Local(path).resolve())) for path in vectors.paths]
    without = [path for path, one in zip(vectors.paths, matched, strict=True) if one is None]
    used = {one.source.name for one in matched if one is not None}
    unseen = [one.source.name for one in data.examples if one.source.name not in used]
    for names, what in ((without, "pictures of the vectors have no label in"), (unseen, "labelled pictures have no vector in")):  # fmt: skip
        if names:
            where = file if names is without else "the vectors for"
            raise UsageError(f"--annotations {file}", got=f"{len(names)} {what} {where if names is without else ''} ({', '.join(names[:3])}{' …' if len(names) > 3 else ''})".replace(" in  (", " ("), allowed="the same pictures in both", do="mend the manifest, or extract again from it")  # fmt: skip
    kept = [one for one in matched if one is not None]
    return replace(
        vectors, labels=tuple(one.labels for one in kept), classes=data.labels, difficult=tuple(one.difficult_labels for one in kept),
        subsets=tuple(one.subsets or before for one, before in zip(kept, vectors.subsets, strict=True)),
    )  # fmt: skip


def _figures(
    options: Options, vectors: Features, judged: Sequence[Judged], command: Sequence[str]
) -> dict[str, Any]:
    from dataclasses import asdict

    from camlucida import features as library

    def percent(value: float) -> float:
        return round(100 * value, 2)

    figures = {
        name: {"mean": percent(mean), "std": percent(std)} for name, (mean, std) in library.summary(judged).items()
    }  # fmt: skip
    each = [
        {
            "seed": one.split.seed, "train": len(one.split.train), "test": len(one.split.test), "c": one.svm.c,
            "held_out": {f"{c:g}": percent(value) for c, value in one.tried.items()},
            "figures": {name: percent(value) for name, value in one.figures.items()},
        }
        for one in judged
    ]  # fmt: skip
    return {
        "command": list(command), "pictures": len(vectors), "width": int(vectors.values.shape[1]), "classes": len(vectors.classes),
        "blocks": [asdict(block) for block in vectors.blocks], "normalise": judged[0].svm.normalise, "tolerance": options.tolerance,
        "figures": figures, "splits": each,
    }  # fmt: skip


def _write(
    out: Path, figures: dict[str, Any], vectors: Features, judged: Sequence[Judged], svm: LinearSVM
) -> None:
    import csv
    import json

    import numpy as np

    out.mkdir(parents=True, exist_ok=True)
    (out / "svm.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    every = np.stack([one.per_class for one in judged])
    with (out / "classes.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        name = next(iter(figures["figures"]), "not judged")
        writer.writerow(
            ["class_id", "class_name", *(f"{name}, split {i}" for i in range(1, len(judged) + 1))]
        )
        for k, label in enumerate(vectors.classes):
            writer.writerow([label.id, label.name, *("" if np.isnan(v) else f"{v:.4f}" for v in every[:, k])])
    svm.save(out / "svm.safetensors")


def _show(figures: dict[str, Any]) -> None:
    for one in figures["splits"]:
        tried = ", ".join(f"C {c}: {value:g} %" for c, value in one["held_out"].items())
        chosen = f"; on the fifth held out {tried}" if tried else ""
        print(f"{one['train']:,} train, {one['test']:,} test, {figures['classes']} classes, C = {one['c']:g}{chosen}")  # fmt: skip
    for name, value in figures["figures"].items():
        spread = f" ± {value['std']:.2f}" if len(figures["splits"]) > 1 else ""
        print(f"{name} {value['mean']:.2f}{spread} %")
    if not figures["figures"]:
        print("no picture is left to judge it: --train NUMBER keeps some back")


def _pack(options: Options, vectors: Features, svm: LinearSVM, first: Judged, figures: dict[str, Any], command: Sequence[str]) -> None:  # fmt: skip
    """Writes the network, after it was rebuilt from the file and gave the same decision values."""
    import os
    import sys
    from dataclasses import replace
    from pathlib import Path

    import torch

    from camlucida import features as library
    from camlucida.errors import NetworkError, UsageError
    from camlucida.networks import cards, catalogue

    if options.network != choices.DEFAULT:
        asked = options.network
    elif vectors.about and "network" in vectors.about:
        stored: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in vectors.about["network"].items()
        }
        asked = choices.NetworkOptions(**stored)
    elif len(vectors.blocks) == 1:
        raise UsageError("--pack", got="vectors that do not say their network", do="--network names it")
    else:
        asked = choices.DEFAULT  # several: refused below, in words
    net = choices.network(replace(asked, device="cpu", precision="32-true"))
    out = Path(options.pack or "")
    measured = {}
    if first.figures:
        measured = {"figures": figures["splits"][0]["figures"], "pictures": len(first.split.test)}
    head = f"head: {svm.about.get('train', 'unknown')} pictures of {len(vectors.classes)} classes"
    trained_on = f"{net.card.trained_on}; {head}" if net.card.trained_on else head
    made = library.packed(net, svm, name=options.name or out.stem, trained_by=" ".join(command), trained_on=trained_on)  # fmt: skip
    temporary = out.with_name(f".{out.stem}.{os.getpid()}.safetensors")
    try:
        card = cards.pack(temporary, made.module.state_dict(), replace(made.card, measured=measured))
        module, card = catalogue.rebuild(temporary, card)
        side = max(card.preprocessing.crop or card.preprocessing.size, card.preprocessing.minimum)
        noise = torch.randn(
            1, len(card.preprocessing.channels), side, side, generator=torch.Generator().manual_seed(0)
        )
        expected, found = made(noise), catalogue.wrap(module, card=card)(noise)
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-6):
            raise NetworkError(f"{net.card.name} cannot be packed: loaded anew it gives other decision values", do="its function must build the same network every time")  # fmt: skip
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    where = sys.stderr if options.json else sys.stdout
    print(
        f"packed: {out}; maps and boxes: camlucida localize PHOTOS --network {out} --out FOLDER", file=where
    )
