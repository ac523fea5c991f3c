"""camlucida shows what a convolutional network sees in a picture, where it sees it, and how far that may be trusted."""

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name → where it lives. Names are looked up when first used, so that importing camlucida does not import torch.
_PUBLIC = {
    "load": "camlucida.networks.catalogue",
    "wrap": "camlucida.networks.catalogue",
    "Network": "camlucida.networks.network",
    "Card": "camlucida.networks.cards",
    "localize": "camlucida.pipeline",
    "doctor": "camlucida.diagnosis",
    "Diagnosis": "camlucida.diagnosis",
    "Finding": "camlucida.diagnosis",
    "CAM": "camlucida.maps.cam",
    "GradCAM": "camlucida.maps.grad_cam",
    "GradCAMPlusPlus": "camlucida.maps.grad_cam_plus_plus",
    "XGradCAM": "camlucida.maps.xgrad_cam",
    "HiResCAM": "camlucida.maps.hires_cam",
    "ElementWiseGradCAM": "camlucida.maps.element_wise_grad_cam",
    "LayerCAM": "camlucida.maps.layer_cam",
    "EigenCAM": "camlucida.maps.eigen_cam",
    "EigenGradCAM": "camlucida.maps.eigen_cam",
    "FullGrad": "camlucida.maps.full_grad",
    "BagCAM": "camlucida.maps.bag_cam",
    "PC1": "camlucida.maps.pc1",
    "Occlusion": "camlucida.maps.occlusion",
    "Saliency": "camlucida.maps.saliency",
    "SmoothGrad": "camlucida.maps.smooth_grad",
    "GuidedBackprop": "camlucida.maps.guided_backprop",
    "GuidedGradCAM": "camlucida.maps.guided_grad_cam",
    "DeconvNet": "camlucida.maps.deconvnet",
    "Captum": "camlucida.maps.captum",
    "ScoreCAM": "camlucida.maps.score_cam",
    "AblationCAM": "camlucida.maps.ablation_cam",
    "RISE": "camlucida.maps.rise",
    "FractionOfMax": "camlucida.boxes",
    "Quantile": "camlucida.boxes",
    "FixedLevel": "camlucida.boxes",
    "TightLoose": "camlucida.boxes",
    "GraphCut": "camlucida.boxes",
    "ClassTarget": "camlucida.targets",
    "ProbabilityTarget": "camlucida.targets",
    "MarginTarget": "camlucida.targets",
    "BinaryTarget": "camlucida.targets",
    "RegressionTarget": "camlucida.targets",
    "UnitTarget": "camlucida.targets",
    "RegionTarget": "camlucida.targets",
    "CallableTarget": "camlucida.targets",
    "Size": "camlucida.geometry",
    "Box": "camlucida.geometry",
    "ScoredBox": "camlucida.geometry",
    "View": "camlucida.geometry",
    "Batch": "camlucida.values",
    "Label": "camlucida.values",
    "Prediction": "camlucida.values",
    "Grid": "camlucida.geometry",
    "HeatMaps": "camlucida.values",
    "Reconstruction": "camlucida.values",
    "Localization": "camlucida.values",
    "CamlucidaError": "camlucida.errors",
    "UsageError": "camlucida.errors",
    "InputError": "camlucida.errors",
    "NetworkError": "camlucida.errors",
    "TargetError": "camlucida.errors",
    "LayerError": "camlucida.errors",
    "UnsupportedError": "camlucida.errors",
}
_MODULES = (
    "boxes",
    "evaluate",
    "features",
    "images",
    "maps",
    "metrics",
    "networks",
    "probes",
    "render",
    "report",
    "train",
)

__all__ = ["__version__", *_PUBLIC, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"camlucida.{name}")
    raise AttributeError(f"module 'camlucida' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
