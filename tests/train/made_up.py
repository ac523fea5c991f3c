"""Pictures, recipes and runs for the tests of training: all small, all made up."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from camlucida.images.augment import Augmentation
from camlucida.train import recipe
from camlucida.train.recipe import Recipe

SMALL = Recipe(
    name="small", network="lucida", arguments={"width": 0.125, "dropout": 0.2}, size=32, sizes=(24,), card_size=64,
    epochs=2, batch=6, learning_rate=0.05, average=0.9, precision="32-true", augmentation=Augmentation(jitter=0.2, cutmix=1.0, mixup=0.2),
)  # fmt: skip
# Without dropout and mixing, whose numbers differ from process to process.
PLAIN = Recipe(
    name="plain", network="lucida", arguments={"widths": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}, size=16, card_size=16, epochs=2, batch=6,
    learning_rate=0.05, precision="64-true", channels_last=False, augmentation=Augmentation(),
)  # fmt: skip


def pictures(folder: Path, each: int = 8, shape: tuple[int, int] = (50, 70)) -> Path:
    """Noisy red and blue pictures in two class folders."""
    rng = np.random.default_rng(0)
    for label, colour in (("n01", (200, 40, 40)), ("n02", (40, 40, 200))):
        (folder / label).mkdir(parents=True)
        for i in range(each):
            noise = rng.integers(-30, 30, (*shape, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def write_recipe(file: Path, made: Recipe) -> Path:
    file.write_text(recipe.to_toml(made), encoding="utf-8")
    return file


def run(words: list[str], seconds: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in processes of its own."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    clean = {k: v for k, v in os.environ.items() if k not in names}
    given = {**clean, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=seconds, env=given
    )


def checkpoint(out: Path) -> dict:
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
