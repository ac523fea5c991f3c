"""Published layouts with annotations of their own, one small reader each; all of them look through a folder or an
archive. A malformed line of a list is an error; a broken annotation file of one picture leaves that picture out, with a
note."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any
from xml.etree import ElementTree

from camlucida.errors import UsageError
from camlucida.images.annotated import Annotated, Found, Object, corners, lines, malformed
from camlucida.images.sources import Source
from camlucida.images.tree import Tree


def read(tree: Tree, subset: str | None) -> Found | None:
    """What the first layout that knows the tree finds; None if none does. `subset`: the published split to read, None
    for all of it."""
    for reader in (ilsvrc, cub, voc, coco, places365):
        found = reader(tree, subset)
        if found is not None:
            return found
    return None


# --- ILSVRC ------------------------------------------------------------------------------------------------------


def ilsvrc(tree: Tree, subset: str | None) -> Found | None:
    """ILSVRC 2012–2017, classification and localization: `Data/CLS-LOC/{train,val}`. Boxes (inclusive corners from 0)
    come from Kaggle's `LOC_*_solution.csv`, else from `Annotations/CLS-LOC`; labels of the validation pictures from
    their folder, else from these, else from the devkit's ground truth and `map_clsloc.txt`."""
    at = next(iter(tree.find("Data/CLS-LOC")), None)
    if at is None:
        return None
    found = Found(subsets={"train", "val"})
    synsets = {}  # the devkit's numbers
    if file := _beside(at, "map_clsloc.txt"):
        for _, (wnid, number, name) in lines(*file, 3, "wnid, number, name"):
            synsets[number] = wnid
            found.names[wnid] = name.replace("_", " ")
    if file := _beside(at, "LOC_synset_mapping.txt"):
        for _, (wnid, name) in lines(*file, 2, "wnid, name"):
            found.names[wnid] = name
    found.classes = set(found.names)
    for part in ("train", "val"):
        if subset not in (None, part):
            continue
        pictures = at.at(f"Data/CLS-LOC/{part}").pictures()
        if not pictures:
            found.notes.append(f"no pictures in {at}/Data/CLS-LOC/{part}")
        objects = _solution(at, part)
        if objects is None:
            objects = _annotations(at.at(f"Annotations/CLS-LOC/{part}"), 0, found)
        numbered = _ground_truth(at, synsets) if part == "val" else {}
        blacklist = _blacklist(at) if part == "val" else set()
        unlabelled, blacklisted, strange = [], [], []
        for name, source in pictures.items():
            stem = PurePosixPath(name).stem
            known = objects.pop(stem, [])
            folder = name.rpartition("/")[0].rpartition("/")[2]
            digits = re.search(r"\d+$", stem)
            index = int(digits[0]) if digits else 0
            label = folder or (known[0].label if known else numbered.get(index))
            if not label:
                unlabelled.append(name)
                continue
            if index in blacklist:
                blacklisted.append(name)
            own = [one for one in known if one.label == label]
            if len(own) < len(known):
                strange.append(name)
            found.pictures.append(
                Annotated(source, (label,), own, subsets=(part,), blacklisted=index in blacklist)
            )
        found.note(f"{part} pictures without label, left out", unlabelled)
        found.note(f"{part} pictures with boxes of another class, those left out", strange)
        found.note(f"{part} annotations without their picture", list(objects))
        found.note("blacklisted pictures, which localization figures leave out", blacklisted)
    return found


def _beside(tree: Tree, pattern: str) -> tuple[str, str] | None:
    """Text and name of the first such file in the tree, the folder above, or the data of a devkit in either."""
    for place in (tree, tree.above()):
        kits = [place.at(f"{name}/data") for name in place.folders() if "devkit" in name.lower()]
        for at in (place, *kits):
            for name in at.files():
                if fnmatch(name, pattern):
                    return at.text(name) or "", f"{at}/{name}"
    return None


def _solution(at: Tree, part: str) -> dict[str, list[Object]] | None:
    """Kaggle's `ImageId,PredictionString`: wnid and inclusive corners, once for each object."""
    file = _beside(at, f"LOC_{part}_solution.csv")
    if file is None:
        return None
    text, where = file
    objects = {}
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        if not row or (number == 1 and row[0] == "ImageId"):
            continue
        words = row[1].split() if len(row) == 2 else []
        try:
            objects[row[0]] = [
                Object(corners(words[i + 1 : i + 5], inclusive=True), words[i])
                for i in range(0, len(words) or 1, 5)
            ]
        except (ValueError, IndexError):
            raise malformed(
                where, number, ",".join(row), "ImageId, then wnid x0 y0 x1 y1 once for each object"
            ) from None
    return objects


def _ground_truth(at: Tree, synsets: dict[str, str]) -> dict[int, str]:
    """Line i of the devkit's file is the class number of validation picture i."""
    file = _beside(at, "ILSVRC*_validation_ground_truth.txt")
    if file is None or not synsets:
        return {}
    text, where = file
    numbered = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() not in synsets:
            raise malformed(where, number, line, "a number of map_clsloc.txt")
        numbered[number] = synsets[line.strip()]
    return numbered


def _blacklist(at: Tree) -> set[int]:
    """Numbers of the validation pictures whose boxes were found wanting (ILSVRC 2014 devkit)."""
    text, where = _beside(at, "ILSVRC*_clsloc_validation_blacklist.txt") or ("", "")
    numbers = set()
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            if not line.strip().isdecimal():
                raise malformed(where, number, line, "the number of a validation picture")
            numbers.add(int(line))
    return numbers


# --- Pascal VOC --------------------------------------------------------------------------------------------------


def voc(tree: Tree, subset: str | None) -> Found | None:
    """Pascal VOC: `JPEGImages`, `Annotations` (inclusive corners from 1), `ImageSets/Main`, in the tree or in its
    years. Labels: the classes of the objects, those with objects that are not difficult first."""
    years = [at for at in tree.find("JPEGImages") if at.find("Annotations") == [at]]
    if not years:
        return None
    found = Found(multi_label=True)
    for at in years:
        lists: dict[str, list[str]] = defaultdict(list)
        for name in ("train", "val", "trainval", "test"):
            where = f"ImageSets/Main/{name}.txt"
            for number, line in enumerate((at.text(where) or "").splitlines(), 1):
                if len(line.split()) > 1:
                    raise malformed(f"{at}/{where}", number, line, "the name of a picture")
                if line.strip():
                    lists[line.strip()].append(name)
        objects = _annotations(at.at("Annotations"), 1, found)
        found.classes |= {one.label for all_of_one in objects.values() for one in all_of_one}
        without, empty = [], []
        for name, source in at.at("JPEGImages").pictures().items():
            known = objects.pop(PurePosixPath(name).stem, None)
            subsets = tuple(lists.pop(PurePosixPath(name).stem, ()))
            if known is None:
                without.append(name)
            elif not known:
                empty.append(name)
            else:
                found.pictures.append(Annotated(source, _labels(known), known, subsets=subsets))
        found.note(f"pictures of {at} without annotation, left out", without)
        found.note(f"pictures of {at} without an object, left out", empty)
        found.note(f"annotations of {at} without their picture", list(objects))
        found.note(f"listed pictures of {at} that are not there", list(lists))
    return found


def _labels(objects: Iterable[Object]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.label for one in sorted(objects, key=lambda one: one.difficult)))


def _annotations(tree: Tree, first: float, found: Found) -> dict[str, list[Object]]:
    """Stem → objects of each XML file; a broken one is noted. `first`: the number of the first pixel."""
    objects, broken = {}, []
    for name in tree.names(".xml"):
        try:
            objects[PurePosixPath(name).stem] = _objects(tree.text(name) or "", first)
        except (ElementTree.ParseError, ValueError, UsageError) as error:
            broken.append(f"{name} ({error})")
    found.note(f"broken annotations in {tree}, left out", broken)
    return objects


def _objects(text: str, first: float) -> list[Object]:
    found = []
    for element in ElementTree.fromstring(text).iter("object"):
        name, box = (element.findtext("name") or "").strip(), element.find("bndbox")
        written = [box.findtext(side) for side in ("xmin", "ymin", "xmax", "ymax")] if box is not None else []
        if not name or None in written or len(written) != 4:
            raise ValueError("an object without name or box")
        difficult = (element.findtext("difficult") or "0").strip() not in ("", "0")
        found.append(Object(corners(written, inclusive=True, first=first), name, difficult))
    return found


# --- COCO --------------------------------------------------------------------------------------------------------


def coco(tree: Tree, subset: str | None) -> Found | None:
    """COCO: `annotations/instances_SPLIT.json` and the folder of pictures so called. A crowd is difficult."""
    at = next(iter(tree.find("annotations")), None)
    files = [n for n in at.at("annotations").files() if re.fullmatch(r"instances_.*\.json", n)] if at else []
    if at is None or not files:
        return None
    found = Found(multi_label=True)
    for file in files:
        split = _coco_split(file)
        found.subsets.add(split)
        if subset in (None, split):
            _coco_file(at, f"annotations/{file}", found)
    return found


def _coco_split(file: str) -> str:
    """`instances_val2017.json` → `val`."""
    return re.sub(r"^instances_|\d*\.json$", "", file.rpartition("/")[2])


def coco_file(file: str) -> Found:
    """One annotation file; its pictures lie beside it, or beside the folder `annotations` that holds it."""
    path = PurePosixPath(file)
    at = path.parent.parent if path.parent.name == "annotations" else path.parent
    tree = Tree.of(str(at))
    assert tree is not None
    found = Found(multi_label=True)
    _coco_file(tree, path.relative_to(at).as_posix(), found)
    return found


def _coco_file(at: Tree, file: str, found: Found) -> None:
    where = f"{at}/{file}"
    try:
        data = json.loads(at.text(file) or "", object_hook=_without_outlines)
        categories = {c["id"]: str(c["name"]) for c in data["categories"]}
        images = {i["id"]: str(i["file_name"]) for i in data["images"]}
        annotations = data["annotations"]
    except json.JSONDecodeError as error:
        raise malformed(where, error.lineno, error.msg, "JSON") from None
    except (KeyError, TypeError, RecursionError) as error:
        raise UsageError(f"{where}: no COCO annotations", got=repr(error)) from None
    split = _coco_split(file)
    pictures = _coco_pictures(at, file, next(iter(images.values()), ""))
    objects: dict[Any, list[Object]] = defaultdict(list)
    wrong: list[str] = []
    for one in annotations:
        try:
            if one["image_id"] not in images:
                raise ValueError("no such picture")
            x, y, width, height = map(float, one["bbox"])
            box = corners((x, y, x + width, y + height), inclusive=False)
            objects[one["image_id"]].append(
                Object(box, categories[one["category_id"]], bool(one.get("iscrowd")))
            )
        except (KeyError, TypeError, ValueError) as error:
            number = one.get("id", "?") if isinstance(one, dict) else one
            wrong.append(f"{number} ({error if isinstance(error, ValueError) else repr(error)})")
    missing, empty = [], []
    for number, name in images.items():
        source, known = pictures.get(name), objects.get(number)
        if source is None:
            missing.append(name)
        elif not known:
            empty.append(name)
        else:
            found.pictures.append(Annotated(source, _labels(known), known, subsets=(split,)))
    found.classes |= set(categories.values())
    found.note(f"annotations of {file}, left out", wrong)
    found.note(f"pictures of {file} that are not there", missing)
    found.note(f"pictures of {file} without annotation, left out", empty)
    found.note(f"pictures that {file} does not list", sorted(pictures.keys() - images.values()))


def _without_outlines(value: dict[str, Any]) -> dict[str, Any]:
    value.pop("segmentation", None)  # most of the file; not read
    return value


def _coco_pictures(at: Tree, file: str, first: str) -> dict[str, Source]:
    """The pictures of the first folder that has the first one listed."""
    called = re.sub(r"^instances_|\.json$", "", file.rpartition("/")[2])
    for folder in (called, f"images/{called}", "images", ""):
        pictures = at.at(folder).pictures()
        if first in pictures:
            return pictures
    return {}


# --- CUB-200-2011 ------------------------------------------------------------------------------------------------


def cub(tree: Tree, subset: str | None) -> Found | None:
    """CUB-200-2011: `images.txt`, `image_class_labels.txt`, `classes.txt`, `bounding_boxes.txt` (x, y, width, height),
    `train_test_split.txt` (1: train)."""
    at = next(iter(tree.find("image_class_labels.txt")), None)
    if at is None:
        return None
    found = Found(subsets={"train", "test"})
    classes = {n: name for _, n, name in _numbered(at, "classes.txt", 1)}
    found.classes = set(classes.values())
    found.names = {name: name.partition(".")[2].replace("_", " ") or name for name in classes.values()}
    labels, boxes, parts = {}, {}, {}
    for line, number, label in _numbered(at, "image_class_labels.txt", 1):
        if label not in classes:
            raise malformed(f"{at}/image_class_labels.txt", line, label, "a number of classes.txt")
        labels[number] = classes[label]
    for line, number, *written in _numbered(at, "bounding_boxes.txt", 4):
        try:
            x, y, width, height = map(float, written)
            boxes[number] = corners((x, y, x + width, y + height), inclusive=False)
        except ValueError:
            raise malformed(
                f"{at}/bounding_boxes.txt", line, " ".join(written), "x, y, width and height"
            ) from None
    for line, number, part in _numbered(at, "train_test_split.txt", 1):
        if part not in ("0", "1"):
            raise malformed(f"{at}/train_test_split.txt", line, part, "1 (train) or 0 (test)")
        parts[number] = ("train",) if part == "1" else ("test",)
    pictures = at.at("images").pictures()
    missing, unlabelled, unboxed = [], [], []
    for _, number, name in _numbered(at, "images.txt", 1):
        source = pictures.pop(name, None)
        if source is None:
            missing.append(name)
        elif number not in labels:
            unlabelled.append(name)
        else:
            if number not in boxes:
                unboxed.append(name)
            objects = [Object(boxes[number], labels[number])] if number in boxes else []
            found.pictures.append(
                Annotated(source, (labels[number],), objects, subsets=parts.get(number, ()))
            )
    found.note("listed pictures that are not there", missing)
    found.note("pictures without label, left out", unlabelled)
    found.note("pictures without box", unboxed)
    found.note("pictures that images.txt does not list, left out", list(pictures))
    return found


def _numbered(at: Tree, name: str, values: int) -> Iterable[tuple[Any, ...]]:
    """Line, number and values of each line; the file may be absent."""
    for line, fields in lines(at.text(name) or "", f"{at}/{name}", 1 + values, f"a number and {values} more"):
        yield line, *fields


# --- Places365 ---------------------------------------------------------------------------------------------------


def places365(tree: Tree, subset: str | None) -> Found | None:
    """Places365 with its lists: `categories_places365.txt`, `places365_train_standard.txt` (or `_challenge`),
    `places365_val.txt`, and pictures in `data_*` and `val_*`. Without the lists: class folders below letters."""
    at = next(iter(tree.find("categories_places365.txt")), None)
    if at is None:
        return None
    found = Found(subsets={"train", "val"})
    names = {}
    allowed = "a path and a number of categories_places365.txt"
    for _, (name, number) in lines(
        at.text("categories_places365.txt") or "", f"{at}/categories_places365.txt", 2, allowed
    ):
        names[number] = name.strip("/").partition("/")[2]
    found.classes = set(names.values())
    for part, folder in (("train", "data_"), ("val", "val_")):
        if subset not in (None, part):
            continue
        listed = {}
        for file in [n for n in at.files() if fnmatch(n, f"places365_{part}*.txt")][-1:]:
            for line, (path, number) in lines(at.text(file) or "", f"{at}/{file}", 2, allowed):
                if number not in names:
                    raise malformed(f"{at}/{file}", line, number, allowed)
                listed[path.strip("/")] = names[number]
        pictures = {
            name: source
            for place in at.folders()
            if place.startswith(folder)
            for name, source in at.at(place).pictures().items()
        }
        found.pictures += [
            Annotated(source, (listed.pop(name),), subsets=(part,))
            for name, source in pictures.items()
            if name in listed
        ]
        found.note(f"listed {part} pictures that are not there", list(listed))
    return found
