"""Every method by its oracle: what its map must be on two small networks, as loops in float64. `FORMULAS` has a formula
for each spec; a method of the catalogue without one fails the test of docs/conformance.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from camlucida import maps as library
from oracles import gradient_maps, maps, pixels
from oracles.geometry import stretched
from small_networks import CHANNELS, fully_connected, gap

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Small:
    """A network of `small_networks` whose trunk is `features`: 20 × 28 pixels → 5 × 7 cells."""

    build: Callable[[], Any]

    @cached_property
    def double(self) -> Any:
        return self.build().double().requires_grad_(False)

    def head(self, cells: Tensor) -> Tensor:
        if hasattr(self.double, "classifier"):
            return self.double.classifier(cells)
        return self.double.fc(cells.mean((2, 3)))

    def score(self, picture: Tensor, c: int) -> float:
        return float(self.double(picture[None])[0, c])

    def at_layer(self, picture: Tensor, c: int) -> tuple[Array, Array]:
        return gradient_maps.at_layer(self.double.features, lambda z: self.head(z)[:, c], picture)

    @property
    def trunk(self) -> list[pixels.Stage]:
        found: list[pixels.Stage] = []
        for m in self.double.features:
            if isinstance(m, nn.ReLU):
                found.append(pixels.Relu())
            else:
                found.append(pixels.Conv(m.weight.numpy(), m.bias.numpy(), m.stride[0], m.padding[0]))
        return found

    @property
    def stages(self) -> list[pixels.Stage]:
        """The head too: each of its linear layers as a convolution over all cells."""
        if not hasattr(self.double, "classifier"):
            weight, bias = self.double.fc.weight.numpy(), self.double.fc.bias.numpy()
            mean = np.broadcast_to(weight[:, :, None, None] / 35, (*weight.shape, 5, 7))
            return [*self.trunk, pixels.Conv(mean, bias)]
        _, first, _, last = self.double.classifier
        return [
            *self.trunk, pixels.Conv(first.weight.numpy().reshape(-1, CHANNELS, 5, 7), first.bias.numpy()), pixels.Relu(),
            pixels.Conv(last.weight.numpy()[:, :, None, None], last.bias.numpy()),
        ]  # fmt: skip

    def down(self, picture: Tensor, c: int, rule: str) -> Array:
        """From the logit of class c to the pixels."""
        stages = self.stages
        values = pixels.forward(picture.double().numpy(), stages)
        signal = np.zeros_like(values[-1])
        signal[c] = 1
        return pixels.backwards(values, stages, signal, rule)


NETWORKS = {"gap": Small(gap), "fully connected": Small(fully_connected)}
Formula = Callable[[Small, Tensor, int], Array | None]
"""Of network, picture `(3, H, W)` and class: the map; None where the network is to be refused."""


def of_gradient(formula: Callable[[Array, Array], Array]) -> Formula:
    return lambda net, picture, c: formula(*net.at_layer(picture, c))


def cam(net: Small, picture: Tensor, c: int) -> Array | None:
    if hasattr(net.double, "classifier"):
        return None
    return maps.cam(net.at_layer(picture, c)[0], net.double.fc.weight.numpy(), c)


def grad_cam(net: Small, picture: Tensor, c: int) -> Array:
    return maps.grad_cam(net.double.features, lambda z: net.head(z)[:, c], picture)


def bag_cam(net: Small, picture: Tensor, c: int) -> Array:
    return gradient_maps.bag_cam(*net.at_layer(picture, c), net.score(picture.double(), c))


def full_grad(scale: str) -> Formula:
    def formula(net: Small, picture: Tensor, c: int) -> Array:
        layers = [m for m in net.double.features if isinstance(m, nn.Conv2d)]
        pixel, biases = gradient_maps.full_grad(net.double, layers, lambda z: z[:, c], picture)
        return gradient_maps.full_grad_map([pixel, *biases], (20, 28), scale)

    return formula


def occlusion(net: Small, picture: Tensor, c: int) -> Array:
    return maps.occlusion(lambda one: net.score(one, c), picture.double(), 8, 6, 0.0)


def score_cam(weighting: str) -> Formula:
    def formula(net: Small, picture: Tensor, c: int) -> Array:
        def score(one: Tensor) -> float:
            logits = net.double(one[None])
            return float((logits.softmax(1) if weighting == "probability" else logits)[0, c])

        picture = picture.double()
        black = {"softmax": None, "probability": 0.0, "increase": score(torch.zeros_like(picture))}
        found = maps.score_cam(score, net.at_layer(picture, c)[0], picture, black[weighting])
        return np.maximum(found, 0)

    return formula


def ablation_cam(net: Small, picture: Tensor, c: int) -> Array:
    activations = torch.from_numpy(net.at_layer(picture, c)[0])
    found = maps.ablation_cam(lambda a: float(net.head(a[None])[0, c]), activations)
    return np.maximum(found, 0)


def rise(spec: str) -> Formula:
    def formula(net: Small, picture: Tensor, c: int) -> Array:
        method: Any = library.method(spec)
        cells, shifts = method.drawn((20, 28))
        masks = [
            maps.rise_mask(one.double().numpy(), tuple(shift.tolist()), 20, 28)
            for one, shift in zip(cells, shifts, strict=True)
        ]
        return maps.rise(lambda one: net.score(one, c), picture.double(), masks, method.p)

    return formula


def smooth_grad(net: Small, picture: Tensor, c: int) -> Array:
    """Of signed gradients, before the largest magnitude over the channels is taken."""
    draw, reach = torch.Generator().manual_seed(0), 0.15 * (picture.max() - picture.min())
    noisy = [picture + reach * torch.randn(picture.shape, generator=draw) for _ in range(3)]
    return np.abs(np.mean([net.down(one, c, "gradient") for one in noisy], axis=0)).max(0)


def guided_grad_cam(net: Small, picture: Tensor, c: int) -> Array:
    return net.down(picture, c, "guided") * stretched(grad_cam(net, picture, c).tolist(), 20, 28)


def deconvnet(net: Small, picture: Tensor, c: int) -> Array:
    """From the strongest position of the unit that adds most to the score."""
    a, g = net.at_layer(picture, c)
    unit = int((a * g).sum((1, 2)).argmax())
    signal = np.zeros_like(a)
    place = (unit, *np.unravel_index(a[unit].argmax(), a.shape[1:]))
    signal[place] = a[place]
    values = pixels.forward(picture.double().numpy(), net.trunk)
    return pixels.backwards(values, net.trunk, signal, "deconvnet")


FORMULAS: dict[str, Formula] = {
    "cam": cam,
    "grad-cam": grad_cam,
    "grad-cam++": of_gradient(gradient_maps.grad_cam_plus_plus),
    "xgrad-cam": of_gradient(gradient_maps.xgrad_cam),
    "hires-cam": of_gradient(gradient_maps.hires_cam),
    "element-wise-grad-cam": of_gradient(gradient_maps.element_wise_grad_cam),
    "layer-cam": of_gradient(gradient_maps.layer_cam),
    "eigen-cam": of_gradient(lambda a, g: gradient_maps.eigen_cam(a)),
    "eigen-cam:centre=true": of_gradient(lambda a, g: gradient_maps.eigen_cam(a, True)),
    "eigen-grad-cam": of_gradient(gradient_maps.eigen_grad_cam),
    "eigen-grad-cam:centre=true": of_gradient(lambda a, g: gradient_maps.eigen_grad_cam(a, g, True)),
    "full-grad": full_grad("layer"),
    "full-grad:scale=channel": full_grad("channel"),
    "bag-cam": bag_cam,
    "bag-cam:log=false": of_gradient(lambda a, g: gradient_maps.bag_cam(a, g, None)),
    "pc1": of_gradient(gradient_maps.pc1),
    "occlusion:patch=8,stride=6": occlusion,
    "occlusion:patch=8,stride=6,engine=incremental": occlusion,
    "rise:masks=12,s=4": rise("rise:masks=12,s=4"),
    "saliency": lambda net, picture, c: np.abs(net.down(picture, c, "gradient")).max(0),
    "smooth-grad:n=3": smooth_grad,
    "captum:attribution=InputXGradient": lambda net, picture, c: (
        net.down(picture, c, "gradient") * picture.double().numpy()
    ).sum(0),
    "score-cam": score_cam("softmax"),
    "score-cam:weighting=probability": score_cam("probability"),
    "score-cam:weighting=increase": score_cam("increase"),
    "ablation-cam": ablation_cam,
    "guided-backprop": lambda net, picture, c: net.down(picture, c, "guided"),
    "guided-grad-cam": guided_grad_cam,
    "deconvnet": deconvnet,
}
"""By spec."""
