"""`camlucida evaluate --task faithfulness`: methods side by side on labelled or unlabelled pictures → figures, rows, page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from camlucida.cli import choices

if TYPE_CHECKING:
    from camlucida.cli.evaluate import Options
    from camlucida.images.sources import Source
    from camlucida.maps.catalogue import Method
    from camlucida.networks.network import Network

OTHER_TASKS = (
    "protocol", "fuse", "predictions", "submission", "synsets", "tune", "boxes", "threshold", "views", "top",
)  # fmt: skip
WIDTH = 120  # of the terminal's table at least: narrower, its numbers would break
LABELLED_ONLY = ("split", "subset", "corners")  # options that --unlabelled leaves idle


def run(options: Options, command: Sequence[str]) -> int:
    import json
    import sys
    from pathlib import Path

    from camlucida import report as reports
    from camlucida.errors import UsageError
    from camlucida.evaluate import faithfulness
    from camlucida.evaluate.faithfulness.measure import Account
    from camlucida.report import faithfulness as pages

    groups = _check(options)
    if options.out:
        reports.writable(options.out)
    net = choices.network(options.network)
    permuted = _permuted(options, net)
    pictures = _pictures(options, net)
    methods = _methods(options, net)
    explainers = {name: faithfulness.explainer(one) for name, one in methods.items()}
    explainers |= {name: make(options.seed) for name, make in faithfulness.BASELINES.items()}
    about = {
        "network": net.card.name, "sha256": net.card.sha256, "size": net.card.preprocessing.size, "methods": [*methods],
        "metrics": list(groups), "step": options.step, "sanity_layers": options.sanity_layers, "seed": options.seed,
        "permuted_network": permuted.card.sha256 if permuted is not None else None,
    }  # fmt: skip
    account = Account()
    parts = pages.Parts(
        Path(options.out) if options.out else None, about | {"batch": options.batch}, [one.name for one in pictures],
        account, options.resume,
    )  # fmt: skip
    _run(options, net, explainers, pictures, parts, account, groups, permuted)
    rows = [row for row in parts.rows if row.method not in account.failed]
    if not any(row.method in methods for row in rows):
        bad = [f"{name}: {why}" for name, why in account.failed.items()] + [why for _, why in parts.rejected]
        raise UsageError(
            "evaluate", got=f"no figure, {len(parts.rejected)} of {len(pictures)} pictures rejected; {bad[0] if bad else ''}"
        )  # fmt: skip
    report = {
        "task": "faithfulness", "command": list(command), "data": list(options.data), "split": options.split, **about,
        "rejected": len(parts.rejected), "failed": account.failed, "layers": account.layers, "baselines": [*faithfulness.BASELINES],
        "cost": pages.cost(account, [*methods]), **faithfulness.figures(rows, options.seed),
    }  # fmt: skip
    for path, why in parts.rejected[:20]:
        print(f"rejected {path}: {why}", file=sys.stderr)
    for name, why in account.failed.items():
        print(f"left out {name}: {why}", file=sys.stderr)
    print(json.dumps(report)) if options.json else _show(report)
    if options.out:
        shown = {name: one for name, one in explainers.items() if name not in account.failed}
        refused = {path for path, _ in parts.rejected}
        seen = [one for one in pictures if one.name not in refused]
        panels = pages.pictures(
            net, shown, report["ranking"], seen, options.figures, max_pixels=options.max_pixels
        )
        pages.save(report, rows, pictures, net.card, parts.rejected, panels, Path(options.out))
        page = str((Path(options.out) / pages.PAGE).resolve())
        print(page, file=sys.stderr if options.json else sys.stdout)
    return 3 if parts.rejected else 0


def _check(options: Options) -> tuple[str, ...]:
    """The groups of metrics. Raises UsageError for options that do not go together."""
    from camlucida.errors import UsageError
    from camlucida.evaluate import faithfulness
    from camlucida.evaluate.faithfulness.measure import GROUPS, groups_of

    for names, what in ((OTHER_TASKS, "--task faithfulness"), (LABELLED_ONLY if options.unlabelled else (), "--unlabelled")):  # fmt: skip
        for one in fields(options):
            if one.name in names and getattr(options, one.name) != one.default:
                raise UsageError(f"{what} with --{one.name.replace('_', '-')}", do="leave one of them out")
    for name, low in (("figures", 0), ("batch", 1), ("workers", 1), ("seed", 0), ("sanity_layers", 1)):
        if getattr(options, name) < low:
            raise UsageError(f"--{name.replace('_', '-')}", got=getattr(options, name), allowed=f"≥ {low}")
    if not 0 < options.step <= faithfulness.perturbation.SIDE**2:
        raise UsageError("--step", got=options.step, allowed="above 0, at most 50176, the whole of 224 × 224")
    if options.resume and not options.out:
        raise UsageError("--resume", got="no --out", do="name the folder of the run that was stopped")
    groups = groups_of(options.metrics.split(",")) if options.metrics else GROUPS
    if options.permuted_network and "labels" not in groups:
        raise UsageError(
            "--permuted-network", got=f"--metrics {options.metrics}", do="add labels to --metrics"
        )
    if options.permuted_network is None:
        if options.metrics and "labels" in groups:
            raise UsageError("--metrics labels", got="no --permuted-network", do="camlucida train … --shuffle-labels 1 makes one")  # fmt: skip
        groups = tuple(group for group in groups if group != "labels")
    return groups


def _permuted(options: Options, net: Network) -> Network | None:
    from camlucida.errors import UsageError

    if options.permuted_network is None:
        return None
    given = options.network
    other = choices.network(
        replace(choices.DEFAULT, network=options.permuted_network, device=given.device, precision=given.precision)
    )  # fmt: skip
    if other.card.labels != net.card.labels:
        raise UsageError(
            f"--permuted-network {options.permuted_network}", got="other classes",
            allowed=f"those of {net.card.name} in the same order",
        )  # fmt: skip
    return other


def _pictures(options: Options, net: Network) -> Sequence[Source]:
    from camlucida.cli import evaluate
    from camlucida.errors import UsageError
    from camlucida.images import sources

    if not options.unlabelled:
        return [example.source for example in evaluate.examples(options, net.card.labels).examples]
    found = evaluate.limited(options, sources.expand(options.data).sources)
    if not found:
        raise UsageError("evaluate", got=f"no picture in {', '.join(options.data)}")
    return found


def _methods(options: Options, net: Network) -> dict[str, Method]:
    """The methods by their specs. Raises UsageError for one that is not known, or is there twice."""
    from camlucida import maps, specs
    from camlucida.errors import UsageError

    asked = [*maps.METHODS] if options.method == "all" else separate(options.method)
    found: dict[str, Method] = {}
    for spec in asked:
        tuned = net.card.localization.method if spec == "auto" else spec
        one = _by_head(net) if tuned == "auto" else maps.method(tuned)
        name = specs.describe(one, maps.METHODS)
        if name in found:
            raise UsageError("--method", got=f"{name} twice", allowed="each once")
        found[name] = one
    if not found:
        raise UsageError("--method", got=repr(options.method), do="name one or more, separated by commas")
    return found


def _by_head(net: Network) -> Method:
    """What `auto` means to a network that was not tuned to a method."""
    import torch

    from camlucida.maps.catalogue import for_network
    from camlucida.values import Batch

    shape = net.card.preprocessing
    side = max(shape.crop or shape.size, shape.minimum)
    return for_network(net, Batch.of(torch.zeros(1, len(shape.channels), side, side)))


def separate(methods: str) -> list[str]:
    """Specs out of a list separated by commas, which also stand between the options of one: `cam,occlusion:patch=16,stride=4`
    are two."""
    found: list[str] = []
    for piece in (one.strip() for one in methods.split(",")):
        if "=" in piece and ":" not in piece and found:
            found[-1] += f",{piece}"
        elif piece:
            found.append(piece)
    return found


def _run(
    options: Options, net: Network, explainers: Any, pictures: Sequence[Source], parts: Any, account: Any, groups: Any,
    permuted: Network | None,
) -> None:  # fmt: skip
    from camlucida.cli import progress
    from camlucida.evaluate import faithfulness

    with progress.bar("pictures", len(pictures)) as bar:
        bar(parts.pictures)
        for part in faithfulness.measure_pictures(
            net, explainers, pictures, start=parts.pictures, batch=options.batch, workers=options.workers,
            max_pixels=options.max_pixels, account=account, metrics=groups, step=options.step,
            layers=options.sanity_layers, permuted=permuted, seed=options.seed,
        ):  # fmt: skip
            parts.add(part)
            bar(part.pictures)


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from camlucida.report import faithfulness as pages

    console = Console(soft_wrap=True, highlight=False)
    console = Console(soft_wrap=True, highlight=False, width=max(console.width, WIDTH))
    console.print(
        f"{report['network']} on {report['pictures']} pictures (split {report['split']}), shown at {report['size']}"
    )
    columns, rows = pages.ranking(report)
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column["title"].split(",")[0] + column["arrow"], justify="right", overflow="fold")
    for row in rows:
        table.add_row(row["name"], *(cell["value"] + cell["mark"] for cell in row["cells"]))
    console.print(table)
    console.print(
        "↑ higher is better, ↓ lower, → 0 nearer to 0; * not better than a random map on these pictures (95 %)"
    )
