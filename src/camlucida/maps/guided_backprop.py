"""Guided backpropagation ("Striving for Simplicity: The All Convolutional Net", section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from camlucida import taps
from camlucida.errors import TargetError
from camlucida.maps.gradients import scored
from camlucida.networks.network import Network
from camlucida.targets import ClassTarget, Target
from camlucida.values import Batch, Reconstruction


@dataclass(frozen=True)
class GuidedBackprop:
    """The gradient ∂y/∂I that at every ReLU keeps only what is positive there twice: the activation on the way up, as
    in any gradient, and the gradient on the way down.

    `values (N, C, *spatial)` signed, one target a picture. The rule acts on ReLU operations (ReLU6 too), however they
    are called; other activations pass their plain gradient, and without any ReLU it is the gradient: the words say so.
    Costs one forward and one backward pass through the whole network. Raises LayerError where no gradient reaches
    the pixels, TargetError for several targets a picture.
    """

    def __call__(
        self, network: Network, batch: Batch | Tensor, target: Target | None = None
    ) -> Reconstruction:
        batch = Batch.of(batch)
        with taps.borrowed(network.module):
            run = scored(
                network, batch, target or ClassTarget.predicted(), taps.PIXELS, "the pixels",
                "the network cuts it off (no_grad, detach, rounding): use cl.Occlusion()",
            )  # fmt: skip
            only(run.scores, "guided-backprop")
            with taps.rectified(run.scores) as relus:
                (values,) = run.gradients()
        words = run.bound.words + ("" if relus else "; no ReLU on the way: the plain gradient")
        return Reconstruction(
            values, batch.views, "guided-backprop", words, scores=run.scores.detach()[:, 0],
            classes=None if run.bound.classes is None else run.bound.classes[:, 0],
        )  # fmt: skip


def only(scores: Tensor, method: str) -> None:
    """Raises TargetError unless `scores (N, K)` are of one target a picture."""
    if scores.shape[1] != 1:
        raise TargetError(
            f"{method} makes one picture of each picture",
            got=f"{scores.shape[1]} targets",
            allowed="one target a picture",
            do="call it once for each",
        )
