"""What the units of each layer do over a data set: how strongly and how often they answer, which never do, and which
answer every picture alike (ZF paper, section 4.1: dead features)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camlucida import taps
from camlucida.errors import LayerError, UnsupportedError, nearest
from camlucida.networks.network import Network
from camlucida.networks.structure import Layer
from camlucida.taps import Operation, Point, Trace
from camlucida.values import Batch

ACTIVATIONS = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish", "hardtanh",
    "softplus", "threshold", "clamp", "clamp_min", "tanh",
}  # fmt: skip
CONSTANT = 0.05


@dataclass(frozen=True)
class Units:
    """Where units can be read: the output of a module whose last operation is an activation function. `layer`: None for
    a fully connected one, whose units have one cell each."""

    name: str
    point: Point
    count: int
    layer: Layer | None

    def cells(self, tensor: Tensor) -> Tensor:
        """`(N, units, cells)`."""
        return tensor[..., None] if self.layer is None else self.layer.cells(tensor).flatten(2)


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
        if name in found:
            chosen.append(found[name])
            continue
        try:
            layer = net.find_layer(name, blank)
        except LayerError as error:
            if name in dict(net.module.named_modules()) or "times" in str(error):
                raise
            raise LayerError(error.asked, do=nearest(name, [*found, *(one.name for one in net.layers())])) from None
        chosen.append(Units(layer.name, layer.point, layer.channels, layer))
    return tuple(chosen)


def _activations(net: Network) -> Iterator[Units]:
    layers = {one.point: one for one in net.layers()}
    trace = recorded(net)
    made = {o.output: o for o in trace.operations}
    for wanted in (ACTIVATIONS, {"conv"}):
        names: dict = {}
        for point, (value, shape) in trace.modules.items():
            if value in made and base(made[value]) in wanted and (point in layers or len(shape) == 2):
                names[value] = min(point, names.get(value, point), key=lambda one: len(str(one)))
        order = {o.output: i for i, o in enumerate(trace.operations)}
        for value, point in sorted(names.items(), key=lambda one: order[one[0]]):
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

    def add(self, tensor: Tensor) -> None:
        """What the layer gave for a batch. Raises UnsupportedError if it is not finite."""
        values = self.units.cells(tensor).detach().cpu().double()
        if not values.isfinite().all():
            raise UnsupportedError(f"figures of {self.units.name}", got="activations that are not finite")
        new = values.shape[0] * values.shape[2]
        both = self.cells + new
        mean = values.mean((0, 2))
        apart = mean - self.mean
        self.squares += (values - mean[:, None]).square_().sum((0, 2)) + apart**2 * (self.cells * new / both)
        self.mean += apart * (new / both)
        self.maximum = torch.maximum(self.maximum, values.amax((0, 2)))
        positive = values > 0
        self.active += positive.sum((0, 2))
        self.pictures_active += positive.any(2).sum(0)
        self.pictures, self.cells = self.pictures + values.shape[0], both

    def result(self) -> Activity:
        pictures, cells = max(self.pictures, 1), max(self.cells, 1)
        return Activity(
            self.units.name, self.pictures, self.cells, self.mean.numpy(), (self.squares / cells).sqrt().numpy(),
            self.maximum.numpy(), (self.active / cells).numpy(), (self.pictures_active / pictures).numpy(),
        )  # fmt: skip


def activity(net: Network, batches: Iterable[Batch | Tensor], layers: Sequence[Units]) -> tuple[Activity, ...]:
    """The figures of each layer over all the batches, which may differ in shape, in one pass; memory holds one batch."""
    tallies = [Tally(one) for one in layers]
    with taps.borrowed(net.module):
        for batch in batches:
            run = net.run(Batch.of(batch).pixels, [one.point for one in layers])
            for tally in tallies:
                tally.add(run.tapped[tally.units.point])
    return tuple(tally.result() for tally in tallies)
