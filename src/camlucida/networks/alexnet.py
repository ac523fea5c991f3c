"""AlexNet in one tower with its groups, its variants without layers or with other widths (ZF paper, specification
section 13), and the CAM paper's AlexNet-GAP and AlexNet*-GAP (section 1.1)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from camlucida.errors import NetworkError
from camlucida.networks.blocks import (
    Classifier,
    contrast_norm,
    initialise,
    max_pool,
    preprocessing,
    scaled,
    side_after,
)
from camlucida.networks.heads import PooledLinear, fully_connected


@dataclass(frozen=True)
class Conv:
    """A convolution and its ReLU; `norm`: contrast normalisation; `pool`: stride and padding of a 3 × 3 max pooling."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    norm: bool = False
    pool: tuple[int, int] | None = None


ALEXNET = {
    1: Conv(96, 11, 4, norm=True, pool=(2, 0)),
    2: Conv(256, 5, 1, 2, groups=2, norm=True, pool=(2, 0)),
    3: Conv(384, 3, 1, 1),
    4: Conv(384, 3, 1, 1, groups=2),
    5: Conv(256, 3, 1, 1, groups=2, pool=(2, 0)),
}
FC = {6: 4096, 7: 4096}


def convolutions(layers: Mapping[int, Conv], width: float = 1.0, pool_first: bool = False) -> nn.Sequential:
    """conv1, relu1, norm1, pool1, conv2 …; each takes the channels of the one before. `pool_first`: pooling before
    normalisation, as in Caffe's AlexNet and in ZFNet."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 3
    for number, layer in layers.items():
        outputs = scaled(layer.channels, width)
        if inputs % layer.groups or outputs % layer.groups:
            raise NetworkError(
                f"layer {number}",
                got=f"{inputs} → {outputs} channels",
                allowed=f"multiples of {layer.groups} groups",
            )
        parts[f"conv{number}"] = nn.Conv2d(
            inputs, outputs, layer.kernel, layer.stride, layer.padding, groups=layer.groups
        )
        parts[f"relu{number}"] = nn.ReLU()
        after = {"norm": layer.norm, "pool": layer.pool is not None}
        for word in reversed(after) if pool_first else after:
            if after[word]:
                made = contrast_norm() if word == "norm" else max_pool(*(layer.pool or ()))
                parts[f"{word}{number}"] = made
        inputs = outputs
    return nn.Sequential(parts)


def varied(
    layers: Mapping[int, Conv], remove: Sequence[int], widths: Mapping[int | str, int] | None
) -> tuple[dict[int, Conv], dict[int, int]]:
    """The convolutions and the hidden fully connected layers that are left, with their new widths."""
    known = {*layers, *FC}
    changed = {int(number): units for number, units in (widths or {}).items()}
    for what, numbers, allowed in (("remove", remove, known - {1}), ("widths", changed, known)):
        if not allowed.issuperset(numbers):
            raise NetworkError(what, got=sorted(numbers), allowed=f"layers {sorted(allowed)}")
    if set(remove) & set(changed):
        raise NetworkError("a removed layer has no width", got=sorted(set(remove) & set(changed)))
    convs = {
        n: replace(layer, channels=changed.get(n, layer.channels))
        for n, layer in layers.items()
        if n not in remove
    }
    return convs, {n: changed.get(n, units) for n, units in FC.items() if n not in remove}


class AlexNet(Classifier):
    """`(N, 3, size, size)` → logits, by layers 1 … 5 (convolutions) and 6 … 8 (fully connected).

    `remove`: layers left out (2 … 7); `widths`: channels or units by layer number (1 … 7); what follows takes what it
    gets. `width` multiplies all channels and units. A removed layer takes its pooling along.
    """

    layers: Mapping[int, Conv] = ALEXNET
    full, pool_first = 227, False

    def __init__(
        self,
        num_classes: int = 1000,
        width: float = 1.0,
        size: int | None = None,
        remove: Sequence[int] = (),
        widths: Mapping[int | str, int] | None = None,
        dropout: float = 0.5,
    ) -> None:
        size = size or self.full
        convs, units = varied(self.layers, remove, widths)
        features = convolutions(convs, width, self.pool_first)
        initialise(features)
        inputs = scaled(list(convs.values())[-1].channels, width) * side_after(features, size) ** 2
        hidden = {n: scaled(u, width) for n, u in units.items()}
        super().__init__(
            features, fully_connected(inputs, hidden, num_classes, dropout),
            preprocessing(size, self.full, any_size=False, minimum=64),
        )  # fmt: skip


class AlexNetGAP(Classifier):
    """conv1 … conv5, the added convolution of 1024, global average pooling, linear: 13 × 13 maps at 227 pixels, 8 × 8
    from 135 on. The released added convolution has `groups=2`."""

    def __init__(
        self, num_classes: int = 1000, width: float = 1.0, size: int = 227, groups: int = 1, dropout: float = 0.0
    ) -> None:  # fmt: skip
        features = convolutions({**ALEXNET, 5: replace(ALEXNET[5], pool=None)}, width)
        initialise(features)
        head = PooledLinear(
            scaled(256, width), num_classes, "avg", scaled(1024, width), groups=groups, dropout=dropout
        )
        super().__init__(features, head, preprocessing(size, 227, any_size=True, minimum=64))


class AlexNetStarGAP(Classifier):
    """As released: conv5 of 384, pool5 with stride 1, conv6 and conv7 of 512, pooling, dropout, linear. `mapping`: 11 × 11
    maps at 227 pixels as released, or the text's 13 × 13, by padding pool5."""

    def __init__(
        self, num_classes: int = 1000, width: float = 1.0, size: int = 227, mapping: int = 11, dropout: float = 0.5
    ) -> None:  # fmt: skip
        if mapping not in (11, 13):
            raise NetworkError("mapping", got=mapping, allowed="11 | 13")
        last = Conv(512, 3, 1, 1, groups=2)
        conv5 = replace(ALEXNET[5], channels=384, pool=(1, 0 if mapping == 11 else 1))
        features = convolutions({**ALEXNET, 5: conv5, 6: last, 7: last}, width)
        initialise(features)
        head = PooledLinear(scaled(512, width), num_classes, "avg", None, dropout=dropout)
        super().__init__(features, head, preprocessing(size, 227, any_size=True, minimum=64))
