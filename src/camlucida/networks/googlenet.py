"""GoogLeNet with its auxiliary heads, and the CAM paper's GoogLeNet-GAP and GoogLeNet-GMP (sections 1.1 and 1.2 of the
specification)."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from camlucida.networks.blocks import Classifier, contrast_norm, initialise, max_pool, preprocessing, scaled
from camlucida.networks.heads import PooledLinear

BLOCKS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
"""Channels of 1 × 1; 3 × 3's reduction and 3 × 3; 5 × 5's reduction and 5 × 5; the pooling's projection."""


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
    return nn.Sequential(OrderedDict(conv=conv, relu=nn.ReLU()))


class Inception(nn.Module):
    """Four branches over the same map, their channels put one after another: 1 × 1; 3 × 3; 5 × 5; pooling."""

    def __init__(self, inputs: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pool = channels
        self.one = _conv(inputs, one, 1)
        self.three = nn.Sequential(_conv(inputs, reduce3, 1), _conv(reduce3, three, 3))
        self.five = nn.Sequential(_conv(inputs, reduce5, 1), _conv(reduce5, five, 5))
        self.pool = nn.Sequential(max_pool(1, 1), _conv(inputs, pool, 1))
        self.outputs = one + three + five + pool

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


class Auxiliary(nn.Module):
    """A classifier on the side that only training uses: 4 × 4 averages → 1 × 1 convolution of 128 → 1024 → logits."""

    def __init__(self, inputs: int, num_classes: int, width: float) -> None:
        super().__init__()
        channels, units = scaled(128, width), scaled(1024, width)
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.conv = _conv(inputs, channels, 1)
        self.hidden = nn.Sequential(nn.Linear(16 * channels, units), nn.ReLU(), nn.Dropout(0.7))
        self.classify = nn.Linear(units, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.hidden(torch.flatten(self.conv(self.pool(x)), 1)))


def trunk(until: str = "5b", width: float = 1.0) -> tuple[nn.Sequential, dict[str, int]]:
    """Stem and blocks up to one of them, and the channels that each block gives."""
    first, last = scaled(64, width), scaled(192, width)
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=_conv(3, first, 7, 2), pool1=max_pool(), norm1=contrast_norm(), reduce2=_conv(first, first, 1),
        conv2=_conv(first, last, 3), norm2=contrast_norm(), pool2=max_pool(),
    )  # fmt: skip
    given: dict[str, int] = {}
    for name, channels in BLOCKS.items():
        block = Inception(last, tuple(scaled(c, width) for c in channels))
        parts[f"inception{name}"] = block
        given[name] = last = block.outputs
        if name == until:
            break
        if name in ("3b", "4e"):
            parts[f"pool{name[0]}"] = max_pool()
    features = nn.Sequential(parts)
    initialise(features)
    return features, given


class GoogLeNet(Classifier):
    """`(N, 3, H, W)` → logits: 7 × 7 maps at 224 pixels, global average pooling, dropout, linear.

    `aux=True`: in training mode it gives `{"logits": (N, C), "auxiliary": ((N, C), (N, C))}`, the side classifiers on 4a
    and 4d; in eval mode logits. Their weights (`auxiliary.…`) are left out where a network without them is loaded.
    """

    training_only = ("auxiliary.",)

    def __init__(
        self, num_classes: int = 1000, width: float = 1.0, size: int = 224, aux: bool = False, dropout: float = 0.4
    ) -> None:  # fmt: skip
        features, given = trunk(width=width)
        head = PooledLinear(given["5b"], num_classes, "avg", None, dropout=dropout)
        super().__init__(features, head, preprocessing(size, 224, any_size=True, minimum=32))
        if aux:
            sides = {f"inception{name}": Auxiliary(given[name], num_classes, width) for name in ("4a", "4d")}
            self.auxiliary = nn.ModuleDict(sides)

    def forward(self, pixels: Tensor) -> Any:
        if not (self.training and hasattr(self, "auxiliary")):
            return super().forward(pixels)
        auxiliary = []
        x = pixels
        for name, part in self.features.named_children():
            x = part(x)
            if name in self.auxiliary:
                auxiliary.append(self.auxiliary[name](x))
        return {"logits": self.classifier(x), "auxiliary": tuple(auxiliary)}


class GoogLeNetGAP(Classifier):
    """GoogLeNet up to inception4e, the added convolution of 1024, global pooling, linear: 14 × 14 maps at 224 pixels. The
    released added convolution has `groups=2`; its biases start at 1."""

    def __init__(
        self, num_classes: int = 1000, width: float = 1.0, size: int = 224, groups: int = 1, dropout: float = 0.0,
        pool: Literal["avg", "max"] = "avg",
    ) -> None:  # fmt: skip
        features, given = trunk("4e", width)
        head = PooledLinear(
            given["4e"], num_classes, pool, scaled(1024, width), groups=groups, dropout=dropout, conv_bias=1.0
        )
        super().__init__(features, head, preprocessing(size, 224, any_size=True, minimum=32))


googlenet_gmp = partial(GoogLeNetGAP, pool="max")
