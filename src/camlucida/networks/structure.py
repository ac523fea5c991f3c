"""What a network is made of, read from one run on the real input: its spatial layers with stride and
receptive field, the layer before pooling, and the linear head where there is one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camlucida.taps import Operation, Point, Trace, Value
from camlucida.values import Grid, Shown

PASSING = {
    "flatten", "view", "reshape", "squeeze", "squeeze_", "unsqueeze", "contiguous", "dropout", "dropout1d",
    "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "to", "float", "clone", "identity",
    "type_as", "permute", "transpose", "__getitem__", "mT",
}  # fmt: skip
RESHAPING = ("flatten", "view", "reshape")
MIXING = {
    "matmul", "__matmul__", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention",
    "multi_head_attention_forward", "interpolate", "grid_sample", "roll", "flip",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
}  # fmt: skip
POOLS = {"max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool"}


@dataclass(frozen=True, repr=False)
class Layer(Shown):
    """One spatial layer, axes in the order of the input's: stride, offset (centre of cell 0) and receptive
    field in view pixels, None where the run does not tell; `reached`: whether the logits depend on it."""

    name: str
    point: Point
    channels: int
    size: tuple[int, ...]
    stride: tuple[float, ...] | None
    offset: tuple[float, ...] | None
    receptive_field: tuple[float, ...] | None
    reached: bool
    channel_axis: int = 1  # −1: channels last

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "name", self.name
        yield "channels", self.channels
        yield "cells", _sides(self.size)
        yield "stride", _sides(self.stride)
        yield "offset", _sides(self.offset)
        yield "receptive field", _sides(self.receptive_field)
        yield "reached by gradients", "yes" if self.reached else "no"


def _sides(sides: tuple[float, ...] | None) -> str:
    return "unknown" if sides is None else " × ".join(f"{side:g}" for side in sides)


@dataclass(frozen=True)
class Head:
    """Features `(N, K, *cells)` → pool over cells → optional norm → linear → logits.

    `weight (C, K)` is None where the pooled channels are the logits themselves; `norm`: ("layer", weight,
    bias, eps) or ("affine", scale, shift), applied to the pooled vector; `channel_axis` is −1 for
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
        """Whether the class map is exact; a layer norm after pooling is linearised per picture."""
        return self.norm is None or self.norm[0] == "affine"

    def pooled(self, features: Tensor) -> Tensor:
        flat = features.float().flatten(2)
        return flat.mean(-1) if self.pool == "avg" else flat.amax(-1)

    def linear(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(weights (N or 1, C, K), shift (N or 1, K), bias (N or 1, C))` with, for these features `(N, K,
        *cells)`, logit = Σ_k weights · (pooled + shift) + bias: exact, or linearised at each picture's own
        norm."""
        channels = features.shape[1]
        weight = (
            torch.eye(channels, device=features.device)
            if self.weight is None
            else self.weight.detach().float()
        )
        bias = (
            torch.zeros(len(weight), device=features.device)
            if self.bias is None
            else self.bias.detach().float()
        )
        shift = torch.zeros(1, channels, device=features.device)
        if self.norm is None:
            return weight[None], shift, bias[None]
        if self.norm[0] == "affine":
            scale, moved = (t.detach().float() for t in self.norm[1:])
            return (weight * scale)[None], shift, (bias + weight @ moved)[None]
        _, gain, moved, eps = self.norm
        pooled = self.pooled(features)
        mean, deviation = (
            pooled.mean(1, keepdim=True),
            (pooled.var(1, unbiased=False, keepdim=True) + eps).sqrt(),
        )
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

    def grid(self, layer: Layer, view: tuple[int, ...]) -> Grid:
        stretched = tuple(v / s for v, s in zip(view, layer.size, strict=True))
        offset = layer.offset or tuple(s / 2 for s in stretched)
        return Grid(view, offset, layer.stride or stretched, layer.receptive_field or tuple(map(float, view)))


def read(trace: Trace, logits: Tensor) -> Structure:
    """The structure behind one recorded run on one picture."""
    producers = {operation.output: operation for operation in trace.operations}
    output = next((v for v in reversed(list(producers)) if v[0] == id(logits)), None)
    needed = _ancestors(output, producers)
    axes = next((len(t.shape) - 2 for t in trace.alive if (id(t), t._version) == trace.input), 2)
    fields = _receptive_fields(trace, axes)
    orders = _channel_axes(trace, axes)
    names: dict[Value, Point] = {}
    for point, (value, _) in trace.modules.items():
        if value not in names or len(point.name) < len(names[value].name):
            names[value] = point

    def cells(value: Value, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Cells per axis; none where the tensor has not the axes of the input."""
        if len(shape) != axes + 2:
            return ()
        return shape[1:-1] if orders.get(value) == -1 else shape[2:]

    def layer(point: Point, value: Value, shape: tuple[int, ...]) -> Layer:
        channel_axis = orders.get(value, 1)
        stride, offset, extent = fields.get(value, (None, None, None))
        size, reached = cells(value, shape), value in needed
        return Layer(
            str(point), point, shape[channel_axis], size, stride, offset, extent, reached, channel_axis
        )

    layers = tuple(layer(p, v, s) for p, (v, s) in trace.modules.items() if math.prod(cells(v, s)) > 1)
    found = _head(output, producers)
    if found is not None and len(found[3]) == axes + 2:
        head, user, value, shape = found
        orders[value] = head.channel_axis
        features = _features_of(value, trace)
        if features is not None:
            given = features.movedim(head.channel_axis, 1)
            again = (
                head.logits(given)
                if given.shape[1] == (head.weight.shape[1] if head.weight is not None else given.shape[1])
                else None
            )
            if again is not None and again.shape == logits.shape and _near(again, logits.float()):
                point = names.get(value) or Point(user.name, user.call, "function")
                return Structure(layers, layer(point, value, shape), head)
    return Structure(layers, _last_spatial(trace, needed, names, cells, layer), None)


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
    return next((t for t in trace.alive if (id(t), t._version) == value), None)


def _last_spatial(
    trace: Trace, needed: set[Value], names: dict[Value, Point], cells: Any, layer: Any
) -> Layer | None:
    """The last tensor with cells on the way to the logits that is no pooling and no reshaping (Grad-CAM's
    default layer)."""
    for position in range(len(trace.operations) - 1, -1, -1):
        operation = trace.operations[position]
        if (
            math.prod(cells(operation.output, operation.shape)) <= 1
            or operation.output not in needed
            or operation.name in PASSING
            or _base(operation.name) in POOLS
        ):
            continue
        if operation.output in names:
            return layer(names[operation.output], operation.output, operation.shape)
        user = next(
            (o for o in trace.operations[position + 1 :] if o.inputs and o.inputs[0] == operation.output),
            None,
        )
        if user is not None:
            return layer(Point(user.name, user.call, "function"), operation.output, operation.shape)
    return None


def _base(name: str) -> str:
    return name.rstrip("123d") if name.endswith(("1d", "2d", "3d")) else name


def _argument(operation: Operation, position: int, name: str, default: Any = None) -> Any:
    if len(operation.args) > position:
        return operation.args[position]
    return operation.kwargs.get(name, default)


def _head(
    output: Value | None, producers: dict[Value, Operation]
) -> tuple[Head, Operation, Value, tuple[int, ...]] | None:
    def back(value: Value | None) -> Operation | None:
        """The first operation above that does more than pass its input on."""
        while value in producers and producers[value].name in PASSING:
            value = producers[value].inputs[0]
        return producers.get(value) if value is not None else None

    operation = back(output)
    weight = bias = norm = None
    if operation is not None and operation.name == "linear":
        weight, bias = _argument(operation, 1, "weight"), _argument(operation, 2, "bias")
        operation = back(operation.inputs[0])
    elif operation is not None and _base(operation.name) == "conv" and math.prod(operation.shape[2:]) == 1:
        kernel = _argument(operation, 1, "weight")
        if math.prod(kernel.shape[2:]) == 1 and _argument(operation, 6, "groups", 1) == 1:
            weight, bias = kernel.flatten(1), _argument(operation, 2, "bias")
            operation = back(operation.inputs[0])
    if operation is not None and weight is not None and operation.name in ("layer_norm", "batch_norm"):
        if operation.name == "layer_norm":
            norm = (
                "layer",
                *(
                    _argument(operation, i, n, d)
                    for i, n, d in ((2, "weight", None), (3, "bias", None), (4, "eps", 1e-5))
                ),
            )
        else:
            mean, var = _argument(operation, 1, "running_mean"), _argument(operation, 2, "running_var")
            gain, moved, eps = (
                _argument(operation, i, n, d)
                for i, n, d in ((3, "weight", None), (4, "bias", None), (7, "eps", 1e-5))
            )
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
    any_size = _base(operation.name) not in ("avg_pool", "max_pool")
    value, head = operation.inputs[0], Head(kind, weight, bias, norm, channel_axis, any_size)
    while (
        value in producers and producers[value].name in RESHAPING
    ):  # x.flatten(2).mean(2): the map before it
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
    if _base(name) in ("adaptive_avg_pool", "adaptive_max_pool", "avg_pool", "max_pool"):
        whole = math.prod(operation.shape[2:]) == 1 and math.prod(shape[2:]) >= 1
        if _base(name) in ("avg_pool", "max_pool"):
            kernel = _argument(operation, 1, "kernel_size")
            kernel = (kernel,) * (len(shape) - 2) if isinstance(kernel, int) else tuple(kernel)
            whole = whole and kernel == shape[2:]
        return ("avg" if "avg" in name else "max", 1, shape) if whole else None
    if name in ("mean", "amax"):
        axes = _argument(operation, 1, "dim")
        axes = (axes,) if isinstance(axes, int) else tuple(axes or ())
        axes = tuple(sorted(a % len(shape) for a in axes))
        kind = "avg" if name == "mean" else "max"
        if axes == tuple(range(2, len(shape))):
            return kind, 1, shape
        if axes == tuple(range(1, len(shape) - 1)):
            return kind, -1, shape
    return None


Field = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]


def _channel_axes(trace: Trace, axes: int) -> dict[Value, int]:
    """1 or −1 (channels last) for values with the axes of the input, as far as the run tells."""
    places = {trace.input: 1}
    ranks = {trace.input: axes + 2}
    for operation in trace.operations:
        rank = ranks[operation.output] = len(operation.shape)
        given = next((v for v in operation.inputs if v in places and ranks[v] == rank), None)
        if rank != axes + 2 or given is None:
            continue
        place = places[given] % rank
        if operation.name in ("permute", "transpose"):
            asked = _argument(operation, 1, "dims", _argument(operation, 1, "dim0"))
            order = list(range(rank))
            if operation.name == "permute":
                dims = asked if isinstance(asked, (tuple, list)) else operation.args[1:]
                order = [d % rank for d in dims]
            else:
                a, b = asked, _argument(operation, 2, "dim1")
                order[a], order[b] = order[b], order[a]
            place = order.index(place)
        elif _base(operation.name) in ("conv", "conv_transpose", *POOLS):
            place = 1
        if place in (1, rank - 1):
            places[operation.output] = 1 if place == 1 else -1
    return places


def _receptive_fields(trace: Trace, axes: int) -> dict[Value, Field]:
    """(stride, centre of cell 0, receptive field) of each value, by the recurrence of section 8. Where
    branches meet, the larger field counts; gates that were pooled to one cell are left aside; None after an
    operation that reaches further than it tells."""
    fields: dict[Value, Field] = {trace.input: ((1.0,) * axes, (0.5,) * axes, (1.0,) * axes)}
    lost: set[Value] = set()
    for operation in trace.operations:
        if any(v in lost for v in operation.inputs):
            lost.add(operation.output)
            continue
        known = [fields[v] for v in operation.inputs if v in fields]
        if not known:
            continue
        stride, offset, extent = max(known, key=lambda f: f[2])
        base = _base(operation.name)
        if base in ("conv", "max_pool", "avg_pool"):
            window = _window(operation, axes, base)
            if window is None:
                lost.add(operation.output)
                continue
            kernel, step, padding, dilation = window
            reach = tuple(d * (k - 1) for k, d in zip(kernel, dilation, strict=True))
            extent = tuple(e + r * s for e, r, s in zip(extent, reach, stride, strict=True))
            offset = tuple(
                o + (r / 2 - p) * s for o, r, p, s in zip(offset, reach, padding, stride, strict=True)
            )
            stride = tuple(s * t for s, t in zip(stride, step, strict=True))
        elif operation.name == "pad":
            sides = _argument(operation, 1, "pad")
            before = tuple(sides[2 * i] if 2 * i < len(sides) else 0 for i in reversed(range(axes)))
            offset = tuple(o - b * s for o, b, s in zip(offset, before, stride, strict=True))
        elif operation.name in MIXING:
            lost.add(operation.output)
            continue
        elif base.startswith("adaptive") or operation.name in ("mean", "amax", "linear", "__getitem__"):
            given = tuple(getattr(operation.args[0], "shape", ())) if operation.args else ()
            channels_last = operation.name == "linear" and given[1:-1] == operation.shape[1:-1] != ()
            if not channels_last and given[2:] != operation.shape[2:]:
                if math.prod(operation.shape[2:]) > 1:
                    lost.add(operation.output)
                continue
        fields[operation.output] = (stride, offset, extent)
    return fields


def _window(operation: Operation, axes: int, base: str) -> tuple | None:
    def per_axis(value: Any) -> tuple:
        return (value,) * axes if isinstance(value, (int, float)) else tuple(value)

    if base == "conv":
        kernel = tuple(_argument(operation, 1, "weight").shape[2:])
        step, dilation = (
            per_axis(_argument(operation, 3, "stride", 1)),
            per_axis(_argument(operation, 5, "dilation", 1)),
        )
        padding = _argument(operation, 4, "padding", 0)
        if padding == "same":
            padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
        padding = (0,) * axes if padding == "valid" else per_axis(padding)
    else:
        kernel = per_axis(_argument(operation, 1, "kernel_size"))
        step = _argument(operation, 2, "stride", None)
        step = kernel if step is None or step == [] else per_axis(step)
        padding = per_axis(_argument(operation, 3, "padding", 0))
        dilation = per_axis(_argument(operation, 4, "dilation", 1)) if base == "max_pool" else (1,) * axes
    return (kernel, step, padding, dilation) if len(kernel) == axes else None
