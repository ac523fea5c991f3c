"""What every gradient method shares: the target's scores, their gradients at one tensor of the run, and the walk from
activations and gradients at a layer to maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from camlucida import taps
from camlucida.errors import LayerError, UsageError
from camlucida.networks.network import Network
from camlucida.networks.structure import Layer
from camlucida.taps import Point
from camlucida.targets import Bound, ClassTarget, Output, Target
from camlucida.values import Batch, HeatMaps


@dataclass(frozen=True)
class Scored:
    """One run: the tensor `at` the point, and the target's `scores (N, K)` float32, whose graph reaches down to it;
    `logits (N, C)` where the output is logits. `differentiable`: the graph goes on to pixels and parameters, and
    float64 stays float64."""

    at: Tensor
    scores: Tensor
    bound: Bound
    logits: Tensor | None
    half: bool
    differentiable: bool = False

    def gradients(self) -> Iterator[Tensor]:
        """∂(sum over pictures of score k)/∂`at` in float32, for each k of K."""
        for k in range(self.scores.shape[1]):
            score = self.scores[:, k].sum()
            if self.differentiable:
                yield precise(_differentiable_gradient(score, self.at, self.half), True)
            else:
                yield _gradient(score, self.at, self.half)


def scored(
    network: Network, batch: Batch, target: Target, at: Point, where: str, do: str | Callable[[], str],
    *, differentiable: bool = False, needs_gradient: bool = True,
) -> Scored:  # fmt: skip
    """Runs the network up to the target's scores; call inside `taps.borrowed`. Raises LayerError where no gradient
    reaches `at`, in the words of `where` and `do`. `needs_gradient=False`: the tensor and the scores alone."""
    layers = {name: network.find_layer(name, batch.pixels) for name in target.layers}
    points = dict.fromkeys([at, *(one.point for one in layers.values())])
    graph_from = at if needs_gradient or differentiable else None
    run = network.run(batch.pixels, points, gradient_at=graph_from, keep_graph=differentiable)
    output = Output(run.output, {n: one.cells(run.tapped[one.point]) for n, one in layers.items()})
    bound = target.bind(output)
    scores = precise(bound.scores(output, None), differentiable)
    if needs_gradient and not scores.requires_grad:
        raise LayerError(f"no gradient reaches {where}", do=do if isinstance(do, str) else do())
    parameter = next(network.module.parameters(), None)
    half = network.precision == "16-mixed" or (parameter is not None and parameter.dtype == torch.float16)
    return Scored(run.tapped[at], scores, bound, output.any_logits(), half, differentiable)


def precise(tensor: Tensor, differentiable: bool) -> Tensor:
    """In float32; a float64 tensor that is to be differentiated stays what it is."""
    return tensor if differentiable and tensor.dtype == torch.float64 else tensor.float()


SCALES = (2.0**14, 2.0**7, 1.0)
"""In float16 the share of one cell of a large map rounds to zero, so the score is scaled up by as much as the numbers
bear."""


def _gradient(score: Tensor, at: Tensor, half: bool) -> Tensor:
    """In float16 each picture has the scale that its own numbers bear."""
    found = torch.full_like(at, torch.nan, dtype=torch.float32)
    for scale in SCALES if half else (1.0,):
        (gradient,) = torch.autograd.grad(score * scale, at, retain_graph=True, allow_unused=True)
        if gradient is None:
            return torch.zeros_like(found)
        unfinished = ~found.flatten(1).isfinite().all(1)
        found[unfinished] = gradient[unfinished].float() / scale
        if found.isfinite().all():
            break
    return found


def _differentiable_gradient(score: Tensor, at: Tensor, half: bool) -> Tensor:
    for scale in SCALES if half else (1.0,):
        (gradient,) = torch.autograd.grad(score * scale, at, create_graph=True, allow_unused=True)
        if gradient is None:
            return torch.zeros_like(at)
        gradient = precise(gradient, True) / scale
        if gradient.isfinite().all():
            break
    return gradient


@dataclass(frozen=True)
class GradientMethod:
    """A method whose maps are a formula of activations and gradients at one layer.

    `layer`: a name or a module; None: the tensor before pooling, else the last spatial layer. `differentiable=True`
    keeps the graph, for maps inside a training loss: `values` then has gradients with respect to pixels and parameters
    (float64 stays float64). Costs one forward pass and, per target, a backward pass through what lies above the layer
    only; differentiable, one through the whole network each.
    """

    layer: str | nn.Module | None = None
    differentiable: bool = field(default=False, kw_only=True)
    name: ClassVar[str]
    uses_gradients: ClassVar[bool] = True
    explains_the_target: ClassVar[bool] = True  # rather than the layer, whatever the target

    def formula(self, activations: Tensor, gradient: Tensor) -> Tensor:
        """The maps `(N, *cells)` of activations and gradients `(N, channels, *cells)`."""
        raise NotImplementedError

    def direction(self, gradient: Tensor, scores: Tensor) -> Tensor:
        """The gradient as the formula takes it; `scores (N,)`: what it is the gradient of."""
        return gradient

    def words(self, words: str) -> str:
        """What was explained."""
        return words

    def __call__(self, network: Network, batch: Batch | Tensor, target: Target | None = None) -> HeatMaps:
        batch = Batch.of(batch)
        target = target or ClassTarget.predicted()
        check_differentiable(self.differentiable)
        layer = network.find_layer(self.layer, batch.pixels)
        with taps.borrowed(network.module):
            run = scored(
                network, batch, target, layer.point, f"layer {layer.name}",
                lambda: f"choose a layer that the target depends on; live: {_live(network, batch, target)}",
                differentiable=self.differentiable, needs_gradient=self.uses_gradients,
            )  # fmt: skip
            at = run.at if self.differentiable else run.at.detach()
            activations = precise(layer.cells(at), self.differentiable)
            values, dead = self._maps(network, batch, layer, run, activations)
            grid = layer.grid(tuple(batch.pixels.shape[2:]))
        return HeatMaps(
            values, run.bound.classes, run.scores.detach(), grid, batch.views,
            self.name, self.words(run.bound.words), layer.name, logits=run.logits, no_gradient=dead,
        )  # fmt: skip

    def _maps(
        self, network: Network, batch: Batch, layer: Layer, run: Scored, activations: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The maps `(N, K, *cells)`, and for which no gradient reached the layer `(N, K)`."""
        maps, dead = [], []
        for k, gradient in enumerate(run.gradients()):
            cells = layer.cells(gradient)
            dead.append((cells == 0).flatten(1).all(1))
            if layer.prefix and dead[-1].all() and gradient.any():
                live = network.structure(batch.pixels).features
                raise LayerError(
                    f"layer {layer.name}: the gradient reaches its class token alone, none of its cells",
                    do=f"live: {live.name}" if live is not None else "choose an earlier layer: net.layers()",
                )
            scores = run.scores[:, k]
            cells = self.direction(cells, scores if self.differentiable else scores.detach())
            maps.append(self.formula(activations, cells))
        return torch.stack(maps, 1), torch.stack(dead, 1)


@dataclass(frozen=True)
class SignedMethod(GradientMethod):
    """A gradient method that tells for from against. `counterfactual=True`: the gradient with the opposite sign, which
    shows what, taken away, would raise the score (Grad-CAM paper, section 3.3)."""

    counterfactual: bool = field(default=False, kw_only=True)

    def direction(self, gradient: Tensor, scores: Tensor) -> Tensor:
        return -gradient if self.counterfactual else gradient

    def words(self, words: str) -> str:
        return f"what lowers the {words} (counterfactual)" if self.counterfactual else words


def check_differentiable(differentiable: bool) -> None:
    """Raises UsageError for a graph that inference mode would not let anyone use."""
    if differentiable and torch.is_inference_mode_enabled():
        raise UsageError(
            "differentiable=True inside torch.inference_mode()",
            do="leave inference_mode there, or call under `with torch.inference_mode(False):`",
        )


def _live(network: Network, batch: Batch, target: Target) -> str:
    """The last layers that the target depends on."""
    names = [one.name for one in network.structure(batch.pixels).layers if one.reached]
    ends = [network.find_layer(name, batch.pixels).name for name in target.layers]
    if ends:
        order = [one.name for one in network.structure(batch.pixels).layers]
        names = order[: max((order.index(end) for end in ends if end in order), default=0)] + ends
    return ", ".join(names[-5:]) or "none, see net.layers()"
