"""Batches for training: which pictures come when, and how each is shown, as a function of seed, epoch and index."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from camlucida.errors import InputError
from camlucida.images.augment import colour_shift, random_view
from camlucida.images.datasets import DataSet
from camlucida.images.read import read_picture
from camlucida.images.views import Preprocessing
from camlucida.train.recipe import Recipe
from camlucida.values import Size

Item = tuple[int, Tensor | str, int]


class Order(Sampler[list[tuple[int, int]]]):
    """Batches of `(epoch, index)`: a new permutation every epoch; process `rank` of `world` takes every world-th batch
    entry, padded by repeating so that all processes make equally many steps. `skip` steps are left out, for resuming."""

    def __init__(self, length: int, batch: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.length, self.batch, self.seed, self.rank, self.world = length, batch, seed, rank, world
        self.epoch, self.skip = 0, 0

    def __len__(self) -> int:
        return -(-self.length // self.batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        for step in range(self.skip, len(self)):
            chunk = order[step * self.batch : (step + 1) * self.batch]
            share = np.resize(chunk, -(-len(chunk) // self.world) * self.world)[self.rank :: self.world]
            yield [(self.epoch, int(i)) for i in share]


class TrainingPictures(Dataset[Item]):
    """`(index, uint8 (3, size, size), label)`, augmented; a broken picture gives its reason in place of pixels."""

    def __init__(self, data: DataSet, recipe: Recipe) -> None:
        self.data, self.recipe = data, recipe

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, index = key
        example = self.data.examples[index]
        rng = np.random.default_rng([self.recipe.seed, epoch, index])
        try:
            picture = read_picture(example.source.read())
        except InputError as error:
            return index, f"{example.source.name}: {error}", example.label
        view = random_view(
            rng, Size(picture.height, picture.width), self.recipe.size_at(epoch), self.recipe.augmentation
        )
        pixels = colour_shift(rng, np.asarray(view.show(picture)), self.recipe.augmentation)
        return index, torch.from_numpy(np.moveaxis(pixels, -1, 0).copy()), example.label


class PlainPictures(Dataset[Item]):
    """The same without augmentation, through the card's view cut to a square."""

    def __init__(self, data: DataSet, shape: Preprocessing) -> None:
        self.data, self.shape = data, shape

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Item:
        example = self.data.examples[index]
        try:
            picture = read_picture(example.source.read(), self.shape.mean_colour)
        except InputError as error:
            return index, f"{example.source.name}: {error}", example.label
        return (
            index,
            self.shape.pixels(picture, self.shape.view(Size(picture.height, picture.width), "card")),
            example.label,
        )


def collate(items: list[Item]) -> tuple[Tensor, Tensor, list[str]]:
    """uint8 pixels, labels, and the reasons of pictures that were left out."""
    good = [item for item in items if isinstance(item[1], Tensor)]
    pixels = torch.stack([item[1] for item in good]) if good else torch.empty(0, 3, 1, 1, dtype=torch.uint8)  # type: ignore[misc]
    return (
        pixels,
        torch.tensor([item[2] for item in good], dtype=torch.int64),
        [item[1] for item in items if isinstance(item[1], str)],
    )


def loader(data: Dataset, order: Sampler | None, batch: int, workers: int) -> DataLoader:
    """A loader over `order` (training) or straight through (`order=None`)."""
    # A generator of its own: starting an epoch must not move the random state that dropout draws from.
    common: dict[str, Any] = {
        "num_workers": workers,
        "collate_fn": collate,
        "generator": torch.Generator(),
        "persistent_workers": workers > 0,
        "pin_memory": torch.cuda.is_available(),
        "prefetch_factor": 4 if workers else None,
    }
    return (
        DataLoader(data, batch_sampler=order, **common)
        if order is not None
        else DataLoader(data, batch_size=batch, **common)
    )
