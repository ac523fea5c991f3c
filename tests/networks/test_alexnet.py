"""AlexNet and its kin against the specification's table, a forward pass written out in float64, and closed forms."""
# mypy: disable-error-code="union-attr"

import json

import pytest
import torch
from paper_networks import fields, incomplete, last_map, parameters, small, unfilled
from torch.nn import functional as F

import camlucida as cl
from camlucida.errors import NetworkError
from camlucida.networks import cards, catalogue
from camlucida.networks.alexnet import AlexNet, convolutions
from camlucida.networks.blocks import contrast_norm, scaled


@pytest.mark.parametrize(
    ("name", "arguments", "count", "shape"),
    [
        ("alexnet", {}, 60_965_224, (256, 6, 6)),
        ("alexnet-gap", {}, 5_719_400, (256, 13, 13)),
        ("alexnet-star-gap", {}, 5_133_800, (512, 11, 11)),
        ("alexnet-star-gap", {"mapping": 13}, 5_133_800, (512, 13, 13)),
    ],
)
def test_parameters_and_maps_of_the_table(name, arguments, count, shape):
    assert parameters(name, **arguments) == count
    assert last_map(name, **arguments) == shape


def test_the_added_convolution_in_two_groups():
    assert parameters("alexnet-gap") - parameters("alexnet-gap", groups=2) == 256 * 9 * 1024 // 2


def slow_norm(maps):
    """a / (2 + 1e-4 Σ a²)^0.75 over the five adjacent maps, as the paper writes it."""
    out = torch.empty_like(maps)
    for k in range(maps.shape[1]):
        near = maps[:, max(0, k - 2) : k + 3]
        out[:, k] = maps[:, k] / (2 + 1e-4 * near.square().sum(1)) ** 0.75
    return out


def test_contrast_norm_is_the_papers():
    maps = torch.randn(2, 7, 3, 4, dtype=torch.float64) * 100
    torch.testing.assert_close(contrast_norm()(maps), slow_norm(maps))


@pytest.mark.parametrize("pool_first", [False, True])
def test_logits_are_those_of_the_layers_written_out(pool_first):
    torch.manual_seed(0)
    net = AlexNet(num_classes=5, width=0.1, size=99).double().eval()
    if pool_first:
        net.features = convolutions(AlexNet.layers, 0.1, pool_first=True).double()
    weights = dict(net.named_parameters())
    for parameter in weights.values():
        parameter.detach().normal_(0, 0.1)
    x = given = torch.randn(2, 3, 99, 99, dtype=torch.float64) * 30
    for number, stride, padding, groups in ((1, 4, 0, 1), (2, 1, 2, 2), (3, 1, 1, 1), (4, 1, 1, 2), (5, 1, 1, 2)):  # fmt: skip
        x = F.conv2d(
            x, weights[f"features.conv{number}.weight"], weights[f"features.conv{number}.bias"], stride, padding, 1, groups,
        ).clamp(min=0)  # fmt: skip
        if number < 3:
            x = slow_norm(x) if not pool_first else x
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            x = slow_norm(x) if pool_first else x
    x = F.max_pool2d(x, 3, 2, ceil_mode=True).flatten(1)
    for number in (6, 7, 8):
        x = x @ weights[f"classifier.fc{number}.weight"].T + weights[f"classifier.fc{number}.bias"]
        x = x.clamp(min=0) if number < 8 else x
    torch.testing.assert_close(net(given), x)


def test_receptive_fields():
    found = fields(small("alexnet"))
    assert [found[f"features.conv{n}"] for n in (1, 2, 3, 4, 5)] == [(11, 4), (51, 8), (99, 16), (131, 16), (163, 16)]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "arguments", "side", "cells"),
    [
        ("alexnet-gap", {}, 128, 7),
        ("alexnet-gap", {}, 134, 7),
        ("alexnet-gap", {}, 135, 8),
        ("alexnet-star-gap", {}, 128, 5),
        ("alexnet-star-gap", {}, 167, 8),
        ("alexnet-star-gap", {"mapping": 13}, 135, 8),
    ],
)
def test_cells_at_small_inputs(name, arguments, side, cells):
    net = small(name, **arguments)
    layer = net.structure(torch.zeros(1, 3, side, side)).features
    assert layer.size == (cells, cells)


@pytest.mark.parametrize("name", ["alexnet-gap", "alexnet-star-gap"])
def test_class_maps_are_complete(name):
    difference, maps = incomplete(small(name), torch.randn(2, 3, 135, 195) * 50)
    assert difference < 1e-5
    assert maps.values.shape[2] < maps.values.shape[3]


# fully connected layers at 227 pixels see 6 × 6 maps
CONVS = {1: 34_944, 2: 307_456, 3: 885_120, 4: 663_936, 5: 442_624}


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({"remove": (7,)}, sum(CONVS.values()) + 9217 * 4096 + 4097 * 1000),
        ({"remove": (6, 7)}, sum(CONVS.values()) + 9217 * 1000),
        ({"remove": (3, 4)}, CONVS[1] + CONVS[2] + (128 * 9 + 1) * 256 + 9217 * 4096 + 4097 * 4096 + 4097 * 1000),
        ({"remove": (3, 4, 6, 7)}, CONVS[1] + CONVS[2] + (128 * 9 + 1) * 256 + 9217 * 1000),
        ({"widths": {6: 2048, 7: 2048}}, sum(CONVS.values()) + 9217 * 2048 + 2049 * 2048 + 2049 * 1000),
        ({"widths": {"6": 8192, "7": 8192}}, sum(CONVS.values()) + 9217 * 8192 + 8193 * 8192 + 8193 * 1000),
        ({"widths": {3: 512, 4: 1024, 5: 512}}, CONVS[1] + CONVS[2] + (256 * 9 + 1) * 512 + (256 * 9 + 1) * 1024
         + (512 * 9 + 1) * 512 + (512 * 36 + 1) * 4096 + 4097 * 4096 + 4097 * 1000),
    ],
)  # fmt: skip
def test_variants_fix_their_channels_by_themselves(arguments, count):
    assert parameters("alexnet", **arguments) == count


@pytest.mark.parametrize("arguments", [{"remove": [3, 4, 7]}, {"remove": [2]}, {"remove": [5, 6]}, {"widths": {"6": 32, "5": 40}}])  # fmt: skip
@pytest.mark.parametrize("name", ["alexnet", "zfnet", "zfnet-b"])
def test_variants_run_and_come_back_from_a_packed_file(name, arguments, tmp_path):
    arguments = json.loads(json.dumps(arguments)) | {"size": 99}
    net = small(name, **arguments)
    cards.pack(tmp_path / "net.safetensors", net.module.state_dict(), net.card)
    back = cl.load(str(tmp_path / "net.safetensors"))
    pixels = torch.randn(2, 3, 99, 99)
    torch.testing.assert_close(back(pixels), net(pixels), rtol=0, atol=0)
    gone = {f"{'conv' if n < 6 else 'fc'}{n}" for n in arguments.get("remove", ())}
    assert not gone & {name.rpartition(".")[2] for name, _ in net.module.named_modules()}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("alexnet", {"remove": (1,)}, r"remove; got \[1\]; allowed: layers \[2, 3, 4, 5, 6, 7\]"),
        ("alexnet", {"widths": {8: 5}}, r"widths; got \[8\]"),
        ("alexnet", {"remove": (6,), "widths": {6: 9}}, r"a removed layer has no width; got \[6\]"),
        ("alexnet", {"widths": {3: 7}, "width": 1.0}, None),
        ("alexnet", {"size": 20}, "the maps vanish"),
        ("alexnet", {"width": 0}, "width; got 0"),
        ("alexnet-star-gap", {"mapping": 12}, "mapping; got 12; allowed: 11"),
        ("alexnet", {"wdith": 1}, "wdith"),
    ],
)
def test_what_cannot_be_built(name, arguments, message):
    if message is None:
        message = "layer 4; got 7 → 384 channels; allowed: multiples of 2 groups"
    with pytest.raises(NetworkError, match=message):
        unfilled(name, **arguments)


def test_widths_are_always_multiples_of_the_groups():
    assert [scaled(c, w) for c, w in ((96, 0.25), (96, 0.1), (16, 0.01), (384, 0.33), (96, 1.0))] == [
        24,
        8,
        4,
        128,
        96,
    ]
    for width in (0.07, 0.3, 0.55, 1.3):
        catalogue.build("alexnet-star-gap", {"width": width, "num_classes": 3})


def test_initial_weights_train():
    torch.manual_seed(0)
    net = AlexNet(num_classes=3, width=0.1, size=99, dropout=0.0)
    pixels, labels = torch.randn(6, 3, 99, 99), torch.arange(6) % 3
    descent = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(net(pixels), labels)
        descent.zero_grad()
        loss.backward()
        descent.step()
        losses.append(loss.item())
    assert losses[0] < 1.5  # no class is favoured
    assert losses[-1] < 0.5
