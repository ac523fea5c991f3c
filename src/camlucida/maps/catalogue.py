"""Methods by name. The command's flag, the contract test and the manifest read this dict; listing it imports
none."""

from __future__ import annotations

import importlib.util
from typing import Protocol

from torch import Tensor

from camlucida import specs
from camlucida.errors import UsageError
from camlucida.networks.network import Network
from camlucida.targets import Target
from camlucida.values import Batch, HeatMaps, Reconstruction

METHODS: dict[str, str] = {
    "ablation-cam": "camlucida.maps.ablation_cam:AblationCAM",
    "cam": "camlucida.maps.cam:CAM",
    "grad-cam": "camlucida.maps.grad_cam:GradCAM",
    "grad-cam++": "camlucida.maps.grad_cam_plus_plus:GradCAMPlusPlus",
    "xgrad-cam": "camlucida.maps.xgrad_cam:XGradCAM",
    "hires-cam": "camlucida.maps.hires_cam:HiResCAM",
    "element-wise-grad-cam": "camlucida.maps.element_wise_grad_cam:ElementWiseGradCAM",
    "layer-cam": "camlucida.maps.layer_cam:LayerCAM",
    "eigen-cam": "camlucida.maps.eigen_cam:EigenCAM",
    "eigen-grad-cam": "camlucida.maps.eigen_cam:EigenGradCAM",
    "full-grad": "camlucida.maps.full_grad:FullGrad",
    "bag-cam": "camlucida.maps.bag_cam:BagCAM",
    "pc1": "camlucida.maps.pc1:PC1",
    "occlusion": "camlucida.maps.occlusion:Occlusion",
    "rise": "camlucida.maps.rise:RISE",
    "saliency": "camlucida.maps.saliency:Saliency",
    "smooth-grad": "camlucida.maps.smooth_grad:SmoothGrad",
    "captum": "camlucida.maps.captum:Captum",
    "score-cam": "camlucida.maps.score_cam:ScoreCAM",
}
RECONSTRUCTIONS: dict[str, str] = {
    "guided-backprop": "camlucida.maps.guided_backprop:GuidedBackprop",
    "guided-grad-cam": "camlucida.maps.guided_grad_cam:GuidedGradCAM",
    "deconvnet": "camlucida.maps.deconvnet:DeconvNet",
}
"""Signed pictures, which no box rule takes; apart from METHODS for that reason."""

NEEDS = {"captum": "captum"}
"""Method → the optional package it runs on; `pip install 'camlucida[NAME]'` brings it."""


class Method(Protocol):
    """Stateless: options are fields. Takes a batch of N pictures (or bare pixels) and a target of K scalars
    each."""

    def __call__(self, network: Network, batch: Batch | Tensor, target: Target | None = None) -> HeatMaps: ...


class Reconstructor(Protocol):
    """As a Method, for one target a picture."""

    def __call__(
        self, network: Network, batch: Batch | Tensor, target: Target | None = None
    ) -> Reconstruction: ...


def method(spec: str) -> Method:
    """A method by name, options after a colon: `grad-cam`, `occlusion:patch=16,stride=4`. Raises
    UsageError."""
    return as_heat_map(any_method(spec), spec)


def as_heat_map(made: object, spec: str | None = None) -> Method:
    """The method itself, where it gives heat maps. Raises UsageError for one that gives signed pictures."""
    ours = type(made).__module__.startswith("camlucida.maps.")
    of = getattr(made, "of", None) if ours else None  # smooth-grad:of=guided-backprop
    for one in (made, any_method(of) if isinstance(of, str) else of):
        if f"{type(one).__module__}:{type(one).__name__}" in RECONSTRUCTIONS.values():
            raise UsageError(
                f"method {spec or describe(made)}",
                got="a signed picture, which is no heat map",
                allowed=", ".join(available()),
                do=f"camlucida explain --methods {spec or describe(made)} shows it",
            )
    return made  # type: ignore[return-value]


def any_method(spec: str) -> Method | Reconstructor:
    """As `method`, of METHODS and RECONSTRUCTIONS."""
    return specs.build(spec, {**METHODS, **RECONSTRUCTIONS}, "method")  # type: ignore[return-value]


def describe(made: object) -> str:
    """The spec of a method; `any_method` reads it back."""
    return specs.describe(made, {**METHODS, **RECONSTRUCTIONS})


def available() -> tuple[str, ...]:
    """The names of METHODS whose packages are installed."""
    return tuple(
        name for name in METHODS if name not in NEEDS or importlib.util.find_spec(NEEDS[name]) is not None
    )


def for_network(network: Network, batch: Batch) -> Method:
    """CAM where the network's head is pool → linear, else Grad-CAM."""
    return method("cam" if network.pooled_structure(batch.pixels).head is not None else "grad-cam")
