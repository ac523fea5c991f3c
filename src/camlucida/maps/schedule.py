"""One schedule for every perturbation method: changed copies of pictures go through the network in chunks that fit a
budget of memory, and whoever listens is told what it will cost and how far it is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from camlucida.errors import UsageError

BEST_ON_CPU = 4 * 10**7
"""Bytes of a chunk on a CPU: larger ones leave its caches and are slower, however much memory there is."""
MOST = 512  # copies a chunk
PASSES = "forward passes"
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {f"{letter}i": 1 << 10 * power for power, letter in enumerate("kmgt", 1)}


@dataclass(frozen=True)
class Budget:
    """`memory`: bytes that the tensors of one chunk may take, weights not counted; None: half of a GPU's memory. On a
    CPU a chunk takes 40 MB at most, since larger ones are slower. The budget fixes the size of the chunks, so that two
    runs are equal bit for bit; under another budget, or after memory ran out, maps differ by float noise."""

    memory: int | None = None

    def copies(self, bytes_each: int, device: torch.device) -> int:
        """How many copies of a picture, `bytes_each` in the network, a chunk holds: at least one, at most 512."""
        most = BEST_ON_CPU
        if device.type == "cuda":
            most = torch.cuda.get_device_properties(device).total_memory // 2
        memory = most if self.memory is None else min(most, self.memory)
        return max(1, min(memory // max(bytes_each, 1), MOST))

    def asked(self, bytes_each: int) -> int | None:
        """How many copies the asked-for memory holds, at least one; None: nothing was asked for."""
        return None if self.memory is None else max(1, self.memory // max(bytes_each, 1))


@dataclass(frozen=True)
class Work:
    """What is about to run: `copies` of `pictures` through the network, by the method `what`; what that costs: `passes` a
    picture, of what `unit` says."""

    what: str
    copies: int
    pictures: int
    passes: float
    unit: str

    def __str__(self) -> str:
        return f"{self.what}: ≈ {self.passes:,.0f} {self.unit} a picture"


Listener = Callable[[Work, int], None]
"""Told how many copies are done: 0 before the first, then after each chunk."""

_budget: ContextVar[Budget | None] = ContextVar("budget", default=None)
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def memory(size: int | str | None) -> Iterator[Budget]:
    """Inside, every perturbation method keeps to so many bytes: `with schedule.memory("2GB"):`. None: the default.
    Raises UsageError."""
    budget = Budget(parse(size))
    token = _budget.set(budget)
    try:
        yield budget
    finally:
        _budget.reset(token)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Inside, the listener hears of every perturbation method: what it will cost, and how far it is; who listens already
    goes on to."""
    outer = _listener.get()

    def both(work: Work, done: int) -> None:
        if outer is not None:
            outer(work, done)
        listener(work, done)

    token = _listener.set(both)
    try:
        yield
    finally:
        _listener.reset(token)


def parse(size: int | str | None) -> int | None:
    """Bytes in `2GB`, `512 MiB`, `800000`. Raises UsageError."""
    if size is None:
        return None
    match = re.fullmatch(r"([\d.]+)\s*([kmgt]i?)?b?", str(size).strip().lower())
    try:
        number = float(match[1]) * UNITS[match[2] or ""] if match else 0.0
    except ValueError:
        number = 0.0
    if number < 1:
        raise UsageError("memory", got=repr(size), allowed="bytes, or a size such as 512MB or 2GiB")
    return int(number)


def budget() -> Budget:
    """The one that is in force."""
    return _budget.get() or Budget()


def announced(work: Work) -> Callable[[int], None]:
    """Tells the listener what is about to run; gives what tells it how many copies are done."""
    listener = _listener.get() or (lambda work, done: None)
    listener(work, 0)
    return lambda done: listener(work, done)


def run(
    what: str, copies: int, work: Callable[[slice], None], *, bytes_each: int, device: torch.device,
    pictures: int = 1, most: int | None = None, passes: float | None = None, unit: str = PASSES,
) -> None:  # fmt: skip
    """Calls `work` with slices that cover 0 … copies, in order, each as large as the budget allows (and at most `most`).

    Where the device runs out of memory, the chunk is halved and that slice is done again, so `work` must be free to
    repeat one that failed; a chunk of one copy that does not fit raises what torch raised. `passes`, `unit`: as for Work,
    copies / pictures forward passes unless told.
    """
    size = budget().copies(bytes_each, device)
    size = min(size, most) if most else size
    size = math.ceil(copies / max(math.ceil(copies / size), 1))  # chunks of one size
    tell = announced(Work(what, copies, pictures, copies / pictures if passes is None else passes, unit))
    done = 0
    while done < copies:
        part = slice(done, min(done + size, copies))
        try:
            work(part)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or part.stop - part.start == 1:
                raise
            size = (part.stop - part.start) // 2
        else:
            done = part.stop
            tell(done)
            continue
        if device.type == "cuda":  # after the error is gone, and with it the tensors of its frames
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    words = str(error)
    return isinstance(error, RuntimeError) and any(
        sign in words for sign in ("DefaultCPUAllocator", "out of memory", "_STATUS_ALLOC_FAILED")
    )
