"""What travels with weights: the card; and the packed file, one safetensors file with its card inside."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from camlucida.errors import NetworkError
from camlucida.images.views import Preprocessing
from camlucida.values import Label, Shown

SCHEMA = 1


@dataclass(frozen=True)
class Tuned:
    """How this network localizes best, chosen on the tuning split: map method and box rule as specs (`cam`,
    `fraction-of-max:threshold=0.3`), views to merge, and what it scored there."""

    method: str = "auto"
    boxes: str = "fraction-of-max"
    views: str = "1"
    chosen_on: str = ""


@dataclass(frozen=True, repr=False)
class Card(Shown):
    """All that must be known to use weights as they were trained. `architecture` and `arguments` rebuild the
    module."""

    name: str = "network"
    architecture: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    labels: tuple[Label, ...] = ()
    activation: Literal["softmax", "sigmoid", "none"] = "softmax"
    localization: Tuned = field(default_factory=Tuned)
    licence: str = ""
    terms: str = ""
    trained_by: str = ""
    trained_on: str = ""
    measured: Mapping[str, Any] = field(default_factory=dict)
    sha256: str = ""

    def label(self, index: int) -> Label:
        """The label of a class; a class without one is called by its number."""
        return self.labels[index] if index < len(self.labels) else Label(str(index), f"class {index}")

    def __repr__(self) -> str:
        trained = f", trained on {self.trained_on}" if self.trained_on else ""
        return f"Card({self.name}, {len(self.labels)} named classes{trained})"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "name", self.name
        yield from self._about()

    def _about(self) -> Iterable[tuple[str, object]]:
        """The facts that are known, without the name."""
        shape, few = self.preprocessing, ", ".join(label.name.split(",")[0] for label in self.labels[:3])
        side = (
            f"shorter side {shape.size}"
            if shape.resize == "short"
            else f"squashed to {shape.size} × {shape.size}"
        )
        cut = f", centre crop {shape.crop}" if shape.crop else ""
        tuned = self.localization
        known = {
            "architecture": " ".join([self.architecture, *(f"{k}={v}" for k, v in self.arguments.items())]),
            "classes": f"{len(self.labels)}: {few}{' …' if len(self.labels) > 3 else ''}" if self.labels else "not named",
            "input": f"{side}{cut}, {shape.interpolation}, {shape.channels}",
            "probabilities by": self.activation,
            "localizes by": f"{tuned.method}, {tuned.boxes}, views {tuned.views}",
            "trained on": self.trained_on,
            "licence": self.licence,
            "sha256": self.sha256[:12],
        }  # fmt: skip
        return [(word, value) for word, value in known.items() if value.strip()]

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Card:
        try:
            found = json.loads(text)
            schema = found.pop("schema", None)
            if schema != SCHEMA:
                raise NetworkError(
                    "a card",
                    got=f"schema {schema}",
                    allowed=f"schema {SCHEMA}",
                    do="repack the network with this version",
                )
            shape: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in found.pop("preprocessing").items()
            }
            labels = tuple(Label(**label) for label in found.pop("labels"))
            return cls(
                preprocessing=Preprocessing(**shape),
                labels=labels,
                localization=Tuned(**found.pop("localization")),
                **found,
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise NetworkError("a card cannot be read", got=f"{type(error).__name__}: {error}") from error


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of a state dict, in the order of names."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def pack(file: str | Path, state: Mapping[str, Tensor], card: Card, dtype: torch.dtype | None = None) -> Card:
    """Writes weights and card into one file, whole or not at all; `dtype` converts floating weights. Returns
    the card as written."""
    from safetensors.torch import save_file

    file = Path(file)
    kept = {
        name: (t.to(dtype) if dtype is not None and t.is_floating_point() else t)
        .detach()
        .cpu()
        .contiguous()
        .clone()
        for name, t in state.items()
    }
    card = replace(card, sha256=digest(kept))
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        save_file(kept, temporary, metadata={"camlucida": card.to_json()})
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    return card


def read_card(file: str | Path) -> Card:
    """The card of a packed file. Raises NetworkError for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "pt") as packed:
            text = (packed.metadata() or {}).get("camlucida")
    except (OSError, SafetensorError) as error:
        raise NetworkError(f"cannot open {file}", got=str(error)) from error
    if text is None:
        raise NetworkError(
            f"{file} has no card",
            allowed="files written by camlucida",
            do="pack the weights with their card first",
        )
    return Card.from_json(text)


def read_weights(file: str | Path, card: Card) -> dict[str, Tensor]:
    """The weights of a packed file, checked against the card's digest; half precision comes back as
    float32."""
    from safetensors.torch import load_file

    state = load_file(str(file))
    if card.sha256 and digest(state) != card.sha256:
        raise NetworkError(
            f"{file} is damaged: its weights do not match the card's sha256", do="fetch or pack it again"
        )
    return {n: t.float() if t.is_floating_point() else t for n, t in state.items()}


def rewrite_card(file: str | Path, card: Card) -> None:
    """Puts another card into a packed file, weights untouched."""
    from safetensors.torch import load_file

    pack(file, load_file(str(file)), card)


def read_state_dict(file: str | Path) -> dict[str, Tensor]:
    """A plain state dict from `.pth`/`.pt` or `.safetensors`. A file that needs code to load is refused."""
    import pickle

    file = Path(file)
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(str(file))
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise NetworkError(
            f"{file} holds more than tensors and would have to run code to load",
            do="where it was made: torch.save(model.state_dict(), 'weights.pth')",
        ) from error
    except Exception as error:
        raise NetworkError(
            f"cannot read weights from {file}", got=f"{type(error).__name__}: {error}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise NetworkError(
            f"{file} is no state dict",
            allowed="names → tensors",
            do="torch.save(model.state_dict(), 'weights.pth')",
        )
    prefixes = ("module.", "_orig_mod.")
    while state and all(name.startswith(prefixes) for name in state):
        state = {name.split(".", 1)[1]: tensor for name, tensor in state.items()}
    return state
