"""Networks from elsewhere: torchvision's, timm's, any module inside a wrapper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from camlucida.errors import NetworkError, nearest
from camlucida.images.views import Preprocessing
from camlucida.networks import cards
from camlucida.networks.cards import Card
from camlucida.values import Label

SQUARE_ONLY = ("vit_", "maxvit")  # torchvision families that take one input size


def inner(module: Any) -> nn.Module:
    """The user's own module inside DataParallel and `torch.compile`, whose wrappers hooks cannot see
    through."""
    while True:
        if hasattr(module, "_orig_mod"):
            module = module._orig_mod
        elif isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        else:
            return module


def is_compiled(module: nn.Module) -> bool:
    """Whether it, or a part of it, went through `torch.compile`."""
    return any(getattr(m, "_compiled_call_impl", None) or hasattr(m, "_orig_mod") for m in module.modules())


def torchvision_module(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    import torchvision

    _known_torchvision(name)
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **extra, **arguments)


def torchvision_network(
    name: str, weights: str | Path | None, arguments: dict[str, Any], download: bool
) -> tuple[nn.Module, Card]:
    """A torchvision classifier with the preprocessing and labels of its default weights."""
    import torchvision

    _known_torchvision(name)
    published = torchvision.models.get_model_weights(name).DEFAULT
    preset = published.transforms()
    shape = Preprocessing(
        size=preset.resize_size[0],
        crop=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        any_size=not name.startswith(SQUARE_ONLY),
        minimum=75 if name == "inception_v3" else 32,
    )
    if weights != "default":
        built = torchvision_module(name, arguments)
        labels = _labels(published) if arguments.get("num_classes", 1000) == 1000 else ()
        return built, Card(name, f"torchvision/{name}", arguments, shape, labels)
    if arguments:
        raise NetworkError(
            f"torchvision/{name} with its published weights",
            got=arguments,
            do="use weights=None to build it anew",
        )
    file = Path(torch.hub.get_dir()) / "checkpoints" / published.url.rsplit("/", 1)[-1]
    if not file.is_file() and not download:
        raise NetworkError(
            f"the published weights of torchvision/{name} are not in the cache ({file})",
            do="allow the download with --download (download=True), or give a weights file, or weights=None "
            "for random ones",
        )
    if name in ("googlenet", "inception_v3"):
        arguments = {"aux_logits": True, "transform_input": True}
    module: Any = torchvision_module(name, arguments)
    state = published.get_state_dict(check_hash=True) if not file.is_file() else cards.read_state_dict(file)
    module.load_state_dict(state)
    if name in ("googlenet", "inception_v3"):
        module.aux_logits = False
    licence = "see torchvision's model page: the weights' terms are their data set's"
    return module, Card(
        name,
        f"torchvision/{name}",
        arguments,
        shape,
        _labels(published),
        licence=licence,
        trained_by="torchvision",
        trained_on="ImageNet-1k",
    )


def _labels(published: Any) -> tuple[Label, ...]:
    return tuple(Label(str(i), name) for i, name in enumerate(published.meta["categories"]))


def torchvision_names() -> list[str]:
    """torchvision's classifiers."""
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def _known_torchvision(name: str) -> None:
    known = torchvision_names()
    if name not in known:
        raise NetworkError(f"torchvision has no classifier {name!r}", do=nearest(name, known))


def timm_module(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    return _timm().create_model(name, pretrained=False, **arguments)


def timm_network(
    name: str, weights: str | Path | None, arguments: dict[str, Any], download: bool
) -> tuple[nn.Module, Card]:
    """A timm classifier with its own data configuration; published weights are fetched only if `download`."""
    timm = _timm()
    if weights == "default" and not download:
        raise NetworkError(
            f"the published weights of timm/{name} come from the network",
            do="allow it with --download, or weights=None",
        )
    if not timm.is_model(name.split(".")[0]):
        raise NetworkError(f"timm has no classifier {name!r}", do=nearest(name, timm.list_models()))
    module = timm.create_model(name, pretrained=weights == "default", **arguments)
    found = timm.data.resolve_model_data_config(module)
    side = found["input_size"][-1]
    shape = Preprocessing(
        size=round(side / found["crop_pct"]),
        crop=side,
        interpolation="bicubic" if found["interpolation"] == "bicubic" else "bilinear",
        mean=tuple(found["mean"]),
        std=tuple(found["std"]),
        any_size=not found.get("fixed_input_size", False) and not hasattr(module, "patch_embed"),
        minimum=32,
    )
    return module, Card(name, f"timm/{name}", arguments, shape)


def timm_names() -> list[str]:
    """timm's classifiers."""
    return _timm().list_models()


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise NetworkError("timm is not installed", do="pip install 'camlucida[timm]'") from error
    return timm
