"""Small seeded networks, one for each way in which real ones end; none is more than a few layers deep."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 5
CHANNELS = 6


def seeded(build: Callable[..., nn.Module], *arguments, seed: int = 0, **options) -> Any:
    """The module with weights from its own random stream; batch norms with statistics that matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build(*arguments, **options)
        for m in module.modules():
            if (
                isinstance(m, nn.modules.batchnorm._BatchNorm)
                and m.running_mean is not None
                and m.running_var is not None
            ):
                m.running_mean.normal_(0, 0.3)
                m.running_var.uniform_(0.5, 2)
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.normal_(m.bias, 0, 0.2)
    return module.eval()


def pixels(count: int = 2, height: int = 20, width: int = 28, seed: int = 1, channels: int = 3) -> Tensor:
    """Pictures that are not square."""
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def trunk(channels: int = CHANNELS, inplace: bool = False) -> nn.Sequential:
    """Two strided convolutions: 20 × 28 pixels → 5 × 7 cells."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.ReLU(inplace),
        nn.Conv2d(4, channels, 3, stride=2, padding=1),
        nn.ReLU(inplace),
    )


class Headed(nn.Module):
    """A trunk called `features`, then any function of the network and its features."""

    def __init__(
        self, end: Callable[[Headed, Tensor], object], classes: int = CLASSES, bias: bool = True
    ) -> None:
        super().__init__()
        self.features = trunk()
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        self.norm: nn.Module = nn.Identity()
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(CHANNELS, classes, bias=bias)
        self.conv = nn.Conv2d(CHANNELS, classes, 1, bias=bias)
        self.end = end

    def forward(self, x: Tensor) -> object:
        return self.end(self, self.features(x))


def headed(end: Callable, norm: nn.Module | None = None, **options) -> Any:
    def build() -> nn.Module:
        module = Headed(end, **options)
        if norm is not None:
            module.norm = norm
        return module

    return seeded(build)


def gap(**options) -> Any:
    """Pool → flatten → linear."""
    return headed(lambda m, x: m.fc(torch.flatten(m.pool(x), 1)), **options)


class FullyConnected(nn.Module):
    """A head of two linear layers on the flattened map, for 20 × 28 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.features = trunk()
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(CHANNELS * 5 * 7, 8), nn.ReLU(inplace=True), nn.Linear(8, CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def fully_connected() -> Any:
    return seeded(FullyConnected)


class Tokens(nn.Module):
    """A transformer of one block on 5 × 7 patches of 20 × 28 pixels, `prefix` tokens before them; `end`: the class
    token, or the mean over patches before or after the last norm."""

    def __init__(self, end: str, prefix: int = 1, width: int = 8) -> None:
        super().__init__()
        self.end, self.prefix = end, prefix
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.first = nn.Parameter(torch.randn(1, prefix, width))
        self.position = nn.Parameter(torch.randn(1, prefix + 35, width) / 2)
        self.norm1, self.norm2, self.last = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))
        self.block = nn.Identity()
        self.fc = nn.Linear(width, CLASSES)

    def embed(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.position

    def mixed(self, x: Tensor, normed: Tensor) -> Tensor:
        """The block's output for its input and the output of its first norm."""
        q, k, v = self.qkv(normed).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.project(found)
        return self.block(x + self.mlp(self.norm2(x)))

    def head(self, x: Tensor) -> Tensor:
        if self.end == "class token":
            return self.fc(self.last(x)[:, 0])
        if self.end == "norm, mean":
            return self.fc(self.last(x)[:, self.prefix :].mean(1))
        return self.fc(self.last(x[:, self.prefix :].mean(1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.mixed(x, self.norm1(x)))


def tokens(end: str, prefix: int = 1) -> Any:
    return seeded(Tokens, end, prefix)


def called_twice() -> Any:
    """One convolution runs twice before the pool."""

    class Twice(Headed):
        def __init__(self) -> None:
            super().__init__(lambda m, x: m.fc(F.relu(m.again(F.relu(m.again(x)))).mean((2, 3))))
            self.again = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    return seeded(Twice)


def one_channel() -> Any:
    class Grey(Headed):
        def __init__(self) -> None:
            super().__init__(lambda m, x: m.fc(x.mean((2, 3))))
            self.features[0] = nn.Conv2d(1, 4, 3, stride=2, padding=1)

    return seeded(Grey)


def by_axes(axes: int, in_place: bool = False) -> Any:
    """Convolution, ReLU, pool, linear over 1, 2 or 3 axes, for inputs of two channels."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[axes - 1]
    return seeded(
        lambda: nn.Sequential(
            conv(2, 4, 3, 2, 1), nn.ReLU(in_place), pool(1), nn.Flatten(), nn.Linear(4, CLASSES)
        )
    )


# By how they end.
EXACT: dict[str, Callable[[], Any]] = {
    "pool, flatten, linear": gap,
    "mean([2, 3]), linear": lambda: headed(lambda m, x: m.fc(x.mean([2, 3]))),
    "mean(dim=(-2, -1), keepdim)": lambda: headed(
        lambda m, x: m.fc(x.mean(dim=(-2, -1), keepdim=True).flatten(1))
    ),
    "conv 1x1, pool": lambda: headed(lambda m, x: m.pool(m.conv(x)).flatten(1)),
    "conv 1x1, relu, pool": lambda: headed(lambda m, x: m.pool(F.relu(m.conv(x))).view(len(x), -1)),
    "pool, conv 1x1": lambda: headed(lambda m, x: m.conv(m.pool(x)).flatten(1)),
    "pool, conv 1x1, squeezed": lambda: headed(lambda m, x: m.conv(m.pool(x)).squeeze(-1).squeeze(-1)),
    "avg_pool2d of the whole map": lambda: headed(lambda m, x: m.fc(F.avg_pool2d(x, (5, 7)).flatten(1))),
    "functional pool by keyword": lambda: headed(
        lambda m, x: m.fc(F.adaptive_avg_pool2d(input=x, output_size=1).flatten(1))
    ),
    "pool, batch norm, linear": lambda: headed(
        lambda m, x: m.fc(m.norm(m.pool(x).flatten(1))), norm=nn.BatchNorm1d(CHANNELS)
    ),
    "pool, dropout, linear": lambda: headed(lambda m, x: m.fc(m.dropout(m.pool(x).flatten(1)))),
    "no bias": lambda: gap(bias=False),
    "flatten(2).mean(2)": lambda: headed(lambda m, x: m.fc(x.flatten(2).mean(2))),
    "view(n, c, -1).mean(-1)": lambda: headed(lambda m, x: m.fc(x.view(*x.shape[:2], -1).mean(-1))),
    "functional relu before the pool": lambda: headed(
        lambda m, x: m.fc(F.adaptive_avg_pool2d(F.relu(x - 0.1), 1).flatten(1))
    ),
    "in-place relu before the pool": lambda: headed(
        lambda m, x: m.fc(F.adaptive_avg_pool2d(F.relu(x - 0.1, inplace=True), 1).flatten(1))
    ),
    "channels last": lambda: headed(lambda m, x: m.fc(x.permute(0, 2, 3, 1).contiguous().mean((1, 2)))),
    "channels last, linear, mean": lambda: headed(lambda m, x: m.fc(x.permute(0, 2, 3, 1)).mean((1, 2))),
    "dict": lambda: headed(lambda m, x: {"logits": m.fc(m.pool(x).flatten(1)), "features": x}),
    ".logits": lambda: headed(lambda m, x: SimpleNamespace(logits=m.fc(m.pool(x).flatten(1)))),
}
LINEARISED: dict[str, Callable[[], Any]] = {
    "pool, layer norm, linear": lambda: headed(
        lambda m, x: m.fc(m.norm(m.pool(x).flatten(1))), norm=nn.LayerNorm(CHANNELS, eps=1e-3)
    ),
    "pool, layer norm without weights, linear": lambda: headed(
        lambda m, x: m.fc(m.norm(m.pool(x).flatten(1))), norm=nn.LayerNorm(CHANNELS, elementwise_affine=False)
    ),
    "pool, L2 norm, linear": lambda: headed(lambda m, x: m.fc(F.normalize(m.pool(x).flatten(1)))),
}
MAXIMUM: dict[str, Callable[[], Any]] = {
    "adaptive_max_pool2d": lambda: headed(lambda m, x: m.fc(F.adaptive_max_pool2d(x, 1).flatten(1))),
    "amax": lambda: headed(lambda m, x: m.fc(x.amax((2, 3)))),
    "max_pool2d of the whole map": lambda: headed(lambda m, x: m.fc(F.max_pool2d(x, (5, 7)).flatten(1))),
}
OTHER: dict[str, Callable[[], Any]] = {
    "two linear layers": fully_connected,
    "pool, linear, relu, linear": lambda: headed(
        lambda m, x: F.linear(F.relu(m.fc(m.pool(x).flatten(1))), torch.eye(CLASSES))
    ),
    "average and maximum": lambda: headed(lambda m, x: m.fc(x.mean((2, 3)) + x.amax((2, 3)))),
    "scaled logits": lambda: headed(lambda m, x: 3 * m.fc(x.mean((2, 3)))),
    "probabilities": lambda: headed(lambda m, x: m.fc(x.mean((2, 3))).softmax(1)),
    "some of the classes": lambda: headed(lambda m, x: m.fc(x.mean((2, 3)))[:, :3]),
    "batch norm of the batch": lambda: headed(
        lambda m, x: m.fc(F.batch_norm(x.mean((2, 3)).repeat(2, 1), None, None, training=True)[: len(x)])
    ),
}
