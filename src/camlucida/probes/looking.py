"""The pictures that a probe looks at, read when they are needed, and a run of the network over all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from camlucida import taps
from camlucida.errors import InputError, UsageError
from camlucida.images import sources
from camlucida.images.read import read_picture
from camlucida.images.sources import Source, payload
from camlucida.networks.network import Network, logits_of
from camlucida.networks.structure import Layer
from camlucida.probes.reading import together
from camlucida.values import Batch

BATCH = 16  # pictures of one shape that go through the network together


@dataclass
class Pictures:
    """Pictures as the network's card shows them (`preprocess(view="card")`), one at a time: `pictures[i]` is a batch of one.
    Only a batch's worth is in memory. `rejected`: position → why it was left out of a run."""

    network: Network
    given: Sequence[Any]
    rejected: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, network: Network, given: Any) -> Pictures:
        """Paths of files, folders and archives, sources, PIL pictures or arrays; or a Batch or pixels `(N, C, H, W)` as they
        are. Raises UsageError where there is none."""
        if isinstance(given, Pictures):
            return given
        if isinstance(given, (Batch, Tensor)):
            batch = Batch.of(given)
            rows = range(len(batch))
            found: list[Any] = [
                Batch(batch.pixels[i : i + 1], batch.views[i : i + 1], batch.preprocessing) for i in rows
            ]
        else:
            if isinstance(given, (str, Path, Image.Image)) or not isinstance(given, Iterable):
                given = [given]
            found = []
            for one in given:
                found += sources.expand([one]).sources if isinstance(one, (str, Path)) else [one]
        if not found:
            raise UsageError("pictures for a probe", got="none", do="check the path")
        return cls(network, found)

    def __len__(self) -> int:
        return len(self.given)

    def __getitem__(self, position: int) -> Batch:
        """Raises InputError for one that cannot be read."""
        one = self.given[position]
        return one if isinstance(one, Batch) else self.network.preprocess(payload(one))

    def first(self) -> Batch:
        """The first that can be read. Raises the first one's InputError where none can."""
        reason: InputError | None = None
        for position in range(len(self)):
            try:
                return self[position]
            except InputError as error:
                reason = reason or InputError(f"{self.name(position)}: {error}")
        assert reason is not None  # there are pictures
        raise reason

    def name(self, position: int) -> str:
        one = self.given[position]
        return one.name if isinstance(one, Source) else f"picture {position + 1}"

    def source(self, position: int) -> Image.Image:
        """The whole picture, upright RGB. Raises InputError."""
        one = self.given[position]
        if isinstance(one, Batch):
            return one.pictures()[0]
        return read_picture(payload(one), self.network.card.preprocessing.mean_colour)

    def batches(self) -> Iterator[tuple[list[int], Batch]]:
        """Positions and the batch of them, pictures of one shape together. Those that cannot be read are `rejected`."""
        for some in together(self._readable(), lambda one: one[1].pixels.shape[1:], BATCH):
            pixels = torch.cat([one.pixels for _, one in some])
            views = tuple(view for _, one in some for view in one.views)
            yield [position for position, _ in some], Batch(pixels, views, some[0][1].preprocessing)

    def _readable(self) -> Iterator[tuple[int, Batch]]:
        for position in range(len(self)):
            try:
                yield position, self[position]
            except InputError as error:
                self.rejected[position] = str(error)


@dataclass(frozen=True)
class Looked:
    """One batch of a run: positions, the layers' maps `(N, channels, *cells)` by name, logits `(N, C)` float32."""

    positions: list[int]
    maps: dict[str, Tensor]
    logits: Tensor


def look(
    pictures: Pictures, layers: Sequence[str | None], heard: Callable[[int], None] | None = None
) -> Iterator[Looked]:
    """One pass over all pictures. `layers`: names; None for the one before pooling. `heard` is told the number of pictures
    of each batch. Raises LayerError, and InputError where no picture could be read."""
    network, seen = pictures.network, 0
    named = {str(name): name for name in layers}
    for positions, batch in pictures.batches():
        found = {key: network.find_layer(name, batch.pixels) for key, name in named.items()}
        named = {key: one.name for key, one in found.items()}  # the first batch's, for all shapes of pictures
        with taps.borrowed(network.module):
            run = network.run(batch.pixels, list(dict.fromkeys(one.point for one in found.values())))
            maps = {name: one.cells(run.tapped[one.point]) for name, one in found.items()}
            looked = Looked(positions, maps, logits_of(run.output).float())
        seen += len(positions)
        yield looked
        if heard:
            heard(len(positions))
    if not seen:
        pictures.first()  # raises


def map_of(pictures: Pictures, position: int, layer: str | None) -> tuple[Layer, Batch, Tensor]:
    """The layer, the batch of one picture, and what the layer gives for it, `(channels, *cells)`."""
    batch = pictures[position]
    found = pictures.network.find_layer(layer, batch.pixels)
    with taps.borrowed(pictures.network.module):
        run = pictures.network.run(batch.pixels, [found.point])
    return found, batch, found.cells(run.tapped[found.point])[0]
