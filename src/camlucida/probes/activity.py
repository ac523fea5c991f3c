"""What the units of each layer do over a data set: how strongly and how often they answer, which never do, and which
answer every picture alike (ZF paper, section 4.1: dead features)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camlucida import taps
from camlucida.errors import UsageError
from camlucida.images.read import MAX_PIXELS
from camlucida.images.sources import name_of
from camlucida.networks.network import Network
from camlucida.networks.structure import Layer
from camlucida.probes.reading import Read, Rejected, batches, pixels_of, reading
from camlucida.probes.top_activations import RunningTop
from camlucida.taps import Operation, Point, Trace, Value

ACTIVATIONS = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish", "hardtanh",
    "softplus", "threshold", "clamp", "clamp_min", "tanh",
}  # fmt: skip
CONSTANT = 0.05
TOGETHER = 2**23  # activations that are float64 at once: 64 MB


@dataclass(frozen=True)
class Units:
    """Where units can be read: the output of a module whose last operation is an activation function. `layer`: None for
    a fully connected one, whose units have one cell each."""

    name: str
    point: Point
    count: int
    layer: Layer | None

    @property
    def call(self) -> str:
        """The name with the number of the call, as `Network.find_layer` takes it where a module runs several times."""
        return f"{self.point.name}#{self.point.call + 1}"

    @property
    def axes(self) -> int:
        return len(self.layer.size) if self.layer else 1

    def of(self, net: Network, pixels: Tensor) -> Units:
        """These for pictures of another shape: tokens are counted anew."""
        if self.layer is None or self.layer.prefix is None:
            return self
        return replace(self, layer=net.find_layer(self.call, pixels))

    def cells(self, tensor: Tensor) -> Tensor:
        """`(N, units, *cells)`."""
        return tensor[..., None] if self.layer is None else self.layer.cells(tensor)


@dataclass(frozen=True)
class Activity:
    """One layer over `pictures` pictures and the `cells` of all of them together. Per unit, over every cell: `mean`,
    `std` (of the population), `maximum`, `active` (share of cells above 0); and `pictures_active`, the share of pictures
    with any cell above 0."""

    layer: str
    pictures: int
    cells: int
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    maximum: NDArray[np.float64]
    active: NDArray[np.float64]
    pictures_active: NDArray[np.float64]

    @cached_property
    def dead(self) -> NDArray[np.bool_]:
        """Never above 0 in any cell of any picture."""
        return self.active == 0

    @cached_property
    def nearly_constant(self) -> NDArray[np.bool_]:
        """Not dead, and `std` below 5 % of the median `std` of the layer's units that are not dead."""
        if self.dead.all():
            return np.zeros_like(self.dead)
        return ~self.dead & (self.std < CONSTANT * np.median(self.std[~self.dead]))


def units(net: Network, layers: Sequence[str] | None = None) -> tuple[Units, ...]:
    """The layers with activation functions in the order they run, each under its shortest name; a network without any
    has its convolutions instead. `layers`: these alone, by name, and any other that has cells. Raises LayerError for one
    that is not there or has no units."""
    found = {one.name: one for one in _activations(net)}
    if layers is None:
        return tuple(found.values())
    blank, chosen = net.blank(), []
    for name in layers:
        if name not in found:
            layer = net.find_layer(name, blank)
            found[name] = Units(layer.name, layer.point, layer.channels, layer)
        chosen.append(found[name])
    return tuple(chosen)


def _activations(net: Network) -> Iterator[Units]:
    layers = {one.point: one for one in net.layers()}
    trace = recorded(net)
    made = {o.output: o for o in trace.operations}
    for wanted in (ACTIVATIONS, {"conv"}):
        names: dict[Value, Point] = {}
        for point, (value, shape) in trace.modules.items():
            if value in made and base(made[value]) in wanted and (point in layers or len(shape) == 2):
                names[value] = min(point, names.get(value, point), key=lambda one: len(str(one)))
        order = {o.output: i for i, o in enumerate(trace.operations)}
        for point in (names[value] for value in sorted(names, key=order.__getitem__)):
            layer = layers.get(point)
            count = layer.channels if layer else trace.modules[point][1][1]
            yield Units(str(point), point, count, layer)
        if names:
            return


def recorded(net: Network) -> Trace:
    """One pass over a blank picture of the card's size."""
    with taps.borrowed(net.module):
        return taps.trace(net.module, net.forward, net.blank())


def base(operation: Operation) -> str:
    """`conv` of `conv2d`, `relu` of `relu_`."""
    return operation.base.strip("_")


class Tally:
    """Running figures of one layer: merged batch by batch with the formula of Chan, Golub and LeVeque in float64, so that
    no activation is kept."""

    def __init__(self, units: Units) -> None:
        self.units, self.pictures, self.cells = units, 0, 0
        self.mean, self.squares = torch.zeros(2, units.count, dtype=torch.float64)
        self.maximum = torch.full((units.count,), -torch.inf, dtype=torch.float64)
        self.active, self.pictures_active = torch.zeros(2, units.count, dtype=torch.int64)

    def add(self, activations: Tensor) -> None:
        """Takes in finite activations `(N, units, cells)` of N pictures."""
        for some in activations.split(max(1, TOGETHER // max(activations[0].numel(), 1))):
            values = some.detach().double()
            one = Tally(self.units)
            one.pictures, one.cells = len(values), len(values) * values.shape[2]
            one.mean, one.maximum = values.mean((0, 2)).cpu(), values.amax((0, 2)).cpu()
            positive = values > 0
            one.active, one.pictures_active = positive.sum((0, 2)).cpu(), positive.any(2).sum(0).cpu()
            one.squares = (values - one.mean.to(values.device)[:, None]).square_().sum((0, 2)).cpu()
            self.merge(one)

    def merge(self, other: Tally) -> None:
        """Takes in what another has seen of the same layer."""
        both = self.cells + other.cells
        if not other.cells:
            return
        apart = other.mean - self.mean
        self.squares += other.squares + apart**2 * (self.cells * other.cells / both)
        self.mean += apart * (other.cells / both)
        self.maximum = torch.maximum(self.maximum, other.maximum)
        self.active += other.active
        self.pictures_active += other.pictures_active
        self.pictures, self.cells = self.pictures + other.pictures, both

    def result(self) -> Activity:
        pictures, cells = max(self.pictures, 1), max(self.cells, 1)
        return Activity(
            self.units.name, self.pictures, self.cells, self.mean.numpy(), (self.squares / cells).sqrt().numpy(),
            self.maximum.numpy(), (self.active.double() / cells).numpy(), (self.pictures_active.double() / pictures).numpy(),
        )  # fmt: skip


@dataclass(frozen=True)
class Watched:
    """`activities`: of each layer; `top`: the strongest places of each unit of one of them, pictures counted as they were
    given; `rejected`: path and reason of what does not count."""

    activities: tuple[Activity, ...]
    top: RunningTop | None
    pictures: int
    rejected: tuple[tuple[str, str], ...]


def watch(
    net: Network,
    pictures: Sequence[Any],
    layers: Sequence[Units],
    strongest: Units | None = None,
    k: int = 9,
    *,
    view: str = "card",
    batch: int = 32,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int], None] | None = None,
) -> Watched:
    """The figures of each layer over `pictures` (sources, paths, PIL pictures or arrays, seen by the card's `view`) in one
    pass, and the `k` strongest pictures of each unit of the layer `strongest`. Memory holds one forward pass over `batch`
    pictures and one layer's activations. Raises UsageError if no picture could be used."""
    every = [*dict.fromkeys([*layers, *([strongest] if strongest else [])])]
    tallies = {one: Tally(one) for one in every}
    top = RunningTop.empty(strongest.count, k, strongest.axes) if strongest else None
    rejected: list[Rejected] = []

    def look(some: Sequence[Read]) -> None:
        numbers = torch.tensor([one.number for one in some])
        pixels = pixels_of(net, some)
        new = {one: Tally(one) for one in every}
        at: dict[Point, list[Units]] = defaultdict(list)
        for one in every:
            at[one.point].append(one)
        here = {one: one.of(net, pixels) for one in every}
        finite, kept = torch.ones(len(some), dtype=torch.bool), list[Tensor]()

        def seen(point: Point, value: Tensor) -> None:
            for one in at[point]:
                cells = here[one].cells(value)
                finite.logical_and_(cells.isfinite().flatten(1).all(1).cpu())
                if finite.all():
                    new[one].add(cells.flatten(2))
                if one == strongest:
                    kept.append(cells.clone())  # the next operation may overwrite it

        with taps.borrowed(net.module):
            net.run(pixels, at, trunk=True, seen=seen)
        if not finite.all():
            for number in numbers[~finite].tolist():
                rejected.append((number, name_of(pictures[number]), "activations of it are NaN or infinite"))
            if finite.any():
                look([one for one, good in zip(some, finite.tolist(), strict=True) if good])
            return
        for one, tally in new.items():
            tallies[one].merge(tally)
        if top is not None:
            top.update(kept[0], numbers.tolist())

    with closing(reading(net, pictures, view=view, workers=workers, max_pixels=max_pixels)) as reads:
        for some in batches(reads, batch, rejected, progress):
            look(some)
    used = len(pictures) - len(rejected)
    if not used:
        reason = f"; {rejected[0][1]}: {rejected[0][2]}" if rejected else ""
        raise UsageError("activity of units", got=f"0 of {len(pictures)} pictures that can be used{reason}")
    return Watched(
        tuple(tallies[one].result() for one in layers),
        top,
        used,
        tuple((p, r) for _, p, r in sorted(rejected)),
    )
