"""FullGrad: its parts sum to y, its map against terms that were found with zeros added to each layer (section 19)."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import camlucida as cl
from camlucida.errors import UnsupportedError, UsageError
from oracles import gradient_maps as oracle
from small_networks import (
    EXACT,
    LINEARISED,
    MAXIMUM,
    by_axes,
    fully_connected,
    gap,
    headed,
    pixels,
    seeded,
    tokens,
)


class Blocks(nn.Module):
    """Two residual blocks with batch norms, convolutions with and without bias, max pooling, a linear head."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace), nn.MaxPool2d(2)
        )
        self.one, self.two = (
            nn.Sequential(
                nn.Conv2d(6, 6, 3, 1, 1, bias=b), nn.BatchNorm2d(6, eps=0.5), nn.LeakyReLU(0.1, inplace)
            )
            for b in (False, True)
        )
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.one(x))
        return self.fc((x + self.two(x)).mean((2, 3)))


class Normalised(nn.Module):
    """Subtracts a mean and saturates: constants that no module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3])[:, None, None])
        self.conv, self.fc = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = (x.clone().sub_(self.mean) / 0.3).clamp(-2, 2)
        x = F.relu6(4 * self.conv(1 - x))
        return self.fc(F.hardtanh(x - 0.5, -1, 3).mean((2, 3))) + 0.25


STRAIGHT: dict[str, Any] = {
    "gap": gap,
    "fully connected": fully_connected,
    "max pooled": MAXIMUM["amax"],
    "batch norm after pooling": EXACT["pool, batch norm, linear"],
    "channels last": EXACT["channels last"],
    "dict": EXACT["dict"],
    "blocks": lambda: seeded(Blocks),
    "blocks, in place": lambda: seeded(Blocks, True),
    "functional norm without weights": lambda: headed(
        lambda m, x: m.fc(
            F.batch_norm(x, torch.full((6,), 0.2), torch.full((6,), 0.5), eps=0.1).relu().mean((2, 3))
        )
    ),
    "transposed": lambda: seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, 2),
            nn.PReLU(),
            nn.ConvTranspose2d(4, 3, 3, 2),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            nn.Linear(3, 5),
        )
    ),
    "normalised inside": lambda: seeded(Normalised),
    "resnet18": lambda: seeded(torchvision.models.resnet18, weights=None, num_classes=5),
}


@pytest.mark.parametrize("name", STRAIGHT)
def test_the_parts_sum_to_the_score(name):
    network, x = cl.wrap(STRAIGHT[name]()), pixels(2, 32, 40) if name == "resnet18" else pixels()
    for target in (cl.ClassTarget.all(), cl.MarginTarget(1, 3)):
        parts = cl.FullGrad().parts(network, x, target)
        assert float((parts.residual / parts.scores).abs().max()) < 1e-4
        torch.testing.assert_close(parts.pixels + parts.biases.sum(2), parts.scores, rtol=1e-4, atol=0)
        assert parts.biases.shape == (*parts.scores.shape, len(parts.operations))
        assert (parts.biases.abs().amax((0, 1)) > 0).any()  # so that leaving biases out would be seen
        assert parts.bent == ()
    assert torch.equal(parts.scores, cl.FullGrad()(network, x, target).scores)


@pytest.mark.parametrize("axes", [1, 3])
def test_one_and_three_axes(axes):
    x = torch.randn(2, 2, *(16, 12, 14)[:axes], generator=torch.Generator().manual_seed(0))
    parts = cl.FullGrad().parts(cl.wrap(by_axes(axes)), x, cl.ClassTarget.all())
    torch.testing.assert_close(parts.residual, torch.zeros(2, 5), rtol=0, atol=1e-5)
    found = cl.FullGrad()(cl.wrap(by_axes(axes)), x)
    assert found.values.shape == (2, 1, *x.shape[2:])
    assert (found.values >= 0).all()


def test_the_target_inside_the_network():
    module, x = fully_connected(), pixels()
    parts = cl.FullGrad().parts(cl.wrap(module), x, cl.UnitTarget("features.2", 3))
    assert float(parts.residual.abs().max()) < 1e-5
    assert parts.operations == ("conv2d", "conv2d", "linear", "linear")
    assert (parts.biases[..., 2:] == 0).all()


@pytest.mark.parametrize("scale", ["layer", "channel"])
@pytest.mark.parametrize("name", ["fully connected", "blocks"])
def test_the_map_against_terms_found_by_zeros(name, scale):
    module, x = STRAIGHT[name](), pixels(2, 20, 28)
    found = cl.FullGrad(scale=scale)(cl.wrap(module), x, cl.ClassTarget([[2, 4], [0, 1]]))
    double = STRAIGHT[name]().double()
    spatial = [
        m
        for m in double.modules()
        if isinstance(m, nn.BatchNorm2d) or (isinstance(m, nn.Conv2d) and m.bias is not None)
    ]

    for i, row in enumerate([[2, 4], [0, 1]]):
        for k, c in enumerate(row):
            pixel, biases = oracle.full_grad(double, spatial, lambda z, c=c: z[:, c], x[i])
            wanted = torch.from_numpy(oracle.full_grad_map([pixel, *biases], (20, 28), scale))
            torch.testing.assert_close(found.values[i, k].double(), wanted, rtol=1e-3, atol=1e-3)
    assert found.status == (("ok",) * 2,) * 2
    assert found.grid.view == found.values.shape[2:] == (20, 28)
    assert found.layer is None


@pytest.mark.parametrize(
    ("build", "operation"),
    [
        (lambda: tokens("norm, mean"), "layer_norm.*gelu"),
        (LINEARISED["pool, layer norm, linear"], "layer_norm"),
        (lambda: headed(lambda m, x: m.fc(torch.sigmoid(x).mean((2, 3)))), "sigmoid"),
        (lambda: headed(lambda m, x: m.fc((x * x.mean((2, 3), keepdim=True)).mean((2, 3)))), "mul"),
        (lambda: headed(lambda m, x: m.fc(x.mean((2, 3))).softmax(1)), "softmax"),
    ],
)
def test_what_is_not_of_straight_pieces_is_refused_by_name_and_its_residual_reported(build, operation):
    network, x = cl.wrap(build()), pixels()
    with pytest.raises(
        UnsupportedError,
        match=rf"straight pieces; got a sum that misses .* of y = .*; {operation}.*complete=False",
    ):
        cl.FullGrad()(network, x)
    found = cl.FullGrad(complete=False)(network, x)
    assert set(sum(found.status, ())) == {"ok"}
    parts = cl.FullGrad().parts(network, x)
    assert (parts.residual.abs() > 1e-3 * parts.scores.abs()).any()
    torch.testing.assert_close(parts.pixels + parts.biases.sum(2) + parts.residual, parts.scores)


def test_a_target_that_is_not_linear_is_refused():
    with pytest.raises(UnsupportedError, match="or the target is not made .*; softmax; "):
        cl.FullGrad()(cl.wrap(gap()), pixels(), cl.ProbabilityTarget(1))
    assert (
        cl.FullGrad(complete=False)(cl.wrap(gap()), pixels(), cl.ProbabilityTarget(1)).status
        == (("ok",),) * 2
    )


def test_noise_and_what_is_detached_are_constants():
    def end(m: Any, x: Tensor) -> Tensor:
        return m.fc((x + torch.rand_like(x) + x.detach()).mean((2, 3)))

    parts = cl.FullGrad().parts(cl.wrap(headed(end)), pixels(), cl.ClassTarget.all())
    assert float(parts.residual.abs().max()) < 1e-5


def test_bad_input():
    with pytest.raises(UsageError, match=r"FullGrad\.scale; got 'cell'; allowed: layer \| channel"):
        cl.FullGrad(scale="cell")
    network, x = cl.wrap(gap()), pixels()
    alone = cl.FullGrad()(network, x[1:])
    x[0, 0, 3, 3] = torch.nan
    found = cl.FullGrad()(network, x)
    assert found.status == (("non-finite",), ("ok",))
    torch.testing.assert_close(found.values[1], alone.values[0])
    module = gap(bias=False)
    for part in module.modules():
        if getattr(part, "bias", None) is not None:
            part.bias.data.zero_()
    nothing = cl.FullGrad()(cl.wrap(module), torch.zeros(1, 3, 20, 28))
    assert (nothing.values == 0).all()
    assert nothing.status[0][0] in ("flat", "no-gradient")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_finite(dtype):
    exact = cl.FullGrad()(cl.wrap(fully_connected()), pixels(), cl.ClassTarget(1)).values
    found = cl.FullGrad()(cl.wrap(fully_connected().to(dtype)), pixels(), cl.ClassTarget(1)).values
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert float((found - exact).abs().quantile(0.95)) < 0.01 * float(exact.max())
