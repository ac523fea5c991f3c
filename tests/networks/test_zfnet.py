"""ZFNet against the specification's table and a forward pass written out in float64."""

import torch
from paper_networks import fields, last_map, parameters, small, unfilled
from test_alexnet import slow_norm
from torch.nn import functional as F

from camlucida.networks.zfnet import ZFNet


def test_parameters_and_maps_of_the_table():
    assert parameters("zfnet") == 62_357_608
    assert last_map("zfnet") == (256, 6, 6)


def test_the_chain_of_maps_at_224():
    module, sides = unfilled("zfnet"), {}
    with torch.device("meta"):
        x = torch.zeros(1, 3, 224, 224)
        for name, part in module.features.named_children():
            x = part(x)
            sides[name] = x.shape[-1]
    assert [sides[n] for n in ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")] == [110, 55, 26, 13, 13, 13, 13, 6]  # fmt: skip
    assert list(sides).index("pool1") < list(sides).index("norm1")


def test_receptive_fields():
    found = fields(small("zfnet"))
    assert [found[f"features.conv{n}"] for n in (1, 2, 3, 4, 5)] == [(7, 2), (27, 8), (75, 16), (107, 16), (139, 16)]  # fmt: skip


def test_variant_b_has_wider_middle_layers():
    module = unfilled("zfnet-b")
    widths = [module.get_submodule(f"features.conv{n}").out_channels for n in (1, 2, 3, 4, 5)]
    assert widths == [96, 256, 512, 1024, 512]
    wider = (256 * 9 + 1) * 512 + (512 * 9 + 1) * 1024 + (1024 * 9 + 1) * 512 + (512 * 36 + 1) * 4096
    before = (256 * 9 + 1) * 384 + (384 * 9 + 1) * 384 + (384 * 9 + 1) * 256 + (256 * 36 + 1) * 4096
    assert parameters("zfnet-b") - parameters("zfnet") == wider - before


def test_both_changes_of_the_ablation_together():
    both = parameters("zfnet-b", widths={"6": 8192, "7": 8192})
    assert both == parameters("zfnet", widths={3: 512, 4: 1024, 5: 512, 6: 8192, 7: 8192})
    assert both - parameters("zfnet-b") == 4096 * (512 * 36 + 1) + 8193 * 8192 - 4097 * 4096 + 4096 * 1000


def test_logits_are_those_of_the_layers_written_out():
    torch.manual_seed(0)
    net = ZFNet(num_classes=5, width=0.1, size=96).double().eval()
    weights = dict(net.named_parameters())
    for parameter in weights.values():
        parameter.detach().normal_(0, 0.1)
    x = given = torch.randn(2, 3, 96, 96, dtype=torch.float64) * 30
    for number, stride, padding in ((1, 2, 1), (2, 2, 0), (3, 1, 1), (4, 1, 1), (5, 1, 1)):
        x = F.conv2d(x, weights[f"features.conv{number}.weight"], weights[f"features.conv{number}.bias"], stride, padding)  # fmt: skip
        x = x.clamp(min=0)
        if number in (1, 2, 5):
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)
        if number in (1, 2):
            x = slow_norm(x)
    x = x.flatten(1)
    for number in (6, 7, 8):
        x = x @ weights[f"classifier.fc{number}.weight"].T + weights[f"classifier.fc{number}.bias"]
        x = x.clamp(min=0) if number < 8 else x
    torch.testing.assert_close(net(given), x)
