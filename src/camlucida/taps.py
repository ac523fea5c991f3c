"""The only file that reaches into a running module. Whatever it attaches, switches or draws is put back,
always."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from camlucida.errors import LayerError, UnsupportedError, nearest


@dataclass(frozen=True)
class Point:
    """A place in a running network: the output of a module, or the first input of a functional operation
    (which no module hook can see). `call` counts from 0, because a module or function may run several
    times."""

    name: str
    call: int = 0
    of: str = "module"  # or "function", or "input" (PIXELS alone)

    def __str__(self) -> str:
        if self == PIXELS:
            return self.name
        count = f"#{self.call + 1}" if self.call else ""
        return f"{self.name}{count}" if self.of == "module" else f"input of {self.name}{count}"


PIXELS = Point("the network's input", of="input")
"""As `gradient_at`: gradients of the whole network, down to the pixels."""


@dataclass(frozen=True)
class Run:
    """What one forward pass gave: the module's own output and the tensors at the tapped points."""

    output: Any
    tapped: dict[Point, Tensor]


@contextmanager
def borrowed(module: nn.Module) -> Iterator[None]:
    """The module in eval mode and not compiled, gradients off, outside inference mode and autocast (a network has
    a precision of its own); afterwards modes and random state are as before."""
    modes = [(m, m.training) for m in module.modules()]
    found = {p.device for p in module.parameters()}
    devices = sorted({device.index or 0 for device in found if device.type == "cuda"})
    kinds = {"cpu", *(device.type for device in found if device.type != "meta")}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in kinds:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if any(getattr(m, "_compiled_call_impl", None) or hasattr(m, "_orig_mod") for m, _ in modes):
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code runs no hooks
        try:
            for m, training in modes:
                if training:
                    m.training = False
            yield
        finally:
            for m, training in modes:
                if m.training != training:
                    m.training = training


@contextmanager
def watched(
    module: nn.Module, points: Sequence[Point], gradient_at: Point | None = None
) -> Iterator[dict[Point, Tensor]]:
    """Inside, a forward pass fills the yielded dict with the tensor at each point.

    The captured tensor is a snapshot: downstream gets a clone, so that an in-place operation cannot rewrite
    it. At `gradient_at` the trunk ends: the tensor is cut off, made a leaf that needs gradient, and gradients
    are switched on for what follows; the trunk itself runs without a graph.
    """
    tapped: dict[Point, Tensor] = {}
    if gradient_at is not None and any(t.is_inference() for t in [*module.parameters(), *module.buffers()]):
        raise UnsupportedError(
            "gradients through weights that were made in inference mode",
            do="build or load the network outside torch.inference_mode(), or use a method without gradients: "
            "cl.CAM(), cl.Occlusion()",
        )

    def capture(point: Point, value: Any) -> Tensor:
        if not isinstance(value, Tensor):
            raise LayerError(
                f"layer {point}",
                got=f"an output of type {type(value).__name__}",
                allowed="layers whose output is one tensor",
            )
        if point == gradient_at:
            value = value.detach()
            torch.set_grad_enabled(True)
            value.requires_grad_()
        tapped[point] = value
        return value.clone()

    with ExitStack() as stack:
        if (
            gradient_at is not None
        ):  # a `no_grad` inside the module's forward may end after the tap, so gradients are
            for (
                p
            ) in module.parameters():  # on all the way, and frozen parameters keep the trunk without a graph
                if p.requires_grad and p.is_leaf:
                    stack.callback(p.requires_grad_(False).requires_grad_, True)
            torch.set_grad_enabled(True)
        if gradient_at == PIXELS:
            stack.enter_context(_GradientsOn())
        functions = [p for p in points if p.of == "function"]
        for name in {p.name for p in points if p.of == "module"}:
            hook = _module_hook({p.call: p for p in points if p.name == name and p.of == "module"}, capture)
            stack.callback(_submodule(module, name).register_forward_hook(hook).remove)
        if functions:
            stack.enter_context(_FunctionTap({(p.name, p.call): p for p in functions}, capture))
        yield tapped


def _module_hook(points: dict[int, Point], capture: Callable[[Point, Any], Tensor]) -> Callable:
    calls = Counter[None]()

    def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
        call = calls[None]
        calls[None] += 1
        return capture(points[call], output) if call in points else None

    return hook


class _FunctionTap(TorchFunctionMode):
    def __init__(self, points: dict[tuple[str, int], Point], capture: Callable[[Point, Any], Tensor]) -> None:
        super().__init__()
        self.points, self.capture = points, capture
        self.names = {name for name, _ in points}
        self.calls = Counter[str]()
        self.replaced: dict[
            int, tuple[Tensor, Tensor]
        ] = {}  # what was captured, and what all others get instead

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in self.names:
            point = self.points.get((name, self.calls[name]))
            self.calls[name] += 1
            if point is not None:
                given = next(_tensors((args, kwargs or {})), None)
                if given is not None:
                    self.replaced[id(given)] = (given, self.capture(point, given))
        if self.replaced:
            args, kwargs = self._instead((args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _instead(self, tree: Any) -> Any:
        if isinstance(tree, Tensor):
            return self.replaced[id(tree)][1] if id(tree) in self.replaced else tree
        if type(tree) in (tuple, list):
            return type(tree)(self._instead(branch) for branch in tree)
        if type(tree) is dict:
            return {key: self._instead(branch) for key, branch in tree.items()}
        return tree


class _GradientsOn(TorchFunctionMode):
    """Operations keep their graph, also where the module's own forward is under `no_grad`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.is_inference_mode_enabled():
            raise UnsupportedError(
                "gradients through a module whose own forward enters torch.inference_mode()",
                do="use torch.no_grad() there; cl.Occlusion() works as it is",
            )
        if torch.is_grad_enabled() or getattr(func, "__name__", "") == "_set_grad_enabled":
            return func(*args, **(kwargs or {}))
        with torch.enable_grad():
            return func(*args, **(kwargs or {}))


def run(
    module: nn.Module,
    forward: Callable[[Tensor], Any],
    pixels: Tensor,
    points: Sequence[Point],
    gradient_at: Point | None = None,
) -> Run:
    """One forward pass with the tensors at `points`. Call it inside `borrowed`; raises LayerError if a point
    is not reached."""
    if pixels.is_inference():
        pixels = pixels.clone()
    if gradient_at == PIXELS:
        pixels = pixels.detach().requires_grad_()
    with watched(module, points, gradient_at) as tapped:
        output = forward(pixels)
    if gradient_at == PIXELS:
        tapped[PIXELS] = pixels
    for point in points:
        if point not in tapped:
            raise LayerError(f"layer {point} did not run", do="net.layers() lists the layers that run")
    return Run(output, tapped)


def _submodule(module: nn.Module, name: str) -> nn.Module:
    modules = dict(module.named_modules())
    if name not in modules:
        raise LayerError(f"layer {name!r} does not exist", do=nearest(name, [n for n in modules if n]))
    return modules[name]


# --- one run, recorded -------------------------------------------------------------------------------------

# Identity and version of a tensor: in-place operations make a new value of the same tensor.
Value = tuple[int, int]
OPAQUE = "module"  # the operation of a module whose own code cannot be seen (custom autograd functions, TorchScript)


@dataclass(frozen=True)
class Operation:
    """One functional operation of a run: name, how often it had run before, arguments, and the values in and
    out. `function` runs it again; `part`: which of its outputs this is; `kept`: see `trace`."""

    name: str
    call: int
    args: tuple
    kwargs: dict
    inputs: tuple[Value, ...]
    output: Value
    shape: tuple[int, ...]
    function: Any = None
    part: int = 0
    kept: Any = None

    @property
    def base(self) -> str:
        """The name without its number of axes: `conv` of `conv2d`."""
        return self.name.rstrip("123d") if self.name.endswith(("1d", "2d", "3d")) else self.name

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """What was given in that place or under that name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


@dataclass
class Trace:
    """What happened in one forward pass, in order. `modules`: output value and shape per module call."""

    operations: list[Operation] = field(default_factory=list)
    modules: dict[Point, tuple[Value, tuple[int, ...]]] = field(default_factory=dict)
    input: Value = (0, 0)
    shape: tuple[int, ...] = ()  # of the input
    output: Any = None
    alive: list[Tensor] = field(default_factory=list, repr=False)  # keeps identities unique
    known: set[Value] = field(default_factory=set, repr=False)  # given, or made by an operation

    def value(self, tensor: Tensor) -> Value:
        self.alive.append(tensor)
        return self.version_of(tensor)

    def add(self, operation: Operation) -> None:
        self.operations.append(operation)
        self.known.add(operation.output)

    @staticmethod
    def version_of(tensor: Tensor) -> Value:
        return (id(tensor), 0 if tensor.is_inference() else tensor._version)


def trace(
    module: nn.Module,
    forward: Callable[[Tensor], Any],
    pixels: Tensor,
    keep: Callable[[str, tuple, dict], Any] = lambda name, args, kwargs: None,
) -> Trace:
    """Records one forward pass over `pixels`. Call it inside `borrowed`. Raises UnsupportedError for a module that
    enters inference mode by itself. `keep(name, args, kwargs)` looks at an operation just before it runs, while no
    in-place operation has overwritten what it is given; what it returns is the operation's `kept`."""
    if pixels.is_inference():
        pixels = pixels.clone()
    record = Trace(shape=tuple(pixels.shape))
    record.input = record.value(pixels)
    record.known.add(record.input)
    calls = Counter[str]()

    def hook_for(name: str) -> Callable:
        def hook(m: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                value, shape = record.value(output), tuple(output.shape)
                record.modules[Point(name, calls[name])] = (value, shape)
                if value not in record.known:  # made by code that no torch function shows
                    given = tuple(record.value(t) for t in _tensors(inputs))
                    record.add(Operation(OPAQUE, 0, (), {}, given, value, shape))
            calls[name] += 1

        return hook

    with ExitStack() as stack:
        for name, m in module.named_modules():
            if name:
                stack.callback(m.register_forward_hook(hook_for(name)).remove)
        stack.enter_context(_Recorder(record, keep))
        record.output = forward(pixels)
    if any(t.is_inference() for t in _tensors(record.output)):
        raise UnsupportedError(
            "the layers of a module whose own forward enters torch.inference_mode()",
            do="use torch.no_grad() there; cl.Occlusion() needs no layers and works as it is",
        )
    return record


class _Recorder(TorchFunctionMode):
    def __init__(self, record: Trace, keep: Callable[[str, tuple, dict], Any]) -> None:
        super().__init__()
        self.record, self.keep = record, keep
        self.calls = Counter[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":  # an attribute: .shape gives no tensor, .T does
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        call = self.calls[name]
        self.calls[name] += 1
        inputs = tuple(self.record.value(t) for t in _tensors((args, kwargs)))
        kept = self.keep(name, args, kwargs)
        held, options = _copied((args, kwargs))  # the module may go on filling a list that it gave to `cat`
        output = func(*args, **kwargs)
        for part, tensor in enumerate(_tensors(output)):
            value = self.record.value(tensor)
            if value not in inputs:
                shape = tuple(tensor.shape)
                self.record.add(Operation(name, call, held, options, inputs, value, shape, func, part, kept))
        return output


def _copied(tree: Any) -> Any:
    """The same tensors in tuples, lists and dicts of our own."""
    if type(tree) in (tuple, list):
        return type(tree)(_copied(branch) for branch in tree)
    if type(tree) is dict:
        return {key: _copied(branch) for key, branch in tree.items()}
    return tree


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for branch in tree:
            yield from _tensors(branch)
    elif isinstance(tree, dict):
        for branch in tree.values():
            yield from _tensors(branch)


# --- rules for the way back --------------------------------------------------------------------------------


@contextmanager
def rectified(scores: Tensor) -> Iterator[int]:
    """Inside, a gradient that passes a ReLU on its way down from `scores` loses its negative part there as well
    (guided backpropagation). Yields how many ReLUs lie on the way.

    The rule acts on the operations in the graph of `scores`, so it finds ReLU and its clipped kin alike: as modules, as
    functions, in place, in TorchScript.
    """

    def positive(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        return tuple(None if g is None else g.clamp(min=0) for g in gradients)

    seen: set[Any] = set()
    queue = [scores.grad_fn]
    with ExitStack() as stack:
        found = 0
        while queue:
            node = queue.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            queue += [below for below, _ in node.next_functions]
            if _is_relu(node):
                found += 1
                stack.callback(node.register_prehook(positive).remove)
        yield found


def _is_relu(node: Any) -> bool:
    """Of a node of the graph: max(x, 0), or that cut off above (ReLU6)."""
    name = node.name().partition("Backward")[0]
    floors = {"ClampMin": "min", "Clamp": "min", "Hardtanh": "min_val", "Threshold": "threshold"}
    floor = getattr(node, f"_saved_{floors[name]}", None) if name in floors else None
    return name == "Relu" or (isinstance(floor, (int, float)) and floor == 0)


@contextmanager
def lent(module: nn.Module) -> Iterator[None]:
    """For code of others: the hooks and attributes that it leaves on the module or its parts go when it is done."""
    before = [
        (vars(m), set(vars(m)), {n: dict(hooks) for n, hooks in vars(m).items() if "_hooks" in n and hooks is not None})
        for m in module.modules()
    ]  # fmt: skip
    try:
        yield
    finally:
        for attributes, names, hooks in before:
            for new in attributes.keys() - names:
                del attributes[new]
            for name, kept in hooks.items():
                for new in attributes[name].keys() - kept.keys():
                    del attributes[name][new]
