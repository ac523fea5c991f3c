"""Parts of objects, boxed: a CSV with `path, part, x0, y0, x1, y1`, several rows a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camlucida.errors import UsageError
from camlucida.images import manifests
from camlucida.images.sources import Source
from camlucida.values import Box


@dataclass(frozen=True, slots=True)
class Part:
    """One row: the picture's path as written, the part's name, its half-open box in source pixels, and its line in the file."""

    path: str
    name: str
    box: Box
    line: int


class _Rows(csv.DictReader):
    """Rows of which a manifest reads the part as the label."""

    def __next__(self) -> Any:
        row = super().__next__()
        return {("label" if str(key).strip() == "part" else key): value for key, value in row.items()}


def read_parts(file: str | Path, corners: str = "half-open") -> tuple[Part, ...]:
    """The rows of a file. Raises UsageError with file and line."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
        rows = manifests.parse(_Rows(io.StringIO(text), skipinitialspace=True), corners, str(file))
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"cannot read the parts in {file}", got=str(error)) from error
    if not rows:
        raise UsageError(f"parts in {file}", got="no rows", allowed="path,part,x0,y0,x1,y1")
    found = []
    for row in rows:
        if len(row.labels) != 1 or row.box is None:
            raise UsageError(f"{file}, line {row.line}: no part or no box", allowed="path,part,x0,y0,x1,y1")
        found.append(Part(row.path, row.labels[0], row.box, row.line))
    if len({(part.path, part.name) for part in found}) < len(found):
        seen: set[tuple[str, str]] = set()
        twice = next(p for p in found if (p.path, p.name) in seen or seen.add((p.path, p.name)))  # type: ignore[func-returns-value]
        raise UsageError(
            f"{file}, line {twice.line}: {twice.name!r} of {twice.path} once more", allowed="one box each"
        )
    return tuple(found)


def pictures_of(parts: Sequence[Part], sources: Sequence[Source], file: str | Path) -> dict[str, Source]:
    """The picture behind each path: the one of that relative path, name, or end of the name. Raises UsageError for a
    path that no picture has, or several have."""
    by_path: dict[str, list[Source]] = {}
    wanted = {part.path for part in parts}
    for source in sources:
        names = {source.relative, source.name}
        folders = source.name.replace("\\", "/").split("/")
        names |= {"/".join(folders[i:]) for i in range(len(folders))}
        for name in names & wanted:
            by_path.setdefault(name, []).append(source)
    for part in parts:
        found = by_path.get(part.path, [])
        if len(found) != 1:
            raise UsageError(
                f"{file}, line {part.line}: {part.path}",
                got="no such picture among PICTURES" if not found else f"{len(found)} pictures of that name",
                do="paths are those below the folder or archive that is given",
            )
    return {path: found[0] for path, found in by_path.items()}
