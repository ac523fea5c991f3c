"""Lists of pictures with what is known of them: CSV, JSON lines or Parquet, several rows a picture
allowed."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from camlucida.errors import UsageError, nearest
from camlucida.values import Box

SUFFIXES = (".csv", ".jsonl", ".parquet")
COLUMNS = (
    "path", "label", "labels", "x0", "y0", "x1", "y1", "mask", "caption", "difficult", "split", "value", "values",
)  # fmt: skip
CORNERS = ("half-open", "inclusive")


@dataclass(frozen=True, slots=True)
class Row:
    """One row. `box` is half-open whatever the file declared; `labels` are ids or names as written; `line` is its
    place in the file, from 1."""

    path: str
    labels: tuple[str, ...] = ()
    box: Box | None = None
    mask: str | None = None
    caption: str | None = None
    difficult: bool = False
    split: str | None = None
    values: tuple[float, ...] = ()
    line: int = field(default=0, compare=False)


def read(file: str | Path, corners: str = "half-open") -> tuple[Row, ...]:
    """Rows of a manifest (columns: any subset of COLUMNS with `path`). Raises UsageError with file and
    line."""
    file = Path(file)
    suffix = file.suffix.lower()
    try:
        if suffix == ".parquet":
            import pyarrow.parquet

            try:
                records = pyarrow.parquet.read_table(io.BytesIO(file.read_bytes())).to_pylist()
            except (pyarrow.ArrowException, MemoryError) as error:  # a broken file may declare any size
                raise ValueError(str(error) or type(error).__name__) from error
            return parse(records, corners, str(file))
        text = file.read_text(encoding="utf-8-sig")
        if suffix == ".jsonl":
            return parse(_json_lines(text), corners, str(file))
        if suffix == ".csv":
            return parse_csv(text, corners, str(file))
    except (OSError, ValueError, csv.Error) as error:  # ValueError: not UTF-8, not JSON, not Parquet
        raise UsageError(f"cannot read the manifest {file}", got=str(error)) from error
    raise UsageError(f"manifest {file}", got=f"suffix {suffix or 'none'}", allowed=" ".join(SUFFIXES))


def parse_csv(text: str, corners: str = "half-open", where: str = "manifest") -> tuple[Row, ...]:
    return parse(csv.DictReader(io.StringIO(text), skipinitialspace=True), corners, where)


def _json_lines(text: str) -> Iterator[Any]:
    """What each line holds, None for an empty one."""
    for number, line in enumerate(text.split("\n"), 1):
        try:
            yield json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON: {error.msg}") from error
        except RecursionError:
            raise ValueError(f"line {number} is JSON of too many levels") from None


def parse(records: Iterable[Mapping[str, Any] | None], corners: str, where: str) -> tuple[Row, ...]:
    if corners not in CORNERS:
        raise UsageError("corners", got=repr(corners), do=nearest(corners, CORNERS))
    rows = []
    for number, record in enumerate(records, 1):
        line = getattr(records, "line_num", number)  # a record of a CSV may take several lines
        if record is None:
            continue
        if not isinstance(record, Mapping):
            raise UsageError(f"{where}, line {line}", got=type(record).__name__, allowed="names → values")
        record = {str(k).strip(): v for k, v in record.items() if k is not None and v is not None and v != ""}
        if "wnid" in record:  # the column name of our packed data sets
            record.setdefault("label", record.pop("wnid"))
        if "path" not in record or "\0" in str(record["path"]):
            raise UsageError(f"{where}, line {line}: no path", allowed="columns " + ", ".join(COLUMNS))
        labels = record.get("labels", record.get("label", ()))
        if not isinstance(labels, (list, tuple)):
            labels = str(labels).split(";")
        rows.append(
            Row(
                str(record["path"]),
                tuple(name for label in labels if label is not None and (name := str(label).strip())),
                _box(record, corners, f"{where}, line {line}"),
                record.get("mask"),
                record.get("caption"),
                str(record.get("difficult", "0")).lower() in ("1", "1.0", "true", "yes"),
                record.get("split"),
                _values(record, f"{where}, line {line}"),
                line,
            )
        )
    return tuple(rows)


def _values(record: Mapping[str, Any], where: str) -> tuple[float, ...]:
    """Numbers of a column `value` or `values`: a number, a list, or text such as `1.5 2`."""
    given = record.get("values", record.get("value", ()))
    try:
        values = tuple(map(float, given if isinstance(given, (list, tuple)) else str(given).split()))
    except (TypeError, ValueError):
        raise UsageError(f"{where}: values", got=repr(given), allowed="numbers, spaces between") from None
    if not all(map(math.isfinite, values)):
        raise UsageError(f"{where}: values", got=repr(given), allowed="finite numbers")
    return values


def _box(record: Mapping[str, Any], corners: str, where: str) -> Box | None:
    given = [record.get(name) for name in ("x0", "y0", "x1", "y1")]
    if all(v is None for v in given):
        return None
    try:
        x0, y0, x1, y1 = (float(v) for v in given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise UsageError(f"{where}: a box", got=given, allowed="four numbers x0, y0, x1, y1") from None
    extra = 1.0 if corners == "inclusive" else 0.0
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 + extra <= x0 or y1 + extra <= y0:
        raise UsageError(
            f"{where}: an empty or inverted {corners} box", got=given, allowed="x0 < x1 and y0 < y1"
        )
    return Box(x0, y0, x1 + extra, y1 + extra)
