"""Network in network: the table, and that its last channels are the class maps."""
# mypy: disable-error-code="union-attr"

from itertools import pairwise

import torch
from paper_networks import incomplete, last_map, parameters, small, unfilled
from torch import nn

import camlucida as cl


def test_parameters_and_maps_of_the_table():
    assert parameters("nin") == 7_595_176
    assert last_map("nin") == (1000, 6, 6)


def test_the_chain_of_maps_at_224():
    module, sides = unfilled("nin"), []
    with torch.device("meta"):
        x = torch.zeros(1, 3, 224, 224)
        for part in module.features:
            x = part(x)
            sides.append(x.shape[-1])
    assert list(dict.fromkeys(sides)) == [54, 27, 13, 6]


def test_every_convolution_has_its_relu():
    parts = [type(m) for m in unfilled("nin").features]
    assert [after for before, after in pairwise(parts) if before is nn.Conv2d] == [nn.ReLU] * 12


def test_class_maps_are_the_last_channels():
    net = small("nin")
    pixels = torch.randn(2, 3, 96, 160) * 50
    difference, maps = incomplete(net, pixels)
    assert difference < 1e-6
    with torch.no_grad():
        torch.testing.assert_close(maps.values, net.module.features(pixels))
    assert net(pixels).min() >= 0


def test_a_head_adds_nothing():
    net = cl.load("nin", weights=None, width=0.1, num_classes=5, head="gap")
    assert (net.card.name, net.module.classifier.__class__.__name__) == ("nin", "GlobalPool")
