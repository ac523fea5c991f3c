"""What is said on the terminal while perturbation methods run."""

from __future__ import annotations

import io
import itertools
import re
import sys

import pytest
import torch

from camlucida.cli import progress
from camlucida.errors import UsageError
from camlucida.maps import schedule


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def ran(monkeypatch, stderr: io.StringIO, outer: bool, times: int = 2) -> str:
    """What comes of `times` runs of 8 copies in chunks of 4, under a bar of pictures or not."""
    monkeypatch.setattr(sys, "stderr", stderr)
    with schedule.memory(4), progress.of_maps() as hear, schedule.heard_by(hear):
        if outer:
            with progress.bar("pictures", times) as bar:
                for _ in range(times):
                    run()
                    bar(1)
        else:
            for _ in range(times):
                run()
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stderr.getvalue()).replace("\r", "\n")


def run() -> None:
    schedule.run("rise", 8, lambda part: None, bytes_each=1, device=torch.device("cpu"))


@pytest.mark.parametrize("outer", [False, True])
def test_the_cost_is_said_once_before_and_how_far_it_is_is_drawn(monkeypatch, outer):
    said = ran(monkeypatch, Terminal(), outer)
    assert said.count("rise: ≈ 8 forward passes a picture") == 1
    drawn = said.index("rise 8 of 8" if outer else "8/8")
    assert said.index("rise: ≈ 8") < drawn
    assert not progress._shown


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize(("tick", "said"), [(40.0, "rise: ≈ 1 min 20 s a picture"), (0.4, "")])
def test_the_time_is_said_once_after_the_first_chunk(monkeypatch, outer, tick, said):
    """Half of the copies took one tick of the clock."""
    ticks = itertools.count()
    monkeypatch.setattr(progress, "perf_counter", lambda: tick * next(ticks))
    words = ran(monkeypatch, Terminal(), outer)
    assert re.findall(r"rise: .* s a picture", words) == ([said] if said else [])
    if said:
        assert words.index("rise: ≈ 8 forward passes a picture") < words.index(said)


def test_nothing_is_said_where_nobody_reads_it(monkeypatch):
    assert ran(monkeypatch, io.StringIO(), False) == ""
    assert ran(monkeypatch, io.StringIO(), True) == ""


def test_a_run_that_fails_leaves_no_bar_behind(monkeypatch):
    def fails(part: slice) -> None:
        raise UsageError("in the middle")

    monkeypatch.setattr(sys, "stderr", Terminal())
    with (
        pytest.raises(UsageError, match="in the middle"), progress.of_maps() as hear, schedule.heard_by(hear),
    ):  # fmt: skip
        schedule.run("rise", 8, fails, bytes_each=1, device=torch.device("cpu"))
    assert not progress._shown
    assert schedule._listener.get() is None
