"""Where pictures come from: files, folders, globs, zip and tar archives, manifests → one ordered list."""

from __future__ import annotations

import functools
import glob
import os
import stat
import tarfile
import threading
import unicodedata
import weakref
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from camlucida.errors import InputError, UsageError
from camlucida.images import manifests
from camlucida.images.read import SUFFIXES

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_FILE_BYTES = 2**30
MAX_MEMBER_BYTES = 512 * 2**20
MAX_UNPACKED, MAX_RATIO = 2**30, 100  # a compressed tar beyond both is a bomb: to list it is to unpack it


@dataclass(frozen=True, slots=True)
class Source:
    """One picture to be read. `name`: how it is called in tables; `relative`: its path below the input it
    came from; `file`: on disk, or the archive that holds `member`; `problem`: why it must not be read; `offset`
    and `size`: where its bytes lie in `file`, if that is known and no archive need be opened."""

    name: str
    relative: str
    file: str
    member: str | None = None
    problem: str | None = None
    offset: int = -1
    size: int = 0

    def read(self) -> bytes:
        """The encoded bytes. Raises InputError."""
        if self.problem:
            raise InputError(self.problem)
        try:
            if self.offset >= 0:
                return _piece(self.file, self.offset, self.size)
            if self.member is None:
                about = os.stat(self.file)
                if not stat.S_ISREG(about.st_mode):  # to open a pipe is to wait for whoever fills it
                    raise InputError("not a file", got=_kind(about.st_mode))
                if about.st_size > MAX_FILE_BYTES:
                    raise InputError(f"file of {about.st_size} bytes", allowed=f"up to {MAX_FILE_BYTES}")
                with open(self.file, "rb") as stream:
                    return stream.read()
            return _open(self.file).read(self.member)
        except InputError:
            raise
        except OSError as error:
            raise InputError(f"cannot read: {error.strerror or error}") from error
        except (zipfile.BadZipFile, tarfile.TarError, RuntimeError, KeyError, EOFError) as error:
            raise InputError(f"broken archive member: {error}") from error
        except Exception as error:  # zlib, lzma and bz2 raise their own kinds; some names no disk can hold
            what = "cannot read" if self.member is None else "broken archive member"
            raise InputError(f"{what}: {type(error).__name__}: {error}") from error


def name_of(picture: Any) -> str:
    """How a picture is called in tables: a `Source`, a path, or one in memory."""
    if isinstance(picture, Source):
        return picture.name
    return str(picture) if isinstance(picture, (str, Path)) else "<picture>"


def payload(picture: Any) -> Any:
    """What `read_picture` takes: the bytes of a `Source`, anything else as it is. Raises InputError."""
    return picture.read() if isinstance(picture, Source) else picture


def _piece(file: str, offset: int, size: int) -> bytes:
    if size > MAX_MEMBER_BYTES:
        raise InputError(f"archive member of {size} bytes", allowed=f"up to {MAX_MEMBER_BYTES}")
    with open(file, "rb") as stream:
        stream.seek(offset)
        data = stream.read(size)
    if len(data) != size:
        raise InputError(f"broken archive member: {len(data)} of {size} bytes")
    return data


def _kind(mode: int) -> str:
    return "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"


@dataclass(frozen=True)
class Listing:
    """Pictures in order, and how many other files were passed over."""

    sources: tuple[Source, ...]
    others: int = 0


def is_archive(path: str | Path) -> bool:
    return str(path).lower().endswith(ARCHIVES)


def expand(inputs: Iterable[str | Path]) -> Listing:
    """Files, folders (pictures by suffix, recursive, sorted), globs, archives (also `x.zip/inner/folder`) and
    manifests → the pictures in them. A named file is taken whatever its suffix; the same picture named twice
    is taken once. Raises UsageError for a path that is not there."""
    named = [str(given) for given in inputs]
    listings = [_expand_one(given) for given in named]
    if len(named) == 1 and os.path.isdir(named[0]):  # nothing comes twice
        return listings[0]
    found: dict[tuple[str, str | None], Source] = {}
    for listing in listings:
        for source in listing.sources:
            found.setdefault((os.path.abspath(source.file), source.member), source)
    return Listing(tuple(found.values()), sum(listing.others for listing in listings))


def _expand_one(given: str) -> Listing:
    path = Path(given)
    if path.is_dir():
        return folder_pictures(path)
    if path.is_file():
        if is_archive(path):
            return archive_members(path)
        if path.suffix.lower() == ".parquet":
            from camlucida.images import shards

            if shards.picture_column(path):
                return shards.parquet_listing(path)
        if path.suffix.lower() in manifests.SUFFIXES:
            rows = manifests.read(path)
            names = dict.fromkeys(row.path for row in rows)
            return Listing(tuple(Source(str(path.parent / n), n, str(path.parent / n)) for n in names))
        return Listing((Source(str(path), path.name, str(path)),))
    for parent in path.parents:
        if parent.is_file() and is_archive(parent):
            inside = archive_members(parent, path.relative_to(parent).as_posix())
            if inside.sources:
                return inside
    if any(c in given for c in "*?["):
        matches = sorted(glob.glob(given, recursive=True))
        if matches:
            listings = [_expand_one(match) for match in matches]
            return Listing(
                tuple(s for one in listings for s in one.sources), sum(one.others for one in listings)
            )
    raise UsageError(
        f"no such picture, folder, archive or manifest: {given}", do="check the path; quote a glob"
    )


def folder_pictures(folder: Path) -> Listing:
    """A folder that cannot be listed becomes a source with that problem; links to folders elsewhere are
    followed, once."""
    sources, others = [], 0
    root = os.path.realpath(folder)
    followed: set[str] = set()

    def closed(error: OSError) -> None:
        path = Path(error.filename)
        reason = f"cannot list this folder: {error.strerror}"
        sources.append(Source(str(path), path.relative_to(folder).as_posix(), str(path), problem=reason))

    def entered(path: str) -> bool:
        target = os.path.realpath(path)
        if not os.path.islink(path):
            return True
        if target in followed or Path(target).is_relative_to(root) or Path(root).is_relative_to(target):
            return False
        followed.add(target)
        return True

    start, head = os.fspath(folder), os.path.join(folder, "") if os.fspath(folder) != os.curdir else ""
    for place, folders, files in os.walk(folder, onerror=closed, followlinks=True):
        folders[:] = [name for name in sorted(folders) if entered(os.path.join(place, name))]
        below = place[len(start) :].strip(os.sep)  # plain strings: there may be a million files
        below = below + os.sep if below else ""
        for file in files:
            if _is_picture_name(file):
                relative = below + file
                path = head + relative
                sources.append(Source(path, relative.replace(os.sep, "/"), path))
            else:
                others += 1
    return Listing(tuple(sorted(sources, key=lambda s: s.relative)), others)


def _is_picture_name(name: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(SUFFIXES) and not base.startswith("._") and "__MACOSX/" not in name


def archive_members(path: Path, below: str = "") -> Listing:
    """The pictures of an archive, sorted by name (compressed tars: in their own order, which reads them
    once)."""
    try:
        names = _open(str(path)).names
    except Exception as error:  # zlib, lzma and bz2 raise their own kinds
        raise UsageError(
            f"cannot open the archive {path}",
            got=str(error) or type(error).__name__,
            do="check that it is complete",
        ) from error
    below = below.strip("/")
    names = [n for n in names if not below or n == below or n.startswith(below + "/")]
    pictures = [n for n in names if _is_picture_name(n)]
    if not str(path).lower().endswith(ARCHIVES[2:]):
        pictures.sort()
    sources = [Source(f"{path}/{n}", n, str(path), n, _climbs(n)) for n in pictures]
    return Listing(tuple(sources), len(names) - len(pictures))


def _climbs(name: str) -> str | None:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or name.startswith(("/", "\\")) or (len(name) > 1 and name[1] == ":"):
        return f"unsafe archive path {name!r}: it climbs out of the archive"
    return None


class _Zip:
    def __init__(self, file: str) -> None:
        self.zip = zipfile.ZipFile(file)
        self.names = [i.filename for i in self.zip.infolist() if not i.is_dir()]

    def read(self, member: str) -> bytes:
        size = self.zip.getinfo(member).file_size
        if size > MAX_MEMBER_BYTES:
            raise InputError(f"archive member of {size} bytes", allowed=f"up to {MAX_MEMBER_BYTES}")
        return self.zip.read(member)


class TarHeader(tarfile.TarInfo):
    """A tar's header that does not take a broken one for the end, as if nothing followed."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> TarHeader:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            if tar.offset == 0:
                raise
            raise tarfile.ReadError(f"broken or cut at byte {tar.offset}: {error}") from error

    @classmethod
    def frombuf(cls, buffer: bytes | bytearray, encoding: str, errors: str) -> TarHeader:
        header = super().frombuf(buffer, encoding, errors)
        if header.type in b"xgXLK" and header.size > 2**20:  # long names, which are read into memory
            raise tarfile.ReadError(f"a name of {header.size} bytes")
        return header


class _Tar:
    def __init__(self, file: str) -> None:
        self.tar = tarfile.open(file, tarinfo=TarHeader)  # noqa: SIM115  (kept open: members are read at any time)
        weakref.finalize(self, self.tar.close)
        most = max(MAX_UNPACKED, MAX_RATIO * os.path.getsize(file))
        self.members = {}
        for member in self.tar:
            _check_unpacked(member.offset_data + member.size, most)
            if member.isfile():
                self.members[member.name.removeprefix("./")] = member
        read = self.tar.offset
        while self.tar.fileobj and (more := self.tar.fileobj.read(2**20)):
            _check_unpacked(read := read + len(more), most)  # to the very end, where the checksum is
        self.names = list(self.members)
        self.lock = threading.Lock()

    def read(self, member: str) -> bytes:
        info = self.members[member]
        if info.size > MAX_MEMBER_BYTES:
            raise InputError(f"archive member of {info.size} bytes", allowed=f"up to {MAX_MEMBER_BYTES}")
        with self.lock:
            stream = self.tar.extractfile(info)
            data = stream.read() if stream else b""
        if len(data) != info.size:
            raise InputError(f"broken archive member: {len(data)} of {info.size} bytes")
        return data


def _check_unpacked(size: int, most: int) -> None:
    if size > most:
        raise tarfile.ReadError(f"unpacks to {size} bytes or more; up to {most} are read")


class _Archive(Protocol):
    @property
    def names(self) -> Sequence[str]: ...

    def read(self, member: str) -> bytes: ...


def _open(file: str) -> _Archive:
    """An open archive, kept open as long as the file on disk is the same."""
    about = os.stat(file)
    return _archive(os.getpid(), file, about.st_mtime_ns, about.st_size)


@functools.lru_cache(maxsize=32)
def _archive(process: int, file: str, changed: int, size: int) -> _Archive:
    """`process` keeps a forked worker from sharing its parent's file position."""
    if file.lower().endswith(".parquet"):
        from camlucida.images.shards import ParquetPictures

        return ParquetPictures(file)
    return _Zip(file) if file.lower().endswith(".zip") else _Tar(file)


def names_ending(path: Path, ending: str) -> list[str]:
    """Files below a folder, or members of an archive, whose names end so; sorted."""
    if path.is_dir():
        start = len(os.path.join(path, ""))
        files = (os.path.join(place, name) for place, _, names in os.walk(path) for name in names)
        return sorted(file[start:].replace(os.sep, "/") for file in files if file.endswith(ending))
    return sorted(n for n in _open(str(path)).names if n.endswith(ending))


def read_text(path: Path, inner: str) -> str | None:
    """A text file beside the pictures: below a folder, or a member of an archive; None if it is not there."""
    try:
        if path.is_dir():
            file = path / inner
            return file.read_text(encoding="utf-8-sig") if file.is_file() else None
        return _open(str(path)).read(inner).decode("utf-8-sig")
    except KeyError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}/{inner}", got=str(error)) from error


def unique_names(sources: Sequence[Source]) -> list[str]:
    """File-system-safe names from the relative paths, without suffix; made unique by a counter where two
    meet."""
    taken: set[str] = set()
    last: dict[str, int] = {}  # where the counting of a name stopped
    names = []
    for source in sources:
        stem = str(PurePosixPath(source.relative).with_suffix("")) if source.relative else ""
        safe = "".join(c if c.isalnum() or c in "-._" else "_" for c in stem).strip("._")
        safe = safe.encode()[-150:].decode(errors="ignore").strip("._") or "picture"  # disks count bytes
        name, count = safe, last.get(_folded(safe), 2)
        while _folded(name) in taken:
            name, count = f"{safe}-{count}", count + 1
        taken.add(_folded(name))
        last[_folded(safe)] = count
        names.append(name)
    return names


def _folded(name: str) -> str:
    """Names that a disk may take for one: equal up to case, or to how an accent is stored."""
    return unicodedata.normalize("NFC", name.casefold())
