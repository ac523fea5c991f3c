"""What happens in one forward pass, operation by operation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from camlucida.errors import UnsupportedError
from camlucida.taps.running import Point
from camlucida.taps.tensors import tensors

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
                    given = tuple(record.value(t) for t in tensors(inputs))
                    record.add(Operation(OPAQUE, 0, (), {}, given, value, shape))
            calls[name] += 1

        return hook

    with ExitStack() as stack:
        for name, m in module.named_modules():
            if name:
                stack.callback(m.register_forward_hook(hook_for(name)).remove)
        stack.enter_context(_Recorder(record, keep))
        record.output = forward(pixels)
    if any(t.is_inference() for t in tensors(record.output)):
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
        inputs = tuple(self.record.value(t) for t in tensors((args, kwargs)))
        kept = self.keep(name, args, kwargs)
        held, options = _copied((args, kwargs))  # the module may go on filling a list that it gave to `cat`
        output = func(*args, **kwargs)
        for part, tensor in enumerate(tensors(output)):
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
