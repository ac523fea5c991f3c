"""Checkpoints: all that the rest of a run depends on, written whole or not at all, read without running code."""

from __future__ import annotations

import os
import platform
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from camlucida.errors import CamlucidaError, UsageError
from camlucida.train.recipe import Recipe


def save(file: Path, state: dict[str, Any], recipe: Recipe) -> None:
    """Writes `state` (tensors, numbers and plain containers only), the recipe and the versions of the libraries, and has
    the disk hold them before the old file goes. Raises CamlucidaError where the disk refuses; the old file then stays."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        for left in file.parent.glob(f".{file.name}.*.tmp"):  # of a process that was killed
            left.unlink(missing_ok=True)
        with temporary.open("wb") as stream:
            torch.save({**state, "recipe": plain(asdict(recipe)), "versions": versions()}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
        _sync_folder(file.parent)
    except (OSError, RuntimeError) as error:  # PyTorch turns a full disk into a RuntimeError
        temporary.unlink(missing_ok=True)
        got = (
            error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n", 1)[0]
        )
        do = "make room, then the same command with --resume goes on from the checkpoint before it"
        raise CamlucidaError(f"cannot write {file}", got=got, do=do) from error


def load(file: Path, recipe: Recipe) -> dict[str, Any]:
    """The state saved last. Raises UsageError if it was saved by another recipe, CamlucidaError if it cannot be read."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # readers fail in many ways on a file that was damaged
        got = str(error).split("\n", 1)[0] or type(error).__name__
        raise CamlucidaError(f"cannot read {file}", got=got, do="--overwrite starts again") from error
    if not isinstance(state, dict) or not {"recipe", "module", "step", "random"} <= state.keys():
        raise CamlucidaError(f"{file} is no checkpoint of this version", do="--overwrite starts again")
    mine = plain(asdict(recipe))
    changed = [k for k in mine.keys() | state["recipe"].keys() if mine.get(k) != state["recipe"].get(k)]
    if changed:
        raise UsageError(
            f"{file} was made by another recipe",
            got=f"other {', '.join(sorted(changed))}",
            do="give the same recipe, or another --out",
        )
    return state


def versions() -> dict[str, str]:
    """Of what a run's numbers depend on."""
    import camlucida

    return {
        "camlucida": camlucida.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def seed(number: int) -> None:
    """Seeds every generator that a module may draw from: torch's, its devices', Python's, NumPy's."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed([number % 2**32, (number >> 32) % 2**32])


def random_state() -> dict[str, Any]:
    """The state of these generators in this process."""
    name, keys, *rest = np.random.get_state()
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(numbers), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
    }


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))


def plain(tree: Any) -> Any:
    """The same with dicts and lists for mappings, tuples and lists."""
    if isinstance(tree, dict):
        return {k: plain(v) for k, v in tree.items()}
    return [plain(v) for v in tree] if isinstance(tree, (tuple, list)) else tree


def _sync_folder(folder: Path) -> None:
    """Has the disk hold the folder's new names, where the system can."""
    if os.name == "nt":
        return
    held = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(held)
    finally:
        os.close(held)
