"""The network that ships in the package: a plain residual net, fully convolutional, with a GAP head.

3 × 3 convolutions only; stride 8, so that its maps are 8 × 8 at 64 × 64; takes any picture of at least 64 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3 × 3 convolutions with batch norm and an identity (or projected) path around them. No in-place operation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.path: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.path = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
                if stride > 1
                else nn.Identity(),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(out + self.path(x))


class Lucida(nn.Module):
    """`(N, 3, H ≥ 64, W ≥ 64)` → logits `(N, num_classes)`. `widths` and `depths`: channels and blocks of each stage;
    every stage but the first and the last halves the map."""

    def __init__(
        self,
        num_classes: int = 200,
        widths: Sequence[int] = (64, 128, 256, 320),
        depths: Sequence[int] = (2, 2, 3, 1),
        width: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        widths = [max(8, round(w * width / 8) * 8) for w in widths]
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        stages, inputs = [], widths[0]
        for i, (outputs, depth) in enumerate(zip(widths, depths, strict=True)):
            stride = 2 if 0 < i < len(widths) - 1 else 1
            stages.append(
                nn.Sequential(
                    *(
                        Block(inputs if j == 0 else outputs, outputs, stride if j == 0 else 1)
                        for j in range(depth)
                    )
                )
            )
            inputs = outputs
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(inputs, num_classes)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.dropout(torch.flatten(self.pool(self.stages(self.stem(x))), 1)))
