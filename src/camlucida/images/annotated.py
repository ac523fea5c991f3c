"""What a reader of a layout hands over: pictures with classes by id, before one vocabulary numbers them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from camlucida.errors import UsageError
from camlucida.images.sources import Source
from camlucida.values import Box


class Object(NamedTuple):
    """One annotated object: half-open box in source pixels, id of its class."""

    box: Box
    label: str
    difficult: bool = False


@dataclass(slots=True)
class Annotated:
    """One picture as its data set describes it; `subsets`: the published splits that name it."""

    source: Source
    labels: tuple[str, ...]
    objects: Sequence[Object] = ()
    values: tuple[float, ...] = ()
    masks: tuple[str, ...] = ()
    subsets: tuple[str, ...] = ()
    blacklisted: bool = False


@dataclass
class Found:
    """`names`: class id → name; `classes`: ids of the whole vocabulary where the data set lists it; `subsets`: names
    of its published splits; `notes`: what was left out or is worth knowing, one line each."""

    pictures: list[Annotated] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    classes: set[str] = field(default_factory=set)
    subsets: set[str] = field(default_factory=set)
    multi_label: bool = False
    notes: list[str] = field(default_factory=list)

    def note(self, what: str, which: Sequence[str]) -> None:
        """`2 pictures without annotation, left out: a.jpg, b.jpg`; nothing if there are none."""
        if which:
            shown = ", ".join(which[:5]) + (", …" if len(which) > 5 else "")
            self.notes.append(f"{len(which)} {what}: {shown}")


def lines(text: str, where: str, fields: int, allowed: str) -> Iterator[tuple[int, list[str]]]:
    """Number and white-space separated fields of each line that is not empty; the last field takes the rest. Raises
    UsageError with file and line where there are fewer."""
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split(maxsplit=fields - 1)
        if not parts:
            continue
        if len(parts) < fields:
            raise malformed(where, number, line, allowed)
        yield number, [part.strip() for part in parts]


def malformed(where: str, line: int, got: object, allowed: str) -> UsageError:
    return UsageError(f"{where}, line {line}", got=repr(got), allowed=allowed)


def corners(values: Iterable[object], inclusive: bool, first: float = 0.0) -> Box:
    """A half-open box from the corners x0, y0, x1, y1 as a file writes them, `first` being its first pixel. Raises
    ValueError for what is no box."""
    x0, y0, x1, y1 = (float(v) - first for v in values)  # type: ignore[arg-type]
    if inclusive:
        x1, y1 = x1 + 1, y1 + 1
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
        raise ValueError("an empty or inverted box")
    return Box(x0, y0, x1, y1)
