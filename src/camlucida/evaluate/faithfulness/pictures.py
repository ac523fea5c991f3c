"""Faithfulness over a data set: pictures → batches of one shape → rows, part by part."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from camlucida.errors import InputError
from camlucida.evaluate.faithfulness.explain import Explainer
from camlucida.evaluate.faithfulness.measure import Account, Row, measure
from camlucida.images.read import MAX_PIXELS, read_picture
from camlucida.images.sources import Source
from camlucida.networks.network import Network
from camlucida.values import Batch, Size

PART = 32
"""Pictures that are measured, and saved, together."""


@dataclass(frozen=True)
class Part:
    """What one part of the pictures gave. `Row.picture` counts over all pictures; `rejected`: name and reason."""

    pictures: int
    rows: list[Row]
    rejected: list[tuple[str, str]]


def measure_pictures(
    network: Network,
    explainers: Mapping[str, Explainer],
    sources: Sequence[Source],
    *,
    start: int = 0,
    batch: int = 64,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    account: Account | None = None,
    **options: Any,
) -> Iterator[Part]:
    """`measure` of the predicted classes, on whole pictures as `localize` shows them, in parts of `PART`; from picture number
    `start` on, a multiple of it. `batch`: pictures a forward pass; `options`: of `measure`. Pictures that cannot be read, or
    of which the network says no number, are rejected."""
    account = account if account is not None else Account()
    for first in range(start, len(sources), PART):
        some = sources[first : first + PART]
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            read = [*pool.map(lambda source: read_whole(network, source, max_pixels), some)]
        rejected = [(some[i].name, one) for i, one in enumerate(read) if isinstance(one, str)]
        shapes: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, one in enumerate(read):
            if not isinstance(one, str):
                shapes[tuple(one.pixels.shape[1:])].append(i)
        rows: list[Row] = []
        for members in shapes.values():
            together = _joined(network, [one for i in members if not isinstance(one := read[i], str)])
            found = measure(network, explainers, together, size=batch, account=account, **options)
            spoilt = {row.picture for row in found if not math.isfinite(row.probability)}
            rejected += [
                (some[members[i]].name, "the network says NaN or infinity of it") for i in sorted(spoilt)
            ]
            rows += [
                Row(first + members[row.picture], *_rest(row)) for row in found if row.picture not in spoilt
            ]
        rows.sort(key=lambda row: row.picture)
        yield Part(len(some), rows, rejected)


def _rest(row: Row) -> tuple[Any, ...]:
    return row.class_index, row.probability, row.method, row.metric, row.value, row.curve


def read_whole(network: Network, source: Source, max_pixels: int) -> Batch | str:
    """One picture, whole, as the network sees it; or why not."""
    shape = network.card.preprocessing
    try:
        picture = read_picture(source.read(), shape.mean_colour, max_pixels)
    except InputError as error:
        return str(error)
    view = shape.view(Size(picture.height, picture.width), "whole")
    return Batch(shape.normalise(shape.pixels(picture, view)[None]), (view,), shape)


def _joined(network: Network, each: Sequence[Batch]) -> Batch:
    pixels = torch.cat([one.pixels for one in each]).to(network.device)
    return Batch(pixels, tuple(one.views[0] for one in each), each[0].preprocessing)
