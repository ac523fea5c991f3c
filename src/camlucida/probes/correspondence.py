"""Does a layer know that an eye is an eye (ZF paper, section 4.3; section 12)? The same part is hidden in several pictures;
where its loss changes the layer's units in the same direction in all of them, they correspond."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camlucida import taps
from camlucida.errors import LayerError, NetworkError, UsageError
from camlucida.geometry import Box
from camlucida.maps import schedule
from camlucida.networks.network import Network, logits_of
from camlucida.probes.feature_points import feature_points
from camlucida.taps import Point
from camlucida.values import Batch

LOGITS = "logits"  # as a layer: the network's output
ALL_PARTS = "all parts"
ROUNDING = 16
"""Changes up to so many units in the last place of the layer's largest value count as none: the same sum in another batch
may be rounded otherwise."""

Square = tuple[int, int, int, int]  # top, left, bottom, right; pixels of the view, half-open


@dataclass(frozen=True)
class SignChange:
    """One part at one layer: the share of units whose sign of change differs, mean and standard deviation (dividing by the
    count) over the ordered pairs of pictures; low = consistent. `random_…`: the same for squares of the part's size at
    random places, each picture's own; `together_…`: at random places that all pictures share (of the object, where it is boxed), and
    which share of these is at least as consistent as the part. `p_value`: see
    `measure_correspondence`. `pairs (n, n)`: of the part, between pictures. Part `all parts`: all of them together."""

    layer: str
    part: str
    pictures: int
    mean: float
    std: float
    random_mean: float
    random_std: float
    together_mean: float
    together_std: float
    together_as_low: float
    p_value: float
    pairs: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Correspondence:
    """`changes`: layer by layer, each part and then all of them together; `units`: of each layer; `draws` random places a
    part and picture."""

    changes: tuple[SignChange, ...]
    units: Mapping[str, int]
    draws: int
    permutations: int
    seed: int

    def of(self, layer: str, part: str = ALL_PARTS) -> SignChange:
        return next(c for c in self.changes if (c.layer, c.part) == (layer, part))


def measure_correspondence(
    network: Network,
    batch: Batch | Tensor,
    parts: Mapping[str, Mapping[int, Box]],
    layers: Sequence[str],
    *,
    draws: int = 10,
    permutations: int = 9999,
    seed: int = 0,
    fill: float = 0.0,
    within: Mapping[int, Box] | None = None,
) -> Correspondence:
    """Pictures of one shape; `parts`: name → picture → box in pixels of the view, each part in two pictures or more.
    `layers`: names of modules, spatial or not (`name#2`: the second call), or `logits`. A part is hidden by `fill`, in the
    normalised space: 0 = the mean colour. Random places lie anywhere in the view, or, as the paper has them, `within` the
    object's box of each picture.

    ε_i = x_i − x̃_i, the units of picture i with and without the part; two pictures differ by the share of units where
    sign ε_i ≠ sign ε_j, 0 being a sign of its own.

    Permutation test, one-sided: if the part were a place like any other, then in each picture the label "the part" could
    as well stand at one of its `draws` random places of the same size. The label is dealt anew, in each picture evenly over
    these draws + 1 places, `permutations` times; p = (1 + how often the mean over pairs is at most the one found) /
    (1 + permutations). For `all parts` the mean over parts is compared, each part dealt by itself.

    Raises UsageError, LayerError for a layer that is not there, NetworkError for values that are not finite."""
    batch = Batch.of(batch)
    if draws < 1 or permutations < 1:
        raise UsageError("correspondence", got=f"draws {draws}, permutations {permutations}", allowed="≥ 1")
    if not parts or not layers:
        raise UsageError(
            "correspondence", got=f"{len(parts)} parts, {len(layers)} layers", allowed="1 or more of each"
        )
    view = (int(batch.pixels.shape[2]), int(batch.pixels.shape[3]))
    squares = {
        name: {i: square_of(box, view, name) for i, box in sorted(of.items())} for name, of in parts.items()
    }
    for name, of in squares.items():
        if len(of) < 2:
            raise UsageError(
                f"part {name!r}", got=f"a box in {len(of)} picture", allowed="boxes in 2 pictures or more"
            )
    rooms = {i: square_of(box, view, "object") for i, box in (within or {}).items()}
    random = np.random.default_rng(seed)
    found: list[SignChange] = []
    with taps.borrowed(network.module):
        signs = Signs(network, batch.pixels, layers, fill)
        tell = schedule.announced(schedule.Work("correspondence", len(parts), len(parts), 1, "parts"))
        measured: dict[tuple[str, str], _Measured] = {}
        for number, (name, of) in enumerate(squares.items(), 1):
            room = {i: rooms.get(i, (0, 0, *view)) for i in of}
            own = {
                i: [one, *(anywhere(one, room[i], random.random(2)) for _ in range(draws))]
                for i, one in of.items()
            }
            shares = random.random((draws, 2))
            shared = {i: [anywhere(one, room[i], share) for share in shares] for i, one in of.items()}
            jobs = [(i, square) for places in (own, shared) for i in places for square in places[i]]
            for layer, made in signs.of(jobs).items():
                first = made[: len(of) * (draws + 1)].reshape(len(of), draws + 1, -1)
                second = made[len(of) * (draws + 1) :].reshape(len(of), draws, -1)
                measured[layer, name] = _Measured(distances(first), distances(second))
            tell(number)
    for layer in signs.units:
        tests = np.random.default_rng([seed, 1])
        dealt = []
        for name in squares:
            one = measured[layer, name]
            dealt.append(one.dealt(permutations, tests))
            found.append(_change(layer, name, [one], dealt[-1]))
        found.append(
            _change(layer, ALL_PARTS, [measured[layer, name] for name in squares], np.mean(dealt, 0))
        )
    return Correspondence(tuple(found), dict(signs.units), draws, permutations, seed)


def square_of(box: Box, view: tuple[int, int], name: str = "") -> Square:
    """The pixels whose centres lie in a box, at least one. Raises UsageError for a box that leaves the view."""
    if box.x0 < 0 or box.y0 < 0 or box.x1 > view[1] or box.y1 > view[0] or not box.area:
        raise UsageError(
            f"part {name!r}", got=f"the box {box}", allowed=f"inside the view of {view[1]} × {view[0]} pixels"
        )
    top, left, bottom, right = (int(np.ceil(edge - 0.5)) for edge in (box.y0, box.x0, box.y1, box.x1))
    top, left = min(top, view[0] - 1), min(left, view[1] - 1)
    return top, left, max(bottom, top + 1), max(right, left + 1)


def sign_of_change(clean: Tensor, hidden: Tensor) -> Tensor:
    """`sign(x − x̃)` as int8 for units `(N, D)`; what rounding alone may change is 0."""
    change = clean - hidden
    floor = ROUNDING * torch.finfo(clean.dtype).eps * clean.abs().amax(1, keepdim=True)
    return (change.sign() * (change.abs() > floor)).to(torch.int8)


def distances(signs: NDArray[np.int8]) -> NDArray[np.float64]:
    """Signs `(n, m, D)`, n pictures with m places each → `(n, m, n, m)`: the share of units whose signs differ."""
    n, m, units = signs.shape
    rows = signs.reshape(n * m, units)
    made = np.zeros((n * m, n * m))
    for i in range(1, len(rows)):
        made[i, :i] = made[:i, i] = (rows[:i] != rows[i]).sum(1) / units
    return made.reshape(n, m, n, m)


@dataclass(frozen=True)
class _Measured:
    """Distances of one part at one layer. `own (n, 1 + draws, n, 1 + draws)`: the part, then each picture's random places;
    `shared (n, draws, n, draws)`: random places that all pictures have in common."""

    own: NDArray[np.float64]
    shared: NDArray[np.float64]

    def pairs(self, of: str) -> NDArray[np.float64]:
        """Distances over the ordered pairs of pictures, and over draws."""
        table = self.shared if of == "together" else self.own
        chosen = range(1) if of == "part" else range(1 if of == "random" else 0, table.shape[1])
        others = ~np.eye(len(table), dtype=bool)
        return np.concatenate([table[:, k, :, k][others] for k in chosen])

    def together(self) -> NDArray[np.float64]:
        """The mean over pairs of each place that all pictures share."""
        others = ~np.eye(len(self.shared), dtype=bool)
        return np.array([self.shared[:, k, :, k][others].mean() for k in range(self.shared.shape[1])])

    def dealt(self, count: int, random: np.random.Generator) -> NDArray[np.float64]:
        """The mean over pairs: as found, then with the label dealt anew `count` times."""
        n, places = self.own.shape[:2]
        label = random.integers(0, places, (count + 1, n))
        label[0] = 0
        sums = [self.own[i, label[:, i], j, label[:, j]] for i, j in itertools.combinations(range(n), 2)]
        return np.mean(sums, 0)


def _change(layer: str, part: str, measured: Sequence[_Measured], dealt: NDArray[np.float64]) -> SignChange:
    of = {
        which: np.concatenate([one.pairs(which) for one in measured])
        for which in ("part", "random", "together")
    }
    mean, random, together = (float(values.mean()) for values in of.values())
    std, random_std, together_std = (float(values.std()) for values in of.values())
    p_value = float((dealt <= dealt[0] + 1e-12).mean())  # the one found counts as one of them
    as_low = float((np.mean([one.together() for one in measured], 0) <= dealt[0] + 1e-12).mean())
    alone = None if part == ALL_PARTS else measured[0].own[:, 0, :, 0]
    pictures = max(len(one.own) for one in measured)
    return SignChange(
        layer, part, pictures, mean, std, random, random_std, together, together_std, as_low, p_value, alone
    )


def anywhere(square: Square, room: Square, share: NDArray[np.float64]) -> Square:
    """A square of the same size inside `room`, `share` (rows, columns; 0 … 1) of the way across; at its beginning, where
    there is no room."""
    height, width = square[2] - square[0], square[3] - square[1]
    top = room[0] + int(share[0] * max(room[2] - room[0] - height + 1, 1))
    left = room[1] + int(share[1] * max(room[3] - room[1] - width + 1, 1))
    return top, left, top + height, left + width


class Signs:
    """What hiding squares does to the units of layers; inside `taps.borrowed`. `units`: how many each has."""

    def __init__(self, network: Network, pixels: Tensor, layers: Sequence[str], fill: float) -> None:
        self.network, self.pixels, self.fill = network, pixels, fill
        self.points = points_of(network, pixels, layers)
        with taps.Footprint() as footprint:
            first = self._units(pixels[:1])
        self.bytes_each = footprint.peak + 4 * sum(t.numel() for t in first.values())
        clean = [first, *(self._units(pixels[i : i + 1]) for i in range(1, len(pixels)))]
        self.clean = {name: torch.cat([one[name] for one in clean]) for name in self.points}
        self.units = {name: values.shape[1] for name, values in self.clean.items()}
        for name, values in self.clean.items():
            if not values.shape[1]:
                raise LayerError(f"layer {name!r} has no units")
            if not bool(values.isfinite().all()):
                raise NetworkError(f"layer {name!r} gives values that are not finite")

    def of(self, jobs: Sequence[tuple[int, Square]]) -> dict[str, NDArray[np.int8]]:
        """Signs `(jobs, units)` of each layer; a job hides a square of a picture."""
        made = {name: np.empty((len(jobs), units), np.int8) for name, units in self.units.items()}

        def hide(part: slice) -> None:
            rows = [i for i, _ in jobs[part]]
            shown = self.pixels[rows].clone()
            for copy, (_, (top, left, bottom, right)) in zip(shown, jobs[part], strict=True):
                copy[:, top:bottom, left:right] = self.fill
            for name, values in self._units(shown).items():
                made[name][part] = sign_of_change(self.clean[name][rows], values).cpu().numpy()

        schedule.run(
            "hidden parts", len(jobs), hide, bytes_each=self.bytes_each, device=self.network.device, most=64
        )
        return made

    def _units(self, shown: Tensor) -> dict[str, Tensor]:
        """Each layer's units `(N, D)`, floating point."""
        run = self.network.run(shown, [p for p in self.points.values() if p is not None])
        values = {n: logits_of(run.output) if p is None else run.tapped[p] for n, p in self.points.items()}
        return {n: v.flatten(1) if v.is_floating_point() else v.flatten(1).float() for n, v in values.items()}


def points_of(network: Network, pixels: Tensor, layers: Sequence[str]) -> dict[str, Point | None]:
    """Where layers are tapped, spatial or not; None: the output. Raises LayerError."""
    output = LOGITS not in dict(network.module.named_modules())
    tapped = [name for name in layers if not (output and name == LOGITS)]
    points = dict(zip(tapped, feature_points(network, pixels, tapped), strict=True))
    return {name: points.get(name) for name in layers}
