"""Is it the model or the map? Checks a network on a picture, one thing at a time, and says what it found in words.

PICTURES: one, or several: their statistics are then taken together, which tells swapped channels and foreign heads
apart better; the maps are the first one's. Exit code 0 whenever the checks ran, whatever they found.

  camlucida doctor cat.jpg --network mine.safetensors
  camlucida doctor photos/*.jpg --network mine.safetensors --truth cat --out checked/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from camlucida.cli import choices

if TYPE_CHECKING:
    from camlucida.diagnosis import Diagnosis


@dataclass(frozen=True)
class Options:
    pictures: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PICTURES")]
    """Files, folders, globs, zip or tar archives."""
    network: choices.Chosen = choices.DEFAULT
    truth: str | None = None
    """The right class of the first picture: its number, id or name."""
    layer: str | None = None
    """Layer that Grad-CAM looks at; without it, the map that localize would show."""
    method: str = "auto"
    """As in camlucida localize. auto: CAM where the head allows it, else Grad-CAM."""
    out: str | None = None
    """Folder for doctor.html; made if it is not there."""
    json: bool = False
    """Print the findings as JSON instead of the table."""
    overwrite: bool = False
    """Replace the doctor.html of an earlier run in --out."""
    seed: int = 0
    """Of the permuted heads and the shifted maps."""


def run(options: Options, command: Sequence[str]) -> int:
    import shlex
    import sys
    from pathlib import Path

    from camlucida import diagnosis
    from camlucida.report import diagnosis as page

    file = None if options.out is None else page.place(Path(options.out), options.overwrite)
    found = diagnosis.doctor(
        choices.network(options.network), options.pictures, truth=options.truth, layer=options.layer, method=options.method, seed=options.seed,
    )  # fmt: skip
    if file is not None:
        page.save(found, file, " ".join([command[0], *map(shlex.quote, command[1:])]))
        print(str(file.resolve()), file=sys.stderr if options.json else sys.stdout)
    if options.json:
        print(found.to_json())
    else:
        _show(found)
    return 0


def _show(found: Diagnosis) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("found", overflow="fold")
    colours = {"good": "green", "doubtful": "yellow", "bad": "red"}
    for one in found.findings:
        table.add_row(one.name, Text(one.verdict, colours[one.verdict]), Text(one.words))
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print()
    console.print(found.verdict, style="bold", soft_wrap=True)
