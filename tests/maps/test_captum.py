"""The adapter gives captum's own numbers, and refuses in one line what captum cannot do."""
# mypy: disable-error-code="union-attr,index,operator,arg-type"

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import camlucida as cl
from camlucida import maps
from camlucida.errors import TargetError, UnsupportedError, UsageError
from fingerprints import unchanged
from small_networks import fully_connected, gap, pixels

CLASSES = [3, 1]


def test_without_captum_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(UnsupportedError, match=r"captum is not installed; pip install 'camlucida\[captum\]'"):
        cl.Captum()(cl.wrap(gap()), pixels())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "captum" in maps.METHODS
    assert "captum" not in maps.available()
    assert "saliency" in maps.available()


@pytest.fixture
def attr():
    return pytest.importorskip("captum.attr", reason="captum is not installed")


CASES = {
    "IntegratedGradients": {"n_steps": 7, "baselines": 0.3},
    "Saliency": {"abs": False},
    "DeepLift": {},
    "Occlusion": {"sliding_window_shapes": (3, 6, 5), "strides": (3, 5, 4), "perturbations_per_eval": 5},
    "FeatureAblation": {"feature_mask": torch.arange(560).view(1, 1, 20, 28) // 140},
}


@pytest.mark.parametrize("channels", ["sum", "max"])
@pytest.mark.parametrize("name", CASES)
def test_the_numbers_are_captums(attr, name, channels):
    module, x = fully_connected() if name != "DeepLift" else gap(), pixels()
    theirs = (
        getattr(attr, name)(module)
        .attribute(x.clone().requires_grad_(), target=CLASSES, **CASES[name])
        .detach()
    )
    with unchanged(module):
        found = cl.Captum(name, CASES[name], channels=channels)(cl.wrap(module), x, cl.ClassTarget(CLASSES))
    wanted = theirs.sum(1) if channels == "sum" else theirs.abs().amax(1)
    assert bool(wanted.any())
    torch.testing.assert_close(found.values[:, 0], wanted, rtol=1e-4, atol=1e-6)
    assert found.method == f"captum {name}"
    assert found.grid.view == (20, 28)
    torch.testing.assert_close(found.scores, module(x)[[0, 1], CLASSES][:, None].detach())


def test_layers_several_targets_and_units(attr):
    module, x = gap(), pixels()
    network = cl.wrap(module)
    theirs = attr.LayerGradCam(module, module.features).attribute(x, CLASSES).detach()
    found = cl.Captum("LayerGradCam")(network, x, cl.ClassTarget([[3, 0], [1, 2]]))
    torch.testing.assert_close(found.values[:, 0], theirs[:, 0])
    assert (found.layer, tuple(found.values.shape)) == ("features", (2, 2, 5, 7))
    ours = cl.GradCAM(relu=False)(network, x, cl.ClassTarget([[3, 0], [1, 2]]))
    torch.testing.assert_close(found.values, ours.values)
    unit = cl.Captum("Saliency", channels="max")(network, x, cl.UnitTarget("features", 2))
    torch.testing.assert_close(unit.values, cl.Saliency()(network, x, cl.UnitTarget("features", 2)).values)


def test_seeds(attr):
    state = np.random.get_state()[1].copy()
    network, x = cl.wrap(gap()), pixels()
    made = [
        cl.Captum("GradientShap", {"baselines": torch.zeros(2, 3, 20, 28)}, seed=s)(network, x).values
        for s in (1, 1, 2)
    ]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert (np.random.get_state()[1] == state).all()


def test_what_does_not_fit_is_one_line(attr):
    network, x = cl.wrap(gap()), pixels()
    with pytest.raises(UsageError, match="did you mean 'IntegratedGradients'"):
        cl.Captum("IntegratedGradient")(network, x)
    with pytest.raises(UsageError, match=r"argument of IntegratedGradients; got 'steps'.*n_steps"):
        cl.Captum(arguments={"steps": 3})(network, x)
    with pytest.raises(UsageError, match="an attribution to the pixels"):
        cl.Captum("Saliency", layer="features")(network, x)
    with pytest.raises(UsageError, match=r"Captum\.channels"):
        cl.Captum(channels="mean")
    with pytest.raises(TargetError, match="class 99"):
        cl.Captum("Saliency")(network, x, cl.ClassTarget(99))
    with unchanged(network.module), pytest.raises(UnsupportedError, match="captum's LRP on"):
        cl.Captum("LRP")(network, x)  # it has no rule for one of the modules


def test_hooks_go_also_when_the_network_fails(attr):
    module = gap()
    calls = []

    def late(m, given, output):
        calls.append(1)
        if len(calls) > 2:
            raise FloatingPointError("in the middle")

    module.features[2].register_forward_hook(late)
    network = cl.wrap(module)
    network.structure(pixels())
    for name in ("DeepLift", "GuidedBackprop", "IntegratedGradients"):
        calls.clear()
        calls.append(1)
        with unchanged(module), pytest.raises(FloatingPointError, match="in the middle"):
            cl.Captum(name)(network, pixels())


def test_on_the_pixels_of_a_module_that_is_frozen(attr):
    module = gap().requires_grad_(False)
    found = cl.Captum("LayerGradCam")(cl.wrap(module), pixels(), cl.ClassTarget(1))
    torch.testing.assert_close(
        found.values, cl.GradCAM(relu=False)(cl.wrap(gap()), pixels(), cl.ClassTarget(1)).values
    )
