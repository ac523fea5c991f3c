"""The folder that a run of explain is written into: overlays, sheets, raw maps, page and manifest."""

from __future__ import annotations

import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from camlucida import render
from camlucida.errors import UsageError
from camlucida.report import figures
from camlucida.report.explain import Cell, Explained
from camlucida.report.explain_page import MEANING, captioned, entry, page, sheet
from camlucida.report.explain_sheet import contact_sheet, summary
from camlucida.report.writing import utf8

SCHEMA_VERSION = 1
TOOL = "camlucida explain"


def table(one: Explained, stem: str, limits: Callable[[Cell], tuple[float, float]]) -> list[dict[str, Any]]:
    """One row of plain values per cell, as `--json` prints it and the manifest keeps it. `map` names the array in
    maps.npz, `overlay` the picture; `seconds`, `passes`, `runs`: what the method cost, for all classes of the picture
    together; numbers that are not finite are null."""
    rows = []
    for r, row in enumerate(one.rows, 1):
        for c, cell in enumerate(row.cells, 1):
            name = (
                f"{stem}-{r}-{_safe(row.label.name.split(',')[0])}-{c}-{_safe(cell.method.partition(':')[0])}"
            )
            low, high = limits(cell)
            raw = cell.raw
            finite = raw is not None and bool(np.isfinite(raw).all())
            rows.append(
                {
                    "path": utf8(one.source.name), "width": one.size.width, "height": one.size.height,
                    "class_index": row.index, "class_id": row.label.id, "class_name": row.label.name,
                    "probability": None if row.probability is None else _number(row.probability), "logit": _number(row.logit),
                    "method": cell.method, "layer": cell.layer, "target": cell.target, "score": _number(cell.score),
                    "status": cell.status, "reason": cell.reason or MEANING.get(cell.status, ""),
                    "minimum": float(raw.min()) if raw is not None and finite else None,
                    "maximum": float(raw.max()) if raw is not None and finite else None,
                    "scale": [low, high] if cell.is_painted else None,
                    "overlay": f"overlays/{name}.png", "map": name if raw is not None else None,
                    "grid": asdict(cell.grid) if cell.grid else None, "seed": cell.seed,
                    "seconds": cell.cost.seconds if cell.cost else None, "passes": cell.cost.passes if cell.cost else None,
                    "runs": cell.cost.runs if cell.cost else None,
                }
            )  # fmt: skip
    return rows


def _safe(words: str) -> str:
    kept = "".join(c if c.isalnum() or c in "-._" else "-" for c in words).strip("-._").lower()
    return kept.encode()[:40].decode(errors="ignore") or "x"


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


@dataclass
class Folder:
    """Where one run of explain is written. Its manifest lists every file that we made there, so that
    `--overwrite` removes these and no others."""

    folder: Path
    manifest: dict[str, Any]
    earlier: list[str]

    @classmethod
    def open(cls, folder: str | Path, manifest: Mapping[str, Any], overwrite: bool = False) -> Folder:
        """Looks, and writes nothing yet. Raises UsageError for a folder that holds results already, unless
        `overwrite`, and for one that is not ours."""
        folder = Path(folder)
        earlier: list[str] = []
        taken = folder.is_symlink() or folder.exists()
        if taken and not (folder.is_dir() and not any(folder.iterdir())):
            earlier = _files_of(folder)
            if not overwrite:
                raise UsageError(
                    f"write results to {folder}",
                    got="a folder that holds the results of an earlier run",
                    do="--overwrite replaces it, or name another folder",
                )
        return cls(folder, {"tool": TOOL, "schema_version": SCHEMA_VERSION, **manifest}, earlier)

    def save(
        self,
        explained: Sequence[Explained],
        stems: Sequence[str],
        limits: Callable[[Cell], tuple[float, float]],
        facts: Iterable[tuple[str, str]],
        rejected: Sequence[tuple[str, str]] = (),
        contact: bool = False,
    ) -> list[dict[str, Any]]:
        """Writes everything, the manifest first and last; returns the rows of `table`. `contact`: a contact sheet instead of
        the sheet with a row per class."""
        facts = list(facts)
        rows = [table(one, stem, limits) for one, stem in zip(explained, stems, strict=True)]
        name = "contact-sheet" if contact else "explain"
        sheets = [f"{name}.png"] if len(stems) == 1 else [f"{name}-{stem}.png" for stem in stems]
        every = [cell for some in rows for cell in some]
        files = ["explain.html", "maps.npz", *sheets, *(cell["overlay"] for cell in every)]
        manifest = {
            **self.manifest,
            "rejected": [{"path": utf8(p), "reason": utf8(r)} for p, r in rejected],
            "summary": dict(Counter(cell["status"] for cell in every)),
            "cells": every,
        }
        try:
            (self.folder / "overlays").mkdir(parents=True, exist_ok=True)
            self._manifest({**manifest, "state": "running", "files": sorted({*files, *self.earlier})})
            for name in set(self.earlier) - set(files):
                (self.folder / name).unlink(missing_ok=True)
            for one, some, name in zip(explained, rows, sheets, strict=True):
                cells = [(row, cell) for row in one.rows for cell in row.cells]
                for (row, cell), about in zip(cells, some, strict=True):
                    shown = captioned(one, row, cell, *limits(cell), figures.LONGEST)
                    self._write(about["overlay"], render.png(shown))
                drawn = contact_sheet(one, limits, facts) if contact else sheet(one, limits)
                self._write(name, render.png(drawn))
            raws = [cell.raw for one in explained for row in one.rows for cell in row.cells]
            stream = io.BytesIO()
            np.savez(
                stream,
                **{about["map"]: raw for about, raw in zip(every, raws, strict=True) if raw is not None},  # type: ignore[arg-type]
            )
            self._write("maps.npz", stream.getvalue())
            outcome = summary(cell for one in explained for row in one.rows for cell in row.cells)
            entries = [entry(one, limits) for one in explained]
            text = page(entries, [*facts, ("Outcome", outcome)], self.manifest["command"], rejected)
            self._write("explain.html", text.encode("utf-8", "replace"))
            self._manifest({**manifest, "state": "done", "files": files})
        except OSError as error:
            raise UsageError(
                f"cannot write to {error.filename or self.folder}",
                got=error.strerror or error,
                do="mend that and run again",
            ) from error
        return every

    def _manifest(self, manifest: Mapping[str, Any]) -> None:
        text = json.dumps(manifest, indent=1, allow_nan=False, default=str)
        self._write("manifest.json", (text + "\n").encode())

    def _write(self, name: str, data: bytes) -> None:
        """Whole or not at all."""
        file = self.folder / name
        partial = file.with_name(f".{file.name[-200:]}.partial")
        try:
            partial.write_bytes(data)
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)


def _files_of(folder: Path) -> list[str]:
    """The files that an earlier run of explain wrote into a folder. Raises UsageError if none did."""
    try:
        stored = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        stored = None
    if not isinstance(stored, dict) or stored.get("tool") != TOOL:
        raise UsageError(
            f"write results to {folder}",
            got="a folder with other files" if folder.is_dir() else "something that is not a folder",
            allowed="a new or empty folder, or one that camlucida explain wrote",
            do="nothing was touched; name another folder",
        )
    known = re.compile(r"explain\.html|maps\.npz|(explain|contact-sheet)(-[^/]+)?\.png|overlays/[^/]+\.png")
    return [name for name in stored.get("files", []) if isinstance(name, str) and known.fullmatch(name)]
