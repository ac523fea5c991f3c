"""`camlucida evaluate --task localization`: a network, or the maps of another tool → figures, curve, page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from camlucida.cli import choices

if TYPE_CHECKING:
    from camlucida.boxes.from_map import Rule
    from camlucida.cli.evaluate import Options
    from camlucida.evaluate.tally import Tally
    from camlucida.images.datasets import DataSet
    from camlucida.networks.network import Network
    from camlucida.pipeline import Plan

OTHER_TASKS = ("protocol", "fuse", "predictions", "submission", "synsets", "unlabelled", "tune")
NO_NETWORK = (
    "network",
    "method",
    "views",
    "top",
    "batch",
    "memory",
    "save_maps",
)  # options that --maps leaves idle
ON_THIS_SET = "chosen on this very set: an upper bound"


def run(options: Options, command: Sequence[str]) -> int:
    import json
    import sys
    from pathlib import Path

    from camlucida import report as reports
    from camlucida.boxes import FractionOfMax
    from camlucida.errors import UsageError
    from camlucida.evaluate import tally as tallies

    _check(options)
    for folder in filter(None, (options.out, options.save_maps)):
        reports.writable(folder)
    plan, data, rule, origin = _of_maps(options) if options.maps else _of_network(options)
    if options.maps or options.save_maps:
        _one_map_each(options, data)
    if options.oracle_threshold:
        if not isinstance(rule, FractionOfMax):
            raise UsageError("--oracle-threshold", got=f"--boxes {options.boxes}", allowed="fraction-of-max")
        curve = _judged(options, plan, data, rule, alone=True).curve(tallies.NETWORK)
        if curve:
            best = max(range(len(tallies.CURVE)), key=lambda i: curve["percent"][i])
            rule = replace(rule, threshold=float(tallies.CURVE[best]))
        origin = ON_THIS_SET
        plan = replace(plan, rule=rule) if plan is not None else None
    tally = _judged(options, plan, data, rule)
    if not tally.cases:
        why = f"; the first: {tally.rejected[0][1]}" if tally.rejected else ""
        raise UsageError(
            "evaluate", got=f"no picture that could be used, {len(tally.rejected)} rejected{why}"
        )
    report = {
        "task": "localization", "command": list(command), "data": list(options.data), "split": options.split, "seed": options.seed,
        **_who(plan, rule, options, tally.method), **tallies.report(tally, origin, options.oracle_threshold),
    }  # fmt: skip
    for path, why in tally.rejected[:20]:
        print(f"rejected {path}: {why}", file=sys.stderr)
    print(json.dumps(report)) if options.json else _show(report)
    if options.out:
        from camlucida.report import localization, localization_pictures

        bad = {path for path, _ in tally.rejected}
        shown = localization_pictures.pictures(
            plan, data, options.figures, options.maps, rule, bad, options.iou
        )
        localization.save(report, tally, shown, Path(options.out))
        page = str((Path(options.out) / localization.PAGE).resolve())
        print(page, file=sys.stderr if options.json else sys.stdout)
    return 3 if tally.rejected else 0


def _check(options: Options) -> None:
    from camlucida.cli.evaluate import Options as Known
    from camlucida.errors import UsageError

    defaults = {field.name: field.default for field in fields(Known)}
    idle = [("--task localization", OTHER_TASKS)] + ([("--maps", NO_NETWORK)] if options.maps else [])
    for what, names in idle:
        for name in names:
            if getattr(options, name) != defaults[name]:
                raise UsageError(f"{what} with --{name.replace('_', '-')}", do="leave one of them out")
    if options.oracle_threshold and options.threshold is not None:
        raise UsageError("--oracle-threshold with --threshold", do="leave one of them out")
    if not 0 < options.iou <= 1:
        raise UsageError("--iou", got=options.iou, allowed="above 0, at most 1")
    for name, low in (("top", 1), ("figures", 0), ("batch", 1), ("workers", 1), ("seed", 0)):
        if getattr(options, name) < low:
            raise UsageError(f"--{name}", got=getattr(options, name), allowed=f"≥ {low}")


def _of_network(options: Options) -> tuple[Plan, DataSet, Rule, str]:
    """The plan, the data under the network's labels, the rule and where its threshold comes from."""
    from camlucida import pipeline
    from camlucida.boxes import TightLoose
    from camlucida.cli import evaluate

    net = choices.network(options.network)
    data = _blacklisted(options, evaluate.examples(options, net.card.labels))
    plan = pipeline.plan(
        net, top=options.top, method=options.method, boxes=options.boxes, views=options.views
    )
    rule = choices.at_threshold(plan.rule, options.threshold)
    top = max(plan.top, 3) if isinstance(rule, TightLoose) else plan.top
    plan = replace(plan, rule=rule, top=top, max_pixels=options.max_pixels)
    return plan, data, rule, _origin(options, rule, net)


def _of_maps(options: Options) -> tuple[None, DataSet, Rule, str]:
    from camlucida.boxes import FractionOfMax, rule
    from camlucida.cli import evaluate

    # Without a network the data's own vocabulary will do.
    data = _blacklisted(options, evaluate.examples(options, None))
    found = FractionOfMax() if options.boxes == "auto" else rule(options.boxes)
    found = choices.at_threshold(found, options.threshold)
    return None, data, found, _origin(options, found, None)


def _origin(options: Options, rule: Rule, net: Network | None) -> str:
    """Where the rule's threshold comes from."""
    if options.threshold is not None or options.boxes != "auto":
        given = "threshold" in options.boxes or options.threshold is not None
        if rule.level is None:
            return "the rule has no single threshold"
        return "given on the command line" if given else "the rule's default, chosen on no data"
    if net is None:
        return "the rule's default, chosen on no data"
    chosen = net.card.localization.chosen_on
    if not chosen:
        return "the rule's default, chosen on no data"
    same = options.split == "tuning" and chosen.startswith("tuning split")
    return f"chosen on the {chosen}" + (
        "; this run judges a tuning split: if the same, an upper bound" if same else ""
    )


def _one_map_each(options: Options, data: DataSet) -> None:
    """A folder of maps holds one for each path. UsageError where pictures or labels would share one."""
    from camlucida import protocols
    from camlucida.errors import UsageError

    known: set[str] = set()
    for one in protocols.one_label_each(data):
        if one.source.relative in known:
            raise UsageError(
                "--maps" if options.maps else "--save-maps", got=f"{one.source.relative} twice",
                allowed="one label a picture, and paths that differ: a map for each", do="split the data",
            )  # fmt: skip
        known.add(one.source.relative)


def _blacklisted(options: Options, data: DataSet) -> DataSet:
    if not options.blacklist:
        return data
    import sys

    from camlucida.errors import InputError, UsageError
    from camlucida.evaluate import ilsvrc

    try:
        entries = ilsvrc.read_blacklist(options.blacklist)
    except InputError as error:  # it is no picture that could be left out
        raise UsageError(f"--{error}") from error
    marked = tuple(
        replace(e, blacklisted=e.blacklisted or ilsvrc.on_blacklist(e.source.relative, entries))
        for e in data.examples
    )
    if not any(e.blacklisted for e in marked):
        print(f"the blacklist {options.blacklist} names none of the {len(data)} pictures", file=sys.stderr)
    return replace(data, examples=marked)


def _judged(options: Options, plan: Plan | None, data: DataSet, rule: Rule, alone: bool = False) -> Tally:
    """Every picture judged; `alone`: without the random head, to choose a threshold."""
    from camlucida import protocols
    from camlucida.cli import progress
    from camlucida.errors import UnsupportedError
    from camlucida.evaluate.judge import Protocol
    from camlucida.evaluate.tally import Tally
    from camlucida.networks.randomise import randomised_head

    protocol = Protocol(rule, options.iou, options.top, options.convention, data.multi_label)
    tally = Tally(protocol, options.seed)
    if plan is None:
        steps = protocols.judge_maps(
            options.maps or "", data, tally, workers=options.workers, max_pixels=options.max_pixels
        )
    else:
        try:
            rival = replace(plan, network=randomised_head(plan.network, options.seed))
        except UnsupportedError as error:
            rival, tally.notes = None, (f"no randomised head beside it: {error}",)
        steps = protocols.judge(
            plan, data, tally, rival=None if alone else rival, maps_to=None if alone else options.save_maps,
            batch=options.batch, workers=options.workers,
        )  # fmt: skip
    if any(len(e.labels) > 1 and e.masks for e in data.examples):
        tally.notes += ("masks of pictures with several labels are left out: they do not say whose they are",)
    total = len(protocols.one_label_each(data))
    with choices.perturbing(options.memory), progress.bar("pictures", total) as bar:
        for count in steps:
            bar(count)
    return tally


def _who(plan: Plan | None, rule: Rule, options: Options, method: str) -> dict[str, Any]:
    from camlucida import specs
    from camlucida.boxes import RULES

    named = {"rule": specs.describe(rule, RULES)}
    if plan is None:
        return {"maps": options.maps, "network": None, "method": "maps of another tool", **named}
    card = plan.network.card
    return {
        "network": card.name, "sha256": card.sha256, "size": card.preprocessing.size, "method": method or plan.method_name,
        "views": str(plan.views), **named,
    }  # fmt: skip


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console

    from camlucida.report import localization

    console = Console(soft_wrap=True, highlight=False)
    who = report["network"] or f"maps in {report['maps']}"
    console.print(
        f"{who} on {localization.counted_words(report)} (split {report['split']}), {report['method']}, {report['rule']}"
    )
    console.print(f"threshold {localization.threshold_words(report)}")
    if "figures" not in report:
        console.print("no picture has boxes or masks: nothing to say of localization")
        return
    for heading, rows in localization.tables(report):
        console.print(_table(heading, rows))
    if "curve" not in report:
        console.print("no picture has boxes: masks alone were judged")
        return
    best = report["curve"]["best_on_these_pictures"]
    console.print(
        f"best of the curve: {best['percent']:.2f} at {best['threshold']:g} (chosen on this very set: an upper bound)"
    )


def _table(heading: str, rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(
        box=None,
        pad_edge=False,
        collapse_padding=True,
        title=heading,
        title_justify="left",
        title_style="italic",
    )
    table.add_column("percent", no_wrap=True)
    for name in rows[0]["cells"]:
        table.add_column(name, justify="right", overflow="fold")
        if name == next(iter(rows[0]["cells"])):
            table.add_column("95 % interval", justify="right", no_wrap=True)
    for row in rows:
        first, *others = row["cells"].values()
        table.add_row(
            row["name"], first["percent"], first["interval"].split(" at ")[0], *(o["percent"] for o in others)
        )
    return table
