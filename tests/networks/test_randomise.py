"""A random head on a copy of the network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import camlucida as cl
from camlucida.errors import UnsupportedError
from camlucida.networks.randomise import randomised_head
from fingerprints import unchanged
from small_networks import gap, pixels


def test_only_the_head_is_shuffled_and_only_on_the_copy():
    module = gap()
    with unchanged(module):
        other = randomised_head(cl.wrap(module), 3)
    assert other.module is not module
    assert other.module.features[0].weight is module.features[0].weight  # shared, not copied
    assert other.module.conv.weight is module.conv.weight  # of as many outputs, but of no account
    shuffled, own = other.module.fc.weight, module.fc.weight
    assert torch.equal(shuffled.flatten().sort().values, own.flatten().sort().values)
    assert not torch.equal(shuffled, own)


def test_auxiliary_heads_are_not_the_head():
    """They stand after the head in the module, and do not run in use."""
    net = cl.load("googlenet", weights=None, num_classes=7, width=0.125, arguments={"aux": True, "size": 64})
    other = randomised_head(net)
    x = pixels(1, 64, 96)
    assert not torch.allclose(other(x), net(x))
    assert any(name.startswith("aux") for name, _ in net.module.named_modules())


def test_the_seed_decides():
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    net = cl.wrap(module)
    first, again, other = (randomised_head(net, seed)(pixels()) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first, net(pixels()))


def test_the_head_has_one_output_a_class():
    module = nn.Sequential(
        nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2), nn.Linear(2, 4)
    )
    labels = tuple(cl.Label(str(i), str(i)) for i in range(2))
    net = cl.wrap(module, card=cl.Card("two", "", {}, cl.wrap(module).card.preprocessing, labels))
    other = randomised_head(net)
    assert other.module[4].weight is module[4].weight
    assert other.module[3].weight is not module[3].weight


def test_no_head_is_said():
    with pytest.raises(UnsupportedError, match="a random head"):
        randomised_head(cl.wrap(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())))


def test_a_weight_that_is_computed_cannot_be_shuffled():
    """Only its bias would be: a random head that says what the trained one says."""
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    nn.utils.parametrizations.weight_norm(module[3])
    with pytest.raises(UnsupportedError, match="whose weight is computed"):
        randomised_head(cl.wrap(module))
