"""Steps a second of `camlucida train`, data loading included, over those of the bare loop on the same tensors in memory.

`python benchmarks/train.py tiny-imagenet-train-1.zip --recipe embedded`; `--network torchvision/resnet18` trains another
network by that recipe. Each round is one run of a few epochs, and as many steps of a loop that has nothing but forward,
loss, backward and step on batches that are ready. Of the run, the first epoch decodes pictures and starts the workers, the
last has pictures in the cache; both are timed from their beginning to their last step. Two figures: seconds, and CPU seconds of this process and its
workers together. Where other work shares the machine only the second means anything; on cores that the bare
loop fills, both come to the same. Every figure is the median over the rounds, with the range of the middle half."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from camlucida.images import datasets
from camlucida.networks import catalogue
from camlucida.train import distribute, feed, loop, optimise
from camlucida.train import recipe as recipes


def cpu_seconds() -> float:
    """Of this process and its living children (the workers of the loader)."""
    ticks = os.sysconf("SC_CLK_TCK")
    total = time.process_time()
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def clock() -> tuple[float, float]:
    return time.perf_counter(), cpu_seconds()


def timed_run(recipe: recipes.Recipe, data: datasets.DataSet, given: argparse.Namespace) -> tuple[Any, Any]:
    """Seconds and CPU seconds a step of the first and of the last epoch, all of their reading included."""
    with tempfile.TemporaryDirectory() as out:
        events = loop.train(
            recipe, data, Path(out), accelerator="cpu", workers=given.workers, save_every_seconds=1e9,
            cache=None if given.cache is None else int(given.cache * 1e9),
        )  # fmt: skip
        began, took = clock(), []
        for event in events:
            if event.kind in ("start", "epoch"):
                began = clock()
            elif (
                event.kind == "step"
            ):  # the last of an epoch; its workers had nothing to do since the last batch
                took.append(tuple((b - a) / given.steps for a, b in zip(began, clock(), strict=True)))
    return took[0], took[-1]


class Bare:
    """The network and its optimiser on batches that are ready: normalised, in the network's memory format."""

    def __init__(self, recipe: recipes.Recipe, data: datasets.DataSet, batches: int) -> None:
        torch.manual_seed(0)
        self.recipe, self.classes = recipe, len(data.labels)
        self.module = catalogue.build(
            recipe.network, {"num_classes": self.classes, **recipe.arguments}
        ).train()
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        self.module = self.module.to(memory_format=layout)
        self.optimiser = optimise.optimiser(self.module, recipe)
        order = feed.Order(batches * recipe.batch, recipe.batch, 0)
        loader = feed.loader(feed.TrainingPictures(data, recipe), order, 0)
        shape = recipe.preprocessing()
        self.batches = [(shape.normalise(b.pixels).contiguous(memory_format=layout), b.truth) for b in loader]
        self.half = distribute.precision_of(recipe.precision, "cpu") == "bf16-mixed"

    def steps(self, count: int) -> tuple[float, float]:
        """Seconds and CPU seconds a step."""
        before = clock()
        for i in range(count):
            pixels, truth = self.batches[i % len(self.batches)]
            self.optimiser.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
                logits = self.module(pixels)
            F.cross_entropy(logits.float(), truth, label_smoothing=self.recipe.label_smoothing).backward()
            self.optimiser.step()
        return tuple((b - a) / count for a, b in zip(before, clock(), strict=True))  # type: ignore[return-value]


def summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return {"median": statistics.median(ordered), "low": ordered[quarter], "high": ordered[-1 - quarter]}


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("data", nargs="+")
    options.add_argument("--recipe", default="embedded")
    options.add_argument("--network", default="", help="another network than the recipe's")
    options.add_argument("--size", type=int, default=64, help="side of the crops")
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--steps", type=int, default=60, help="steps an epoch")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--threads", type=int, default=0, help="threads of the network, 0: all cores")
    options.add_argument("--cache", type=float, default=None)
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    loop.SHOWN = given.steps  # one line an epoch
    recipe = replace(
        recipes.load(given.recipe), size=given.size, sizes=(), batch=given.batch, epochs=2, schedule="constant", rates=(), learning_rate=0.01,
    )  # fmt: skip
    if given.network:
        recipe = replace(recipe, network=given.network, arguments={})
    data = datasets.load(given.data)
    data = replace(data, examples=data.examples[:: max(1, len(data) // (given.steps * given.batch))][: given.steps * given.batch])  # fmt: skip
    bare = Bare(recipe, data, 8)
    bare.steps(3)
    ratios: dict[str, list[float]] = {}
    milliseconds: list[float] = []
    for _ in range(given.rounds):
        first = bare.steps(given.steps // 2)
        cold, warm = timed_run(recipe, data, given)
        second = bare.steps(given.steps // 2)
        for kind, found in (("pictures decoded", cold), ("pictures cached", warm)):
            for unit, a, b, ours in zip(("seconds", "CPU seconds"), first, second, found, strict=True):
                ratios.setdefault(f"{kind}, {unit}", []).append((a + b) / 2 / ours)
        milliseconds.append(500 * (first[0] + second[0]))
    figures: dict[str, Any] = {name: summary(values) for name, values in ratios.items()}
    about = {
        "network": recipe.network, "size": given.size, "batch": given.batch, "workers": given.workers, "threads": torch.get_num_threads(),
        "precision": distribute.precision_of(recipe.precision, "cpu"), "rounds": given.rounds, "steps": given.steps, "torch": str(torch.__version__),
        "milliseconds of a bare step": round(statistics.median(milliseconds), 1), "cores": os.cpu_count(),
    }  # fmt: skip
    print("  ".join(f"{k} {v}" for k, v in about.items()))
    for name, found in figures.items():
        print(f"{name:<32} {found['median']:.3f} × the bare loop  ({found['low']:.3f} … {found['high']:.3f})")
    if given.json:
        given.json.write_text(
            json.dumps({"about": about, "figures": figures}, indent=1) + "\n", encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
