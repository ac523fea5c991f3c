"""The exported graph of a network, sorted into what a local edit changes locally, and the rest."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from camlucida.errors import UnsupportedError
from camlucida.maps.incremental.export import EXAMPLES, export, name_of, named, run_node
from camlucida.networks.network import Network

# Every output cell depends on the same cell of the inputs alone, and no argument names an axis.
POINTWISE = frozenset([
    "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "log_sigmoid", "silu", "gelu",
    "elu", "selu", "celu", "leaky_relu", "prelu", "tanh", "softplus", "softsign", "mish", "threshold",
    "hardshrink", "softshrink", "clamp", "clamp_min", "clamp_max", "add", "sub", "rsub", "mul", "div",
    "pow", "sqrt", "rsqrt", "square", "exp", "log", "neg", "abs", "erf", "sin", "cos", "reciprocal",
    "maximum", "minimum", "dropout", "feature_dropout", "alias", "clone", "contiguous", "detach", "to",
    "_to_copy", "lift_fresh_copy", "batch_norm",
])  # fmt: skip
FRESH = (
    "conv2d",
    "linear",
    "batch_norm",
    "add",
    "mul",
)  # their output is theirs alone: the next may work in place


@dataclass(frozen=True)
class Reach:
    """What an output position reads along one axis: `kernel` (dilation included) inputs every `stride`, `pad` cells
    laid before the first."""

    kernel: int
    stride: int
    pad: int


@dataclass(frozen=True)
class Step:
    """An operation whose output is a map `(height, width)`, at dimensions `axes` of its tensor. `reach` per axis:
    of a convolution, pooling or padding; None: cell by cell."""

    node: fx.Node
    inputs: tuple[fx.Node, ...]
    axes: tuple[int, int]
    shape: tuple[int, ...]  # without the batch
    reach: tuple[Reach, Reach] | None = None
    outside: float = 0.0  # the value beyond the border
    cost: float = 0.0  # multiply-adds per cell

    @property
    def size(self) -> tuple[int, int]:
        return self.shape[self.axes[0] - 1], self.shape[self.axes[1] - 1]


@dataclass
class LocalGraph:
    """`steps` can be followed in windows; `rest` is run on whole maps, from the `boundary` maps that it reads."""

    module: fx.GraphModule
    pixels: fx.Node
    steps: dict[fx.Node, Step]
    constants: dict[fx.Node, Any]
    rest: list[fx.Node]
    boundary: tuple[fx.Node, ...]
    output: fx.Node
    stopped_by: tuple[str, ...]  # the operations at which windows end, in words
    transformed: dict[Any, Any] = field(default_factory=dict)  # weights prepared by the runner
    layers: dict[str, Any] = field(default_factory=dict)  # by name, the node that gives what a layer gives
    refused: str = ""  # why it is not to be used

    @property
    def words(self) -> str:
        """How far windows carry."""

        def heavy(nodes: Any) -> int:
            return sum(name_of(n) in ("conv2d", "linear", "matmul", "bmm", "mm") for n in nodes)

        inside = heavy(self.steps)
        return (
            f"{inside} of {inside + heavy(self.rest)} layers with weights in windows, whole maps from "
            f"{self.stopped_by[0] if self.stopped_by else 'none'} on"
        )


def place_of(node: fx.Node) -> str:
    """The operation with the module that it belongs to."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = next((p for p, _ in reversed(stack) if p and not p.startswith("_")), "")
    return f"{name_of(node) or node.name}{f' of {path}' if path else ''}"


def local_graph(network: Network, pixels: Tensor) -> LocalGraph:
    """The graph for pictures of this shape, kept on the network while no weight changes. Call it inside
    `taps.borrowed`. Raises UnsupportedError with the reason, which is kept as well."""
    hooked = [n for n, m in network.module.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    if hooked:
        where = hooked[0] or type(network.module).__name__
        raise UnsupportedError(f"module {where} has hooks, which no graph repeats")
    if "mixed" in network.precision:
        raise UnsupportedError(f"precision {network.precision}: autocast chooses types at each run")
    if pixels.ndim != 4:
        raise UnsupportedError(f"windows are followed along two axes, not {pixels.ndim - 2}")

    def make() -> LocalGraph | UnsupportedError:
        try:
            return sort(export(network, pixels))
        except UnsupportedError as error:
            return error

    found = network.keep(("local graph", tuple(pixels.shape[1:]), network.precision), make)
    if isinstance(found, UnsupportedError):
        raise UnsupportedError(str(found))
    if found.refused:
        raise UnsupportedError(found.refused)
    return found


def sort(module: fx.GraphModule) -> LocalGraph:
    """Sorts the nodes of an exported graph."""
    nodes = [n for n in module.graph.nodes if n.op != "call_module" or n.target != "_guards_fn"]
    placeholders = [n for n in nodes if n.op == "placeholder"]
    (pixels,) = placeholders
    shape = tuple(pixels.meta["val"].shape[1:])
    steps = {pixels: Step(pixels, (), (2, 3), shape)}
    constants: dict[fx.Node, Any] = {}
    rest: list[fx.Node] = []
    stopped: list[str] = []
    for node in nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node.op == "get_attr":
            constants[node] = operator.attrgetter(str(node.target))(module)
            continue
        if node.op != "call_function":
            raise UnsupportedError(f"the graph calls {node.op} {node.target}")
        given = node.all_input_nodes
        if all(n in constants for n in given):
            constants[node] = run_node(node, EXAMPLES, constants)
            continue
        step = _step(node, steps, constants)
        if step is not None:
            steps[node] = step
            continue
        if any(n in steps for n in given):
            stopped.append(place_of(node))
        rest.append(node)
    output = nodes[-1]
    readers = [*rest, output]
    boundary = tuple(n for n in steps if any(n in r.all_input_nodes for r in readers))
    needed: set[fx.Node] = set(boundary)
    for node in reversed(list(steps)):
        if node in needed:
            needed.update(steps[node].inputs)
    steps = {n: s for n, s in steps.items() if n in needed}
    if len(steps) < 2 or not any(s.reach for s in steps.values()):
        raise UnsupportedError(
            f"no layer can be followed in windows: the first is {stopped[0] if stopped else 'none'}"
        )
    return LocalGraph(module, pixels, steps, constants, rest, boundary, output, tuple(stopped))


def _step(node: fx.Node, steps: dict[fx.Node, Step], constants: dict[fx.Node, Any]) -> Step | None:
    """The step that a node is, or None where its output is not local in its inputs."""
    name = name_of(node)
    given = tuple(n for n in node.all_input_nodes if n in steps)
    value: Any = node.meta.get("val")
    if node.target is operator.getitem:
        name = "getitem"
    if not name or not given or any(n not in steps and n not in constants for n in node.all_input_nodes):
        return None
    first = steps[given[0]]
    if any(
        (steps[g].axes, steps[g].size, len(steps[g].shape)) != (first.axes, first.size, len(first.shape))
        for g in given
    ):
        return None
    arguments = named(node)
    if name in ("conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"):
        return _window(node, name, arguments, first, constants)
    axes = _axes(name, arguments, first, node, constants)
    if axes is None:
        return None
    shapes = (
        [tuple(v.shape[1:]) for v in value] if isinstance(value, (tuple, list)) else [tuple(value.shape[1:])]
    )
    step = Step(node, given, axes, shapes[0], cost=20.0 * math.prod(shapes[0]) / math.prod(first.size))
    if name == "linear":
        step = Step(node, given, axes, shapes[0], cost=float(constants[arguments["weight"]].numel()))
    if name in ("constant_pad_nd", "pad") and (reach := _padding(arguments, first)) is not None:
        fill = arguments.get("value") or 0.0
        return Step(node, given, axes, shapes[0], reach, float(fill), step.cost)
    if any(s[a - 1] != z for s in shapes for a, z in zip(axes, first.size, strict=True)):
        return None
    return step


def _axes(
    name: str, arguments: dict[str, Any], first: Step, node: fx.Node, constants: dict[fx.Node, Any]
) -> tuple[int, int] | None:
    """Where height and width are in the output of a step that works cell by cell; None for one that does not."""
    rank, axes = len(first.shape) + 1, first.axes
    if name in POINTWISE:
        if name == "batch_norm":
            statistics = arguments["running_mean"] is not None and not arguments["training"]
            return axes if statistics and axes == (2, 3) and rank == 4 else None
        if name in ("dropout", "feature_dropout") and arguments["train"]:
            return None
        if name == "prelu":
            return axes if axes[0] > 1 else None
        for n in node.all_input_nodes:
            if n in constants and isinstance(constants[n], Tensor) and _spreads(constants[n], rank, axes):
                return None
        return axes
    if name == "getitem":
        return axes
    if name in ("permute", "transpose"):
        order = list(range(rank))
        if name == "permute":
            order = [d % rank for d in arguments["dims"]]
        else:
            a, b = arguments["dim0"] % rank, arguments["dim1"] % rank
            order[a], order[b] = b, a
        if order[0] != 0:
            return None
        moved = order.index(axes[0]), order.index(axes[1])
        return moved if moved[0] < moved[1] else None
    if name == "linear":
        return axes if arguments["weight"] in constants and rank - 1 not in axes else None
    if name == "layer_norm":
        inside = range(rank - len(arguments["normalized_shape"]), rank)
        return axes if not set(inside) & {0, *axes} else None
    if name == "unsqueeze":
        at = arguments["dim"] % (rank + 1)
        return _shifted(axes, at, 1) if at else None
    if name in ("squeeze", "select", "cat", "softmax", "slice", "split", "split_with_sizes", "chunk"):
        dims = arguments.get("dim", 0)
        if not isinstance(dims, int):
            return None
        at = dims % rank
        if at in (0, *axes):
            return None
        if name == "squeeze":
            return _shifted(axes, at, -1) if first.shape[at - 1] == 1 else axes
        return _shifted(axes, at, -1) if name == "select" else axes
    if name in ("view", "reshape", "_unsafe_view"):
        shape = node.meta["val"].shape
        kept = axes == (rank - 2, rank - 1) and tuple(shape[-2:]) == first.size
        kept = kept and len(shape) > 2 and math.prod(shape[1:]) == math.prod(first.shape)
        return (len(shape) - 2, len(shape) - 1) if kept else None
    if name == "avg_pool3d":  # over channels, as contrast normalisation does
        reads = [
            _per_axis(arguments[k] or arguments["kernel_size"], 3)[1:] for k in ("kernel_size", "stride")
        ]
        alone = reads == [(1, 1), (1, 1)] and _per_axis(arguments["padding"], 3)[1:] == (0, 0)
        return axes if alone and axes == (3, 4) and arguments["divisor_override"] is None else None
    if name in ("constant_pad_nd", "pad"):
        return (
            axes
            if arguments.get("mode", "constant") == "constant" and _paddable(arguments, axes, rank)
            else None
        )
    return None


def _spreads(constant: Tensor, rank: int, axes: tuple[int, int]) -> bool:
    """Whether a constant differs from cell to cell, or from picture to picture."""
    sizes = (1,) * (rank - constant.ndim) + tuple(constant.shape)
    return constant.ndim > rank or any(sizes[a] != 1 for a in (0, *axes))


def _shifted(axes: tuple[int, int], at: int, by: int) -> tuple[int, int]:
    y, x = (a + by if a >= at else a for a in axes)
    return y, x


def _per_axis(given: Any, axes: int = 2) -> tuple[int, ...]:
    if isinstance(given, int):
        return (given,) * axes
    return tuple(given) * axes if len(given) == 1 else tuple(given)


def _paddable(arguments: dict[str, Any], axes: tuple[int, int], rank: int) -> bool:
    """No padding before or after the pictures of a batch; along the map, no cut and only for `(N, C, H, W)`."""
    pads = arguments["pad"]
    padded = {rank - 1 - i // 2 for i, p in enumerate(pads) if p}
    if padded & set(axes):
        return axes == (2, 3) and rank == 4 and padded <= set(axes) and min(pads) >= 0
    return 0 not in padded


def _padding(arguments: dict[str, Any], first: Step) -> tuple[Reach, Reach] | None:
    pads = [*arguments["pad"], 0, 0, 0, 0][:4]
    rank = len(first.shape) + 1
    if not any(pads) or first.axes != (rank - 2, rank - 1):
        return None
    return Reach(1, 1, pads[2]), Reach(1, 1, pads[0])


def _window(
    node: fx.Node, name: str, arguments: dict[str, Any], first: Step, constants: dict[fx.Node, Any]
) -> Step | None:
    """A convolution or pooling over `(N, C, H, W)`."""
    if first.axes != (2, 3) or len(first.shape) != 3:
        return None
    shape = tuple(node.meta["val"].shape[1:])
    if name == "adaptive_avg_pool2d":
        steps = [
            size // out if size % out == 0 else 0 for size, out in zip(first.size, shape[1:], strict=True)
        ]
        if 0 in steps or 1 in shape[1:]:  # cells of several sizes; or all of the map
            return None
        reach = Reach(steps[0], steps[0], 0), Reach(steps[1], steps[1], 0)
        return Step(node, (first.node,), (2, 3), shape, reach, cost=20.0 * shape[0])
    cost = 20.0 * shape[0]
    if name == "conv2d":
        weight = arguments["weight"]
        if weight not in constants or (arguments["bias"] is not None and arguments["bias"] not in constants):
            return None
        sizes = tuple(constants[weight].shape[2:])
        cost = float(constants[weight].numel())
    else:
        sizes = _per_axis(arguments["kernel_size"])
    strides = _per_axis(arguments["stride"] or arguments.get("kernel_size"))
    dilations = _per_axis(arguments.get("dilation", 1))
    spans = [d * (k - 1) + 1 for k, d in zip(sizes, dilations, strict=True)]
    padding = arguments["padding"]
    if padding == "same":
        pads: Sequence[int] = [(s - 1) // 2 for s in spans]
    else:
        pads = (0, 0) if padding == "valid" else _per_axis(padding)
    reach = Reach(spans[0], strides[0], pads[0]), Reach(spans[1], strides[1], pads[1])
    outside = -math.inf if name == "max_pool2d" else 0.0
    return Step(node, (first.node,), (2, 3), shape, reach, outside, cost)
