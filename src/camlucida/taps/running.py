"""A forward pass with taps: the tensors at points of a running module, and where its graph begins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from camlucida.errors import LayerError, UnsupportedError, nearest
from camlucida.taps.tensors import tensors


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


class _Reached(Exception):
    """All points were reached, and nothing else is wanted."""


@dataclass(frozen=True)
class Run:
    """What one forward pass gave: the module's own output and the tensors at the tapped points."""

    output: Any
    tapped: dict[Point, Tensor]


@contextmanager
def watched(
    module: nn.Module,
    points: Sequence[Point],
    gradient_at: Point | None = None,
    keep_graph: bool = False,
    instead: Mapping[Point, Callable[[Tensor], Tensor]] | None = None,
    trunk: bool = False,
    seen: Callable[[Point, Tensor], None] | None = None,
) -> Iterator[dict[Point, Tensor]]:
    """Inside, a forward pass fills the yielded dict with the tensor at each point.

    The captured tensor is a snapshot: downstream gets a clone, so that an in-place operation cannot rewrite
    it. At `gradient_at` the trunk ends: the tensor is cut off, made a leaf that needs gradient, and gradients
    are switched on for what follows; the trunk itself runs without a graph. `keep_graph`: nothing is cut off, the
    graph reaches from the output to pixels and parameters that need gradient. `instead`: what is at a point goes through
    the function, and on from there (the number of rows may change). `trunk`: the pass ends, with `_Reached`, at the
    last of the points. `seen` looks at each tensor as it passes: no snapshot is made.
    """
    tapped: dict[Point, Tensor] = {}
    wanted = set(points)
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
        if seen is not None:
            seen(point, value)
        tapped[point] = value if seen is None else value.new_empty(0)
        if trunk and len(tapped) == len(wanted):
            raise _Reached
        return value.clone() if seen is None else value

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
                given = next(tensors((args, kwargs or {})), None)
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
    trunk: bool = False,
    seen: Callable[[Point, Tensor], None] | None = None,
) -> Run:
    """One forward pass with the tensors at `points`; with `trunk` it ends at the last of them, and there is no output. With
    `seen`, which is shown each tensor and must not write into it, they are not kept. Call it inside `borrowed`; raises
    LayerError if a point is not reached."""
    if pixels.is_inference():
        pixels = pixels.clone()
    if gradient_at == PIXELS and not (keep_graph and pixels.requires_grad):
        pixels = pixels.detach().requires_grad_()
    points = [*dict.fromkeys([*points, *(instead or {})])]
    output = None
    with watched(module, points, gradient_at, keep_graph, instead, trunk, seen) as tapped, suppress(_Reached):
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
