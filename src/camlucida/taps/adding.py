"""What the operations of a run add to the part that is linear in its input (FullGrad)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from camlucida.taps.tensors import tensors

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
        given = [t for t in tensors((args, kwargs)) if self.depends(t)]
        name = getattr(func, "__name__", "")
        if not given and name != "requires_grad_":  # as the pixels are marked
            return func(*args, **kwargs)
        added = self._added(name, func, args, kwargs, given)
        output = func(*args, **kwargs)
        for tensor in tensors(output):
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
