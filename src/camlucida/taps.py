"""The only file that reaches into a running module. Whatever it attaches, switches or draws is put back,
always."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

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
def channels_last(module: nn.Module) -> Iterator[None]:
    """Inside, the kernels of 2-D convolutions lie channels last in memory, for pictures that do too: the same numbers,
    faster. Afterwards every weight is where it was."""
    kernels = [
        p for p in module.parameters() if p.ndim == 4 and p.layout == torch.strided and not p.is_inference()
    ]
    with ExitStack() as stack:
        for kernel in kernels:
            stack.callback(setattr, kernel, "data", kernel.data)
            kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
        yield


@contextmanager
def watched(
    module: nn.Module,
    points: Sequence[Point],
    gradient_at: Point | None = None,
    keep_graph: bool = False,
    instead: Mapping[Point, Callable[[Tensor], Tensor]] | None = None,
) -> Iterator[dict[Point, Tensor]]:
    """Inside, a forward pass fills the yielded dict with the tensor at each point.

    The captured tensor is a snapshot: downstream gets a clone, so that an in-place operation cannot rewrite
    it. At `gradient_at` the trunk ends: the tensor is cut off, made a leaf that needs gradient, and gradients
    are switched on for what follows; the trunk itself runs without a graph. `keep_graph`: nothing is cut off, the
    graph reaches from the output to pixels and parameters that need gradient. `instead`: what is at a point goes through
    the function, and on from there (the number of rows may change).
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
        if instead and point in instead:
            value = instead[point](value)
        if point == gradient_at:
            torch.set_grad_enabled(True)
            if not (keep_graph and value.requires_grad):
                value = value.detach().requires_grad_()
        tapped[point] = value
        return value.clone()

    with ExitStack() as stack:
        if (
            gradient_at is not None
        ):  # a `no_grad` inside the module's forward may end after the tap, so gradients are
            for (
                p
            ) in module.parameters():  # on all the way, and frozen parameters keep the trunk without a graph
                if p.requires_grad and p.is_leaf and not keep_graph:
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
    keep_graph: bool = False,
    instead: Mapping[Point, Callable[[Tensor], Tensor]] | None = None,
) -> Run:
    """One forward pass with the tensors at `points`. Call it inside `borrowed`; raises LayerError if a point
    is not reached."""
    if pixels.is_inference():
        pixels = pixels.clone()
    if gradient_at == PIXELS and not (keep_graph and pixels.requires_grad):
        pixels = pixels.detach().requires_grad_()
    points = [*dict.fromkeys([*points, *(instead or {})])]
    with watched(module, points, gradient_at, keep_graph, instead) as tapped:
        output = forward(pixels)
    if gradient_at == PIXELS:
        tapped[PIXELS] = pixels
    for point in points:
        if point not in tapped:
            raise LayerError(f"layer {point} did not run", do="net.layers() lists the layers that run")
    return Run(output, tapped)


class Footprint(TorchFunctionMode):
    """Inside, counts the bytes of tensors that operations make: `peak`, the most at one time. The same on every device
    and in every run; what one operation makes and drops inside is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.now = 0
        self._known: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(output):
            key = storage._cdata
            if key in self._known or key in given:
                continue
            self._known.add(key)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key, storage.nbytes()).atexit = False
        return output

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    for tensor in _tensors(tree):
        if tensor.layout == torch.strided:
            yield tensor.untyped_storage()


def _submodule(module: nn.Module, name: str) -> nn.Module:
    modules = dict(module.named_modules())
    if name not in modules:
        raise LayerError(f"layer {name!r} does not exist", do=nearest(name, [n for n in modules if n]))
    return modules[name]


# --- what a run adds ---------------------------------------------------------------------------------------

ADDING = {"add", "add_", "sub", "sub_", "subtract", "__rsub__", "rsub"}
SATURATING = {"relu6", "hardtanh", "hardtanh_", "clamp", "clamp_", "clip", "hardsigmoid", "_threshold"}
BENT = {
    "gelu", "silu", "silu_", "sigmoid", "sigmoid_", "tanh", "tanh_", "softmax", "log_softmax", "hardswish", "hardswish_",
    "mish", "elu", "elu_", "selu", "celu", "softplus", "layer_norm", "group_norm", "instance_norm", "rms_norm", "normalize",
    "local_response_norm", "scaled_dot_product_attention", "multi_head_attention_forward", "pow", "square", "exp", "log",
    "sqrt", "rsqrt", "norm", "linalg_vector_norm", "lp_pool", "var", "std",
}  # fmt: skip
"""Operations that no sum of straight pieces makes; named where a network is refused for them."""
MULTIPLYING = {"mul", "mul_", "div", "div_", "matmul", "bmm", "einsum", "true_divide"}


@dataclass(frozen=True)
class Constant:
    """What one operation of a run adds to the part that is linear in its input: `value`, to be broadcast over its output
    of `shape`, whose gradient is taken at `edge`."""

    operation: str
    value: Tensor
    edge: Any
    shape: tuple[int, ...]


@dataclass
class Constants:
    """What the operations of a run add, in order; `bent`: those that are not made of straight pieces."""

    found: list[Constant] = field(default_factory=list)
    bent: dict[str, None] = field(default_factory=dict)


@contextmanager
def constants(pixels: Tensor) -> Iterator[Constants]:
    """Inside, a run over `pixels` with gradients fills the yielded record: biases of convolutions, linear layers and
    batch norms (whose running mean is one, too), what is added or subtracted, and where activations saturate."""
    with _ConstantsMode(pixels) as mode:
        yield mode.record


class _ConstantsMode(TorchFunctionMode):
    def __init__(self, pixels: Tensor) -> None:
        super().__init__()
        self.record = Constants()
        self.derived = WeakValueDictionary[int, Tensor]({id(pixels): pixels})  # what depends on the pixels

    def depends(self, tensor: Tensor) -> bool:
        return self.derived.get(id(tensor)) is tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in _tensors((args, kwargs)) if self.depends(t)]
        name = getattr(func, "__name__", "")
        if not given and name != "requires_grad_":  # as the pixels are marked
            return func(*args, **kwargs)
        added = self._added(name, func, args, kwargs, given)
        output = func(*args, **kwargs)
        for tensor in _tensors(output):
            if tensor.requires_grad:  # noise of a tensor's shape, say, is a constant
                self.derived[id(tensor)] = tensor
        if name in BENT or (name in MULTIPLYING and len(given) > 1):
            self.record.bent[name] = None
        if added is not None and isinstance(output, Tensor) and output.requires_grad:
            edge = torch.autograd.graph.get_gradient_edge(output)
            self.record.found.append(Constant(name, added, edge, tuple(output.shape)))
        return output

    def _added(self, name: str, func: Any, args: tuple, kwargs: dict, given: list[Tensor]) -> Tensor | None:
        if not given:
            return None
        if name.startswith("conv") or name == "linear":
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            if not isinstance(bias, Tensor):
                return None
            return bias if name == "linear" else bias.reshape(-1, *(1,) * (given[0].ndim - 2))
        if name == "batch_norm":
            named = dict(zip(("input", "mean", "var", "weight", "bias", "training"), args, strict=False))
            named |= {key.removeprefix("running_"): value for key, value in kwargs.items()}
            if named.get("mean") is None or named.get("training"):
                self.record.bent["batch_norm of the batch"] = None
                return None
            scale = (named["var"] + named.get("eps", args[7] if len(args) > 7 else 1e-5)).rsqrt()
            scale = scale if named.get("weight") is None else scale * named["weight"]
            shift = (
                -named["mean"] * scale if named.get("bias") is None else named["bias"] - named["mean"] * scale
            )
            return shift.reshape(-1, *(1,) * (given[0].ndim - 2))
        if name in ADDING and len(given) == 1:
            nothing = [torch.zeros_like(a) if a is given[0] else a for a in args]
            named = {k: torch.zeros_like(a) if a is given[0] else a for k, a in kwargs.items()}
            return func(*nothing, **named)
        if name in SATURATING:
            with torch.enable_grad():
                at = given[0].detach().clone().requires_grad_()
                again = [at.clone() if a is given[0] else a for a in args]
                named = {k: at.clone() if a is given[0] else a for k, a in kwargs.items()}
                bent = func(*again, **named)
                (slope,) = torch.autograd.grad(bent.sum(), at)
            return bent.detach() - slope * at.detach()
        return None


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
