"""What is switched on a module for a while, and put back, always."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from camlucida.taps.walking import parameters, parts


@contextmanager
def borrowed(module: nn.Module) -> Iterator[None]:
    """The module in eval mode and not compiled, gradients off, outside inference mode and autocast (a network has
    a precision of its own); afterwards modes and random state are as before."""
    modules = parts(module)
    modes = [(m, m.training) for m in modules]
    found = {p.device for p in parameters(modules)}
    devices = sorted({device.index or 0 for device in found if device.type == "cuda"})
    kinds = {"cpu", *(device.type for device in found if device.type != "meta")}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in kinds:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if any(getattr(m, "_compiled_call_impl", None) or "_orig_mod" in m._modules for m in modules):
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
def lent(module: nn.Module) -> Iterator[None]:
    """For code of others: the hooks and attributes that it leaves on the module or its parts go when it is done."""
    before = [
        (vars(m), set(vars(m)), {n: dict(hooks) for n, hooks in vars(m).items() if "_hooks" in n and hooks is not None})
        for m in parts(module)
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
