"""Parts that the papers' networks share: widths, contrast normalisation, Caffe's pooling, preprocessing, initial weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from camlucida.errors import NetworkError
from camlucida.images.views import Preprocessing

MEAN_RGB = (123.0, 117.0, 104.0)  # of ILSVRC's training pictures


class Classifier(nn.Module):
    """Pixels `(N, 3, H, W)` → `features` → `classifier` → logits `(N, num_classes)`.

    `preprocessing`: how the paper shows it a picture; a card starts from it.
    """

    def __init__(self, features: nn.Module, classifier: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.features, self.classifier, self.preprocessing = features, classifier, preprocessing

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.features(pixels))


def scaled(channels: int, width: float) -> int:
    """Channels times the width multiplier, to the nearest multiple of 4, at least 4: two groups always divide them."""
    if width <= 0:
        raise NetworkError("width", got=width, allowed="> 0")
    return channels if width == 1 else max(4, round(channels * width / 4) * 4)


def contrast_norm() -> nn.Module:
    """a / (2 + 1e-4 · Σ a² over 5 adjacent maps)^0.75; PyTorch divides alpha by the 5 maps, the papers do not."""
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)


def max_pool(stride: int = 2, padding: int = 0) -> nn.Module:
    """3 × 3; a last window that is cut by the border counts, as in Caffe."""
    return nn.MaxPool2d(3, stride, padding, ceil_mode=True)


def preprocessing(size: int, full: int, *, any_size: bool, minimum: int) -> Preprocessing:
    """Shorter side 256 for the paper's own `full` input, in proportion for another `size`; the mean colour taken from
    pixels in 0…255."""
    return Preprocessing(
        size=round(256 * size / full), crop=size, scale=255.0, mean=MEAN_RGB, std=(1.0, 1.0, 1.0),
        any_size=any_size, minimum=minimum,
    )  # fmt: skip


def side_after(features: nn.Sequential, side: int) -> int:
    """Side of the map that a chain of convolutions and poolings makes of a square picture. Raises NetworkError where
    nothing is left."""
    asked = side
    for layer in features:
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
            sides: list[Any] = [layer.kernel_size, layer.stride, layer.padding]
            kernel, step, pad = (v if isinstance(v, int) else v[0] for v in sides)
            over, given = side + 2 * pad - kernel, side
            if isinstance(layer, nn.MaxPool2d) and layer.ceil_mode:
                side = -(-over // step) + 1
                side -= (side - 1) * step >= given + pad  # no window starts beyond the border
            else:
                side = over // step + 1
            if side < 1:
                raise NetworkError("size", got=asked, do="the maps vanish: give a larger input side")
    return side


def initialise(features: nn.Module) -> None:
    """He's initial weights, biases 0."""
    for layer in features.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
