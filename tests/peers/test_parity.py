"""The same maps as torchcam, pytorch-grad-cam and captum give, and the same figures of their faithfulness, on the same weights: `pip install 'camlucida[peers]'`.

Where a peer rescales its maps, ours go through the same rescaling first. Differences are in shares of the largest value.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import camlucida as cl
from camlucida.evaluate import faithfulness
from peers import comparisons
from peers.comparisons import (
    CLASSES,
    COMPARISONS,
    NEAR,
    PACKAGES,
    SIZES,
    case,
    difference,
    grad_cam,
    minmax,
    ours,
    torchcam,
)
from small_networks import fully_connected, pixels, seeded


@pytest.mark.parametrize(
    ("compared", "network"), [pytest.param(c, on, id=f"{c}-{on}") for c in COMPARISONS for on in c.on]
)
def test_a_peers_map_is_ours(compared, network):
    """Or ours with its deviation, and then not ours as it is."""
    pytest.importorskip(PACKAGES[compared.peer], reason=f"{compared.peer} is not installed")
    found = compared.run(*case(network))
    assert bool(compared.deviates) == (found.imitated is not None)
    if found.imitated is None:
        assert found.plain <= compared.near
    else:
        assert found.imitated <= compared.near
        assert found.plain > compared.apart > compared.near


def test_a_peer_loses_an_activation_that_is_written_over():
    """After its last norm a ResNet block adds and rectifies in place: torchcam's map there is the map of the block's
    output, because what it kept was written over. Ours is the norm's own."""
    pytest.importorskip("torchcam", reason="torchcam is not installed")
    module, x = case("resnet18")
    theirs = torchcam("GradCAM", module, x, layer="layer4.1.bn2")
    found = ours(cl.GradCAM("layer4.1.bn2"), module, x)
    assert difference(theirs, ours(cl.GradCAM("layer4"), module, x)) <= NEAR
    assert difference(theirs, found) > 0.01

    kept = {}

    def keep(_, __, output):
        kept["cells"] = output
        return output.clone()  # so that nothing writes over it

    handle = module.layer4[1].bn2.register_forward_hook(keep)
    logits = module(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[[0, 1], CLASSES].sum(), kept["cells"])
    slow = (gradient.mean((2, 3), keepdim=True) * kept["cells"]).sum(1).relu()
    assert difference(found, slow.detach()) <= NEAR


@pytest.mark.parametrize("network", SIZES)
def test_where_peers_deviate_ours_is_the_papers(network):
    """Grad-CAM++ as it is printed; Eigen-CAMs whose largest value is positive."""
    module, x = case(network)
    printed = comparisons.grad_cam_plus_plus(module, x, 0).float()
    assert difference(ours(cl.GradCAMPlusPlus(), module, x), printed) <= NEAR
    for method in (cl.EigenCAM(centre=True), cl.EigenGradCAM(centre=True)):
        found = ours(method, module, x)
        assert (found.amax((1, 2)) == found.abs().amax((1, 2))).all()


def test_the_peers_full_grad_loses_the_map_of_small_gradients():
    pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")
    module, x, classes = fully_connected(), pixels(), [2, 4]
    module.classifier[3].weight.data.mul_(1e-4)
    theirs = grad_cam("FullGrad", module, x, classes)
    for scale in ("layer", "channel"):
        assert difference(theirs, minmax(ours(cl.FullGrad(scale=scale), module, x, classes))) > NEAR


def test_ablation_cam_says_that_a_score_is_below_zero():
    module, x = case("narrow")
    with pytest.warns(UserWarning, match="not every one is above 0"):
        ours(cl.AblationCAM("0"), module, x, module(x).argmin(1).tolist())


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
