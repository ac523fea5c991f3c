"""SmoothGrad ("SmoothGrad: removing noise by adding noise", sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from camlucida import taps
from camlucida.errors import UsageError
from camlucida.maps.catalogue import Method, Reconstructor, any_method
from camlucida.maps.deconvnet import DeconvNet
from camlucida.maps.gradients import check_differentiable
from camlucida.maps.saliency import Saliency
from camlucida.networks.network import Network
from camlucida.targets import Bound, ClassTarget, Output, Target
from camlucida.values import Batch, HeatMaps, Reconstruction


@dataclass(frozen=True)
class SmoothGrad:
    """The mean of a map over `n` copies of the picture with Gaussian noise on it.

    `of`: any method, as a spec or an object. `sigma`: the noise's σ as a share of the picture's range (highest minus
    lowest pixel value, as the network is given them). `mean`: of the values `signed` (the paper's), of their
    `absolute` values, or of their `squared` ones. For saliency it is the signed gradient that is averaged, before its
    largest magnitude over the channels is taken; for a method of RECONSTRUCTIONS the result is a Reconstruction.

    The target (the predicted class, a unit's strongest position) is that of the clean picture, and so are `scores` and
    `logits`. `seed` alone fixes the noise: the same for every picture of a batch. `differentiable=True` makes `of` so:
    the mean has the graph of every copy, whose noise grows with the picture's range. Costs n times what `of` costs;
    differentiable, n times its memory too.
    """

    of: str | Method | Reconstructor = "saliency"
    n: int = 50
    sigma: float = 0.15
    mean: Literal["signed", "absolute", "squared"] = "signed"
    seed: int = 0
    differentiable: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.sigma < float("inf"):
            raise UsageError("SmoothGrad", got=f"n {self.n}, sigma {self.sigma}", allowed="n ≥ 1, sigma ≥ 0")
        if self.mean not in ("signed", "absolute", "squared"):
            raise UsageError("SmoothGrad.mean", got=repr(self.mean), allowed="signed | absolute | squared")
        if isinstance(self._of, (SmoothGrad, DeconvNet)):
            raise UsageError(
                "SmoothGrad.of",
                got=type(self._of).__name__,
                allowed="what is made of gradients: saliency, guided-backprop, guided-grad-cam, grad-cam …",
            )
        if self.differentiable and "differentiable" not in {one.name for one in fields(self._of)}:
            raise UsageError(
                "SmoothGrad(differentiable=True)",
                got=f"of {type(self._of).__name__}",
                allowed="of a method with differentiable=True: saliency, grad-cam …",
            )

    @property
    def method(self) -> Method | Reconstructor:
        """What is averaged."""
        return replace(self._of, differentiable=True) if self.differentiable else self._of

    @property
    def _of(self) -> Any:
        return any_method(self.of) if isinstance(self.of, str) else self.of

    def __call__(
        self, network: Network, batch: Batch | Tensor, target: Target | None = None
    ) -> HeatMaps | Reconstruction:
        batch = Batch.of(batch)
        check_differentiable(self.differentiable)
        method = self.method
        fixed, scores, logits = on_clean(network, batch, target or ClassTarget.predicted())
        total: Tensor | float = 0.0
        dead: list[Tensor] = []
        for pixels in noisy(batch.pixels, self.n, self.sigma, self.seed):
            copy = replace(batch, pixels=pixels)
            if isinstance(method, Saliency):
                values, run = method.gradients(network, copy, fixed)
                found: HeatMaps | Reconstruction = method.maps(values, run, batch)
            else:
                found = method(network, copy, fixed)
                values = found.values
            if isinstance(found, HeatMaps) and found.no_gradient is not None:
                dead.append(found.no_gradient)
            total = (
                total + {"signed": values, "absolute": values.abs(), "squared": values.square()}[self.mean]
            )
        mean = torch.as_tensor(total) / self.n
        name = f"smooth-grad of {found.method}"
        if isinstance(found, Reconstruction):
            return replace(found, values=mean, scores=scores[:, 0], method=name, seed=self.seed)
        mean = method.maps(mean, run, batch).values if isinstance(method, Saliency) else mean
        none = torch.stack(dead).all(0) if dead else None
        return replace(
            found, values=mean, scores=scores, logits=logits, no_gradient=none, method=name, seed=self.seed
        )


def noisy(pixels: Tensor, n: int, sigma: float, seed: int) -> Iterator[Tensor]:
    """n copies of pictures `(N, C, *spatial)` under Gaussian noise of σ = sigma × each picture's range; one draw for all
    pictures of a copy, so that none depends on its neighbours."""
    generator = torch.Generator().manual_seed(seed)
    low, high = pixels.flatten(1).aminmax(dim=1)
    spread = (sigma * (high - low)).view(-1, *(1,) * (pixels.ndim - 1))
    for _ in range(n):
        noise = torch.randn(pixels.shape[1:], generator=generator, dtype=torch.float32)
        yield pixels + spread * noise.to(pixels)


@dataclass(frozen=True)
class Fixed:
    """A target as it was bound on other pixels: the same classes and positions again."""

    bound: Bound
    layers: tuple[str, ...]

    def bind(self, output: Output) -> Bound:
        return self.bound


def on_clean(network: Network, batch: Batch, target: Target) -> tuple[Fixed, Tensor, Tensor | None]:
    """The target fixed on these pictures, its scores `(N, K)` float32 and the logits, where the output is logits."""
    layers = {name: network.find_layer(name, batch.pixels) for name in target.layers}
    with taps.borrowed(network.module):
        run = network.run(batch.pixels, [one.point for one in layers.values()])
        output = Output(run.output, {n: one.cells(run.tapped[one.point]) for n, one in layers.items()})
        bound = target.bind(output)
        return (
            Fixed(bound, tuple(target.layers)),
            bound.scores(output, None).detach().float(),
            output.any_logits(),
        )
