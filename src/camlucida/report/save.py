"""The result folder of a run: written in parts that survive a kill, finished into the files people read."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from camlucida import render
from camlucida.errors import CamlucidaError, UsageError
from camlucida.pipeline import Rejected, Seen
from camlucida.report import figures
from camlucida.report import page as pages
from camlucida.report.ours import OURS, parts_of, remove_ours, remove_partial, same_settings, stored_manifest
from camlucida.report.rows import COLUMNS, SCHEMA_VERSION, read_rows, readable, rows_of
from camlucida.report.tables import write_coco, write_csv, write_rejected
from camlucida.report.writing import Refused, clear, dumps, replacing, utf8, writable, write_json
from camlucida.report.writing import alone as alone
from camlucida.values import Label

WAITING = 16  # pictures that may wait to be drawn
PICTURES = 1000  # how many pictures the page, and by default the overlays, show


class ResultFolder:
    """A folder of results, opened for one run: parts in any order, best in theirs, then `finish`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], *, overlays: int | None, done: bool) -> None:
        """Use `open`."""
        self.folder, self.manifest, self.done = folder, manifest, done
        self._overlays = overlays
        self._started = time.monotonic()
        self._pictures = {
            index: self._notes(index)["pictures"] for index in ([] if done else self.done_parts())
        }

    @classmethod
    def open(
        cls,
        folder: str | Path,
        manifest: Mapping[str, Any],
        *,
        resume: bool = False,
        overwrite: bool = False,
        overlays: int | None = PICTURES,
    ) -> ResultFolder:
        """Makes the folder, or goes on in one of ours; writes `manifest.json` with the state "running".

        `manifest["settings"]`: whatever decides the rows; `resume` refuses a folder whose settings differ.
        `overwrite` removes the files that we write and no others. `overlays`: of how many pictures to draw
        overlays, None: of all. A finished folder that is resumed comes back with `done=True`, its parts in
        place. Raises UsageError, also for a folder that is not ours, which stays as it is; CamlucidaError
        where nothing can be written.
        """
        folder = Path(folder)
        if resume and overwrite:
            raise UsageError("--resume and --overwrite together", do="give one of them")
        stored = stored_manifest(folder)
        ours = {"tool": "camlucida", "schema_version": SCHEMA_VERSION, "state": "running"}
        noted: dict[str, Any] = json.loads(dumps({**ours, "settings": {}, **manifest, **ours}))
        if stored is not None and not (resume or overwrite):
            raise UsageError(
                f"write results to {folder}",
                got="a folder that holds the results of an earlier run",
                do="--resume goes on with it, --overwrite replaces it, or name another folder",
            )
        times: dict[str, Any] = {"started": _now(), "seconds": 0.0}
        if stored is not None and resume:
            same_settings(folder, stored, noted)
            if stored.get("state") == "done" and cls._whole(folder, stored):
                with clear(folder):
                    remove_ours(folder, only=(".work",))
                    remove_partial(folder)
                return cls(folder, stored, overlays=overlays, done=True)
            times = {**times, **stored.get("times", {})}
            times["resumed"] = [*times.get("resumed", []), _now()]
        writable(folder, *OURS)
        with clear(folder):
            if stored is not None and overwrite:
                # Killed half-way, the folder must still be ours and none of its parts count as done.
                write_json(folder / "manifest.json", {**stored, "state": "running"})
                remove_ours(folder)
            remove_partial(folder)
        noted["times"] = times
        write_json(folder / "manifest.json", noted)
        return cls(folder, noted, overlays=overlays, done=False)

    @staticmethod
    def _whole(folder: Path, stored: Mapping[str, Any]) -> bool:
        """Whether a run that called itself done still has its files."""
        parts = parts_of(folder)
        return sorted(parts) == list(range(stored.get("counts", {}).get("parts", -1))) and all(
            (folder / name).is_file() for name in ("coco.json", "coco_results.json", "rejected.csv")
        )

    def done_parts(self) -> set[int]:
        """Numbers of the parts that are complete and readable."""
        parts = parts_of(self.folder)
        if self.done:
            return set(parts)
        return {
            index for index, file in parts.items() if self._notes_file(index).is_file() and readable(file)
        }

    def write_part(
        self, index: int, seen: Sequence[Seen], rejected: Sequence[Rejected], names: Mapping[str, str]
    ) -> None:
        """Writes one part: overlays, notes for the page, then the rows, whose presence says that the part is
        complete. `names`: from `source.name` to the name that its overlays get. Raises CamlucidaError when
        the disk refuses."""
        with self.part(index, names) as add:
            for one in seen:
                add(one)
            for bad in rejected:
                add(bad)

    @contextmanager
    def part(self, index: int, names: Mapping[str, str]) -> Iterator[Callable[[Seen | Rejected], None]]:
        """One part as it is looked at: what is added in its order is drawn beside the work inside, and the part is
        written at the end, as by `write_part`. An exception inside leaves it unwritten."""
        before = sum(count for other, count in self._pictures.items() if other < index)
        rows: list[dict[str, Any]] = []
        rejected: list[list[str]] = []
        drawn: list[Future[dict[str, Any] | None]] = []
        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))

        def add(one: Seen | Rejected) -> None:
            if isinstance(one, Rejected):
                rejected.append([utf8(one.source.name), " ".join(utf8(one.reason).split())])
                return
            number = before + len(drawn)
            file = None
            if one.found and (self._overlays is None or number < self._overlays):
                file = self.folder / "overlays" / names[one.source.name]
                with clear(file.parent):
                    file.parent.mkdir(exist_ok=True)
            rows.extend(rows_of(one))
            drawn.append(pool.submit(_draw, one, file, number < PICTURES))
            if len(drawn) > WAITING:
                drawn[-WAITING - 1].result()

        with self._saying_what_is_safe():
            try:
                yield add
                entries = [entry for one in drawn if (entry := one.result()) is not None]
            finally:
                pool.shutdown(cancel_futures=True)
            notes = {"pictures": len(drawn), "rejected": rejected, "entries": entries}
            write_json(self._notes_file(index), notes)
            file = self.folder / "localizations" / f"part-{index:05d}.parquet"
            with replacing(file) as partial:
                table = pa.Table.from_pylist(rows, COLUMNS)
                pa.parquet.write_table(table, partial, compression="zstd")
            self._pictures[index] = len(drawn)

    def finish(self, labels: Sequence[Label] = (), *, csv: bool = False, page: bool = True) -> dict[str, Any]:
        """Makes the other files from the parts, drops the notes and returns the finished manifest.

        `labels`: the network's classes in order; COCO's `category_id` is the class index + 1. On a folder
        that was done already only the tables are written. Raises UsageError for a part that is missing,
        CamlucidaError for a disk that refuses.
        """
        with self._saying_what_is_safe():
            return self._finish(labels, csv, page)

    def _finish(self, labels: Sequence[Label], csv: bool, page: bool) -> dict[str, Any]:
        parts = parts_of(self.folder)
        missing = sorted(set(range(max(parts, default=-1) + 1)) - self.done_parts())
        if missing:
            raise UsageError(
                f"finish {self.folder}", got=f"no part {missing[0]}", do="write it first; --resume does"
            )
        files = [parts[index] for index in sorted(parts)]
        if csv:
            write_csv(self.folder / "localizations.csv", files)
        write_coco(self.folder, files, labels)
        if self.done:
            return self.manifest
        counts = self._counts(files)
        write_rejected(self.folder / "rejected.csv", self._rejected())
        if page:
            text = pages.write(self._entries(), self._summary(counts))
            with replacing(self.folder / "report.html") as partial:
                partial.write_text(text, encoding="utf-8", newline="\n")
        times = self.manifest["times"]
        times = {
            **times,
            "seconds": round(times["seconds"] + time.monotonic() - self._started, 3),
            "finished": _now(),
        }
        self.manifest = {**self.manifest, "state": "done", "counts": counts, "times": times}
        write_json(self.folder / "manifest.json", self.manifest)
        with clear(self.folder / ".work"):
            remove_ours(self.folder, only=(".work",))
        self.done = True
        return self.manifest

    def interrupted(self) -> None:
        """Notes in the manifest how long the run took so far; the parts stay for `resume`."""
        times = self.manifest["times"]
        times = {**times, "seconds": round(times["seconds"] + time.monotonic() - self._started, 3)}
        write_json(self.folder / "manifest.json", {**self.manifest, "times": times})

    @contextmanager
    def _saying_what_is_safe(self) -> Iterator[None]:
        try:
            yield
        except Refused as error:
            parts = len(self._pictures)
            safe = f"{sum(self._pictures.values())} pictures in {parts} finished part{'s' * (parts != 1)} are safe"
            raise CamlucidaError(
                error.asked, got=error.got, do=f"{safe}; mend that and --resume goes on"
            ) from error

    def _notes_file(self, index: int) -> Path:
        return self.folder / ".work" / f"part-{index:05d}.json"

    def _notes(self, index: int) -> dict[str, Any]:
        with clear(self._notes_file(index)):
            return json.loads(self._notes_file(index).read_text(encoding="utf-8"))

    def _rejected(self) -> Iterator[list[str]]:
        for index in sorted(self._pictures):
            yield from self._notes(index)["rejected"]

    def _entries(self) -> Iterator[dict[str, Any]]:
        every = (entry for index in sorted(self._pictures) for entry in self._notes(index)["entries"])
        return itertools.islice(every, PICTURES)

    def _counts(self, files: Sequence[Path]) -> dict[str, Any]:
        statuses: Counter[str] = Counter()
        maps = boxes = 0
        for row in read_rows(files, ["status", "box_index"]):
            boxes += row["box_index"] is not None
            if not row["box_index"]:
                maps += 1
                statuses[row["status"].partition(";")[0]] += 1
        return {
            "parts": len(files),
            "pictures": sum(self._pictures.values()),
            "rejected": sum(1 for _ in self._rejected()),
            "maps": maps,
            "boxes": boxes,
            "status": dict(sorted(statuses.items())),
        }

    def _summary(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        known = {**self.manifest["settings"], **self.manifest}
        pictures, rejected = counts["pictures"], counts["rejected"]
        facts = [(word, _in_words(known[key])) for key, word in FACTS.items() if known.get(key) is not None]
        facts += [
            ("Pictures", f"{pictures:,}"),
            ("Maps", f"{counts['maps']:,}"),
            ("Boxes", f"{counts['boxes']:,}"),
        ]
        facts += [
            ("Rejected", f"{rejected:,}"),
            ("Started", self.manifest["times"]["started"][:16].replace("T", " ")),
        ]
        command = known.get("command", "")
        return {
            "facts": facts,
            "total": pictures,
            "rejected": list(itertools.islice(self._rejected(), pages.REJECTED_SHOWN)),
            "rejected_total": rejected,
            "command": command
            if isinstance(command, str)
            else pages.command_line([str(word) for word in command]),
        }


def _draw(seen: Seen, overlays: Path | None, on_page: bool) -> dict[str, Any] | None:
    """Writes the overlays of one picture, `overlays` with the rank behind it, and gives its entry for the page."""
    small = figures.small(seen.picture)
    for rank, shown in figures.sheets(seen, longest=figures.OVERLAY, small=small) if overlays else ():
        file = overlays.with_name(f"{overlays.name}-{rank}.png")  # type: ignore[union-attr]
        with clear(file):
            file.write_bytes(render.png(shown, packed=False))
    return _cleaned(pages.entry(seen, small)) if on_page else None


FACTS = {
    "network": "Network",
    "method": "Map",
    "rule": "Box rule",
    "views": "Views",
    "top": "Classes a picture",
}
"""Keys of the manifest (or of its settings) that the page shows, and what it calls them."""


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value["name"]) if "name" in value else ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _cleaned(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "path": utf8(entry["path"]), "name": utf8(entry["name"])}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
