"""Train a network by a recipe: DIR/network.safetensors, with checkpoints that resume exactly and a log of JSON lines.

DATA are folders or zips of class folders, manifests with labels, or Tiny-ImageNet as published; several are joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Options:
    data: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """Class folders, zips of them, manifests."""
    recipe: str
    """A recipe of the package, or a TOML file."""
    out: str
    """Folder for network, checkpoints and log."""
    split: Literal["all", "train"] = "all"
    """all: every picture; train: without the tuning split (one in five by file name), whose top-1 is then reported."""
    epochs: int | None = None
    """Another number of epochs than the recipe's."""
    batch: int | None = None
    """Another batch size than the recipe's."""
    seed: int | None = None
    """Another seed than the recipe's."""
    precision: str | None = None
    """Another precision than the recipe's (a word of Lightning Fabric's)."""
    accelerator: str = "auto"
    """cpu, cuda, or auto."""
    devices: int = 1
    """Processes, one device each."""
    workers: int = 2
    """Processes that read and augment pictures."""
    resume: bool = False
    """Go on from the last checkpoint in --out."""
    overwrite: bool = False
    """Start again although --out holds a run."""


def run(options: Options, command: Sequence[str]) -> int:
    import json
    import sys
    from pathlib import Path

    from camlucida.cli import progress
    from camlucida.errors import UsageError
    from camlucida.images import datasets
    from camlucida.train import loop
    from camlucida.train import recipe as recipes

    changes = {
        name: getattr(options, name)
        for name in ("epochs", "batch", "seed", "precision")
        if getattr(options, name) is not None
    }
    recipe = recipes.load(options.recipe, changes)
    out = Path(options.out)
    log, last = out / "log.jsonl", out / "checkpoints" / "last.ckpt"
    if out.exists() and any(out.iterdir()):
        if not log.exists():
            raise UsageError(f"--out {out}", got="a folder that holds other things", do="name another folder")
        if not (options.resume or options.overwrite):
            raise UsageError(
                f"--out {out} holds a run",
                do="--resume goes on with it, --overwrite starts again, or name another folder",
            )
        if options.overwrite:
            log.unlink()
            last.unlink(missing_ok=True)
    data = datasets.load(options.data)
    tuning = data.split("tuning") if options.split == "train" else None
    out.mkdir(parents=True, exist_ok=True)
    (out / "recipe.toml").write_text(recipes.to_toml(recipe), encoding="utf-8")
    events = loop.train(
        recipe, data.split(options.split), out, validate_on=tuning, accelerator=options.accelerator, devices=options.devices,
        workers=options.workers, resume=options.resume,
    )  # fmt: skip
    at = 0
    with (
        log.open("a", encoding="utf-8") as lines,
        progress.bar("steps", _steps(recipe, len(data.split(options.split)))) as bar,
    ):
        lines.write(json.dumps({"kind": "command", "command": list(command)}) + "\n")
        for event in events:
            lines.write(json.dumps({"kind": event.kind, **event.values}) + "\n")
            lines.flush()
            if event.kind in ("start", "step"):
                step = event.values.get("step", event.values.get("from_step", 0))
                bar(step - at)
                at = step
            if event.kind in ("start", "epoch", "rejected", "done"):
                print(
                    event.kind + "  " + "  ".join(f"{k} {v}" for k, v in event.values.items()),
                    file=sys.stderr,
                )
    print(out / "network.safetensors")
    return 0


def _steps(recipe: object, pictures: int) -> int:
    return -(-pictures // recipe.batch) * recipe.epochs  # type: ignore[attr-defined]
