"""What a cell of each value of a run sees of the picture: stride, centre and receptive field, by the recurrence of
section 8."""

from __future__ import annotations

import math
from typing import Any

from camlucida.networks.layouts import Tokens
from camlucida.taps import OPAQUE, Operation, Trace, Value

MIXING = {
    "matmul", "__matmul__", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention",
    "multi_head_attention_forward", "_native_multi_head_attention", "interpolate", "grid_sample", "roll", "flip",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", OPAQUE,
}  # fmt: skip
Field = tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]


def receptive_fields(trace: Trace, axes: int, tokens: dict[Value, Tokens]) -> dict[Value, Field]:
    """(stride, centre of cell 0, receptive field) of each value, by the recurrence of section 8. Where
    branches meet, the larger field counts; gates that were pooled to one cell are left aside; None after an
    operation that reaches further than it tells."""
    fields: dict[Value, Field] = {trace.input: ((1.0,) * axes, (0.5,) * axes, (1.0,) * axes)}
    lost: set[Value] = set()
    for operation in trace.operations:
        across = operation.name == "linear" and any(
            tokens[v].axis == 2 for v in operation.inputs if v in tokens
        )
        if across or any(v in lost for v in operation.inputs):
            lost.add(operation.output)
            continue
        known = [fields[v] for v in operation.inputs if v in fields]
        if not known:
            continue
        stride, offset, extent = max(known, key=lambda f: f[2])
        base = operation.base
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
            sides = operation.argument(1, "pad")
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
        kernel = tuple(operation.argument(1, "weight").shape[2:])
        step = per_axis(operation.argument(3, "stride", 1))
        dilation = per_axis(operation.argument(5, "dilation", 1))
        padding = operation.argument(4, "padding", 0)
        if padding == "same":
            padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
        padding = (0,) * axes if padding == "valid" else per_axis(padding)
    else:
        kernel = per_axis(operation.argument(1, "kernel_size"))
        step = operation.argument(2, "stride", None)
        step = kernel if step is None or step == [] else per_axis(step)
        padding = per_axis(operation.argument(3, "padding", 0))
        dilation = per_axis(operation.argument(4, "dilation", 1)) if base == "max_pool" else (1,) * axes
    return (kernel, step, padding, dilation) if len(kernel) == axes else None
