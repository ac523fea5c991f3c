"""Predictions of a network on labelled pictures, as a value and as a Parquet file; their fusion; the submission."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from camlucida import metrics
from camlucida.errors import UsageError
from camlucida.evaluate.classify import Classified
from camlucida.values import Label

KEY = b"camlucida.predictions"  # of the metadata in a Parquet file's schema
SCHEMA = 1
SUBMITTED = 5


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a network, or several fused, said of N pictures.

    `labels`: the true classes of each picture, none where they are not known; `difficult`: those of them that are not
    scored; `probabilities (N, C)` float32 over `classes`; `activation`: what made them of logits; `rejected`: pictures
    that could not be used, and why.
    """

    paths: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    probabilities: NDArray[np.float32]
    classes: tuple[Label, ...]
    network: str = ""
    protocol: str = ""
    activation: str = "softmax"
    difficult: tuple[tuple[int, ...], ...] = ()
    rejected: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        count, outputs = len(self.paths), len(self.classes)
        if not self.difficult:
            object.__setattr__(self, "difficult", ((),) * count)
        if self.probabilities.shape != (count, outputs) or {len(self.labels), len(self.difficult)} != {count}:
            raise UsageError(
                f"predictions of {self.network}",
                got=f"{count} pictures, {len(self.labels)} labels, probabilities {self.probabilities.shape}",
                allowed=f"one row a picture, {outputs} classes",
            )
        if any(not 0 <= i < outputs for row in self.labels for i in row):
            raise UsageError(f"predictions of {self.network}", got="a label that is no class", allowed=f"0 … {outputs - 1}")  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def multi_label(self) -> bool:
        """Whether a picture may be of several classes."""
        return self.activation == "sigmoid" or any(len(row) > 1 for row in self.labels)


def collect(
    stream: Iterable[Classified], labels: Sequence[Sequence[int]], classes: Sequence[Label], *, difficult: Sequence[Sequence[int]] = (), **about: str
) -> Predictions:  # fmt: skip
    """Predictions of a whole stream, whose pictures have these `labels`, row by row; `about`: network, protocol,
    activation."""
    paths, kept, rows, rejected = [], [], [], []
    for i, one in enumerate(stream):
        if one.probabilities is None:
            rejected.append((one.path, one.problem))
        elif not np.isfinite(one.probabilities).all():
            rejected.append((one.path, "the network's answer holds NaN or infinite values"))
        else:
            paths.append(one.path)
            kept.append(i)
            rows.append(one.probabilities.astype(np.float32))
    outputs = len(rows[0]) if rows else len(classes)
    if outputs != len(classes):
        raise UsageError(f"labels for {about.get('network')}", got=len(classes), allowed=f"{outputs}, one per output")  # fmt: skip
    hard = tuple(tuple(difficult[i]) for i in kept) if difficult else ()
    return Predictions(
        tuple(paths), tuple(tuple(labels[i]) for i in kept), np.array(rows, np.float32).reshape(len(rows), outputs), tuple(classes),
        difficult=hard, rejected=tuple(rejected), **about,
    )  # fmt: skip


def save(predictions: Predictions, file: str | Path) -> None:
    """One row a picture: `path`, `labels`, `difficult` (indices of classes), `probabilities` (list of float32). Classes,
    network, protocol, activation and rejected pictures are in the schema's metadata. Whole or not at all."""
    import pyarrow as pa
    from pyarrow import parquet

    file, (count, outputs) = Path(file), predictions.probabilities.shape
    about = {
        "schema": SCHEMA, "network": predictions.network, "protocol": predictions.protocol, "activation": predictions.activation,
        "classes": [[label.id, label.name] for label in predictions.classes], "rejected": predictions.rejected,
    }  # fmt: skip
    starts = pa.array(np.arange(count + 1, dtype=np.int64) * outputs)
    values = pa.array(np.ascontiguousarray(predictions.probabilities, np.float32).reshape(-1))
    indices = pa.list_(pa.int32())
    columns = {
        "path": pa.array([utf8(path) for path in predictions.paths], pa.string()),
        "labels": pa.array([list(row) for row in predictions.labels], indices),
        "difficult": pa.array([list(row) for row in predictions.difficult], indices),
        "probabilities": pa.LargeListArray.from_arrays(starts, values).cast(pa.list_(pa.float32())),
    }
    table = pa.table(columns).replace_schema_metadata({KEY: json.dumps(about).encode()})
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        parquet.write_table(table, temporary, row_group_size=4096)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def is_file(path: str | Path) -> bool:
    """Whether this is a file that `save` wrote."""
    import pyarrow as pa
    from pyarrow import parquet

    path = Path(path)
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return False
    try:
        return KEY in (parquet.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False  # its reader says what is wrong with it


def read(file: str | Path) -> Predictions:
    """What `save` wrote. Raises UsageError for any other file."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(Path(file).read_bytes()))
        about = json.loads((table.schema.metadata or {})[KEY])
        if about["schema"] != SCHEMA:
            raise UsageError(f"predictions in {file}", got=f"schema {about['schema']}", allowed=f"{SCHEMA}")
        count, outputs = table.num_rows, len(about["classes"])
        values = table["probabilities"].combine_chunks()
        lengths = set(values.value_lengths().to_pylist())
        flat = values.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        if lengths - {outputs} or values.null_count or flat.size != count * outputs:
            raise ValueError(f"rows of {sorted(lengths, key=str)} probabilities for {outputs} classes")
        return Predictions(
            tuple(table["path"].to_pylist()), tuple(map(tuple, table["labels"].to_pylist())), flat.reshape(count, outputs),
            tuple(Label(*one) for one in about["classes"]), about["network"], about["protocol"], about["activation"],
            tuple(map(tuple, table["difficult"].to_pylist())), tuple((path, why) for path, why in about["rejected"]),
        )  # fmt: skip
    except (
        pa.ArrowException,
        OSError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        MemoryError,
    ) as error:
        raise UsageError(f"predictions in {file}", got=f"{type(error).__name__}: {error}", allowed="files that camlucida evaluate --predictions wrote") from error  # fmt: skip


def fuse(several: Sequence[Predictions]) -> Predictions:
    """The mean of several predictions of the same pictures, in the order of the first. Pictures that are not in all of
    them are rejected. Raises UsageError where classes, activations or true labels differ, or no picture is shared."""
    first = several[0]
    if len(several) == 1:
        return first
    for other in several[1:]:
        for what in ("classes", "activation"):
            if getattr(first, what) != getattr(other, what):
                raise UsageError(f"fusing {first.network} and {other.network}", got=f"other {what}", allowed="predictions of the same classes in the same order, made by the same activation")  # fmt: skip
    rows = [{path: i for i, path in enumerate(one.paths)} for one in several]
    if any(len(known) != len(one) for known, one in zip(rows, several, strict=True)):
        raise UsageError("fusing predictions", got="a picture twice in one of them", allowed="each once")
    shared = [path for path in first.paths if all(path in known for known in rows)]
    if not shared:
        raise UsageError(
            "fusing predictions", got="no picture that is in all of them", do="predict the same data"
        )
    rejected = {path: why for one in several for path, why in one.rejected}
    for one, known in zip(several, rows, strict=True):
        rejected |= {path: f"no prediction by {one.network}" for other in several for path in other.paths if path not in known and path not in rejected}  # fmt: skip
    picked = [[known[path] for path in shared] for known in rows]
    for one, at in zip(several, picked, strict=True):
        wrong = next((p for p, i, j in zip(shared, picked[0], at, strict=True) if one.labels[j] != first.labels[i]), None)  # fmt: skip
        if wrong is not None:
            raise UsageError("fusing predictions", got=f"two truths for {wrong}", allowed="the same labels")
    total = np.zeros((len(shared), len(first.classes)))
    for one, at in zip(several, picked, strict=True):
        total += one.probabilities[at]
    protocols = dict.fromkeys(one.protocol for one in several)
    return replace(
        first,
        paths=tuple(shared),
        labels=tuple(first.labels[i] for i in picked[0]),
        difficult=tuple(first.difficult[i] for i in picked[0]),
        probabilities=(total / len(several)).astype(np.float32),
        network=" + ".join(one.network for one in several),
        protocol=" + ".join(protocols),
        rejected=tuple(rejected.items()),
    )


def submission(predictions: Predictions, numbers: Sequence[int] | None = None) -> str:
    """The ILSVRC classification submission: a line a picture, sorted by file name, five class numbers, best first.
    `numbers`: that of each class; by default its place among the classes, from 1. A rejected picture keeps its line, of
    zeros, so that the lines below stay where they belong. Raises UsageError where fewer than five classes are known."""
    numbers = range(1, len(predictions.classes) + 1) if numbers is None else numbers
    if len(numbers) != len(predictions.classes) or len(numbers) < SUBMITTED:
        raise UsageError("ILSVRC submission", got=f"{len(predictions.classes)} classes, {len(numbers)} numbers", allowed="a number a class, at least five")  # fmt: skip
    lines = {path: "0 0 0 0 0" for path, _ in predictions.rejected}
    for path, row in zip(predictions.paths, predictions.probabilities, strict=True):
        lines[path] = " ".join(str(numbers[i]) for i in metrics.top_k(row, SUBMITTED))
    ordered = sorted(lines, key=lambda path: (PurePosixPath(path).name, path))
    return "".join(lines[path] + "\n" for path in ordered)


def read_numbers(file: str | Path, classes: Sequence[Label]) -> tuple[int, ...]:
    """The number of each class, from a file with a WordNet id and a number a line (`map_clsloc.txt` of ILSVRC's devkit;
    without a number, its line counts from 1). Raises UsageError for a class that is not there."""
    try:
        lines = [line.split() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {file}", got=str(error)) from error
    known = {
        words[0]: int(words[1]) if len(words) > 1 and words[1].isdigit() else at
        for at, words in enumerate(lines, 1)
    }
    missing = [label.id for label in classes if label.id not in known]
    if missing:
        raise UsageError(f"class numbers in {file}", got=f"none for {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}", allowed="a WordNet id and its number a line, for every class of the network")  # fmt: skip
    return tuple(known[label.id] for label in classes)


def utf8(text: str) -> str:
    """File names need not be UTF-8, tables must be."""
    return text.encode("utf-8", "replace").decode("utf-8")
