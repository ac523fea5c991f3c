"""The relatives of Grad-CAM against the formulas of section 19 on a plain autograd run, and what they have in common."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import camlucida as cl
from camlucida.errors import LayerError, UnsupportedError, UsageError
from camlucida.maps.eigen_cam import projected
from camlucida.maps.pc1 import border
from fingerprints import unchanged
from oracles import gradient_maps as oracle
from small_networks import EXACT, LINEARISED, MAXIMUM, by_axes, fully_connected, gap, headed, pixels, seeded

Z = 5 * 7
TARGET = cl.ClassTarget([[2, 4], [0, 1]])
Formula = Callable[[Any, Any, float], Any]
METHODS: dict[str, tuple[Any, Formula]] = {
    "GradCAMPlusPlus": (cl.GradCAMPlusPlus(), lambda a, g, y: oracle.grad_cam_plus_plus(a, g)),
    "XGradCAM": (cl.XGradCAM(), lambda a, g, y: oracle.xgrad_cam(a, g)),
    "HiResCAM": (cl.HiResCAM(), lambda a, g, y: oracle.hires_cam(a, g)),
    "ElementWiseGradCAM": (cl.ElementWiseGradCAM(), lambda a, g, y: oracle.element_wise_grad_cam(a, g)),
    "LayerCAM": (cl.LayerCAM(), lambda a, g, y: oracle.layer_cam(a, g)),
    "EigenCAM": (cl.EigenCAM(), lambda a, g, y: oracle.eigen_cam(a)),
    "EigenCAM, centred": (cl.EigenCAM(centre=True), lambda a, g, y: oracle.eigen_cam(a, True)),
    "EigenGradCAM": (cl.EigenGradCAM(), lambda a, g, y: oracle.eigen_grad_cam(a, g)),
    "EigenGradCAM, centred": (cl.EigenGradCAM(centre=True), lambda a, g, y: oracle.eigen_grad_cam(a, g, True)),
    "BagCAM": (cl.BagCAM(), oracle.bag_cam),
    "BagCAM of y": (cl.BagCAM(log=False), lambda a, g, y: oracle.bag_cam(a, g, None)),
    "PC1": (cl.PC1(), lambda a, g, y: oracle.pc1(a, g)),
}  # fmt: skip
RECTIFIED = (cl.GradCAM, cl.GradCAMPlusPlus, cl.XGradCAM, cl.HiResCAM, cl.LayerCAM)
COUNTERFACTUAL = (*RECTIFIED, cl.ElementWiseGradCAM, cl.BagCAM)


def parts(cut: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The fully connected network in float64, below and above the output of `features[cut]`."""
    double = fully_connected().double()
    features = list(double.features)
    return nn.Sequential(*features[: cut + 1]), nn.Sequential(*features[cut + 1 :], double.classifier)


def expected(formula: Formula, x: Tensor, cut: int, sign: float = 1.0) -> Tensor:
    below, above = parts(cut)
    rows = []
    for picture, classes in zip(x, TARGET.index, strict=True):
        row = []
        for c in classes:
            a, g = oracle.at_layer(below, lambda z, c=c: above(z)[:, c], picture)
            y = float(above(below(picture.double()[None]))[0, c].detach())
            row.append(torch.from_numpy(formula(a, sign * g, y)))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def at(method: Any, layer: Any) -> Any:
    return type(method)(**{**vars(method), "layer": layer})


def assert_near(found: Tensor, wanted: Tensor) -> None:
    assert float(wanted.abs().max()) > 0
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=2e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("cut", [0, 2, 3])  # 0 and 2: signed activations
@pytest.mark.parametrize("name", METHODS)
def test_every_method_against_its_formula(name, cut):
    method, formula = METHODS[name]
    x = pixels()
    found = at(method, f"features.{cut}")(cl.wrap(fully_connected()), x, TARGET)
    assert_near(found.values, expected(formula, x, cut))
    assert found.layer == f"features.{cut}"


@pytest.mark.parametrize("method", COUNTERFACTUAL)
def test_a_counterfactual_map_is_the_formula_of_the_negative_gradient(method):
    x = pixels()
    found = method(counterfactual=True)(cl.wrap(fully_connected()), x, TARGET)
    plain = method()(cl.wrap(fully_connected()), x, TARGET)
    if method is cl.GradCAM:
        wanted = cl.GradCAM(relu=False)(cl.wrap(fully_connected()), x, TARGET).values.neg().relu().double()
    else:
        wanted = expected(METHODS[method.__name__][1], x, 3, -1.0)
    assert_near(found.values, wanted)
    assert not torch.allclose(found.values, plain.values)
    assert found.target == "what lowers the logit of the given class (counterfactual)"
    assert plain.target == "logit of the given class"


def linear_on_tanh() -> Any:
    """A head of one linear layer on a map of both signs."""
    return seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.Tanh(), nn.Flatten(), nn.Linear(6 * Z, 5))
    )


@pytest.mark.parametrize("method", RECTIFIED)
def test_without_its_relu_a_map_keeps_its_sign(method):
    network, x = cl.wrap(linear_on_tanh()), pixels()
    signed, positive = (
        method(layer="1", relu=r)(network, x, cl.ClassTarget.all()).values for r in (False, True)
    )
    assert (signed < 0).any()
    assert torch.equal(positive, signed.relu())


# --- identities --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXACT)
def test_grad_cam_and_hires_cam_are_the_class_map_over_the_number_of_cells(name):
    network, x = cl.wrap(EXACT[name]()), pixels()
    cam = cl.CAM()(network, x, cl.ClassTarget.all()).values
    for method in (cl.GradCAM(relu=False), cl.HiResCAM()):
        found = method(network, x, cl.ClassTarget.all()).values
        torch.testing.assert_close(found, cam / Z, rtol=1e-5, atol=1e-6 * float(cam.abs().max()))


def test_xgrad_cam_has_the_sum_of_hires_cam():
    network, x = cl.wrap(fully_connected()), pixels()
    xgrad, hires = (
        m(network, x, cl.ClassTarget.all()).values for m in (cl.XGradCAM(relu=False), cl.HiResCAM())
    )
    torch.testing.assert_close(xgrad.sum((2, 3)), hires.sum((2, 3)), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(xgrad, hires, atol=1e-3)


def test_hires_cam_sums_to_the_logit_without_its_bias_where_one_linear_layer_is_the_head():
    module = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, 4, 1), nn.Tanh(), nn.Flatten(), nn.Linear(6 * Z, 5))
    )
    x = pixels()
    found = cl.HiResCAM(layer="1")(cl.wrap(module), x, cl.ClassTarget.all())
    torch.testing.assert_close(
        found.values.sum((2, 3)), (module(x) - module[3].bias).detach(), rtol=1e-4, atol=1e-5
    )


def test_a_margin_is_the_difference_of_two_classes():
    network, x = cl.wrap(fully_connected()), pixels()
    for method in (cl.GradCAM(relu=False), cl.HiResCAM(), cl.XGradCAM(relu=False)):
        one, other, margin = (
            method(network, x, t).values
            for t in (cl.ClassTarget(1), cl.ClassTarget(3), cl.MarginTarget(1, 3))
        )
        torch.testing.assert_close(margin, one - other, rtol=1e-4, atol=1e-6)
        assert float(margin.abs().max()) > 1e-3


def test_eigen_cam_knows_no_class_and_needs_no_gradient():
    x = pixels()
    with torch.inference_mode():
        frozen = fully_connected()
    found = cl.EigenCAM()(cl.wrap(frozen), x, TARGET)
    assert torch.equal(found.values[:, 0], found.values[:, 1])
    torch.testing.assert_close(found.values, cl.EigenCAM()(cl.wrap(fully_connected()), x, TARGET).values)
    assert found.target == "the layer's first component, whatever the logit of the given class"
    assert found.no_gradient is None
    assert (found.values.flatten(2).abs().amax(2) == found.values.flatten(2).amax(2)).all()


TARGETS = {
    "class": cl.ClassTarget(1), "top": cl.ClassTarget.top(2), "probability": cl.ProbabilityTarget(1),
    "margin": cl.MarginTarget(1, 3), "unit": cl.UnitTarget("features.2", 3), "callable": cl.CallableTarget(lambda o: o[:, 1]),
    "region": cl.RegionTarget("features.2", np.eye(5, 7)),
}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", [*METHODS, "GradCAM", "FullGrad"])
def test_every_target_with_every_method(name, target):
    """The score is the target's own, and the words say which."""
    method = METHODS[name][0] if name in METHODS else getattr(cl, name)()
    if name == "FullGrad":
        method = cl.FullGrad(complete=target not in ("probability",))
    elif target in ("unit", "region"):
        method = at(method, "features.0")
    module, x = fully_connected(), pixels()
    found = method(cl.wrap(module), x, TARGETS[target])
    z, f = module(x).detach(), module.features[:3](x).detach()
    wanted = {
        "class": z[:, [1]], "top": z.topk(2).values, "probability": z.softmax(1)[:, [1]], "margin": z[:, [1]] - z[:, [3]],
        "unit": f[:, 3].flatten(1).amax(1, keepdim=True), "callable": z[:, [1]],
        "region": f[:, :, torch.eye(5, 7).bool()].mean((1, 2))[:, None],
    }[target]  # fmt: skip
    torch.testing.assert_close(found.scores, wanted)
    words = {"class": "logit of the given class", "top": "top 2", "probability": "probability", "margin": "minus the other",
        "unit": "channel 3 of features.2", "callable": "a function of the output", "region": "features.2 over a region"}  # fmt: skip
    assert words[target] in found.target
    assert found.values.isfinite().all()
    assert float(found.values.abs().max()) > 0


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("name", [n for n in METHODS if "," not in n])
def test_one_and_three_axes(name, axes):
    """The formulas know no axes: they are those of the cells in any one row, as the oracle has them."""
    method, formula = METHODS[name]
    module, x = (
        by_axes(axes),
        torch.randn(2, 2, *(16, 12, 14)[:axes], generator=torch.Generator().manual_seed(0)),
    )
    found = method(cl.wrap(module), x, TARGET)
    features = module[1](module[0](x)).detach()
    assert found.values.shape == (2, 2, *features.shape[2:])
    if name == "PC1":
        return  # its border is not that of a row: below
    double = module.double()
    for i, classes in enumerate(TARGET.index):
        for k, c in enumerate(classes):
            a = features[i].double()
            g = (double[4].weight[c] / a[0].numel()).detach().reshape(-1, *(1,) * axes).expand_as(a)
            y = float(double(x[i : i + 1].double())[0, c].detach())
            wanted = formula(a.reshape(len(a), 1, -1).numpy(), g.reshape(len(a), 1, -1).numpy(), y)
            wanted = torch.from_numpy(wanted).reshape(a.shape[1:])
            torch.testing.assert_close(found.values[i, k].double(), wanted, rtol=1e-4, atol=1e-5)
    assert float(found.values.abs().max()) > 1e-3


def test_the_border_of_a_map_with_one_two_and_three_axes():
    assert border(torch.Size([4])).tolist() == [True, False, False, True]
    assert border(torch.Size([3, 4])).tolist() == [[True] * 4, [True, False, False, True], [True] * 4]
    assert int(border(torch.Size([4, 5, 6])).sum()) == 4 * 5 * 6 - 2 * 3 * 4


# --- layers that are fused ---------------------------------------------------------------------------------


def test_layer_cam_over_several_layers():
    network, x = cl.wrap(fully_connected()), pixels()
    found = cl.LayerCAM(layer="features.3", fuse=("features.1",))(network, x, TARGET)
    deep, shallow = (cl.LayerCAM(layer=n)(network, x, TARGET).values for n in ("features.3", "features.1"))
    scaled = [torch.tanh(2 * m / m.amax((2, 3), keepdim=True)) for m in (deep, shallow)]
    wanted = torch.maximum(
        F.interpolate(scaled[0], (10, 14), mode="bilinear", align_corners=False), scaled[1]
    )
    torch.testing.assert_close(found.values, wanted)
    assert found.layer == "features.3 + features.1"
    assert found.grid == cl.LayerCAM(layer="features.1")(network, x, TARGET).grid
    assert found.in_view().shape == (2, 2, 20, 28)
    spec = cl.maps.method("layer-cam:layer=features.3,fuse=features.1")(network, x, TARGET)
    assert torch.equal(spec.values, found.values)
    with pytest.raises(UsageError, match=r"LayerCAM\.fuse.*a tuple of layers"):
        cl.LayerCAM(fuse="features.1")


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_nothing_but_zeros_is_a_flat_map_not_noise(name):
    """Activations that are all zero, and activations that are the same everywhere: no 0/0, no amplified rounding."""
    module = gap()
    module.features[2].weight.data.zero_()
    for bias in (-1.0, 0.3):
        module.features[2].bias.data.fill_(bias)
        found = METHODS[name][0](cl.wrap(module), pixels(), TARGET)
        assert found.values.isfinite().all()
        if bias < 0 or name in ("PC1", "EigenCAM, centred", "EigenGradCAM, centred"):
            assert (found.values == 0).all()
            assert set(sum(found.status, ())) <= {"flat", "no-gradient"}


@pytest.mark.parametrize("name", METHODS)
def test_a_picture_that_is_no_number_says_so_and_costs_its_neighbour_nothing(name):
    network, x = cl.wrap(gap()), pixels()
    alone = METHODS[name][0](network, x[1:], cl.ClassTarget(1))
    x[0, 0, 3, 3] = torch.nan
    found = METHODS[name][0](network, x, cl.ClassTarget(1))
    assert found.status == (("non-finite",), alone.status[0])
    torch.testing.assert_close(found.values[1], alone.values[0], rtol=1e-4, atol=1e-7)
    if name == "LayerCAM":
        both = cl.LayerCAM(fuse=("features.1",))(network, x, cl.ClassTarget(1))
        assert both.status == (("non-finite",), ("ok",))


def test_what_only_rounding_leaves_is_nothing():
    """Activations that cancel out, and activations that are the same but for their last bits."""
    ramp = torch.linspace(-1, 1, 35).reshape(1, 1, 5, 7)
    leftover = ramp - ramp.mean() + 1e-9
    assert 0 < abs(float(leftover.sum())) < 1e-6
    plain = torch.ones(1, 1, 5, 7)
    found = cl.XGradCAM().formula(torch.cat([leftover, plain], 1), torch.cat([ramp, plain], 1))
    torch.testing.assert_close(found, plain[:, 0])  # α = 0 and 1
    same = 3 + 1e-7 * torch.randn(1, 4, 5, 7, generator=torch.Generator().manual_seed(0))
    assert float(same.std()) > 0
    assert (projected(same, centre=True) == 0).all()
    assert float(projected(same, centre=False).min()) > 5
    for channels in (4, 40):  # fewer than cells, and more
        scales = torch.linspace(1, 3, channels)[None, :, None, None]
        alike = scales * ramp + 1e-8 * torch.randn(
            1, channels, 5, 7, generator=torch.Generator().manual_seed(0)
        )
        assert (cl.PC1().formula(alike, torch.ones_like(alike)) == 0).all()
        assert (cl.PC1().formula(torch.ones_like(alike), torch.ones_like(alike)) == 0).all()


class Gated(nn.Module):
    """Class 0 of dark pictures has no gradient; `spare` has none at all."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Sigmoid())
        self.spare, self.fc = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.spare(x)
        z = self.fc(self.features(x).mean((2, 3)))
        return torch.stack([(z[:, 0].abs() + 1) * (x.mean((1, 2, 3)) > 0), z[:, 1]], 1)


@pytest.mark.parametrize("name", [n for n in METHODS if not n.startswith("EigenCAM")])
def test_where_no_gradient_reaches(name):
    method, x = METHODS[name][0], pixels()
    x = x - x.mean((1, 2, 3), keepdim=True) + torch.tensor([1.0, -1.0])[:, None, None, None]
    found = method(cl.wrap(seeded(Gated)), x, cl.ClassTarget([[0, 1], [0, 1]]))
    assert found.status[1][0] == "no-gradient"
    assert (found.values[1, 0] == 0).all()
    assert found.no_gradient.tolist() == [[False, False], [True, False]]
    with pytest.raises(
        LayerError, match=r"no gradient reaches layer spare; choose a layer .*live: .*features"
    ):
        at(method, "spare")(cl.wrap(seeded(Gated)), x)
    with pytest.raises(LayerError, match=r"layer 'fc' has no spatial extent or did not run; live: "):
        at(method, "fc")(cl.wrap(seeded(Gated)), x)


def test_the_live_layers_of_a_target_inside_the_network_lie_below_it():
    network = cl.wrap(fully_connected())
    with pytest.raises(
        LayerError, match=r"no gradient reaches layer features\.3; .*live: features\.0, features\.1$"
    ):
        cl.HiResCAM(layer="features.3")(network, pixels(), cl.UnitTarget("features.1", 0))


def test_a_tiny_gradient_is_no_other_map():
    """g² and g³ of a gradient of 1e-8 are zero in float32: Grad-CAM++ divides them out."""
    x = pixels()

    def found(scale: float) -> Tensor:
        module = headed(lambda m, f: m.fc(f.mean((2, 3))) * scale)
        return cl.GradCAMPlusPlus()(cl.wrap(module), x, cl.ClassTarget(1)).values

    double = headed(lambda m, f: m.fc(f.mean((2, 3))) * 1e-20).double()
    a, g = oracle.at_layer(double.features, lambda f: double.fc(f.mean((2, 3)))[:, 1] * 1e-20, x[0])
    wanted = torch.from_numpy(
        np.maximum(oracle.weighted([float(np.maximum(s, 0).sum() / 2) for s in g], a), 0)
    )
    assert_near(found(1e-20)[0, 0], wanted)


def test_half_precision_stays_finite_and_near():
    x = pixels()
    for name, (method, _) in METHODS.items():
        method = cl.BagCAM(log=False) if name == "BagCAM" else method
        exact = method(cl.wrap(fully_connected()), x, cl.ClassTarget(1)).values
        for dtype, tolerance in ((torch.float16, 0.01), (torch.bfloat16, 0.08)):
            found = method(cl.wrap(fully_connected().to(dtype)), x, cl.ClassTarget(1)).values
            assert found.dtype == torch.float32
            assert float((found - exact).abs().max()) < tolerance * float(exact.abs().max()), name


# --- maps inside a loss ------------------------------------------------------------------------------------


def smooth() -> Any:
    """Small and without kinks."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, 2, 1), nn.Softplus(), nn.Conv2d(3, 4, 3, 1, 1), nn.Softplus(),
            nn.Flatten(), nn.Linear(4 * 3 * 4, 3), nn.Tanh(), nn.Linear(3, 3),
        ).double()
    )  # fmt: skip


def smooth_gap() -> Any:
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1), nn.Softplus(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        ).double()
    )


SMOOTH: dict[str, Any] = {
    "cam": cl.CAM(differentiable=True),
    "grad-cam": cl.GradCAM(relu=False, differentiable=True),
    "grad-cam++": cl.GradCAMPlusPlus(relu=False, differentiable=True),
    "xgrad-cam": cl.XGradCAM(relu=False, differentiable=True),
    "hires-cam": cl.HiResCAM(differentiable=True),
    "element-wise": cl.ElementWiseGradCAM(differentiable=True),
    "layer-cam": cl.LayerCAM(differentiable=True),
    "fused": cl.LayerCAM(layer="1", fuse=("3",), differentiable=True),
    "eigen-cam": cl.EigenCAM(differentiable=True),
    "eigen-cam, centred": cl.EigenCAM(centre=True, differentiable=True),
    "eigen-grad-cam": cl.EigenGradCAM(differentiable=True),
    "full-grad": cl.FullGrad(complete=False, differentiable=True),
    "bag-cam": cl.BagCAM(differentiable=True),
    "pc1": cl.PC1(differentiable=True),
    "saliency": cl.Saliency(differentiable=True),
    "saliency, blurred": cl.Saliency(blur=40, differentiable=True),
    "smooth-grad": cl.SmoothGrad(n=3, differentiable=True),
    "smooth-grad, squared, of grad-cam": cl.SmoothGrad(
        "grad-cam:relu=false", n=2, mean="squared", differentiable=True
    ),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gradcheck(name):
    """Of pixels and of a weight below and one above the layer; what the module had is left alone."""
    module = smooth_gap() if name == "cam" else smooth()
    network = cl.wrap(module)
    last = module[4] if name == "cam" else module[5]
    last.weight.grad = torch.ones_like(last.weight)
    x = pixels(1, 6, 8, channels=1).double()
    network.structure(x)

    def values(picture: Tensor, below: Tensor, above: Tensor) -> Tensor:
        replaced = {"0.weight": below, ("4" if name == "cam" else "5") + ".weight": above}
        return torch.func.functional_call(
            wrapper, {f"module.{k}": v for k, v in replaced.items()}, (picture,)
        )

    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, picture: Tensor) -> Tensor:
            return SMOOTH[name](network, picture, cl.ClassTarget([[1, 2]])).values

    wrapper = Mapped()
    given = [t.detach().clone().requires_grad_() for t in (x, module[0].weight, last.weight)]
    assert values(*given).dtype == torch.float64
    with unchanged(module):
        assert torch.autograd.gradcheck(values, given, atol=1e-5, rtol=1e-3, fast_mode=True)


@pytest.mark.parametrize("name", [n for n in SMOOTH if n not in ("cam", "fused")])
def test_a_differentiable_map_is_the_same_map_and_trains(name):
    network, x = cl.wrap(smooth().float().train()), pixels(2, 6, 8, channels=1)
    plain = type(SMOOTH[name])(**{**vars(SMOOTH[name]), "differentiable": False})(network, x)
    with unchanged(network.module):
        found = SMOOTH[name](network, x.requires_grad_())
    torch.testing.assert_close(found.values, plain.values, rtol=1e-4, atol=1e-6)
    assert found.values.dtype == torch.float32
    assert not plain.values.requires_grad
    assert not plain.scores.requires_grad
    assert found.status == plain.status
    found.values.square().mean().backward()
    assert all(float(t.grad.abs().max()) > 0 for t in (x, network.module[0].weight))
    assert network.module.training


def test_a_differentiable_class_map_is_the_class_map_for_every_exact_head():
    for build in (*EXACT.values(), *MAXIMUM.values()):
        network, x = cl.wrap(build()), pixels()
        for target in (cl.ClassTarget.top(2), cl.MarginTarget(1, 3)):
            found, plain = (cl.CAM(differentiable=d)(network, x, target).values for d in (True, False))
            torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
            assert found.requires_grad
            assert not plain.requires_grad
    with pytest.raises(UnsupportedError, match=r"a norm between pooling .*GradCAM\(differentiable=True\)"):
        cl.CAM(differentiable=True)(cl.wrap(LINEARISED["pool, layer norm, linear"]()), pixels())


def test_a_graph_inside_inference_mode_is_refused_and_maps_without_one_are_not():
    network, x = cl.wrap(gap()), pixels()
    for name, method in {**SMOOTH, "grad-cam": cl.GradCAM(differentiable=True)}.items():
        method = at(method, None) if hasattr(method, "layer") and name != "fused" else method
        with (
            torch.inference_mode(),
            pytest.raises(UsageError, match=r"inside torch\.inference_mode\(\); leave"),
        ):
            method(network, x)
    with torch.inference_mode():
        inside = cl.HiResCAM()(network, x).values
    torch.testing.assert_close(inside, cl.HiResCAM()(network, x).values)
