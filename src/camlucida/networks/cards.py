"""What travels with weights: the card; and the packed file, one safetensors file with its card inside."""

from __future__ import annotations

import hashlib
import json
import os
import re
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
    """Writes weights and card into one file, whole or not at all; `dtype` converts floating weights, but for those with
    numbers too large for it (variances of pixels in 0…255 in half precision). Returns the card as written."""
    from safetensors.torch import save_file

    file = Path(file)
    kept = {
        name: (t.to(dtype) if dtype is not None and _holds(dtype, t) else t)
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


def _holds(dtype: torch.dtype, tensor: Tensor) -> bool:
    """Whether floating numbers stay finite in another precision."""
    if not tensor.is_floating_point() or not tensor.numel():
        return False
    return float(tensor.detach().abs().max()) <= torch.finfo(dtype).max


def read_card(file: str | Path) -> Card:
    """The card of a packed file. Raises NetworkError for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "pt") as packed:
            text = (packed.metadata() or {}).get("camlucida")
    except (OSError, SafetensorError) as error:
        got = _what_it_is(Path(file)) or error
        raise NetworkError(
            f"cannot open {file}", got=got, allowed="a packed network, .safetensors"
        ) from error
    if text is None:
        raise NetworkError(
            f"{file} has no card",
            allowed="files written by camlucida",
            do=f"give it its card: camlucida pack OUT.safetensors --arch NAME --weights {file}",
        )
    return Card.from_json(text)


def card_in(file: str | Path) -> Card | None:
    """The card of a packed file; None for weights in any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "pt") as packed:
            text = (packed.metadata() or {}).get("camlucida")
    except (OSError, SafetensorError):
        return None  # another kind of file, which its own reader judges
    return Card.from_json(text) if text is not None else None


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
    """A plain state dict from PyTorch's or safetensors' files, told apart by what is in them, without the words that
    DataParallel and `torch.compile` put before its names. In a checkpoint, the state dict among its entries. Raises
    NetworkError; a file that needs code to load is refused."""
    import pickle

    file = Path(file)
    other = _what_it_is(file)
    if other is not None:
        raise NetworkError(f"{file} holds no weights", got=other, allowed=".pth, .pt, .ckpt, .safetensors")
    try:
        if _is_safetensors(file):
            from safetensors.torch import load_file

            state: Any = load_file(str(file))
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # readers fail in many ways on files that are cut, or made by something else
        text = str(error)
        needs_code = isinstance(error, pickle.UnpicklingError) and not re.search("truncated|operand", text)
        if needs_code or "TorchScript" in text:
            asked = re.search(r"GLOBAL (\S+)", text)
            reader = "torch.jit.load(F)" if "TorchScript" in text else "torch.load(F, weights_only=False)"
            raise NetworkError(
                f"{file} holds more than tensors",
                got=f"{asked[1]}, and it would have to run code to load"
                if asked
                else "a file that would have to run code to load",
                do="where it was made: torch.save(model.state_dict(), 'weights.pth'); or, if you trust it, where its code can be imported: "
                + f"python -c \"import torch; F = {str(file)!r}; torch.save({reader}.state_dict(), 'weights.pth')\"",
            ) from error
        first = text.split("\n", 1)[0].split(". ", 1)[0] or "it ends too early"
        raise NetworkError(
            f"cannot read weights from {file}",
            got=f"{file.stat().st_size:,} bytes; {type(error).__name__}: {first}",
            do="it is cut short, damaged or no file of PyTorch's: fetch or save it again",
        ) from error
    state = _state_dict_in(state, file)
    prefixes = ("module.", "_orig_mod.")
    while state and all(name.startswith(prefixes) for name in state):
        state = {name.split(".", 1)[1]: tensor for name, tensor in state.items()}
    return state


HOLDERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
"""What checkpoints call the entry with the network's state dict, the likeliest first."""


def _state_dict_in(found: Any, file: Path) -> dict[str, Tensor]:
    """The mapping names → tensors, itself or within the entries of a checkpoint."""

    def is_state(entry: Any) -> bool:
        return isinstance(entry, Mapping) and bool(entry) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in entry.items())  # fmt: skip

    while isinstance(found, Mapping) and not is_state(found):
        states = [key for key, entry in found.items() if is_state(entry)]
        named = [key for key in HOLDERS if key in states] or (states if len(states) == 1 else [])
        inner = next(iter(named or [key for key in HOLDERS if isinstance(found.get(key), Mapping)]), None)
        if inner is None:
            break
        found = found[inner]
    if not isinstance(found, Mapping) or not is_state(found):
        entries = ", ".join(map(str, list(found)[:8])) if isinstance(found, Mapping) else ""
        raise NetworkError(
            f"{file} is no state dict",
            allowed="names → tensors",
            do=f"it holds {entries or type(found).__name__}; where it was made: torch.save(model.state_dict(), 'weights.pth')",
        )
    return dict(found)


def _is_safetensors(file: Path) -> bool:
    """Whether a file begins as safetensors do: the length of the header, then JSON."""
    with file.open("rb") as stream:
        start = stream.read(9)
    return start[8:9] == b"{" and start[:2] != b"PK"


def _what_it_is(file: Path) -> str | None:
    """What a file holds instead of weights, in words; None where it may hold some."""
    try:
        with file.open("rb") as stream:
            start = stream.read(512)
    except OSError as error:
        return error.strerror or str(error)
    word = start.lstrip().lower()
    kinds = {
        "an HTML page: the download gave a web page instead of the file": word.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")),
        "a Git LFS pointer: git lfs pull fetches the file itself": word.startswith(b"version https://git-lfs"),
        "a Keras or HDF5 file, which is another framework's": start.startswith(b"\x89HDF"),
        "an empty file": not start,
    }  # fmt: skip
    found = next((words for words, is_it in kinds.items() if is_it), None)
    if found is None and file.suffix == ".safetensors" and not _is_safetensors(file):
        return f"a file of {file.stat().st_size:,} bytes that does not begin as safetensors do"
    return found
