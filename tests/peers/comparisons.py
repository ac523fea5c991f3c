"""Every method that a peer has too, on the same weights and pixels: the tests ask for the bars, docs/conformance.md shows the
figures.

Where a peer rescales its maps, ours go through the same rescaling first. A peer that deviates from the paper is compared
twice: with our map, from which it must differ by more than `apart`, and with ours made to deviate as it does, `imitated`.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import camlucida as cl
from small_networks import fully_connected, pixels, seeded

NEAR = 1e-5
CLASSES = [7, 3]  # one a picture
SIZES = {"resnet18": (96, 64), "resnet50": (64, 96)}
PACKAGES = {"torchcam": "torchcam", "captum": "captum", "grad-cam": "pytorch_grad_cam"}
Case = tuple[nn.Module, Tensor]


@dataclass(frozen=True)
class Difference:
    """The largest one, as a share of the map's largest value: of our map, and of ours with the peer's deviation."""

    plain: float
    imitated: float | None = None


@dataclass(frozen=True)
class Comparison:
    """`call`: what of the peer; `on`: the networks of CASES; `deviates`: how, in words, "" for a peer that does not."""

    method: str
    peer: str
    call: str
    run: Callable[[nn.Module, Tensor], Difference]
    on: tuple[str, ...]
    deviates: str = ""
    near: float = NEAR
    apart: float = 0.0

    def __str__(self) -> str:
        return f"{self.method}, {self.peer}: {self.call}"


def difference(found: Tensor | np.ndarray, wanted: Tensor) -> float:
    """The largest one, as a share of the largest value; refuses maps that could not differ."""
    found = torch.as_tensor(np.asarray(found))
    assert found.shape == wanted.shape
    assert float(wanted.std()) > 0
    return float((found - wanted).abs().max() / wanted.abs().max())


def ours(method: Any, module: nn.Module, x: Tensor, classes: list[int] = CLASSES) -> Tensor:
    """`(N, h, w)`, or the signed pictures `(N, C, H, W)`."""
    found = method(cl.wrap(module), x, cl.ClassTarget(classes))
    return found.values[:, 0] if isinstance(found, cl.HeatMaps) else found.values


def minmax(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low + 1e-7)


def stretched(maps: Tensor, x: Tensor) -> Tensor:
    """As grad-cam scales: on the cells, then stretched over the pixels, then on the pixels."""
    return minmax(F.interpolate(minmax(maps)[:, None], x.shape[2:], mode="bilinear")[:, 0])


def share(maps: Tensor) -> Tensor:
    return maps / maps.amax((1, 2), keepdim=True)


def activations_and_gradients(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """At the end of a ResNet's `layer4`."""
    kept = {}
    handle = module.layer4.register_forward_hook(lambda m, given, output: kept.update(cells=output))
    logits = module(x)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[[0, 1], CLASSES].sum(), kept["cells"])
    return kept["cells"].detach(), gradient


# --- the networks ------------------------------------------------------------------------------------------


def _resnet(name: str) -> Case:
    build = getattr(torchvision.models, name)
    return seeded(build, weights=None, num_classes=10), pixels(2, *SIZES[name])


def _narrow() -> Case:
    """A network of 24 channels at its last layer, so that one pass a channel is soon done."""
    trunk = nn.Sequential(
        nn.Conv2d(3, 12, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(12, 24, 3, stride=4, padding=1), nn.ReLU()
    )  # fmt: skip

    def build() -> nn.Module:
        module = nn.Sequential(trunk, nn.Flatten(), nn.Linear(24 * 8 * 6, 10))
        for part in module.modules():
            if isinstance(part, torch.nn.Conv2d | torch.nn.Linear):
                part.reset_parameters()
        return module

    return seeded(build), 3 * pixels(2, 64, 48)


def _chain() -> Case:
    """VGG-A's convolutions and poolings; as captum wants a network for its ReLU rules, no ReLU in place."""
    module = nn.Sequential(
        torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"]), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )  # fmt: skip
    for m in module.modules():
        if isinstance(m, nn.ReLU):
            m.inplace = False
    torch.manual_seed(0)
    for p in module.parameters():
        nn.init.normal_(p, 0, (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1)
    return module.eval(), pixels(2, 40, 56)


def _connected() -> Case:
    """Two linear layers, of large gradients."""
    module = fully_connected()
    module.classifier[3].weight.data.mul_(1e3)
    return module, pixels()


CASES: dict[str, Callable[[], Case]] = {
    "resnet18": lambda: _resnet("resnet18"),
    "resnet50": lambda: _resnet("resnet50"),
    "narrow": _narrow,
    "chain": _chain,
    "fully connected": _connected,
}
RESNETS = ("resnet18", "resnet50")


@functools.cache
def case(name: str) -> Case:
    """The network and its two pictures; neither is to be changed."""
    with torch.random.fork_rng(devices=[]):
        return CASES[name]()


# --- the peers ---------------------------------------------------------------------------------------------

COMPARISONS: list[Comparison] = []


def compared(method: str, peer: str, call: str, on: tuple[str, ...] = RESNETS, **facts: Any) -> Callable:
    def add(run: Callable[[nn.Module, Tensor], Difference]) -> Callable:
        COMPARISONS.append(Comparison(method, peer, call, run, on, **facts))
        return run

    return add


def torchcam(name: str, module: nn.Module, x: Tensor, *arguments: Any, layer: str = "layer4") -> Tensor:
    import torchcam.methods

    with getattr(torchcam.methods, name)(module, layer, *arguments) as extract:
        (found,) = extract(CLASSES, module(x), normalized=False)
    return found.detach()


def grad_cam(
    name: str, module: Any, x: Tensor, classes: list[int] = CLASSES, layer: Any = None
) -> np.ndarray:
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layers = [] if name == "FullGrad" else [module.layer4 if layer is None else layer]
    with getattr(pytorch_grad_cam, name)(model=module, target_layers=layers) as extract:
        return extract(x, [ClassifierOutputTarget(c) for c in classes])


def captum(name: str, *made_with: Any, of: Tensor, **arguments: Any) -> Tensor:
    import captum.attr

    with warnings.catch_warnings():  # about its own hooks
        warnings.filterwarnings("ignore", message=".*backward hook")
        found = getattr(captum.attr, name)(*made_with)
        return found.attribute(of.clone().requires_grad_(), **arguments).detach()


@compared("cam", "torchcam", "CAM")
def _(module, x):
    import torchcam.methods

    with torchcam.methods.CAM(module, "layer4", "fc") as extract, torch.no_grad():
        module(x)
        (theirs,) = extract(CLASSES, normalized=False)
    return Difference(difference(theirs, ours(cl.CAM(), module, x)))


for _name, _method, _made in (
    ("GradCAM", "grad-cam", cl.GradCAM()),
    ("XGradCAM", "xgrad-cam", cl.XGradCAM()),
    ("LayerCAM", "layer-cam", cl.LayerCAM()),
):

    @compared(_method, "torchcam", _name)
    def _(module, x, name=_name, made=_made):
        return Difference(difference(torchcam(name, module, x), ours(made, module, x)))


for _name, _method, _made in (
    ("GradCAM", "grad-cam", cl.GradCAM()),
    ("XGradCAM", "xgrad-cam", cl.XGradCAM()),
    ("HiResCAM", "hires-cam", cl.HiResCAM(relu=True)),
    ("GradCAMElementWise", "element-wise-grad-cam", cl.ElementWiseGradCAM()),
    ("LayerCAM", "layer-cam", cl.LayerCAM()),
):

    @compared(_method, "grad-cam", f"{_name}, after its scaling")
    def _(module, x, name=_name, made=_made):
        return Difference(difference(grad_cam(name, module, x), stretched(ours(made, module, x), x)))


@compared("grad-cam", "captum", "LayerGradCam, signed and rectified")
def _(module, x):
    found = [
        difference(
            captum("LayerGradCam", module, module.layer4, of=x, target=CLASSES, relu_attributions=relu)[:, 0],
            ours(cl.GradCAM(relu=relu), module, x),
        )
        for relu in (False, True)
    ]
    return Difference(max(found))


@compared("hires-cam", "captum", "LayerGradientXActivation, summed over channels")
def _(module, x):
    theirs = captum("LayerGradientXActivation", module, module.layer4, of=x, target=CLASSES).sum(1)
    return Difference(difference(theirs, ours(cl.HiResCAM(), module, x)))


@compared(
    "grad-cam++", "grad-cam", "GradCAMPlusPlus, after its scaling", near=1e-4, apart=1e-3,
    deviates="adds 1e-6 to a denominator of the size of g², which small gradients do not reach; ours cancels g²",
)  # fmt: skip
def _(module, x):
    theirs, found = grad_cam("GradCAMPlusPlus", module, x), ours(cl.GradCAMPlusPlus(), module, x)
    same = stretched(grad_cam_plus_plus(module, x, 1e-6), x).float()
    return Difference(difference(theirs, stretched(found, x)), difference(theirs, same))


@compared(
    "grad-cam++", "torchcam", "GradCAMpp", apart=1e-3,
    deviates="divides a copy, so that its coefficients stay g² ReLU(g)",
)  # fmt: skip
def _(module, x):
    theirs = torchcam("GradCAMpp", module, x)
    cells, g = (t.double() for t in activations_and_gradients(module, x))
    undivided = ((g**2 * g.relu()).sum((2, 3), keepdim=True) * cells).sum(1).relu()
    found = ours(cl.GradCAMPlusPlus(), module, x)
    return Difference(difference(minmax(theirs), minmax(found)), difference(theirs, undivided.float()))


def grad_cam_plus_plus(module: nn.Module, x: Tensor, epsilon: float) -> Tensor:
    """The formula as it is printed, with something added to the denominator."""
    cells, g = (t.double() for t in activations_and_gradients(module, x))
    total = cells.sum((2, 3), keepdim=True)
    a = torch.where(g != 0, g**2 / (2 * g**2 + total * g**3 + epsilon), 0)
    return ((a * g.relu()).sum((2, 3), keepdim=True) * cells).sum(1).relu()


for _method, _made, _kind in (
    ("eigen-cam", cl.EigenCAM(), cl.EigenCAM),
    ("eigen-grad-cam", cl.EigenGradCAM(), cl.EigenGradCAM),
):

    @compared(
        _method, "grad-cam", "get_2d_projection", near=1e-4, apart=1e-3,
        deviates="takes each channel's mean off (ours with `centre=True`), leaves the sign to the decomposition and "
        "cuts off what is below zero; ours makes the largest value positive",
    )  # fmt: skip
    def _(module, x, made=_made, kind=_kind):
        from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection

        cells, gradient = activations_and_gradients(module, x)
        given = cells if kind is cl.EigenCAM else gradient * cells
        theirs = torch.from_numpy(get_2d_projection(given.numpy()))
        centred = ours(kind(centre=True), module, x)
        signs = (theirs * centred).sum((1, 2)).sign()[:, None, None]
        return Difference(
            difference(theirs * signs, ours(made, module, x)), difference(theirs * signs, centred)
        )


@compared(
    "full-grad", "grad-cam", "FullGrad", on=("fully connected",), apart=0.01,
    deviates="scales each channel (ours with `scale=channel`), where the authors' code scales a layer as a whole; adds "
    "1e-7 to each maximum, so that a network of small gradients loses its map",
)  # fmt: skip
def _(module, x):
    classes = [2, 4]
    theirs = grad_cam("FullGrad", module, x, classes)
    layer, channel = (minmax(ours(cl.FullGrad(scale=s), module, x, classes)) for s in ("layer", "channel"))
    return Difference(difference(theirs, layer), difference(theirs, channel))


@compared("saliency", "captum", "Saliency, largest over channels")
def _(module, x):
    return Difference(
        difference(captum("Saliency", module, of=x, target=CLASSES).amax(1), ours(cl.Saliency(), module, x))
    )


@compared("smooth-grad", "captum", "NoiseTunnel of Saliency, squared, without noise: theirs takes no seed")
def _(module, x):
    from captum.attr import Saliency

    theirs = captum(
        "NoiseTunnel", Saliency(module), of=x, nt_type="smoothgrad_sq", nt_samples=2, stdevs=0.0, target=CLASSES, abs=False
    )  # fmt: skip
    return Difference(
        difference(theirs.amax(1), ours(cl.SmoothGrad(n=2, sigma=0, mean="squared"), module, x))
    )


@compared("captum", "captum", "InputXGradient, summed over channels: its own numbers")
def _(module, x):
    theirs = captum("InputXGradient", module, of=x, target=CLASSES).sum(1)
    return Difference(difference(theirs, ours(cl.Captum("InputXGradient"), module, x)))


@compared("guided-backprop", "captum", "GuidedBackprop", on=("chain",))
def _(module, x):
    theirs = captum("GuidedBackprop", module, of=x, target=CLASSES)
    return Difference(difference(theirs, ours(cl.GuidedBackprop(), module, x)))


@compared("guided-grad-cam", "captum", "GuidedGradCam, bilinear", on=("chain",))
def _(module, x):
    theirs = captum("GuidedGradCam", module, module[0][18], of=x, target=CLASSES, interpolate_mode="bilinear")
    return Difference(difference(theirs, ours(cl.GuidedGradCAM("0.18"), module, x)))


@compared("deconvnet", "captum", "NeuronDeconvolution × the unit's activation", on=("chain",))
def _(module, x):
    activations, unit, found = module[0](x).detach(), 7, []
    for i in range(len(x)):
        place = np.unravel_index(int(activations[i, unit].argmax()), activations.shape[2:])
        where = (unit, *(int(p) for p in place))
        one = captum("NeuronDeconvolution", module, module[0], of=x[i : i + 1], neuron_selector=where)
        found.append(one[0] * activations[(i, *where)])
    return Difference(difference(torch.stack(found), ours(cl.DeconvNet("0", unit), module, x)))


@compared("occlusion", "captum", "Occlusion, mean over what covers a pixel, in float64", on=("resnet18",))
def _(module, x):
    """In float64: the map is a small difference of logits, each known to float precision."""
    module, x = copy.deepcopy(module).double(), pixels(2, 64, 80).double()
    found = cl.Occlusion(patch=16, stride=8)(cl.wrap(module), x, cl.ClassTarget(CLASSES)).in_view()[:, 0]
    # Windows over all channels and steps that end at the border: the same places.
    theirs = captum(
        "Occlusion", module, of=x, sliding_window_shapes=(3, 16, 16), strides=(3, 8, 8), target=CLASSES, baselines=0,
        perturbations_per_eval=16,
    )  # fmt: skip
    return Difference(max(difference(theirs[:, channel].float(), found) for channel in range(3)))


@compared(
    "score-cam", "torchcam", "ScoreCAM", on=("narrow",), apart=100 * NEAR,
    deviates="scales the cells to 0 … 1 before it stretches them (ours with `span=cells`), so that no pixel of a mask need "
    "reach 1; a constant channel takes part in its softmax, a factor on the whole map",
)  # fmt: skip
def _(module, x):
    import torchcam.methods

    with torchcam.methods.ScoreCAM(module, "0") as extract, torch.no_grad():
        module(x)
        (theirs,) = extract(CLASSES, normalized=False)
    plain, imitated = (
        difference(share(theirs), share(ours(cl.ScoreCAM("0", span=span), module, x)))
        for span in ("pixels", "cells")
    )
    return Difference(plain, imitated)


@compared(
    "score-cam", "grad-cam", "ScoreCAM, after its scaling", on=("narrow",), near=3 * NEAR, apart=10 * NEAR,
    deviates="stretches its masks from corner to corner (`align_corners=True`)",
)  # fmt: skip
def _(module, x):
    theirs, own = grad_cam("ScoreCAM", module, x, layer=module[0]), F.interpolate

    def map_of() -> Tensor:
        found = minmax(ours(cl.ScoreCAM("0"), module, x))[:, None]
        return minmax(own(found, x.shape[2:], mode="bilinear")[:, 0])

    plain = difference(theirs, map_of())
    with mock.patch.object(
        F, "interpolate", lambda t, size, **options: own(t, size, mode="bilinear", align_corners=True)
    ):
        return Difference(plain, difference(theirs, map_of()))


def _ablation(module: nn.Module, x: Tensor, classes: list[int], sign: float = 1.0) -> float:
    theirs = grad_cam("AblationCAM", module, x, classes, layer=module[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Ablation-CAM divides")
        found = ours(cl.AblationCAM("0", relu=False), module, x, classes)
    return difference(theirs, stretched((sign * found).relu(), x))


@compared("ablation-cam", "grad-cam", "AblationCAM, scores > 0", on=("narrow",), near=3 * NEAR)
def _(module, x):
    logits = module(x).detach()
    assert (logits.amax(1) > 0).all()
    return Difference(_ablation(module, x, logits.argmax(1).tolist()))


@compared(
    "ablation-cam", "grad-cam", "AblationCAM, scores < 0", on=("narrow",), near=3 * NEAR, apart=0.1,
    deviates="divides by the score itself: where that is below zero, its map shows what held the score down; ours divides "
    "by the magnitude",
)  # fmt: skip
def _(module, x):
    logits = module(x).detach()
    assert (logits.amin(1) < 0).all()
    classes = logits.argmin(1).tolist()
    return Difference(_ablation(module, x, classes), _ablation(module, x, classes, sign=-1.0))
