"""What a network is made of: its head, the layer before pooling, strides and receptive fields."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import camlucida as cl
from camlucida.networks.network import Network, logits_of
from oracles.maps import pixels_reached
from small_networks import CHANNELS, CLASSES, EXACT, LINEARISED, MAXIMUM, OTHER, gap, headed, pixels, seeded


def logits(network: Network, x: Tensor) -> Tensor:
    with torch.no_grad():
        return logits_of(network.module(x))


def assert_complete(network: Network, x: Tensor) -> None:
    """The mean of each class map and the head's bias give the logit."""
    expected = logits(network, x)
    found = cl.CAM()(network, x, cl.ClassTarget.all())
    structure = network.structure(x)
    features = found_features(network, x)
    bias = structure.head.linear(features)[2]
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.values.flatten(2).mean(2) + bias, expected, rtol=1e-5, atol=1e-5 * scale)
    torch.testing.assert_close(structure.head.logits(features), expected, rtol=1e-5, atol=1e-5 * scale)


def found_features(network: Network, x: Tensor) -> Tensor:
    from camlucida import taps

    structure = network.structure(x)
    with taps.borrowed(network.module):
        tapped = network.run(x, [structure.features.point]).tapped[structure.features.point]
    return tapped.movedim(structure.head.channel_axis, 1)


@pytest.mark.parametrize("name", [*EXACT, *LINEARISED])
def test_a_pooled_linear_head_is_found_and_complete(name):
    network = cl.wrap({**EXACT, **LINEARISED}[name]())
    structure = network.structure(pixels())
    assert structure.head is not None
    assert structure.head.pool == "avg"
    assert structure.head.is_exact == (name in EXACT)
    assert structure.features.size == (5, 7)
    assert structure.features.reached
    assert_complete(network, pixels(3))


@pytest.mark.parametrize("name", MAXIMUM)
def test_a_max_pooled_head_gives_its_logits_again(name):
    network = cl.wrap(MAXIMUM[name]())
    head = network.structure(pixels()).head
    assert head is not None
    assert (head.pool, head.is_exact) == ("max", True)
    torch.testing.assert_close(
        head.logits(found_features(network, pixels())), logits(network, pixels()), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", OTHER)
def test_any_other_head_is_none(name):
    structure = cl.wrap(OTHER[name]()).structure(pixels())
    assert structure.head is None
    assert structure.features is not None
    assert structure.features.name == "features"
    assert (structure.features.size, structure.features.channels) == ((5, 7), CHANNELS)


def test_names_of_the_features():
    assert cl.wrap(gap()).structure(pixels()).features.name == "features"
    network = cl.wrap(EXACT["conv 1x1, pool"]())
    assert network.structure(pixels()).features.name == "conv"
    network = cl.wrap(EXACT["in-place relu before the pool"]())
    assert network.structure(pixels()).features.name == "input of adaptive_avg_pool2d"
    assert (
        network.find_layer("input of adaptive_avg_pool2d", pixels()) == network.structure(pixels()).features
    )


@pytest.mark.parametrize(
    ("conv", "pool", "shape", "size"),
    [
        (nn.Conv1d, nn.AdaptiveAvgPool1d(1), (50,), (25,)),
        (nn.Conv3d, nn.AdaptiveAvgPool3d(1), (6, 9, 12), (3, 5, 6)),
    ],
)
def test_networks_of_one_and_three_axes(conv, pool, shape, size):
    module = seeded(
        lambda: nn.Sequential(
            conv(2, 4, 3, 2, 1), nn.ReLU(), pool, nn.Flatten(), nn.Dropout(), nn.Linear(4, 3)
        )
    )
    network = cl.wrap(module)
    x = torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(0))
    layer = network.structure(x).features
    assert (layer.name, layer.size) == ("1", size)
    assert layer.receptive_field == (3.0,) * len(shape)
    assert_complete(network, x)


def test_maps_of_other_axes_than_the_input_are_no_layers():
    """A mean over one axis after the other, and tokens: nothing there can be laid over the picture."""
    for end in (lambda m, x: m.fc(x.mean(3).mean(2)), lambda m, x: m.fc(x.flatten(2).transpose(1, 2))[:, 0]):
        network = cl.wrap(headed(end))
        structure = network.structure(pixels())
        assert structure.head is None
        assert structure.features.name == "features"
        assert cl.GradCAM()(network, pixels()).values.shape == (2, 1, 5, 7)


# --- receptive fields (section 8) --------------------------------------------------------------------------


def fields(network: Network, x: Tensor) -> dict[str, tuple]:
    return {one.name: (one.receptive_field, one.stride, one.offset) for one in network.layers(x)}


def test_vgg16():
    trunk = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    network = cl.wrap(nn.Sequential(trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 2)))
    found = fields(network, torch.zeros(1, 3, 64, 96))
    for layer, reach, stride in (
        ("0.14", 40, 4),
        ("0.21", 92, 8),
        ("0.28", 196, 16),
    ):  # conv3_3, conv4_3, conv5_3
        assert found[layer][:2] == ((reach, reach), (stride, stride))
    assert found["0.28"][2] == (8.0, 8.0)


class Plain(nn.Module):
    """Convolutions `(kernel, stride, padding)` and pools `(kernel, stride)` in a row, each conv with a
    ReLU."""

    def __init__(self, *rows: tuple) -> None:
        super().__init__()
        for name, *numbers in rows:
            if name.startswith("conv"):
                channels = 3 if name == "conv1" else 4
                self.add_module(name, nn.Conv2d(channels, 4, *numbers))
            else:
                kernel, stride = numbers
                self.add_module(name, nn.MaxPool2d(kernel, stride, ceil_mode=True))

    def forward(self, x: Tensor) -> Tensor:
        for name, m in self.named_children():
            x = F.relu(m(x)) if name.startswith("conv") else m(x)
        return x.mean((2, 3))


def test_alexnet_and_zfnet():
    alexnet = Plain(
        ("conv1", 11, 4), ("pool1", 3, 2), ("conv2", 5, 1, 2), ("pool2", 3, 2),
        ("conv3", 3, 1, 1), ("conv4", 3, 1, 1), ("conv5", 3, 1, 1),
    )  # fmt: skip
    found = fields(cl.wrap(alexnet), torch.zeros(1, 3, 227, 131))
    assert found["conv5"][:2] == ((163, 163), (16, 16))
    assert next(one.size for one in cl.wrap(alexnet).layers(torch.zeros(1, 3, 227, 227)))[0] == 55
    zfnet = Plain(
        ("conv1", 7, 2, 1), ("pool1", 3, 2), ("conv2", 5, 2), ("pool2", 3, 2),
        ("conv3", 3, 1, 1), ("conv4", 3, 1, 1), ("conv5", 3, 1, 1),
    )  # fmt: skip
    found = fields(cl.wrap(zfnet), torch.zeros(1, 3, 224, 130))
    expected = {"conv1": (7, 2), "conv2": (27, 8), "conv3": (75, 16), "conv4": (107, 16), "conv5": (139, 16)}
    assert {n: (found[n][0][0], found[n][1][0]) for n in expected} == expected


LINEAR: dict[str, Any] = {
    "plain": lambda: [nn.Conv2d(2, 3, 3, 2, 1), nn.AvgPool2d(3, 2, 1), nn.Conv2d(3, 3, 3, 1, 1)],
    "dilated": lambda: [nn.Conv2d(2, 3, 3, 1, 2, dilation=2), nn.Conv2d(3, 3, 3, 2)],
    "not square": lambda: [nn.Conv2d(2, 3, (3, 5), (1, 2), (0, 2)), nn.Conv2d(3, 3, (1, 3), (2, 1))],
    "even kernel": lambda: [nn.Conv2d(2, 3, 4, 2, 1), nn.Conv2d(3, 3, 2)],
    "same": lambda: [nn.Conv2d(2, 3, 3, padding="same"), nn.Conv2d(3, 3, 4, padding="same")],
    "padded": lambda: [nn.ConstantPad2d((2, 0, 1, 3), 0.0), nn.Conv2d(2, 3, 3, 2)],
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", LINEAR)
def test_receptive_fields_are_what_gradients_reach(name):
    module = nn.Sequential(*LINEAR[name]())
    for p in module.parameters():
        nn.init.constant_(p, 1.0)
    network = cl.wrap(nn.Sequential(module, nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    shape = (2, 40, 52)
    layer = network.structure(torch.zeros(1, *shape)).features
    assert layer.receptive_field is not None
    cell = tuple(s // 2 for s in layer.size)
    reached = pixels_reached(module, shape, cell)
    for axis in range(2):
        first, last = reached[axis]
        centre = layer.offset[axis] + cell[axis] * layer.stride[axis]
        extent = layer.receptive_field[axis]
        assert (centre - extent / 2, centre + extent / 2) == (first, last + 1)


def test_branches_and_gates():
    """Where branches meet, the larger field counts; a gate from a global pool does not count; attention hides
    it."""

    class Block(nn.Module):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind = kind
            self.near, self.far = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 7, padding=3)
            self.up = nn.ConvTranspose2d(4, 4, 3, 1, 1)
            self.last = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.near(x) + self.far(x)
            if self.kind == "gate":
                x = x * torch.sigmoid(x.mean((2, 3), keepdim=True))
            elif self.kind == "attention":
                flat = x.flatten(2)
                x = x + ((flat.transpose(1, 2) @ flat).softmax(1) @ flat.transpose(1, 2)).transpose(
                    1, 2
                ).view(x.shape)
            elif self.kind == "up":
                x = self.up(x)
            elif self.kind == "strided slice":
                x = x[:, :, ::2, ::2]
            return self.last(x).mean((2, 3))

    for kind, expected in (
        ("plain", 9),
        ("gate", 9),
        ("attention", None),
        ("up", None),
        ("strided slice", None),
    ):
        layer = cl.wrap(Block(kind)).structure(pixels(1)).features
        assert layer.name == "last"
        assert layer.receptive_field == (None if expected is None else (expected, expected)), kind


# --- channels last -----------------------------------------------------------------------------------------


def test_a_layer_with_channels_last_gives_the_map_of_its_twin():
    class Last(nn.Module):
        def __init__(self, last: bool) -> None:
            super().__init__()
            self.last = last
            self.conv = nn.Conv2d(3, CHANNELS, 3, 2, 1)
            self.act = nn.Tanh()
            self.fc = nn.Linear(CHANNELS, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            if self.last:
                return self.fc(self.act(x.permute(0, 2, 3, 1)).amax(1).mean(1))
            return self.fc(self.act(x).amax(2).mean(2))

    found = []
    for last in (True, False):
        network = cl.wrap(seeded(Last, last))
        layer = network.find_layer("act", pixels())
        assert (layer.channels, layer.size) == (CHANNELS, (10, 14))
        unit = cl.GradCAM(layer="act", relu=False)(network, pixels(), cl.UnitTarget("act", 2, (3, 4)))
        found.append(
            (cl.GradCAM(layer="act", relu=False)(network, pixels()).values, unit.values, unit.scores)
        )
    for ours, twin in zip(*found, strict=True):
        assert float(twin.abs().max()) > 1e-4
        torch.testing.assert_close(ours, twin, rtol=1e-5, atol=1e-7)


# --- the cache ---------------------------------------------------------------------------------------------


def changes() -> dict:
    def replaced(m: nn.Module) -> None:
        m.fc = seeded(nn.Linear, CHANNELS, CLASSES, seed=9)

    def data(m: nn.Module) -> None:
        m.fc.weight.data = -m.fc.weight.data

    def statistics(m: nn.Module) -> None:
        m.train()
        m(pixels(4, seed=5) * 3)
        m.eval()

    return {
        "in place": lambda m: m.fc.weight.data.mul_(-2),
        "optimiser": lambda m: torch.optim.SGD(m.parameters(), 1.0).step() if backward(m) else None,
        "loaded": lambda m: m.load_state_dict({k: v * 1.5 for k, v in m.state_dict().items()}),
        "replaced": replaced,
        "data": data,
        "statistics": statistics,
    }


def backward(m: nn.Module) -> bool:
    m(pixels()).sum().backward()
    return True


@pytest.mark.parametrize("change", changes())
def test_changed_weights_change_the_maps(change):
    name = "pool, batch norm, linear"
    network = cl.wrap(EXACT[name]())
    x = pixels()
    before = cl.CAM()(network, x, cl.ClassTarget.all()).values
    structure = network.structure(x)
    assert network.structure(pixels(1, seed=3)) is structure
    assert network.structure(pixels(1, 24, 20)) is not structure
    changes()[change](network.module)
    after = cl.CAM()(network, x, cl.ClassTarget.all()).values
    assert float((after - before).abs().max()) > 1e-3
    assert_complete(network, x)


def test_a_first_picture_that_gives_no_number_does_not_hide_the_head():
    network = cl.wrap(gap())
    x = pixels()
    x[0, 0, 0, 0] = torch.nan
    found = cl.CAM()(network, x, cl.ClassTarget(1))
    assert found.status == (("non-finite",), ("ok",))
    torch.testing.assert_close(found.values[1:], cl.CAM()(network, x[1:], cl.ClassTarget(1)).values)


def test_the_cache_does_not_grow_while_weights_change():
    network = cl.wrap(gap())
    for _ in range(3):
        network.structure(pixels())
        network.module.fc.weight.data.add_(0.1)
    assert len(network._structures) == 2  # the state and one shape
