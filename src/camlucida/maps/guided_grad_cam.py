"""Guided Grad-CAM (Grad-CAM paper, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from camlucida.maps.grad_cam import GradCAM
from camlucida.maps.guided_backprop import GuidedBackprop
from camlucida.networks.network import Network
from camlucida.targets import Target
from camlucida.values import Batch, Reconstruction


@dataclass(frozen=True)
class GuidedGradCAM:
    """Guided backpropagation times Grad-CAM stretched over the pixels: fine like the one, of one class like the other.

    `layer`: Grad-CAM's. `values (N, C, *spatial)` signed, one target a picture; 0 wherever Grad-CAM is. Raises
    what GuidedBackprop and GradCAM raise.
    """

    layer: str | nn.Module | None = None

    def __call__(
        self, network: Network, batch: Batch | Tensor, target: Target | None = None
    ) -> Reconstruction:
        batch = Batch.of(batch)
        guided = GuidedBackprop()(network, batch, target)
        cam = GradCAM(self.layer)(network, batch, target)
        return replace(
            guided, values=guided.values * cam.in_view(), method="guided-grad-cam", layer=cam.layer
        )
