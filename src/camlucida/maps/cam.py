"""Class activation mapping (CAM paper, section 2)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from camlucida import taps
from camlucida.errors import LayerError, TargetError, UnsupportedError
from camlucida.maps.gradients import check_differentiable, precise, scored
from camlucida.networks.network import Network
from camlucida.targets import Bound, ClassTarget, Target
from camlucida.values import Batch, HeatMaps


@dataclass(frozen=True)
class CAM:
    """M_c(x, y) = Σ_k w_ck f_k(x, y): one forward pass gives the maps of all classes; mean of the map + bias
    = logit.

    Exact where the head is pool → linear; linearised with each picture's own mean and deviation where a layer
    norm lies between. Takes targets that are linear in the logits. Raises UnsupportedError for any other
    head. `differentiable=True` keeps the graph to pixels and parameters, where CAM is exact; the weights w are then
    gradients of the logits.
    """

    layer: str | nn.Module | None = None
    differentiable: bool = field(default=False, kw_only=True)

    def __call__(self, network: Network, batch: Batch | Tensor, target: Target | None = None) -> HeatMaps:
        batch = Batch.of(batch)
        target = target or ClassTarget.predicted()
        check_differentiable(self.differentiable)
        found = network.pooled_structure(batch.pixels)
        head, layer = found.head, found.features
        if head is None or layer is None:
            raise UnsupportedError(
                "CAM needs a head of pooling → linear", got=f"another head on {network.card.name}",
                do="use cl.GradCAM(), or put the head on with cl.load(…, head='gap') and train it",
            )  # fmt: skip
        if self.layer is not None and network.find_layer(self.layer, batch.pixels).point != layer.point:
            raise LayerError(
                f"CAM at layer {self.layer!r}",
                allowed=f"{layer.name}, the layer before pooling",
                do="use cl.GradCAM(layer=…)",
            )
        if target.layers:
            raise TargetError(
                "CAM explains logits",
                got=f"a target inside {', '.join(target.layers)}",
                do="use cl.GradCAM(layer=…)",
            )
        if self.differentiable and not head.is_exact:
            raise UnsupportedError(
                "CAM(differentiable=True)", got="a norm between pooling and the linear layer", allowed="pooling → linear",
                do="use cl.GradCAM(differentiable=True)",
            )  # fmt: skip
        with taps.borrowed(network.module):
            run = scored(
                network, batch, target, layer.point, f"layer {layer.name}", "the network cuts it off (no_grad, detach)",
                differentiable=self.differentiable, needs_gradient=self.differentiable,
            )  # fmt: skip
            features = precise(layer.cells(run.at), self.differentiable)
            weight, shift, _ = head.linear(features.detach())
            weights = _chosen(run.bound, weight, len(features))
            if self.differentiable:  # the same with a graph: ∂y/∂f, summed over the cells
                weights = torch.stack([layer.cells(g).flatten(2).sum(2) for g in run.gradients()], 1)
            values = weights @ (features.flatten(2) + (0 if self.differentiable else shift[..., None]))
        return HeatMaps(
            values.unflatten(2, features.shape[2:]), run.bound.classes, run.scores.detach(),
            replace(layer, size=tuple(features.shape[2:])).grid(tuple(batch.pixels.shape[2:])), batch.views, "cam", run.bound.words,
            layer.name, logits=run.logits,
        )  # fmt: skip


def _chosen(bound: Bound, weight: Tensor, pictures: int) -> Tensor:
    """The weights `(N, K, channels)` of the bound scalars out of the head's `(N or 1, C, channels)`."""
    if bound.coefficients is not None:
        return bound.coefficients.float() @ weight
    if bound.classes is None or not bound.linear:
        raise TargetError(
            "CAM explains what is linear in the logits",
            got=bound.words,
            do="use ClassTarget or MarginTarget, or another method",
        )
    if weight.shape[0] == 1:
        return weight[0][bound.classes]
    return torch.gather(weight, 1, bound.classes[..., None].expand(-1, -1, weight.shape[2]))
