"""`camlucida evaluate --task classification`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from camlucida.cli.evaluate import Options


def run(options: Options, command: Sequence[str]) -> int:
    from camlucida.errors import UsageError

    raise UsageError("--task classification", got="a task that is not there yet", allowed="summary")
