"""Methods by name. The command's flag, the contract test and the manifest read this dict; listing it imports
none."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from camlucida import specs
from camlucida.networks.network import Network
from camlucida.targets import Target
from camlucida.values import Batch, HeatMaps

METHODS: dict[str, str] = {
    "ablation-cam": "camlucida.maps.ablation_cam:AblationCAM",
    "cam": "camlucida.maps.cam:CAM",
    "grad-cam": "camlucida.maps.grad_cam:GradCAM",
    "occlusion": "camlucida.maps.occlusion:Occlusion",
    "rise": "camlucida.maps.rise:RISE",
    "saliency": "camlucida.maps.saliency:Saliency",
    "score-cam": "camlucida.maps.score_cam:ScoreCAM",
}


class Method(Protocol):
    """Stateless: options are fields. Takes a batch of N pictures (or bare pixels) and a target of K scalars
    each."""

    def __call__(self, network: Network, batch: Batch | Tensor, target: Target | None = None) -> HeatMaps: ...


def method(spec: str) -> Method:
    """A method by name, options after a colon: `grad-cam`, `occlusion:patch=16,stride=4`. Raises
    UsageError."""
    return specs.build(spec, METHODS, "method")  # type: ignore[return-value]


def for_network(network: Network, batch: Batch) -> Method:
    """CAM where the network's head is pool → linear, else Grad-CAM."""
    return method("cam" if network.pooled_structure(batch.pixels).head is not None else "grad-cam")
