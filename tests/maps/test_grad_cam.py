"""Grad-CAM against loops over a plain autograd run (section 19)."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import camlucida as cl
from camlucida.errors import LayerError, TargetError
from oracles import maps as oracle
from small_networks import EXACT, MAXIMUM, OTHER, fully_connected, gap, pixels, seeded

Z = 5 * 7


def parts(module: nn.Module, cut: int):
    """The fully connected network in float64, in two: below and above the output of `features[cut]`."""
    double = fully_connected().double()
    double.load_state_dict(module.state_dict())
    features = list(double.features)
    below = nn.Sequential(*features[: cut + 1])
    above = nn.Sequential(*features[cut + 1 :], double.classifier)
    return lambda x: below(x).detach(), above


def expected(module: nn.Module, x: Tensor, score, cut: int = 3, relu: bool = True) -> Tensor:
    below, above = parts(module, cut)
    return torch.stack(
        [torch.from_numpy(oracle.grad_cam(below, lambda a: score(above(a)), one, relu)) for one in x]
    )


def assert_near(found: Tensor, wanted: Tensor) -> None:
    assert float(wanted.abs().max()) > 0
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_every_layer_against_the_formula(cut, relu):
    module, x = fully_connected(), pixels()
    found = cl.GradCAM(layer=f"features.{cut}", relu=relu)(cl.wrap(module), x, cl.ClassTarget([2, 4]))
    for i, c in enumerate((2, 4)):
        wanted = expected(module, x[i : i + 1], lambda z, c=c: z[:, c], cut, relu)
        assert_near(found.values[i], wanted)
    torch.testing.assert_close(found.scores, module(x).detach()[[0, 1], [2, 4]][:, None])
    assert found.values.dtype == torch.float32
    assert relu == bool((found.values >= 0).all())


def test_the_layer_is_found_by_itself_by_name_or_by_module():
    module, x = fully_connected(), pixels()
    network = cl.wrap(module)
    wanted = expected(module, x, lambda z: z[:, 1])[:, None]
    for layer in (None, "features", "features.3", module.features, module.features[3]):
        assert_near(cl.GradCAM(layer=layer)(network, x, cl.ClassTarget(1)).values, wanted)
    found = cl.GradCAM()(cl.wrap(module, layer="features.1"), x, cl.ClassTarget(1))
    assert found.layer == "features.1"
    assert_near(found.values, expected(module, x, lambda z: z[:, 1], 1)[:, None])


def test_several_targets_each():
    module, x = fully_connected(), pixels()
    found = cl.GradCAM(relu=False)(cl.wrap(module), x, cl.ClassTarget([[0, 3, 3], [4, 1, 2]]))
    for i, row in enumerate([[0, 3, 3], [4, 1, 2]]):
        for k, c in enumerate(row):
            assert_near(
                found.values[i, k], expected(module, x[i : i + 1], lambda z, c=c: z[:, c], relu=False)[0]
            )


@pytest.mark.parametrize(
    ("target", "score"),
    [
        (cl.ProbabilityTarget(2), lambda z: z.softmax(1)[:, 2]),
        (cl.ProbabilityTarget(2, sigmoid=True), lambda z: z[:, 2].sigmoid()),
        (cl.MarginTarget(1, 3), lambda z: z[:, 1] - z[:, 3]),
        (cl.CallableTarget(lambda out: out.square().sum(1)), lambda z: z.square().sum(1)),
    ],
)
def test_other_targets(target, score):
    module, x = fully_connected(), pixels()
    found = cl.GradCAM(layer="features.1", relu=False)(cl.wrap(module), x, target)
    assert_near(found.values[:, 0], expected(module, x, score, 1, relu=False))


@pytest.mark.parametrize("name", EXACT)
def test_it_is_the_class_map_over_the_number_of_cells_where_pooling_is_linear(name):
    network, x = cl.wrap(EXACT[name]()), pixels()
    cam = cl.CAM()(network, x, cl.ClassTarget.all()).values
    found = cl.GradCAM(relu=False)(network, x, cl.ClassTarget.all())
    torch.testing.assert_close(found.values, cam / Z, rtol=1e-5, atol=1e-6 * float(cam.abs().max()))
    positive = cl.GradCAM()(network, x, cl.ClassTarget.all()).values
    torch.testing.assert_close(positive, found.values.relu(), rtol=0, atol=0)


def test_a_unit_of_a_deeper_layer():
    module, x = fully_connected(), pixels()
    double = fully_connected().double()
    for at in ("max", "sum", (1, 4)):
        found = cl.GradCAM(layer="features.1", relu=False)(
            cl.wrap(module), x, cl.UnitTarget("features.2", 3, at)
        )

        def score(z: Tensor, at=at) -> Tensor:
            flat = z[:, 3].flatten(1)
            return flat.amax(1) if at == "max" else flat.sum(1) if at == "sum" else flat[:, 1 * 7 + 4]

        for i in range(2):
            wanted = oracle.grad_cam(
                lambda p: double.features[1](double.features[0](p)).detach(),
                lambda a: score(double.features[2](a)),
                x[i], relu=False,
            )  # fmt: skip
            assert_near(found.values[i, 0], torch.from_numpy(wanted))
        assert found.classes is None


def test_a_unit_of_the_layer_itself():
    """The gradient is 1 at the unit's strongest cell, so the map is the channel over the number of cells."""
    module, x = gap(), pixels()
    network = cl.wrap(module)
    found = cl.GradCAM(layer="features")(network, x, cl.UnitTarget("features", 3))
    channel = module.features(x)[:, 3].detach()
    torch.testing.assert_close(found.values[:, 0], channel / Z, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.scores[:, 0], channel.flatten(1).amax(1))


def test_a_region_of_the_layer_itself():
    module, x = gap(), pixels()
    mask = torch.zeros(5, 7)
    mask[1:3, 2:5] = 1
    found = cl.GradCAM(layer="features", relu=False)(cl.wrap(module), x, cl.RegionTarget("features", mask))
    features = module.features(x).detach()
    # 6 cells of each of the 6 channels have the gradient 1/36; its mean over all cells is 6/(36 Z).
    torch.testing.assert_close(found.values[:, 0], features.sum(1) * 6 / (36 * Z), rtol=1e-5, atol=1e-8)


def test_a_max_pooled_head_weights_each_channel_at_its_peak():
    module, x = MAXIMUM["amax"](), pixels()
    found = cl.GradCAM(relu=False)(cl.wrap(module), x, cl.ClassTarget(2)).values[:, 0]
    wanted = torch.einsum("k,nkhw->nhw", module.fc.weight[2], module.features(x)).detach()
    assert (
        float((module.features(x).amax((2, 3)) > 0).float().mean()) == 1
    )  # so that no maximum is tied at zero
    torch.testing.assert_close(found, wanted / Z, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [*OTHER, "pool, flatten, linear"])
def test_a_batch_equals_single_runs(name):
    if name == "batch norm of the batch":
        pytest.skip("its logits depend on the other pictures")
    network, x = cl.wrap({**OTHER, **EXACT}[name]()), pixels(3)
    together = cl.GradCAM()(network, x, cl.ClassTarget.top(2))
    for i in range(3):
        single = cl.GradCAM()(network, x[i : i + 1], cl.ClassTarget.top(2))
        torch.testing.assert_close(single.values, together.values[i : i + 1], rtol=1e-5, atol=1e-8)


def test_half_precision_stays_near():
    x = pixels()
    exact = cl.GradCAM(relu=False)(cl.wrap(fully_connected()), x, cl.ClassTarget(1)).values
    for dtype in (torch.float16, torch.bfloat16):
        found = cl.GradCAM(relu=False)(cl.wrap(fully_connected().to(dtype)), x, cl.ClassTarget(1)).values
        assert found.dtype == torch.float32
        assert float((found - exact).abs().max()) < 0.05 * float(exact.abs().max())


class Dead(nn.Module):
    """Class 0 of dark pictures has no gradient at all: its ReLU is off there."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Sigmoid())
        self.spare = nn.Conv2d(3, 4, 3, 2, 1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.spare(x)
        z = self.fc(self.features(x).mean((2, 3)))
        bright = (x.mean((1, 2, 3)) > 0).float()
        return torch.stack([(z[:, 0].abs() + 1) * bright, z[:, 1]], 1)


def test_a_map_without_gradient_says_so():
    x = pixels()
    x = x - x.mean((1, 2, 3), keepdim=True) + torch.tensor([1.0, -1.0])[:, None, None, None]
    found = cl.GradCAM(relu=False)(cl.wrap(seeded(Dead)), x, cl.ClassTarget([[0, 1], [0, 1]]))
    assert found.no_gradient.tolist() == [[False, False], [True, False]]
    assert found.status[0] != ("no-gradient",) * 2
    assert found.status[1][0] == "no-gradient"
    assert (found.values[1, 0] == 0).all()


def test_a_layer_that_the_target_does_not_depend_on():
    network = cl.wrap(seeded(Dead))
    with pytest.raises(
        LayerError, match=r"no gradient reaches layer spare; choose a layer .*live: .*features"
    ):
        cl.GradCAM(layer="spare")(network, pixels())
    with pytest.raises(LayerError, match=r"no gradient reaches layer features\.1"):
        cl.GradCAM(layer="features.1")(network, pixels(), cl.UnitTarget("features.0", 0))


def test_errors_of_the_target_come_through():
    with pytest.raises(TargetError, match=r"3 pictures|2 pictures"):
        cl.GradCAM()(cl.wrap(fully_connected()), pixels(), cl.ClassTarget([0, 1, 2]))
    with pytest.raises(TargetError, match="channel 99 of layer features"):
        cl.GradCAM()(cl.wrap(fully_connected()), pixels(), cl.UnitTarget("features", 99))


@pytest.mark.parametrize(("conv", "shape"), [(nn.Conv1d, (30,)), (nn.Conv3d, (6, 9, 12))])
def test_one_and_three_axes(conv, shape):
    """Flattened by tanh first, so that the head is none; compared with autograd by hand."""
    module = seeded(lambda: nn.Sequential(conv(2, 4, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)))
    x = torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(0))
    module(x)
    found = cl.GradCAM(relu=False)(cl.wrap(module), x, cl.ClassTarget(2))
    a = module[1](module[0](x)).detach().requires_grad_()
    gradient = torch.autograd.grad(module[3](module[2](a))[:, 2].sum(), a)[0]
    axes = tuple(range(2, a.ndim))
    wanted = (gradient.mean(axes, keepdim=True) * a).sum(1).detach()
    torch.testing.assert_close(found.values[:, 0], wanted, rtol=1e-5, atol=1e-7)
