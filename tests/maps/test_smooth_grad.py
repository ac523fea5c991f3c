"""SmoothGrad against a slow loop over the same noise."""
# mypy: disable-error-code="union-attr,index,operator,arg-type"

from __future__ import annotations

import pytest
import torch

import camlucida as cl
from camlucida import maps, specs
from camlucida.errors import TargetError, UsageError
from fingerprints import unchanged
from small_networks import by_axes, fully_connected, gap, pixels


def copies(x: torch.Tensor, n: int, sigma: float, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(n):
        noise = torch.randn(x.shape[1:], generator=generator)
        found.append(torch.stack([one + sigma * (one.max() - one.min()) * noise for one in x]))
    return found


@pytest.mark.parametrize("mean", ["signed", "absolute", "squared"])
def test_the_mean_of_signed_gradients_against_a_slow_loop(mean):
    module, x = fully_connected(), pixels()
    with unchanged(module):
        found = cl.SmoothGrad(n=5, sigma=0.2, mean=mean, seed=3)(
            cl.wrap(module), x, cl.ClassTarget([[1, 2], [4, 0]])
        )
    for i in range(2):
        for k, c in enumerate([[1, 2], [4, 0]][i]):
            total = torch.zeros(3, 20, 28, dtype=torch.float64)
            for noisy in copies(x, 5, 0.2, 3):
                leaf = noisy.requires_grad_()
                (gradient,) = torch.autograd.grad(module(leaf)[i, c], leaf)
                signed = gradient[i].double()
                total += {"signed": signed, "absolute": signed.abs(), "squared": signed**2}[mean] / 5
            wanted = total.abs().amax(0).float()
            torch.testing.assert_close(found.values[i, k], wanted, rtol=1e-4, atol=1e-7)
    clean = module(x)
    torch.testing.assert_close(found.scores, clean.gather(1, torch.tensor([[1, 2], [4, 0]])))
    torch.testing.assert_close(found.logits, clean)
    assert (found.method, found.seed) == ("smooth-grad of saliency", 3)


def test_of_any_gradient_method():
    network, x = cl.wrap(gap()), pixels()
    target = cl.ClassTarget([2, 3])
    found = cl.SmoothGrad("grad-cam:relu=false", n=3, sigma=0.1)(network, x, target)
    each = [cl.GradCAM(relu=False)(network, noisy, target).values for noisy in copies(x, 3, 0.1, 0)]
    torch.testing.assert_close(found.values, torch.stack(each).mean(0))
    assert found.layer == "features"
    guided = cl.SmoothGrad(cl.GuidedBackprop(), n=3, sigma=0.1)(network, x, target)
    assert isinstance(guided, cl.Reconstruction)
    each = [cl.GuidedBackprop()(network, noisy, target).values for noisy in copies(x, 3, 0.1, 0)]
    torch.testing.assert_close(guided.values, torch.stack(each).mean(0))
    assert guided.method == "smooth-grad of guided-backprop"
    torch.testing.assert_close(guided.scores, network(x)[[0, 1], [2, 3]])


def test_without_noise_it_is_the_method():
    network, x = cl.wrap(fully_connected()), pixels()
    found = cl.SmoothGrad(n=2, sigma=0)(network, x, cl.ClassTarget(1))
    torch.testing.assert_close(found.values, cl.Saliency()(network, x, cl.ClassTarget(1)).values)
    blurred = cl.SmoothGrad("saliency:blur=30", n=2, sigma=0)(network, x, cl.ClassTarget(1))
    torch.testing.assert_close(blurred.values, cl.Saliency(30)(network, x, cl.ClassTarget(1)).values)


def test_the_target_is_that_of_the_clean_picture():
    """So much noise that the copies are of other classes, and their strongest cells elsewhere."""
    network, x = cl.wrap(fully_connected()), pixels(4)
    for target in (cl.ClassTarget.predicted(), cl.UnitTarget("features", 2)):
        found = cl.SmoothGrad(n=4, sigma=3)(network, x, target)
        if isinstance(target, cl.ClassTarget):
            classes = network(x).argmax(1)
            assert found.classes[:, 0].tolist() == classes.tolist()
            moved = [network(noisy).argmax(1).tolist() for noisy in copies(x, 4, 3, 0)]
            assert any(m != classes.tolist() for m in moved)
            fixed = cl.SmoothGrad(n=4, sigma=3)(network, x, cl.ClassTarget(classes))
            assert torch.equal(found.values, fixed.values)
        else:
            cells = network.module.features(x)[:, 2].flatten(1).argmax(1)
            each = []
            for noisy in copies(x, 4, 3, 0):
                leaf = noisy.requires_grad_()
                at = network.module.features(leaf)[:, 2].flatten(1).gather(1, cells[:, None]).sum()
                each.append(torch.autograd.grad(at, leaf)[0])
            torch.testing.assert_close(found.values[:, 0], torch.stack(each).mean(0).abs().amax(1))


@pytest.mark.parametrize("axes", [1, 3])
def test_one_and_three_axes_and_seeds(axes):
    x = torch.randn(2, 2, *(16, 12, 14)[:axes], generator=torch.Generator().manual_seed(0))
    network = cl.wrap(by_axes(axes))
    first, again, other = (cl.SmoothGrad(n=2, seed=s)(network, x).values for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (2, 1, *x.shape[2:])


def test_wrong_calls_and_specs():
    for kwargs in ({"n": 0}, {"sigma": -1}, {"mean": "median"}, {"of": "smooth-grad"}, {"of": "deconvnet"}):
        with pytest.raises(UsageError, match="SmoothGrad"):
            cl.SmoothGrad(**kwargs)
    for of in ("guided-backprop", "occlusion"):
        with pytest.raises(UsageError, match=r"SmoothGrad\(differentiable=True\); got of"):
            cl.SmoothGrad(of, differentiable=True)
    with pytest.raises(UsageError, match="did you mean 'saliency'"):
        cl.SmoothGrad("salient")
    with pytest.raises(TargetError, match="class 99"):
        cl.SmoothGrad(n=1)(cl.wrap(gap()), pixels(), cl.ClassTarget(99))
    spec = "smooth-grad:of=grad-cam:layer=features.1,n=7,sigma=0.1"
    assert maps.method(spec) == cl.SmoothGrad("grad-cam:layer=features.1", 7, 0.1)
    assert specs.describe(maps.method(spec), maps.METHODS) == spec
