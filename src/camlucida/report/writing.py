"""Writing to a folder: a file is there whole or not at all, one process at a time, and what the disk refuses is one line."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from camlucida.errors import CamlucidaError, UsageError


@contextmanager
def alone(folder: str | Path) -> Iterator[None]:
    """Holds the folder, which is made if it is not there, against other processes: two runs in one folder would
    undo each other. The lock is the system's and ends with the process, however that ends; file systems
    without locks go unguarded. Raises UsageError where another process holds it."""
    folder = Path(folder)
    if os.name == "nt" or (folder.exists() and not folder.is_dir()):
        yield
        return
    import fcntl

    with clear(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(
                f"write results to {folder}",
                got="a folder in which another camlucida is at work",
                do="wait until it is done, or name another folder",
            ) from error
        except OSError:  # some network file systems have no locks for folders
            pass
        yield
    finally:
        os.close(held)


def writable(folder: str | Path, *inside: str) -> None:
    """Makes the folder and finds out now, not after an hour, whether it and those `inside` it take files. Raises
    CamlucidaError."""
    folder = Path(folder)
    with clear(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for place in (folder, *(folder / name for name in inside)):
            if place.exists() and not os.access(place, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "this folder takes no files", str(place))


class Refused(CamlucidaError):
    """What the disk refused."""


@contextmanager
def clear(file: Path) -> Iterator[None]:
    """What the disk refuses, as one line that names the file."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        place = error.filename if isinstance(error, OSError) and error.filename else file
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Refused(f"cannot use {place}", got=reason, do="mend that; what is done is kept") from error


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to, which takes the file's place if all goes well and vanishes if not."""
    partial = file.with_name(f".{file.name}.partial")
    with clear(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            with partial.open("rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(partial, file)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_json(file: Path, value: Any) -> None:
    indent = 1 if file.name == "manifest.json" else None
    with replacing(file) as partial:
        partial.write_text(dumps(value, indent=indent) + "\n", encoding="utf-8", newline="\n")


def dumps(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, allow_nan=False, indent=indent, default=str)


def utf8(text: str) -> str:
    """File names need not be UTF-8, tables must be."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)
