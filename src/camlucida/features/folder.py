"""Features on disk: a memory-mapped array, a table of its rows, and a manifest; written slice by slice, resumable."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camlucida.errors import UsageError
from camlucida.features.extract import Block, Described
from camlucida.images.datasets import Example
from camlucida.values import Label

SCHEMA, TOOL = 1, "camlucida features"
ARRAY, TABLE, REJECTED, MANIFEST, PARQUET, PROGRESS = (
    "features.npy", "pictures.parquet", "rejected.csv", "manifest.json", "features.parquet", ".progress.jsonl",
)  # fmt: skip
FILES = (ARRAY, TABLE, REJECTED, PARQUET, PROGRESS, MANIFEST)
HEADER = 128  # bytes before the numbers
ROWS = 4096  # of a group in the Parquet file


@dataclass(frozen=True, eq=False)
class Features:
    """Vectors of N pictures: `values (N, D)` float32, memory-mapped where they were read from a folder. `labels`: the
    classes of each row, indices into `classes`; `difficult`: those of them that are not scored; `subsets`: the published
    splits that name it; `blocks`: what the columns are; `about`: network, descriptor and command that made them."""

    values: NDArray[np.float32]
    paths: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    classes: tuple[Label, ...]
    blocks: tuple[Block, ...]
    difficult: tuple[tuple[int, ...], ...] = ()
    subsets: tuple[tuple[str, ...], ...] = ()
    about: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        empty: tuple = ((),) * len(self.paths)
        for name in ("difficult", "subsets"):
            if not getattr(self, name):
                object.__setattr__(self, name, empty)
        counts = {len(self.paths), len(self.labels), len(self.difficult), len(self.subsets)}
        if counts != {len(self.values)} or self.values.shape[1] != self.blocks[-1].stop:
            raise UsageError("features", got=f"{self.values.shape} numbers, {sorted(counts)} rows", allowed=f"one row a picture, {self.blocks[-1].stop} columns")  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def multi_label(self) -> bool:
        """Whether a picture may be of several classes."""
        return any(len(row) != 1 for row in self.labels)

    @classmethod
    def read(cls, folder: str | Path) -> Features:
        """What `FeatureFolder` wrote. Raises UsageError for any other folder and for one that is not finished."""
        from pyarrow import parquet

        folder = Path(folder)
        about = _manifest(folder)
        if about is None:
            raise UsageError(f"features in {folder}", got="no manifest of camlucida features extract", do="camlucida features extract DATA --out FOLDER makes one")  # fmt: skip
        if about.get("state") != "done":
            raise UsageError(f"features in {folder}", got="a run that was stopped", do="the same command with --resume goes on")  # fmt: skip
        try:
            rows = parquet.read_table(folder / TABLE, columns=["path", "labels", "difficult", "splits"])
            values = np.load(folder / ARRAY, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UsageError(f"features in {folder}", got=str(error).splitlines()[0]) from error
        classes = tuple(Label(*one) for one in about["classes"])
        index = {label.id: i for i, label in enumerate(classes)}

        def numbers(column: str) -> tuple[tuple[int, ...], ...]:
            return tuple(tuple(index[one] for one in row) for row in rows[column].to_pylist())

        blocks = tuple(Block(**{**one, "scales": tuple(one["scales"])}) for one in about["blocks"])
        return cls(
            values, tuple(rows["path"].to_pylist()), numbers("labels"), classes, blocks, numbers("difficult"),
            tuple(map(tuple, rows["splits"].to_pylist())), about,
        )  # fmt: skip


def stacked(several: Sequence[Features]) -> Features:
    """Features of the same pictures by several networks or layers, side by side, rows in the order of the first. Raises
    UsageError where pictures or labels differ."""
    first = several[0]
    if len(several) == 1:
        return first
    orders = []
    for other in several[1:]:
        at = {path: i for i, path in enumerate(other.paths)}
        if len(at) != len(other) or len(set(first.paths)) != len(first):
            raise UsageError(
                "stacking features", got="several rows of one picture", allowed="one row a picture"
            )
        missing, surplus = (
            [p for p in first.paths if p not in at],
            sorted(set(other.paths) - set(first.paths)),
        )
        if missing or surplus:
            raise UsageError("stacking features", got=f"{_some(missing)} only in one, {_some(surplus)} only in another", allowed="features of the same pictures", do="extract both from the same data; a picture that one network rejected is in its rejected.csv")  # fmt: skip
        order = np.array([at[path] for path in first.paths])
        given = [{other.classes[k].id for k in other.labels[i]} for i in order]
        if given != [{first.classes[k].id for k in row} for row in first.labels]:
            raise UsageError("stacking features", got="other labels for a picture", allowed="the same labels")
        orders.append(order)
    values, blocks, start = [np.asarray(first.values)], list(first.blocks), first.blocks[-1].stop
    for other, order in zip(several[1:], orders, strict=True):
        values.append(np.asarray(other.values[order]))
        blocks += [replace(b, start=b.start + start, stop=b.stop + start) for b in other.blocks]
        start = blocks[-1].stop
    made = {"stacked": [dict(one.about or {}) for one in several]}
    return replace(first, values=np.concatenate(values, axis=1), blocks=tuple(blocks), about=made)


class FeatureFolder:
    """Where one extraction is written. `add` takes the descriptions of one slice after the other and makes each safe;
    `finish` writes the table. What was safe when a run was killed is there when it is resumed (`done`: pictures)."""

    def __init__(self, folder: Path, manifest: dict[str, Any], progress: list[dict[str, Any]]) -> None:
        """Use `open`."""
        self.folder, self.manifest = folder, manifest
        self.width = manifest["blocks"][-1]["stop"]
        self.done = sum(one["pictures"] for one in progress)
        self.rejected = [
            (int(i), str(path), str(why)) for one in progress for i, path, why in one["rejected"]
        ]
        self.rows = self.done - len(self.rejected)

    @classmethod
    def open(
        cls,
        folder: str | Path,
        blocks: Sequence[Block],
        settings: Mapping[str, Any],
        about: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> FeatureFolder:
        """Makes the folder, or goes on in one of ours. `settings`: whatever decides the numbers; `resume` refuses a folder
        whose settings differ. Raises UsageError, also for a folder that is not ours, which stays as it is."""
        folder = Path(folder)
        if resume and overwrite:
            raise UsageError("--resume and --overwrite together", do="give one of them")
        stored = _manifest(folder)
        if stored is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"write features to {folder}", got="a folder with other files" if folder.is_dir() else "a file", allowed="a new or empty folder", do="nothing was touched; name another folder")  # fmt: skip
        if stored is not None and not (resume or overwrite):
            raise UsageError(f"write features to {folder}", got="a folder that holds features already", do="--resume goes on with it, --overwrite replaces it, or name another folder")  # fmt: skip
        given = {
            "tool": TOOL, "schema": SCHEMA, "state": "running", "settings": dict(settings), "blocks": [asdict(b) for b in blocks], **about,
        }  # fmt: skip
        manifest = json.loads(json.dumps(given, default=str))
        progress: list[dict[str, Any]] = []
        if stored is not None and resume:
            before, now = stored.get("settings", {}), manifest["settings"]
            other = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
            if other:
                raise UsageError(f"--resume in {folder}", got=f"other {', '.join(other)}", allowed="the settings it was begun with", do="--overwrite begins anew")  # fmt: skip
            if stored.get("state") == "done":
                return cls(folder, stored, [{"pictures": now["inputs"], "rejected": []}])
            progress = _progress(folder)
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder, manifest, progress)
        if not progress:
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
            (folder / ARRAY).write_bytes(made._header())
        _write(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        with (folder / ARRAY).open("r+b") as stream:
            stream.truncate(HEADER + made.rows * made.width * 4)
        return made

    def add(self, described: Sequence[Described]) -> None:
        """The pictures that follow, their vectors first and then the note that they are there."""
        kept = [one.vector for one in described if one.vector is not None]
        rejected = [
            (self.done + i, one.path, one.problem) for i, one in enumerate(described) if one.vector is None
        ]
        with (self.folder / ARRAY).open("r+b") as stream:
            stream.seek(HEADER + self.rows * self.width * 4)
            if kept:
                stream.write(np.stack(kept).astype("<f4").tobytes())
            self.rows += len(kept)
            stream.seek(0)
            stream.write(self._header())
            stream.flush()
            os.fsync(stream.fileno())
        note = json.dumps({"pictures": len(described), "rejected": rejected})
        with (self.folder / PROGRESS).open("a", encoding="utf-8") as notes:
            notes.write(note + "\n")
        self.done += len(described)
        self.rejected += rejected

    def finish(self, paths: Sequence[str], examples: Sequence[Example], classes: Sequence[Label], *, parquet: bool = False) -> None:  # fmt: skip
        """`pictures.parquet`: row, path, labels and what else is known of every picture that has a vector; rejected.csv;
        with `parquet` the vectors once more beside them in one table. `paths` and `examples` in the order of `add`."""
        import pyarrow as pa
        from pyarrow import parquet as files

        out = {i for i, _, _ in self.rejected}
        kept = [
            (path, one) for i, (path, one) in enumerate(zip(paths, examples, strict=True)) if i not in out
        ]
        if len(kept) != self.rows:
            raise UsageError(f"features in {self.folder}", got=f"{self.rows} rows", allowed=f"{len(kept)} pictures", do="--overwrite begins anew")  # fmt: skip
        ids, words = [label.id for label in classes], pa.list_(pa.string())
        table = pa.table({
            "row": pa.array(range(len(kept)), pa.int64()),
            "path": pa.array([_utf8(path) for path, _ in kept], pa.string()),
            "labels": pa.array([[ids[k] for k in one.labels] for _, one in kept], words),
            "difficult": pa.array([[ids[k] for k in one.difficult_labels] for _, one in kept], words),
            "splits": pa.array([list(one.subsets) for _, one in kept], words),
        })  # fmt: skip
        files.write_table(table, _partial(self.folder / TABLE))
        os.replace(_partial(self.folder / TABLE), self.folder / TABLE)
        with _partial(self.folder / REJECTED).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerows([("path", "reason"), *((_utf8(p), _utf8(why)) for _, p, why in self.rejected)])
        os.replace(_partial(self.folder / REJECTED), self.folder / REJECTED)
        if parquet:
            self._parquet(table)
        self.manifest |= {
            "state": "done", "rows": self.rows, "rejected": len(self.rejected), "classes": [[one.id, one.name] for one in classes],
        }  # fmt: skip
        _write(self.folder / MANIFEST, json.dumps(self.manifest, indent=1) + "\n")
        (self.folder / PROGRESS).unlink(missing_ok=True)

    def _parquet(self, table: Any) -> None:
        import pyarrow as pa
        from pyarrow import parquet as files

        values = np.load(self.folder / ARRAY, mmap_mode="r")
        kind = pa.list_(pa.float32(), self.width)
        file = _partial(self.folder / PARQUET)
        with files.ParquetWriter(file, table.schema.append(pa.field("features", kind))) as writer:
            for start in range(0, len(values), ROWS):
                rows = np.ascontiguousarray(values[start : start + ROWS])
                lists = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), self.width)
                writer.write_table(table.slice(start, ROWS).append_column("features", lists))
        os.replace(file, self.folder / PARQUET)

    def _header(self) -> bytes:
        """The head of a `.npy` file, as long for any number of rows."""
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({self.rows}, {self.width}), }}"
        return (
            b"\x93NUMPY\x01\x00"
            + (HEADER - 10).to_bytes(2, "little")
            + text.ljust(HEADER - 11).encode()
            + b"\n"
        )


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of one of our folders, None for any other."""
    try:
        stored = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ours = isinstance(stored, dict) and (stored.get("tool"), stored.get("schema")) == (TOOL, SCHEMA)
    return stored if ours else None


def _progress(folder: Path) -> list[dict[str, Any]]:
    """The notes of a run that was stopped; a line cut short by a kill counts for nothing, and is cut off."""
    file = folder / PROGRESS
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        _write(file, whole)
    return [json.loads(line) for line in whole.splitlines()]


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return f"{len(names)} pictures" + (
        f" ({', '.join(names[:3])}{' …' if len(names) > 3 else ''})" if names else ""
    )


def _partial(file: Path) -> Path:
    return file.with_name(f".{file.name}.partial")


def _write(file: Path, text: str) -> None:
    _partial(file).write_text(text, encoding="utf-8")
    os.replace(_partial(file), file)


def _utf8(text: str) -> str:
    """File names need not be UTF-8, tables must be."""
    return text.encode("utf-8", "replace").decode("utf-8")
