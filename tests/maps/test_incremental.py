"""The incremental engine against full inference, place by place (section 11.1)."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import camlucida as cl
from camlucida import taps
from camlucida.errors import UnsupportedError, UsageError
from camlucida.maps import incremental
from camlucida.maps.incremental import winograd
from camlucida.maps.incremental.graph import Reach, Step, local_graph
from camlucida.maps.incremental.intervals import changed, clustered
from fingerprints import unchanged
from oracles import maps as oracle
from small_networks import fully_connected, gap, headed, pixels, seeded, tokens


class Made(nn.Module):
    """A network of the layers given, and how they are joined."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        self.how = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def made(forward, **layers):
    return seeded(lambda: Made(forward, **{name: build() for name, build in layers.items()}))


class Scale(nn.Module):
    """A factor for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, channels)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


SIDES = (33, 41)


def chain(*layers):
    """Layers, then a linear head over all cells, so that each counts by weights of its own."""

    def build() -> nn.Module:
        module = nn.Sequential(*(layer() for layer in layers), nn.Flatten(), nn.LazyLinear(4))
        module(pixels(2, *SIDES))
        return module

    return lambda: seeded(build)


conv = lambda *a, **k: lambda: nn.Conv2d(*a, **k)  # noqa: E731
relu = lambda: nn.ReLU(inplace=True)  # noqa: E731


def residual(m: Made, x: Tensor) -> Tensor:
    x = F.relu_(m.stem(x))
    y = m.norm2(m.second(F.relu(m.norm1(m.first(x)), inplace=True)))
    y += m.down(x)
    return m.fc(F.relu_(y).mean((2, 3)))


def branches(m: Made, x: Tensor) -> Tensor:
    x = m.stem(x)
    parts = [m.one(x), m.five(m.one(x)), F.max_pool2d(x, 3, 1, 1)]
    joined = torch.cat(parts, 1)
    a, b = joined.chunk(2, 1)
    return m.fc((F.silu(a) * b + 0.5).flatten(1))


def squeezed(m: Made, x: Tensor) -> Tensor:
    x = F.relu(m.stem(x))
    y = m.first(x)
    y = y * torch.sigmoid(m.gate(y.mean((2, 3), keepdim=True)))
    return m.fc((x + m.second(y)).mean((2, 3)))


def channels_last(m: Made, x: Tensor) -> Tensor:
    x = m.stem(x)
    y = m.norm(m.depth(x).permute(0, 2, 3, 1))
    y = m.narrow(F.gelu(m.wide(y))).permute(0, 3, 1, 2)
    return m.fc((x + m.scale(y)).mean((2, 3)))


def shuffled(m: Made, x: Tensor) -> Tensor:
    x = m.stem(x)
    n, c, h, w = x.shape
    x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
    return m.fc(m.second(x).mean((2, 3)))


KINDS = {
    "kernel, stride, padding": chain(conv(3, 4, (3, 5), (2, 1), (1, 0)), relu, conv(4, 4, 4, 3, 2)),
    "dilation, groups": chain(conv(3, 6, 3, padding=2, dilation=2), relu, conv(6, 6, 3, groups=3)),
    "stride beyond the kernel": chain(conv(3, 4, 2, 5), relu, conv(4, 4, 1, 2)),
    "same": chain(conv(3, 4, 4, padding="same"), relu, conv(4, 4, 3, padding="same", dilation=2)),
    "zeros around": chain(lambda: nn.ZeroPad2d((2, 0, 1, 3)), conv(3, 4, 3), relu),
    "max pool, rounded up": chain(conv(3, 4, 3), lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), relu),
    "max pool, dilated": chain(conv(3, 4, 3), lambda: nn.MaxPool2d(2, 3, dilation=2)),
    "average pool, rounded up": chain(conv(3, 4, 3), lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
    "average pool of what is inside": chain(
        conv(3, 4, 3), lambda: nn.AvgPool2d(4, 3, 2, count_include_pad=False), relu
    ),
    "average pool, own divisor": chain(conv(3, 4, 3), lambda: nn.AvgPool2d(3, 2, divisor_override=5)),
    "adaptive pool, even": chain(conv(3, 4, 2), lambda: nn.AdaptiveAvgPool2d((8, 10)), conv(4, 4, 3)),
    "adaptive pool, uneven": chain(conv(3, 4, 2), lambda: nn.AdaptiveAvgPool2d((5, 7)), conv(4, 4, 3)),
    "contrast norm": chain(conv(3, 6, 5, 2), relu, lambda: nn.LocalResponseNorm(5, 0.5, 0.75, 2), conv(6, 4, 3)),
    "norm before the layer": chain(conv(3, 4, 3), lambda: nn.BatchNorm2d(4), relu, conv(4, 4, 1)),
    "short products, 3": chain(conv(3, 130, 3, 2), relu, conv(130, 130, 3, padding=1), relu, conv(130, 3, 1)),
    "short products, 5": chain(conv(3, 130, 3, 3), relu, conv(130, 130, 5, padding=2), relu, conv(130, 3, 1)),
    "prelu, dropout, hardswish": chain(
        conv(3, 4, 3), lambda: nn.PReLU(4), nn.Dropout, lambda: nn.Hardswish(True), conv(4, 4, 3)
    ),
    "residual": lambda: made(
        residual, stem=conv(3, 6, 3), first=conv(6, 6, 3, 2, 1), norm1=lambda: nn.BatchNorm2d(6),
        second=conv(6, 6, 3, padding=1), norm2=lambda: nn.BatchNorm2d(6), down=conv(6, 6, 1, 2),
        fc=lambda: nn.Linear(6, 4),
    ),
    "branches": lambda: made(
        branches, stem=conv(3, 4, 3, 2), one=conv(4, 4, 1), five=conv(4, 4, 5, padding=2),
        fc=lambda: nn.Linear(6 * 16 * 20, 4),
    ),
    "squeeze and excitation": lambda: made(
        squeezed, stem=conv(3, 6, 3, 2), first=conv(6, 6, 3, padding=1), gate=conv(6, 6, 1),
        second=conv(6, 6, 3, padding=1), fc=lambda: nn.Linear(6, 4),
    ),
    "channels last": lambda: made(
        channels_last, stem=conv(3, 6, 2, 2), depth=conv(6, 6, 7, padding=3, groups=6),
        norm=lambda: nn.LayerNorm(6), wide=lambda: nn.Linear(6, 9), narrow=lambda: nn.Linear(9, 6),
        scale=lambda: Scale(6), fc=lambda: nn.Linear(6, 4),
    ),
    "shuffled channels": lambda: made(
        shuffled, stem=conv(3, 6, 3, 2), second=conv(6, 6, 3, groups=2), fc=lambda: nn.Linear(6, 4)
    ),
    "dict": lambda: headed(lambda m, x: {"logits": m.fc(m.pool(x).flatten(1)), "features": x}),
    "maximum": lambda: headed(lambda m, x: m.fc(x.amax((2, 3)))),
}  # fmt: skip


def places(side: tuple[int, int], size: tuple[int, int], count: int) -> Tensor:
    """The four corners of the picture, and places anywhere."""
    most = side[0] - size[0], side[1] - size[1]
    generator = torch.Generator().manual_seed(4)
    anywhere = torch.stack([torch.randint(0, m + 1, (count,), generator=generator) for m in most], 1)
    return torch.cat([torch.tensor([[0, 0], [0, most[1]], [most[0], 0], most]), anywhere])


def by_full_inference(module: nn.Module, x: Tensor, corners: Tensor, contents: Tensor) -> Tensor:
    """Logits of every edited picture, in float64."""
    edited = x.double().repeat(len(corners), 1, 1, 1)
    height, width = contents.shape[-2:]
    for i, (row, column) in enumerate(corners.tolist()):
        edited[i, :, row : row + height, column : column + width] = (
            contents[i] if contents.ndim == 4 else contents
        )
    try:
        with torch.no_grad():
            output = module.double()(edited)
    finally:
        module.float()
    return output["logits"] if isinstance(output, dict) else output


def assert_exact(found: Tensor, wanted: Tensor, clean: Tensor, tolerance: float = 1e-5) -> None:
    """The specification allows 1e-4 of the logit range; float rounding is below 1e-5."""
    spread = float(clean.max() - clean.min())
    assert float((wanted - clean).abs().max()) > 1e-3 * spread
    assert float((found.double() - wanted).abs().max()) <= tolerance * spread


@pytest.mark.parametrize("size", [(5, 9), (1, 1), (16, 7)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer(kind, size):
    module = NETWORKS.setdefault(kind, KINDS[kind]())
    network = WRAPPED.setdefault(kind, cl.wrap(module))
    side = (20, 28) if kind in ("dict", "maximum") else SIDES
    x = pixels(1, *side)
    corners = places(side, size, 14)
    contents = torch.randn(len(corners), 3, *size, generator=torch.Generator().manual_seed(3)) * 2
    with unchanged(module):
        found = incremental.evaluate(network, x, corners, contents)
    assert_exact(found, by_full_inference(module, x, corners, contents), network(x))


NETWORKS: dict[str, nn.Module] = {}
WRAPPED: dict[str, cl.Network] = {}
