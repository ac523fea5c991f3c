"""A part of a running module taken out: it gives what it was given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from camlucida.errors import LayerError, nearest


@contextmanager
def bypassed(module: nn.Module, name: str) -> Iterator[None]:
    """Inside, the part called `name` runs and gives its first input on, every time. Raises LayerError for a part that does
    not exist, that does not run, and where its input is no tensor of its output's shape."""
    parts = dict(module.named_modules())
    if not name or name not in parts:
        raise LayerError(f"layer {name!r} does not exist", do=nearest(name, [n for n in parts if n]))
    given: list[Tensor | None] = []
    ran = False

    def before(part: nn.Module, inputs: Any) -> Any:
        nonlocal ran
        ran, first = True, inputs[0] if inputs else None
        given.append(first if isinstance(first, Tensor) else None)
        return (first.clone(), *inputs[1:]) if isinstance(first, Tensor) else None  # it may work in place

    def after(part: nn.Module, inputs: Any, output: Any) -> Tensor:
        first = given.pop()
        if first is None or not isinstance(output, Tensor) or first.shape != output.shape:
            got = "no tensor" if first is None else f"{tuple(first.shape[1:])} a picture"
            out = tuple(output.shape[1:]) if isinstance(output, Tensor) else type(output).__name__
            raise LayerError(
                f"layer {name} cannot be passed by",
                got=f"{got}, and it makes {out} of it",
                allowed="one shape",
            )
        return first

    hooks = [parts[name].register_forward_pre_hook(before), parts[name].register_forward_hook(after)]
    try:
        yield
        if not ran:
            raise LayerError(f"layer {name} did not run", do="net.layers() lists the layers that run")
    finally:
        for hook in hooks:
            hook.remove()
