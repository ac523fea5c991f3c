"""FullGrad ("Full-Gradient Representation for Neural Network Visualization")."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from camlucida import taps
from camlucida.errors import UnsupportedError, UsageError
from camlucida.maps.gradients import SCALES, Scored, check_differentiable, precise, scored
from camlucida.networks.network import Network
from camlucida.targets import ClassTarget, Target
from camlucida.values import Batch, Grid, HeatMaps

EXACT = {torch.float16: 0.1, torch.bfloat16: 0.1}  # of the sum of all terms' sizes; others: 1e-3
IN_THE_MAP = ("conv", "batch_norm")


@dataclass(frozen=True)
class FullGradients:
    """y as a sum: `pixels (N, K)` = ∇y · x, `biases (N, K, B)` = b · ∂y/∂b of each of the B operations that add
    something, `scores (N, K)` = y, `operations` their names; `bent`: operations that no straight pieces make."""

    pixels: Tensor
    biases: Tensor
    scores: Tensor
    operations: tuple[str, ...]
    bent: tuple[str, ...]

    @property
    def residual(self) -> Tensor:
        """What the sum leaves of y, `(N, K)`: 0 up to rounding for a network of straight pieces."""
        return self.scores - self.pixels - self.biases.sum(2)


@dataclass(frozen=True)
class FullGrad:
    """M = ψ(∇y ⊙ x) + Σ_l ψ(b_l ⊙ ∂y/∂b_l), each summed over channels, one value ≥ 0 per pixel of the view; ψ: absolute
    value, scaled to 0 … 1, stretched over the view. l: convolutions and batch norms, whose bias is β − γμ/√(σ² + ε).

    `scale`: over what ψ takes minimum and maximum of a picture, all channels of a `layer` (the authors' code) or each
    `channel` (the paper's formula as it stands). Exact: for networks of straight pieces (convolution, ReLU, batch norm,
    pooling, linear …) ∇y · x and all b · ∂y/∂b sum to y (section 3); `parts` gives them. Where they do not, the network
    or target is refused with UnsupportedError, naming the operations; `complete=False` gives the map all the same.
    Costs one forward pass and, per target, one backward pass through the whole network.
    """

    scale: Literal["layer", "channel"] = "layer"
    complete: bool = True
    differentiable: bool = False
    name: ClassVar[str] = "full-grad"
    uses_gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.scale not in ("layer", "channel"):
            raise UsageError("FullGrad.scale", got=repr(self.scale), allowed="layer | channel")

    def __call__(self, network: Network, batch: Batch | Tensor, target: Target | None = None) -> HeatMaps:
        batch = Batch.of(batch)
        check_differentiable(self.differentiable)
        view = tuple(batch.pixels.shape[2:])
        with taps.borrowed(network.module):
            run, record = self._run(network, batch, target)
            maps, dead, parts = [], [], []
            for pixels, biases in self._terms(run, record):
                shown = [
                    self._stretched(term, view)
                    for one, term in zip(record.found, biases, strict=True)
                    if one.operation.startswith(IN_THE_MAP) and term.ndim == batch.pixels.ndim
                ]
                maps.append(torch.stack([self._stretched(pixels, view), *shown]).sum(0))
                dead.append(
                    torch.stack([(t == 0).reshape(len(pixels), -1).all(1) for t in [pixels, *biases]]).all(0)
                )
                parts.append(_sums(pixels, biases))
            if self.complete:
                _check(_full_gradients(parts, run, record), batch.pixels, network)
        ones = (1.0,) * len(view)
        return HeatMaps(
            torch.stack(maps, 1), run.bound.classes, run.scores.detach(),
            Grid(view, tuple(o / 2 for o in ones), ones, ones), batch.views, self.name, run.bound.words,
            logits=run.logits, no_gradient=torch.stack(dead, 1),
        )  # fmt: skip

    def parts(self, network: Network, batch: Batch | Tensor, target: Target | None = None) -> FullGradients:
        """The sums that make up y, and what they leave."""
        batch = Batch.of(batch)
        check_differentiable(self.differentiable)
        with taps.borrowed(network.module):
            run, record = self._run(network, batch, target)
            parts = [_sums(pixels, biases) for pixels, biases in self._terms(run, record)]
        return _full_gradients(parts, run, record)

    def _run(self, network: Network, batch: Batch, target: Target | None) -> tuple[Scored, taps.Constants]:
        with taps.constants(batch.pixels) as record:
            run = scored(
                network, batch, target or ClassTarget.predicted(), taps.PIXELS, "the pixels",
                "the network cuts it off (no_grad, detach, rounding): use cl.Occlusion()",
                differentiable=self.differentiable,
            )  # fmt: skip
        return run, record

    def _terms(self, run: Scored, record: taps.Constants) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Of each target ∇y ⊙ x and every b ⊙ ∂y/∂b, the latter with the shape of the operation's output."""
        x = precise(run.at if self.differentiable else run.at.detach(), self.differentiable)
        for k in range(run.scores.shape[1]):
            score, at = run.scores[:, k].sum(), [run.at, *(one.edge for one in record.found)]
            for scale in SCALES if run.half else (1.0,):
                gradients = torch.autograd.grad(
                    score * scale, at, retain_graph=True, create_graph=self.differentiable, allow_unused=True
                )
                if all(g is None or g.isfinite().all() for g in gradients):
                    break
            found = [None if g is None else precise(g, self.differentiable) / scale for g in gradients]
            pixels = torch.zeros_like(x) if found[0] is None else found[0] * x
            biases = []
            for one, gradient in zip(record.found, found[1:], strict=True):
                value = precise(one.value if self.differentiable else one.value.detach(), self.differentiable)
                biases.append(x.new_zeros(one.shape) if gradient is None else gradient * value)
            yield pixels, biases

    def _stretched(self, term: Tensor, view: tuple[int, ...]) -> Tensor:
        """ψ of a term `(N, channels, *cells)`, summed over channels: `(N, *view)`."""
        axes = tuple(range(1 if self.scale == "layer" else 2, term.ndim))
        size = term.abs()
        low, high = size.amin(axes, keepdim=True), size.amax(axes, keepdim=True)
        share = torch.where(high > low, (size - low) / torch.where(high > low, high - low, 1), 0 * size)
        mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(view)]
        return F.interpolate(share.sum(1, keepdim=True), view, mode=mode, align_corners=False)[:, 0]


def _sums(pixels: Tensor, biases: list[Tensor]) -> Tensor:
    """What each term sums to, `(N, 1 + B)`, the pixels' first."""
    pictures = len(pixels)
    rows = [term.reshape(pictures, -1).sum(1) for term in [pixels, *biases]]
    return torch.stack(rows, 1)


def _full_gradients(parts: list[Tensor], run: Scored, record: taps.Constants) -> FullGradients:
    sums = torch.stack(parts, 1)
    scores = run.scores if run.differentiable else run.scores.detach()
    names = tuple(one.operation for one in record.found)
    return FullGradients(sums[..., 0], sums[..., 1:], scores, names, tuple(record.bent))


def _check(parts: FullGradients, pixels: Tensor, network: Network) -> None:
    """Raises UnsupportedError where the parts are not all of y; a picture that is not finite says nothing."""
    parameter = next(network.module.parameters(), pixels)
    coarse = max(EXACT.get(parameter.dtype, 1e-3), 0.1 if network.precision.endswith("mixed") else 0)
    size = parts.scores.abs() + parts.pixels.abs() + parts.biases.abs().sum(2)
    missing = parts.residual.abs() > coarse * size
    if missing.any():
        n, k = missing.nonzero()[0].tolist()
        got = f"a sum that misses {float(parts.residual[n, k].detach()):.3g} of y = {float(parts.scores[n, k].detach()):.3g}"
        bent = ", ".join(parts.bent) or "a target that is not linear in the network's output"
        raise UnsupportedError(
            "FullGrad: the network or the target is not made of straight pieces", got=f"{got}; {bent}",
            do="cl.FullGrad(complete=False) gives the map all the same; or use another method",
        )  # fmt: skip
