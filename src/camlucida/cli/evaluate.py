"""Judge a network on labelled pictures.

DATA are zips or folders of class folders with boxes.csv, manifests with labels and boxes, or data sets as published
(docs/data.md). Every figure comes with a 95 % interval.

  camlucida evaluate pictures/val                                        the summary, of the network in the package
  camlucida evaluate pictures/val --network mine.safetensors --protocol dense --out judged-classes/
  camlucida evaluate pictures/val --network mine.safetensors --task localization --out judged-boxes/
  camlucida evaluate pictures/train --network mine.safetensors --split tuning --tune mine.safetensors

--task summary (what is done where nothing is said): top-1, top-5, and ground-truth-known localization over the threshold
curve, constant boxes beside it.

--task classification, or --protocol NAME: which views of a picture are shown, and how what is said of them is put
together. The figures: top-1, top-5, per class, confusion, calibration; for sigmoid networks average precision per class.
  centre-crop  the network's own view
  ten-crop     corners and centre, mirrored
  dense        the whole picture at shorter side Q, mirrored, the network run as a convolution (scales=, flips=, pool=)
  multi-crop   5 × 5 crops × 2 mirrored at three Q (scales=, grid=)
  together     the mean of dense and multi-crop

scales=single is the card's size S; scales=multiple is S − 32, S, S + 32 (for crops of 224; in proportion for others);
scales=256/384/512 are your own. pool=logit averages scores over places, pool=probability posteriors.

--task localization: every localization protocol at once: ILSVRC error@1 and @5, Top-1 and Top-5 localization,
ground-truth-known, CorLoc, pointing game, energy, MaxBoxAcc, MaxBoxAccV2, PxAP where there are masks; the whole
accuracy–threshold curve; and beside them the whole picture, the best centred box, a Gaussian, a random head.

--task faithfulness: may a map be believed? Methods side by side (--method cam,grad-cam,saliency; all: every one), a random
map, a centre Gaussian and an edge detector beside them: deletion, insertion, average drop, ADCC, ROAD, agreement with
occlusion, sanity checks. Pictures need no boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import tyro

from camlucida.cli import choices

LOCALIZATION = (
    "iou",
    "top",
    "oracle_threshold",
    "convention",
    "maps",
    "save_maps",
    "blacklist",
)
FAITHFULNESS = ("metrics", "step", "sanity_layers", "permuted_network", "resume")
SHARED = ("figures", "seed")  # options of both


@dataclass(frozen=True)
class Options:
    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Zips or folders of class folders, manifests, published data sets; or saved predictions."""
    network: choices.Chosen = choices.DEFAULT
    task: Literal["summary", "classification", "localization", "faithfulness"] = "summary"
    """What is judged. --protocol, --fuse, --predictions, --submission and saved predictions as DATA mean classification."""
    protocol: str | None = None
    """Classification: centre-crop (where nothing is said), ten-crop, dense, multi-crop or together, with options such as dense:scales=224/256/288,pool=probability."""
    fuse: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NETWORKS")] = ()
    """Classification: more networks of the same classes; the mean of all posteriors is judged. Several files of saved predictions as DATA are fused in the same way."""
    predictions: Annotated[str | None, tyro.conf.arg(metavar="FILE.parquet")] = None
    """Classification: save what is said of each picture; the file is DATA of a later run."""
    submission: Annotated[str | None, tyro.conf.arg(metavar="FILE.txt")] = None
    """Classification: an ILSVRC submission: a line a picture, sorted by file name, five class numbers, best first; zeros for a rejected picture."""
    synsets: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """The devkit's number of each class for --submission, a WordNet id and a number a line (its map_clsloc.txt). Without it, a class's number is its place among the network's classes, from 1."""
    unlabelled: bool = False
    """DATA are pictures without labels: classification then only writes --predictions and --submission; faithfulness needs none."""
    split: Literal["all", "train", "tuning"] = "all"
    """tuning: one in five by file name, where thresholds are chosen; train: the rest."""
    subset: str | None = None
    """Published split to read: train, val, test or what docs/data.md names; without it, all that has labels."""
    method: str = "auto"
    """As in camlucida localize. Faithfulness: several, separated by commas, or all."""
    boxes: str = "auto"
    """As in camlucida localize."""
    threshold: float | None = None
    """The rule's threshold instead of the card's."""
    views: str = "auto"
    """As in camlucida localize."""
    iou: float = 0.5
    """Localization: a box is right from this overlap on."""
    top: int = 5
    """Localization: guesses a picture, for error@1 and error@TOP. --boxes tight-loose makes the paper's five of three classes."""
    oracle_threshold: bool = False
    """Localization: choose the rule's threshold on the very pictures that are judged. It is an upper bound, and every output says so."""
    convention: Literal["half-open", "reference"] = "half-open"
    """Localization: how MaxBoxAcc and MaxBoxAccV2 find and compare boxes; reference is the WSOL benchmark's own code (needs camlucida[wsol])."""
    maps: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Localization: judge another tool's maps, scoremaps/PICTURE.npy as in the WSOL benchmark, one of each picture's own class; no network runs."""
    save_maps: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Localization: write each picture's map of its own class there in that layout, 224 × 224, 0 to 1."""
    blacklist: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Localization: pictures left out, a path, file name or ILSVRC number a line."""
    figures: int = 12
    """Localization, faithfulness: pictures shown on the page."""
    seed: int = 0
    """Localization, faithfulness: of what is random, and of the intervals."""
    metrics: str = ""
    """Faithfulness: only these of deletion, insertion, drop, adcc, road, occlusion, cascading, independent, labels; separated by commas."""
    step: float = 224.0
    """Faithfulness: pixels that deletion and insertion change at once, of a view of 224 × 224; 1792 is the quick mode."""
    sanity_layers: int = 6
    """Faithfulness: how many layers the sanity checks randomise, spread over the network."""
    permuted_network: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Faithfulness: the same network trained on permuted labels (camlucida train … --shuffle-labels 1), for the sanity check labels."""
    resume: bool = False
    """Faithfulness: go on where the run into --out was stopped."""
    corners: Literal["half-open", "inclusive"] | None = None
    """How boxes are written; by default inclusive in boxes.csv and Tiny-ImageNet's files, half-open in manifests."""
    limit: int | None = None
    """Only this many pictures, spread evenly over the set."""
    batch: int = 64
    """Pictures a forward pass."""
    workers: int = 2
    """Threads that read pictures."""
    memory: str | None = None
    """As in camlucida localize."""
    max_pixels: int = 89_478_485
    """As in camlucida localize."""
    tune: str | None = None
    """Packed FILE.safetensors: write this run's best threshold, method, views and size on its card. Only with --split tuning."""
    out: str | None = None
    """Folder for evaluation.json and curve.csv; of a localization, localization.json, curve.csv, curve.svg, pictures.parquet and report.html; of a classification, evaluation.json, classification.html, classes.csv and confusion.csv; of faithfulness, faithfulness.json, faithfulness.parquet and report.html."""
    json: bool = False
    """Print the figures as JSON."""


def run(options: Options, command: Sequence[str]) -> int:
    means = (
        options.protocol or options.fuse or options.predictions or options.submission or options.unlabelled
    )
    task = options.task
    if task == "summary" and (means or _are_predictions(options.data)):
        task = "classification"
    _belongs(options, task)
    if task in ("localization", "faithfulness") and _are_predictions(options.data):
        from camlucida.errors import UsageError

        raise UsageError(
            f"--task {task}", got="saved predictions", allowed="pictures",
            do="saved predictions hold no maps: give the pictures" + ", and maps of another tool with --maps" * (task == "localization"),
        )  # fmt: skip
    return {
        "summary": _summary, "classification": _classification, "localization": _localization, "faithfulness": _faithfulness,
    }[task](options, command)  # fmt: skip


def _belongs(options: Options, task: str) -> None:
    """Raises UsageError where an option is given that this task does not have."""
    from dataclasses import fields

    from camlucida.errors import UsageError

    defaults = {field.name: field.default for field in fields(Options)}
    for owners, names in (
        (("localization",), LOCALIZATION),
        (("faithfulness",), FAITHFULNESS),
        (("localization", "faithfulness"), SHARED),
    ):
        for name in names if task not in owners else ():
            if getattr(options, name) != defaults[name]:
                raise UsageError(
                    f"--{name.replace('_', '-')}", got=f"--task {task}", do=f"it belongs to --task {' and '.join(owners)}"
                )  # fmt: skip


def _are_predictions(data: Sequence[str]) -> bool:
    if not any(given.lower().endswith(".parquet") for given in data):
        return False
    from camlucida.evaluate import predictions

    return any(predictions.is_file(given) for given in data)


def _classification(options: Options, command: Sequence[str]) -> int:
    from camlucida.cli import evaluate_classification

    return evaluate_classification.run(options, command)


def _localization(options: Options, command: Sequence[str]) -> int:
    from camlucida.cli import evaluate_localization

    return evaluate_localization.run(options, command)


def _faithfulness(options: Options, command: Sequence[str]) -> int:
    from camlucida.cli import evaluate_faithfulness

    return evaluate_faithfulness.run(options, command)


def examples(options: Options, labels: Sequence[Any] | None) -> Any:
    """The data set that the options name, under these labels, or its own. Raises UsageError."""
    import sys

    from camlucida.errors import UsageError
    from camlucida.images import datasets

    data = datasets.load(options.data, options.corners, options.subset).split(options.split)
    data = data if labels is None else data.relabelled(labels)
    data = replace(data, examples=limited(options, data.examples))
    for note in data.notes:
        print(note, file=sys.stderr)
    bare = [e.source.name for e in data.examples if e.label < 0]
    if bare:
        raise UsageError(
            f"{len(bare)} of {len(data)} pictures have no class", got=bare[0], allowed="pictures with labels"
        )
    return data


def limited(options: Options, pictures: Sequence[Any]) -> tuple[Any, ...]:
    """--limit of the pictures, spread evenly. Raises UsageError."""
    from camlucida.errors import UsageError
    from camlucida.images import datasets

    if options.limit is not None and options.limit < 1:
        raise UsageError("--limit", got=options.limit, allowed="≥ 1")
    return datasets.evenly(pictures, len(pictures) if options.limit is None else options.limit)


def _summary(options: Options, command: Sequence[str]) -> int:
    import json
    import sys
    from pathlib import Path

    from camlucida import pipeline
    from camlucida.boxes import FractionOfMax
    from camlucida.cli import progress
    from camlucida.errors import UsageError
    from camlucida.evaluate.localization import Measured
    from camlucida.networks import cards

    if options.tune and options.split != "tuning":
        raise UsageError(
            "--tune", got=f"--split {options.split}", allowed="--split tuning: what is chosen is chosen there"
        )
    if options.out:
        from camlucida import report as reports

        reports.writable(options.out)
    net = choices.network(options.network)
    data = examples(options, net.card.labels)
    plan = pipeline.plan(net, top=1, method=options.method, boxes=options.boxes, views=options.views)
    plan = replace(
        plan, rule=choices.at_threshold(plan.rule, options.threshold), max_pixels=options.max_pixels
    )
    fraction = plan.rule if isinstance(plan.rule, FractionOfMax) else None
    if options.tune and fraction is None:
        raise UsageError(
            "--tune", got=plan.rule_name, allowed="the rule fraction-of-max, whose curve is measured"
        )
    measured: Measured | None = None
    with choices.perturbing(options.memory), progress.bar("pictures", len(data)) as bar:
        for step in pipeline.measure(plan, data, batch=options.batch, workers=options.workers):
            if isinstance(step, int):
                bar(step)
            else:
                measured = step
    assert measured is not None
    report: dict[str, Any] = {
        "command": list(command), "network": net.card.name, "sha256": net.card.sha256, "split": options.split, "size": net.card.preprocessing.size,
        "method": plan.method_name, "rule": plan.rule_name, "views": str(plan.views), **measured.report(),
    }  # fmt: skip
    best = report.get("best_on_this_set", {"threshold": 0})
    if options.tune and best["threshold"] == 0:
        print(f"{options.tune} stays as it is: no box of a map beats the whole picture", file=sys.stderr)
    elif options.tune and fraction is not None:
        rule = replace(fraction, threshold=best["threshold"])
        card = cards.read_card(options.tune)
        chosen = f"tuning split, {report['with_boxes']} pictures: ground-truth-known {best['gt_known']} %"
        tuned = cards.Tuned(plan.method_name, replace(plan, rule=rule).rule_name, str(plan.views), chosen)
        shape = replace(card.preprocessing, size=net.card.preprocessing.size)
        cards.rewrite_card(options.tune, replace(card, localization=tuned, preprocessing=shape))
        report["tuned"] = {"file": options.tune, "boxes": tuned.boxes, "views": tuned.views}
    print(json.dumps(report)) if options.json else _show(report)
    if options.out:
        folder = Path(options.out)
        (folder / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        curve = report.get("curve", {"threshold": [], "gt_known": []})
        rows = [f"{t:g},{a:g}" for t, a in zip(curve["threshold"], curve["gt_known"], strict=True)]
        (folder / "curve.csv").write_text(
            "\n".join(["threshold,gt_known_percent", *rows]) + "\n", encoding="utf-8"
        )
    return 3 if measured.rejected else 0


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    console.print(
        f"{report['network']} on {report['pictures']} pictures (split {report['split']}), shown at {report['size']}, views {report['views']}"
    )
    table = Table(box=None, pad_edge=False)
    for column in ("", "percent", "95 % interval"):
        table.add_column(column, justify="left" if not column else "right")
    names = {
        "top1": "top-1", "top5": "top-5", "gt_known": f"ground-truth-known, IoU ≥ 0.5 ({report['rule']})",
        "top1_localization": "top-1 localization",
    }  # fmt: skip
    for key, name in names.items():
        if key in report:
            low, high = report[key]["interval"]
            table.add_row(name, f"{report[key]['percent']:.2f}", f"{low:.2f} … {high:.2f}")
    if "baselines" in report:
        base, best = report["baselines"], report["best_on_this_set"]
        table.add_row("constant box: the whole picture", f"{base['whole_picture']:.2f}", "")
        size = f"{base['best_centred_box_width']:g} × {base['best_centred_box_height']:g}"
        table.add_row(
            f"constant box: best centred one ({size}, chosen here)", f"{base['best_centred_box']:.2f}", ""
        )
        table.add_row(
            f"best of the curve, at {best['threshold']:g} (chosen here)", f"{best['gt_known']:.2f}", ""
        )
    console.print(table)
    if "curve" in report:
        curve = dict(zip(report["curve"]["threshold"], report["curve"]["gt_known"], strict=True))
        console.print("curve: " + "  ".join(f"{t:g}: {curve[t]:.1f}" for t in list(curve)[:80:5]))
    if "tuned" in report:
        console.print(
            f"written on the card of {report['tuned']['file']}: {report['tuned']['boxes']}, views {report['tuned']['views']}"
        )
