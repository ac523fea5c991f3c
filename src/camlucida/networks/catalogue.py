"""Networks by name: what can be built, what is published, and `load`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import site
import sys
import sysconfig
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camlucida.errors import NetworkError, UsageError, nearest
from camlucida.images.views import Preprocessing
from camlucida.networks import adapt, cards
from camlucida.networks.blocks import scaled
from camlucida.networks.cards import Card
from camlucida.networks.network import AUTOCAST, PRECISIONS, WHOLE, Network

ARCHITECTURES: dict[str, str] = {
    "lucida": "camlucida.networks.lucida:Lucida",
    "alexnet": "camlucida.networks.alexnet:AlexNet",
    "alexnet-gap": "camlucida.networks.alexnet:AlexNetGAP",
    "alexnet-star-gap": "camlucida.networks.alexnet:AlexNetStarGAP",
    "zfnet": "camlucida.networks.zfnet:ZFNet",
    "zfnet-b": "camlucida.networks.zfnet:ZFNetB",
    "nin": "camlucida.networks.nin:NIN",
    "vgg-a": "camlucida.networks.vgg:a",
    "vgg-a-lrn": "camlucida.networks.vgg:a_lrn",
    "vgg-b": "camlucida.networks.vgg:b",
    "vgg-c": "camlucida.networks.vgg:c",
    "vgg-d": "camlucida.networks.vgg:d",
    "vgg-e": "camlucida.networks.vgg:e",
    "vgg-shallow-b": "camlucida.networks.vgg:shallow_b",
    "vgg-d-gap": "camlucida.networks.vgg:d_gap",
    "googlenet": "camlucida.networks.googlenet:GoogLeNet",
    "googlenet-gap": "camlucida.networks.googlenet:GoogLeNetGAP",
    "googlenet-gmp": "camlucida.networks.googlenet:googlenet_gmp",
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


def check_architecture(name: str) -> None:
    """Raises NetworkError for a name that `build` cannot know, with the nearest right one."""
    if name in ARCHITECTURES or name.startswith(("torchvision/", "timm/")) or ":" in name:
        return
    raise NetworkError(
        f"architecture {name!r} is not known",
        do=f"did you mean 'torchvision/{name}'?"
        if name in adapt.torchvision_names()
        else nearest(name, ARCHITECTURES) + "; or torchvision/NAME, timm/NAME, package.module:function",
    )


def build(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A module with random weights. Raises NetworkError for an unknown name or arguments it does not take."""
    if architecture.startswith("torchvision/"):
        return adapt.torchvision_module(architecture.removeprefix("torchvision/"), arguments)
    if architecture.startswith("timm/"):
        return adapt.timm_module(architecture.removeprefix("timm/"), arguments)
    if architecture in ARCHITECTURES:
        builder = _imported(ARCHITECTURES[architecture])
    else:
        check_architecture(architecture)
        builder = _imported(architecture)
    try:
        signature = _signature(builder)
        if signature is not None:
            signature.bind(**arguments)
    except TypeError as error:
        raise NetworkError(
            f"{architecture} does not take these arguments", got=dict(arguments), do=str(error)
        ) from error
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
    arguments: Mapping[str, Any] | None = None,
    device: str = "cpu",
    precision: str = "32-true",
    download: bool = False,
) -> Network:
    """A network by name: `embedded`, a catalogue name, `torchvision/NAME`, `timm/NAME`, a packed
    `.safetensors` file, or `package.module:function` (your own code).

    `weights`: `default` (the published ones, from the package, the cache, or the network if `download`), None
    (random), or a file with a state dict: `num_classes` is then by default what the file has, and a packed file brings
    its card along. `head`: `gap`, `gmp` (the CAM paper's), `regression`, `fc` or `dense` on any trunk, cut at layer
    `cut`, filled too if the weights have it (`networks.heads.put`); `width` scales channels; `arguments`: what else
    the architecture takes, such as `{"size": 64}`. Raises NetworkError.
    """
    return assemble(
        name, lambda shape: shape, weights=weights, num_classes=num_classes, head=head, cut=cut, width=width,
        arguments=arguments, device=device, precision=precision, download=download,
    )  # fmt: skip


def assemble(
    name: str,
    shaped: Callable[[Preprocessing], Preprocessing],
    *,
    weights: str | Path | None,
    num_classes: int | None,
    head: str | None,
    cut: str | None,
    width: float = 1.0,
    arguments: Mapping[str, Any] | None = None,
    device: str,
    precision: str,
    download: bool,
) -> Network:
    """`load`, with the card's preprocessing changed by `shaped` before a head is put on, which looks at blank pixels."""
    if precision not in PRECISIONS:
        raise NetworkError("precision", got=repr(precision), do=nearest(precision, PRECISIONS))
    name = ALIASES.get(name, name)
    file = weights if weights not in ("default", None) else None
    state = cards.read_state_dict(file) if file is not None else None
    arguments = dict(arguments or {})
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    if width != 1.0:
        arguments["width"] = width
    if name.endswith(".safetensors") or name in PUBLISHED:
        if arguments and weights is not None:
            raise NetworkError(
                f"{name} is fixed by its weights", got=arguments, do="use weights=None to build it anew"
            )
        packed = published_file(name) if name in PUBLISHED else Path(name)
        if not packed.is_file():
            raise NetworkError(f"there is no packed network {packed}", do=nearest(name, names()))
        card = cards.read_card(packed)
        _refuse_foreign_code(card.architecture)
        module, card = rebuild(packed, card, arguments, load_weights=weights == "default")
    else:
        if state is not None and name in ("torchvision/googlenet", "torchvision/inception_v3"):
            arguments["aux_logits"] = any("aux" in n.lower() for n in state)
        module, card = _anew(name, weights if state is None else None, arguments, download)
        state = _without_training_only(module, state) if state is not None else None
        classes = _classes(module.state_dict(), state) if state is not None and num_classes is None else None
        if classes is not None and _takes_classes(name):
            module, card = _anew(name, None, {**arguments, "num_classes": classes}, download)
    if state is not None:
        card = _card_of(file, card)
    shape = shaped(card.preprocessing)
    if shape != card.preprocessing:  # what was measured was measured with the card's own
        card = replace(card, preprocessing=shape, measured={})
    headed = head is not None or cut is not None
    whole = headed and state is not None and all(n.startswith(("trunk.", "head.")) for n in state)
    if state is not None and not whole:
        _fill(module, state, file)
    if headed:
        from camlucida.networks import heads

        try:
            units = scaled(1024, width)
            module, card = heads.put(
                module, card, head or "gap", cut=cut, num_classes=num_classes, units=units
            )
        except RuntimeError as error:  # from the module itself, on pixels of the card's size
            raise NetworkError(
                f"{name} fails on a blank picture of its card's size, {shape.crop or shape.size}",
                got=str(error).splitlines()[0],
                do="a packed file, or --size and --channels, say what it takes",
            ) from error
    if state is not None and whole:
        _fill(module, state, file)
    if state is not None:
        card = replace(card, sha256=cards.digest(module.state_dict()))
    module = module.to(device=_device(device), dtype=WHOLE.get(precision, torch.float32)).eval()
    return Network(module, card, precision=precision if precision in AUTOCAST else "32-true")


def wrap(module: nn.Module, *, card: Card | None = None, layer: str | None = None) -> Network:
    """Any torch module that gives logits `(N, C)`, `{"logits": …}` or `.logits`, with its card. Of a compiled module the
    original runs (compiled code shows nobody its layers), which a warning says, once at each place."""
    if adapt.is_compiled(module):
        warnings.warn(
            f"{type(adapt.inner(module)).__name__} is compiled: camlucida runs it uncompiled, since compiled code runs no hooks; "
            "results are the same, the speed is the plain module's",
            stacklevel=2,
        )
    return Network(adapt.inner(module), card or Card(name=type(module).__name__), layer)


def rebuild(
    file: Path, card: Card, arguments: Mapping[str, Any] | None = None, load_weights: bool = True
) -> tuple[nn.Module, Card]:
    """The module of a packed file, built as its card says, with any code that the card names: `load` asks first whether
    that may run."""
    arguments = arguments or {}
    recorded = dict(card.arguments)
    head = recorded.pop("head", None)
    module = build(card.architecture, {**recorded, **arguments})
    if head:
        from camlucida.networks import heads

        module = heads.again(module, card, head)
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


def _anew(
    name: str, weights: str | Path | None, arguments: dict[str, Any], download: bool
) -> tuple[nn.Module, Card]:
    """A network that no packed file describes: published or random weights, and the card of its family."""
    if name.startswith("torchvision/"):
        return adapt.torchvision_network(name.removeprefix("torchvision/"), weights, arguments, download)
    if name.startswith("timm/"):
        return adapt.timm_network(name.removeprefix("timm/"), weights, arguments, download)
    if name in ARCHITECTURES or (":" in name and not os.path.exists(name)):
        if weights == "default" and name in ARCHITECTURES:
            raise NetworkError(
                f"{name} has no published weights", do="give weights=None for random ones, or a file"
            )
        module = build(name, arguments)
        shape = getattr(module, "preprocessing", None)
        shape = shape if isinstance(shape, Preprocessing) else Preprocessing()
        return module, Card(name, name, arguments, shape)
    raise NetworkError(
        f"network {name!r} is not known",
        do=f"weights need their architecture: --arch NAME --weights {name} (cl.load(NAME, weights={name!r}))"
        if os.path.isfile(name)
        else nearest(name, names())
        + "; or torchvision/NAME, timm/NAME, a packed file, package.module:function",
    )


def _classes(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> int | None:
    """The number of classes of a state dict that fits but for the size of its last layer (and of auxiliary ones)."""
    state = _named_as(own, state)
    if own.keys() != state.keys():
        return None
    misfits = [n for n in own if own[n].shape != state[n].shape]
    pairs = {(len(own[n]), len(state[n])) for n in misfits if own[n].ndim and state[n].ndim}
    same = all(own[n].shape[1:] == state[n].shape[1:] for n in misfits)
    return next(iter(pairs))[1] if same and len(pairs) == 1 else None


def _without_training_only(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict without the parts that only training has (GoogLeNet's auxiliary heads), where the module has none."""
    own, prefixes = module.state_dict(), getattr(module, "training_only", ())
    return {n: t for n, t in state.items() if n in own or not n.startswith(tuple(prefixes))}


def _takes_classes(name: str) -> bool:
    if name.startswith(("torchvision/", "timm/")):
        return True
    return takes(name, "num_classes")


def takes(architecture: str, argument: str) -> bool:
    """Whether an architecture of the catalogue, or the user's own, has an argument of that name."""
    if architecture.startswith(("torchvision/", "timm/")):
        return False
    signature = _signature(_imported(ARCHITECTURES.get(architecture, architecture)))
    return signature is not None and argument in signature.parameters


def _signature(builder: Callable[..., Any]) -> inspect.Signature | None:
    """None for a builder that has none to read: some are written in C. Raises TypeError for what cannot be called."""
    try:
        return inspect.signature(builder)
    except ValueError:
        return None


def _card_of(file: str | Path | None, card: Card) -> Card:
    """The card of a network whose weights came from a file: what a packed file says of its own; no figure that other
    weights were measured with."""
    own = cards.card_in(file) if file is not None else None
    if own is not None:
        return replace(own, architecture=card.architecture, arguments=card.arguments)
    return replace(card, measured={}, trained_by="", trained_on="", licence="", terms="")


def _fill(module: nn.Module, state: Mapping[str, Tensor], file: str | Path | None) -> None:
    """Puts a state dict into a module. Raises NetworkError that names what is missing, surplus or misshapen."""
    own = module.state_dict()
    state = _named_as(own, state)
    missing, surplus = [n for n in own if n not in state], [n for n in state if n not in own]
    misfits = [n for n in own if n in state and own[n].shape != state[n].shape]
    wrong = [f"{n} {tuple(state[n].shape)} for {tuple(own[n].shape)}" for n in misfits]
    if missing or surplus or wrong:
        parts = [
            f"{len(g)} {w} ({', '.join(g[:4])}{' …' if len(g) > 4 else ''})"
            for g, w in ((missing, "missing"), (surplus, "surplus"), (wrong, "misshapen"))
            if g
        ]
        classes = _classes(own, state)
        do = "name the architecture and number of classes they were trained with"
        if classes is not None:
            do = f"the weights have {classes} classes, the network {len(own[misfits[0]])}: --num-classes {classes}"
        elif len(missing) == len(own):
            do = "no name fits: it is another architecture, or its layers are called otherwise"
        elif not missing and not wrong:
            do = "the network's own weights are all there: save the file again without the surplus"
        raise NetworkError(f"the weights in {file} do not fit the network", got="; ".join(parts), do=do)
    module.load_state_dict(state)


def _named_as(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A state dict with its names as the module has them: first words that all names share (`model.`, `module.model.`,
    `backbone.` …) are taken off, or the module's own put on, where more names fit then."""
    tried = [dict(state)]
    while len({n.partition(".")[0] for n in tried[-1]}) == 1 and all("." in n for n in tried[-1]):
        tried.append({n.partition(".")[2]: t for n, t in tried[-1].items()})
    first = {n.partition(".")[0] for n in own}
    if len(first) == 1:
        tried += [{f"{word}.{n}": t for n, t in tried[-1].items()} for word in first]
    return max(tried, key=lambda names: len(own.keys() & names.keys()))


def _refuse_foreign_code(architecture: str) -> None:
    """Raises NetworkError where a packed file names code that its reader has not: a file from elsewhere must not be able
    to call whatever is installed. Code of one's own, outside Python's library and the installed packages, may run."""
    if ":" not in architecture or architecture in ARCHITECTURES.values():
        return
    paths = sysconfig.get_paths()
    installed = [paths[k] for k in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed += [*site.getsitepackages(), site.getusersitepackages()]
    found = None
    if not architecture.startswith("timm/"):  # timm/hf-hub:… would fetch it
        module = architecture.partition(":")[0].partition(".")[0]
        found = (
            importlib.util.find_spec(module) if module not in sys.modules else sys.modules[module].__spec__
        )
        if found is None and module not in sys.modules:
            raise NetworkError(
                f"cannot import {module}, which the packed network needs",
                do="run where it is importable: PYTHONPATH=FOLDER camlucida …",
            )
    places = [found.origin, *(found.submodule_search_locations or ())] if found is not None else []
    files = [os.path.realpath(place) for place in places if place and os.path.exists(place)]
    if not files or any(f.startswith(os.path.realpath(p) + os.sep) for f in files for p in installed):
        raise NetworkError(
            f"the packed network asks to run {architecture}",
            got="code that is installed here and not part of camlucida",
            do=f"if you trust it, name it yourself: --arch {architecture} --weights FILE.safetensors",
        )


def _imported(path: str) -> Callable[..., Any]:
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise NetworkError(
            f"cannot import {module}",
            got=str(error),
            do="run where the package is importable: PYTHONPATH=FOLDER camlucida …",
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
