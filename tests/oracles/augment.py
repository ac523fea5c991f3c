"""The colour shift of training pictures, one pixel after another (AlexNet paper, section 4.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Eigenvectors, one a row, and eigenvalues of ImageNet's RGB covariance, as published with fb.resnet.torch.
VECTORS = [(-0.5675, -0.5808, -0.5836), (0.7192, -0.0045, -0.6948), (0.4009, -0.8140, 0.4203)]
VALUES = [0.2175, 0.0188, 0.0045]


def colour_shift(
    pixels: NDArray[np.uint8], factors: tuple[float, float, float] | None, alphas: tuple[float, ...] | None
) -> NDArray[np.float64]:
    """`factors`: brightness, contrast, saturation; `alphas`: along the components. Unrounded, clipped."""

    def grey(colour):
        return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]

    height, width = pixels.shape[:2]
    colours = [[[float(v) for v in pixels[y, x]] for x in range(width)] for y in range(height)]
    if factors is not None:
        brightness, contrast, saturation = factors
        for row in colours:
            for colour in row:
                own = grey(colour)
                colour[:] = [own + saturation * (v - own) for v in colour]
        mean = sum(grey(colour) for row in colours for colour in row) / (height * width)
        for row in colours:
            for colour in row:
                colour[:] = [brightness * (mean + contrast * (v - mean)) for v in colour]
    if alphas is not None:
        for channel in range(3):
            shift = sum(a * v * vector[channel] for a, v, vector in zip(alphas, VALUES, VECTORS, strict=True))
            for row in colours:
                for colour in row:
                    colour[channel] += 255 * shift
    return np.clip(np.array(colours), 0, 255)
