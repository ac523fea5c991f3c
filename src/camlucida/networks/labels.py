"""Class labels from a file the user has."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from camlucida.errors import UsageError
from camlucida.values import Label


def read_labels(file: str | Path) -> tuple[Label, ...]:
    """Labels in the order of the network's outputs: one name a line, `id<TAB>name` lines, a CSV with `name` (and `id` or
    `wnid`) columns, or JSON: a list of names, or a mapping name → index, index → name, index → [id, name]. Raises
    UsageError."""
    file = Path(file)
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".json":
            found = _from_json(json.loads(text), file)
        elif file.suffix.lower() == ".csv":
            rows = list(csv.DictReader(text.splitlines()))
            if rows and "name" not in rows[0]:
                raise UsageError(
                    f"labels in {file}", got=f"columns {', '.join(rows[0])}", allowed="name, and id or wnid"
                )
            found = [
                Label(row.get("id") or row.get("wnid") or str(i), row["name"]) for i, row in enumerate(rows)
            ]
        else:
            lines = [line.strip() for line in text.rstrip().splitlines()]
            if "" in lines:
                raise UsageError(
                    f"labels in {file}",
                    got=f"an empty line {lines.index('') + 1} between names",
                    do="every line is one output: delete the line, or write a name",
                )
            parts = [line.split("\t", 1) for line in lines]
            found = [Label(p[0], p[1]) if len(p) == 2 else Label(str(i), p[0]) for i, p in enumerate(parts)]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"cannot read the labels {file}", got=str(error)) from error
    if not found:
        raise UsageError(f"labels in {file}", got="none", allowed="one name a line")
    return tuple(found)


def _from_json(given: Any, file: Path) -> list[Label]:
    allowed = "a JSON list of names, or a mapping between names and 0, 1, 2 …"
    if isinstance(given, dict):
        try:
            if all(
                isinstance(v, int) for v in given.values()
            ):  # class → index, as torchvision's folders have it
                given = {index: name for name, index in given.items()}
            by_index = {int(index): name for index, name in given.items()}
            given = [by_index[i] for i in range(len(given))]
        except (KeyError, ValueError, TypeError) as error:
            raise UsageError(
                f"labels in {file}", got=f"indices that lack {error}", allowed=allowed
            ) from error
    if not isinstance(given, list):
        raise UsageError(f"labels in {file}", got=type(given).__name__, allowed=allowed)
    found = []
    for i, entry in enumerate(given):
        pair = [str(i), entry] if isinstance(entry, str) else entry
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(word, str) for word in pair)):
            raise UsageError(f"labels in {file}", got=f"{entry!r} at {i}", allowed=allowed)
        found.append(Label(pair[0], pair[1]))
    return found
