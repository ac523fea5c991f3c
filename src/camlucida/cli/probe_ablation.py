"""What a trained network loses when a unit, or a whole layer, is silenced: which classes fall, on labelled pictures.

  camlucida probe ablation pictures/val --out ablated/                          every unit of the layer before pooling, and every layer
  camlucida probe ablation pictures/val --network alexnet.safetensors --layer features.conv5 --units 0-31,40 --out ablated/
  camlucida probe ablation pictures/val --layer stages.2 --value mean --layers none --limit 500 --out ablated/

The same question with training, as the ZF paper asks it: variants by camlucida train … --remove 3,4 or --widths 6:2048,
and their run folders side by side, the unchanged one among them:

  camlucida probe ablation pictures/val --runs runs/alexnet-twin runs/alexnet-twin-without-3-4 --train pictures/train --out variants/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from camlucida.cli import probing

if TYPE_CHECKING:
    from camlucida.images.datasets import DataSet


@dataclass(frozen=True, kw_only=True)
class Options(probing.Common):
    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = ()
    """Class folders, zips of them, manifests, published data sets, whose labels the network knows. --runs does without: it then reads what each run's log says of its tuning split."""
    layer: str | None = None
    """Layer whose units are silenced; by default the one before pooling. camlucida layers lists them."""
    units: str | None = None
    """Units of it, as 3,7,20-31; by default all."""
    value: Literal["zero", "mean"] = "zero"
    """What a silenced unit gives: nothing, or its mean over all pictures."""
    layers: str = "auto"
    """Layers silenced whole, one at a time, by name with commas between; auto: every one with weights; none: none."""
    runs: tuple[str, ...] = ()
    """Run folders of variants that were trained; nothing is silenced then."""
    train: tuple[str, ...] = ()
    """With --runs: the data they were trained on, for the training error (without what --split of camlucida train kept back); otherwise it is the log's, of augmented crops."""
    split: Literal["all", "train", "tuning"] = "all"
    """tuning: one picture in five by file name; train: the rest."""
    subset: str | None = None
    """Published split to read: train, val, test or what docs/data.md names; without it, all that has labels."""
    limit: int | None = None
    """Only this many pictures of a set, spread evenly over it."""
    shown: int = 24
    """Units on the page; the files have all."""
    batch: int = 64
    """Pictures a forward pass."""
    workers: int = 2
    """Threads that read pictures."""
    memory: str | None = None
    """Most memory that the tensors of one chunk of silenced copies take, as 500MB."""


def run(options: Options, command: Sequence[str]) -> int:
    _check(options)
    return _variants(options, command) if options.runs else _silence(options, command)


def _check(options: Options) -> None:
    """Raises UsageError."""
    from camlucida.errors import UsageError

    probing.positive(options, "limit", "batch", "workers", "shown")
    if not options.data and not options.runs:
        raise UsageError("DATA", got="nothing", do="name labelled pictures, or --runs of trained variants")
    idle = ("layer", "units", "value", "layers", "memory") if options.runs else ("train",)
    for name in idle:
        if getattr(options, name) != getattr(Options, name):
            why = "--runs, where nothing is silenced" if options.runs else "no --runs"
            raise UsageError(f"--{name}", got=why, do="leave it out")


def _silence(options: Options, command: Sequence[str]) -> int:
    from camlucida.cli import choices, progress
    from camlucida.errors import UsageError
    from camlucida.maps import schedule
    from camlucida.probes import ablate_layers, ablate_units
    from camlucida.report import probe_ablation as figures
    from camlucida.report.probe_folder import ProbeFolder
    from camlucida.report.probe_page import Page

    units = probing.numbers(options.units) if options.units is not None else None
    net = choices.network(options.network)
    data = _data(options, options.data, options.split).relabelled(net.card.labels)
    data = replace(data, examples=_limited(data, options.limit))
    if data.multi_label:
        raise UsageError("ablation", got="pictures with several labels", allowed="one class a picture")
    folder = ProbeFolder.open(options.out, "ablation", command, overwrite=options.overwrite)
    ways: dict[str, Any] = {"batch": options.batch, "workers": options.workers}
    whole = None
    with schedule.memory(options.memory):
        with progress.bar("pictures, units", len(data)) as bar:
            found = ablate_units(
                net, data.examples, options.layer, units, value=options.value, done=bar, **ways
            )
        if options.layers != "none":
            names = None if options.layers == "auto" else probing.separate(options.layers)
            with progress.bar("pictures, layers", len(data)) as bar:
                whole = ablate_layers(net, data.examples, names, done=bar, **ways)
    for name, what, one in (("units", "unit", found), ("layers", "layer", whole)):
        if one is not None:
            folder.table(name, figures.rows(one, what))
            folder.arrays(name, figures.arrays(one))
            if by_class := figures.class_rows(one, what):
                folder.table(f"{name}_by_class", by_class)
    words = figures.finding(found, whole)
    facts = [
        ("Network", net.card.name), ("Layer", found.layer), ("Units", f"{len(found.parts):,}"), ("Silenced by", options.value),
        ("Pictures", f"{found.pictures.sum():,}"), ("Classes", str(int((found.pictures > 0).sum()))), ("Top-1", f"{found.before:.1%}"),
    ]  # fmt: skip
    sections = [
        figures.units_section(found, options.shown),
        *([figures.layers_section(whole)] if whole is not None else []),
    ]
    page = Page("What is lost when a part is silenced", words, facts, sections)
    summary = {
        "finding": words, "layer": found.layer, "top1": found.before, "pictures": int(found.pictures.sum()),
        "units": figures.rows(found, "unit"), "layers": figures.rows(whole, "layer") if whole is not None else [],
    }  # fmt: skip
    return probing.finish(options, folder, page, net, summary, words, found.rejected)


def _variants(options: Options, command: Sequence[str]) -> int:
    from pathlib import Path

    from camlucida.cli import progress
    from camlucida.probes import depth, variant
    from camlucida.report import probe_ablation as figures
    from camlucida.report import training
    from camlucida.report.probe_folder import ProbeFolder
    from camlucida.report.probe_page import Page

    logs = [
        training.read(Path(one) / "log.jsonl") if (Path(one) / "log.jsonl").is_file() else training.Log()
        for one in options.runs
    ]
    data, train = (
        _data(options, given, split) if given else None
        for given, split in ((options.data, options.split), (options.train, "all"))
    )
    learnt = [
        None
        if train is None
        else replace(part := train.split(_split(log)), examples=_limited(part, options.limit))
        for log in logs
    ]
    if data is not None:
        data = replace(data, examples=_limited(data, options.limit))
    folder = ProbeFolder.open(options.out, "ablation", command, overwrite=options.overwrite)
    rejected: dict[str, str] = {}
    total = sum(len(one) for one in (*[data] * len(logs), *learnt) if one is not None)
    with progress.bar("pictures", total) as bar:
        found = [
            variant(
                one, data, own, device=options.network.device, batch=options.batch, workers=options.workers, rejected=rejected,
                done=bar,
            )
            for one, own in zip(options.runs, learnt, strict=True)
        ]  # fmt: skip
    logged = [log.epochs[max(log.epochs)] if log.epochs else {} for log in logs]
    rows = figures.variants_table(found, logged)
    folder.table("variants", rows)
    words = figures.variants_finding(depth(found), rows)
    sources = [
        f"Validation: {len(data):,} pictures given, by the centre crop, 95 % intervals (of differences: on the same pictures)."
        if data is not None else "Validation: the tuning split, as each run's log has it.",
        f"Training: those of the given pictures that each was trained on ({len(learnt[0]):,} in the first), by the centre crop."
        if learnt[0] is not None
        else "Training: the last epoch's, as each run's log has it: of augmented crops, with dropout.",
    ]  # fmt: skip
    page = Page(
        "Variants of a network, trained anew", words, [("Runs", str(len(found))), ("Seeds", ", ".join(sorted({str(v.seed) for v in found})))],
        [figures.variants_section(rows, " ".join(sources))],
    )  # fmt: skip
    about = {"finding": words, "variants": rows}
    return probing.finish(options, folder, page, None, about, words, [*rejected.items()])


def _split(log: Any) -> str:
    """The part of its data that a run was trained on, as its command says."""
    words = [part for word in log.commands[0] for part in word.split("=")] if log.commands else []
    return words[words.index("--split") + 1] if "--split" in words else "all"


def _data(options: Options, given: Sequence[str], split: str) -> DataSet:
    """Labelled pictures. Raises UsageError."""
    import sys

    from camlucida.errors import UsageError
    from camlucida.images import datasets

    data = datasets.load(given, subset=options.subset).split(split)
    for note in data.notes:
        print(note, file=sys.stderr)
    if (bare := next((e for e in data.examples if e.label < 0), None)) is not None:
        raise UsageError(
            "ablation", got=f"{bare.source.name} without a class", allowed="pictures with labels"
        )
    return data


def _limited(data: DataSet, limit: int | None) -> tuple[Any, ...]:
    from camlucida.images import datasets

    return datasets.evenly(data.examples, len(data) if limit is None else limit)
