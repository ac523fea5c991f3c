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


@dataclass(frozen=True, slots=True)
class Truth:
    """One object as annotated: half-open box in source pixels, index of its label; `difficult`: the data set calls
    it so, or a crowd, and it is not to be scored."""

    box: Box
    label: int
    difficult: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """One picture and what is known of it. `label`, the first of `labels`, indexes the data set's labels; −1 where
    there is none (a picture with `values` alone). `boxes`: the objects of `label` that are not difficult; `objects`:
    all. `masks`: files. `blacklisted`: the data set asks not to score its localization."""

    source: Source
    label: int
    boxes: tuple[Box, ...] = ()
    labels: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    masks: tuple[str, ...] = ()
    objects: tuple[Truth, ...] = ()
    subset: str | None = None
    blacklisted: bool = False

    def __post_init__(self) -> None:
        if self.labels and self.labels[0] != self.label:
            raise UsageError(
                "Example: label", got=self.label, allowed=f"the first of labels, {self.labels[0]}"
            )
        if not self.labels and self.label >= 0:
            object.__setattr__(self, "labels", (self.label,))
        if self.objects and not self.boxes:
            object.__setattr__(self, "boxes", self.boxes_of(self.label))
        elif self.boxes and not self.objects:
            object.__setattr__(self, "objects", tuple(Truth(box, self.label) for box in self.boxes))

    def boxes_of(self, label: int, *, difficult: bool = False) -> tuple[Box, ...]:
        """The boxes of one class, with or without difficult ones."""
        return tuple(t.box for t in self.objects if t.label == label and (difficult or not t.difficult))

    @property
    def difficult_labels(self) -> tuple[int, ...]:
        """Labels that only difficult objects carry: PASCAL VOC's classification scores neither yes nor no there."""
        seen = {t.label for t in self.objects}
        return tuple(
            i for i in self.labels if i in seen and all(t.difficult for t in self.objects if t.label == i)
        )

    @property
    def is_tuning(self) -> bool:
        """Whether the picture belongs to the tuning split: CRC-32 of its file name modulo 5 is 0."""
        return zlib.crc32(PurePosixPath(self.source.relative).name.encode()) % 5 == 0


@dataclass(frozen=True)
class DataSet:
    """Pictures under one vocabulary. `multi_label`: a picture may carry several labels; `notes`: what was left out,
    taken as something else or is worth knowing, one line each, for the reader of a run."""

    examples: tuple[Example, ...]
    labels: tuple[Label, ...]
    multi_label: bool = False
    notes: tuple[str, ...] = ()

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
        missing = [
            self.labels[i].id for i in {i for e in self.examples for i in e.labels} if moved[i] is None
        ]
        if missing:
            raise UsageError(
                f"the network does not know {len(missing)} of the data's classes",
                got=", ".join(sorted(missing)[:5]) + (" …" if len(missing) > 5 else ""),
                do="evaluate with the network's own classes",
            )
        return replace(
            self, examples=tuple(_moved(e, moved) for e in self.examples), labels=tuple(vocabulary)
        )


def _moved(example: Example, index: Sequence[int | None]) -> Example:
    """The same picture with label i become label index[i]; objects of a class that has none are left out."""
    moved = tuple(index[i] for i in example.labels)
    objects = tuple(replace(t, label=at) for t in example.objects if (at := index[t.label]) is not None)
    return replace(example, label=moved[0] if moved else -1, labels=moved, objects=objects)  # type: ignore[arg-type]


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
