"""A recipe: all that decides a training run, as one frozen value and one TOML file."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from camlucida.errors import UsageError, nearest
from camlucida.images.augment import Augmentation
from camlucida.images.views import Preprocessing

CHOICES = {
    "task": ("softmax", "sigmoid", "regression"),
    "schedule": ("one-cycle", "cosine", "constant", "piecewise", "steps", "plateau"),
    "initialisation": ("own", "gaussian", "glorot", "he"),
    "subtract": ("mean", "pixel"),
}
DEEPEST = 8  # files that extend one another
ACTIVATIONS: dict[str, Literal["softmax", "sigmoid", "none"]] = {
    "softmax": "softmax",
    "sigmoid": "sigmoid",
    "regression": "none",
}


@dataclass(frozen=True)
class Recipe:
    """What is trained: `network` with `arguments` (`num_classes` comes from the data). `task`: one class a picture
    (`softmax`), several (`sigmoid`) or numbers (`regression`). `publishes`, `data`, `licence`, `terms`: what the packed network's
    card says: its name, what it was trained on, its licence, what its data set's terms ask for.

    Pictures: `size`: side of the training crops; `sizes`: their side in the first epochs, one number each (small crops first
    cost less); `card_size`, `card_crop`: shorter side and centre crop (0 = none) of the card; `any_size`: whether the
    network takes pictures of any shape; `scale`: what white becomes before `mean` is subtracted and `std` divided by, 255 in the papers;
    `subtract`: the `mean` colour, or the mean of every `pixel` of the training pictures (ZF paper, section 3).

    Weights: `initialisation`: the network's `own`, `gaussian` of standard `deviation` (VGG paper, section 3.1: variance 10⁻²;
    0.01 in later code), `glorot` or `he`, biases 0; `start`: a packed network, checkpoint or state dict whose weights replace these where
    names and shapes fit, `start_layers`: in these layers only, `"own=theirs"` where it has another name in the file; `head_rate`: factor on the rate of layers that `start` did not
    fill; `bias_rate`: on that of biases; `decay_norms`: whether biases and norms decay too; `renormalise`: largest RMS of a convolution's filter, 0 = free (ZF
    paper, section 3); `average`: decay of the weights' running mean, 0 = off, which is what is packed.

    Steps: `batch` pictures each, `accumulate` batches a step; `auxiliary`: weight of each auxiliary classifier's loss; `warmup`: share
    of the steps over which the rate rises; `schedule`: what it does afterwards (`optimise.learning_rate`): `piecewise` goes
    straight between `rates`, knots of (epoch, rate); `steps` multiplies by `drop_factor` at the epochs `drop_at`; `plateau` does when the validation figure has not
    risen for `patience` epochs, `drops` times, and ends the run when it would drop once more. `precision`: a word of Lightning
    Fabric's, or `auto` (bfloat16 where the hardware has it)."""

    name: str = "recipe"
    about: str = ""
    publishes: str = ""
    data: str = ""
    licence: str = ""
    terms: str = ""
    network: str = "lucida"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    task: Literal["softmax", "sigmoid", "regression"] = "softmax"
    size: int = 64
    sizes: tuple[int, ...] = ()
    card_size: int = 64
    card_crop: int = 0
    any_size: bool = True
    scale: float = 1.0
    subtract: Literal["mean", "pixel"] = "mean"
    mean: tuple[float, ...] = (0.480, 0.448, 0.398)
    std: tuple[float, ...] = (0.277, 0.269, 0.282)
    initialisation: Literal["own", "gaussian", "glorot", "he"] = "own"
    deviation: float = 0.01
    start: str = ""
    start_layers: tuple[str, ...] = ()
    epochs: int = 90
    batch: int = 256
    accumulate: int = 1
    learning_rate: float = 0.2
    head_rate: float = 1.0
    bias_rate: float = 1.0
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_norms: bool = False
    renormalise: float = 0.0
    auxiliary: float = 0.3
    schedule: Literal["one-cycle", "cosine", "constant", "piecewise", "steps", "plateau"] = "one-cycle"
    rates: tuple[tuple[float, float], ...] = ()
    drop_at: tuple[float, ...] = ()
    drop_factor: float = 0.1
    drops: int = 3
    patience: int = 5
    warmup: float = 0.1
    label_smoothing: float = 0.1
    average: float = 0.0
    precision: str = "auto"
    channels_last: bool = True
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                value = getattr(self, name)
                raise UsageError(f"recipe: {name}", got=repr(value), do=nearest(str(value), allowed))
        lowest = {"size": 8, "card_size": 8, "card_crop": 0, "epochs": 1, "batch": 1, "accumulate": 1, "drops": 0, "patience": 1,
                  "deviation": 0, "head_rate": 0, "bias_rate": 0, "renormalise": 0, "auxiliary": 0, "seed": 0, "learning_rate": 0,
                  "weight_decay": 0, "drop_factor": 0}  # fmt: skip
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise UsageError(f"recipe: {name}", got=getattr(self, name), allowed=f"≥ {low}")
        for name in ("momentum", "warmup", "label_smoothing", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"recipe: {name}", got=getattr(self, name), allowed="0 to below 1")
        for schedule, name, what in (
            ("piecewise", "rates", "knots (epoch, rate)"),
            ("steps", "drop_at", "epochs"),
        ):
            found = getattr(self, name)
            if (self.schedule == schedule) != bool(found) or list(found) != sorted(found):
                raise UsageError(
                    f"recipe: {name}",
                    got=found,
                    allowed=f"{what} in rising order, for schedule {schedule} only",
                )
        if any(size < 8 for size in self.sizes):
            raise UsageError("recipe: sizes", got=self.sizes, allowed="each ≥ 8")
        largest, scale = max(self.size, *self.sizes, 0), self.augmentation.scale
        if scale and scale[0] < largest:
            raise UsageError(
                "recipe: augmentation.scale", got=scale, allowed=f"at least the crop's side, {largest}"
            )
        if self.card_crop > self.card_size:
            raise UsageError("recipe: card_crop", got=self.card_crop, allowed=f"≤ card_size {self.card_size}")
        if self.start_layers and not self.start:
            raise UsageError("recipe: start_layers", do="say in start which file they come from")
        if self.scale <= 0:
            raise UsageError("recipe: scale", got=self.scale, allowed="> 0")
        self.preprocessing()  # raises where mean and std cannot be

    @property
    def activation(self) -> Literal["softmax", "sigmoid", "none"]:
        """What the packed network's card turns logits into probabilities with."""
        return ACTIVATIONS[self.task]

    def preprocessing(self) -> Preprocessing:
        """The packed network's; a mean picture, where `subtract` is `pixel`, is put in by `subtracting`."""
        return Preprocessing(
            size=self.card_size, crop=self.card_crop or None, mean=self.mean, std=self.std, scale=self.scale, any_size=self.any_size,
            minimum=64 if self.any_size else self.card_crop or self.card_size,
        )  # fmt: skip

    def size_at(self, epoch: int) -> int:
        """Side of the crops in epoch 0, 1, …"""
        return self.sizes[epoch] if epoch < len(self.sizes) else self.size


def names() -> tuple[str, ...]:
    """Recipes that ship in the package; files that begin with `_` are parts, which recipes extend."""
    files = (p.name for p in resources.files("camlucida.recipes").iterdir())
    return tuple(sorted(n.removesuffix(".toml") for n in files if n.endswith(".toml") and n[0] != "_"))


def load(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe by name or TOML file, with single values changed; tables are changed entry by entry. Raises UsageError for
    an unknown name, key or type.

    `extends = ["vgg-d-256", "_twin"]` begins from these recipes, the later over the earlier: names of the package or TOML files
    beside the one that names them, which may extend others in turn.
    """
    return from_dict(_over(_read(name), changes or {}))


def _read(name: str | Path, beside: Path | None = None, below: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of a file over those of the files it extends."""
    if len(below) > DEEPEST:
        raise UsageError(
            "recipe: extends", got=" → ".join([*below, str(name)]), allowed=f"{DEEPEST} files deep"
        )
    file = Path(name)
    if file.suffix == ".toml":
        file = beside / file if beside else file
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot read the recipe {file}", got=error.strerror) from error
    else:
        shipped = resources.files("camlucida.recipes") / f"{name}.toml"
        if str(name) not in names() and not (below and shipped.is_file()):
            raise UsageError(
                f"recipe {str(name)!r} is not known", do=nearest(str(name), names()) + "; or a .toml file"
            )
        text = shipped.read_text(encoding="utf-8")
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"recipe {name} is no TOML", got=str(error)) from error
    merged: dict[str, Any] = {}
    bases = found.pop("extends", ())
    for base in [bases] if isinstance(bases, str) else bases:
        merged = _over(merged, _read(base, file.parent, (*below, str(name))))
    return _over(merged, found)


def _over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` over `base`, tables entry by entry."""
    tables = {k: {**base[k], **v} for k, v in changes.items() if isinstance(v, Mapping) and k in base}
    return {**base, **changes, **tables}


def from_dict(found: Mapping[str, Any]) -> Recipe:
    found = dict(found)
    augmentation = _checked(Augmentation, dict(found.pop("augmentation", {})), "augmentation.")
    return _checked(Recipe, {**found, "augmentation": augmentation}, "")


def _checked(kind: type, found: dict[str, Any], where: str) -> Any:
    known, hints = {f.name for f in fields(kind)}, get_type_hints(kind)
    for name, value in found.items():
        if name not in known:
            raise UsageError(f"recipe: {where}{name} is not known", do=nearest(name, known))
        if isinstance(value, list):
            found[name] = tuple(tuple(v) if isinstance(v, list) else v for v in value)
        if not _is(found[name], hints[name]):
            raise UsageError(f"recipe: {where}{name}", got=repr(value), allowed=_words(hints[name]))
    try:
        return kind(**found)
    except TypeError as error:
        raise UsageError(f"recipe: {where or 'values'}", got=str(error)) from error


def _is(value: Any, hint: Any) -> bool:
    """Whether a value of a TOML file is of a field's type; words out of a few are judged by the field's owner."""
    kind = get_origin(hint) or hint
    if kind is tuple:
        inner = get_args(hint)
        every = inner[:1] * len(value) if inner[-1] is ... and isinstance(value, tuple) else inner
        return isinstance(value, tuple) and len(value) == len(every) and all(map(_is, value, every))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str if kind is Literal else kind)


def _words(hint: Any) -> str:
    """What `_is` takes, for a reader."""
    kind = get_origin(hint) or hint
    if kind is tuple:
        inner = get_args(hint)
        many = "any number" if inner[-1] is ... else str(len(inner))
        return f"a list of {many}, each {_words(inner[0])}"
    words = {
        float: "a finite number",
        int: "a whole number",
        bool: "true | false",
        str: "text",
        Literal: "text",
    }
    return words.get(kind, "a table")


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
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)
