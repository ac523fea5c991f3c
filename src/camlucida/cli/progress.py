"""Progress on the terminal, and only there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from camlucida.maps.schedule import Listener, Work


NOTICED = 1.0  # seconds a picture; of less nothing is said


class Moved(Protocol):
    def __call__(self, done: int, words: str = "") -> None: ...


_shown: list[Moved] = []  # the bar that is on the terminal now


@contextmanager
def bar(what: str, total: int) -> Iterator[Moved]:
    """Inside, call the yielded function with the number of things done, and words to stand behind the bar if there are
    any; a bar on stderr if that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, words="": None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
        console=Console(stderr=True),
        transient=True,
    ) as shown:
        task = shown.add_task(what, total=total, words="")

        def move(done: int, words: str = "") -> None:
            shown.advance(task, done)
            if words:
                shown.update(task, words=words)

        _shown.append(move)
        try:
            yield move
        finally:
            _shown.pop()


@contextmanager
def of_maps() -> Iterator[Listener]:
    """A listener for `maps.schedule`: says once what each method costs, before it runs in forward passes and after its
    first chunk in seconds, and draws how far it is, behind the bar that is shown or on one of its own; on a terminal
    only."""
    said: set[str] = set()
    timed: set[str] = set()
    alone: Moved | None = None
    before, began = 0, 0.0
    with ExitStack() as own:

        def hear(work: Work, done: int) -> None:
            nonlocal alone, before, began
            if not sys.stderr.isatty():
                return
            if done == 0:
                own.close()
                alone, before, began = None, 0, perf_counter()
                if work.what not in said:
                    said.add(work.what)
                    print(work, file=sys.stderr)
                if work.copies and not _shown:
                    alone = own.enter_context(bar(work.what, work.copies))
                return
            if work.what not in timed:
                timed.add(work.what)
                seconds = (perf_counter() - began) * work.copies / done / work.pictures
                if done < work.copies and seconds >= NOTICED:
                    from camlucida.report.explain_cost import duration

                    print(f"{work.what}: ≈ {duration(seconds)} a picture", file=sys.stderr)
            if alone is not None:
                alone(done - before)
                before = done
            elif _shown:
                _shown[-1](0, f"{work.what} {done:,} of {work.copies:,}")
            if done == work.copies:
                own.close()
                alone = None

        yield hear
