"""The folder that a probe writes: report.html, manifest.json, raw numbers as CSV and NPZ, the pictures that patches link to."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from camlucida.errors import UsageError
from camlucida.report import figures
from camlucida.report.writing import replacing, utf8, writable

SCHEMA_VERSION = 1
TOOL = "camlucida probe"
LONGEST = 640  # longer side of the pictures that patches link to
PAGE, MANIFEST = "report.html", "manifest.json"
WRITTEN = ".written"  # a line a file, until the manifest lists them: so a killed run's files are known, too


@dataclass
class ProbeFolder:
    """Where one run of a probe is written. Its manifest lists every file that was made there, so that `overwrite`
    removes these and no others."""

    folder: Path
    kind: str
    command: tuple[str, ...]
    earlier: tuple[str, ...] = ()
    files: list[str] = field(default_factory=list)
    tool: str = TOOL

    @classmethod
    def open(
        cls, folder: str | Path, kind: str, command: Sequence[str], *, overwrite: bool = False, resume: bool = False, tool: str = TOOL
    ) -> ProbeFolder:  # fmt: skip
        """Makes the folder and looks at what is in it. Raises UsageError for one that holds results already, unless
        `overwrite` or `resume`, and for one that is not ours. `tool`: the verb that writes it."""
        folder = Path(folder)
        earlier: tuple[str, ...] = ()
        if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
            earlier = _files_of(folder, kind, tool)
            if earlier and not overwrite and not resume:  # none: that run was refused before it wrote any
                raise UsageError(
                    f"write results to {folder}", got="a folder that holds the results of an earlier run",
                    do="--overwrite replaces it, or name another folder",
                )  # fmt: skip
        writable(folder)
        made = cls(folder, kind, tuple(command), earlier, tool=tool)
        if not resume or not (folder / MANIFEST).exists():
            made._manifest({"state": "running", "files": sorted(earlier)})
        return made

    def write(self, name: str, data: bytes) -> str:
        """A file, whole or not at all; its name."""
        if name not in self.files:
            self.files.append(name)
            with (self.folder / WRITTEN).open("a", encoding="utf-8") as stream:
                stream.write(name + "\n")
        with replacing(self.folder / name) as partial:
            partial.write_bytes(data)
        return name

    def picture(self, name: str, picture: Image.Image) -> str:
        """A copy of the picture for the patches to link to, its longer side at most 640; `pictures/NAME.jpg`. `name`: one of
        `images.sources.unique_names`."""
        place = f"pictures/{_safe(name)}.jpg"
        if place not in self.files:
            stream = io.BytesIO()
            figures.small(picture, LONGEST).save(stream, "JPEG", quality=88)
            self.write(place, stream.getvalue())
        return place

    def table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> str:
        """Rows of equal keys → `NAME.csv`."""
        rows = list(rows)
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return self.write(f"{name}.csv", utf8(stream.getvalue()).encode())

    def arrays(self, name: str, arrays: Mapping[str, NDArray]) -> str:
        """Arrays → `NAME.npz`."""
        stream = io.BytesIO()
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
        return self.write(f"{name}.npz", stream.getvalue())

    def save(self, page: Any, about: Mapping[str, Any], rejected: Sequence[tuple[str, str]] = ()) -> None:
        """The page (`probe_page.Page`), rejected.csv where something was, and the manifest, which says that all is there."""
        from camlucida.report import probe_page

        if rejected:
            self.table("rejected", [{"path": utf8(p), "reason": utf8(r)} for p, r in rejected])
        text = probe_page.write(page, self.kind, self.command, rejected, self.tool)
        self.write(PAGE, text.encode("utf-8", "replace"))
        for name in set(self.earlier) - set(self.files) - {MANIFEST}:
            (self.folder / name).unlink(missing_ok=True)
        self._manifest({**about, "rejected": len(rejected), "state": "done", "files": sorted(self.files)})
        (self.folder / WRITTEN).unlink(missing_ok=True)

    def _manifest(self, about: Mapping[str, Any]) -> None:
        head = {
            "tool": self.tool,
            "kind": self.kind,
            "schema_version": SCHEMA_VERSION,
            "command": list(self.command),
        }
        text = json.dumps({**head, **about}, indent=1, default=str)
        with replacing(self.folder / MANIFEST) as partial:
            partial.write_text(text + "\n", encoding="utf-8")


def _safe(name: str) -> str:
    kept = "".join(c if c.isalnum() or c in "-._" else "-" for c in name).strip("-._")
    return kept.encode()[:120].decode(errors="ignore") or "x"


def _files_of(folder: Path, kind: str, tool: str) -> tuple[str, ...]:
    """The files that an earlier run of this kind wrote into a folder. Raises UsageError if none did."""
    try:
        stored = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        stored = None
    if not isinstance(stored, dict) or (stored.get("tool"), stored.get("kind")) != (tool, kind):
        raise UsageError(
            f"write results to {folder}",
            got="a folder with other files" if folder.is_dir() else "something that is not a folder",
            allowed=f"a new or empty folder, or one that {tool} {kind} wrote",
            do="nothing was touched; name another folder",
        )
    known = re.compile(r"(pictures/)?[\w.-]+\.(html|csv|npz|jpg|png|json|parquet)")
    written = folder / WRITTEN
    killed = written.read_text(encoding="utf-8").splitlines() if written.is_file() else []
    return tuple(
        name
        for name in dict.fromkeys([*stored.get("files", []), *killed])
        if isinstance(name, str) and known.fullmatch(name) and ".." not in name
    )
