"""Labelled pictures: class folders, zips of class folders, Tiny-ImageNet's official layout, manifests."""

from __future__ import annotations

import csv
import io
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from camlucida.errors import UsageError, nearest
from camlucida.images import manifests, sources
from camlucida.images.sources import Source
from camlucida.values import Box, Label

SPLITS = ("all", "train", "tuning")


@dataclass(frozen=True)
class Example:
    """One labelled picture: `label` indexes the data set's labels; `boxes`: its objects, half-open, source
    pixels."""

    source: Source
    label: int
    boxes: tuple[Box, ...] = ()

    @property
    def is_tuning(self) -> bool:
        """Whether the picture belongs to the tuning split: CRC-32 of its file name modulo 5 is 0."""
        return zlib.crc32(PurePosixPath(self.source.relative).name.encode()) % 5 == 0


@dataclass(frozen=True)
class DataSet:
    examples: tuple[Example, ...]
    labels: tuple[Label, ...]

    def __len__(self) -> int:
        return len(self.examples)

    def split(self, name: str) -> DataSet:
        """`all`, `tuning` (one in five, by file name; whatever is chosen is chosen there) or `train` (the
        rest)."""
        if name not in SPLITS:
            raise UsageError("split", got=repr(name), do=nearest(name, SPLITS))
        if name == "all":
            return self
        kept = tuple(e for e in self.examples if e.is_tuning == (name == "tuning"))
        if not kept:
            raise UsageError(f"split {name}", got=f"0 of {len(self)} pictures", do="use --split all")
        return replace(self, examples=kept)

    def relabelled(self, vocabulary: Sequence[Label]) -> DataSet:
        """The same pictures under another vocabulary's indices, matched by id, else by name. Raises if one is
        missing."""
        index = {label.name: i for i, label in enumerate(vocabulary)} | {
            label.id: i for i, label in enumerate(vocabulary)
        }
        moved = [index.get(label.id, index.get(label.name)) for label in self.labels]
        missing = [self.labels[i].id for i in {e.label for e in self.examples} if moved[i] is None]
        if missing:
            raise UsageError(
                f"the network does not know {len(missing)} of the data's classes",
                got=", ".join(sorted(missing)[:5]) + (" …" if len(missing) > 5 else ""),
                do="evaluate with the network's own classes",
            )
        return DataSet(tuple(replace(e, label=moved[e.label]) for e in self.examples), tuple(vocabulary))  # type: ignore[arg-type]


def load(data: Sequence[str | Path], corners: str | None = None) -> DataSet:
    """All pictures of the given folders, zips and manifests under one vocabulary, classes sorted by id.

    `corners` says how boxes are written, `half-open` or `inclusive`; by default inclusive in `boxes.csv` and
    in Tiny-ImageNet's own files (as published), half-open in manifests.
    """
    found: list[tuple[Source, str, tuple[Box, ...]]] = []
    names: dict[str, str] = {}
    for given in data:
        path = Path(given)
        if path.is_file() and path.suffix.lower() in manifests.SUFFIXES:
            found += _manifest(path, corners or "half-open")
        else:
            found += _class_folders(path, corners or "inclusive", names)
    if not found:
        raise UsageError(
            f"no labelled pictures in {', '.join(map(str, data))}",
            allowed="class folders, a zip of them, a manifest with labels",
        )
    ids = sorted({label for _, label, _ in found})
    index = {label: i for i, label in enumerate(ids)}
    examples = tuple(Example(source, index[label], boxes) for source, label, boxes in found)
    return DataSet(examples, tuple(Label(i, names.get(i, i)) for i in ids))


def _manifest(path: Path, corners: str) -> list[tuple[Source, str, tuple[Box, ...]]]:
    labels: dict[str, str] = {}
    boxes: dict[str, list[Box]] = defaultdict(list)
    for row in manifests.read(path, corners):
        if len(set(row.labels) | ({labels[row.path]} if row.path in labels else set())) > 1:
            raise UsageError(f"{path}: several labels on {row.path}", allowed="one label a picture")
        if row.labels:
            labels[row.path] = row.labels[0]
        if row.box:
            boxes[row.path].append(row.box)
    return [
        (Source(str(path.parent / p), p, str(path.parent / p)), label, tuple(boxes[p]))
        for p, label in labels.items()
    ]


def _class_folders(
    path: Path, corners: str, names: dict[str, str]
) -> list[tuple[Source, str, tuple[Box, ...]]]:
    listing = sources.expand([path])
    in_archive = listing.sources and listing.sources[0].member is not None
    root = Path(listing.sources[0].file) if in_archive else path
    boxes: dict[str, list[Box]] = defaultdict(list)
    labels: dict[str, str] = {}
    classes: set[str] = set()
    if in_archive or path.is_dir():
        text = sources.read_text(root, "boxes.csv") or "path\n"
        for row in manifests.parse_csv(text, corners, f"{path}/boxes.csv"):
            if row.box:
                boxes[row.path].append(row.box)
        for named in csv.DictReader(io.StringIO(sources.read_text(root, "classes.csv") or "")):
            if not named.get("wnid") or not named.get("name"):
                raise UsageError(f"{path}/classes.csv", got=", ".join(map(str, named)), allowed="wnid,name")
            names[named["wnid"]] = named["name"]
        classes = _tiny_imagenet(root, boxes, labels, names)
    found = []
    for source in listing.sources:
        folders = [p for p in PurePosixPath(source.relative).parts[:-1] if p != "images"]
        label = labels.get(source.relative) or (folders[-1] if folders else None)
        if label is None:
            raise UsageError(
                f"{source.name} lies in no class folder",
                allowed="CLASS/picture.jpg, or a manifest with labels",
            )
        if not classes or label in classes:  # the published test pictures have no label
            found.append((source, label, tuple(boxes.get(source.relative, ()))))
    return found


def _tiny_imagenet(
    root: Path, boxes: dict[str, list[Box]], labels: dict[str, str], names: dict[str, str]
) -> set[str]:
    """Tiny-ImageNet as published, unpacked or not: `train/WNID/WNID_boxes.txt`, `val/val_annotations.txt`,
    `words.txt`, `wnids.txt` (corners inclusive). Returns the ids of its classes where `wnids.txt` lists them."""
    for ending, is_labelled in (("_boxes.txt", False), ("val_annotations.txt", True)):
        for file in sources.names_ending(root, ending):
            for line in (sources.read_text(root, file) or "").splitlines():
                name, *rest = line.split("\t")
                picture = str(PurePosixPath(file).parent / "images" / name)
                try:
                    if is_labelled:
                        labels[picture] = rest.pop(0)
                    x0, y0, x1, y1 = map(float, rest)
                    boxes[picture].append(Box(x0, y0, x1 + 1, y1 + 1))
                except (ValueError, IndexError, UsageError):
                    raise UsageError(
                        f"{root}/{file}", got=repr(line), allowed="a box per line, tabs between"
                    ) from None
    for line in _beside(root, "words.txt").splitlines():
        label, _, name = line.partition("\t")
        names.setdefault(label, name)
    return set(_beside(root, "wnids.txt").split())


def _beside(root: Path, name: str) -> str:
    """A text file of a folder (or the folder above), or anywhere in an archive; empty if there is none."""
    if root.is_dir():
        return sources.read_text(root, name) or sources.read_text(root.parent, name) or ""
    inside = sources.names_ending(root, "/" + name) or [name]
    return sources.read_text(root, inside[0]) or ""
