"""A recipe's network without some layers, or with other widths (ZF paper, section 5.1: architecture ablation)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from camlucida.errors import UsageError
from camlucida.networks import catalogue
from camlucida.train.recipe import Recipe


def varied(recipe: Recipe, remove: str | None = None, widths: str | None = None) -> Recipe:
    """The recipe of the variant: `remove` as `3,4`, `widths` as `6:2048,7:2048`, in the numbers of the paper's layers and
    the widths of the whole network, which a twin's `width` multiplies as it does the others. Name and arguments say
    what changed. Raises UsageError where the network has no numbered layers or not these, or where the text is wrong."""
    if remove is None and widths is None:
        return recipe
    option = "--remove" if remove is not None else "--widths"
    if not catalogue.takes(recipe.network, "remove"):
        raise UsageError(
            option, got=f"recipe {recipe.name}, whose network {recipe.network} has no numbered layers",
            allowed="recipes of " + ", ".join(n for n in catalogue.ARCHITECTURES if catalogue.takes(n, "remove")),
        )  # fmt: skip
    changes: dict[str, Any] = {}
    if remove is not None:
        changes["remove"] = [_number("--remove", remove, one) for one in remove.split(",")]
    if widths is not None:
        pairs = [one.partition(":") for one in widths.split(",")]
        changes["widths"] = {
            str(_number("--widths", widths, n)): _number("--widths", widths, units) for n, _, units in pairs
        }
    with torch.device("meta"):  # refused before a picture is read; takes no memory
        catalogue.build(recipe.network, {**recipe.arguments, **changes})
    name = [recipe.name, *(["without", *changes["remove"]] if remove is not None else [])]
    name += [part for pair in changes.get("widths", {}).items() for part in pair]
    return replace(
        recipe, name="-".join(map(str, name)), about=f"{recipe.about} Here {change(changes)}.".strip(),
        arguments={**recipe.arguments, **changes},
    )  # fmt: skip


def change(arguments: Mapping[str, Any]) -> str:
    """What a network's arguments change, in words: `without layers 3, 4; 6: 2048 units, 7: 2048 units`; empty where nothing is."""
    removed, widths = arguments.get("remove"), arguments.get("widths")
    words = [f"without layer{'s' * (len(removed) > 1)} " + ", ".join(map(str, removed))] if removed else []
    if isinstance(widths, Mapping) and widths:
        words.append(", ".join(f"{n}: {units} units" for n, units in widths.items()))
    return "; ".join(words)


def _number(option: str, given: str, text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        example = "3,4" if option == "--remove" else "6:2048,7:2048"
        raise UsageError(option, got=repr(given), allowed=f"numbers of layers, as {example}")
    return int(text)
