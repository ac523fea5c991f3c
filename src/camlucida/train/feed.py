"""Batches for training: which pictures come when, and how each is shown, as a function of seed, epoch and index alone.
So workers have no random state to keep, and any number of them, in any number of processes, gives the same pictures."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from camlucida.errors import InputError, UsageError
from camlucida.images.augment import colour_shift, fit_mean_picture, random_view
from camlucida.images.datasets import DataSet, Example
from camlucida.images.read import read_picture
from camlucida.images.views import Preprocessing
from camlucida.train.recipe import Recipe
from camlucida.values import Size

PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process gets when its parent dies
CACHE = 8 * 2**30  # the most memory that decoded pictures take unless told, in bytes
MEAN_OF = 20_000  # pictures that a mean picture is fitted to at most

Truth = int | Tensor
Item = tuple[int, Tensor | str, Truth]


class Batch(NamedTuple):
    """uint8 `pixels (N, 3, H, W)`; `truth (N,)` int64 or `(N, C)` float32; the pictures' indices; those that were left
    out, with their reasons."""

    pixels: Tensor
    truth: Tensor
    indices: list[int]
    rejected: list[tuple[int, str]]


class Order(Sampler[list[tuple[int, int]]]):
    """Batches of `(epoch, index)`: a new permutation every epoch, the same in every process. Process `rank` of `world`
    takes every world-th picture of a batch: shares differ by one at most, and at the end of an epoch some may be empty;
    no picture is left out or comes twice. `skip` steps are left out, for resuming."""

    def __init__(self, length: int, batch: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.length, self.batch, self.seed, self.rank, self.world = length, batch, seed, rank, world
        self.epoch, self.skip = 0, 0

    def __len__(self) -> int:
        return -(-self.length // self.batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        for step in range(self.skip, len(self)):
            share = order[step * self.batch : (step + 1) * self.batch][self.rank :: self.world]
            yield [(self.epoch, int(i)) for i in share]

    def pictures(self, step: int) -> int:
        """How many pictures all processes together have in the epoch's step 0, 1, …"""
        return min(self.batch, self.length - step * self.batch)


class Decoded:
    """Decoded pictures in memory that all workers share: one slot of `budget / pictures` bytes each, filled when a
    picture is first read. A larger picture is decoded anew each time. Memory is taken only as slots are filled."""

    def __init__(self, pictures: int, budget: int) -> None:
        self.slot = budget // max(pictures, 1)
        self.memory = mmap.mmap(-1, max(pictures * self.slot, 1))
        self.sizes = np.frombuffer(mmap.mmap(-1, max(8 * pictures, 1)), np.int32).reshape(-1, 2)

    def read(self, index: int, example: Example) -> Image.Image:
        """Raises InputError."""
        height, width = self.sizes[index]
        if height:
            pixels = np.frombuffer(self.memory, np.uint8, height * width * 3, index * self.slot)
            return Image.fromarray(pixels.reshape(height, width, 3))
        picture = read_picture(example.source.read())
        data = picture.tobytes()
        if len(data) <= self.slot:
            self.memory[index * self.slot : index * self.slot + len(data)] = data
            self.sizes[index] = picture.height, picture.width  # last: a worker that sees it finds the pixels
        return picture

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy for another machine or a spawned worker, where this memory is not: it decodes every time."""
        return Decoded, (len(self.sizes), 0)


def spare_memory() -> int:
    """A quarter of the memory that this process may still take, at most `CACHE`, in bytes."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # systems that do not say
        return 0
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):  # fmt: skip
        group = Path("/sys/fs/cgroup")
        try:
            free = min(free, int((group / limit).read_text()) - int((group / used).read_text()))
        except (OSError, ValueError):  # no limit, or another system
            continue
    return max(0, min(CACHE, free // 4))


def truth_of(example: Example, recipe: Recipe, outputs: int) -> Truth:
    """What the loss compares with: the class, 0 and 1 for each class (`sigmoid`), or the numbers (`regression`)."""
    if recipe.task == "softmax":
        return example.label
    if recipe.task == "sigmoid":
        return torch.zeros(outputs).index_fill_(0, torch.tensor(example.labels, dtype=torch.int64), 1.0)
    return torch.tensor(example.values, dtype=torch.float32)


def outputs(data: DataSet, recipe: Recipe) -> int:
    """How many outputs the network needs. Raises UsageError where the data do not fit the recipe's task."""
    lacking = {"softmax": "labels", "sigmoid": "labels", "regression": "values"}[recipe.task]
    bare = sum(not getattr(example, lacking) for example in data.examples)
    several = recipe.task == "softmax" and sum(len(example.labels) > 1 for example in data.examples)
    if bare or several:
        raise UsageError(
            f"task {recipe.task}",
            got=f"{bare} pictures without {lacking}" if bare else f"{several} pictures with several labels",
            do="task = 'sigmoid' takes several labels a picture, 'regression' numbers",
        )
    if recipe.task != "regression":
        return len(data.labels)
    lengths = {len(example.values) for example in data.examples}
    if len(lengths) > 1:
        raise UsageError(
            "task regression", got=f"{sorted(lengths)} numbers a picture", allowed="as many each"
        )
    return lengths.pop()


class TrainingPictures(Dataset[Item]):
    """`(index, uint8 (3, size, size), truth)`, augmented; a broken picture gives its reason in place of pixels."""

    def __init__(self, data: DataSet, recipe: Recipe, decoded: Decoded | None = None) -> None:
        self.data, self.recipe = data, recipe
        self.outputs = outputs(data, recipe)
        self.decoded = decoded or Decoded(len(data), 0)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        example = self.data.examples[index]
        truth = truth_of(example, self.recipe, self.outputs)
        try:
            picture = self.decoded.read(index, example)
        except InputError as error:
            return index, str(error), truth
        rng = np.random.default_rng([self.recipe.seed, epoch, index])
        source = Size(picture.height, picture.width)
        view = random_view(rng, source, self.recipe.size_at(epoch), self.recipe.augmentation)
        shown = colour_shift(rng, np.asarray(view.show(picture)), self.recipe.augmentation)
        return index, _channels_first(shown), truth


class PlainPictures(Dataset[Item]):
    """The same without augmentation, through the card's view cut to a square; item 0, 1, …"""

    def __init__(self, data: DataSet, recipe: Recipe, shape: Preprocessing) -> None:
        self.data, self.recipe, self.shape = data, recipe, shape
        self.outputs = outputs(data, recipe)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Item:
        example = self.data.examples[index]
        truth = truth_of(example, self.recipe, self.outputs)
        try:
            picture = read_picture(example.source.read(), self.shape.mean_colour)
        except InputError as error:
            return index, str(error), truth
        view = self.shape.view(Size(picture.height, picture.width), "card")
        return index, self.shape.pixels(picture, view), truth


def mean_picture(data: DataSet, decoded: Decoded, shape: Preprocessing) -> NDArray[np.uint8]:
    """The mean of every pixel over the pictures' central squares at the card's size, `MEAN_OF` evenly chosen ones where
    there are more."""

    def squares() -> Iterator[Image.Image]:
        square = replace(shape, crop=shape.size)
        for i in range(0, len(data), -(-len(data) // MEAN_OF)):
            with suppress(InputError):  # named when its turn comes
                picture = decoded.read(i, data.examples[i])
                yield square.view(Size(picture.height, picture.width)).show(picture)

    return fit_mean_picture(squares())


def _channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.moveaxis(pixels, -1, 0).copy())


def collate(items: list[Item]) -> Batch:
    good = [item for item in items if isinstance(item[1], Tensor)]
    pixels = torch.stack([item[1] for item in good]) if good else torch.empty(0, 3, 1, 1, dtype=torch.uint8)  # type: ignore[misc]
    truths = [item[2] for item in good]
    soft = bool(truths) and isinstance(truths[0], Tensor)
    return Batch(
        pixels,
        torch.stack(truths) if soft else torch.tensor(truths, dtype=torch.int64),  # type: ignore[arg-type]
        [item[0] for item in good],
        [(item[0], item[1]) for item in items if isinstance(item[1], str)],
    )


def loader(data: Dataset, order: Iterable[Any], workers: int) -> DataLoader:
    """The batches of `order`, an iterable of lists of keys, read by so many processes (0: by this one)."""
    return DataLoader(
        data,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        # A generator of its own: starting an epoch must not move the random state that dropout draws from.
        generator=torch.Generator(),
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        worker_init_fn=_ready_worker,
    )


def _ready_worker(_: int) -> None:
    """Ctrl-C is the main process's to answer, which still wants the batches of the step it is in. A worker does not
    outlive a run that was killed: it shares the lock on the run's folder, and --resume would find it held."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # So is the first SIGTERM, which `timeout` and schedulers send to every process of a command; a second one ends it.
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
