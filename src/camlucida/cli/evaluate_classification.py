"""`camlucida evaluate --task classification`: networks or saved predictions → figures, files, a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from camlucida.cli import choices

if TYPE_CHECKING:
    from camlucida.cli.evaluate import Options
    from camlucida.evaluate.predictions import Predictions

OTHER_TASKS = ("method", "boxes", "threshold", "views", "memory", "tune")
LIVE_ONLY = ("network", "protocol", "fuse", "split", "subset", "corners", "limit", "unlabelled")
LABELLED_ONLY = ("split", "subset", "corners")  # options that --unlabelled leaves idle
WORST = 5  # classes and pairs that the terminal names


def run(options: Options, command: Sequence[str]) -> int:
    import json
    import sys
    from pathlib import Path

    from camlucida import report as reports
    from camlucida.errors import UsageError
    from camlucida.evaluate import predictions, scores

    _refuse(options, OTHER_TASKS, "--task classification")
    files = [predictions.is_file(given) for given in options.data]
    if any(files) and not all(files):
        raise UsageError("evaluate", got="saved predictions and other data together", do="give one kind")
    if options.unlabelled and not (options.predictions or options.submission):
        raise UsageError("--unlabelled", got="nothing to write", do="add --predictions FILE or --submission FILE")  # fmt: skip
    if options.synsets and not options.submission:
        raise UsageError("--synsets", got="no --submission to number", do="add --submission FILE, or leave it out")  # fmt: skip
    if options.unlabelled:
        _refuse(options, LABELLED_ONLY, "--unlabelled")
    if options.out:
        reports.writable(options.out)
    for file in filter(None, (options.predictions, options.submission)):
        reports.writable(Path(file).parent)
    if any(files):
        _refuse(options, LIVE_ONLY, "saved predictions")
        found = predictions.fuse([predictions.read(given) for given in options.data])
    else:
        found = _predicted(options)
    for path, why in found.rejected[:20]:
        print(f"rejected {path}: {why}", file=sys.stderr)
    numbers = predictions.read_numbers(options.synsets, found.classes) if options.synsets else None
    if options.predictions:
        predictions.save(found, options.predictions)
    if options.submission:
        Path(options.submission).write_text(predictions.submission(found, numbers), encoding="utf-8")
    if any(found.labels) or not (options.predictions or options.submission):
        split = {} if any(files) else {"split": options.split}
        report: dict[str, Any] = {"command": list(command), **split, **scores.figures(found)}
        print(json.dumps(report)) if options.json else _show(report)
        if options.out:
            from camlucida.report import classification

            classification.save(report, found.rejected, Path(options.out))
    else:
        print(f"{len(found)} pictures without labels, {len(found.rejected)} rejected", file=sys.stderr)
    return 3 if found.rejected else 0


def _refuse(options: Options, names: Sequence[str], where: str) -> None:
    """Raises UsageError for an option that was given and would change nothing."""
    from camlucida.errors import UsageError

    for field in fields(options):
        if field.name in names and getattr(options, field.name) != field.default:
            raise UsageError(f"--{field.name} with {where}", got="an option that changes nothing there", do="leave it out")  # fmt: skip


def _predicted(options: Options) -> Predictions:
    """What the networks say of the data."""
    from camlucida import specs
    from camlucida.cli import evaluate, progress
    from camlucida.errors import UsageError
    from camlucida.evaluate import classify, predictions
    from camlucida.images import sources

    how = classify.protocol(options.protocol or "centre-crop")
    more = [replace(choices.DEFAULT, network=name, device=options.network.device, precision=options.network.precision, download=options.network.download) for name in options.fuse]  # fmt: skip
    nets = [choices.network(one) for one in (options.network, *more)]
    card = nets[0].card
    for other in nets[1:]:
        if (other.card.labels, other.card.activation) != (card.labels, card.activation):
            raise UsageError(f"fusing {card.name} and {other.card.name}", got="other classes", allowed="networks of the same classes in the same order")  # fmt: skip
    if options.unlabelled:
        pictures: Sequence[Any] = evaluate.limited(options, sources.expand(options.data).sources)
        labels, difficult = [()] * len(pictures), [()] * len(pictures)
    else:
        data = evaluate.examples(options, card.labels)
        pictures = [example.source for example in data.examples]
        labels = [example.labels for example in data.examples]
        difficult = [example.difficult_labels for example in data.examples]
    streams = [classify.classify(net, how, pictures, batch=options.batch, workers=options.workers, max_pixels=options.max_pixels) for net in nets]  # fmt: skip
    with progress.bar("pictures", len(pictures)) as bar:

        def counted() -> Iterator[classify.Classified]:
            for one in classify.fused(streams):
                bar(1)
                yield one

        return predictions.collect(
            counted(), labels, card.labels, difficult=difficult, network=" + ".join(net.card.name for net in nets),
            protocol=specs.describe(how, classify.PROTOCOLS), activation=card.activation,
        )  # fmt: skip


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from camlucida.evaluate.scores import NAMES

    console = Console(soft_wrap=True)
    console.print(f"{report['network']} on {report['pictures']} pictures, protocol {report['protocol']}")
    table = Table(box=None, pad_edge=False)
    for column in ("", "percent", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    for key, name in NAMES.items():
        if key in report:
            low, high = report[key]["interval"]
            table.add_row(name, f"{report[key]['percent']:.2f}", f"{low:.2f} … {high:.2f}")
    console.print(table)
    if "brier" in report:
        low, high = report["brier"]["interval"]
        console.print(f"Brier score {report['brier']['score']:.4f} ({low:.4f} … {high:.4f}), mean confidence {report['mean_confidence']:.2f} %")  # fmt: skip
    worst = sorted(report["classes"], key=lambda one: one["percent"])[:WORST]
    console.print("hardest: " + "; ".join(f"{_short(one['name'])} {one['percent']:.1f} %" for one in worst))
    if report.get("confused"):
        pairs = report["confused"][:WORST]
        console.print("most confused: " + "; ".join(f"{_short(p['true'])} taken for {_short(p['predicted'])} ({p['pictures']})" for p in pairs))  # fmt: skip


def _short(name: str) -> str:
    return name.split(",")[0]
