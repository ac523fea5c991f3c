"""How long a person waits before anything happens, in processor seconds, so that a busy machine does not count."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest


def seconds(*arguments: str) -> float:
    """The least of three runs, user and system time of the child process."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(once() for _ in range(3))


@pytest.mark.parametrize(
    ("limit", "arguments"),
    [
        (
            0.2,
            ("-c", "import camlucida, sys; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"),
        ),
        (0.5, ("-m", "camlucida", "--help")),
    ],
)
def test_nothing_heavy_stands_before_the_first_word(limit, arguments):
    assert seconds(*arguments) <= limit
