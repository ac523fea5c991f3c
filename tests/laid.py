"""Data sets of a few pictures, laid out as folders and archives, and what was read of them."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

from camlucida.errors import InputError
from camlucida.images.datasets import DataSet
from camlucida.images.read import read_picture
from pictures import colours, encoded

PICTURE = encoded(colours(9, 13), "PNG")
BROKEN = PICTURE[:60]


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data.encode() if isinstance(data, str) else data)
    return root


def packed(file: Path, files: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file


def tarred(file: Path, files: dict[str, bytes | str], mode: str = "w") -> Path:
    with tarfile.open(file, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            data = data.encode() if isinstance(data, str) else data
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def table(data: DataSet) -> dict[str, tuple[str, tuple]]:
    """Relative path → the label's id and the boxes' corners."""
    return {
        e.source.relative: (data.labels[e.label].id, tuple(b.corners for b in e.boxes)) for e in data.examples
    }


def objects(data: DataSet) -> dict[str, list[tuple]]:
    """File name → class, corners and difficulty of each object."""
    return {
        Path(e.source.relative).name: [
            (data.labels[t.label].id, t.box.corners, t.difficult) for t in e.objects
        ]
        for e in data.examples
    }


def subsets(data: DataSet) -> dict[str, tuple[str, ...]]:
    return {e.source.relative: e.subsets for e in data.examples}


def ids(data: DataSet) -> list[str]:
    return [label.id for label in data.labels]


def unreadable(data: DataSet) -> list[str]:
    """Pictures that do not decode, by relative path; the others are PICTURE."""
    bad = []
    for example in data.examples:
        try:
            read_picture(example.source.read())
        except InputError:
            bad.append(example.source.relative)
        else:
            assert example.source.read() == PICTURE
    return bad
