"""Labelled pictures under one vocabulary, from every layout that is known: folders, archives, manifests, shards."""

from __future__ import annotations

import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from camlucida.errors import UsageError, nearest
from camlucida.images import layouts, manifests, shards
from camlucida.images.annotated import Annotated, Found, Object
from camlucida.images.class_folders import class_folders
from camlucida.images.sources import Source
from camlucida.images.tree import Tree
from camlucida.values import Box, Label

T = TypeVar("T")
LAYOUTS = "class folders, a zip of them, a manifest with labels, a published layout of docs/data.md"
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
    all. `masks`: files. `subsets`: the published splits that name it. `blacklisted`: the data set asks not to score its localization."""

    source: Source
    label: int
    boxes: tuple[Box, ...] = ()
    labels: tuple[int, ...] = ()
    values: tuple[float, ...] = ()
    masks: tuple[str, ...] = ()
    objects: tuple[Truth, ...] = ()
    subsets: tuple[str, ...] = ()
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
        """The same pictures under another vocabulary's indices, matched by id, else by a name that only one class
        has. Raises if one is missing."""
        names = Counter(label.name for label in vocabulary)
        index = {label.name: i for i, label in enumerate(vocabulary) if names[label.name] == 1}
        index |= {label.id: i for i, label in enumerate(vocabulary)}
        moved = [index.get(label.id, index.get(label.name)) for label in self.labels]
        used = sorted({i for e in self.examples for i in e.labels})
        missing = [self.labels[i].id for i in used if moved[i] is None]
        notes = self.notes
        if (
            missing
            and len(missing) == len(used)
            and all(_is_number(i) and int(i) < len(vocabulary) for i in missing)
        ):
            moved = [int(label.id) if _is_number(label.id) else None for label in self.labels]
            missing, notes = (
                [],
                (*notes, "the data's classes are numbers: taken as the network's class indices"),
            )
        if missing:
            raise UsageError(
                f"the network does not know {len(missing)} of the data's classes",
                got=", ".join(sorted(missing)[:5]) + (" …" if len(missing) > 5 else ""),
                do="evaluate with the network's own classes",
            )
        moved = [i if i is not None and i < len(vocabulary) else None for i in moved]
        return replace(
            self,
            examples=tuple(_moved(e, moved) for e in self.examples),
            labels=tuple(vocabulary),
            notes=notes,
        )

    def with_permuted_labels(self, seed: int) -> DataSet:
        """The same pictures under each other's labels, dealt out by the seed: as many of each class as before, and nothing
        to be learnt but the pictures one by one (a sanity check of maps). Without boxes and masks, which tell labels."""
        order = np.random.default_rng(seed).permutation(len(self))
        given = [self.examples[i] for i in order]
        return replace(self, examples=tuple(
            replace(e, label=other.label, labels=other.labels, values=other.values, boxes=(), objects=(), masks=())
            for e, other in zip(self.examples, given, strict=True)
        ))  # fmt: skip


def evenly(examples: Sequence[T], count: int) -> tuple[T, ...]:
    """At most `count` of some pictures, spread evenly over all of them."""
    count = min(count, len(examples))
    return tuple(examples[i * len(examples) // count] for i in range(count))


def _moved(example: Example, index: Sequence[int | None]) -> Example:
    """The same picture with label i become label index[i]; objects of a class that has none are left out."""
    moved = tuple(index[i] for i in example.labels)
    objects = tuple(replace(t, label=at) for t in example.objects if (at := index[t.label]) is not None)
    return replace(example, label=moved[0] if moved else -1, labels=moved, objects=objects)  # type: ignore[arg-type]


def load(data: Sequence[str | Path], corners: str | None = None, subset: str | None = None) -> DataSet:
    """All pictures of the given data sets under one vocabulary, classes sorted by id (ids that are numbers: as numbers).

    Each is a folder or archive in a published layout, class folders, a manifest, shards, or `torchvision:NAME:ROOT`
    (docs/data.md lists them). `subset`: the published split to read, `train`, `val` or `test`; None for all.
    `corners` says how boxes are written, `half-open` or `inclusive`; by default inclusive in `boxes.csv`, half-open in
    manifests. Published layouts have corners of their own. Raises UsageError with file and line.
    """
    if not data or not all(map(str, data)):
        raise UsageError("DATA", got="nothing", allowed=LAYOUTS, do="name what is to be read")
    return joined([_found(str(given), corners, subset) for given in data], ", ".join(map(str, data)))


def _found(given: str, corners: str | None, subset: str | None) -> Found:
    if given.startswith("torchvision:"):
        from camlucida.images import torchvision_sets

        return torchvision_sets.load(given, subset)
    path = Path(given)
    files = shards.files(given)
    tree = Tree.of(given) if files is None else None
    if files is not None:
        found = shards.load(files, subset)
    elif path.is_file() and path.suffix.lower() in manifests.SUFFIXES:
        found = _manifest(given, corners or "half-open")
    elif path.is_file() and path.suffix.lower() == ".json":
        found = layouts.coco_file(given)
    else:
        found = (layouts.read(tree, subset) if tree else None) or class_folders(given, corners or "inclusive")
    return _only(found, given, subset)


def _manifest(file: str, corners: str) -> Found:
    """Rows of one picture are taken together: one label, or several in `labels`, or one with each box."""
    found, unlabelled = Found(), []
    rows_of: dict[str, list[manifests.Row]] = defaultdict(list)
    for row in manifests.read(file, corners):
        rows_of[row.path].append(row)
    for name, rows in rows_of.items():
        where = f"{file}, line {rows[-1].line}"
        labels = tuple(dict.fromkeys(label for row in rows for label in row.labels))
        values = {row.values for row in rows if row.values}
        several = any(len(row.labels) > 1 for row in rows) or all(row.box for row in rows if row.labels)
        if len(labels) > 1 and not several:
            raise UsageError(
                f"{where}: several labels on {name}",
                allowed="one label a picture, or several in a column labels (a;b), or one with each box",
            )
        if len(values) > 1:
            raise UsageError(f"{where}: several values on {name}", got=f"{len(values)} kinds", allowed="one")
        if not labels and not values:
            unlabelled.append(name)
            continue
        objects = []
        for row in rows:
            own = row.labels or labels
            if row.box and len(own) != 1:
                raise UsageError(
                    f"{file}, line {row.line}: a box",
                    got=f"labels {', '.join(own) or 'none'}",
                    allowed="one label a box",
                )
            if row.box:
                objects.append(Object(row.box, own[0], row.difficult))
        path = os.path.join(os.path.dirname(file), name)
        masks = tuple(
            dict.fromkeys(os.path.join(os.path.dirname(file), str(row.mask)) for row in rows if row.mask)
        )
        subsets = tuple(dict.fromkeys(str(row.split) for row in rows if row.split))
        found.multi_label |= len(labels) > 1
        found.pictures.append(
            Annotated(Source(path, name, path), labels, objects, next(iter(values), ()), masks, subsets)
        )
    found.note(f"pictures of {file} without label or value, left out", unlabelled)
    return found


def _only(found: Found, given: str, subset: str | None) -> Found:
    """The pictures of one published split."""
    if subset is None:
        return found
    kept = [picture for picture in found.pictures if subset in picture.subsets]
    if not kept:
        known = found.subsets.union(*(picture.subsets for picture in found.pictures))
        raise UsageError(
            f"no pictures of the published split {subset!r} in {given}",
            allowed=", ".join(sorted(known)) or "no published split is known there",
        )
    return replace(found, pictures=kept)


def joined(parts: Sequence[Found], where: str) -> DataSet:
    """What the readers found, numbered under one vocabulary. The classes of pictures that a subset leaves out stay, as
    far as the layout lists them."""
    pictures = [picture for part in parts for picture in part.pictures]
    if not pictures:
        notes = "; ".join(note for part in parts for note in part.notes)
        raise UsageError(
            f"no labelled pictures in {where}",
            got=notes or None,
            allowed=LAYOUTS,
        )
    names = {label: name for part in parts for label, name in part.names.items()}
    ids = {label for part in parts for label in part.classes}
    for picture in pictures:
        ids.update(picture.labels)
        ids.update(one.label for one in picture.objects)
    vocabulary = sorted(ids, key=(lambda label: int(label)) if all(map(_is_number, ids)) else None)
    index = {label: i for i, label in enumerate(vocabulary)}
    numbered: dict[tuple[str, ...], tuple[int, ...]] = {}  # one tuple for all pictures of a class
    examples = []
    for picture in pictures:
        labels = numbered.setdefault(picture.labels, tuple(index[label] for label in picture.labels))
        objects = tuple(Truth(one.box, index[one.label], one.difficult) for one in picture.objects)
        examples.append(
            Example(
                picture.source, labels[0] if labels else -1, (), labels, picture.values, picture.masks, objects,
                picture.subsets, picture.blacklisted,
            )
        )  # fmt: skip
    return DataSet(
        tuple(examples),
        tuple(Label(label, names.get(label, label)) for label in vocabulary),
        any(part.multi_label for part in parts),
        tuple(note for part in parts for note in part.notes),
    )


def _is_number(label: str) -> bool:
    return label.isdecimal() and label == str(int(label))


def from_torchvision(dataset: Any) -> DataSet:
    """Any map-style data set whose items are (picture, class index), as most of `torchvision.datasets` are, made without
    a transform."""
    from camlucida.images import torchvision_sets

    return joined([torchvision_sets.adapted(dataset)], type(dataset).__name__)
