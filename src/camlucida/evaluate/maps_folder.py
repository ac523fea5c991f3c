"""Score maps as `.npy` files, in and out, in the layout of the WSOL benchmark: `scoremaps/PICTURE.npy`."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from camlucida.errors import InputError, UsageError

INSIDE = "scoremaps"


def open_folder(folder: str | Path) -> Path:
    """The folder that holds the maps: the given one, or `scoremaps` in it. Raises UsageError."""
    given = Path(folder)
    if not given.is_dir():
        raise UsageError(f"maps in {given}", got="no folder", allowed=f"a folder with {INSIDE}/PICTURE.npy")
    return given / INSIDE if (given / INSIDE).is_dir() else given


def read_map(folder: Path, picture: str) -> NDArray[np.float32]:
    """The map `(h, w)` of a picture, by its path below the data: `a/b.jpg.npy` or `a/b.npy`. Raises InputError for one that
    is not there or is no 2-D array of finite numbers; files that need pickle to load are refused."""
    file = _place(folder, picture)
    if not file.is_file():
        file = _place(folder, str(PurePosixPath(picture).with_suffix("")))
    if not file.is_file():
        raise InputError(f"no map of {picture}", allowed=f"{folder}/{picture}.npy")
    try:
        values = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"map {file}", got=f"no readable .npy file ({error})") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        got = f"{type(values).__name__} {getattr(values, 'dtype', '')}"
        raise InputError(f"map {file}", got=got, allowed="an array of real numbers")
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values.squeeze(0 if values.shape[0] == 1 else 2)
    if values.ndim != 2 or values.size == 0:
        raise InputError(f"map {file}", got=f"shape {values.shape}", allowed="(h, w)")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(f"map {file}", got="NaN or infinite values", allowed="finite numbers")
    return values


def write_map(folder: str | Path, picture: str, heat: NDArray[Any]) -> Path:
    """Writes a map `(h, w)` as the benchmark wants it: float32, scaled from minimum to maximum into 0 … 1 (zeros where it
    is constant or not finite), as `scoremaps/PICTURE.npy`, whole or not at all."""
    values = np.asarray(heat, np.float64)
    low, high = values.min(), values.max()
    usable = bool(np.isfinite(low) and np.isfinite(high) and high > low)
    unit = ((values - low) / (high - low) if usable else np.zeros_like(values)).astype(np.float32)
    file = _place(Path(folder) / INSIDE, picture)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as stream:
            np.save(stream, unit, allow_pickle=False)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    return file


def _place(folder: Path, picture: str) -> Path:
    parts = [part for part in PurePosixPath(picture.replace("\\", "/")).parts if part not in ("/", ".")]
    if not parts or ".." in parts:
        raise InputError(f"the map of {picture!r}", allowed="a path below the data")
    return folder.joinpath(*parts[:-1], parts[-1] + ".npy")
