"""The VGG networks A … E, A-LRN and the shallow B with 5 × 5 filters (VGG paper, section 14 of the specification): one
table, one reader. Names of weights are torchvision's: its vgg11, vgg13, vgg16, vgg19 are A, B, D, E."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from camlucida.errors import NetworkError, nearest
from camlucida.networks.blocks import (
    Classifier,
    contrast_norm,
    initialise,
    preprocessing,
    scaled,
    side_after,
)
from camlucida.networks.heads import FullyConnected, PooledLinear, fully_connected

CONFIGURATIONS = {
    "A": "64 | 128 | 256 256 | 512 512 | 512 512",
    "A-LRN": "64 LRN | 128 | 256 256 | 512 512 | 512 512",
    "B": "64 64 | 128 128 | 256 256 | 512 512 | 512 512",
    "C": "64 64 | 128 128 | 256 256 256/1 | 512 512 512/1 | 512 512 512/1",
    "D": "64 64 | 128 128 | 256 256 256 | 512 512 512 | 512 512 512",
    "E": "64 64 | 128 128 | 256 256 256 256 | 512 512 512 512 | 512 512 512 512",
    "shallow-B": "64/5 | 128/5 | 256/5 | 512/5 | 512/5",
}
"""Five groups, each ended by a 2 × 2 max pooling (`|`); a word is a convolution and its ReLU: channels, `/` kernel where it
is not 3; padding keeps the size."""


def convolutions(configuration: str, width: float = 1.0) -> nn.Sequential:
    """The five groups with their poolings, numbered as torchvision does."""
    if configuration not in CONFIGURATIONS:
        raise NetworkError(f"VGG configuration {configuration!r}", do=nearest(configuration, CONFIGURATIONS))
    parts: list[nn.Module] = []
    inputs = 3
    for group in CONFIGURATIONS[configuration].split("|"):
        for word in group.split():
            if word == "LRN":
                parts.append(contrast_norm())
                continue
            channels, _, kernel = word.partition("/")
            outputs, side = scaled(int(channels), width), int(kernel or 3)
            parts += [nn.Conv2d(inputs, outputs, side, 1, side // 2), nn.ReLU()]
            inputs = outputs
        parts.append(nn.MaxPool2d(2))
    return nn.Sequential(*parts)


class VGG(Classifier):
    """`(N, 3, size, size)` → logits: `features.N`, then `classifier.0`, `.3`, `.6` on the flattened map of `size`/32."""

    def __init__(
        self, configuration: str = "D", num_classes: int = 1000, width: float = 1.0, size: int = 224, dropout: float = 0.5
    ) -> None:  # fmt: skip
        features = convolutions(configuration, width)
        initialise(features)
        units = {n: scaled(4096, width) for n in (6, 7)}
        inputs = scaled(512, width) * side_after(features, size) ** 2
        top = FullyConnected(*fully_connected(inputs, units, num_classes, dropout))
        super().__init__(features, top, preprocessing(size, 224, any_size=False, minimum=32))
        self.configuration = configuration


class VGGnetGAP(Classifier):
    """A VGG trunk without its last pooling, the added convolution of 1024, global average pooling, dropout, linear (CAM
    paper): 14 × 14 maps at 224 pixels. The released added convolution has `groups=2`."""

    def __init__(
        self, configuration: str = "D", num_classes: int = 1000, width: float = 1.0, size: int = 224, groups: int = 1,
        dropout: float = 0.5,
    ) -> None:  # fmt: skip
        features = convolutions(configuration, width)[:-1]
        initialise(features)
        head = PooledLinear(
            scaled(512, width), num_classes, "avg", scaled(1024, width), groups=groups, dropout=dropout
        )
        super().__init__(features, head, preprocessing(size, 224, any_size=True, minimum=32))
        self.configuration = configuration


a, a_lrn, b, c, d, e, shallow_b = (partial(VGG, name) for name in CONFIGURATIONS)
d_gap = partial(VGGnetGAP, "D")


def convolution_names(module: VGG) -> dict[str, str]:
    """The paper's names of the convolutions, `1_1` … `5_4`, and where they are: `features.0` …"""
    names, group, position = {}, 1, 1
    for index, layer in enumerate(module.features.children()):
        if isinstance(layer, nn.MaxPool2d):
            group, position = group + 1, 1
        elif isinstance(layer, nn.Conv2d):
            names[f"{group}_{position}"] = f"features.{index}"
            position += 1
    return names


def start_from(deeper: VGG, net_a: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Copies net A's first four convolutions (1_1, 2_1, 3_1, 3_2) and its three fully connected layers into a deeper net of
    the same width, size and classes; the rest stays as it is (VGG paper, section 3.1). Returns the names of the
    weights that were filled. Raises NetworkError where the shapes differ.
    """
    own, there = convolution_names(deeper), {"1_1": 0, "2_1": 3, "3_1": 6, "3_2": 8}
    pairs = {own.get(name, name): f"features.{index}" for name, index in there.items()}
    pairs |= {f"classifier.{i}": f"classifier.{i}" for i in (0, 3, 6)}
    state = deeper.state_dict()
    filled = [(f"{to}.{kind}", f"{of}.{kind}") for to, of in pairs.items() for kind in ("weight", "bias")]
    for to, of in filled:
        if to not in state or of not in net_a or state[to].shape != net_a[of].shape:
            got = f"{tuple(net_a[of].shape)}" if of in net_a else "no such weight"
            raise NetworkError(
                f"starting {to} from net A's {of}", got=got,
                allowed=tuple(state[to].shape) if to in state else "a net with that layer",
                do="give a net A of the same width, size and classes",
            )  # fmt: skip
    with torch.no_grad():
        for to, of in filled:
            state[to].copy_(net_a[of])
    return tuple(to for to, _ in filled)
