"""Checkpoints: all that the rest of a run depends on, written whole or not at all, read without running code."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from camlucida.errors import UsageError
from camlucida.train.recipe import Recipe


def save(file: Path, state: dict[str, Any], recipe: Recipe) -> None:
    """`state`: tensors, numbers and plain containers only."""
    import camlucida

    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    versions = {"torch": str(torch.__version__), "camlucida": camlucida.__version__}
    random = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ())]
    torch.save({**state, "random": random, "recipe": _plain(asdict(recipe)), "versions": versions}, temporary)
    os.replace(temporary, file)


def load(file: Path, recipe: Recipe) -> dict[str, Any]:
    """The state saved last. Raises UsageError if it was saved by another recipe."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    if state["recipe"] != _plain(asdict(recipe)):
        changed = [k for k, v in _plain(asdict(recipe)).items() if state["recipe"].get(k) != v]
        raise UsageError(
            f"{file} was made by another recipe",
            got=f"other {', '.join(changed)}",
            do="give the same recipe, or another --out",
        )
    cpu, *devices = state["random"]
    torch.set_rng_state(cpu)
    if devices and len(devices) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(devices)
    return state


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _plain(v) for k, v in tree.items()}
    return [_plain(v) for v in tree] if isinstance(tree, (tuple, list)) else tree
