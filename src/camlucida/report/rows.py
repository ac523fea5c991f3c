"""The table of a result folder: one row per picture, class rank and box."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from camlucida.images.read import SEVERAL
from camlucida.pipeline import Seen
from camlucida.report.writing import clear, utf8
from camlucida.values import ScoredBox

SCHEMA_VERSION = 1


COLUMNS = pa.schema(
    [
        pa.field("schema_version", pa.int32(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("class_index", pa.int32(), nullable=False),
        pa.field("class_id", pa.string(), nullable=False),
        pa.field("class_name", pa.string(), nullable=False),
        pa.field("probability", pa.float64()),
        pa.field("logit", pa.float64()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("map_method", pa.string(), nullable=False),
        pa.field("layer", pa.string()),
        pa.field("box_rule", pa.string(), nullable=False),
        pa.field("threshold", pa.float64()),
        pa.field("box_index", pa.int32()),
        pa.field("x0", pa.float64()),
        pa.field("y0", pa.float64()),
        pa.field("x1", pa.float64()),
        pa.field("y1", pa.float64()),
        pa.field("box_score", pa.float64()),
        pa.field("box_uncertainty", pa.float64()),
    ]
)
"""One row per picture, class rank and box. A class without any box keeps one row, its box columns null."""


def rows_of(seen: Seen) -> Iterator[dict[str, Any]]:
    note = f"; {SEVERAL}" if SEVERAL in seen.picture.info else ""
    for found in seen.found:
        common = {
            "schema_version": SCHEMA_VERSION,
            "path": utf8(seen.source.name),
            "width": seen.picture.width,
            "height": seen.picture.height,
            "rank": found.rank,
            "class_index": found.class_index,
            "class_id": utf8(found.class_id),
            "class_name": utf8(found.class_name),
            "probability": found.probability,
            "logit": found.logit,
            "status": found.status + note,
            "map_method": found.map_method,
            "layer": found.layer,
            "box_rule": found.box_rule,
            "threshold": found.threshold,
        }
        if not found.boxes:
            yield common
        for index, scored in enumerate(found.boxes):
            yield {**common, **_box_columns(index, scored)}


def _box_columns(index: int, scored: ScoredBox) -> dict[str, Any]:
    x0, y0, x1, y1 = map(float, scored.box.corners)
    return {"box_index": index, "x0": x0, "y0": y0, "x1": x1, "y1": y1, "box_score": scored.score}


def read_rows(files: Iterable[Path], columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of the parts in order, one part in memory at a time."""
    for file in files:
        with clear(file):
            rows = pa.parquet.ParquetFile(file).read(columns).to_pylist()
        yield from rows


def readable(part: Path) -> bool:
    try:
        return pa.parquet.read_schema(part).equals(COLUMNS)
    except (OSError, pa.ArrowException):
        return False
