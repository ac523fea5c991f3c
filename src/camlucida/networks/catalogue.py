"""Networks by name: what can be built, what is published, and `load`."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from camlucida.errors import NetworkError, UsageError, nearest
from camlucida.networks import adapt, cards
from camlucida.networks.cards import Card
from camlucida.networks.network import AUTOCAST, PRECISIONS, WHOLE, Network

ARCHITECTURES: dict[str, str] = {
    "lucida": "camlucida.networks.lucida:Lucida",
}
PUBLISHED: dict[str, str] = {
    "lucida-tiny200-v1": "lucida-tiny200-v1.safetensors",
}
ALIASES: dict[str, str] = {
    "embedded": "lucida-tiny200-v1",
}


def published_file(name: str) -> Path:
    """The packed file of a published network, inside the installed package."""
    return Path(__file__).parent / "weights" / PUBLISHED[name]


def names() -> tuple[str, ...]:
    """All names that `load` knows by itself; `torchvision/NAME`, `timm/NAME`, files and
    `package.module:function` come on top."""
    return (*ALIASES, *PUBLISHED, *ARCHITECTURES)


def build(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A module with random weights. Raises NetworkError for an unknown name or arguments it does not take."""
    if architecture.startswith("torchvision/"):
        return adapt.torchvision_module(architecture.removeprefix("torchvision/"), arguments)
    if architecture.startswith("timm/"):
        return adapt.timm_module(architecture.removeprefix("timm/"), arguments)
    if architecture in ARCHITECTURES:
        builder = _imported(ARCHITECTURES[architecture])
    elif ":" in architecture:
        builder = _imported(architecture)
    else:
        raise NetworkError(f"architecture {architecture!r}", do=nearest(architecture, ARCHITECTURES))
    try:
        inspect.signature(builder).bind(**arguments)
    except TypeError as error:
        raise NetworkError(
            f"{architecture} does not take these arguments", got=dict(arguments), do=str(error)
        ) from error
    except ValueError:
        pass  # no signature to check
    module = builder(**arguments)
    if not isinstance(module, nn.Module):
        raise NetworkError(f"{architecture} gave", got=type(module).__name__, allowed="a torch.nn.Module")
    return module


def load(
    name: str,
    *,
    weights: str | Path | None = "default",
    num_classes: int | None = None,
    head: str | None = None,
    cut: str | None = None,
    width: float = 1.0,
    device: str = "cpu",
    precision: str = "32-true",
    download: bool = False,
) -> Network:
    """A network by name: `embedded`, a catalogue name, `torchvision/NAME`, `timm/NAME`, a packed
    `.safetensors` file, or `package.module:function` (your own code).

    `weights`: `default` (the published ones, from the package, the cache, or the network if `download`), None
    (random), or a file with a state dict. `head="gap" | "gmp"` puts the CAM paper's head on any trunk, cut at
    layer `cut`; `width` scales channels. Raises NetworkError.
    """
    if precision not in PRECISIONS:
        raise NetworkError("precision", got=repr(precision), do=nearest(precision, PRECISIONS))
    name = ALIASES.get(name, name)
    arguments: dict[str, Any] = {}
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    if width != 1.0:
        arguments["width"] = width
    if name.endswith(".safetensors") or name in PUBLISHED:
        if arguments and weights is not None:
            raise NetworkError(
                f"{name} is fixed by its weights", got=arguments, do="use weights=None to build it anew"
            )
        file = published_file(name) if name in PUBLISHED else Path(name)
        if not file.is_file():
            raise NetworkError(f"there is no packed network {file}", do=nearest(name, names()))
        card = cards.read_card(file)
        module, card = _rebuild(file, card, arguments, load_weights=weights == "default")
        if weights not in ("default", None):
            _fill(module, weights)
    elif name.startswith("torchvision/"):
        module, card = adapt.torchvision_network(
            name.removeprefix("torchvision/"), weights, arguments, download
        )
    elif name.startswith("timm/"):
        module, card = adapt.timm_network(name.removeprefix("timm/"), weights, arguments, download)
    elif name in ARCHITECTURES or (":" in name and not os.path.exists(name)):
        if weights == "default" and name in ARCHITECTURES:
            raise NetworkError(
                f"{name} has no published weights", do="give weights=None for random ones, or a file"
            )
        module = build(name, arguments)
        card = Card(name=name, architecture=name, arguments=arguments)
        if weights not in ("default", None):
            _fill(module, weights)
    else:
        raise NetworkError(
            f"network {name!r} is not known",
            do=nearest(name, names())
            + "; or torchvision/NAME, timm/NAME, a packed file, package.module:function",
        )
    if head is not None or cut is not None:
        from camlucida.networks import heads

        module, card = heads.put(module, card, head or "gap", cut=cut, num_classes=num_classes)
    module = module.to(device=_device(device), dtype=WHOLE.get(precision, torch.float32)).eval()
    return Network(module, card, precision=precision if precision in AUTOCAST else "32-true")


def wrap(module: nn.Module, *, card: Card | None = None, layer: str | None = None) -> Network:
    """Any torch module that gives logits `(N, C)`, `{"logits": …}` or `.logits`, with its card."""
    return Network(adapt.inner(module), card or Card(name=type(module).__name__), layer)


def _rebuild(file: Path, card: Card, arguments: dict[str, Any], load_weights: bool) -> tuple[nn.Module, Card]:
    recorded = dict(card.arguments)
    head = recorded.pop("head", None)
    module = build(card.architecture, {**recorded, **arguments})
    if head:
        from camlucida.networks import heads

        module, _ = heads.put(module, card, **head)
    if load_weights:
        module.load_state_dict(cards.read_weights(file, card))
        return module, card
    labels = card.labels if arguments.get("num_classes") in (None, len(card.labels)) else ()
    return module, replace(
        card,
        name=card.architecture,
        arguments={**card.arguments, **arguments},
        labels=labels,
        sha256="",
        measured={},
    )


def _fill(module: nn.Module, file: str | Path) -> None:
    state = cards.read_state_dict(file)
    own = module.state_dict()
    missing, surplus = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [
        f"{n} {tuple(state[n].shape)} for {tuple(own[n].shape)}"
        for n in own.keys() & state.keys()
        if own[n].shape != state[n].shape
    ]
    if missing or surplus or wrong:
        parts = [
            f"{len(g)} {w} ({', '.join(g[:4])}{' …' if len(g) > 4 else ''})"
            for g, w in ((missing, "missing"), (surplus, "surplus"), (wrong, "misshapen"))
            if g
        ]
        raise NetworkError(
            f"the weights in {file} do not fit the network",
            got="; ".join(parts),
            do="name the architecture and number of classes they were trained with",
        )
    module.load_state_dict(state)


def _imported(path: str) -> Callable[..., Any]:
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise NetworkError(
            f"cannot import {module}", got=str(error), do="run where the package is importable"
        ) from error
    except AttributeError as error:
        raise NetworkError(f"{module} has no {attribute!r}", do="give package.module:function") from error


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and (
            not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()
        ):
            raise UsageError(
                f"device {name}", got=f"{torch.cuda.device_count()} CUDA devices here", do="use --device cpu"
            )
    except RuntimeError as error:
        raise UsageError(
            f"device {name!r}", allowed="cpu | cuda | cuda:1 | auto …", do=str(error).splitlines()[0]
        ) from error
    return device
