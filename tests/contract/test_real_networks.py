"""Every method on the architectures people have: random weights, two pictures of 64 × 96 pixels.

The table says for each network where the maps come from and what CAM is there: exact, linearised at each picture's own
norm, or refused. `docs/papers/cam.md` shows the same table.
"""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

import camlucida as cl
from camlucida import maps, taps
from camlucida.errors import TargetError, UnsupportedError
from fingerprints import unchanged
from small_networks import CLASSES, pixels, seeded
from walks import one_of_each_walk

QUICK = {
    "occlusion": "occlusion:patch=48,stride=32",  # two places
    "score-cam": "score-cam:channels=2",
    "ablation-cam": "ablation-cam:channels=2",
    "rise": "rise:masks=2",
    "smooth-grad": "smooth-grad:n=2",
    "captum": "captum:attribution=InputXGradient",
}
METHODS = {name: maps.method(QUICK.get(name, name)) for name in maps.available()}
FEW = ("torchvision/resnet18", "timm/vit_tiny_patch16_224")
ANOTHERS_RUNS = {
    "score-cam": "occlusion", "ablation-cam": "occlusion", "rise": "occlusion",
    "smooth-grad": "saliency", "captum": "saliency",
}  # fmt: skip
"""Which method runs networks as these do."""
UNKNOWN = object()
STRAIGHT = {
    "torchvision/resnet18", "torchvision/vgg16", "torchvision/vgg11_bn", "torchvision/densenet121",
    "torchvision/googlenet", "torchvision/squeezenet1_1", "torchvision/shufflenet_v2_x0_5", "timm/test_resnet",
}  # fmt: skip
"""Of straight pieces, so that FullGrad's parts sum to y there."""


@dataclass(frozen=True)
class Real:
    """`layer`, `size`, `prefix`: where Grad-CAM looks by itself; `reach`: its receptive field, None where attention
    reaches everywhere."""

    kind: str
    layer: str
    size: tuple[int, int]
    options: dict[str, Any]
    prefix: int | None = None
    reach: Any = UNKNOWN


def of(kind: str, layer: str, size: tuple[int, int], prefix: int | None = None, reach: Any = UNKNOWN, **options: Any) -> Real:  # fmt: skip
    return Real(kind, layer, size, options, prefix, reach)


VIT: dict[str, Any] = {"img_size": (64, 96), "depth": 2}
TORCHVISION = {
    "resnet18": of("exact", "layer4", (2, 3), reach=435),
    "vgg16": of("refused", "features.29", (4, 6), reach=196),
    "vgg11_bn": of("refused", "features.27", (4, 6)),
    "densenet121": of("exact", "input of adaptive_avg_pool2d", (2, 3)),
    "googlenet": of("exact", "inception5b", (2, 3), init_weights=False, transform_input=True),
    "mobilenet_v3_small": of("refused", "features", (2, 3)),
    "efficientnet_b0": of("exact", "features", (2, 3)),
    "convnext_tiny": of("linearised", "features", (2, 3)),
    "swin_t": of("exact", "permute", (2, 3), reach=None),
    "squeezenet1_1": of("exact", "classifier.2", (3, 5)),
    "shufflenet_v2_x0_5": of("exact", "conv5", (2, 3)),
}
TIMM = {
    "test_resnet": of("exact", "layer4", (2, 3)),
    "test_efficientnet": of("exact", "bn2", (2, 3)),
    "test_convnext": of("linearised", "stages", (2, 3)),
    "swin_tiny_patch4_window7_224": of(
        "exact", "norm", (2, 3), reach=None,
        img_size=(64, 96), depths=(1, 1, 2, 1), embed_dim=24, num_heads=(1, 1, 2, 2),
    ),
    "vit_tiny_patch16_224": of("refused", "blocks.1.norm1", (4, 6), 1, None, **VIT),
    "deit_tiny_distilled_patch16_224": of("refused", "blocks.1.norm1", (4, 6), 2, None, **VIT),
    "vit_tiny_patch16_224 avg": of("linearised", "norm", (4, 6), 1, None, global_pool="avg", **VIT),
    "vit_tiny_patch16_224 avg, norm first": of(
        "exact", "norm", (4, 6), 1, None, global_pool="avg", fc_norm=False, dynamic_img_size=True, **VIT
    ),
    "vit_wee_patch16_reg1_gap_256": of("linearised", "norm", (4, 6), 1, None, **VIT),
    "vit_base_patch16_siglip_224": of("refused", "norm", (4, 6), 0, None, embed_dim=64, num_heads=2, **VIT),
    "mixer_s32_224": of("exact", "norm", (2, 3), 0, None, img_size=(64, 96)),
}  # fmt: skip
VISION_TRANSFORMER = of("refused", "encoder.layers.encoder_layer_1.ln_1", (4, 4), 1, None)
TABLE = {
    **{f"torchvision/{n}": r for n, r in TORCHVISION.items()},
    "torchvision/VisionTransformer": VISION_TRANSFORMER,
    **{f"timm/{n}": r for n, r in TIMM.items()},
}


def narrow_vgg(create: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """The network with 32 instead of 4,096 units in its linear layers: 500 MB less, the same structure."""
    with torch.device("meta"):
        module: Any = create(init_weights=False, **options)
        for i, inputs, outputs in ((0, 512 * 7 * 7, 32), (3, 32, 32), (6, 32, CLASSES)):
            module.classifier[i] = nn.Linear(inputs, outputs)
    for m in module.to_empty(device="cpu").modules():
        if hasattr(m, "reset_parameters"):
            m.reset_parameters()
        if isinstance(m, nn.Conv2d | nn.Linear):  # so that the pictures matter at the far end
            nn.init.kaiming_normal_(m.weight)
    return module


def built(name: str) -> nn.Module:
    source, _, own = name.partition("/")
    options = {**TABLE[name].options, "num_classes": CLASSES}
    create: Callable[..., nn.Module]
    if own == "VisionTransformer":  # takes squares alone
        create, options = torchvision.models.VisionTransformer, {"image_size": 64, "patch_size": 16,
            "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64, "num_classes": CLASSES}  # fmt: skip
    elif source == "timm":
        timm = pytest.importorskip("timm", reason="timm is not installed: pip install 'camlucida[timm]'")
        create = partial(timm.create_model, own.split()[0], pretrained=False)
    else:
        create = partial(torchvision.models.get_model, own, weights=None)
        create = partial(narrow_vgg, create) if own.startswith("vgg") else create

    def random() -> nn.Module:
        module = create(**options)
        for m in module.modules():
            if isinstance(m, nn.Linear) and not m.weight.any():  # a head that begins at zero
                nn.init.normal_(m.weight, 0, 0.1)
        return module

    return seeded(random)


@pytest.fixture(scope="module", params=TABLE)
def real(request: Any) -> tuple[str, cl.Network, Tensor]:
    x = pixels(2, 64, 64 if request.param.endswith("VisionTransformer") else 96)
    return request.param, cl.wrap(built(request.param)), x


def test_where_class_maps_are_exact_linearised_or_refused(real):
    name, network, x = real
    expected = TABLE[name]
    with unchanged(network.module):
        structure = network.structure(x)
        head, layer = structure.head, structure.features
        kind = "refused" if head is None else "exact" if head.is_exact else "linearised"
        assert (kind, layer.name, layer.size, layer.prefix) == (
            expected.kind, expected.layer, expected.size, expected.prefix,
        )  # fmt: skip
        assert layer.reached
        if expected.reach is not UNKNOWN:
            wanted = None if expected.reach is None else (expected.reach,) * 2
            assert layer.receptive_field == wanted
        assert all(one.size != (1, 1) and min(one.size) > 0 for one in structure.layers)
        if head is None:
            with pytest.raises(UnsupportedError, match=r"pooling → linear; got another head on .*GradCAM"):
                cl.CAM()(network, x)
            return
        found = cl.CAM()(network, x, cl.ClassTarget.all())
        with taps.borrowed(network.module):
            run = network.run(x, [layer.point])
        features = layer.cells(run.tapped[layer.point])
        bias = head.linear(features)[2]
        logits = network(x)
        scale = float(logits.abs().max())
        assert scale > 0
        torch.testing.assert_close(
            found.values.flatten(2).mean(2) + bias, logits, rtol=1e-4, atol=1e-4 * scale
        )
        torch.testing.assert_close(found.logits, logits, rtol=1e-5, atol=1e-5 * scale)
        gradient = cl.GradCAM(relu=False)(network, x, cl.ClassTarget.all())
        if kind == "exact":  # Grad-CAM is the class map over the number of cells
            cells = found.values.flatten(2).shape[2]
            torch.testing.assert_close(
                gradient.values * cells, found.values, rtol=1e-3, atol=1e-4 * float(found.values.abs().max())
            )


@pytest.mark.parametrize("method", one_of_each_walk(METHODS))
def test_every_method(real, method):
    """A batch of two equals two single runs; a bad target and a fault in the middle leave the module as it was."""
    name, network, x = real
    if method == "full-grad" and name not in STRAIGHT:
        with (
            unchanged(network.module),
            pytest.raises(
                UnsupportedError, match="not made of straight pieces; .*; (.*silu|.*gelu|.*hardswish)"
            ),
        ):
            METHODS[method](network, x, cl.ClassTarget([[1, 4], [0, 2]]))
        return
    if method in ANOTHERS_RUNS and name not in FEW:
        pytest.skip(f"{ANOTHERS_RUNS[method]} stands for it here")
    if method == "cam" and TABLE[name].kind == "refused":
        pytest.skip("refused, as the test above asserts")
    explain: Callable[..., cl.HeatMaps] = METHODS[method]
    with unchanged(network.module):
        together = explain(network, x, cl.ClassTarget([[1, 4], [0, 2]]))
        scale = float(together.values.abs().max())
        assert scale > 0
        near = 2e-4 * scale
        if method == "occlusion":  # a difference of logits, each known to float precision
            near += 1e-5 * float(together.scores.abs().max())
        if (
            method == "full-grad"
        ):  # a unit that rounding moves over its kink may be the largest, by which others are scaled
            near *= 10
        assert torch.isfinite(together.values).all()
        assert together.values.dtype == torch.float32
        assert together.grid.view == tuple(x.shape[2:])
        for i, row in enumerate([[1, 4], [0, 2]]):
            single = explain(network, x[i : i + 1], cl.ClassTarget([row]))
            torch.testing.assert_close(single.values[0], together.values[i], rtol=1e-3, atol=near)
        with pytest.raises(TargetError, match="class 99; allowed: 0 … 4"):
            explain(network, x, cl.ClassTarget(99))

    def fails(m: nn.Module, given: object, output: object) -> None:
        raise FloatingPointError("in the middle")

    last = [m for m in network.module.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    handle = last.register_forward_hook(fails)
    try:
        with unchanged(network.module), pytest.raises(FloatingPointError, match="in the middle"):
            explain(network, x, cl.ClassTarget(1))
    finally:
        handle.remove()


def test_the_twin_without_in_place_operations_has_the_same_maps(real):
    _, network, x = real
    layers = [one.name for one in network.structure(x).layers if one.reached]
    asked = [None, *(layers[i] for i in (len(layers) // 3, 2 * len(layers) // 3))]
    inplace = [m for m in network.module.modules() if getattr(m, "inplace", False)]
    found: list[list[Tensor]] = []
    try:
        for on in (True, False):
            for m in inplace:
                m.inplace = on  # type: ignore[assignment]
            fresh = cl.wrap(network.module)
            found.append([cl.GradCAM(layer, relu=False)(fresh, x[:1]).values for layer in asked])
    finally:
        for m in inplace:
            m.inplace = True  # type: ignore[assignment]
    for ours, twin in zip(*found, strict=True):
        torch.testing.assert_close(ours, twin, rtol=1e-4, atol=1e-5 * float(twin.abs().max()) + 1e-12)


def test_a_transformer_by_name_shows_its_tokens_as_layers():
    pytest.importorskip("timm", reason="timm is not installed: pip install 'camlucida[timm]'")
    network = cl.load("timm/test_vit", weights=None, num_classes=CLASSES)
    layers = {one.name: one for one in network.layers()}
    assert layers["patch_embed.proj"].size == layers["blocks.0"].size == (10, 10)
    assert (layers["patch_embed.proj"].prefix, layers["blocks.0"].prefix) == (None, 1)
    assert layers["blocks.0"].receptive_field is None
    assert [layers[n].reached for n in ("blocks.4", "blocks.5.norm1", "blocks.5.norm2", "blocks.5")] == [
        True, True, False, False,
    ]  # fmt: skip
    batch = network.preprocess(
        np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8), view="whole"
    )
    assert [m.shape for m in cl.GradCAM()(network, batch).in_source()] == [(1, 90, 130)]
