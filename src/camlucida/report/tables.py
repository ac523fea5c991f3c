"""What is made of the rows of a result folder for other programs: CSV and COCO; and the list of rejected pictures."""

from __future__ import annotations

import csv as csv_files
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from camlucida.report.rows import COLUMNS, SCHEMA_VERSION, read_rows
from camlucida.report.writing import dumps, replacing
from camlucida.values import Label


def write_csv(file: Path, files: Sequence[Path]) -> None:
    with replacing(file) as partial, pa.csv.CSVWriter(partial, COLUMNS) as writer:
        for part in files:
            writer.write_table(pa.parquet.ParquetFile(part).read())


def write_rejected(file: Path, rejected: Iterable[Sequence[str]]) -> None:
    with replacing(file) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv_files.writer(stream, lineterminator="\n")
        writer.writerow(["path", "reason"])
        writer.writerows(rejected)


def write_coco(folder: Path, files: Sequence[Path], labels: Sequence[Label]) -> None:
    """`coco.json` and `coco_results.json`. Ids count from 1 in the order of the rows; `category_id` is the
    class index + 1; `score` is the class's probability × the box's score, the class's logit where the network gives no
    probabilities; 0 where it is not a number."""
    names = {index: (label.id, label.name) for index, label in enumerate(labels)}
    with ExitStack() as stack:
        targets = [
            stack.enter_context(replacing(folder / name)) for name in ("coco.json", "coco_results.json")
        ]
        dataset, results = (
            stack.enter_context(target.open("w", encoding="utf-8", newline="\n")) for target in targets
        )
        info = {"description": "camlucida localize", "version": str(SCHEMA_VERSION)}
        dataset.write('{"info": ' + dumps(info) + ',\n"images": ')
        images = (
            {"id": number, "file_name": row["path"], "width": row["width"], "height": row["height"]}
            for number, row in _numbered(read_rows(files, ["path", "width", "height", "rank", "box_index"]))
        )
        _write_list(dataset, images)
        dataset.write(',\n"annotations": ')
        _write_list(dataset, _annotations(files, names, results))
        dataset.write(',\n"categories": ')
        _write_list(
            dataset, ({"id": i + 1, "name": names[i][1], "class_id": names[i][0]} for i in sorted(names))
        )
        dataset.write("}\n")


def _annotations(
    files: Sequence[Path], names: dict[int, tuple[str, str]], results: IO[str]
) -> Iterator[dict[str, Any]]:
    """Annotations of the dataset; on the way writes them as bare results and adds classes without label."""
    columns = [
        "rank",
        "box_index",
        "class_index",
        "class_id",
        "class_name",
        "probability",
        "logit",
        "x0",
        "y0",
        "x1",
        "y1",
        "box_score",
    ]
    image, written = 0, 0
    for row in read_rows(files, columns):
        image += row["rank"] == 1 and not row["box_index"]
        names.setdefault(row["class_index"], (row["class_id"], row["class_name"]))
        if row["x0"] is None:
            continue
        width, height = row["x1"] - row["x0"], row["y1"] - row["y0"]
        sure = row["probability"]
        score = (row["logit"] if sure is None else sure * (row["box_score"] or 0.0)) or 0.0
        result = {
            "image_id": image,
            "category_id": row["class_index"] + 1,
            "bbox": [row["x0"], row["y0"], width, height],
            "score": score if math.isfinite(score) else 0.0,
        }
        results.write(("[\n" if not written else ",\n") + dumps(result))
        written += 1
        yield {"id": written, **result, "area": width * height, "iscrowd": 0, "rank": row["rank"]}
    results.write("\n]\n" if written else "[]\n")


def _numbered(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The first row of each picture with the picture's number, from 1."""
    return enumerate((row for row in rows if row["rank"] == 1 and not row["box_index"]), 1)


def _write_list(stream: IO[str], items: Iterable[Mapping[str, Any]]) -> None:
    opening = "[\n"
    for item in items:
        stream.write(opening + dumps(item))
        opening = ",\n"
    stream.write("[]" if opening == "[\n" else "\n]")
