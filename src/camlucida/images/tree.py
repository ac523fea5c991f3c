"""A folder or an archive, looked through in one way by the readers of published layouts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from camlucida.images import sources
from camlucida.images.sources import Source


@dataclass(frozen=True)
class Tree:
    """A folder, an archive, or the folder `below` inside one, looked through in one way. Names inside are relative,
    with `/`."""

    root: Path
    below: str = ""

    @classmethod
    def of(cls, given: str | Path) -> Tree | None:
        """None for what is neither folder nor archive, nor lies in one."""
        path = Path(given)
        if path.is_dir() or (path.is_file() and sources.is_archive(path)):
            return cls(path)
        for parent in path.parents:
            if parent.is_file() and sources.is_archive(parent):
                return cls(parent, path.relative_to(parent).as_posix())
        return None

    def __str__(self) -> str:
        return f"{self.root}/{self.below}" if self.below else str(self.root)

    @property
    def is_folder(self) -> bool:
        return not self.root.is_file()

    def at(self, inner: str) -> Tree:
        inner = inner.strip("/")
        if not inner:
            return self
        return Tree(self.root / inner) if self.is_folder else Tree(self.root, self._inside(inner))

    def above(self) -> Tree:
        if self.is_folder:
            return Tree(self.root.parent)
        return Tree(self.root, self.below.rpartition("/")[0])

    def text(self, name: str) -> str | None:
        """A text file; None if it is not there. Raises UsageError for one that is not UTF-8."""
        if self.is_folder and not self.root.is_dir():
            return None
        return sources.read_text(self.root, self._inside(name))

    def names(self, ending: str = "") -> list[str]:
        """Files whose names end so, sorted."""
        if self.is_folder:
            return sources.names_ending(self.root, ending) if self.root.is_dir() else []
        start = len(self._inside(""))
        return [n[start:] for n in sources.names_ending(self.root, ending) if n.startswith(self._inside(""))]

    def files(self) -> list[str]:
        """Names of the files directly in it, sorted."""
        if self.is_folder:
            return sorted(e.name for e in self._entries() if e.is_file())
        return [n for n in self.names() if "/" not in n]

    def folders(self) -> list[str]:
        """Names of the folders directly in it, sorted."""
        if self.is_folder:
            return sorted(e.name for e in self._entries() if e.is_dir())
        return sorted({n.split("/", 1)[0] for n in self.names() if "/" in n})

    def pictures(self) -> dict[str, Source]:
        """Name → picture, in the order of the names; empty if there is no such folder."""
        if self.is_folder and not self.root.is_dir():
            return {}
        if self.is_folder:
            return {s.relative: s for s in sources.folder_pictures(self.root).sources}
        start = len(self._inside(""))
        members = sources.archive_members(self.root, self.below).sources
        return {s.relative[start:]: s for s in members if len(s.relative) > start}

    def find(self, marker: str) -> list[Tree]:
        """The trees that hold a file or folder of that name: this one, else those one level down (in an archive:
        at any depth)."""
        if self.is_folder:
            if (self.root / marker).exists():
                return [self]
            return [at for name in self.folders() if ((at := self.at(name)).root / marker).exists()]
        found = set()
        for name in self.names():
            place = f"/{name}/".find(f"/{marker}/")
            if place >= 0:
                found.add(name[: max(place - 1, 0)])
        return [self.at(name) for name in sorted(found)]

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            return list(os.scandir(self.root))
        except OSError:  # not there, or not to be listed: what reads its pictures says so
            return []

    def _inside(self, name: str) -> str:
        return f"{self.below}/{name}" if self.below else name
