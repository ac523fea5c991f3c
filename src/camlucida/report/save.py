"""The result folder of a run: written in parts that survive a kill, finished into the files people read."""

from __future__ import annotations

import csv as csv_files
import errno
import itertools
import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from camlucida import render
from camlucida.errors import CamlucidaError, UsageError
from camlucida.images.read import SEVERAL
from camlucida.pipeline import Rejected, Seen
from camlucida.report import figures
from camlucida.report import page as pages
from camlucida.values import Label, ScoredBox

SCHEMA_VERSION = 1
WAITING = 16  # pictures that may wait to be drawn
PICTURES = 1000  # how many pictures the page, and by default the overlays, show

COLUMNS = pa.schema(
    [
        pa.field("schema_version", pa.int32(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("class_index", pa.int32(), nullable=False),
        pa.field("class_id", pa.string(), nullable=False),
        pa.field("class_name", pa.string(), nullable=False),
        pa.field("probability", pa.float64()),
        pa.field("logit", pa.float64()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("map_method", pa.string(), nullable=False),
        pa.field("layer", pa.string()),
        pa.field("box_rule", pa.string(), nullable=False),
        pa.field("threshold", pa.float64()),
        pa.field("box_index", pa.int32()),
        pa.field("x0", pa.float64()),
        pa.field("y0", pa.float64()),
        pa.field("x1", pa.float64()),
        pa.field("y1", pa.float64()),
        pa.field("box_score", pa.float64()),
        pa.field("box_uncertainty", pa.float64()),
    ]
)
"""One row per picture, class rank and box. A class without any box keeps one row, its box columns null."""

FINAL = ("localizations.csv", "coco.json", "coco_results.json", "rejected.csv", "report.html")
OURS = {
    "localizations": re.compile(r"part-\d{5,}\.parquet"),
    ".work": re.compile(r"part-\d{5,}\.json"),
    "overlays": re.compile(r".+-\d+\.png"),
}
"""What we write: `FINAL` and `manifest.json` in the folder itself, and these names in folders below it."""


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
        stored = _stored_manifest(folder)
        ours = {"tool": "camlucida", "schema_version": SCHEMA_VERSION, "state": "running"}
        noted: dict[str, Any] = json.loads(_dumps({**ours, "settings": {}, **manifest, **ours}))
        if stored is not None and not (resume or overwrite):
            raise UsageError(
                f"write results to {folder}",
                got="a folder that holds the results of an earlier run",
                do="--resume goes on with it, --overwrite replaces it, or name another folder",
            )
        times: dict[str, Any] = {"started": _now(), "seconds": 0.0}
        if stored is not None and resume:
            _same_settings(folder, stored, noted)
            if stored.get("state") == "done" and cls._whole(folder, stored):
                with _clear(folder):
                    _remove(folder, only=(".work",))
                    _remove_partial(folder)
                return cls(folder, stored, overlays=overlays, done=True)
            times = {**times, **stored.get("times", {})}
            times["resumed"] = [*times.get("resumed", []), _now()]
        writable(folder, *OURS)
        with _clear(folder):
            if stored is not None and overwrite:
                # Killed half-way, the folder must still be ours and none of its parts count as done.
                _write_json(folder / "manifest.json", {**stored, "state": "running"})
                _remove(folder)
            _remove_partial(folder)
        noted["times"] = times
        _write_json(folder / "manifest.json", noted)
        return cls(folder, noted, overlays=overlays, done=False)

    @staticmethod
    def _whole(folder: Path, stored: Mapping[str, Any]) -> bool:
        """Whether a run that called itself done still has its files."""
        parts = _parts(folder)
        return sorted(parts) == list(range(stored.get("counts", {}).get("parts", -1))) and all(
            (folder / name).is_file() for name in ("coco.json", "coco_results.json", "rejected.csv")
        )

    def done_parts(self) -> set[int]:
        """Numbers of the parts that are complete and readable."""
        parts = _parts(self.folder)
        if self.done:
            return set(parts)
        return {
            index for index, file in parts.items() if self._notes_file(index).is_file() and _readable(file)
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
                rejected.append([_text(one.source.name), " ".join(_text(one.reason).split())])
                return
            number = before + len(drawn)
            file = None
            if one.found and (self._overlays is None or number < self._overlays):
                file = self.folder / "overlays" / names[one.source.name]
                with _clear(file.parent):
                    file.parent.mkdir(exist_ok=True)
            rows.extend(_rows(one))
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
            _write_json(self._notes_file(index), notes)
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
        parts = _parts(self.folder)
        missing = sorted(set(range(max(parts, default=-1) + 1)) - self.done_parts())
        if missing:
            raise UsageError(
                f"finish {self.folder}", got=f"no part {missing[0]}", do="write it first; --resume does"
            )
        files = [parts[index] for index in sorted(parts)]
        if csv:
            _write_csv(self.folder / "localizations.csv", files)
        _write_coco(self.folder, files, labels)
        if self.done:
            return self.manifest
        counts = self._counts(files)
        _write_rejected(self.folder / "rejected.csv", self._rejected())
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
        _write_json(self.folder / "manifest.json", self.manifest)
        with _clear(self.folder / ".work"):
            _remove(self.folder, only=(".work",))
        self.done = True
        return self.manifest

    def interrupted(self) -> None:
        """Notes in the manifest how long the run took so far; the parts stay for `resume`."""
        times = self.manifest["times"]
        times = {**times, "seconds": round(times["seconds"] + time.monotonic() - self._started, 3)}
        _write_json(self.folder / "manifest.json", {**self.manifest, "times": times})

    @contextmanager
    def _saying_what_is_safe(self) -> Iterator[None]:
        try:
            yield
        except _Refused as error:
            parts = len(self._pictures)
            safe = f"{sum(self._pictures.values())} pictures in {parts} finished part{'s' * (parts != 1)} are safe"
            raise CamlucidaError(
                error.asked, got=error.got, do=f"{safe}; mend that and --resume goes on"
            ) from error

    def _notes_file(self, index: int) -> Path:
        return self.folder / ".work" / f"part-{index:05d}.json"

    def _notes(self, index: int) -> dict[str, Any]:
        with _clear(self._notes_file(index)):
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
        for row in _read(files, ["status", "box_index"]):
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
        with _clear(file):
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


def _rows(seen: Seen) -> Iterator[dict[str, Any]]:
    note = f"; {SEVERAL}" if SEVERAL in seen.picture.info else ""
    for found in seen.found:
        common = {
            "schema_version": SCHEMA_VERSION,
            "path": _text(seen.source.name),
            "width": seen.picture.width,
            "height": seen.picture.height,
            "rank": found.rank,
            "class_index": found.class_index,
            "class_id": _text(found.class_id),
            "class_name": _text(found.class_name),
            "probability": found.probability,
            "logit": found.logit,
            "status": found.status + note,
            "map_method": found.map_method,
            "layer": found.layer,
            "box_rule": found.box_rule,
            "threshold": found.threshold,
        }
        if not found.boxes:
            yield common
        for index, scored in enumerate(found.boxes):
            yield {**common, **_box_columns(index, scored)}


def _box_columns(index: int, scored: ScoredBox) -> dict[str, Any]:
    x0, y0, x1, y1 = map(float, scored.box.corners)
    return {"box_index": index, "x0": x0, "y0": y0, "x1": x1, "y1": y1, "box_score": scored.score}


def _read(files: Iterable[Path], columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of the parts in order, one part in memory at a time."""
    for file in files:
        with _clear(file):
            rows = pa.parquet.ParquetFile(file).read(columns).to_pylist()
        yield from rows


def _write_csv(file: Path, files: Sequence[Path]) -> None:
    with replacing(file) as partial, pa.csv.CSVWriter(partial, COLUMNS) as writer:
        for part in files:
            writer.write_table(pa.parquet.ParquetFile(part).read())


def _write_rejected(file: Path, rejected: Iterable[Sequence[str]]) -> None:
    with replacing(file) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        writer = csv_files.writer(stream, lineterminator="\n")
        writer.writerow(["path", "reason"])
        writer.writerows(rejected)


def _write_coco(folder: Path, files: Sequence[Path], labels: Sequence[Label]) -> None:
    """`coco.json` and `coco_results.json`. Ids count from 1 in the order of the rows; `category_id` is the
    class index + 1; `score` is the class's probability × the box's score, the class's logit where the network gives no
    probabilities; 0 where it is not a number."""
    names = {index: (label.id, label.name) for index, label in enumerate(labels)}
    with ExitStack() as stack:
        targets = [
            stack.enter_context(replacing(folder / name)) for name in ("coco.json", "coco_results.json")
        ]
        dataset, results = (
            stack.enter_context(target.open("w", encoding="utf-8", newline="\n")) for target in targets
        )
        info = {"description": "camlucida localize", "version": str(SCHEMA_VERSION)}
        dataset.write('{"info": ' + _dumps(info) + ',\n"images": ')
        images = (
            {"id": number, "file_name": row["path"], "width": row["width"], "height": row["height"]}
            for number, row in _numbered(_read(files, ["path", "width", "height", "rank", "box_index"]))
        )
        _write_list(dataset, images)
        dataset.write(',\n"annotations": ')
        _write_list(dataset, _annotations(files, names, results))
        dataset.write(',\n"categories": ')
        _write_list(
            dataset, ({"id": i + 1, "name": names[i][1], "class_id": names[i][0]} for i in sorted(names))
        )
        dataset.write("}\n")


def _annotations(
    files: Sequence[Path], names: dict[int, tuple[str, str]], results: IO[str]
) -> Iterator[dict[str, Any]]:
    """Annotations of the dataset; on the way writes them as bare results and adds classes without label."""
    columns = [
        "rank",
        "box_index",
        "class_index",
        "class_id",
        "class_name",
        "probability",
        "logit",
        "x0",
        "y0",
        "x1",
        "y1",
        "box_score",
    ]
    image, written = 0, 0
    for row in _read(files, columns):
        image += row["rank"] == 1 and not row["box_index"]
        names.setdefault(row["class_index"], (row["class_id"], row["class_name"]))
        if row["x0"] is None:
            continue
        width, height = row["x1"] - row["x0"], row["y1"] - row["y0"]
        sure = row["probability"]
        score = (row["logit"] if sure is None else sure * (row["box_score"] or 0.0)) or 0.0
        result = {
            "image_id": image,
            "category_id": row["class_index"] + 1,
            "bbox": [row["x0"], row["y0"], width, height],
            "score": score if math.isfinite(score) else 0.0,
        }
        results.write(("[\n" if not written else ",\n") + _dumps(result))
        written += 1
        yield {"id": written, **result, "area": width * height, "iscrowd": 0, "rank": row["rank"]}
    results.write("\n]\n" if written else "[]\n")


def _numbered(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The first row of each picture with the picture's number, from 1."""
    return enumerate((row for row in rows if row["rank"] == 1 and not row["box_index"]), 1)


def _write_list(stream: IO[str], items: Iterable[Mapping[str, Any]]) -> None:
    opening = "[\n"
    for item in items:
        stream.write(opening + _dumps(item))
        opening = ",\n"
    stream.write("[]" if opening == "[\n" else "\n]")


def _stored_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest in a folder of ours; None where there is none or nothing in it. Else raises UsageError."""
    with _clear(folder):
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


def _same_settings(folder: Path, stored: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
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


def _parts(folder: Path) -> dict[int, Path]:
    found = (folder / "localizations").glob("part-*.parquet")
    return {int(file.stem[5:]): file for file in found if OURS["localizations"].fullmatch(file.name)}


def _readable(part: Path) -> bool:
    try:
        return pa.parquet.read_schema(part).equals(COLUMNS)
    except (OSError, pa.ArrowException):
        return False


def _remove(folder: Path, only: Sequence[str] = (".work", "localizations", "overlays", "")) -> None:
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


def _remove_partial(folder: Path) -> None:
    """Removes what a killed run had begun to write."""
    for name in (*FINAL, "manifest.json"):
        (folder / f".{name}.partial").unlink(missing_ok=True)
    for file in (folder / "localizations").glob(".part-*.parquet.partial"):
        file.unlink()


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

    with _clear(folder):
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
    with _clear(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for place in (folder, *(folder / name for name in inside)):
            if place.exists() and not os.access(place, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "this folder takes no files", str(place))


class _Refused(CamlucidaError):
    """What the disk refused."""


@contextmanager
def _clear(file: Path) -> Iterator[None]:
    """What the disk refuses, as one line that names the file."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        place = error.filename if isinstance(error, OSError) and error.filename else file
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _Refused(f"cannot use {place}", got=reason, do="mend that; what is done is kept") from error


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to, which takes the file's place if all goes well and vanishes if not."""
    partial = file.with_name(f".{file.name}.partial")
    with _clear(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            with partial.open("rb+") as stream:
                os.fsync(stream.fileno())
            os.replace(partial, file)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _write_json(file: Path, value: Any) -> None:
    indent = 1 if file.name == "manifest.json" else None
    with replacing(file) as partial:
        partial.write_text(_dumps(value, indent=indent) + "\n", encoding="utf-8", newline="\n")


def _dumps(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, allow_nan=False, indent=indent, default=str)


def _text(text: str) -> str:
    """File names need not be UTF-8, tables must be."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def _cleaned(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry, "path": _text(entry["path"]), "name": _text(entry["name"])}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
