"""Class labels from a file the user has."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from camlucida.errors import UsageError
from camlucida.values import Label


def read_labels(file: str | Path) -> tuple[Label, ...]:
    """Labels in the order of the network's outputs: one name a line, `id<TAB>name` lines, a CSV with `name` (and `id` or
    `wnid`) columns, or a JSON list of names. Raises UsageError."""
    file = Path(file)
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".json":
            names = json.loads(text)
            if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                raise UsageError(
                    f"labels in {file}", got=type(names).__name__, allowed="a JSON list of names"
                )
            found = [Label(str(i), name) for i, name in enumerate(names)]
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
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            parts = [line.split("\t", 1) for line in lines]
            found = [Label(p[0], p[1]) if len(p) == 2 else Label(str(i), p[0]) for i, p in enumerate(parts)]
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"cannot read the labels {file}", got=str(error)) from error
    if not found:
        raise UsageError(f"labels in {file}", got="none", allowed="one name a line")
    return tuple(found)
