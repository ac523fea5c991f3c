"""Progress on the terminal, and only there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Moved(Protocol):
    def __call__(self, done: int, words: str = "") -> None: ...


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

        yield move
