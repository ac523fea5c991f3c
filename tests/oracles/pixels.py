"""Working back to the pixels through a chain of convolutions, ReLUs and max poolings (section 10), as loops in float64 over
any number of axes; nothing here uses the package."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Conv:
    weight: Array  # (out, in / groups, *kernel)
    bias: Array
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1


@dataclass(frozen=True)
class Relu:
    pass


@dataclass(frozen=True)
class Pool:
    kernel: int
    stride: int
    padding: int = 0


Stage = Conv | Relu | Pool


def forward(picture: Array, stages: Sequence[Stage]) -> list[Array]:
    """The picture `(C, *spatial)` and what every stage makes of it."""
    found = [picture]
    for stage in stages:
        given = found[-1]
        if isinstance(stage, Relu):
            made = np.maximum(given, 0)
        elif isinstance(stage, Pool):
            made = np.zeros((len(given), *_cells(given, stage)))
            for unit, cell in _indices(made):
                made[(unit, *cell)] = given[(unit, *_switch(given, stage, unit, cell))]
        else:
            made = np.zeros((len(stage.weight), *_cells(given, stage)))
            for unit, cell in _indices(made):
                made[(unit, *cell)] = stage.bias[unit] + sum(
                    weight * given[place] for weight, place in _taps(given, stage, unit, cell)
                )
        found.append(made)
    return found


def backwards(
    values: Sequence[Array], stages: Sequence[Stage], signal: Array, rule: str, unpool: str = "sum"
) -> Array:
    """What a signal at the last stage becomes at the pixels, for the `values` of `forward`. `rule` at a ReLU: `deconvnet` rectifies what comes down,
    `gradient` lets through where the way up was positive, `guided` does both, `linear` neither."""
    for stage, given in reversed(list(zip(stages, values, strict=False))):
        if isinstance(stage, Relu):
            signal = np.maximum(signal, 0) if rule in ("deconvnet", "guided") else signal
            signal = signal * (given > 0) if rule in ("gradient", "guided") else signal
            continue
        below = np.zeros_like(given)
        for unit, cell in _indices(signal):  # windows in reading order
            value = signal[(unit, *cell)]
            if isinstance(stage, Pool):
                place = (unit, *_switch(given, stage, unit, cell))
                below[place] = value + (below[place] if unpool == "sum" else 0)
            else:
                for weight, place in _taps(given, stage, unit, cell):
                    below[place] += weight * value
        signal = below
    return signal


def _cells(given: Array, stage: Conv | Pool) -> tuple[int, ...]:
    if isinstance(stage, Pool):
        reach = [stage.kernel] * (given.ndim - 1)
    else:
        reach = [stage.dilation * (k - 1) + 1 for k in stage.weight.shape[2:]]
    return tuple(
        (side + 2 * stage.padding - r) // stage.stride + 1
        for side, r in zip(given.shape[1:], reach, strict=True)
    )


def _indices(values: Array) -> Iterator[tuple[int, tuple[int, ...]]]:
    for unit, *cell in itertools.product(*map(range, values.shape)):
        yield unit, tuple(cell)


def _switch(given: Array, stage: Pool, unit: int, cell: tuple[int, ...]) -> tuple[int, ...]:
    """Where a window has its maximum, the first of equals in reading order."""
    best: tuple[int, ...] | None = None
    for offset in itertools.product(range(stage.kernel), repeat=len(cell)):
        place = tuple(c * stage.stride - stage.padding + o for c, o in zip(cell, offset, strict=True))
        inside = all(0 <= p < side for p, side in zip(place, given.shape[1:], strict=True))
        if inside and (best is None or given[(unit, *place)] > given[(unit, *best)]):
            best = place
    assert best is not None
    return best


def _taps(
    given: Array, stage: Conv, unit: int, cell: tuple[int, ...]
) -> Iterator[tuple[float, tuple[int, ...]]]:
    """The weights of one output and the inputs that they meet."""
    each = stage.weight.shape[1]
    first = unit // (len(stage.weight) // stage.groups) * each
    for channel, *offset in itertools.product(*map(range, stage.weight.shape[1:])):
        place = tuple(
            c * stage.stride - stage.padding + o * stage.dilation for c, o in zip(cell, offset, strict=True)
        )
        if all(0 <= p < side for p, side in zip(place, given.shape[1:], strict=True)):
            yield float(stage.weight[(unit, channel, *offset)]), (first + channel, *place)
