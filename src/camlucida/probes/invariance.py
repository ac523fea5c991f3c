"""Feature invariance (ZF paper, section 4.1): how far features move, and the probability of the true class falls, while a
picture is shifted, enlarged or turned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from camlucida import taps
from camlucida.errors import UnsupportedError, UsageError, nearest
from camlucida.networks.network import Network, logits_of
from camlucida.probes.feature_points import feature_points
from camlucida.taps import Point
from camlucida.values import Batch

SIDE = 224  # shifts are given in pixels of a view with this shorter side


@dataclass(frozen=True)
class Transformation:
    """`apply(pixels (N, C, H, W), amount)` → the same shape, on normalised pixels: what comes into the frame is 0, the
    mean colour. `magnitude(amount)`: how much of it that is, ≥ 0; `neutral`: the amount that changes nothing."""

    name: str
    unit: str
    neutral: float
    amounts: tuple[float, ...]
    apply: Callable[[Tensor, float], Tensor]
    magnitude: Callable[[float], float]


def shifted(pixels: Tensor, amount: float, axis: int) -> Tensor:
    """Moved down (axis 2) or right (axis 3) by `amount` pixels of 224, rounded to whole pixels of this view."""
    by, long = round(amount * min(pixels.shape[2:]) / SIDE), pixels.shape[axis]
    out = torch.zeros_like(pixels)
    kept = max(long - abs(by), 0)
    out.narrow(axis, min(max(by, 0), long), kept).copy_(pixels.narrow(axis, min(max(-by, 0), long), kept))
    return out


def enlarged(pixels: Tensor, amount: float) -> Tensor:
    """Scaled about its centre, bilinear, the frame staying as it is."""
    if amount <= 0:
        raise UsageError("scale", got=f"{amount:g}", allowed="> 0")
    return pixels.clone() if amount == 1 else _sampled(pixels, ((1 / amount, 0.0), (0.0, 1 / amount)))


def turned(pixels: Tensor, amount: float) -> Tensor:
    """Turned about its centre, counter-clockwise by `amount` degrees, bilinear; exact by half turns, and by quarter turns
    where it is square."""
    quarters, rest = divmod(amount % 360, 90)
    square = pixels.shape[2] == pixels.shape[3]
    if rest == 0 and (square or quarters % 2 == 0):
        return torch.rot90(pixels, int(quarters), (2, 3)).contiguous()
    cos, sin = math.cos(math.radians(amount)), math.sin(math.radians(amount))
    return _sampled(pixels, ((cos, -sin), (sin, cos)))


def _sampled(pixels: Tensor, matrix: tuple[tuple[float, float], tuple[float, float]]) -> Tensor:
    """Each pixel from the place `matrix · (x, y)`, both measured from the centre."""
    height, width = pixels.shape[2:]
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64) + 0.5 - height / 2,
        torch.arange(width, dtype=torch.float64) + 0.5 - width / 2,
        indexing="ij",
    )
    (a, b), (c, d) = matrix
    grid = torch.stack([(a * x + b * y) * 2 / width, (c * x + d * y) * 2 / height], -1).to(pixels)
    return F.grid_sample(
        pixels, grid.expand(len(pixels), -1, -1, -1), "bilinear", "zeros", align_corners=False
    )


SHIFTS = tuple(float(a) for a in range(-60, 61, 4))
TRANSFORMATIONS = {
    one.name: one
    for one in (
        Transformation("vertical-shift", "pixels of 224", 0, SHIFTS, lambda x, a: shifted(x, a, 2), abs),
        Transformation("horizontal-shift", "pixels of 224", 0, SHIFTS, lambda x, a: shifted(x, a, 3), abs),
        Transformation(
            "scale", "times", 1, tuple(round(1 + 0.05 * i, 2) for i in range(17)), enlarged, lambda a: abs(a - 1)
        ),
        Transformation(
            "rotation", "degrees", 0, tuple(float(a) for a in range(0, 360, 10)), turned,
            lambda a: min(a % 360, 360 - a % 360),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Invariance:
    """Of P pictures, L layers and A amounts: `distances (P, L, A)`, Euclidean, between the feature vectors of the intact and
    the transformed picture; `norms (P, L)` of the intact picture's vector; `probabilities (P, A)` of `labels (P,)`,
    `intact (P,)` of the picture as it is (logits where the network gives no probabilities).

    `apart (L,)`: the root-mean-square distance between the vectors of two different pictures, over all pairs of them,
    √(2 (P Σ‖f‖² − ‖Σf‖²) / (P (P − 1))); NaN for one picture, or where
    pictures of several sizes give vectors of several lengths."""

    transformation: str
    amounts: tuple[float, ...]
    layers: tuple[str, ...]
    labels: tuple[int, ...]
    distances: NDArray[np.float64]
    norms: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    intact: NDArray[np.float64]
    apart: NDArray[np.float64]

    @property
    def relative(self) -> NDArray[np.float64]:
        """Distances over the norm of the intact picture's vector, `(P, L, A)`, so that layers compare; NaN where it is 0."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.norms[..., None] > 0, self.distances / self.norms[..., None], np.nan)

    def curve(self, values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The mean of `values (P, A)` over the pictures and over the amounts of one magnitude (both directions of a shift;
        10° and 350°): magnitudes, ascending, and means."""
        each = np.array([round(TRANSFORMATIONS[self.transformation].magnitude(a), 9) for a in self.amounts])
        magnitudes = np.unique(each)
        with np.errstate(invalid="ignore"):
            means = np.array([_mean(values[:, each == m]) for m in magnitudes])
        return magnitudes, means

    def movement(self, layer: int) -> Movement:
        """The figures of a layer's mean curve of relative distance."""
        magnitude, mean = self.curve(self.relative[:, layer])
        top, span = float(mean.max()), float(magnitude[-1] - magnitude[0])
        if not (np.isfinite(top) and top > 0 and span > 0):
            return Movement(math.nan, math.nan, math.nan, top)
        first = next((i for i, m in enumerate(magnitude) if m > 0), 0)
        return Movement(
            float(mean[first] / magnitude[first]),
            float(np.interp(magnitude[0] + span / 10, magnitude, mean) / top),
            float(np.trapezoid(mean, magnitude) / span / top),
            top,
        )

    @property
    def kept(self) -> float:
        """The mean probability over the range of magnitudes, over that of the intact pictures; NaN where it is no
        positive number."""
        magnitude, mean = self.curve(self.probabilities)
        whole, span = _mean(self.intact), float(magnitude[-1] - magnitude[0])
        return float(np.trapezoid(mean, magnitude) / span / whole) if whole > 0 and span > 0 else math.nan


@dataclass(frozen=True)
class Movement:
    """`rate`: relative distance per unit of the transformation, over the smallest step; `at_a_tenth`: which part of its
    maximum the curve has reached after a tenth of the range (a straight line: 0.1; at once: 1); `area`: under the curve over
    its maximum (straight: 0.5; at once: 1); `farthest`: the maximum."""

    rate: float
    at_a_tenth: float
    area: float
    farthest: float


def invariance(
    network: Network,
    pictures: Sequence[Batch | Tensor],
    labels: Sequence[int] | None = None,
    layers: Sequence[str] | None = None,
    transformation: str = "vertical-shift",
    amounts: Sequence[float] | None = None,
    batch: int = 16,
) -> Invariance:
    """One transformation of some pictures, each a batch of one or more (sizes may differ from batch to batch).

    `labels`: the true classes; None: those predicted for the intact pictures. `layers`: names of modules, spatial or fully
    connected; None: layer 1 and the last hidden layer (`feature_points`). `amounts`: of `TRANSFORMATIONS[transformation]`
    where nothing is said: shifts −60…60 pixels of 224 (scaled with the view's shorter side), scale 1…1.8, rotation 0…350°.
    `batch`: pictures a forward pass. Raises UsageError, LayerError; UnsupportedError for input that is not 2-D.
    """
    if transformation not in TRANSFORMATIONS:
        raise UsageError(
            "transformation", got=repr(transformation), do=nearest(transformation, TRANSFORMATIONS)
        )
    how = TRANSFORMATIONS[transformation]
    steps = tuple(float(a) for a in (how.amounts if amounts is None else amounts))
    if len(steps) < 2 or len(set(steps)) < len(steps) or not np.isfinite(steps).all():
        raise UsageError(
            "amounts", got=", ".join(f"{a:g}" for a in steps), allowed="two or more different numbers"
        )
    each = [one for given in pictures for one in _one_by_one(given)]
    if not each:
        raise UsageError("invariance", got="no picture")
    if labels is not None and len(labels) != len(each):
        raise UsageError("labels", got=f"{len(labels)} for {len(each)} pictures", allowed="one each")
    points = feature_points(network, each[0], layers)
    found, sums = [], _Apart(len(points))
    for i, pixels in enumerate(each):
        label = None if labels is None else int(labels[i])
        found.append(_one(network, pixels, label, points, how, steps, batch, sums))
    classes, distances, norms, probabilities, intact = zip(*found, strict=True)
    return Invariance(
        transformation, steps, tuple(map(str, points)), classes, np.array(distances), np.array(norms),
        np.array(probabilities), np.array(intact), sums.result(),
    )  # fmt: skip


def _one_by_one(given: Batch | Tensor) -> tuple[Tensor, ...]:
    pixels = Batch.of(given).pixels
    if pixels.ndim != 4:
        got = f"pixels {tuple(pixels.shape)}"
        raise UnsupportedError("shifting, scaling and turning", got=got, allowed="(N, C, H, W)")
    return pixels.split(1)


def _one(
    network: Network, pixels: Tensor, label: int | None, points: tuple[Point, ...], how: Transformation,
    steps: tuple[float, ...], batch: int, sums: _Apart,
) -> tuple[int, NDArray, NDArray, NDArray, float]:  # fmt: skip
    """Class, distances (L, A), norms (L,), probabilities (A,) and the intact one of a picture."""
    whole, said = _features(network, pixels, points)
    if label is None:
        label = int(said[0].argmax())
    elif not 0 <= label < said.shape[1]:
        raise UsageError("labels", got=label, allowed=f"0…{said.shape[1] - 1}, the network's classes")
    intact = float(said[0, label])
    distances = np.zeros((len(points), len(steps)))
    probabilities = np.full(len(steps), intact)
    for first in range(0, len(steps), batch):
        rows, changed = [], []
        for a in range(first, min(first + batch, len(steps))):
            shown = how.apply(pixels, steps[a])
            if not torch.equal(shown, pixels):  # else it is the intact picture: distance 0, to the last bit
                rows.append(a)
                changed.append(shown)
        if not rows:
            continue
        moved, said = _features(network, torch.cat(changed), points)
        probabilities[rows] = said[:, label].numpy()
        for layer, (one, other) in enumerate(zip(whole, moved, strict=True)):
            distances[layer, rows] = (other - one).norm(dim=1).numpy()
    sums.add(whole)
    return label, distances, np.array([float(one.norm()) for one in whole]), probabilities, intact


def _features(network: Network, pixels: Tensor, points: tuple[Point, ...]) -> tuple[list[Tensor], Tensor]:
    """The vectors `(N, D)` at each point and the probabilities `(N, C)`, float64 on the CPU."""
    with taps.borrowed(network.module):
        run = network.run(pixels, points)
    said = network.probabilities(logits_of(run.output).float())
    return [run.tapped[point].flatten(1).cpu().double() for point in points], said.cpu().double()


class _Apart:
    """Σ‖f‖² and Σf of each layer, for `Invariance.apart`."""

    def __init__(self, layers: int) -> None:
        self.count, self.squares, self.total = 0, np.zeros(layers), [Tensor()] * layers
        self.alike = np.ones(layers, bool)

    def add(self, vectors: list[Tensor]) -> None:
        self.count += 1
        for layer, one in enumerate(vectors):
            self.squares[layer] += float(one.square().sum())
            if self.count == 1:
                self.total[layer] = one.clone()
            elif self.alike[layer] and self.total[layer].shape == one.shape:
                self.total[layer] += one
            else:
                self.alike[layer] = False

    def result(self) -> NDArray[np.float64]:
        if self.count < 2:
            return np.full(len(self.squares), np.nan)
        together = np.array([float(one.square().sum()) for one in self.total])
        spread = np.maximum(self.count * self.squares - together, 0)
        return np.where(self.alike, np.sqrt(2 * spread / (self.count * (self.count - 1))), np.nan)


def _mean(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan
