"""The same maps as torchcam, pytorch-grad-cam and captum give, on the same weights: `pip install 'camlucida[peers]'`.

Where a peer rescales its maps, ours go through the same rescaling first. Differences are in shares of the largest value.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

import camlucida as cl
from small_networks import pixels, seeded

NEAR = 1e-5
CLASSES = [7, 3]  # one a picture
SIZES = {"resnet18": (96, 64), "resnet50": (64, 96)}


@pytest.fixture(scope="module", params=SIZES)
def case(request) -> tuple[torch.nn.Module, Tensor]:
    build = getattr(torchvision.models, request.param)
    return seeded(build, weights=None, num_classes=10), pixels(2, *SIZES[request.param])


def difference(found: Tensor | np.ndarray, wanted: Tensor) -> float:
    """The largest one, as a share of the largest value; refuses maps that could not differ."""
    found = torch.as_tensor(np.asarray(found))
    assert found.shape == wanted.shape
    assert float(wanted.std()) > 0
    return float((found - wanted).abs().max() / wanted.abs().max())


def grad_cam_maps(module, x, layer=None, relu=True) -> Tensor:
    return cl.GradCAM(layer=layer, relu=relu)(cl.wrap(module), x, cl.ClassTarget(CLASSES)).values[:, 0]


def test_cam_is_torchcams(case):
    methods = pytest.importorskip("torchcam.methods", reason="torchcam is not installed")
    module, x = case
    ours = cl.CAM()(cl.wrap(module), x, cl.ClassTarget(CLASSES)).values[:, 0]
    with methods.CAM(module, "layer4", "fc") as extract:
        with torch.no_grad():
            module(x)
        (theirs,) = extract(CLASSES, normalized=False)
    assert difference(theirs, ours) <= NEAR


def test_grad_cam_is_torchcams(case):
    methods = pytest.importorskip("torchcam.methods", reason="torchcam is not installed")
    module, x = case
    with methods.GradCAM(module, "layer4") as extract:
        (theirs,) = extract(CLASSES, module(x), normalized=False)
    assert difference(theirs, grad_cam_maps(module, x)) <= NEAR


def test_grad_cam_is_captums(case):
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    module, x = case
    theirs = attr.LayerGradCam(module, module.layer4).attribute(x, CLASSES)
    assert difference(theirs[:, 0].detach(), grad_cam_maps(module, x, relu=False)) <= NEAR
    theirs = attr.LayerGradCam(module, module.layer4).attribute(x, CLASSES, relu_attributions=True)
    assert difference(theirs[:, 0].detach(), grad_cam_maps(module, x)) <= NEAR


def test_grad_cam_is_pytorch_grad_cams_after_its_scaling(case):
    peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    module, x = case
    with peer.GradCAM(model=module, target_layers=[module.layer4]) as extract:
        theirs = extract(x, [targets.ClassifierOutputTarget(c) for c in CLASSES])
    # On the cells, then stretched over the pixels, then on the pixels.
    scaled = minmax(
        F.interpolate(minmax(grad_cam_maps(module, x))[:, None], x.shape[2:], mode="bilinear")[:, 0]
    )
    assert difference(theirs, scaled) <= NEAR


def minmax(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low + 1e-7)


def test_occlusion_is_captums():
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    # In float64: a place takes so little of a logit that rounding, which the layout in memory moves, would be seen.
    module = seeded(torchvision.models.resnet18, weights=None, num_classes=10).double()
    x = pixels(2, 64, 80).double()
    ours = cl.Occlusion(patch=16, stride=8)(cl.wrap(module), x, cl.ClassTarget(CLASSES))
    # Windows over all channels and steps that end at the border: the same places, so the same mean over what covers a pixel.
    theirs = attr.Occlusion(module).attribute(
        x, (3, 16, 16), strides=(3, 8, 8), target=CLASSES, baselines=0, perturbations_per_eval=16
    )
    for channel in range(3):
        assert difference(theirs[:, channel].detach().float(), ours.in_view()[:, 0]) <= NEAR


def test_a_peer_loses_an_activation_that_is_written_over():
    """After its last norm a ResNet block adds and rectifies in place: torchcam's map there is the map of the block's
    output, because what it kept was written over. Ours is the norm's own."""
    methods = pytest.importorskip("torchcam.methods", reason="torchcam is not installed")
    module, x = seeded(torchvision.models.resnet18, weights=None, num_classes=10), pixels(2, 96, 64)
    with methods.GradCAM(module, "layer4.1.bn2") as extract:
        (theirs,) = extract(CLASSES, module(x), normalized=False)
    ours = grad_cam_maps(module, x, "layer4.1.bn2")
    assert difference(theirs, grad_cam_maps(module, x, "layer4")) <= NEAR
    assert difference(theirs, ours) > 0.01

    kept = {}

    def keep(_, __, output):
        kept["cells"] = output
        return output.clone()  # so that nothing writes over it

    handle = module.layer4[1].bn2.register_forward_hook(keep)
    logits = module(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[[0, 1], CLASSES].sum(), kept["cells"])
    slow = (gradient.mean((2, 3), keepdim=True) * kept["cells"]).sum(1).relu()
    assert difference(ours, slow.detach()) <= NEAR


def test_saliency_is_captums(case):
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    module, x = case
    theirs = attr.Saliency(module).attribute(x.clone().requires_grad_(), CLASSES).amax(1)
    ours = cl.Saliency()(cl.wrap(module), x, cl.ClassTarget(CLASSES)).values[:, 0]
    assert difference(theirs, ours) <= NEAR


# --- perturbation ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow() -> tuple[torch.nn.Module, Tensor]:
    """A network of 24 channels at its last layer, so that one pass a channel is soon done."""
    trunk = torch.nn.Sequential(
        torch.nn.Conv2d(3, 12, 5, stride=2, padding=2), torch.nn.ReLU(),
        torch.nn.Conv2d(12, 24, 3, stride=4, padding=1), torch.nn.ReLU(),
    )  # fmt: skip

    def build() -> torch.nn.Module:
        module = torch.nn.Sequential(trunk, torch.nn.Flatten(), torch.nn.Linear(24 * 8 * 6, 10))
        for part in module.modules():
            if isinstance(part, torch.nn.Conv2d | torch.nn.Linear):
                part.reset_parameters()
        return module

    return seeded(build), 3 * pixels(2, 64, 48)


def test_score_cam_is_torchcams_with_masks_that_span_the_cells(narrow):
    """torchcam scales the cells to 0 … 1 before it stretches them, so no pixel of its masks need reach 1; the paper
    stretches first. Constant channels, whose mask is black there, take part in its softmax: a factor on the whole map."""
    methods = pytest.importorskip("torchcam.methods", reason="torchcam is not installed")
    module, x = narrow
    with methods.ScoreCAM(module, "0") as extract, torch.no_grad():
        module(x)
        (theirs,) = extract(CLASSES, normalized=False)

    def ours(span: Literal["pixels", "cells"]) -> Tensor:
        return cl.ScoreCAM("0", span=span)(cl.wrap(module), x, cl.ClassTarget(CLASSES)).values[:, 0]

    def share(maps: Tensor) -> Tensor:
        return maps / maps.amax((1, 2), keepdim=True)

    assert difference(share(theirs), share(ours("cells"))) <= NEAR
    assert difference(share(theirs), share(ours("pixels"))) > 100 * NEAR


def test_score_cam_is_pytorch_grad_cams_with_its_corners(narrow, monkeypatch):
    """It stretches masks from corner to corner (`align_corners=True`): with ours stretched in the same way the maps are
    equal, after its scaling."""
    peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    module, x = narrow
    with peer.ScoreCAM(model=module, target_layers=[module[0]]) as extract:
        theirs = extract(x, [targets.ClassifierOutputTarget(c) for c in CLASSES])
    own = F.interpolate

    def ours() -> Tensor:
        found = cl.ScoreCAM("0")(cl.wrap(module), x, cl.ClassTarget(CLASSES)).values[:, 0]
        return minmax(own(minmax(found)[:, None], x.shape[2:], mode="bilinear")[:, 0])

    assert difference(theirs, ours()) > 10 * NEAR
    monkeypatch.setattr(
        F, "interpolate", lambda t, size, **options: own(t, size, mode="bilinear", align_corners=True)
    )
    assert difference(theirs, ours()) <= 3 * NEAR


def test_ablation_cam_is_pytorch_grad_cams(narrow):
    """It divides by the score itself: where that is below zero, its map shows what held the score down. Ours divides
    by the magnitude."""
    peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    module, x = narrow
    logits = module(x).detach()
    above, below = logits.argmax(1).tolist(), logits.argmin(1).tolist()
    assert (logits.amax(1) > 0).all()
    assert (logits.amin(1) < 0).all()

    def theirs(classes: list[int]) -> np.ndarray:
        with peer.AblationCAM(model=module, target_layers=[module[0]]) as extract:
            return extract(x, [targets.ClassifierOutputTarget(c) for c in classes])

    def ours(classes: list[int], sign: float = 1.0) -> Tensor:
        found = cl.AblationCAM("0", relu=False)(cl.wrap(module), x, cl.ClassTarget(classes)).values[:, 0]
        return minmax(
            F.interpolate(minmax((sign * found).relu())[:, None], x.shape[2:], mode="bilinear")[:, 0]
        )

    assert difference(theirs(above), ours(above)) <= 3 * NEAR
    with pytest.warns(UserWarning, match="not every one is above 0"):
        up = ours(below)
    with pytest.warns(UserWarning, match="not every one is above 0"):
        down = ours(below, sign=-1.0)
    assert difference(theirs(below), down) <= 3 * NEAR
    assert difference(theirs(below), up) > 0.1
