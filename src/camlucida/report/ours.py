"""What in a result folder is ours: the manifest that says so, the parts, and what may be removed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from camlucida.errors import UsageError
from camlucida.report.rows import SCHEMA_VERSION
from camlucida.report.writing import clear

FINAL = ("localizations.csv", "coco.json", "coco_results.json", "rejected.csv", "report.html")
OURS = {
    "localizations": re.compile(r"part-\d{5,}\.parquet"),
    ".work": re.compile(r"part-\d{5,}\.json"),
    "overlays": re.compile(r".+-\d+\.png"),
}
"""What we write: `FINAL` and `manifest.json` in the folder itself, and these names in folders below it."""


def stored_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest in a folder of ours; None where there is none or nothing in it. Else raises UsageError."""
    with clear(folder):
        if not folder.exists() and not folder.is_symlink():
            return None
        inside = (
            []
            if not folder.is_dir()
            else [p.name for p in folder.iterdir() if p.name != ".manifest.json.partial"]
        )
        if folder.is_dir() and not inside:
            return None
    try:
        stored = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        stored = None
    if not isinstance(stored, dict) or stored.get("tool") != "camlucida" or "schema_version" not in stored:
        raise UsageError(
            f"write results to {folder}",
            got="a folder with other files" if folder.is_dir() else "something that is not a folder",
            allowed="a new or empty folder, or one that camlucida wrote",
            do="nothing was touched; name another folder",
        )
    return stored


def same_settings(folder: Path, stored: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    old = {"schema_version": stored["schema_version"], **stored.get("settings", {})}
    new = {"schema_version": SCHEMA_VERSION, **manifest["settings"]}
    unset = "nothing"
    differing = [
        f"{key} {_brief(new.get(key, unset))} (the folder's: {_brief(old.get(key, unset))})"
        for key in sorted({*old, *new})
        if old.get(key, unset) != new.get(key, unset)
    ]
    if differing:
        raise UsageError(
            f"--resume in {folder}",
            got=", ".join(differing),
            allowed="the settings that its parts were made with",
            do="give the same settings, or --overwrite",
        )


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def parts_of(folder: Path) -> dict[int, Path]:
    found = (folder / "localizations").glob("part-*.parquet")
    return {int(file.stem[5:]): file for file in found if OURS["localizations"].fullmatch(file.name)}


def remove_ours(folder: Path, only: Sequence[str] = (".work", "localizations", "overlays", "")) -> None:
    """Removes our files below a folder, by name, notes first; then the folders that are empty."""
    for inner in only:
        if not inner:
            for name in FINAL:
                (folder / name).unlink(missing_ok=True)
            continue
        place = folder / inner
        if place.is_symlink() or not place.is_dir():
            continue
        for file in place.iterdir():
            name = (
                file.name.removeprefix(".").removesuffix(".partial")
                if file.name.endswith(".partial")
                else file.name
            )
            if OURS[inner].fullmatch(name) and not file.is_dir():
                file.unlink()
        if not any(place.iterdir()):
            place.rmdir()


def remove_partial(folder: Path) -> None:
    """Removes what a killed run had begun to write."""
    for name in (*FINAL, "manifest.json"):
        (folder / f".{name}.partial").unlink(missing_ok=True)
    for file in (folder / "localizations").glob(".part-*.parquet.partial"):
        file.unlink()
