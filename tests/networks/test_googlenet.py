"""GoogLeNet, its auxiliary heads and its GAP and GMP forms against the specification's tables."""
# mypy: disable-error-code="union-attr"

import pytest
import torch
from paper_networks import incomplete, last_map, parameters, small, unfilled
from torch.nn import functional as F

import camlucida as cl
from camlucida.networks.googlenet import BLOCKS, GoogLeNet, Inception

OUTPUTS = {"3a": 256, "3b": 480, "4a": 512, "4b": 512, "4c": 512, "4d": 528, "4e": 832, "5a": 832, "5b": 1024}


def test_parameters_and_maps_of_the_table():
    assert parameters("googlenet") == 6_998_552
    assert last_map("googlenet") == (1024, 7, 7)
    for name in ("googlenet-gap", "googlenet-gmp"):
        assert (parameters(name), parameters(name, groups=2)) == (12_179_752, 8_345_896)
        assert last_map(name) == (832, 14, 14)


def test_the_blocks_give_the_channels_of_the_table():
    module = unfilled("googlenet")
    assert {n: module.get_submodule(f"features.inception{n}").outputs for n in BLOCKS} == OUTPUTS


def test_a_block_is_four_branches_side_by_side():
    torch.manual_seed(0)
    block = Inception(6, (2, 3, 4, 5, 6, 7)).double()
    x = torch.randn(2, 6, 5, 9, dtype=torch.float64)
    p = dict(block.named_parameters())

    def conv(x, name, padding=0):
        return F.conv2d(x, p[f"{name}.conv.weight"], p[f"{name}.conv.bias"], padding=padding).clamp(min=0)

    expected = [
        conv(x, "one"),
        conv(conv(x, "three.0"), "three.1", 1),
        conv(conv(x, "five.0"), "five.1", 2),
        conv(F.max_pool2d(x, 3, 1, 1), "pool.1"),
    ]
    torch.testing.assert_close(block(x), torch.cat(expected, 1))
    assert p["three.1.conv.weight"].shape[2:] == (3, 3)
    assert p["five.1.conv.weight"].shape[2:] == (5, 5)


def test_the_added_convolution_starts_as_released():
    module = small("googlenet-gap").module
    assert bool((module.classifier.conv[0].bias == 1).all())
    assert module.classifier.conv[0].weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_cutting_at_inception4e_gives_googlenet_gap():
    own = small("googlenet-gap")
    cut = cl.load("googlenet", weights=None, num_classes=5, width=0.1, head="gap", cut="features.inception4e")
    counts = [sum(p.numel() for p in net.module.parameters()) for net in (own, cut)]
    assert counts[0] == counts[1]
    same = cl.load("googlenet", weights=None, num_classes=5, width=0.1, head="gap")
    assert same.card.name == "googlenet"  # it ends in pooling → linear: nothing is added


@pytest.mark.parametrize(("name", "cells"), [("googlenet", (4, 6)), ("googlenet-gap", (8, 12))])
def test_class_maps_are_complete(name, cells):
    difference, maps = incomplete(small(name), torch.randn(2, 3, 128, 192) * 50)
    assert difference < 1e-5
    assert maps.values.shape[2:] == cells


def test_gmp_pools_by_the_maximum():
    net = small("googlenet-gmp")
    pixels = torch.randn(2, 3, 96, 128) * 50
    head = net.structure(pixels).head
    with torch.no_grad():
        features = net.module.classifier.conv(net.module.features(pixels))
    assert head.pool == "max"
    torch.testing.assert_close(net(pixels), (features.amax((2, 3)) @ head.weight.T + head.bias).detach())
    assert incomplete(net, pixels)[0] > 1e-2  # the identity does not hold


def test_auxiliary_heads_in_training_only():
    torch.manual_seed(0)
    net = GoogLeNet(num_classes=5, width=0.1, aux=True)
    pixels = torch.randn(2, 3, 96, 128)
    output = net.train()(pixels)
    assert list(output) == ["logits", "auxiliary"]
    assert [tuple(one.shape) for one in (output["logits"], *output["auxiliary"])] == [(2, 5)] * 3
    sum(one.sum() for one in output["auxiliary"]).backward()
    reached = {
        n.split(".")[1] for n, p in net.named_parameters() if p.grad is not None and n.startswith("features")
    }
    assert {"conv1", "inception4a", "inception4d"} <= reached
    assert not {"inception4e", "inception5b"} & reached  # they look at 4a and 4d
    with torch.no_grad():
        assert net.eval()(pixels).shape == (2, 5)


def test_an_auxiliary_head_is_the_papers():
    net = unfilled("googlenet", aux=True)
    heads = [net.auxiliary[f"inception{n}"] for n in ("4a", "4d")]
    for head, inputs in zip(heads, (512, 528), strict=True):
        assert [tuple(p.shape) for p in head.parameters()] == [
            (128, inputs, 1, 1), (128,), (1024, 2048), (1024,), (1000, 1024), (1000,),
        ]  # fmt: skip


def test_with_and_without_auxiliary_heads_the_logits_are_equal(tmp_path):
    torch.manual_seed(0)
    with_aux = GoogLeNet(num_classes=5, width=0.1, aux=True).eval()
    plain = GoogLeNet(num_classes=5, width=0.1)
    state = with_aux.state_dict()
    surplus = plain.load_state_dict(state, strict=False)
    assert not surplus.missing_keys
    assert surplus.unexpected_keys == [n for n in state if n.startswith("auxiliary.")]
    torch.save(state, tmp_path / "aux.pth")
    net = cl.load("googlenet", weights=tmp_path / "aux.pth", width=0.1)
    pixels = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        torch.testing.assert_close(net(pixels), with_aux(pixels), rtol=0, atol=0)
        torch.testing.assert_close(plain.eval()(pixels), with_aux(pixels), rtol=0, atol=0)
    kept = cl.load("googlenet", weights=tmp_path / "aux.pth", width=0.1, arguments={"aux": True})
    assert kept.module.state_dict().keys() == state.keys()
    state["auxiliarly.what"] = torch.zeros(1)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(cl.NetworkError, match=r"1 surplus \(auxiliarly.what\)"):
        cl.load("googlenet", weights=tmp_path / "other.pth", width=0.1)


def test_auxiliary_networks_can_be_cut_and_made_dense():
    torch.manual_seed(0)
    net = cl.load("googlenet", weights=None, num_classes=5, width=0.1, arguments={"aux": True}, head="gap", cut="features.inception4e")  # fmt: skip
    assert incomplete(net, torch.randn(1, 3, 64, 96) * 50)[0] < 1e-5
