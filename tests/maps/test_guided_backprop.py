"""Guided backpropagation against its formula in float64, for every way of calling a ReLU, and Guided Grad-CAM
(sections 10 and 19)."""
# mypy: disable-error-code="union-attr,index,operator,arg-type"

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import camlucida as cl
from camlucida.errors import LayerError, TargetError, UnsupportedError
from fingerprints import unchanged
from maps.test_deconvnet import SIZES, chain, stages_of
from oracles import pixels as oracle
from small_networks import by_axes, gap, headed, pixels


@pytest.mark.parametrize("axes", [1, 2])
def test_against_the_formula(axes):
    """Both masks at every ReLU; the plain gradient has one of them, the deconvnet the other."""
    module = chain(axes)
    x = torch.randn(2, 2, *SIZES[axes], generator=torch.Generator().manual_seed(axes))
    cells = tuple(module[0](x).shape[1:])
    with unchanged(module):
        found = cl.GuidedBackprop()(cl.wrap(module), x, cl.ClassTarget([0, 5]))
    stages = stages_of(module[0])
    for i, index in enumerate([0, 5]):
        values = oracle.forward(x[i].double().numpy(), stages)
        signal = np.zeros(cells)
        signal[np.unravel_index(index, cells)] = 1
        wanted = {
            rule: oracle.backwards(values, stages, signal, rule)
            for rule in ("guided", "gradient", "deconvnet")
        }
        scale = np.abs(wanted["guided"]).max()
        assert scale > 0
        np.testing.assert_allclose(found.values[i].numpy(), wanted["guided"], rtol=1e-4, atol=1e-6 * scale)
        assert np.abs(wanted["guided"] - wanted["gradient"]).max() > 0.01 * scale
        assert np.abs(wanted["guided"] - wanted["deconvnet"]).max() > 0.01 * scale
        assert float(found.scores[i]) == pytest.approx(values[-1].flat[index], rel=1e-5)
    assert found.classes.tolist() == [0, 5]
    assert found.target == "logit of the given class"


class Acts(nn.Module):
    def __init__(self, act) -> None:
        super().__init__()
        self.one, self.two, self.fc = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 6, 3), nn.Linear(6, 3)
        self.act = act

    def forward(self, x):
        return self.fc(self.act(self.two(self.act(self.one(x)))).mean((2, 3)))


RELUS = {
    "functional": F.relu, "in place": lambda x: F.relu_(x), "method": lambda x: x.relu_(), "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True), "clamp": lambda x: x.clamp(min=0), "clamp_min_": lambda x: x.clamp_min_(0),
    "threshold": nn.Threshold(0, 0), "relu6": nn.ReLU6(), "hardtanh": lambda x: F.hardtanh(x, 0, 6),
}  # fmt: skip


@pytest.mark.parametrize("name", RELUS)
def test_the_rule_acts_on_the_operation(name):
    module = Acts(RELUS[name])
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p, 0, 0.15)  # below the cut of ReLU6
    x = pixels()
    found = cl.GuidedBackprop()(cl.wrap(module), x, cl.ClassTarget(1))
    leaf = x.clone().requires_grad_()
    first = module.one(leaf)
    second = module.two(first.relu())
    signal = (module.fc.weight[1] / second[0, 0].numel()).view(1, -1, 1, 1).expand_as(second)
    signal = signal.relu() * (second > 0)
    (signal,) = torch.autograd.grad(second, first, signal, retain_graph=True)
    (wanted,) = torch.autograd.grad(first, leaf, (signal.relu() * (first > 0)).detach())
    torch.testing.assert_close(found.values, wanted.detach(), rtol=1e-4, atol=1e-7)
    assert bool(wanted.any())


def test_without_relu_it_is_the_gradient_and_says_so():
    module, x = chain(2, relu=False), pixels(1, 11, 14, channels=2)
    found = cl.GuidedBackprop()(cl.wrap(module), x, cl.ClassTarget(3))
    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(module(leaf)[:, 3].sum(), leaf)
    torch.testing.assert_close(found.values, wanted)
    assert found.target == "logit of the given class; no ReLU on the way: the plain gradient"


def test_every_kind_of_target():
    module, x = gap(), pixels()
    network = cl.wrap(module)
    targets = (
        cl.ClassTarget(2), cl.ProbabilityTarget(2), cl.MarginTarget(2), cl.UnitTarget("features", 1),
        cl.RegionTarget("features", np.eye(5, 7)), cl.CallableTarget(lambda out: out[:, 1] ** 2, "a square"),
    )  # fmt: skip
    words = set()
    for target in targets:
        found = cl.GuidedBackprop()(network, x, target)
        assert found.values.any()
        words.add(found.target)
        assert cl.GuidedGradCAM("features")(network, x, target).values.any() or not isinstance(
            target, cl.ClassTarget
        )
    assert len(words) == len(targets)


def test_guided_grad_cam_is_the_product():
    module, x = gap(), pixels()
    network, target = cl.wrap(module), cl.ClassTarget([1, 3])
    found = cl.GuidedGradCAM()(network, x, target)
    cam = cl.GradCAM()(network, x, target).values
    stretched = F.interpolate(cam, (20, 28), mode="bilinear", align_corners=False)
    wanted = cl.GuidedBackprop()(network, x, target).values * stretched
    torch.testing.assert_close(found.values, wanted)
    assert wanted.any()
    assert (found.method, found.layer, found.classes.tolist()) == ("guided-grad-cam", "features", [1, 3])
    inner = cl.GuidedGradCAM("features.1")(network, x, target)
    assert inner.layer == "features.1"
    assert not torch.equal(inner.values, found.values)


@pytest.mark.parametrize("axes", [1, 3])
def test_one_and_three_axes(axes):
    x = torch.randn(2, 2, *(16, 12, 14)[:axes], generator=torch.Generator().manual_seed(0))
    network = cl.wrap(by_axes(axes))
    for method in (cl.GuidedBackprop(), cl.GuidedGradCAM()):
        found = [method(network, x, cl.ClassTarget(c)).values for c in range(5)]
        assert found[0].shape == x.shape
        assert torch.stack(found).any()


def test_wrong_calls():
    network, x = cl.wrap(gap()), pixels()
    for method in (cl.GuidedBackprop(), cl.GuidedGradCAM()):
        with pytest.raises(TargetError, match=r"got 2 targets.*one target a picture"):
            method(network, x, cl.ClassTarget.top(2))
        with pytest.raises(TargetError, match="class 99; allowed: 0 … 4"):
            method(network, x, cl.ClassTarget(99))
    cut = headed(lambda m, x: m.fc(x.detach().mean((2, 3))))
    with pytest.raises(LayerError, match="no gradient reaches the pixels"):
        cl.GuidedBackprop()(cl.wrap(cut), x)
    with torch.inference_mode():
        made = gap()
    with pytest.raises(UnsupportedError, match="made in inference mode"):
        cl.GuidedBackprop()(cl.wrap(made), x)
