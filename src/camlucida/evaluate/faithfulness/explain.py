"""What all measures of faithfulness begin with: a method's map in the view, and the probability of a class."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from camlucida.errors import UnsupportedError, UsageError
from camlucida.maps.catalogue import Method
from camlucida.networks.network import Network
from camlucida.targets import ClassTarget
from camlucida.values import Batch, Reconstruction

Explainer = Callable[[Network, Batch, Tensor], Tensor]
"""Network, batch of N pictures, classes `(N,)` → maps `(N, H, W)` over the pixels of the view."""
Classes = Tensor | Sequence[int] | int | None
"""One class a picture; None: the predicted ones."""


def explainer(method: Method) -> Explainer:
    """A method as an explainer: its map of one class in the view; of a signed picture (guided backpropagation) the largest
    magnitude over the channels."""

    def explain(network: Network, batch: Batch, classes: Tensor) -> Tensor:
        found = method(network, batch, ClassTarget(classes))
        if isinstance(found, Reconstruction):
            return found.values.detach().float().abs().amax(1)
        return found.in_view()[:, 0].detach().float()

    return explain


def chosen(network: Network, pixels: Tensor, classes: Classes) -> Tensor:
    """Classes `(N,)`, on the device of the logits. Raises TargetError for any that do not fit the pictures."""
    return ClassTarget(classes).classes(network(pixels))[:, 0]


def probability(network: Network, pixels: Tensor, classes: Tensor, batch: int = 64) -> Tensor:
    """The probability `(N,)` float32 of one class `(N,)` of each picture, `batch` pictures a forward pass. Raises
    UnsupportedError for a network whose outputs are no probabilities."""
    if network.card.activation == "none":
        raise UnsupportedError(
            f"the probability of a class by {network.card.name}",
            got="activation none: its outputs are numbers", allowed="softmax | sigmoid",
        )  # fmt: skip
    found = [
        network.probabilities(network(some)).gather(1, of[:, None])[:, 0]
        for some, of in zip(pixels.split(batch), classes.split(batch), strict=True)
    ]
    return torch.cat(found) if found else classes.new_empty(0, dtype=torch.float32)


def usable(maps: Tensor, pixels: Tensor) -> Tensor:
    """Maps `(N, H, W)` float32 on the pixels' device; one that is not finite becomes zeros, so that it orders nothing. Raises
    UsageError where they do not lie over the pixels."""
    if pixels.ndim != 4 or maps.shape != (len(pixels), *pixels.shape[2:]):
        raise UsageError(
            "maps in the view", got=f"maps {tuple(maps.shape)}, pixels {tuple(pixels.shape)}",
            allowed="maps (N, H, W) of pixels (N, C, H, W)", do="HeatMaps.in_view()[:, k] gives them",
        )  # fmt: skip
    maps = maps.detach().to(pixels.device, torch.float32)
    finite = maps.flatten(1).isfinite().all(1)
    return torch.where(finite[:, None, None], maps, torch.zeros_like(maps))


def unit(maps: Tensor) -> Tensor:
    """Maps `(N, H, W)` from their minimum, 0, to their maximum, 1; a constant one becomes zeros."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    largest = torch.maximum(low.abs(), high.abs()).clamp(min=torch.finfo(maps.dtype).tiny)
    low, high, maps = low / largest, high / largest, maps / largest  # so that no difference overflows
    span = high - low
    return torch.where(span > 0, (maps - low) / span.where(span > 0, 1.0), torch.zeros_like(maps))


def ranks(maps: Tensor) -> Tensor:
    """The place `(N, H·W)`, from 0, of each pixel in falling order of the map; ties in raster order."""
    flat = maps.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)
