"""A recipe: all that decides a training run, as one frozen value and one TOML file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from camlucida.errors import UsageError, nearest
from camlucida.images.augment import Augmentation

SCHEDULES = ("one-cycle", "cosine", "constant", "piecewise")


@dataclass(frozen=True)
class Recipe:
    """`publishes`, `data`, `licence`, `terms`: what the packed network's card says: its name, what it was trained on, its
    licence, what its data set's terms ask for. `size`: side of the training crops; `sizes`: their side in the first epochs, one number each (small crops first cost
    less); `card_size`: shorter side the packed network's card names; `warmup`: share of
    the steps over which the rate rises; `schedule`: what it does afterwards, or `piecewise`: straight lines through
    `rates`, knots of (epoch, rate); `average`: decay of the weights' running
    mean, 0 = off, which is what is packed; `precision`: a word of Lightning Fabric's, or `auto` (bfloat16 where the hardware has it); `decay_norms`: whether biases and norms decay too."""

    name: str = "recipe"
    about: str = ""
    publishes: str = ""
    data: str = ""
    licence: str = ""
    terms: str = ""
    network: str = "lucida"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    size: int = 64
    sizes: tuple[int, ...] = ()
    card_size: int = 64
    mean: tuple[float, ...] = (0.480, 0.448, 0.398)
    std: tuple[float, ...] = (0.277, 0.269, 0.282)
    epochs: int = 90
    batch: int = 256
    learning_rate: float = 0.2
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_norms: bool = False
    schedule: Literal["one-cycle", "cosine", "constant", "piecewise"] = "one-cycle"
    rates: tuple[tuple[float, float], ...] = ()
    warmup: float = 0.1
    label_smoothing: float = 0.1
    average: float = 0.0
    precision: str = "auto"
    channels_last: bool = True
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name, low in (("size", 8), ("card_size", 8), ("epochs", 1), ("batch", 1)):
            if getattr(self, name) < low:
                raise UsageError(f"recipe: {name}", got=getattr(self, name), allowed=f"≥ {low}")
        if (self.schedule == "piecewise") != bool(self.rates) or list(self.rates) != sorted(self.rates):
            raise UsageError(
                "recipe: rates",
                got=self.rates,
                allowed="knots (epoch, rate) by rising epoch, for schedule piecewise only",
            )
        if any(size < 8 for size in self.sizes):
            raise UsageError("recipe: sizes", got=self.sizes, allowed="each ≥ 8")
        if self.schedule not in SCHEDULES:
            raise UsageError(
                "recipe: schedule", got=repr(self.schedule), do=nearest(self.schedule, SCHEDULES)
            )

    def size_at(self, epoch: int) -> int:
        """Side of the crops in epoch 0, 1, …"""
        return self.sizes[epoch] if epoch < len(self.sizes) else self.size


def names() -> tuple[str, ...]:
    """Recipes that ship in the package."""
    return tuple(
        sorted(
            p.name.removesuffix(".toml")
            for p in resources.files("camlucida.recipes").iterdir()
            if p.name.endswith(".toml")
        )
    )


def load(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe by name or TOML file, with single values changed. Raises UsageError for an unknown name, key or type."""
    file = Path(name)
    if file.suffix == ".toml":
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot read the recipe {file}", got=error.strerror) from error
    elif str(name) in names():
        text = (resources.files("camlucida.recipes") / f"{name}.toml").read_text(encoding="utf-8")
    else:
        raise UsageError(
            f"recipe {str(name)!r} is not known", do=nearest(str(name), names()) + "; or a .toml file"
        )
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"recipe {name} is no TOML", got=str(error)) from error
    return from_dict({**found, **(changes or {})})


def from_dict(found: Mapping[str, Any]) -> Recipe:
    found = dict(found)
    augmentation = _checked(Augmentation, dict(found.pop("augmentation", {})), "augmentation.")
    return _checked(Recipe, {**found, "augmentation": augmentation}, "")


def _checked(kind: type, found: dict[str, Any], where: str) -> Any:
    known = {f.name for f in fields(kind)}
    for name, value in found.items():
        if name not in known:
            raise UsageError(f"recipe: {where}{name} is not known", do=nearest(name, known))
        if isinstance(value, list):
            found[name] = tuple(tuple(v) if isinstance(v, list) else v for v in value)
    try:
        return kind(**found)
    except TypeError as error:
        raise UsageError(f"recipe: {where or 'values'}", got=str(error)) from error


def to_toml(recipe: Recipe) -> str:
    """The recipe as a file that `load` reads back to an equal value."""
    values = asdict(recipe)
    tables = {name: values.pop(name) for name in ("arguments", "augmentation")}
    lines = [f"{name} = {_toml(value)}" for name, value in values.items()]
    for table, content in tables.items():
        lines += ["", f"[{table}]", *(f"{name} = {_toml(value)}" for name, value in content.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)
