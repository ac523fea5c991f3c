"""What every gradient method begins with: the target's scores, and their gradients at one tensor of the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from camlucida.errors import LayerError
from camlucida.networks.network import Network
from camlucida.taps import Point
from camlucida.targets import Bound, Output, Target
from camlucida.values import Batch


@dataclass(frozen=True)
class Scored:
    """One run: the tensor `at` the point, and the target's `scores (N, K)` float32, whose graph reaches down to it;
    `logits (N, C)` where the output is logits."""

    at: Tensor
    scores: Tensor
    bound: Bound
    logits: Tensor | None
    half: bool

    def gradients(self) -> Iterator[Tensor]:
        """∂(sum over pictures of score k)/∂`at` in float32, for each k of K."""
        for k in range(self.scores.shape[1]):
            yield _gradient(self.scores[:, k].sum(), self.at, self.half)


def scored(network: Network, batch: Batch, target: Target, at: Point, where: str, do: str) -> Scored:
    """Runs the network up to the target's scores; call inside `taps.borrowed`. Raises LayerError where no gradient
    reaches `at`, in the words of `where` and `do`."""
    layers = {name: network.find_layer(name, batch.pixels) for name in target.layers}
    points = dict.fromkeys([at, *(one.point for one in layers.values())])
    run = network.run(batch.pixels, points, gradient_at=at)
    output = Output(run.output, {n: one.cells(run.tapped[one.point]) for n, one in layers.items()})
    bound = target.bind(output)
    scores = bound.scores(output, None).float()
    if not scores.requires_grad:
        raise LayerError(f"no gradient reaches {where}", do=do)
    parameter = next(network.module.parameters(), None)
    half = network.precision == "16-mixed" or (parameter is not None and parameter.dtype == torch.float16)
    return Scored(run.tapped[at], scores, bound, output.any_logits(), half)


def _gradient(score: Tensor, at: Tensor, half: bool) -> Tensor:
    """In float16 the share of one cell of a large map rounds to zero, so the score is scaled up by as much as each
    picture's numbers bear."""
    found = torch.full_like(at, torch.nan, dtype=torch.float32)
    for scale in (2.0**14, 2.0**7, 1.0) if half else (1.0,):
        (gradient,) = torch.autograd.grad(score * scale, at, retain_graph=True, allow_unused=True)
        if gradient is None:
            return torch.zeros_like(found)
        unfinished = ~found.flatten(1).isfinite().all(1)
        found[unfinished] = gradient[unfinished].float() / scale
        if found.isfinite().all():
            break
    return found
