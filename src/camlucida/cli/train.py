"""Train a network by a recipe: DIR/network.safetensors, with checkpoints that resume exactly and a log of JSON lines.

  camlucida train pictures/train --recipe googlenet-twin --split train --out runs/googlenet-twin
  camlucida train pictures/train --recipe googlenet-gap-twin --split train --out runs/googlenet-gap-twin
  camlucida train pictures/train --recipe alexnet-twin --remove 3,4 --split train --out runs/alexnet-twin-without-3-4

DATA are folders or zips of class folders, manifests with labels, or data sets as published (docs/data.md); several are joined.
A recipe is a TOML file; DIR/recipe.toml is the one a run was made by, and a good one to begin your own with. One that starts
from another network's weights, as googlenet-gap-twin does, looks for them in runs/ of the current folder.

DIR then holds network.safetensors, which every verb takes as --network; best.safetensors, the best on the tuning split
(--split train); epochs/, those of --keep-epochs; training.html, the curves; log.jsonl; rejected.csv; checkpoints/last.ckpt.
Ctrl-C saves and ends; a run that was stopped or killed anywhere goes on with --resume, to the very same weights.

On several machines: torchrun --nnodes 2 --nproc-per-node 4 … -m camlucida train …, the same on each, DIR shared by all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from pathlib import Path

    from camlucida.images.datasets import DataSet
    from camlucida.train.recipe import Recipe

RECIPES = sorted(
    file.name.removesuffix(".toml")
    for file in resources.files("camlucida.recipes").iterdir()
    if file.name.endswith(".toml") and not file.name.startswith("_")
)
__doc__ = f"{__doc__}\nRecipes of the package: {', '.join(RECIPES)}.\n"
PCA_OF = 10_000  # pictures that colours are fitted to at most


@dataclass(frozen=True)
class Options:
    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Class folders, zips of them, manifests, published data sets."""
    recipe: str
    """A recipe of the package, or a TOML file."""
    out: str
    """Folder for network, checkpoints and log."""
    split: Literal["all", "train"] = "all"
    """all: every picture; train: without the tuning split (one in five by file name), whose top-1 is then reported after each epoch and whose best network is kept."""
    subset: str | None = None
    """Published split to read: train, val, test or what docs/data.md names; without it, all that has labels."""
    epochs: int | None = None
    """Another number of epochs than the recipe's."""
    batch: int | None = None
    """Another batch size than the recipe's."""
    seed: int | None = None
    """Another seed than the recipe's."""
    precision: str | None = None
    """Another precision than the recipe's: 32-true, bf16-mixed, 16-mixed, 64-true."""
    start: str | None = None
    """Weights to start from in place of the recipe's: a packed network, a checkpoint or a state dict."""
    remove: Annotated[str | None, tyro.conf.arg(metavar="LAYERS")] = None
    """Train the network without these layers, in the paper's numbers: 3,4 (alexnet, zfnet: 2 to 7). What follows takes what it gets."""
    widths: Annotated[str | None, tyro.conf.arg(metavar="LAYER:UNITS")] = None
    """Train it with other numbers of channels or units: 6:2048,7:2048 (alexnet, zfnet: 1 to 7); a twin has its share of them, a quarter."""
    shuffle_labels: int | None = None
    """Deal the labels of the training pictures out anew, by this seed: the network of a sanity check of maps (camlucida evaluate … --task faithfulness --permuted-network), of no other use."""
    fit_pca: bool = False
    """Fit the colours that are shifted (augmentation.pca) to these pictures, in place of ImageNet's."""
    validate_every: int = 1
    """With --split train: epochs from one look at the tuning split to the next; a plateau's patience counts looks."""
    keep_epochs: str = ""
    """Epochs after which the network is kept, as 1,2,5,10: DIR/epochs/epoch-0005.safetensors; 0: before the first step."""
    accelerator: str = "auto"
    """cpu, cuda, or auto."""
    devices: int = 1
    """Processes on this machine, one device each; together they make the steps of one. Under torchrun it says how many."""
    workers: int = 2
    """Processes that read and augment pictures, for each device."""
    cache: float | None = None
    """Gigabytes of memory for decoded pictures, 0 for none; unless told a quarter of what is free, 8 at most."""
    save_every: float = 120.0
    """Seconds from one checkpoint to the next; one is written after each epoch as well."""
    tensorboard: bool = False
    """Also write the curves for TensorBoard, to DIR/tensorboard."""
    resume: bool = False
    """Go on from the last checkpoint in --out; where there is none, it says so and starts from the beginning."""
    overwrite: bool = False
    """Start again although --out holds a run."""


def run(options: Options, command: Sequence[str]) -> int:
    import sys
    from contextlib import nullcontext
    from pathlib import Path

    from camlucida import report
    from camlucida.errors import CamlucidaError, UsageError
    from camlucida.images import datasets
    from camlucida.train import distribute, loop

    out, first = Path(options.out), distribute.is_first()
    keep = _check(options)
    with report.alone(out) if first else nullcontext():
        if first:
            _check_folder(out, options)
        given = datasets.load(options.data, subset=options.subset)
        data, tuning = given.split(options.split), given.split("tuning") if options.split == "train" else None
        if options.shuffle_labels is not None:
            data = data.with_permuted_labels(options.shuffle_labels)
        splits = sorted({name for example in given.examples for name in example.subsets})
        together = f"the published splits {', '.join(splits)} are learnt together; --subset train takes one"
        joined = options.subset is None and "train" in splits and len(splits) > 1
        for note in (*given.notes, *[together] * joined) if first else ():
            print(note, file=sys.stderr)
        recipe = _recipe(options, data, out)
        if keep - {*range(recipe.epochs + 1)}:
            raise UsageError("--keep-epochs", got=options.keep_epochs, allowed=f"0 to {recipe.epochs}")
        fabric = distribute.start(
            options.accelerator,
            options.devices,
            distribute.precision_of(recipe.precision, options.accelerator),
        )
        if first:
            if options.resume and not (out / "checkpoints" / "last.ckpt").is_file():
                print(f"--resume: no checkpoint in {out}, the run starts from the beginning", file=sys.stderr)
            _prepare(out, recipe, options)
        with _asked_to_stop() as stop:
            events = loop.train(
                recipe, data, out, validate_on=tuning, workers=options.workers, resume=options.resume, validate_every=options.validate_every,
                save_every_seconds=options.save_every, keep_epochs=keep, stop=stop, fabric=fabric,
                cache=None if options.cache is None else int(options.cache * 1e9),
            )  # fmt: skip
            try:
                if not first:  # the first process says it all, and its exit code counts
                    for _ in events:
                        pass
                    return 0
                rejected = _follow(events, out, options, recipe, command)
            except CamlucidaError:
                if not first:
                    return 0
                raise
            except RuntimeError as error:
                if fabric.world_size == 1:
                    raise
                got = str(error).split("\n", 1)[0].split(". ", 1)[0]
                raise CamlucidaError(
                    "a process of this run has ended", got=got, do="--resume goes on"
                ) from error
    print(out / "network.safetensors")
    if rejected:
        print(
            f"{rejected} picture{'s' * (rejected > 1)} could not be read: {out / 'rejected.csv'}",
            file=sys.stderr,
        )
    return 3 if rejected else 0


def _check(options: Options) -> frozenset[int]:
    """The epochs to keep. Raises UsageError."""
    from camlucida.errors import UsageError
    from camlucida.train import recipe as recipes
    from camlucida.train import variants

    if options.resume and options.overwrite:
        raise UsageError("--resume and --overwrite together", do="give one of them")
    for name, low in (
        ("workers", 0),
        ("validate_every", 1),
        ("devices", 1),
        ("save_every", 0),
        ("cache", 0),
        ("shuffle_labels", 0),
    ):
        value = getattr(options, name)
        if value is not None and not value >= low:
            raise UsageError(f"--{name.replace('_', '-')}", got=value, allowed=f"≥ {low}")
    found = recipes.load(options.recipe)  # a wrong name is said before the pictures are listed
    variants.varied(found, options.remove, options.widths)
    try:
        return frozenset(int(epoch) for epoch in options.keep_epochs.split(",") if epoch.strip())
    except ValueError:
        raise UsageError("--keep-epochs", got=options.keep_epochs, allowed="numbers, as 1,2,5,10") from None


def _check_folder(out: Path, options: Options) -> None:
    """Raises UsageError where --out must not be written to; touches nothing."""
    from camlucida.errors import UsageError

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir() or not (out / "log.jsonl").exists():
        raise UsageError(f"--out {out}", got="a folder that holds other things", do="name another folder")
    begun = (out / "log.jsonl").stat().st_size > 0  # not by a command that was refused before its first step
    if begun and not (options.resume or options.overwrite):
        raise UsageError(
            f"--out {out} holds a run",
            do="--resume goes on with it, --overwrite starts again, or name another folder",
        )


def _prepare(out: Path, recipe: Recipe, options: Options) -> None:
    """Takes away what an earlier run left, if it is to be overwritten, and writes the recipe; beside a checkpoint the
    recipe that made it stays, which the one given must equal."""
    import shutil

    from camlucida.train import recipe as recipes

    out.mkdir(parents=True, exist_ok=True)
    if options.overwrite:
        names = ("checkpoints/last.ckpt", "network.safetensors", "best.safetensors", "rejected.csv", "training.html", "curves.png")  # fmt: skip
        for file in (*(out / name for name in names), *(out / "epochs").glob("epoch-*.safetensors")):
            file.unlink(missing_ok=True)
        shutil.rmtree(out / "tensorboard", ignore_errors=True)
        (out / "log.jsonl").write_text("", encoding="utf-8")
    (out / "log.jsonl").touch()
    if not (out / "checkpoints" / "last.ckpt").is_file() or not (out / "recipe.toml").is_file():
        (out / "recipe.toml").write_text(recipes.to_toml(recipe), encoding="utf-8")


def _recipe(options: Options, data: DataSet, out: Path) -> Recipe:
    """The recipe with what the command line changes; colours fitted anew, or as the run to be resumed has them."""
    from contextlib import suppress
    from dataclasses import replace

    from camlucida.errors import InputError, UsageError
    from camlucida.images.augment import fit_pca
    from camlucida.images.read import read_picture
    from camlucida.train import recipe as recipes
    from camlucida.train import variants

    names = ("epochs", "batch", "seed", "precision", "start")
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    recipe = variants.varied(recipes.load(options.recipe, changes), options.remove, options.widths)
    if options.shuffle_labels is not None:
        said = f"labels permuted (seed {options.shuffle_labels})"
        recipe = replace(recipe, data=f"{recipe.data}; {said}" if recipe.data else said)
    if not options.fit_pca:
        return recipe
    if not recipe.augmentation.pca:
        raise UsageError(
            "--fit-pca", got=f"recipe {recipe.name}, which shifts no colours", do="set augmentation.pca, 0.1 in the papers"
        )  # fmt: skip
    if options.resume and (out / "recipe.toml").is_file():
        before = recipes.load(out / "recipe.toml").augmentation
        vectors, values = before.pca_vectors, before.pca_values
    else:

        def pictures() -> Iterator[Any]:
            for example in data.examples[:: -(-len(data) // PCA_OF)]:
                with suppress(InputError):  # named when its turn comes
                    yield read_picture(example.source.read())

        found, lengths = fit_pca(pictures())
        vectors, values = tuple(tuple(row) for row in found.tolist()), tuple(lengths.tolist())
    return replace(recipe, augmentation=replace(recipe.augmentation, pca_vectors=vectors, pca_values=values))


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask the run to save and end after the step it is in; a second Ctrl-C ends it at once."""
    import signal
    import threading

    asked: list[int] = []

    def ask(number: int, _: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():  # only there can signals be answered
        yield lambda: False
        return
    before = {one: signal.signal(one, ask) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _follow(
    events: Iterator[Any], out: Path, options: Options, recipe: Recipe, command: Sequence[str]
) -> int:
    """Log, terminal, TensorBoard and, at the end, the page. Gives how many pictures were rejected in the whole run.
    Raises KeyboardInterrupt where the run was asked to stop."""
    import csv
    import json
    import sys

    from camlucida.cli import progress
    from camlucida.report import training

    rejected = training.rejected(out) if options.resume else {}
    event = next(events)
    board = _board(out, event.values["from_step"]) if options.tensorboard else None
    at, steps = 0, event.values["steps"]
    with (
        (out / "log.jsonl").open("a", encoding="utf-8") as lines,
        (out / "rejected.csv").open("w", encoding="utf-8", newline="") as table,
        progress.bar("steps", steps) as bar,
    ):
        rows = csv.writer(table)
        rows.writerows([("path", "reason"), *rejected.items()])
        lines.write(json.dumps({"kind": "command", "command": list(command)}) + "\n")
        while event is not None:
            kind, values = event.kind, event.values
            if kind != "rejected" or values["path"] not in rejected:
                lines.write(json.dumps({"kind": kind, **values}) + "\n")
                lines.flush()
                if kind in ("start", "epoch", "rejected", "done"):
                    print(f"{kind}  " + "  ".join(f"{k} {_said(v)}" for k, v in values.items()), file=sys.stderr)  # fmt: skip
            if kind == "rejected" and values["path"] not in rejected:
                rejected[values["path"]] = values["reason"]
                rows.writerow((values["path"], values["reason"]))
                table.flush()
            if kind in ("start", "step"):
                step = values.get("step", values.get("from_step", 0))
                bar(step - at, _words(values))
                at = step
            if board and kind in ("step", "epoch"):
                board(kind, values)
            if kind == "stopped":
                raise KeyboardInterrupt
            event = next(events, None)
    training.save(out)
    return len(rejected)


def _words(values: dict[str, Any]) -> str:
    """What stands behind the bar: pictures a second, loss, error."""
    words = [f"{values['pictures_per_second']:.0f} pictures/s"] if "pictures_per_second" in values else []
    words += [f"loss {values['loss']:.3f}"] if "loss" in values else []
    words += [f"error {values['error']:.4g}"] if "error" in values else []
    return "  ".join(words)


def _said(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _board(out: Path, step: int) -> Callable[[str, dict[str, Any]], None]:
    """A listener that writes for TensorBoard. Raises UsageError where that is not installed."""
    from camlucida.errors import UsageError

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("--tensorboard", got="not installed", do="pip install 'camlucida[train]'") from error
    writer = SummaryWriter(str(out / "tensorboard"), purge_step=step)

    def write(kind: str, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, (int, float)) and name not in ("step", "epoch", "seconds", "seconds_left"):
                where = "tuning" if name in ("top1", "top5", "labels", "squared_error") else "training"
                writer.add_scalar(
                    f"{where}/{name}{' of the epoch' if kind == 'epoch' else ''}", value, values["step"]
                )
        writer.flush()

    return write
