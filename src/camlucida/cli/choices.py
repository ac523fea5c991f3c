"""What several verbs ask for in the same words, a network, a threshold; and say of it in their manifests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from camlucida.boxes.from_map import Rule
    from camlucida.images.views import Preprocessing
    from camlucida.networks.network import Network

CHANNELS: dict[str, Literal["RGB", "BGR", "L"]] = {"rgb": "RGB", "bgr": "BGR", "grey": "L"}
MISFIT = (RuntimeError, ValueError, AssertionError)  # what modules raise at pixels of another shape
Numbers = Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="NUMBERS")]


@dataclass(frozen=True)
class NetworkOptions:
    """A network by its name or packed file (--network), or one's own weights (--arch NAME --weights FILE). What is not
    said comes from the network's card; for one's own network: 224 pixels, mean and std of ImageNet, softmax."""

    network: str | None = None
    """A catalogue name (embedded, where nothing is said), torchvision/NAME, timm/NAME, a packed FILE.safetensors, or package.module:function."""
    arch: str | None = None
    """Instead of --network, what --weights were trained with: torchvision/NAME, timm/NAME, a catalogue architecture, or package.module:function."""
    weights: str = "default"
    """default (published), none (random), or a FILE with a state dict: .pth, .pt, .ckpt or .safetensors."""
    labels: str | None = None
    """File with the class names in the order of the outputs: one a line (or id TAB name), CSV, JSON."""
    num_classes: int | None = None
    """Outputs of the network; by default as many as the weights have, else as --labels."""
    mean: Numbers = None
    """Subtracted from each channel, in the order of --channels; in 0…1, or in 0…255 if above 1. Goes with --std."""
    std: Numbers = None
    """Each channel is divided by it after --mean; in the same units."""
    range: Literal[1, 255] | None = None
    """What white is before --mean and --std, where the numbers leave it open (mean 104 117 123, std 1 1 1: 255)."""
    channels: Literal["rgb", "bgr", "grey"] | None = None
    """Order of the channels that the network takes."""
    size: int | None = None
    """Shorter side that pictures are shown at."""
    crop: int | None = None
    """Side of the centre crop, or of the square for a network that takes no other shape."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How pictures are resized."""
    activation: Literal["softmax", "sigmoid", "none"] | None = None
    """What makes probabilities of logits: softmax (one class a picture), sigmoid (several), none."""
    head: Literal["gap", "gmp", "regression", "fc", "dense"] | None = None
    """Another head on the trunk; the weights may be the trunk's or the whole network's. gap, gmp: global average or maximum pooling and one linear layer, for CAM; regression: as gap, numbers instead of classes; fc: three fully connected layers; dense: the network's own, as convolutions over larger pictures."""
    cut: str | None = None
    """Layer at which the trunk ends under --head: camlucida layers lists them."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto: the first CUDA device if there is one."""
    precision: Literal["32-true", "64-true", "bf16-true", "bf16-mixed", "16-true", "16-mixed"] = "32-true"
    """Arithmetic of the network."""
    download: bool = False
    """Allow published weights to be fetched from the network."""

    @property
    def named(self) -> str:
        """The network or architecture that was asked for."""
        return self.arch or self.network or "embedded"


Chosen = Annotated[NetworkOptions, tyro.conf.OmitArgPrefixes]
"""The type of a verb's field `network`, and its value where nothing is said."""
DEFAULT = NetworkOptions()


def network(options: NetworkOptions) -> Network:
    """The network that the options name, its card changed as they say. Raises UsageError, NetworkError."""
    import sys

    from camlucida.errors import UsageError
    from camlucida.networks import cards, catalogue

    _consistent(options)
    labels = _labels(options)
    weights = None if options.weights == "none" else options.weights
    classes = options.num_classes
    if classes is None and weights is None and options.arch and labels:
        classes = len(labels)
    if ":" in options.named:
        _import_from_here()
    net = catalogue.assemble(
        options.named, lambda shape: _preprocessing(options, shape), weights=weights, num_classes=classes, head=options.head, cut=options.cut,
        device=options.device, precision=options.precision, download=options.download,
    )  # fmt: skip
    if (options.head or options.cut) and "head" in net.card.arguments and weights is not None:
        new = {n for n in net.module.state_dict() if n.startswith("head.")}
        filled = weights != "default" and new <= cards.read_state_dict(weights).keys()
        if not filled and options.head != "dense":
            print("the new head is random until it is trained: its classes mean nothing yet", file=sys.stderr)
    if options.activation and options.activation != net.card.activation:
        net = replace(net, card=replace(net.card, activation=options.activation, measured={}))
    if options.arch or ":" in options.named or labels:
        net, outputs = _tried(net)
        if labels and len(labels) != outputs:
            raise UsageError(
                f"labels in {options.labels}",
                got=f"{len(labels)} names",
                allowed=f"{outputs}, one for each output of the network, in their order",
            )
        if labels:
            net = replace(net, card=replace(net.card, labels=labels))
        if options.arch and outputs == 1 and net.card.activation == "softmax":
            raise UsageError(
                f"{options.arch} has one output, and the softmax of one number is always 1",
                do="--activation sigmoid (probability of the one class) or none (the number itself)",
            )
    if not net.card.sha256:
        net = replace(net, card=replace(net.card, sha256=cards.digest(net.module.state_dict())))
    return net


def _consistent(options: NetworkOptions) -> None:
    from camlucida.errors import UsageError
    from camlucida.networks import catalogue

    if options.network and options.arch:
        raise UsageError(
            "--network and --arch together",
            got=f"{options.network} and {options.arch}",
            do="--network names a network that is ready, --arch one whose weights you give: keep one of them",
        )
    if options.arch and (options.arch in (*catalogue.ALIASES, *catalogue.PUBLISHED) or options.arch.endswith(".safetensors")):  # fmt: skip
        raise UsageError(
            f"--arch {options.arch}", got="a network with weights", do=f"--network {options.arch}"
        )
    if options.arch:
        catalogue.check_architecture(options.arch)
    for name in ("num_classes", "size", "crop"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')}", got=value, allowed="≥ 1")
    if options.size and options.crop and options.crop > options.size:
        raise UsageError(f"--crop {options.crop}", allowed=f"at most --size {options.size}")
    if (options.mean is None) != (options.std is None):
        raise UsageError("--mean and --std go together", got="one of them", do="mean 0, std 1 leave the numbers alone")  # fmt: skip
    if options.range and options.mean is None:
        raise UsageError(f"--range {options.range}", got="no --mean and --std", do="give them in that range")


def _labels(options: NetworkOptions) -> Any:
    from camlucida.networks.labels import read_labels

    return read_labels(options.labels) if options.labels else None


def _import_from_here() -> None:
    """Makes code in the current folder importable, as `python -m` does: the user named it."""
    import os
    import sys

    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())


def _preprocessing(options: NetworkOptions, shape: Preprocessing) -> Preprocessing:
    """The card's preprocessing with what the options change."""
    import sys

    from camlucida.errors import UsageError

    channels = CHANNELS[options.channels] if options.channels else shape.channels
    changes: dict[str, Any] = {"channels": channels}
    if options.mean is not None and options.std is not None:
        expected = len(channels)
        for name, numbers in (("mean", options.mean), ("std", options.std)):
            if len(numbers) != expected:
                raise UsageError(
                    f"--{name}", got=f"{len(numbers)} numbers", allowed=f"{expected}, for {channels}"
                )
        if min(options.std) <= 0:
            raise UsageError("--std", got=f"{min(options.std):g}", allowed="> 0")
        white = options.range or _white(options.mean, options.std)
        changes |= {"mean": options.mean, "std": options.std, "scale": float(white), "mean_picture": ""}
        if white == 255 and options.range is None:
            print("--mean and --std are read in 0…255", file=sys.stderr)
    elif len(channels) != len(shape.channels):
        raise UsageError(
            f"--channels {options.channels}",
            got=f"mean and std for {shape.channels}",
            do=f"give --mean and --std with {len(channels)} {'number' if len(channels) == 1 else 'numbers'} each",
        )
    elif channels != shape.channels:  # the same colours in another order
        changes |= {"mean": shape.mean[::-1], "std": shape.std[::-1]}
    for name in ("size", "crop", "interpolation"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    return replace(shape, **changes)


def _white(mean: tuple[float, ...], std: tuple[float, ...]) -> int:
    """1 or 255: the range that the numbers are given in. Zeros fit both. Raises UsageError where they disagree."""
    from camlucida.errors import UsageError

    above = {number > 1 for number in (*mean, *std) if number}
    if len(above) == 2 or min(mean) < 0 or max(*mean, *std) > 255:
        raise UsageError(
            "--mean and --std",
            got=f"{', '.join(f'{m:g}' for m in mean)} and {', '.join(f'{s:g}' for s in std)}",
            allowed="all in 0…1, or all in 0…255",
            do="where numbers of both sizes are meant, --range 1 or --range 255 says what white is",
        )
    return 255 if above == {True} else 1


def _tried(net: Network) -> tuple[Network, int]:
    """The network, tried on blank pictures, and its number of outputs. One of the user's own code that fails on pictures
    that are not square takes squares only; its card then says so. Raises NetworkError where it fails on both."""
    import torch

    from camlucida.errors import NetworkError

    shape = net.card.preprocessing
    side = max(shape.crop or shape.size, shape.minimum)

    def outputs(height: int, width: int) -> int:
        return net(torch.zeros(1, len(shape.channels), height, width)).shape[1]

    if shape.any_size and ":" in net.card.architecture and not net.card.architecture.startswith("timm/"):
        try:
            return net, outputs(side, side + max(side // 4, 1))
        except MISFIT:
            net = replace(net, card=replace(net.card, preprocessing=replace(shape, any_size=False)))
    try:
        return net, outputs(side, side)
    except MISFIT as error:
        raise NetworkError(
            f"{net.card.architecture or net.card.name} fails on a blank picture of {len(shape.channels)} × {side} × {side}",
            got=str(error).splitlines()[0],
            do="--size and --channels say what it takes",
        ) from error


@contextmanager
def perturbing(memory: str | None) -> Iterator[None]:
    """Inside, methods that run changed copies of pictures keep to --memory, and on a terminal say what that costs and how
    far it is. Raises UsageError."""
    from camlucida.cli import progress
    from camlucida.maps import schedule

    with schedule.memory(memory), progress.of_maps() as hear, schedule.heard_by(hear):
        yield


def at_threshold(rule: Rule, threshold: float | None) -> Rule:
    """The rule with another threshold, quantile or level. Raises UsageError for a rule that has none."""
    from camlucida.errors import UsageError

    if threshold is None:
        return rule
    for field in ("threshold", "q", "value"):
        if hasattr(rule, field):
            return replace(rule, **{field: threshold})  # type: ignore[type-var]
    raise UsageError(
        f"--threshold {threshold}", got=f"the rule {type(rule).__name__}, which has none", do="leave it out"
    )


def provenance(net: Network) -> dict[str, Any]:
    """What a manifest says of the network and the software: its card without the labels, and versions."""
    import json
    import platform

    import numpy
    import PIL
    import torch

    from camlucida import __version__

    card = json.loads(net.card.to_json())
    card.pop("labels")
    versions = {
        "camlucida": __version__, "python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__,
        "pillow": PIL.__version__,
    }  # fmt: skip
    return {"card": card, "versions": versions}
