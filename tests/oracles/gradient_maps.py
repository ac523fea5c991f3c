"""The formulas of section 19 on activations and gradients `(channels, h, w)` of one picture and target, as loops in
float64; nothing here uses the package."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from oracles.geometry import stretched

Array = NDArray[np.float64]


def at_layer(
    below: Callable[[Tensor], Tensor], above: Callable[[Tensor], Tensor], picture: Tensor
) -> tuple[Array, Array]:
    """Activations and gradients of a picture `(C, H, W)`: `below` gives the activations, `above` makes one number of
    them; both in float64."""
    activations = below(picture.double()[None]).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(above(activations).sum(), activations)
    return activations.detach().numpy()[0], gradient.numpy()[0]


def weighted(weights: list[float], a: Array) -> Array:
    return np.sum([w * channel for w, channel in zip(weights, a, strict=True)], axis=0)


def grad_cam_plus_plus(a: Array, g: Array) -> Array:
    weights = []
    for channel, slope in zip(a, g, strict=True):
        total, weight = float(channel.sum()), 0.0
        for s in slope.flatten():
            below = 2 * s**2 + total * s**3
            weight += (s**2 / below if below != 0 else 0.0) * max(s, 0.0)
        weights.append(weight)
    return np.maximum(weighted(weights, a), 0)


def xgrad_cam(a: Array, g: Array) -> Array:
    weights = []
    for channel, slope in zip(a, g, strict=True):
        total = float(channel.sum())
        shares = channel / total if total != 0 else 0 * channel
        weights.append(float(sum(p * s for p, s in zip(shares.flatten(), slope.flatten(), strict=True))))
    return np.maximum(weighted(weights, a), 0)


def hires_cam(a: Array, g: Array) -> Array:
    found = np.zeros(a.shape[1:])
    for k in range(len(a)):
        for cell in np.ndindex(found.shape):
            found[cell] += g[k][cell] * a[k][cell]
    return found


def element_wise_grad_cam(a: Array, g: Array) -> Array:
    found = np.zeros(a.shape[1:])
    for k in range(len(a)):
        for cell in np.ndindex(found.shape):
            found[cell] += max(g[k][cell] * a[k][cell], 0.0)
    return found


def layer_cam(a: Array, g: Array) -> Array:
    found = np.zeros(a.shape[1:])
    for k in range(len(a)):
        for cell in np.ndindex(found.shape):
            found[cell] += max(g[k][cell], 0.0) * a[k][cell]
    return np.maximum(found, 0)


def eigen_cam(a: Array, centre: bool = False) -> Array:
    rows = a.reshape(len(a), -1).T
    rows = rows - rows.mean(0) if centre else rows
    _, _, directions = np.linalg.svd(rows, full_matrices=False)
    found = rows @ directions[0]
    return (found * np.sign(found[np.abs(found).argmax()])).reshape(a.shape[1:])


def eigen_grad_cam(a: Array, g: Array, centre: bool = False) -> Array:
    return eigen_cam(a * g, centre)


def bag_cam(a: Array, g: Array, score: float | None) -> Array:
    """`score`: y, whose logarithm is taken; None: none is."""
    g = g if score is None else g / abs(score)
    found = np.zeros(a.shape[1:])
    for k in range(len(a)):
        mean = float(np.mean([g[k][cell] * a[k][cell] for cell in np.ndindex(found.shape)]))
        for cell in np.ndindex(found.shape):
            found[cell] += max((1 + mean) * g[k][cell] * a[k][cell], 0.0)
    return found


def pc1(a: Array, g: Array) -> Array:
    samples = []
    for channel, slope in zip(a, g, strict=True):
        one = slope.mean() * channel
        low, high = one.min(), one.max()
        samples.append((one - low) / (high - low) if high > low else 0 * one)
    table = np.array(samples).reshape(len(a), -1)
    centred = table - table.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    found = vectors[:, -1].reshape(a.shape[1:])
    found = found * np.sign(found.flat[np.abs(found).argmax()])
    height, width = found.shape
    votes = [
        found[y, x] > found.mean()
        for y in range(height) for x in range(width) if y in (0, height - 1) or x in (0, width - 1)
    ]  # fmt: skip
    found = -found if sum(votes) > len(votes) / 2 else found
    return (found - found.min()) / (found.max() - found.min())


def full_grad(
    module: nn.Module, layers: list[nn.Module], score: Callable[[Tensor], Tensor], picture: Tensor
) -> tuple[Array, list[Array]]:
    """∇y ⊙ x and b ⊙ ∂y/∂b of each of `layers` (convolutions, batch norms, linear layers) for one picture `(C, H, W)`,
    found with a zero added to the output of each; the module in float64."""
    zeros: list[Tensor] = []
    handles = []

    def add(layer: nn.Module, given: object, output: Tensor) -> Tensor:
        zeros.append(torch.zeros_like(output, requires_grad=True))
        return output + zeros[-1]

    for layer in layers:
        handles.append(layer.register_forward_hook(add))
    x = picture.double()[None].requires_grad_()
    gradients = torch.autograd.grad(score(module(x)).sum(), [x, *zeros])
    for handle in handles:
        handle.remove()
    terms = []
    for layer, gradient in zip(layers, gradients[1:], strict=True):
        bias = layer.bias
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            bias = bias - layer.running_mean * layer.weight / (layer.running_var + layer.eps).sqrt()
        assert isinstance(bias, Tensor)
        term = gradient[0] * bias.detach().reshape(-1, *(1,) * (gradient.ndim - 2))
        terms.append(term.detach().numpy())
    return (gradients[0] * x)[0].detach().numpy(), terms


def full_grad_map(terms: list[Array], view: tuple[int, int], scale: str) -> Array:
    """ψ of each term `(channels, h, w)`, summed over channels and terms: absolute values, scaled to 0 … 1 over the whole
    `layer` or each `channel`, laid over the view."""
    found = np.zeros(view)
    for term in terms:
        size = np.abs(term)
        for channel in size:
            of = size if scale == "layer" else channel
            low, high = of.min(), of.max()
            if high > low:
                found += stretched(((channel - low) / (high - low)).tolist(), *view)
    return found
