"""Everything about a module and its surroundings that a call must leave as it was."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
)


def fingerprint(module: nn.Module) -> dict[str, Any]:
    """Modes, classes, hooks, flags, gradients, weights and buffers bit by bit, random state, grad mode."""
    found: dict[str, Any] = {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "random": _digest(torch.get_rng_state()),
        "threads": torch.get_num_threads(),
        "function modes": torch._C._len_torch_function_stack(),
    }
    for name, m in module.named_modules():
        hooks = tuple(tuple(getattr(m, kind).items()) for kind in HOOKS)
        found[f"module {name}"] = (id(m), type(m), m.training, hooks, tuple(sorted(m.__dict__)))
    for kind, tensors in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
        for name, t in tensors:
            grad = None if t.grad is None else (id(t.grad), _digest(t.grad))
            found[f"{kind} {name}"] = (id(t), t.data_ptr(), t._version, t.requires_grad, _digest(t), grad)
    return found


@contextmanager
def unchanged(module: nn.Module):
    """The block leaves the module's fingerprint as it was, whether it raises or not."""
    before = fingerprint(module)
    try:
        yield
    finally:
        after = fingerprint(module)
        differing = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
        assert not differing, f"changed: {differing}"


def _digest(tensor: Tensor) -> str:
    if (
        tensor.numel() > 1 << 20 and tensor.dtype == torch.float32
    ):  # any changed bit changes the sum of all words
        return str(int(tensor.detach().contiguous().view(torch.int32).sum(dtype=torch.int64)))
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()
