"""Network in network for ILSVRC (CAM paper, section 1.2 of the specification): its last convolution gives the class maps."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from camlucida.networks.blocks import Classifier, initialise, max_pool, preprocessing, scaled
from camlucida.networks.heads import GlobalPool


class NIN(Classifier):
    """`(N, 3, H, W)` → logits: four convolutions, each followed by two of 1 × 1; the very last has a channel a class; its
    ReLU keeps the logits from being negative, as released. 6 × 6 maps at 224 pixels."""

    def __init__(
        self, num_classes: int = 1000, width: float = 1.0, size: int = 224, dropout: float = 0.5
    ) -> None:  # fmt: skip
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = 3
        for number, channels, kernel, stride, padding in (
            (1, 96, 11, 4, 0), (2, 256, 5, 1, 2), (3, 384, 3, 1, 1), (4, 1024, 3, 1, 1),
        ):  # fmt: skip
            outputs = scaled(channels, width)
            for step in (1, 2, 3):
                shape = (kernel, stride, padding) if step == 1 else (1, 1, 0)
                outputs = num_classes if (number, step) == (4, 3) else outputs
                parts[f"conv{number}_{step}"] = nn.Conv2d(inputs, outputs, *shape)
                parts[f"relu{number}_{step}"] = nn.ReLU()
                inputs = outputs
            if number < 4:
                parts[f"pool{number}"] = max_pool()
            if number == 3:
                parts["dropout"] = nn.Dropout(dropout)
        features = nn.Sequential(parts)
        initialise(features)
        super().__init__(features, GlobalPool(), preprocessing(size, 224, any_size=True, minimum=64))
