"""Spatial frequencies, in cycles per pixel: their distance from zero in the plane of the two-dimensional spectrum."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

NYQUIST = 0.5
BANDS = {
    "low": (0.0, NYQUIST / 3),
    "middle": (NYQUIST / 3, 2 * NYQUIST / 3),
    "high": (2 * NYQUIST / 3, math.inf),
}
"""Thirds of the way to the Nyquist rate; `high` holds the corners of the plane too. Of white noise they hold 9, 26 and 65 %."""


def high_energy(picture: NDArray, above: float = NYQUIST / 2) -> float:
    """Share of the spectral energy of a picture `(C, h, w)` at distances above `above`, by default half the Nyquist rate.
    Each channel under a Hann window, its mean under that window subtracted first, so that neither brightness nor borders
    count. White noise gives 1 − π/16 = 0.80. NaN for a picture without variation, or of less than 4 pixels a side."""
    values = np.asarray(picture, np.float64)
    height, width = values.shape[1:]
    if min(height, width) < 4:
        return math.nan
    window = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[None, 1:-1]
    values = values - (values * window).sum((1, 2), keepdims=True) / window.sum()
    if not (values**2).sum() > 1e-12 * (np.asarray(picture, np.float64) ** 2).sum():
        return math.nan
    energy = (np.abs(np.fft.fft2(values * window)) ** 2).sum(0)
    distance = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    return float(energy[distance > above].sum() / energy.sum())
