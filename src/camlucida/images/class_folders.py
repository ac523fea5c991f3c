"""CLASS/picture.jpg in folders and archives: plain, under train/ and val/, below letters (SUN397, Places), with published
lists (Indoor67, SUN397, Tiny-ImageNet)."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from camlucida.errors import UsageError
from camlucida.images import manifests, sources
from camlucida.images.annotated import Annotated, Found, Object, corners, malformed
from camlucida.images.read import SUFFIXES
from camlucida.images.tree import Tree
from camlucida.values import Box

SUBSETS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test",
}  # fmt: skip
LISTS = (  # MIT Indoor67; SUN397, whose ten partitions are numbered
    (re.compile(r"Train(?:Images|ing_(\d\d))\.txt"), "train"),
    (re.compile(r"Test(?:Images|ing_(\d\d))\.txt"), "test"),
)


def class_folders(given: str, how: str = "inclusive") -> Found:
    """The class is the last folder (`images` is none); below single letters that begin its name, `a/abbey/indoor`, the
    whole path under the letter. `train`, `val` and `test` above it are published splits. `classes.csv` and
    `boxes.csv` beside the classes give names and boxes; `how` its corners are written."""
    found = Found()
    listed = sources.expand([given]).sources
    tree = Tree.of(given)
    boxes: dict[str, list[Box]] = defaultdict(list)
    labels: dict[str, str] = {}
    classes: set[str] = set()
    places = {source.relative.rpartition("/")[0] for source in listed}
    if tree:
        whole = tree if tree.is_folder else Tree(tree.root)  # in an archive, paths are its members' names
        for row in manifests.parse_csv(whole.text("boxes.csv") or "path\n", how, f"{whole}/boxes.csv"):
            if row.box:
                boxes[row.path].append(row.box)
        for named in csv.DictReader(io.StringIO(whole.text("classes.csv") or "")):
            if not named.get("wnid") or not named.get("name"):
                raise UsageError(f"{whole}/classes.csv", got=", ".join(map(str, named)), allowed="wnid,name")
            found.names[named["wnid"]] = named["name"]
        classes = _tiny_imagenet(whole, places, boxes, labels, found.names)
    below_letters = all(_below_letter(place) for place in places)
    known = {place: _class_and_subset(place, below_letters) for place in places}
    lists = _published_lists(tree) if tree else {}
    if lists and not any(_listed(lists, source.relative) for source in listed):
        lists = {}  # those of another set
    unlisted, unlabelled, there = [], [], set()
    for source in listed:
        name = source.relative
        label, subsets = known[name.rpartition("/")[0]]
        label = labels.get(name) or label
        if label is None:
            raise UsageError(
                f"{source.name} lies in no class folder",
                allowed="CLASS/picture.jpg, or a manifest with labels",
            )
        if classes and label not in classes:  # the published test pictures have no label
            unlabelled.append(name)
            continue
        if lists:
            key = _listed(lists, name)
            subsets = lists[key] if key else ()
            there.add(key) if key else unlisted.append(name)
        objects = [Object(box, label) for box in boxes.pop(name, ())]
        found.pictures.append(Annotated(source, (label,), objects, subsets=subsets))
    _name_numbered(found)
    found.note("pictures without label, left out", unlabelled)
    found.note("pictures that no published list names", unlisted)
    found.note("listed pictures that are not there", sorted(lists.keys() - there))
    if tree and (tree.is_folder or not tree.below):
        found.note("pictures with boxes that are not there", list(boxes))
    found.note("classes of several folders, taken as one", _joined(known, below_letters))
    return found


def _class_and_subset(place: str, below_letters: bool) -> tuple[str | None, tuple[str, ...]]:
    folders = [name for name in place.split("/") if name and name != "images"]
    letter = _below_letter(place)
    label = letter if below_letters else folders[-1] if folders else None
    flat = label in SUBSETS and place.endswith("images")  # Tiny-ImageNet: val/images/…
    return label, subsets_of(folders if flat else folders[:-1])


def _below_letter(place: str) -> str | None:
    """`SUN397/a/apartment_building/outdoor` → `apartment_building/outdoor`; None where no letter leads."""
    folders = place.split("/")
    for i, name in enumerate(folders[:-1]):
        if len(name) == 1 and name.isalpha() and folders[i + 1].lower().startswith(name.lower()):
            return "/".join(folders[i + 1 :])
    return None


def _joined(known: dict[str, tuple[str | None, tuple[str, ...]]], below_letters: bool) -> list[str]:
    """Classes whose pictures lie in several folders, other than the same one of several splits."""
    paths = {
        (label, tuple(n for n in place.split("/") if n not in SUBSETS and n != "images"))
        for place, (label, _) in known.items()
        if label not in SUBSETS
    }
    count = Counter(label for label, _ in paths)
    return [] if below_letters else sorted(label for label, n in count.items() if label and n > 1)


def _name_numbered(found: Found) -> None:
    """`001.ak47` (Caltech-256, CUB) is called `ak47`, where all classes are numbered."""
    ids = {label for picture in found.pictures for label in picture.labels}
    numbered = {label: match for label in ids if (match := re.fullmatch(r"\d{3}\.(.+)", label))}
    if len(numbered) == len(ids):
        for label, match in numbered.items():
            found.names.setdefault(label, match[1].replace("_", " "))


def _published_lists(tree: Tree) -> dict[str, tuple[str, ...]]:
    """Path as listed → the splits that list it; of several partitions the first is `train`, the third `train-03`."""
    lists: dict[str, list[str]] = defaultdict(list)
    places = [tree, tree.above()] if tree.is_folder else [tree]
    for place in [at for at in places if any(p.fullmatch(n) for n in at.files() for p, _ in LISTS)][:1]:
        for name in place.files():
            for pattern, subset in LISTS:
                match = pattern.fullmatch(name)
                if not match:
                    continue
                subset += f"-{match[1]}" if match[1] and match[1] != "01" else ""
                for number, line in enumerate((place.text(name) or "").splitlines(), 1):
                    path = line.strip().lstrip("/")
                    if not path:
                        continue
                    if "/" not in path or not path.lower().endswith(SUFFIXES):
                        raise malformed(f"{place}/{name}", number, line, "CLASS/picture.jpg")
                    lists[path].append(subset)
    return {path: tuple(subsets) for path, subsets in lists.items()}


def _listed(lists: dict[str, tuple[str, ...]], name: str) -> str | None:
    """The path under which lists name a picture: its own, or without folders above."""
    while name not in lists and "/" in name:
        name = name.partition("/")[2]
    return name if name in lists else None


def _tiny_imagenet(
    root: Tree, places: set[str], boxes: dict[str, list[Box]], labels: dict[str, str], names: dict[str, str]
) -> set[str]:
    """Tiny-ImageNet as published, unpacked or not: `train/WNID/WNID_boxes.txt`, `val/val_annotations.txt`,
    `words.txt`, `wnids.txt` (corners inclusive). Returns the ids of its classes where `wnids.txt` lists them."""
    for place in sorted(places):
        if place.rpartition("/")[2] != "images":
            continue
        above = place.removesuffix("images")
        for file in (
            f"{above}{PurePosixPath(above).name or root.root.name}_boxes.txt",
            f"{above}val_annotations.txt",
        ):
            for number, line in enumerate((root.text(file) or "").splitlines(), 1):
                name, *rest = line.split("\t")
                picture = f"{place}/{name}"
                try:
                    if file.endswith("val_annotations.txt"):
                        labels[picture] = rest.pop(0)
                    boxes[picture].append(corners(rest, inclusive=True))
                except (ValueError, IndexError):
                    raise malformed(f"{root}/{file}", number, line, "a box per line, tabs between") from None
    for line in _beside(root, "words.txt").splitlines():
        label, _, name = line.partition("\t")
        names.setdefault(label, name)
    return set(_beside(root, "wnids.txt").split())


def _beside(root: Tree, name: str) -> str:
    """A text file of a folder (or the folder above), or anywhere in an archive; empty if there is none."""
    if root.is_folder:
        return root.text(name) or root.above().text(name) or ""
    inside = root.names("/" + name) or [name]
    return root.text(inside[0]) or ""


def subsets_of(words: Iterable[str]) -> tuple[str, ...]:
    """The published split that a file's name speaks of: `imagenet-train-0003.tar`, `validation-00000-of-00001`."""
    return tuple(dict.fromkeys(SUBSETS[word] for word in words if word in SUBSETS))[:1]
