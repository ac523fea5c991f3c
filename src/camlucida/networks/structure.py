"""What a network is made of, read from one run on the real input: its spatial layers (maps, or tokens in a row)
with stride and receptive field, the layer before pooling, and the linear head where there is one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from camlucida.display import sides
from camlucida.networks.layouts import POOLS, RESHAPING, Tokens, layouts
from camlucida.networks.receptive_fields import MIXING, receptive_fields
from camlucida.taps import OPAQUE, Operation, Point, Trace, Value
from camlucida.values import Grid, Shown

PASSING = {
    "flatten", "view", "reshape", "squeeze", "squeeze_", "unsqueeze", "contiguous", "dropout", "dropout1d",
    "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "to", "float", "clone", "identity",
    "type_as", "permute", "transpose", "swapaxes", "swapdims", "__getitem__", "mT", "T", "data",
}  # fmt: skip
REDUCING = POOLS | {"mean", "sum", "amax", "max", "logsumexp"}
CHOOSING = {"__getitem__", "select", "narrow", "index_select", "unbind", "split", "chunk", "tensor_split"}


@dataclass(frozen=True, repr=False)
class Layer(Shown):
    """One spatial layer, axes in the order of the input's: stride, offset (centre of cell 0) and receptive
    field in view pixels, None where the run does not tell; `reached`: whether the logits depend on its cells.

    `prefix`: None for a map; for tokens `(N, prefix + cells, channels)` how many come before the cells (class,
    distillation and register tokens).
    """

    name: str
    point: Point
    channels: int
    size: tuple[int, ...]
    stride: tuple[float, ...] | None
    offset: tuple[float, ...] | None
    receptive_field: tuple[float, ...] | None
    reached: bool
    channel_axis: int = 1  # −1: channels last
    prefix: int | None = None

    def cells(self, tensor: Tensor) -> Tensor:
        """What the layer gave as `(N, channels, *cells)`: channels first, tokens in their grid."""
        if self.prefix is None:
            return tensor.movedim(self.channel_axis, 1)
        tokens = tensor[:, self.prefix : self.prefix + math.prod(self.size)]
        return tokens.movedim(-1, 1).unflatten(2, self.size)

    def grid(self, view: tuple[int, ...]) -> Grid:
        """Where its cells lie in a view of that size."""
        stretched = tuple(v / s for v, s in zip(view, self.size, strict=True))
        offset = self.offset or tuple(s / 2 for s in stretched)
        return Grid(view, offset, self.stride or stretched, self.receptive_field or tuple(map(float, view)))

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "name", self.name
        yield "channels", self.channels
        yield "cells", _sides(self.size)
        yield "stride", _sides(self.stride)
        yield "offset", _sides(self.offset)
        yield "receptive field", _sides(self.receptive_field)
        yield "reached by gradients", "yes" if self.reached else "no"


def _sides(lengths: tuple[float, ...] | None) -> str:
    return "unknown" if lengths is None else sides(lengths)


@dataclass(frozen=True)
class Head:
    """Features `(N, K, *cells)` → pool over cells → optional norm → linear → logits.

    `weight (C, K)` is None where the pooled channels are the logits themselves; `norm`: ("layer", weight,
    bias, eps), ("affine", scale, shift) or ("l2", eps), applied to the pooled vector; `channel_axis` is −1 for
    channels-last features.
    """

    pool: str  # "avg" | "max"
    weight: Tensor | None
    bias: Tensor | None
    norm: tuple | None = None
    channel_axis: int = 1
    any_size: bool = True  # the pooling covers maps of every size, not just the one of this run

    @property
    def is_exact(self) -> bool:
        """Whether the class map is exact; a layer norm or division by the L2 norm after pooling is linearised per picture."""
        return self.norm is None or self.norm[0] == "affine"

    def pooled(self, features: Tensor) -> Tensor:
        flat = features.float().flatten(2)
        return flat.mean(-1) if self.pool == "avg" else flat.amax(-1)

    def linear(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(weights (N or 1, C, K), shift (N or 1, K), bias (N or 1, C))` with, for these features `(N, K,
        *cells)`, logit = Σ_k weights · (pooled + shift) + bias: exact, or linearised at each picture's own
        norm."""
        channels = features.shape[1]
        like: dict[str, Any] = {"dtype": torch.float32, "device": features.device}
        weight = torch.eye(channels, **like) if self.weight is None else self.weight.detach().float()
        bias = torch.zeros(len(weight), **like) if self.bias is None else self.bias.detach().float()
        shift = torch.zeros(1, channels, **like)
        if self.norm is None:
            return weight[None], shift, bias[None]
        if self.norm[0] == "affine":
            scale, moved = (t.detach().float() for t in self.norm[1:])
            return (weight * scale)[None], shift, (bias + weight @ moved)[None]
        if self.norm[0] == "l2":  # of an SVM on normalised features (specification, section 5)
            length = self.pooled(features).norm(dim=1).clamp(min=self.norm[1])
            return weight[None] / length[:, None, None], shift, bias[None]
        _, gain, moved, eps = self.norm
        pooled = self.pooled(features)
        mean = pooled.mean(1, keepdim=True)
        deviation = (pooled.var(1, unbiased=False, keepdim=True) + eps).sqrt()
        gained = weight if gain is None else weight * gain.detach().float()
        bias = bias if moved is None else bias + weight @ moved.detach().float()
        return gained[None] / deviation[..., None], shift - mean, bias[None]

    def logits(self, features: Tensor) -> Tensor:
        weight, shift, bias = self.linear(features)
        return (
            torch.einsum("nck,nk->nc", weight.expand(len(features), -1, -1), self.pooled(features) + shift)
            + bias
        )


@dataclass(frozen=True)
class Structure:
    """`features`: the tensor before pooling, or the last spatial layer where there is no such head."""

    layers: tuple[Layer, ...]
    features: Layer | None
    head: Head | None


def read(trace: Trace, logits: Tensor) -> Structure:
    """The structure behind one recorded run on one picture."""
    producers = {operation.output: operation for operation in trace.operations}
    output = next((v for v in reversed(list(producers)) if v[0] == id(logits)), None)
    needed = _ancestors(output, producers)
    axes = len(trace.shape) - 2
    orders, tokens = layouts(trace, axes)
    fields = receptive_fields(trace, axes, tokens)
    spread = _spread(output, producers, tokens)
    names: dict[Value, Point] = {}
    for point, (value, _) in trace.modules.items():
        if value not in names or len(point.name) < len(names[value].name):
            names[value] = point

    def cells(value: Value, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Cells per axis; none where the tensor has neither the axes of the input nor a row of tokens."""
        if value in tokens:
            return tokens[value].size if tokens[value].readable else ()
        if len(shape) != axes + 2 or value not in orders:
            return ()
        return shape[1:-1] if orders[value] == -1 else shape[2:]

    def layer(point: Point, value: Value, shape: tuple[int, ...]) -> Layer:
        row = tokens.get(value)
        channel_axis = orders.get(value, 1) if row is None else -1
        stride, offset, extent = fields.get(value, (None, None, None))
        reached = value in (needed if row is None else spread)
        return Layer(
            str(point), point, shape[channel_axis], cells(value, shape), stride, offset, extent, reached,
            channel_axis, None if row is None else row.prefix,
        )  # fmt: skip

    def last() -> Layer | None:
        return _last_spatial(trace, needed, spread, tokens, names, cells, layer)

    layers = tuple(layer(p, v, s) for p, (v, s) in trace.modules.items() if math.prod(cells(v, s)) > 1)
    found = _head(output, producers)
    if found is not None:
        head, user, value, shape = found
        row = tokens.get(value)
        if row is not None and row.bare and row.axis == (1 if head.channel_axis == -1 else 2):
            head = replace(head, channel_axis=-1, any_size=False)
            # x[:, prefix:].mean(1): the tokens before, which have a name
            while (before := producers.get(value)) is not None and before.name in PASSING:
                whole = tokens.get(before.inputs[0])
                if whole is None or not whole.axis:
                    break
                user, value, shape = before, before.inputs[0], tuple(before.args[0].shape)
            if not tokens[value].readable:
                return Structure(layers, last(), None)
        elif len(shape) == axes + 2 and row is None:
            orders[value] = head.channel_axis
        else:
            return Structure(layers, last(), None)
        features = _features_of(value, trace)
        if features is not None:
            point = names.get(value) or Point(user.name, user.call, "function")
            pooled = layer(point, value, shape)
            given = pooled.cells(features)
            fits = head.weight is None or given.shape[1] == head.weight.shape[1]
            again = head.logits(given) if fits else None
            if again is not None and again.shape == logits.shape and _near(again, logits.float()):
                return Structure(layers, pooled, head)
    return Structure(layers, last(), None)


def _near(again: Tensor, logits: Tensor) -> bool:
    """Whether a head's logits are those of the run, as far as they are finite."""
    finite = logits.isfinite()
    scale = float(logits[finite].abs().max()) if finite.any() else 0.0
    return torch.allclose(again[finite], logits[finite], rtol=1e-2, atol=1e-2 * scale + 1e-8)


def _ancestors(value: Value | None, producers: dict[Value, Operation]) -> set[Value]:
    seen, queue = set(), [value] if value else []
    while queue:
        value = queue.pop()
        if value not in seen:
            seen.add(value)
            queue += producers[value].inputs if value in producers else ()
    return seen


def _features_of(value: Value, trace: Trace) -> Tensor | None:
    return next((t for t in trace.alive if trace.version_of(t) == value), None)


def _last_spatial(
    trace: Trace, needed: set[Value], spread: set[Value], tokens: dict[Value, Tokens],
    names: dict[Value, Point], cells: Any, layer: Any,
) -> Layer | None:  # fmt: skip
    """The last tensor with cells on the way to the logits that is no pooling and no reshaping (Grad-CAM's
    default layer). Of tokens: the last norm or sum whose cells, not just its class token, reach the logits."""
    for position in range(len(trace.operations) - 1, -1, -1):
        operation = trace.operations[position]
        value = operation.output
        if (
            math.prod(cells(value, operation.shape)) <= 1
            or value not in needed
            or operation.name in PASSING
            or operation.base in POOLS
        ):
            continue
        if value in tokens and (value not in spread or value not in names or operation.name == "linear"):
            continue
        if value in names:
            return layer(names[value], value, operation.shape)
        users = (o for o in trace.operations[position + 1 :] if o.inputs and o.inputs[0] == value)
        user = next((o for o in users if o.name != OPAQUE), None)
        if user is not None:
            return layer(Point(user.name, user.call, "function"), value, operation.shape)
    return None


def _spread(
    output: Value | None, producers: dict[Value, Operation], tokens: dict[Value, Tokens]
) -> set[Value]:
    """The values that reach the logits otherwise than through one chosen token: only there do all cells count."""
    seen: set[tuple[Value, bool]] = set()
    queue = [(output, True)] if output else []
    while queue:
        value, whole = queue.pop()
        if (value, whole) in seen:
            continue
        seen.add((value, whole))
        operation = producers.get(value)
        for given in operation.inputs if operation else ():
            row, then = tokens.get(given), tokens.get(value)
            if operation.name in MIXING or operation.base in REDUCING:  # type: ignore[union-attr]
                queue.append((given, True))
            elif operation.name in CHOOSING and row and row.axis and not (then and then.axis):  # type: ignore[union-attr]
                queue.append((given, False))
            else:
                queue.append((given, whole))
    return {value for value, whole in seen if whole}


def _head(
    output: Value | None, producers: dict[Value, Operation]
) -> tuple[Head, Operation, Value, tuple[int, ...]] | None:
    def back(value: Value | None) -> Operation | None:
        """The first operation above that does more than pass its input on."""
        while value in producers and producers[value].name in PASSING:
            value = producers[value].inputs[0]
        return producers.get(value) if value is not None else None

    operation = back(output)
    weight = bias = None
    norm: tuple | None = None
    if operation is not None and operation.name == "linear":
        weight, bias = operation.argument(1, "weight"), operation.argument(2, "bias")
        operation = back(operation.inputs[0])
    elif operation is not None and operation.base == "conv" and math.prod(operation.shape[2:]) == 1:
        kernel = operation.argument(1, "weight")
        if math.prod(kernel.shape[2:]) == 1 and operation.argument(6, "groups", 1) == 1:
            weight, bias = kernel.flatten(1), operation.argument(2, "bias")
            operation = back(operation.inputs[0])
    if operation is not None and weight is not None and operation.name == "normalize":
        power, axis = operation.argument(1, "p", 2.0), operation.argument(2, "dim", 1)
        if power != 2 or axis not in (1, -1) or len(operation.shape) != 2:
            return None
        norm = ("l2", operation.argument(3, "eps", 1e-12))
        operation = back(operation.inputs[0])
    elif operation is not None and weight is not None and operation.name in ("layer_norm", "batch_norm"):
        first, last = (2, 4) if operation.name == "layer_norm" else (3, 7)
        gain, moved = operation.argument(first, "weight"), operation.argument(first + 1, "bias")
        eps = operation.argument(last, "eps", 1e-5)
        if operation.name == "layer_norm":
            norm = ("layer", gain, moved, eps)
        else:
            mean, var = operation.argument(1, "running_mean"), operation.argument(2, "running_var")
            if mean is None or var is None:
                return None  # the statistics of each batch: no linear head
            scale = (var + eps).rsqrt() * (1 if gain is None else gain.detach())
            norm = ("affine", scale, (0 if moved is None else moved.detach()) - mean * scale)
        operation = back(operation.inputs[0])
    if operation is None or not operation.inputs:
        return None
    pooled = _global_pool(operation)
    if pooled is None:
        return None
    kind, channel_axis, shape = pooled
    any_size = operation.base not in ("avg_pool", "max_pool")
    value, head = operation.inputs[0], Head(kind, weight, bias, norm, channel_axis, any_size)
    # x.flatten(2).mean(2): the map before it
    while value in producers and producers[value].name in RESHAPING:
        before = tuple(producers[value].args[0].shape)
        if before[channel_axis] != shape[channel_axis] or math.prod(before) != math.prod(shape):
            break
        operation, shape, value = producers[value], before, producers[value].inputs[0]
    return head, operation, value, shape


def _global_pool(operation: Operation) -> tuple[str, int, tuple[int, ...]] | None:
    """("avg" | "max", channel axis, input shape) if the operation pools each whole map to one number."""
    tensor = operation.args[0] if operation.args else None
    if not isinstance(tensor, Tensor) or tensor.ndim < 3:
        return None
    shape, name = tuple(tensor.shape), operation.name
    if operation.base in ("adaptive_avg_pool", "adaptive_max_pool", "avg_pool", "max_pool"):
        whole = math.prod(operation.shape[2:]) == 1 and math.prod(shape[2:]) >= 1
        if operation.base in ("avg_pool", "max_pool"):
            kernel = operation.argument(1, "kernel_size")
            kernel = (kernel,) * (len(shape) - 2) if isinstance(kernel, int) else tuple(kernel)
            whole = whole and kernel == shape[2:]
        return ("avg" if "avg" in name else "max", 1, shape) if whole else None
    if name in ("mean", "amax"):
        axes = operation.argument(1, "dim")
        axes = (axes,) if isinstance(axes, int) else tuple(axes or ())
        axes = tuple(sorted(a % len(shape) for a in axes))
        kind = "avg" if name == "mean" else "max"
        if axes == tuple(range(2, len(shape))):
            return kind, 1, shape
        if axes == tuple(range(1, len(shape) - 1)):
            return kind, -1, shape
    return None
