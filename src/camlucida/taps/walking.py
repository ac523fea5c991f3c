"""The parts of a module and their tensors, in one quick pass: every map call looks at all of them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


def parts(module: nn.Module) -> list[nn.Module]:
    """The module and all modules inside it, once each: `module.modules()` without the names, which cost the most."""
    found, seen = [module], {module}
    for one in found:  # grows on the way
        for part in one._modules.values():
            if part is not None and part not in seen:
                seen.add(part)
                found.append(part)
    return found


def parameters(parts: Iterable[nn.Module]) -> list[Tensor]:
    """Their own parameters; one that several share comes as often."""
    return [p for part in parts for p in part._parameters.values() if p is not None]


def buffers(parts: Iterable[nn.Module]) -> list[Tensor]:
    """Their own buffers; one that several share comes as often."""
    return [b for part in parts for b in part._buffers.values() if b is not None]
