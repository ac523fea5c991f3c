"""The same maps as torchcam, pytorch-grad-cam and captum give, and the same figures of their faithfulness, on the same weights: `pip install 'camlucida[peers]'`.

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
from camlucida.evaluate import faithfulness
from small_networks import fully_connected, pixels, seeded

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


# --- the relatives of Grad-CAM -----------------------------------------------------------------------------


def ours(method, module, x) -> Tensor:
    return method(cl.wrap(module), x, cl.ClassTarget(CLASSES)).values[:, 0]


def activations_and_gradients(module, x) -> tuple[Tensor, Tensor]:
    """At the end of a ResNet's `layer4`."""
    kept = {}
    handle = module.layer4.register_forward_hook(lambda m, given, output: kept.update(cells=output))
    logits = module(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[[0, 1], CLASSES].sum(), kept["cells"])
    return kept["cells"].detach(), gradient


@pytest.mark.parametrize("name", ["XGradCAM", "LayerCAM"])
def test_relatives_of_grad_cam_are_torchcams(case, name):
    methods = pytest.importorskip("torchcam.methods", reason="torchcam is not installed")
    module, x = case
    with getattr(methods, name)(module, "layer4") as extract:
        (theirs,) = extract(CLASSES, module(x), normalized=False)
    assert difference(theirs, ours(getattr(cl, name)(), module, x)) <= NEAR


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("XGradCAM", cl.XGradCAM()),
        ("HiResCAM", cl.HiResCAM(relu=True)),
        ("GradCAMElementWise", cl.ElementWiseGradCAM()),
        ("LayerCAM", cl.LayerCAM()),
    ],
)
def test_relatives_of_grad_cam_are_pytorch_grad_cams_after_its_scaling(case, name, method):
    peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    module, x = case
    with getattr(peer, name)(model=module, target_layers=[module.layer4]) as extract:
        theirs = extract(x, [targets.ClassifierOutputTarget(c) for c in CLASSES])
    assert difference(theirs, stretched(ours(method, module, x), x)) <= NEAR


def stretched(maps: Tensor, x: Tensor) -> Tensor:
    """As pytorch-grad-cam scales: on the cells, then stretched over the pixels, then on the pixels."""
    return minmax(F.interpolate(minmax(maps)[:, None], x.shape[2:], mode="bilinear")[:, 0])


def test_eigen_cams_are_pytorch_grad_cams_but_for_their_sign(case):
    """It leaves the sign to the decomposition and then cuts off what is below zero; ours makes the largest positive."""
    svd = pytest.importorskip("pytorch_grad_cam.utils.svd_on_activations", reason="grad-cam is not installed")
    module, x = case
    cells, gradient = activations_and_gradients(module, x)
    for given, method in (
        (cells, cl.EigenCAM(centre=True)),
        (gradient * cells, cl.EigenGradCAM(centre=True)),
    ):
        theirs = torch.from_numpy(svd.get_2d_projection(given.numpy()))
        found = ours(method, module, x)
        signs = (theirs * found).sum((1, 2)).sign()[:, None, None]
        assert difference(theirs * signs, found) <= 1e-4
        assert (found.amax((1, 2)) == found.abs().amax((1, 2))).all()


def test_the_peers_grad_cam_plus_plus_is_not_the_papers(case):
    """pytorch-grad-cam adds 1e-6 to a denominator of the size of g², which is smaller than that in small gradients;
    torchcam divides a copy, so that its coefficients stay g² ReLU(g). Ours cancels g² and needs neither."""
    peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    methods = pytest.importorskip("torchcam.methods", reason="torchcam is not installed")
    module, x = case
    cells, g = (t.double() for t in activations_and_gradients(module, x))
    total = cells.sum((2, 3), keepdim=True)

    def formula(epsilon: float) -> Tensor:
        a = torch.where(g != 0, g**2 / (2 * g**2 + total * g**3 + epsilon), 0)
        return ((a * g.relu()).sum((2, 3), keepdim=True) * cells).sum(1).relu()

    found = ours(cl.GradCAMPlusPlus(), module, x)
    assert difference(found, formula(0).float()) <= NEAR
    with peer.GradCAMPlusPlus(model=module, target_layers=[module.layer4]) as extract:
        theirs = extract(x, [targets.ClassifierOutputTarget(c) for c in CLASSES])
    assert difference(theirs, stretched(formula(1e-6), x).float()) <= 1e-4
    assert difference(theirs, stretched(found, x)) > 1e-3
    with methods.GradCAMpp(module, "layer4") as extract:
        (copied,) = extract(CLASSES, module(x), normalized=False)
    undivided = ((g**2 * g.relu()).sum((2, 3), keepdim=True) * cells).sum(1).relu()
    assert difference(copied, undivided.float()) <= NEAR
    assert difference(minmax(copied), minmax(found)) > 1e-3


def test_full_grad_is_pytorch_grad_cams_but_for_small_gradients():
    """It adds 1e-7 to the maximum by which it divides each channel, so that a network of small gradients loses its map;
    and its scaling is that of each channel, where the authors' code scales a layer as a whole."""
    peer = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    x, classes = pixels(), [2, 4]
    for size, same in ((1e3, True), (1e-4, False)):
        module = fully_connected()
        module.classifier[3].weight.data.mul_(size)
        with peer.FullGrad(model=module, target_layers=[]) as extract:
            theirs = extract(x, [targets.ClassifierOutputTarget(c) for c in classes])
        found = cl.FullGrad(scale="channel")(cl.wrap(module), x, cl.ClassTarget(classes)).values[:, 0]
        assert (difference(theirs, minmax(found)) <= NEAR) == same
        layer = cl.FullGrad()(cl.wrap(module), x, cl.ClassTarget(classes)).values[:, 0]
        assert difference(theirs, minmax(layer)) > 0.01


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
