"""The same maps as torchcam, pytorch-grad-cam and captum give, and the same figures of their faithfulness, on the same weights: `pip install 'camlucida[peers]'`.

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
from camlucida.evaluate import faithfulness
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


# --- measures of faithfulness ------------------------------------------------------------------------------------


class Probabilities(torch.nn.Module):
    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x).softmax(1)


@pytest.fixture(scope="module")
def judged() -> tuple[torch.nn.Module, Tensor, Tensor]:
    """A module, two pictures, and maps from 0 to 1 without ties, whose values and their complements are exact."""
    x = pixels(2, 20, 28)
    module = seeded(
        lambda: torch.nn.Sequential(
            torch.nn.Conv2d(3, 6, 3, 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(6, 5)
        )
    )  # fmt: skip
    places = [torch.randperm(560, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    maps = torch.stack([place.float().where(place < 559, 1024.0) / 1024 for place in places]).view(2, 20, 28)
    return module, x, maps


def test_road_is_pytorch_grad_cams_without_noise(judged, monkeypatch):
    """It names a share by what stays, and draws noise from the global state; the mean over all shares is the same."""
    theirs = pytest.importorskip("pytorch_grad_cam.metrics.road", reason="grad-cam is not installed")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    module, x, maps = judged
    monkeypatch.setattr(theirs.NoisyLinearImputer, "__init__", lambda self, noise=0, weighting=None: setattr(self, "noise", 0))  # fmt: skip
    wanted = [targets.ClassifierOutputTarget(c) for c in (4, 3)]
    found = theirs.ROADCombined()(x, maps.numpy(), wanted, Probabilities(module))
    ours = faithfulness.road(cl.wrap(module), x, maps, [4, 3], noise=0).combined
    assert float(ours.abs().min()) > 1e-4
    np.testing.assert_allclose(ours, found, atol=1e-6)


def test_drop_and_increase_are_pytorch_grad_cams_but_for_the_division(judged):
    """Its drop is that of the probability itself, ours a share of it, as in the paper."""
    theirs = pytest.importorskip("pytorch_grad_cam.metrics.cam_mult_image", reason="grad-cam is not installed")  # fmt: skip
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    module, x, maps = judged
    for classes in ([4, 3], [0, 1]):
        wanted = [targets.ClassifierOutputTarget(c) for c in classes]
        ours = faithfulness.confidence(cl.wrap(module), x, maps, classes)
        found = theirs.DropInConfidence()(x, maps.numpy(), wanted, Probabilities(module))
        np.testing.assert_allclose(ours.drop * ours.clean, found, atol=1e-6)
        found = theirs.IncreaseInConfidence()(x, maps.numpy(), wanted, Probabilities(module))
        assert ours.increase.tolist() == [bool(v) for v in found]


def test_coherency_and_complexity_are_pytorch_grad_cams(judged):
    theirs = pytest.importorskip("pytorch_grad_cam.metrics.arcc", reason="grad-cam is not installed")
    _, _, maps = judged
    again = maps.flip(2) ** 2
    np.testing.assert_allclose(faithfulness.complexity(maps), theirs.Complexity()(maps.numpy()), atol=1e-6)
    found = (theirs.batch_pearson_coherency(maps.numpy(), again.numpy()) + 1) / 2
    np.testing.assert_allclose(faithfulness.coherency(maps, again), found, atol=1e-5)


def test_infidelity_is_captums_as_a_share(judged):
    """With squares for perturbations and its `normalize`, where the map speaks for the class; ours is divided by the mean
    square of the drops, and a map that says the contrary does not gain by a negative factor."""
    metrics = pytest.importorskip("captum.metrics", reason="captum is not installed")
    module, x, _ = judged
    patch, stride = 4, 2
    corners = [(y, z) for y in range(0, 20 - patch + 1, stride) for z in range(0, 28 - patch + 1, stride)]
    net = cl.wrap(module)
    drops = cl.Occlusion(patch=patch, stride=stride)(net, x, cl.ClassTarget([4, 3]))
    maps = drops.in_view()[:, 0] + 0.1 * pixels(2, 20, 28, channels=1)[:, 0] * drops.values.std()

    def squares(inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Each picture comes once for each place."""
        shown, mask = inputs.clone(), torch.zeros_like(inputs)
        for i in range(len(inputs)):
            y, z = corners[i % len(corners)]
            shown[i, :, y : y + patch, z : z + patch] = 0
            mask[i, 0, y : y + patch, z : z + patch] = 1
        return mask, shown

    attributions = torch.zeros_like(x)
    attributions[:, 0] = maps
    found = metrics.infidelity(
        module, squares, x, attributions, target=torch.tensor([4, 3]), n_perturb_samples=len(corners), normalize=True
    )  # fmt: skip
    ours = faithfulness.agreement(maps, drops)
    assert float(ours.correlation.min()) > 0
    mean_square = drops.values[:, 0].square().mean((1, 2))
    np.testing.assert_allclose(ours.infidelity * mean_square, found.detach(), rtol=1e-3)
