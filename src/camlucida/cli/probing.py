"""What every probe asks for, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from camlucida.cli import choices

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from camlucida.networks.network import Network
    from camlucida.networks.structure import Layer
    from camlucida.report.probe_folder import ProbeFolder
    from camlucida.report.probe_page import Page


@dataclass(frozen=True, kw_only=True)
class Common:
    """Options of every probe."""

    out: str
    """Folder for report.html and the raw numbers; made if it is not there."""
    network: choices.Chosen = choices.DEFAULT
    overwrite: bool = False
    """Replace the results of an earlier run in --out."""
    json: bool = False
    """Print the figures as JSON instead of words."""


def positive(options: Any, *names: str) -> None:
    """Raises UsageError where one of these options is below 1; None is not."""
    from camlucida.errors import UsageError

    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')}", got=value, allowed="≥ 1")


def separate(names: str) -> list[str]:
    """`a, b` as two."""
    return [one.strip() for one in names.split(",") if one.strip()]


def numbers(units: str) -> list[int]:
    """`3,7,20-31` of `--units`. Raises UsageError."""
    from camlucida.errors import UsageError

    found: list[int] = []
    for one in separate(units) or [""]:
        first, dash, last = (part.strip() for part in one.partition("-"))
        if not first.isdecimal() or (dash and not (last.isdecimal() and int(last) >= int(first))):
            raise UsageError("--units", got=repr(units), allowed="numbers from 0 and ranges, as 3,7,20-31")
        found += range(int(first), int(last or first) + 1)
    return found


def layers_of(net: Network, names: str) -> list[Layer]:
    """The layers named in `--layers`, commas between, for a blank picture of the card's size. Raises LayerError for one that
    is not there or has no extent in space."""
    blank = net.blank()
    return [net.find_layer(one, blank) for one in separate(names)]


def say_fewer(pictures: int, top: int) -> None:
    """Says on stderr where there are fewer pictures than are asked for of each unit."""
    import sys

    if pictures < top:
        print(
            f"{pictures} picture{'s' if pictures != 1 else ''}, fewer than --top {top}: all are taken",
            file=sys.stderr,
        )


def finish(
    options: Common,
    folder: ProbeFolder,
    page: Page,
    net: Network | None,
    figures: Mapping[str, Any],
    words: str,
    rejected: Sequence[tuple[str, str]] = (),
) -> int:
    """Writes page and manifest, prints `figures` (--json) or `words`, and where the page lies; the exit code.
    `rejected`: pictures left out, with the reason of each."""
    import json
    import sys

    folder.save(
        page, {"figures": dict(figures), **(choices.provenance(net) if net is not None else {})}, rejected
    )
    print(json.dumps(figures, default=str) if options.json else words)
    for path, reason in rejected[:20]:
        print(f"rejected {path}: {reason}", file=sys.stderr)
    if len(rejected) > 20:
        print(f"… and {len(rejected) - 20} more in {folder.folder / 'rejected.csv'}", file=sys.stderr)
    print((folder.folder / "report.html").resolve(), file=sys.stderr if options.json else sys.stdout)
    return 3 if rejected else 0
