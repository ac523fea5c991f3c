"""What is done to features before the SVM sees them: nothing, division by the L2 norm, or standardisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from camlucida.features.extract import Block

Normalise = Literal["none", "l2", "standard"]
NORMALISE: dict[str, str] = {
    "none": "as they are",
    "l2": "each block divided by its L2 norm, and the whole by its own again (VGG paper, appendix B)",
    "standard": "mean of the training pictures subtracted, divided by their standard deviation",
}
LEAST = 1e-12  # a norm below it does not divide


def l2_scale(features: NDArray, blocks: Sequence[Block]) -> NDArray[np.float64]:
    """The factor of each number of `features (N, D)`: 1/‖block‖, times 1/‖all blocks so divided‖ where there are several.
    `features` times it is the normalised vector."""
    given = np.asarray(features, np.float64)
    scale = np.empty_like(given)
    for block in blocks:
        part = slice(block.start, block.stop)
        scale[:, part] = 1 / np.linalg.norm(given[:, part], axis=1, keepdims=True).clip(min=LEAST)
    if len(blocks) > 1:
        scale /= np.linalg.norm(given * scale, axis=1, keepdims=True).clip(min=LEAST)
    return scale


def l2(features: NDArray, blocks: Sequence[Block]) -> NDArray[np.float64]:
    """Features `(N, D)` with norm 1, every block weighing the same."""
    return np.asarray(features, np.float64) * l2_scale(features, blocks)
