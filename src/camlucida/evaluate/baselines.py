"""What needs no network: figures mean little without these beside them. Constant boxes are in `localization`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from camlucida.values import Size


def centre_gaussian(size: Size, spread: float = 0.25) -> NDArray[np.float64]:
    """The same map `(H, W)` for every picture: a Gaussian in the middle, 0 to 1, whose standard deviation is this share of
    each side, so that its boxes are centred and have the picture's shape."""
    y = (np.arange(size.height) + 0.5) / size.height - 0.5
    x = (np.arange(size.width) + 0.5) / size.width - 0.5
    return np.exp(-(y[:, None] ** 2 + x[None] ** 2) / (2 * spread**2))
