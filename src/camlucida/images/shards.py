"""Many pictures in few files: tar shards in the WebDataset layout, Parquet with the bytes of pictures."""

from __future__ import annotations

import bisect
import functools
import glob
import itertools
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from camlucida.errors import InputError, UsageError
from camlucida.images.annotated import Annotated, Found
from camlucida.images.class_folders import subsets_of
from camlucida.images.read import SUFFIXES
from camlucida.images.sources import Listing, Source, TarHeader

KINDS = (".tar", ".tar.gz", ".tgz", ".parquet")
PICTURES, LABELS = ("image", "img", "picture", "jpg", "png"), ("label", "labels", "cls", "class")
MAX_TEXT = 2**20  # bytes of a label's file


def files(given: str) -> list[str] | None:
    """The shards that are meant: one file, a folder of them, `shard-{000000..000009}.tar`, a glob; None if it is
    something else. Raises UsageError where one of a numbered row is not there."""
    path = Path(given)
    if path.is_dir():
        found = sorted(e.path for e in os.scandir(given) if e.name.lower().endswith(KINDS) and e.is_file())
        return found if any(map(is_shard, found[:3])) else None  # the first may be broken
    if path.is_file():
        return [given] if given.lower().endswith(KINDS) and is_shard(given) else None
    if not given.lower().endswith(KINDS):
        return None
    if "{" in given:
        found = _braces(given)
        missing = [file for file in found if not os.path.isfile(file)]
        if missing:
            raise UsageError(f"{len(missing)} of {len(found)} shards are not there", got=missing[0])
        return found
    return sorted(glob.glob(given, recursive=True)) or None


def _braces(given: str) -> list[str]:
    """`x-{08..10}{a,b}.tar` → x-08a.tar, x-08b.tar, x-09a.tar, …"""
    choices = []
    for i, part in enumerate(re.split(r"\{([^{}]*)\}", given)):
        numbers = re.fullmatch(r"(\d+)\.\.(\d+)", part) if i % 2 else None
        if numbers:
            first, last = numbers.groups()
            choices.append([str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)])
        else:
            choices.append(part.split(",") if i % 2 else [part])
    return ["".join(one) for one in itertools.product(*choices)]


def is_shard(file: str) -> bool:
    """Whether a Parquet file holds pictures, or a tar begins with a picture and its label side by side."""
    if file.lower().endswith(".parquet"):
        return picture_column(Path(file)) is not None
    seen: dict[str, set[str]] = {}
    try:
        with tarfile.open(file, tarinfo=TarHeader) as tar:
            for member in itertools.islice(tar, 64):
                key, kind = _key(member.name)
                seen.setdefault(key, set()).add(kind)
    except (OSError, tarfile.TarError, EOFError, zlib.error):
        pass  # what came before decides; what reads it says what is wrong
    return any(_is_picture(kinds) and kinds & {"cls", "json", "txt"} for kinds in seen.values())


def _is_picture(kinds: Iterable[str]) -> bool:
    return any(f".{kind}".endswith(SUFFIXES) for kind in kinds)


def _key(member: str) -> tuple[str, str]:
    """WebDataset's rule: a key ends at the first dot of the file's name; files of one key are one sample."""
    folder, slash, name = member.removeprefix("./").rpartition("/")
    key, _, kind = name.partition(".")
    return folder + slash + key, kind.lower()


def load(shards: list[str], subset: str | None) -> Found:
    """All labelled pictures of the shards. `train`, `val`, `test` in a shard's name is its published split."""
    found = Found()
    for file in shards:
        subsets = subsets_of(re.split(r"[^a-z]+", os.path.basename(file).lower()))
        found.subsets.update(subsets)
        if subset is None or subset in subsets:
            (_parquet if file.lower().endswith(".parquet") else _tar)(file, subsets, found)
    ids = {label for picture in found.pictures for label in picture.labels}
    if ids and all(label.isdecimal() for label in ids) and not found.names:
        found.classes = {str(i) for i in range(max(map(int, ids)) + 1)}  # numbers are indices
    return found


# --- tar shards --------------------------------------------------------------------------------------------------


class _Plain(TarHeader):
    """A header of which a shard needs name, size and checksum; most of a listing's time goes into the other fields."""

    @classmethod
    def frombuf(cls, buffer: bytes | bytearray, encoding: str, errors: str) -> _Plain:
        if len(buffer) == tarfile.BLOCKSIZE and buffer[156] == ord("0") and not buffer[124] & 128:  # type: ignore[attr-defined]
            name, size, told, prefix = (
                bytes(buffer[a:b]).partition(b"\0")[0]
                for a, b in ((0, 100), (124, 136), (148, 156), (345, 500))
            )
            try:
                header = cls((prefix + b"/" + name if prefix else name).decode(encoding, errors))
                header.size, header.chksum = int(size, 8), int(told, 8)
                if header.chksum == sum(buffer) - sum(buffer[148:156]) + 8 * ord(" "):
                    return header
            except ValueError:
                pass  # an odd one, or broken: for tarfile to say
        return super().frombuf(buffer, encoding, errors)  # type: ignore[return-value]


def _tar(file: str, subsets: tuple[str, ...], found: Found) -> None:
    """Labels are in `KEY.cls` (a number or a name), else in `KEY.json` (`label`, `labels`, `value` or `values`), else in
    `KEY.txt` (one line). A shard that is broken in the middle gives what comes before."""
    packed = not file.lower().endswith(".tar")
    if packed:
        found.notes.append(
            f"{file} is compressed: reading it in another order than its own is slow; unpack it to .tar"
        )
    unlabelled: list[str] = []
    key, source, texts = "", None, dict[str, str]()

    def finish() -> None:
        if source is None:
            return
        try:
            labels, values = _told(texts)
        except (ValueError, TypeError, RecursionError) as error:
            unlabelled.append(f"{source.member} ({error})")
            return
        if not labels and not values:
            unlabelled.append(str(source.member))
            return
        found.multi_label |= len(labels) > 1
        found.pictures.append(Annotated(source, labels, values=values, subsets=subsets))

    try:
        with tarfile.open(file, tarinfo=_Plain) as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
                if not member.isfile():
                    continue
                name = member.name.removeprefix("./")
                here, kind = _key(name)
                if here != key:
                    finish()
                    key, source, texts = here, None, {}
                if _is_picture([kind]):
                    if source is not None:
                        found.notes.append(f"{file}: {name} is a second picture of its sample, left out")
                    elif packed:
                        source = Source(f"{file}/{name}", name, file, name)
                    else:
                        source = Source(
                            f"{file}/{name}", name, file, name, None, member.offset_data, member.size
                        )
                elif kind in ("cls", "json", "txt") and member.size <= MAX_TEXT:
                    stream = tar.extractfile(member)
                    texts[kind] = stream.read().decode("utf-8", "replace") if stream else ""
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        found.notes.append(f"{file} is broken, what comes before is kept: {error}")
    finish()
    found.note(f"pictures of {file} without label, left out", unlabelled)


def _told(texts: dict[str, str]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Labels and numbers of one sample. Raises ValueError."""
    if "cls" in texts:
        return _labels(texts["cls"].strip()), ()
    if "json" in texts:
        told = json.loads(texts["json"])
        if not isinstance(told, dict):
            raise ValueError("its .json holds no names")
        label = next((told[name] for name in ("labels", "label", "cls", "class") if name in told), None)
        values = told.get("values", told.get("value", []))
        if label is not None or values != []:
            return _labels(label), tuple(map(float, values if isinstance(values, list) else [values]))
    text = texts.get("txt", "").strip()
    if "\n" in text:
        raise ValueError("its .txt has several lines")
    return _labels(text), ()


def _labels(label: Any) -> tuple[str, ...]:
    """Ids as text; negative numbers are no label, as test sets are published. Raises ValueError."""
    labels = label if isinstance(label, (list, tuple)) else [label]
    if any(isinstance(one, (dict, list)) for one in labels):
        raise ValueError("a label that is neither number nor name")
    kept = [one for one in labels if one not in (None, "") and not re.fullmatch(r"-\d+", str(one))]
    return tuple(dict.fromkeys(str(one) for one in kept))


# --- Parquet -----------------------------------------------------------------------------------------------------


def picture_column(file: Path) -> str | None:
    """The column that holds encoded pictures: bytes, or `{bytes, path}` as published sets have it; None for a manifest
    or what is no Parquet."""
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(file)
    except (OSError, pyarrow.ArrowException):
        return None
    for column in schema:
        kinds = [column.type] if not pyarrow.types.is_struct(column.type) else [
            part.type for part in column.type if part.name == "bytes"
        ]  # fmt: skip
        if column.name in PICTURES and any(map(_is_bytes, kinds)):
            return column.name
    return None


def _is_bytes(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)


def parquet_listing(file: Path) -> Listing:
    """The pictures of a Parquet file, in its order."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as table:
        return Listing(tuple(_row(str(file), row, None) for row in range(table.metadata.num_rows)))


def _row(file: str, row: int, path: str | None) -> Source:
    member = f"{row:07d}"
    return Source(f"{file}/{member}", path or f"{Path(file).stem}-{member}", file, member)


def _parquet(file: str, subsets: tuple[str, ...], found: Found) -> None:
    """Columns `image` and `label` or `labels` (numbers, names, or lists of them); names of numbered classes come from
    the schema, as the published sets write them. The pictures themselves are not read here."""
    import pyarrow
    import pyarrow.parquet

    pictures = picture_column(Path(file))
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            schema = table.schema_arrow
            label = next((name for name in LABELS if name in schema.names), None)
            values = next((name for name in ("values", "value") if name in schema.names), None)
            if pictures is None or not (label or values):
                raise UsageError(
                    f"{file}: no column of labels", got=", ".join(schema.names), allowed=", ".join(LABELS)
                )
            names = _class_names(schema, label)
            for i, name in enumerate(names):
                found.names[str(i)] = name
            found.classes |= {str(i) for i in range(len(names))}
            has_paths = pyarrow.types.is_struct(schema.field(pictures).type)
            has_paths = has_paths and any(part.name == "path" for part in schema.field(pictures).type)
            columns = [c for c in (label, values, f"{pictures}.path" if has_paths else None) if c]
            unlabelled, row = [], 0
            for batch in table.iter_batches(batch_size=4096, columns=columns):
                for told in batch.to_pylist():
                    source = _row(file, row, (told.get(pictures) or {}).get("path"))
                    row += 1
                    labels = _labels(told.get(label) if label else None)
                    numbers = told.get(values) if values else None
                    numbers = numbers if isinstance(numbers, list) else [] if numbers is None else [numbers]
                    if not labels and not numbers:
                        unlabelled.append(str(source.member))
                        continue
                    found.multi_label |= len(labels) > 1
                    found.pictures.append(
                        Annotated(source, labels, values=tuple(map(float, numbers)), subsets=subsets)
                    )
            found.note(f"rows of {file} without label, left out", unlabelled)
    except (OSError, pyarrow.ArrowException) as error:
        raise UsageError(f"cannot read {file}", got=str(error)) from error


def _class_names(schema: Any, label: str | None) -> list[str]:
    """The names of a ClassLabel (or a list of them) from the `huggingface` entry of the schema's metadata."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        about = about[0] if isinstance(about, list) else about.get("feature", about)
        return [str(name) for name in about["names"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


class ParquetPictures:
    """An archive of pictures in rows, read one row group at a time: the last two stay in memory."""

    def __init__(self, file: str) -> None:
        import pyarrow.parquet

        self.file, self.column = file, picture_column(Path(file))
        with pyarrow.parquet.ParquetFile(file) as table:
            groups = [table.metadata.row_group(i).num_rows for i in range(table.metadata.num_row_groups)]
        self.starts = [0, *itertools.accumulate(groups)]

    @property
    def names(self) -> list[str]:
        return [f"{row:07d}" for row in range(self.starts[-1])]

    def read(self, member: str) -> bytes:
        row = int(member)
        group = bisect.bisect_right(self.starts, row) - 1
        value = _group(os.getpid(), self.file, os.stat(self.file).st_mtime_ns, self.column, group)[
            row - self.starts[group]
        ].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            raise InputError("a row without a picture", got="no bytes: a path alone is not followed")
        return data


@functools.lru_cache(maxsize=2)
def _group(process: int, file: str, changed: int, column: str, group: int) -> Any:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as table:
        return table.read_row_group(group, columns=[column]).column(0)
