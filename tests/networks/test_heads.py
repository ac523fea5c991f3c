"""The CAM paper's head on any trunk: parameter counts of the specification's table, mapping resolution, completeness."""

import pytest
import torch

import camlucida as cl


def parameters(net):
    return sum(p.numel() for p in net.module.parameters())


def complete(net, side=96):
    """Largest difference between mean of the map + bias and the logit, and the map's size."""
    torch.manual_seed(1)
    pixels = torch.randn(2, 3, side, side + 32)
    maps = cl.CAM()(net, pixels, cl.ClassTarget.top(3))
    bias = net.structure(pixels).head.bias.detach()
    return (maps.values.mean((2, 3)) + bias[maps.classes] - maps.scores).abs().max().item(), maps


def test_vggnet_gap_has_the_papers_parameters_and_resolution():
    net = cl.load("torchvision/vgg16", weights=None, head="gap")
    assert parameters(net) == 20_459_304
    assert cl.CAM()(net, torch.zeros(1, 3, 224, 224)).values.shape[2:] == (14, 14)
    assert complete(net)[0] < 1e-5


def test_a_trunk_that_ends_in_pooling_keeps_its_head():
    plain, same = (cl.load("torchvision/resnet18", weights=None, head=head) for head in (None, "gap"))
    assert parameters(same) == parameters(plain)
    assert same.card.name == plain.card.name


def test_cut_names_the_layer_and_adds_the_convolution():
    net = cl.load("torchvision/resnet18", weights=None, head="gap", cut="layer3", num_classes=7)
    trunk = sum(
        p.numel()
        for n, p in cl.load("torchvision/resnet18", weights=None).module.named_parameters()
        if not n.startswith(("layer4", "fc"))
    )
    assert parameters(net) == trunk + (256 * 9 + 1) * 1024 + (1024 + 1) * 7
    difference, maps = complete(net)
    assert difference < 1e-5
    assert maps.values.shape[2:] == (6, 8)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "squeezenet1_1"])
def test_gmp_pools_by_the_maximum(name):
    net = cl.load(f"torchvision/{name}", weights=None, head="gmp", num_classes=5)
    pixels = torch.randn(2, 3, 96, 128)
    head = net.structure(pixels).head
    assert head.pool == "max"
    with torch.no_grad():
        features = {}
        layer = net.structure(pixels).features
        handle = dict(net.module.eval().named_modules())[layer.name].register_forward_hook(
            lambda m, i, o: features.update(f=o)
        )
        logits = net.module(pixels)
        handle.remove()
    expected = features["f"].amax((2, 3)) @ head.weight.T + head.bias
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_packed_with_a_head_it_comes_back(tmp_path):
    from camlucida.networks import cards

    net = cl.load("torchvision/squeezenet1_1", weights=None, head="gap", cut="features.7", num_classes=4)
    cards.pack(tmp_path / "net.safetensors", net.module.state_dict(), net.card)
    back = cl.load(str(tmp_path / "net.safetensors"))
    pixels = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(back(pixels), net(pixels))


def test_errors_name_the_nearest():
    with pytest.raises(cl.NetworkError, match="did you mean 'gap'"):
        cl.load("torchvision/resnet18", weights=None, head="gapp")
    with pytest.raises(cl.LayerError, match="did you mean 'layer3'"):
        cl.load("torchvision/resnet18", weights=None, head="gap", cut="layer33")
