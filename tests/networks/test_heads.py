"""The CAM paper's head on any trunk: parameter counts of the specification's table, mapping resolution, completeness."""

# mypy: disable-error-code="union-attr"

import pytest
import torch
import torchvision
from paper_networks import NAMES, incomplete, small
from PIL import Image
from torch import nn

import camlucida as cl
from camlucida.images.views import Preprocessing
from camlucida.networks import cards, catalogue, heads
from pictures import colours


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


def test_a_head_leaves_the_mode_of_every_layer_alone():
    module = torchvision.models.resnet18(weights=None, num_classes=5).train()
    module.bn1.eval()
    modes = [m.training for m in module.modules()]
    heads.put(module, cl.Card(preprocessing=Preprocessing(size=64)), "gap", cut="layer3")
    heads.dense(module, size=64)
    assert [m.training for m in module.modules()] == modes


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("head", ["gap", "gmp", "regression", "fc", "dense"])
def test_every_head_on_every_trunk(name, head):
    """Logits, and class maps wherever the head pools; on a picture that is not square wherever the network takes one."""
    torch.manual_seed(0)
    net = cl.load(name, weights=None, num_classes=5, width=0.1, head=head, arguments={"size": 96})
    shape = net.card.preprocessing
    assert shape.any_size == (head != "fc")
    assert net.card.activation == ("none" if head == "regression" else "softmax")
    pixels = torch.randn(2, 3, 96, 96 if head == "fc" else 160) * 50
    assert net(pixels).shape == (2, 5)
    if head == "fc":
        with pytest.raises(cl.UnsupportedError, match="CAM needs a head of pooling"):
            cl.CAM()(net, pixels)
        assert cl.GradCAM()(net, pixels).values.shape[0] == 2
    elif head != "gmp":
        difference, maps = incomplete(net, pixels)
        assert difference < 1e-5
        assert maps.values.shape[2] < maps.values.shape[3]
    else:
        assert net.structure(pixels).head.pool == "max"


@pytest.mark.parametrize("name", NAMES)
def test_every_network_is_explained_and_localizes(name):
    net = small(name, size=96)
    pixels = net.preprocess(Image.fromarray(colours(120, 170)))
    assert pixels.pixels.shape == (1, 3, 96, 96)
    maps = cl.GradCAM()(net, pixels)
    assert maps.values.isfinite().all()
    pooled = net.structure(pixels.pixels).head is not None
    assert pooled == net.card.preprocessing.any_size
    if pooled:  # Grad-CAM is CAM over the number of cells
        signed = cl.GradCAM(relu=False)(net, pixels).values
        expected = cl.CAM()(net, pixels).values / signed[0, 0].numel()
        if net.structure(pixels.pixels).head.pool == "avg":
            torch.testing.assert_close(signed, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    (found,) = cl.localize(net, [Image.fromarray(colours(120, 170))], top=2)
    assert [one.map_method for one in found] == ["cam" if pooled else "grad-cam"] * 2
    for box in found[0].boxes:
        assert 0 <= box.box.x0 < box.box.x1 <= 170
        assert 0 <= box.box.y0 < box.box.y1 <= 120


@pytest.mark.parametrize("name", NAMES)
def test_the_dense_form_gives_the_logits_as_the_mean_of_its_maps(name):
    net = small(name, size=96)
    module = net.module.double()
    scores = heads.dense(module)
    pixels = torch.randn(2, 3, 96, 96, dtype=torch.float64) * 50
    with torch.no_grad():
        logits = module(pixels)
        torch.testing.assert_close(scores(pixels).mean((2, 3)), logits, rtol=1e-5, atol=1e-5)
        larger = scores(torch.randn(1, 3, 160, 224, dtype=torch.float64))
    assert larger.shape[:2] == (1, 5)
    assert larger.shape[2] < larger.shape[3]


def test_dense_fully_connected_layers_are_the_network_at_every_place():
    """A VGG at 96 pixels, shifted by 32: each cell of the score map is the plain network on the trunk's window there."""
    module = small("vgg-a", size=96).module.double()
    scores = heads.dense(module)
    pixels = torch.randn(1, 3, 192, 160, dtype=torch.float64)
    with torch.no_grad():
        found = scores(pixels)
        assert found.shape == (1, 5, 192 // 32 - 2, 160 // 32 - 2)
        features = module.features(pixels)
        for row, column in ((0, 0), (3, 2), (1, 1)):
            window = features[:, :, row : row + 3, column : column + 3]
            torch.testing.assert_close(found[:, :, row, column], module.classifier(window))


@pytest.mark.parametrize("side", [256, 384, 512])
def test_sides_of_dense_score_maps_of_the_vgg_paper(side):
    """floor(side/32) − 6 at full size, on weights that take no memory."""
    torch.manual_seed(0)
    net = cl.load("vgg-a", weights=None, num_classes=2, width=0.02)
    assert heads.dense(net.module)(torch.zeros(1, 3, side, side)).shape[2:] == (side // 32 - 6,) * 2


@pytest.mark.parametrize(
    ("name", "side", "cells"), [("vgg16", 224, (1, 1)), ("alexnet", 224, (1, 1)), ("resnet18", 96, (3, 3))]
)
def test_dense_forms_of_torchvision(name, side, cells):
    torch.manual_seed(0)
    module = torchvision.models.get_model(name, weights=None, num_classes=7).eval()
    scores = heads.dense(module, size=side)
    pixels = torch.randn(1, 3, side, side)
    with torch.no_grad():
        found = scores(pixels)
        torch.testing.assert_close(found.mean((2, 3)), module(pixels), rtol=1e-4, atol=1e-6)
    assert found.shape[2:] == cells
    shared = {p.data_ptr() for p in scores.parameters()}
    assert shared == {p.data_ptr() for p in module.parameters()}  # nothing is copied


def test_heads_that_have_no_dense_form():
    models = torchvision.models
    transformer = models.VisionTransformer(32, 16, 1, 2, 32, 64, num_classes=3)
    convnext = models.ConvNeXt([models.convnext.CNBlockConfig(32, None, 2)], num_classes=3)
    vgg = small("vgg-a", size=64).module
    stretched = nn.Sequential(vgg.features, nn.AdaptiveAvgPool2d(2), vgg.classifier)
    for module, size, message in (
        (
            transformer,
            32,
            "a dense form of VisionTransformer; got a head that ends in .*linear; allowed: pooling",
        ),
        (
            models.mobilenet_v3_small(),
            64,
            "a dense form of MobileNetV3 at 64 × 64; got several layers after the pooling",
        ),
        (convnext, 64, "a dense form of ConvNeXt; got a head that ends in .*linear"),
        (
            stretched,
            96,
            "a dense form of Sequential at 96 × 96; got a map of 3 × 3, stretched to 2 × 2; .*size=…",
        ),
        (vgg, 96, "VGG fails on a picture of 96 × 96; got .* give the size it was trained with"),
    ):
        with pytest.raises(cl.UnsupportedError, match=message):
            heads.dense(module, size=size)
    assert heads.dense(stretched, size=64)(torch.zeros(1, 3, 64, 96)).shape == (1, 5, 1, 2)


def test_a_map_of_one_cell_is_dense_too():
    """At 32 pixels VGG's FC-6 sees one cell, which no global pooling made."""
    module = small("vgg-a", size=32).module
    assert heads.dense(module)(torch.zeros(1, 3, 64, 96)).shape == (1, 5, 2, 3)


def test_load_with_a_dense_head(tmp_path):
    """The plain network's weights fill it; it takes larger pictures; its class maps are its score maps; it is packed."""
    torch.manual_seed(0)
    plain = cl.load("vgg-d", weights=None, num_classes=5, width=0.1, arguments={"size": 64})
    torch.save(plain.module.state_dict(), tmp_path / "plain.pth")
    net = cl.load("vgg-d", weights=tmp_path / "plain.pth", width=0.1, head="dense", arguments={"size": 64})
    pixels = torch.randn(2, 3, 64, 64) * 50
    torch.testing.assert_close(net(pixels), plain(pixels), rtol=1e-4, atol=1e-5)
    wide = torch.randn(1, 3, 96, 160) * 50
    with torch.no_grad():
        scores = heads.dense(plain.module)(wide)
    torch.testing.assert_close(net(wide), scores.mean((2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cl.CAM()(net, wide, cl.ClassTarget.all()).values, scores, rtol=1e-4, atol=1e-5)
    assert (net.card.preprocessing.any_size, net.card.preprocessing.minimum) == (True, 64)
    cards.pack(tmp_path / "net.safetensors", net.module.state_dict(), net.card)
    back = cl.load(str(tmp_path / "net.safetensors"))
    torch.testing.assert_close(back(wide), net(wide))
    again = cl.load(
        "vgg-d",
        weights=tmp_path / "net.safetensors",
        num_classes=5,
        width=0.1,
        head="dense",
        arguments={"size": 64},
    )
    torch.testing.assert_close(again(wide), net(wide))


def test_regression_gives_numbers_and_their_map():
    net = cl.load("vgg-d", weights=None, width=0.1, head="regression")
    assert net.card.activation == "none"
    pixels = torch.randn(2, 3, 64, 96)
    assert net(pixels).shape == (2, 1)
    difference, maps = incomplete(net, pixels)
    assert difference < 1e-5
    assert maps.values.shape == (2, 1, 4, 6)
    torch.testing.assert_close(net.probabilities(net(pixels)), net(pixels))
    same = cl.load("torchvision/resnet18", weights=None, num_classes=3, head="regression")
    assert (type(same.module).__name__, same.card.activation) == ("ResNet", "none")


def test_fully_connected_layers_on_a_trunk_that_pools():
    module = torchvision.models.resnet18(weights=None, num_classes=5)
    module, card = heads.put(module, cl.Card(preprocessing=Preprocessing(size=224)), "fc", units=2)
    top = [m for m in module.head.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in top] == [(512 * 49, 8), (8, 8), (8, 5)]
    assert not card.preprocessing.any_size
    vgg = cl.load("vgg-d-gap", weights=None, num_classes=5, width=0.1, head="fc")
    first = next(m for m in vgg.module.head.modules() if isinstance(m, nn.Linear))
    assert first.in_features == 104 * 49  # 14 × 14 are pooled to 7 × 7, as in VGG
    own = cl.load("vgg-a", weights=None, num_classes=5, width=0.1, head="fc")
    assert own.card.name == "vgg-a"  # it has them already


def test_two_groups_fit_every_width():
    for width in (0.07, 0.25, 0.4):
        for name in ("alexnet-gap", "vgg-d-gap", "googlenet-gap", "googlenet-gmp"):
            module = catalogue.build(name, {"width": width, "groups": 2, "num_classes": 3})
            assert module.eval()(torch.zeros(1, 3, 96, 64)).shape == (1, 3)


def test_a_dense_head_has_no_cut():
    with pytest.raises(cl.NetworkError, match="leave cut out"):
        cl.load("torchvision/resnet18", weights=None, head="dense", cut="layer3")
