"""The ten-crop class activation map of the CAM paper's released code (section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camlucida.images.read import read_picture
from camlucida.maps.cam import CAM
from camlucida.maps.merge import Views, merge, of_classes
from camlucida.networks.network import Network
from camlucida.targets import ClassTarget
from camlucida.values import Batch, Size


@dataclass(frozen=True)
class TenCrop:
    """`maps`: of each picture `(K, H, W)` in its own pixels, ≥ 0, each divided by its maximum; `classes (N, K)`;
    `probabilities (N, C)`: mean over the ten crops."""

    maps: tuple[Tensor, ...]
    classes: Tensor
    probabilities: Tensor


def ten_crop_cam(network: Network, images: Sequence[Any], target: ClassTarget | None = None) -> TenCrop:
    """CAMs of ten crops of each picture, pasted where they were cut, as a sum of absolute values.

    `images`: a few paths, PIL pictures, arrays or tensors (`localize(…, views="ten-crop")` streams); `target`: classes,
    by default that of the best mean probability. Raises UnsupportedError where the head is not pooling → linear.
    """
    shape, ten = network.card.preprocessing, Views(crops="ten-crop")
    pictures = [read_picture(image, shape.mean_colour) for image in images]
    views = [ten.of(Size(one.height, one.width), shape) for one in pictures]
    every = []
    for crop in zip(*views, strict=True):
        pixels = [shape.pixels(one, view) for one, view in zip(pictures, crop, strict=True)]
        batch = Batch(shape.normalise(torch.stack(pixels)).to(network.device), crop)
        every.append(CAM()(network, batch, ClassTarget.all()))
    probabilities = torch.stack([network.probabilities(one.scores) for one in every]).mean(0)
    classes = (target or ClassTarget.predicted()).classes(probabilities)
    canvases = merge([of_classes(one, classes) for one in every], how="absolute")
    tiny = torch.finfo(torch.float32).tiny
    maps = tuple(one / one.amax((1, 2), keepdim=True).clamp(min=tiny) for one in canvases)
    return TenCrop(maps, classes, probabilities)
