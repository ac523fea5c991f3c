"""Deconvnet projection (ZF paper, section 2.1): one unit's activation, led back to the pixels that made it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camlucida import taps
from camlucida.errors import LayerError, TargetError, UnsupportedError, UsageError
from camlucida.maps.gradients import scored
from camlucida.maps.guided_backprop import only
from camlucida.networks.network import Network
from camlucida.networks.structure import Layer
from camlucida.taps import Operation, Trace, Value
from camlucida.targets import ClassTarget, Output, Target, UnitTarget
from camlucida.values import Batch, Reconstruction

POOLS = {"max_pool", "max_pool_with_indices", "adaptive_max_pool", "adaptive_max_pool_with_indices"}
RELUS = {"relu", "relu6", "clamp_min", "clamp", "hardtanh", "threshold"}
# As it is: what changes no value, and the contrast normalisation, which the way down leaves out.
PASSED = {
    "local_response_norm", "dropout", "alpha_dropout", "feature_dropout", "clone", "contiguous", "identity", "to", "type_as",
    "type", "float", "half", "bfloat16", "double", "detach", "requires_grad", "alias", "cpu", "cuda", "data",
}  # fmt: skip
JOINED = {
    "add", "iadd", "radd", "sub", "isub", "rsub", "subtract", "cat", "concat", "concatenate", "stack",
}  # fmt: skip
SCALED = {"mul", "imul", "rmul", "multiply"}
LINEAR = {
    *JOINED, *SCALED, "conv", "conv_transpose", "avg_pool", "adaptive_avg_pool", "batch_norm", "linear", "neg", "div", "idiv",
    "truediv", "itruediv", "true_divide", "divide", "pad", "interpolate", "upsample", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    "native_channel_shuffle", "flatten", "view", "reshape", "unflatten", "permute", "transpose", "swapaxes", "swapdims",
    "movedim", "squeeze", "unsqueeze", "expand", "getitem", "select", "narrow", "index_select", "chunk", "split",
    "tensor_split", "unbind", "flip", "roll", "mean", "sum", "T", "mT",
}  # fmt: skip


@dataclass(frozen=True)
class DeconvNet:
    """The forward pass run backwards from one unit (a channel) of a layer, all else of the layer set to zero: max
    pooling is **unpooled** into the switches of this picture, a ReLU **rectifies** what comes down, a convolution
    **filters** with its own weights transposed, without its bias. `values (N, C, *spatial)` signed.

    `layer`: name or module; None: Grad-CAM's. `unit`: a channel; `"strongest"`: the one with the picture's highest
    activation; None: what the target says, which is the unit of a UnitTarget (it names layer and position, too), and for
    any other target the unit that adds most to its score, Σ activation × gradient. `at`: its strongest position
    in the picture (`max`), the whole map (`all`), or a cell. `unpool`: where overlapping windows chose one input, their
    values `sum`, or the last window's is `assign`ed.

    What is no pool, ReLU or filter goes by its linear part (batch norm with its fixed statistics, average pooling,
    additions, concatenations, strides, groups, padding); dropout and local response normalisation are passed, because the
    paper normalises no contrast on the way down. Raises UnsupportedError, before anything is projected, naming what
    else lies on the way: fully connected layers, other activations, layer norm, attention.
    """

    layer: str | nn.Module | None = None
    unit: int | Literal["strongest"] | None = None
    at: Literal["max", "all"] | tuple[int, ...] = "max"
    unpool: Literal["sum", "assign"] = "sum"

    def __post_init__(self) -> None:
        if isinstance(self.at, str) and self.at not in ("max", "all"):
            raise UsageError(
                "DeconvNet.at", got=repr(self.at), allowed="'max', 'all' or a cell (row, column)"
            )
        if isinstance(self.unit, str) and self.unit != "strongest":
            raise UsageError("DeconvNet.unit", got=repr(self.unit), allowed="a channel, 'strongest' or None")
        if self.unpool not in ("sum", "assign"):
            raise UsageError("DeconvNet.unpool", got=repr(self.unpool), allowed="'sum' or 'assign'")

    def __call__(
        self, network: Network, batch: Batch | Tensor, target: Target | None = None
    ) -> Reconstruction:
        batch = Batch.of(batch)
        view = tuple(batch.pixels.shape[2:])
        wanted: Any = self.layer
        at: Any = self.at
        if isinstance(target, UnitTarget):
            wanted, at = self._of_target(network, batch, target), "all" if target.at == "sum" else target.at
        layer = network.find_layer(wanted, batch.pixels)
        with taps.borrowed(network.module):
            trace, activations = recorded(network, batch.pixels, layer)
            way = Way(trace, layer)
            cells = layer.cells(activations)
            units, words, classes = self._units(network, batch, target, layer, cells)
            signal = torch.zeros_like(activations)
            chosen = layer.cells(signal)
            scores, details, windows = [], [], []
            for i, unit in enumerate(units):
                if unit is None:
                    scores.append(0.0)
                    details.append("no unit adds to it: no gradient")
                    windows.append(_window(layer, None, view))
                    continue
                place = _place(cells[i, unit], at)
                where = (i, unit, *(place or ()))
                chosen[where] = cells[where]
                scores.append(float(cells[where].sum()))
                details.append(f"unit {unit}{f' at {place}' if place else ''}, activation {scores[-1]:.3g}")
                windows.append(_window(layer, place, view))
            values = way.down(signal, self.unpool).float()
        position = {"max": "its strongest position", "all": "all its positions"}.get(str(at), f"{at}")
        return Reconstruction(
            values, batch.views, "deconvnet", f"{words}, at {position}", layer.name,
            torch.tensor(scores, device=values.device), classes, tuple(details), tuple(windows),
        )  # fmt: skip

    def _of_target(self, network: Network, batch: Batch, target: UnitTarget) -> str:
        """The layer that a UnitTarget names; raises UsageError where the fields say otherwise."""
        names = network.find_layer(target.layer, batch.pixels).name
        if self.unit is not None or self.at != "max":
            raise UsageError(
                "DeconvNet",
                got="unit= or at=, and a UnitTarget, which names both",
                do="leave one of them out",
            )
        if self.layer is not None and network.find_layer(self.layer, batch.pixels).name != names:
            raise UsageError("DeconvNet(layer=…)", got=f"a UnitTarget in {names}", do="leave one of them out")
        return target.layer

    def _units(
        self, network: Network, batch: Batch, target: Target | None, layer: Layer, cells: Tensor
    ) -> tuple[list[int | None], str, Tensor | None]:
        """One unit per picture (None: no gradient), in words, and the classes that chose them."""
        unit = target.channel if isinstance(target, UnitTarget) else self.unit
        if unit == "strongest":
            return cells.flatten(2).amax(2).argmax(1).tolist(), f"the strongest unit of {layer.name}", None
        if unit is not None:
            UnitTarget(layer.name, unit).bind(Output(None, {layer.name: cells}))
            return [unit] * len(cells), f"unit {unit} of {layer.name}", None
        live = [one.name for one in network.structure(batch.pixels).layers if one.reached][-5:]
        run = scored(
            network, batch, target or ClassTarget.predicted(), layer.point, f"layer {layer.name}",
            f"live: {', '.join(live)}; or name a unit: DeconvNet(unit=…)",
        )  # fmt: skip
        only(run.scores, "deconvnet")
        (gradient,) = run.gradients()
        adds = (layer.cells(gradient) * cells).flatten(2).sum(2)
        dead = (gradient == 0).flatten(1).all(1)
        units = [None if d else u for u, d in zip(adds.argmax(1).tolist(), dead.tolist(), strict=True)]
        classes = None if run.bound.classes is None else run.bound.classes[:, 0]
        return units, f"the unit of {layer.name} that adds most to the {run.bound.words}", classes


def _place(unit: Tensor, at: Any) -> tuple[int, ...] | None:
    """The cell of one unit's map `(*cells)`; None: all of them. Raises TargetError for one that is not there."""
    if at == "all":
        return None
    if at == "max":
        return tuple(int(i) for i in np.unravel_index(int(unit.argmax()), tuple(unit.shape)))
    if len(at) != unit.ndim or not all(0 <= a < c for a, c in zip(at, unit.shape, strict=True)):
        raise TargetError("DeconvNet(at=…)", got=repr(at), allowed=f"a cell inside {tuple(unit.shape)}")
    return tuple(int(a) for a in at)


def _window(
    layer: Layer, place: tuple[int, ...] | None, view: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """Per axis the first pixel that the cell sees and the one past the last, inside the view; all of it where the run
    does not tell."""
    if place is None or layer.receptive_field is None or layer.stride is None or layer.offset is None:
        return tuple((0, length) for length in view)
    found = []
    for a, length in enumerate(view):
        middle, half = layer.offset[a] + layer.stride[a] * place[a], layer.receptive_field[a] / 2
        low = min(max(0, round(middle - half)), length - 1)
        found.append((low, max(low + 1, min(length, round(middle + half)))))
    return tuple(found)


# --- the way down ------------------------------------------------------------------------------------------


def recorded(network: Network, pixels: Tensor, layer: Layer) -> tuple[Trace, Tensor]:
    """One forward pass with the switches of every max pooling, and what the layer gave; inside `taps.borrowed`."""
    with taps.watched(network.module, [layer.point]) as tapped:
        trace = taps.trace(network.module, network.forward, pixels, _switches)
    return trace, tapped[layer.point]


def _switches(name: str, args: tuple, kwargs: dict) -> Tensor | None:
    """Where each window of a max pooling found its maximum: indices into the flattened cells, `(N, C, *cells)`."""
    base = _base(name)
    if base not in POOLS:
        return None
    pool = getattr(F, f"{base.removesuffix('_with_indices')}{_axes(name)}d")
    return pool(*args[:6], **{**kwargs, "return_indices": True})[1]


class Way:
    """The operations between the pixels and a layer, each of which can be led back. Raises UnsupportedError for one that
    cannot, LayerError if the layer does not look at the pixels."""

    def __init__(self, trace: Trace, layer: Layer) -> None:
        self.trace, self.layer = trace, layer
        self.traced = {trace.input}  # what depends on the pixels
        seen = {trace.input[0]}  # also where something was written into it since
        for operation in trace.operations:
            if any(identity in seen for identity, _ in operation.inputs):
                self.traced.add(operation.output)
                seen.add(operation.output[0])
        self.start = self._start()
        if self.start not in self.traced:
            raise LayerError(f"layer {layer.name} does not depend on the pixels")
        needed, self.operations = {self.start}, list[Operation]()
        for operation in reversed(trace.operations):
            if operation.output in needed and operation.output in self.traced:
                self._check(operation, seen)
                needed.update(operation.inputs)
                self.operations.append(operation)

    def _start(self) -> Value:
        point = self.layer.point
        if point.of == "module":
            return self.trace.modules[point][0]
        return next(
            o.inputs[0] for o in self.trace.operations if (o.name, o.call) == (point.name, point.call)
        )

    def _check(self, operation: Operation, seen: set[int]) -> None:
        base, inputs = _base(operation.name), operation.inputs
        given = [value in self.traced for value in inputs]
        why = ""
        if any(value[0] in seen and not known for value, known in zip(inputs, given, strict=True)):
            why = "it is given a tensor that was written into in place"
        elif base in RELUS:
            why = "" if _floor(operation) == 0 else "it cuts off elsewhere than at zero"
        elif base in POOLS | PASSED | JOINED:
            pass
        elif base not in LINEAR:
            why = "it is no pooling, ReLU or filter"
        elif sum(given) > 1 or not (given[0] or base in SCALED):
            why = "two things that depend on the picture are multiplied"
        elif base == "linear" and operation.args and operation.args[0].ndim < 3:
            why = "fully connected layers are not inverted"
        elif base == "batch_norm" and (
            operation.argument(5, "training", False) or operation.argument(1, "running_mean") is None
        ):
            why = "it normalises by the statistics of the batch"
        if why:
            names = [str(p) for p, (value, _) in self.trace.modules.items() if value == operation.output]
            what = min(names, key=len, default="") or f"call {operation.call + 1} in the network's forward"
            raise UnsupportedError(
                f"deconvnet from {self.layer.name}",
                got=f"{operation.name} ({what}) on the way down: {why}",
                do="choose a layer before it, or use cl.GuidedBackprop()",
            )

    def down(self, signal: Tensor, unpool: str = "sum") -> Tensor:
        """What a signal at the layer (its tensor's shape) becomes at the pixels `(N, C, *spatial)`."""
        signal = signal.to(torch.promote_types(signal.dtype, torch.float32))
        signals = {self.start: signal}
        for operation in self.operations:
            above = signals.pop(operation.output)
            base = _base(operation.name)
            if base in POOLS:
                below: Iterable[tuple[Value, Tensor]] = [
                    (operation.inputs[0], unpooled(above, operation, unpool))
                ]
            elif base in RELUS:
                below = [(operation.inputs[0], above.relu())]
            elif base in PASSED:
                below = [(operation.inputs[0], above.to(_first(operation).device))]
            else:
                below = self._transposed(operation, above)
            for value, part in below:
                signals[value] = signals[value] + part if value in signals else part
        return signals.get(self.trace.input, signal.new_zeros(self.trace.shape))

    def _transposed(self, operation: Operation, above: Tensor) -> list[tuple[Value, Tensor]]:
        """A linear operation the other way: the transpose of what it does to a change of its inputs, so that padding,
        stride, groups and sizes are those of the forward pass, and no bias takes part."""
        places = iter(operation.inputs)
        leaves: list[tuple[Value, Tensor]] = []

        def stand_in(tree: Any) -> Any:
            if isinstance(tree, Tensor):
                value = next(places)
                if value in self.traced:
                    blank = torch.zeros(tree.shape, dtype=above.dtype, device=tree.device, requires_grad=True)
                    leaves.append((value, blank))
                    return blank.clone()  # which an in-place operation may overwrite
                constant = tree.detach().clone() if tree.is_inference() else tree.detach()
                return constant.to(above.dtype) if constant.is_floating_point() else constant
            if type(tree) in (tuple, list):
                return type(tree)([stand_in(branch) for branch in tree])
            if type(tree) is dict:
                return {key: stand_in(branch) for key, branch in tree.items()}
            return tree

        with torch.enable_grad():
            args, kwargs = stand_in((operation.args, operation.kwargs))
            made = operation.function(*args, **kwargs)
        made = made if isinstance(made, Tensor) else list(made)[operation.part]
        blanks = [blank for _, blank in leaves]
        found = torch.autograd.grad(made, blanks, above.to(made.device), allow_unused=True)
        return [(v, torch.zeros_like(b) if g is None else g) for (v, b), g in zip(leaves, found, strict=True)]


def unpooled(above: Tensor, operation: Operation, how: str) -> Tensor:
    """Each window's value at its switch, zero elsewhere. Where several windows chose one input, their `sum`, or the value of
    the last of them in reading order (`assign`)."""
    shape, axes = _first(operation).shape, _axes(operation.name)
    values, switches = above.flatten(-axes).flatten(0, -2), operation.kept.flatten(-axes).flatten(0, -2)
    below = values.new_zeros(len(values), int(np.prod(shape[-axes:])))
    if how == "sum":
        rows = torch.arange(len(values), device=values.device)[:, None].expand_as(switches)
        below.index_put_((rows, switches), values, accumulate=True)  # on every device in one order
    else:
        last = torch.full_like(below, -1, dtype=torch.int64)
        order = torch.arange(values.shape[1], device=values.device).expand_as(switches)
        last.scatter_reduce_(1, switches, order, "amax")
        below = torch.where(last >= 0, values.gather(1, last.clamp(min=0)), below)
    return below.view(shape)


def _base(name: str) -> str:
    """`max_pool` of `max_pool2d`, `relu` of `relu_`, `getitem` of `__getitem__`."""
    for axes in ("1d", "2d", "3d"):
        name = name.replace(axes, "")
    return name.strip("_")


def _axes(name: str) -> int:
    return int(name[name.index("pool") + 4])


def _first(operation: Operation) -> Tensor:
    return next(t for t in (*operation.args, *operation.kwargs.values()) if isinstance(t, Tensor))


def _floor(operation: Operation) -> Any:
    """Where an operation of RELUS cuts off below."""
    base = _base(operation.name)
    if base in ("relu", "relu6"):
        return 0
    if base == "threshold" and operation.argument(2, "value") != 0:
        return None
    name, default = {"hardtanh": ("min_val", -1.0), "threshold": ("threshold", None)}.get(base, ("min", None))
    return operation.argument(1, name, default)
