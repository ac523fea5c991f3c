"""Pictures on their way into a network: read ahead by threads, as the card shows them, and put together by shape."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from camlucida.errors import InputError
from camlucida.images.read import MAX_PIXELS, ahead, read_picture
from camlucida.images.sources import name_of, payload
from camlucida.maps.perturbation import laid
from camlucida.networks.network import Network
from camlucida.values import Size

WAITING = 512  # pictures that wait for others of their shape
T = TypeVar("T")
Rejected = tuple[int, str, str]
"""Number, path and reason of a picture that does not count."""


@dataclass(frozen=True)
class Read:
    """A picture as the card shows it: its number in the list, its size in source pixels, and `pixels (C, H, W)` uint8."""

    number: int
    size: Size
    pixels: Tensor


def reading(
    network: Network,
    pictures: Sequence[Any],
    numbers: Iterable[int] | None = None,
    *,
    view: str = "card",
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
) -> Generator[Read | Rejected]:
    """The pictures (sources, paths, PIL pictures or arrays) of these numbers, all by default, in order; by the card's
    `view`, `card` or `whole`. `workers` threads read a few ahead; close it to stop them early."""
    shape = network.card.preprocessing

    def read(number: int) -> Read | Rejected:
        try:
            picture = read_picture(payload(pictures[number]), shape.mean_colour, max_pixels)
        except InputError as error:
            return number, name_of(pictures[number]), str(error)
        size = Size(picture.height, picture.width)
        return Read(number, size, shape.pixels(picture, shape.view(size, view)))

    pool = ThreadPoolExecutor(max(workers, 1))
    try:
        yield from ahead(
            pool, read, range(len(pictures)) if numbers is None else numbers, 2 * max(workers, 1)
        )
    finally:
        pool.shutdown(cancel_futures=True)


def batches(
    reads: Iterable[Read | Rejected],
    most: int,
    rejected: list[Rejected],
    progress: Callable[[int], None] | None = None,
) -> Iterator[list[Read]]:
    """Pictures of one shape, at most so many; those that cannot be read go into `rejected`. `progress` is told how many
    more were read."""

    def usable() -> Iterator[Read]:
        for one in reads:
            if isinstance(one, Read):
                yield one
            else:
                rejected.append(one)
            if progress:
                progress(1)

    return together(usable(), lambda one: one.pixels.shape, most)


def together(given: Iterable[T], shape: Callable[[T], Hashable], most: int) -> Iterator[list[T]]:
    """What is given, by its shape: `most` of one as soon as they are there; fewer at the end, and where too many wait."""
    waiting: dict[Hashable, list[T]] = {}
    for one in given:
        key = shape(one)
        waiting.setdefault(key, []).append(one)
        if len(waiting[key]) == most:
            yield waiting.pop(key)
        elif sum(map(len, waiting.values())) >= WAITING:
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


def pixels_of(network: Network, some: Sequence[Read]) -> Tensor:
    """Pictures of one shape as the network takes them, `(N, C, H, W)`."""
    shown = torch.stack([one.pixels for one in some]).to(network.device)
    return laid(network.card.preprocessing.normalise(shown))
