"""Data sets of torchvision, and any map-style data set of (picture, class index), as labelled pictures."""

from __future__ import annotations

import inspect
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from camlucida.errors import InputError, UsageError, nearest
from camlucida.images.annotated import Annotated, Found
from camlucida.images.read import read_picture
from camlucida.images.sources import Source

# One picture and one class an item. Not here: those with readers of our own for their boxes (VOC, COCO, ImageNet), and
# LSUN, whose files hold code.
CLASSES = (
    "CIFAR10", "CIFAR100", "CLEVRClassification", "Caltech101", "Caltech256", "Country211", "DTD", "EuroSAT", "FER2013",
    "FGVCAircraft", "FakeData", "FashionMNIST", "Flowers102", "Food101", "GTSRB", "ImageFolder", "Imagenette", "KMNIST",
    "MNIST", "OxfordIIITPet", "PCAM", "Places365", "RenderedSST2", "SEMEION", "STL10", "SUN397", "SVHN", "StanfordCars",
    "USPS",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Held(Source):
    """A picture that only its data set can make."""

    dataset: Any = field(default=None, compare=False, repr=False)
    index: int = 0

    def read(self) -> bytes:
        """The picture, encoded without loss. Raises InputError."""
        try:
            picture = self.dataset[self.index][0]
        except Exception as error:  # a data set may raise anything
            raise InputError(f"cannot read: {type(error).__name__}: {error}") from error
        file = io.BytesIO()
        read_picture(picture).save(file, "BMP")
        return file.getvalue()


def load(given: str, subset: str | None) -> Found:
    """`torchvision:NAME:ROOT`, never downloaded; `subset` goes to the class as `split` or `train`."""
    import torchvision.datasets

    _, name, root = [*given.split(":", 2), "", ""][:3]
    if name not in CLASSES or (not root and name != "FakeData"):
        raise UsageError(f"{given}: torchvision:NAME:ROOT", do=nearest(name, CLASSES))
    kind = getattr(torchvision.datasets, name)
    takes = inspect.signature(kind).parameters
    options: dict[str, Any] = {}
    if subset is not None:
        if "split" in takes:
            options["split"] = subset
        elif "train" in takes and subset in ("train", "test"):
            options["train"] = subset == "train"
        else:
            allowed = "train, test" if "train" in takes else "no published split is known there"
            raise UsageError(f"subset {subset!r} of {given}", allowed=allowed)
    try:
        dataset = kind(root, **options) if "root" in takes else kind(**options)
    except Exception as error:  # each class of torchvision complains in its own way
        raise UsageError(f"cannot open {given}", got=str(error) or type(error).__name__) from error
    found = adapted(dataset, given, (subset,) if subset else ())
    if subset is None and ("split" in takes or "train" in takes):
        word = "split" if "split" in takes else "train"
        found.notes.append(f"{given}: torchvision's own {word} {takes[word].default!r}")
    return found


def adapted(dataset: Any, name: str | None = None, subsets: tuple[str, ...] = ()) -> Found:
    """Any map-style data set of (picture, class index). Its own `classes` or `categories` name the classes. Files are
    read as files; other pictures are asked of the data set, each time."""
    name = name or type(dataset).__name__
    targets, paths = _targets(dataset, name), _paths(dataset)
    found = Found(subsets=set(subsets))
    classes = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or []
    found.names = {str(i): str(label) for i, label in enumerate(classes)}
    found.classes = {str(i) for i in range(max(len(classes), max(targets, default=-1) + 1))}
    unlabelled = []
    for i, target in enumerate(targets):
        if target < 0:
            unlabelled.append(str(i))
            continue
        if paths:
            source = Source(paths[i], _below(paths[i], dataset), paths[i])
        else:
            source = Held(f"{name}/{i:07d}", f"{i:07d}", name, str(i), dataset=dataset, index=i)
        found.pictures.append(Annotated(source, (str(target),), subsets=subsets))
    found.note(f"pictures of {name} without label, left out", unlabelled)
    return found


def _below(path: str, dataset: Any) -> str:
    root = os.path.join(getattr(dataset, "root", "") or "", "")
    return Path(path.removeprefix(root)).as_posix()


def _targets(dataset: Any, name: str) -> list[int]:
    """All class indices, without decoding the pictures where the data set keeps a list of them."""
    count = len(dataset)
    if getattr(dataset, "target_transform", None) is None:
        for attribute in ("targets", "labels", "_labels", "y", "samples", "_samples"):
            kept = getattr(dataset, attribute, None)
            if kept is None or not hasattr(kept, "__len__") or len(kept) != count:
                continue
            try:
                return [_index(one[1] if attribute.endswith("samples") else one) for one in kept]
            except (TypeError, ValueError, IndexError):
                continue  # something else is called so
    try:
        return [_index(dataset[i][1]) for i in range(count)]
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise UsageError(
            f"{name}: items that are not (picture, class index)", got=str(error), do="write a manifest"
        ) from error


def _index(target: Any) -> int:
    if isinstance(target, (str, float, dict)) or int(target) != target:
        raise ValueError(f"{target!r} is no class index")
    return int(target)


def _paths(dataset: Any) -> list[str] | None:
    for attribute in ("samples", "imgs", "_samples", "_image_files", "_images"):
        kept = getattr(dataset, attribute, None)
        if not isinstance(kept, (list, tuple)) or len(kept) != len(dataset):
            continue
        paths = [one[0] if isinstance(one, tuple) else one for one in kept]
        if all(isinstance(path, (str, Path)) for path in paths):
            return [str(path) for path in paths]
    return None
