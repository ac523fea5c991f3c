"""How many bytes the tensors of a run take."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from camlucida.taps.tensors import tensors


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
    for tensor in tensors(tree):
        if tensor.layout == torch.strided:
            yield tensor.untyped_storage()
