"""The same maps as torchcam, pytorch-grad-cam and captum give, on the same weights: `pip install 'camlucida[peers]'`.

Where a peer rescales its maps, ours go through the same rescaling first. Differences are in shares of the largest value.
"""

from __future__ import annotations

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
    module, x = seeded(torchvision.models.resnet18, weights=None, num_classes=10), pixels(2, 64, 80)
    ours = cl.Occlusion(patch=16, stride=8)(cl.wrap(module), x, cl.ClassTarget(CLASSES))
    # Windows over all channels and steps that end at the border: the same places, so the same mean over what covers a pixel.
    theirs = attr.Occlusion(module).attribute(
        x, (3, 16, 16), strides=(3, 8, 8), target=CLASSES, baselines=0, perturbations_per_eval=16
    )
    for channel in range(3):
        assert difference(theirs[:, channel].detach(), ours.in_view()[:, 0]) <= NEAR


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


def plain_relus(module: torch.nn.Module) -> torch.nn.Module:
    """As captum wants a network for its ReLU rule: no module called twice, none in place."""
    for m in list(module.modules()):
        if isinstance(m, torch.nn.ReLU):
            m.inplace = False
    return module


@pytest.mark.filterwarnings("ignore:.*backward hooks")
@pytest.mark.filterwarnings("ignore:.*non-full backward hook")
def test_guided_backprop_is_captums():
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    module = plain_relus(
        torch.nn.Sequential(
            torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"]),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
        )
    )
    torch.manual_seed(0)
    for p in module.parameters():
        torch.nn.init.normal_(p, 0, (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1)
    x = pixels(2, 40, 56)
    theirs = attr.GuidedBackprop(module).attribute(x.clone().requires_grad_(), CLASSES).detach()
    ours = cl.GuidedBackprop()(cl.wrap(module), x, cl.ClassTarget(CLASSES)).values
    assert difference(theirs, ours) <= NEAR
    layer = module[0][18]
    theirs = (
        attr.GuidedGradCam(module, layer)
        .attribute(x.clone().requires_grad_(), CLASSES, interpolate_mode="bilinear")
        .detach()
    )
    ours = cl.GuidedGradCAM("0.18")(cl.wrap(module), x, cl.ClassTarget(CLASSES)).values
    assert difference(theirs, ours) <= NEAR


def test_smooth_grad_is_captums_noise_tunnel_without_noise(case):
    """Their noise has no seed to give it; without noise the two must agree, squares included."""
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    module, x = case
    tunnel = attr.NoiseTunnel(attr.Saliency(module))
    theirs = tunnel.attribute(
        x.clone().requires_grad_(),
        nt_type="smoothgrad_sq",
        nt_samples=2,
        stdevs=0.0,
        target=CLASSES,
        abs=False,
    )
    ours = cl.SmoothGrad(n=2, sigma=0, mean="squared")(cl.wrap(module), x, cl.ClassTarget(CLASSES)).values[
        :, 0
    ]
    assert difference(theirs.amax(1), ours) <= NEAR
