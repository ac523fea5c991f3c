"""What a column of explain costs, on clocks set by hand."""

from __future__ import annotations

import time

import pytest
import torch

from camlucida.maps import schedule
from camlucida.report import explain_cost
from camlucida.report.explain_cost import Cost, bare_pass, costed, duration, timed

CPU = torch.device("cpu")


class Clocks:
    """Two clocks that go on by hand: what everybody waits, and what is worked."""

    def __init__(self, monkeypatch) -> None:
        self.clock = self.work = 100.0
        monkeypatch.setattr(explain_cost, "_clocks", lambda device: (self.clock, self.work))

    def go(self, clock: float, work: float) -> None:
        self.clock += clock
        self.work += work


def test_what_is_slow_is_made_once(monkeypatch):
    clocks = Clocks(monkeypatch)
    made, cost = costed(lambda: clocks.go(6.0, 3.0) or "map", CPU, 0.25)
    assert (made, cost) == ("map", Cost(6.0, 12.0, ""))
    assert clocks.clock == 106


def test_what_is_fast_is_made_twice_and_the_second_counts(monkeypatch):
    clocks, steps = Clocks(monkeypatch), iter([(0.375, 0.375), (0.125, 0.0625)])
    heard: list[int] = []

    def make() -> str:
        tell = schedule.announced(schedule.Work("rise", 80, 2, 40.0, "forward passes"))
        clocks.go(*next(steps))
        tell(80)
        return "map"

    with schedule.heard_by(lambda work, done: heard.append(done)):
        _, cost = costed(make, CPU, 0.03125)
    assert cost == Cost(0.125, 2.0, "80 forward passes")  # of both pictures, told once though made twice
    assert heard == [0, 80, 0, 80]  # who listened before goes on to


def test_runs_of_several_kinds_are_added_up(monkeypatch):
    clocks = Clocks(monkeypatch)

    def make() -> None:
        for passes, unit in (
            (1000, "forward passes"),
            (500, "forward passes"),
            (64, "passes above conv5,"),
            (0, "x"),
        ):
            schedule.announced(schedule.Work("any", passes, 1, passes, unit))
        clocks.go(1.0, 1.0)

    assert costed(make, CPU, 1.0)[1].runs == "1,500 forward passes and 64 passes above conv5"


def test_a_bare_pass_is_the_median_of_five_after_a_first(monkeypatch):
    clocks = Clocks(monkeypatch)
    steps = iter([(64.0, 64.0), (4.0, 8.0), (1.0, 5.0), (2.0, 1.0), (32.0, 16.0), (3.0, 7.0)])

    class Timed:
        device = CPU

        def __call__(self, batch: object) -> None:
            clocks.go(*next(steps))

    assert bare_pass(Timed(), None) == (3.0, 7.0)  # type: ignore[arg-type]
    assert next(steps, None) is None


def test_waiting_is_no_work():
    _, clock, work = timed(lambda: time.sleep(0.2), CPU)
    assert clock >= 0.2
    assert work < 0.1


@pytest.mark.parametrize(("clock", "work", "times"), [(0.625, 3.0, 2), (0.375, 8.0, 2), (0.625, 5.0, 1)])
def test_few_passes_are_made_twice_however_long_they_take(monkeypatch, clock, work, times):
    clocks = Clocks(monkeypatch)
    assert costed(lambda: clocks.go(clock, work), CPU, 1.0)[1] == Cost(clock, work)
    assert clocks.clock == 100 + times * clock


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0312, "31 ms"), (0.99949, "999 ms"), (0.9996, "1.0 s"), (5.24, "5.2 s"), (59.96, "1 min 0 s"), (208.4, "3 min 28 s")],
)  # fmt: skip
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_costs_in_words():
    assert str(Cost(0.031, 2.06)) == "2.1 passes, 31 ms"
    assert str(Cost(208.0, 3871.4)) == "3,871 passes, 3 min 28 s"
