"""Backpropagation saliency against finite differences and closed forms (section 4.2)."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

import camlucida as cl
from camlucida.errors import LayerError, UsageError
from camlucida.maps.saliency import blurred
from fingerprints import unchanged
from oracles import maps as oracle
from small_networks import fully_connected, gap, headed, pixels


class Smooth(nn.Module):
    """Without kinks, so that finite differences are exact: 20 × 28 pixels → 3 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(torch.tanh(self.conv(x)).square().mean((2, 3))) * 50


def test_against_finite_differences():
    torch.manual_seed(0)
    module, x = Smooth().double(), pixels().double()
    with unchanged(module):
        found = cl.Saliency()(cl.wrap(module), x, cl.ClassTarget([[2, 0], [1, 1]]))
    assert found.values.dtype == torch.float32
    assert found.values.shape == (2, 2, 20, 28)

    def score(c):
        return lambda picture: float(module(picture[None])[0, c].detach())

    for i, k, c in ((0, 0, 2), (0, 1, 0), (1, 0, 1)):
        wanted = oracle.saliency(score(c), x[i], range(0, 20, 3), range(0, 28, 5))
        assert wanted.max() > 1e-3
        np.testing.assert_allclose(
            found.values[i, k, ::3, ::5].numpy(), wanted, rtol=1e-4, atol=1e-6 * wanted.max()
        )


@pytest.mark.parametrize("shape", [(30,), (20, 28), (5, 6, 7)])
def test_of_a_linear_network_it_is_the_weights(shape):
    """S_c = Σ w_c · I, whatever the picture: the map is max over channels of |w_c|, on 1, 2 and 3 axes."""
    torch.manual_seed(1)
    linear = nn.Linear(2 * int(np.prod(shape)), 4)
    module = nn.Sequential(nn.Flatten(), linear)
    x = torch.randn(3, 2, *shape)
    found = cl.Saliency()(cl.wrap(module), x, cl.ClassTarget.all())
    wanted = linear.weight.detach().abs().unflatten(1, (2, *shape)).amax(1)
    assert torch.equal(found.values, wanted.expand(3, 4, *shape))
    assert found.grid.view == shape
    assert torch.equal(found.in_view(), found.values)


def test_the_score_is_taken_before_the_softmax():
    """The gradient of a probability is that of the logits mixed; of the logit it is the class's own."""
    module, x = fully_connected(), pixels()
    network = cl.wrap(module)
    logit = cl.Saliency()(network, x, cl.ClassTarget(2)).values
    probability = cl.Saliency()(network, x, cl.ProbabilityTarget(2)).values
    share = probability / logit.clamp(min=1e-12)
    assert float(share.std() / share.mean()) > 0.01  # not the same map in another unit
    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(module(leaf)[:, 2].sum(), leaf)
    torch.testing.assert_close(logit[:, 0], wanted.abs().amax(1))


def test_the_map_lies_over_the_pixels_of_the_picture():
    """A network that reads one pixel of the view: the hot pixel lands there in the source, also mirrored."""

    class OnePixel(nn.Module):
        def forward(self, x):
            return x[:, :2, 3, 7]

    size = cl.Size(40, 56)
    for flip in (False, True):
        view = cl.View(size, cl.Size(20, 28), (0, 0, 20, 28), flip)
        batch = cl.Batch(torch.zeros(1, 3, 20, 28), (view,))
        heat = cl.Saliency()(cl.wrap(OnePixel()), batch, cl.ClassTarget(0)).in_source()[0][0]
        hot = np.argwhere(heat.numpy() == heat.max().item())
        assert heat.shape == (40, 56)
        assert hot.mean(0).tolist() == [6.5, 55 - 14.5 if flip else 14.5]


@pytest.mark.parametrize("sigma", [0.3, 0.7, 2.0, 9.0])
def test_blur_is_scipys(sigma):
    values = pixels(2, 13, 17)[:, :2]
    wanted = ndimage.gaussian_filter(values.numpy().astype(np.float64), sigma, axes=(2, 3), mode="reflect")
    np.testing.assert_allclose(blurred(values, sigma).numpy(), wanted, atol=1e-6)


def test_the_blur_is_in_pixels_of_224():
    network, x = cl.wrap(fully_connected()), pixels()
    raw = cl.Saliency()(network, x, cl.ClassTarget(1)).values
    found = cl.Saliency(blur=22.4)(network, x, cl.ClassTarget(1)).values
    torch.testing.assert_close(found, blurred(raw, 2.0))  # the shorter side is 20
    torch.testing.assert_close(found.sum(), raw.sum())
    assert not torch.allclose(found, raw)
    with pytest.raises(UsageError, match=r"Saliency\.blur"):
        cl.Saliency(blur=-1)


def test_no_gradient_is_said():
    dead = headed(lambda m, x: m.fc((x * 0).mean((2, 3))))
    assert cl.Saliency()(cl.wrap(dead), pixels()).status == (("no-gradient",), ("no-gradient",))

    class Cut(nn.Module):
        def forward(self, x):
            return x.detach().mean((2, 3))

    with pytest.raises(LayerError, match="no gradient reaches the pixels"):
        cl.Saliency()(cl.wrap(Cut()), pixels())


def test_a_unit_inside_the_network():
    module, x = gap(), pixels()
    found = cl.Saliency()(cl.wrap(module), x, cl.UnitTarget("features", 2))
    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(module.features(leaf)[:, 2].flatten(1).amax(1).sum(), leaf)
    torch.testing.assert_close(found.values[:, 0], wanted.abs().amax(1))
