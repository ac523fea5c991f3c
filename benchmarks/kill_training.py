"""Kills `camlucida train` (SIGKILL) at random steps and goes on with --resume, until it is done: are weights, checkpoint and
figures those of a run that nobody killed, to the bit? `python benchmarks/kill_training.py [--kills 20] [--seed 0]`.
Makes its own pictures. Checkpoints are written every `--save-every` seconds, so that a kill loses steps, which are then
made again. Exit 1 where anything differs."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import lightning_fabric  # noqa: F401  (imported here, once, and not by each process that is forked)
import numpy as np
import torch
from PIL import Image

from camlucida.cli import main
from camlucida.images import datasets  # noqa: F401
from camlucida.images.augment import Augmentation
from camlucida.report import training  # noqa: F401
from camlucida.train import loop  # noqa: F401
from camlucida.train import recipe as recipes

RECIPE = recipes.Recipe(
    name="killed", network="lucida", arguments={"width": 0.125, "dropout": 0.2}, size=16, card_size=16, batch=8, learning_rate=0.05,
    average=0.9, schedule="plateau", warmup=0.0, patience=6, precision="32-true", augmentation=Augmentation(jitter=0.2, mixup=0.2, cutmix=1.0),
)  # fmt: skip


def make_pictures(folder: Path, each: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for label in range(4):
        (folder / f"c{label}").mkdir(parents=True)
        for i in range(each):
            pixels = np.clip(rng.normal(60 + 40 * label, 60, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"c{label}" / f"{label}-{i}.png")


def last_step(out: Path) -> int:
    """The step of the log's last line."""
    lines = (
        (out / "log.jsonl").read_text(encoding="utf-8").splitlines() if (out / "log.jsonl").exists() else []
    )
    steps = [json.loads(line).get("step", 0) for line in lines if line.endswith("}")]
    return steps[-1] if steps else 0


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def study() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--epochs", type=int, default=30)
    options.add_argument("--pictures", type=int, default=40, help="of each of four classes")
    options.add_argument("--save-every", type=float, default=0.2)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        make_pictures(root / "data", given.pictures, given.seed)
        (root / "recipe.toml").write_text(
            recipes.to_toml(replace(RECIPE, epochs=given.epochs)), encoding="utf-8"
        )

        def begin(out: str) -> multiprocessing.Process:
            """`camlucida train … --resume` in a process of its own, forked: nothing is imported again."""
            words = [
                "train", str(root / "data"), "--recipe", str(root / "recipe.toml"), "--out", str(root / out), "--split", "train",
                "--accelerator", "cpu", "--workers", "1", "--save-every", str(given.save_every), "--keep-epochs", "0,3", "--resume",
            ]  # fmt: skip

            def work() -> None:
                torch.set_num_threads(1)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(1, 2)
                sys.exit(main(words))

            process = multiprocessing.get_context("fork").Process(target=work)
            process.start()
            return process

        begin("whole").join()
        steps = last_step(root / "whole")
        print(f"{steps} steps; killed at:", end="", flush=True)
        kills, runs, wrong = 0, 0, 0
        while kills < given.kills:
            out, runs = f"killed-{runs}", runs + 1
            strikes = sorted(rng.sample(range(1, steps), min(given.kills - kills, 10)))
            for strike in strikes:
                process = begin(out)
                while process.is_alive() and last_step(root / out) < strike:
                    time.sleep(0.02)
                time.sleep(rng.uniform(0, 0.3))  # not only where a line of the log has just been written
                process.kill()
                process.join()
                if process.exitcode == -signal.SIGKILL:
                    kills += 1
                    print(f" {last_step(root / out)}", end="", flush=True)
            begin(out).join()
            state = [
                torch.load(root / run / "checkpoints" / "last.ckpt", weights_only=True)
                for run in ("whole", out)
            ]
            bad = [] if same(*state) else ["last.ckpt"]
            for name in (
                "network.safetensors",
                "best.safetensors",
                "epochs/epoch-0000.safetensors",
                "epochs/epoch-0003.safetensors",
            ):
                bad += (
                    [name] if (root / "whole" / name).read_bytes() != (root / out / name).read_bytes() else []
                )
            wrong += len(bad)
            print(
                f"\nrun {runs}: {', '.join(bad) + ' differ' if bad else 'all equal to the bit'}", flush=True
            )
    print(f"{kills} kills, seed {given.seed}: {wrong} files differ")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(study())
