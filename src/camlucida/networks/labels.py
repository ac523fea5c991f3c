"""Class labels from a file the user has."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Sequence
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


def find_class(text: str, labels: Sequence[Label]) -> int:
    """The index of a class by its number, its id, or its name, upper and lower case alike; of a name with
    several words for one thing (`guinea pig, Cavia cobaya`) any of them will do. Raises UsageError for none
    or more than one, with the nearest names."""
    asked = text.strip().casefold()
    if asked.isdecimal():
        return int(asked)
    found = [i for i, label in enumerate(labels) if asked in _called(label)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"class {text!r}",
            got=f"{len(found)} classes of that name",
            do=f"say which: {_listed(found, labels)}",
        )
    words = {word: i for i, label in enumerate(labels) for word in _called(label)}
    close = [i for word, i in words.items() if asked and asked in word]
    close += [words[word] for word in difflib.get_close_matches(asked, words, n=5, cutoff=0.5)]
    raise UsageError(
        f"class {text!r}",
        got="no such name, id or number" if labels else "a name, but this network's classes have none",
        do=f"near it: {_listed(list(dict.fromkeys(close)), labels)}" if close else
           "numbers, ids and names will do: camlucida networks NAME lists them" if labels else "give its number, or --labels FILE",
    )  # fmt: skip


def _called(label: Label) -> set[str]:
    words = [label.id, label.name, *label.name.split(",")]
    return {word.strip().casefold() for word in words if word.strip()}


def _listed(classes: Sequence[int], labels: Sequence[Label], most: int = 5) -> str:
    """`crane (n02012849), crane (n03126707)`."""
    words = [f"{labels[i].name.split(',')[0]} ({labels[i].id})" for i in classes[:most]]
    return ", ".join(words) + (" …" if len(classes) > most else "")
