"""The ReLU rule of guided backpropagation, on the operations of a graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor


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
