"""Networks as a user has them in a file of their own, small: `own_networks:function`."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

_builds = itertools.count(1)


def gap(num_classes: int = 4, channels: int = 3) -> nn.Module:
    """Pictures of any size; 3 × 3 convolution of stride 2 without padding, ReLU, mean, linear."""
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, num_classes)
    )  # fmt: skip


def smooth() -> nn.Module:
    """As `gap`, with a GELU and a second convolution: no ReLU rule leads back through it."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2), nn.GELU(), nn.Conv2d(4, 5, 3, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
    )  # fmt: skip


def grey() -> nn.Module:
    return gap(channels=1)


def square() -> nn.Module:
    """32 × 32 pixels only: its head is fully connected."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 4))


def one_output() -> nn.Module:
    return gap(1)


class Inside(nn.Module):
    """A frozen trunk run without gradients, a branch that nothing uses, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU())
        self.unused = nn.Conv2d(5, 2, 1)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.trunk(x)
        self.unused(x)
        return self.fc(x.mean((2, 3)))


class Unsteady(nn.Module):
    """Multiplies its logits by how often it was built."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.times = gap(), next(_builds)

    def forward(self, x: Tensor) -> Tensor:
        return self.times * self.net(x)
