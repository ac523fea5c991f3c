"""One pass through the network, seen from inside: what came into its batch norms and its last linear layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from camlucida import taps
from camlucida.images.views import Preprocessing
from camlucida.networks.network import Network, logits_of
from camlucida.values import View


@dataclass(frozen=True)
class Inside:
    """One pass over a picture and its mirror image. `norms`: for each batch norm over cells the mean and variance of
    what came in, and those it remembers from training, `(4, channels)`; `given (N, D)`: what the last linear layer
    got; its `weight (C, D)` and `bias (C,)`; `parameter`: the tensor behind that weight."""

    logits: Tensor
    norms: tuple[Tensor, ...]
    given: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    parameter: Tensor | None = None


def inside(net: Network, pixels: Tensor) -> Inside:
    with taps.borrowed(net.module):
        trace = taps.trace(net.module, net.forward, pixels.to(net.device))
        logits = logits_of(trace.output).float()
        norms = []
        for operation in trace.operations:
            given = [*operation.args, *operation.kwargs.values()]
            if operation.name != "batch_norm" or given[0].ndim != pixels.ndim or given[1] is None:
                continue
            x = given[0].float().movedim(1, 0).flatten(1)
            norms.append(
                torch.stack(
                    [x.mean(1), x.var(1, unbiased=False), given[1].float(), given[2].float()]
                ).detach()
            )
        for operation in reversed(trace.operations):
            if operation.name not in ("linear", "conv1d", "conv2d", "conv3d"):
                continue
            x, weight = operation.args[0], operation.args[1]
            bias = operation.argument(2, "bias")
            if weight.shape[0] != logits.shape[1] or math.prod(weight.shape[2:]) != 1:
                break
            cells = (
                x.flatten(2).mean(2)
                if operation.name != "linear"
                else x.reshape(len(x), -1, x.shape[-1]).mean(1)
            )
            bias = torch.zeros(len(weight), device=x.device) if bias is None else bias.detach().float()
            return Inside(
                logits, tuple(norms), cells.float(), weight.detach().flatten(1).float(), bias, weight
            )
    return Inside(logits, tuple(norms))


def twice(shape: Preprocessing, picture: Image.Image, view: View) -> Tensor:
    """The picture and its mirror image, as the network wants them."""
    pixels = shape.pixels(picture, view)
    return shape.normalise(torch.stack([pixels, pixels.flip(-1)]))
