"""What a column of explain cost: by the clock, and in forward passes of its picture."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from camlucida.maps import schedule
from camlucida.networks.network import Network
from camlucida.values import Batch

Made = TypeVar("Made")
AGAIN = 0.5, 5.0  # seconds, passes; what takes less of either is timed a second time
ROUNDS = 5  # of the bare forward pass


@dataclass(frozen=True)
class Cost:
    """Of all classes and views of one column. `seconds`: by the clock. `passes`: its work over that of one bare forward
    pass of the same picture; work is processor time on a CPU, where other programs then count for nothing, and time by
    the clock on an accelerator. `runs`: what the method said that it runs, such as `4,000 forward passes`; empty
    for one that does not change the picture."""

    seconds: float
    passes: float
    runs: str = ""

    def __str__(self) -> str:
        passes = f"{self.passes:.1f}" if self.passes < 9.95 else f"{self.passes:,.0f}"
        return f"{passes} passes, {duration(self.seconds)}"


def duration(seconds: float) -> str:
    """`31 ms`, `5.2 s`, `3 min 28 s`."""
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    return "{:,} min {:.0f} s".format(*divmod(round(seconds), 60))


def bare_pass(network: Network, batch: Batch) -> tuple[float, float]:
    """Seconds by the clock and of work that one forward pass takes: the median of five after a first one, which pays
    for what is set up once."""
    network(batch)
    every = [timed(lambda: network(batch), network.device)[1:] for _ in range(ROUNDS)]
    return statistics.median(clock for clock, _ in every), statistics.median(work for _, work in every)


def costed(make: Callable[[], Made], device: torch.device, bare: float) -> tuple[Made, Cost]:
    """What `make` gives, and its cost; `bare`: seconds of work of a bare forward pass. What takes less than half a second
    or five passes is made twice and the second time counts, because the first also pays for what is set up once."""
    announced: Counter[str] = Counter()

    def hear(work: schedule.Work, done: int) -> None:
        if done == 0:
            announced[work.unit.rstrip(",")] += round(work.passes * work.pictures)

    with schedule.heard_by(hear):
        made, clock, work = timed(make, device)
    runs = " and ".join(f"{count:,} {unit}" for unit, count in announced.items() if count)
    if clock < AGAIN[0] or work / bare < AGAIN[1]:
        made, clock, work = timed(make, device)
    return made, Cost(clock, work / bare, runs)


def timed(make: Callable[[], Made], device: torch.device) -> tuple[Made, float, float]:
    """What `make` gives, seconds by the clock, seconds of work."""
    began, at_work = _clocks(device)
    made = make()
    ended, worked = _clocks(device)
    return made, ended - began, worked - at_work


def _clocks(device: torch.device) -> tuple[float, float]:
    if device.type == "cpu":
        return time.perf_counter(), time.process_time()
    torch.accelerator.synchronize()
    now = time.perf_counter()
    return now, now
