"""The vectors of features that layers give, convolutional and fully connected alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from camlucida import taps
from camlucida.errors import LayerError, nearest
from camlucida.networks.network import Network
from camlucida.networks.structure import PASSING
from camlucida.taps import Operation, Point

WEIGHTED = ("conv", "conv_transpose", "linear")  # operations with weights, as the papers count layers


def feature_points(network: Network, pixels: Tensor, names: Sequence[str] | None = None) -> tuple[Point, ...]:
    """Where features are tapped, by the names of modules (`name#2`: its second call), which need no extent in space, or of
    spatial layers.

    None: the output of layer 1 and that of the last hidden layer, a layer being all from one operation with weights to
    the next (ReLU, pooling and norm included): `features.pool1` and `classifier.relu7` of AlexNet. Raises LayerError
    for one that does not exist, did not run, gives no features, or runs several times without saying which.
    """
    with taps.borrowed(network.module):
        trace = taps.trace(network.module, network.forward, pixels[:1])
    shapes = {point: shape for point, (_, shape) in trace.modules.items()}
    if names is not None:
        return tuple(_named(network, name, shapes, pixels) for name in names)
    weighted = [one for one in trace.operations if one.base in WEIGHTED]
    if len(weighted) < 2:
        raise LayerError(
            "layers", got=f"a network with {len(weighted)} layers with weights", do="name a layer"
        )
    found = []
    makers = {one.output: one for one in trace.operations}
    for one in (weighted[1], weighted[-1]):
        value, made = one.inputs[0], list[Point]()
        while not made:  # flattening, which has no name, changes no distance
            made = [point for point, (given, _) in trace.modules.items() if given == value]
            before = makers.get(value)
            if made or before is None or before.name not in PASSING or not _whole(before):
                break
            value = before.inputs[0]
        found.append(made[0] if made else Point(one.name, one.call, "function"))
    return tuple(dict.fromkeys(found))


def _whole(operation: Operation) -> bool:
    """Whether all numbers it is given come out again: the class token alone is not the tokens."""
    given = operation.args[0] if operation.args else None
    return isinstance(given, Tensor) and given.numel() == math.prod(operation.shape)


def _named(network: Network, name: str, shapes: dict[Point, tuple[int, ...]], pixels: Tensor) -> Point:
    base, _, number = name.partition("#")
    calls = [point for point in shapes if point.name == base]
    if base not in dict(network.module.named_modules()) or not base:
        try:
            return network.find_layer(name, pixels).point  # an operation without a module
        except LayerError:
            known = nearest(name, {point.name for point in shapes})
            raise LayerError(f"layer {name!r} does not exist", do=known) from None
    if len(calls) > 1 and not number:
        allowed = ", ".join(f"{base}#{point.call + 1}" for point in calls)
        raise LayerError(f"layer {name!r} runs {len(calls)} times", allowed=allowed)
    point = next((one for one in calls if not number or str(one.call + 1) == number), None)
    if point is None:
        raise LayerError(
            f"layer {name!r} did not run, or gives no tensor", do="camlucida layers lists those that ran"
        )
    shape = shapes[point]
    if len(shape) < 2 or shape[0] != 1 or 0 in shape:  # of one picture
        raise LayerError(f"layer {name!r} has no units", got=f"an output of {' × '.join(map(str, shape))}")
    return point
