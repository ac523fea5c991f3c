"""The VGG networks: the table, the arguments for small filters, weights shared with torchvision, net A's layers in deeper ones."""
# mypy: disable-error-code="union-attr"

import pytest
import torch
import torchvision
from paper_networks import fields, incomplete, last_map, parameters, small, unfilled
from torch import nn

import camlucida as cl
from camlucida.errors import NetworkError
from camlucida.networks import vgg

COUNTS = {
    "vgg-a": 132_863_336, "vgg-a-lrn": 132_863_336, "vgg-b": 133_047_848, "vgg-c": 133_638_952, "vgg-d": 138_357_544,
    "vgg-e": 143_667_240, "vgg-shallow-b": 134_503_528,
}  # fmt: skip
WEIGHT_LAYERS = {
    "vgg-a": 11, "vgg-a-lrn": 11, "vgg-b": 13, "vgg-c": 16, "vgg-d": 16, "vgg-e": 19, "vgg-shallow-b": 8,
}  # fmt: skip
TORCHVISION = {"vgg-a": "vgg11", "vgg-b": "vgg13", "vgg-d": "vgg16", "vgg-e": "vgg19"}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_maps_of_the_table(name):
    module = unfilled(name)
    assert sum(p.numel() for p in module.parameters()) == COUNTS[name]
    assert sum(p.numel() for p in module.classifier.parameters()) == 123_642_856
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in module.modules()) == WEIGHT_LAYERS[name]
    assert last_map(name) == (512, 7, 7)


def test_vggnet_gap():
    assert (parameters("vgg-d-gap"), parameters("vgg-d-gap", groups=2)) == (20_459_304, 18_100_008)
    assert last_map("vgg-d-gap") == (512, 14, 14)
    net = small("vgg-d-gap")
    assert net.structure(torch.zeros(1, 3, 128, 128)).features.size == (8, 8)
    assert incomplete(net, torch.randn(2, 3, 64, 112) * 50)[0] < 1e-5


def test_contrast_norm_only_in_a_lrn_after_the_first_convolution():
    names = [type(m).__name__ for m in unfilled("vgg-a-lrn").features]
    assert names[:4] == ["Conv2d", "ReLU", "LocalResponseNorm", "MaxPool2d"]
    assert names.count("LocalResponseNorm") == 1
    assert "LocalResponseNorm" not in [type(m).__name__ for m in unfilled("vgg-a").features]


def test_c_has_three_1_by_1_layers():
    kernels = [m.kernel_size[0] for m in unfilled("vgg-c").features if isinstance(m, nn.Conv2d)]
    assert kernels == [3] * 6 + [1, 3, 3, 1, 3, 3, 1]


def test_receptive_fields():
    net = small("vgg-d")
    found, where = fields(net), vgg.convolution_names(net.module)
    assert [found[where[n]] for n in ("3_3", "4_3", "5_3")] == [(40, 4), (92, 8), (196, 16)]


def test_two_3x3_see_one_5x5_and_three_see_7x7():
    deep, shallow = small("vgg-b"), small("vgg-shallow-b")
    pairs = [fields(deep), vgg.convolution_names(deep.module)], [fields(shallow), vgg.convolution_names(shallow.module)]  # fmt: skip
    for group in range(1, 6):
        two, one = (
            found[where[f"{group}_{last}"]] for (found, where), last in zip(pairs, (2, 1), strict=True)
        )
        assert two == one
    net = small("vgg-d")
    found, where = fields(net), vgg.convolution_names(net.module)
    pooled = found["features.9"]  # what group 3 is given
    assert (found[where["3_3"]][0] - pooled[0]) / pooled[1] + 1 == 7


def test_three_3x3_have_27_and_one_7x7_49_times_the_square_of_the_channels():
    module = unfilled("vgg-d")
    three = sum(
        module.get_submodule(vgg.convolution_names(module)[n]).weight.numel() for n in ("5_1", "5_2", "5_3")
    )
    with torch.device("meta"):
        one = nn.Conv2d(512, 512, 7).weight.numel()
    assert (three, one) == (27 * 512**2, 49 * 512**2)
    assert round(100 * (one / three - 1)) == 81


@pytest.mark.parametrize("side", [32, 64, 100, 128, 224])
def test_the_kernel_of_fc6_follows_the_input(side):
    module = unfilled("vgg-a", size=side)
    assert module.classifier[0].in_features == 512 * (side // 32) ** 2
    assert module.preprocessing.crop == side


@pytest.mark.parametrize("name", TORCHVISION)
def test_weights_are_exchanged_with_torchvision_both_ways(name):
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, 224, 224)
    theirs = torchvision.models.get_model(TORCHVISION[name], weights=None, init_weights=False).eval()
    ours = unfilled(name)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    with torch.no_grad():
        expected = theirs(pixels)
        torch.testing.assert_close(ours(pixels), expected, rtol=0, atol=0)
        state = ours.state_dict()
        state["classifier.6.bias"] = state["classifier.6.bias"] + 1
        theirs.load_state_dict(state, assign=True)
        torch.testing.assert_close(theirs(pixels), expected + 1)


@pytest.mark.parametrize("name", ["vgg-b", "vgg-c", "vgg-d", "vgg-e"])
def test_deeper_nets_start_from_net_a(name):
    net_a, deeper = small("vgg-a", size=64).module, small(name, seed=1, size=64).module
    before = {n: t.clone() for n, t in deeper.state_dict().items()}
    filled = vgg.start_from(deeper, net_a.state_dict())
    after, given = deeper.state_dict(), net_a.state_dict()
    own, there = vgg.convolution_names(deeper), vgg.convolution_names(net_a)
    for kind in ("weight", "bias"):
        for layer in ("1_1", "2_1", "3_1", "3_2"):
            assert torch.equal(after[f"{own[layer]}.{kind}"], given[f"{there[layer]}.{kind}"])
        for i in (0, 3, 6):
            assert torch.equal(after[f"classifier.{i}.{kind}"], given[f"classifier.{i}.{kind}"])
    assert len(filled) == 14
    assert all(torch.equal(after[n], before[n]) for n in before if n not in filled)
    changed = {n for n in before if not torch.equal(after[n], before[n])}
    assert changed == {n for n in filled if n.endswith("weight")}  # biases are 0 in both


def test_net_a_of_another_size_is_refused_and_nothing_is_copied():
    net_a, deeper = small("vgg-a", size=96).module, small("vgg-b", seed=1, size=64).module
    before = {n: t.clone() for n, t in deeper.state_dict().items()}
    with pytest.raises(
        NetworkError, match=r"starting classifier.0.weight from net A's .*do|same width, size and classes"
    ):
        vgg.start_from(deeper, net_a.state_dict())
    assert all(torch.equal(t, before[n]) for n, t in deeper.state_dict().items())


def test_an_unknown_configuration():
    with pytest.raises(NetworkError, match="VGG configuration 'F'"):
        vgg.VGG("F")


def test_the_call_of_the_manual():
    net = cl.load("vgg-a", head="gap", width=0.5, weights=None)
    assert net.structure(torch.zeros(1, 3, 64, 96)).features.channels == 512  # half of the added 1024
    assert incomplete(net, torch.randn(1, 3, 64, 96))[0] < 1e-5
