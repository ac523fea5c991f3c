"""Ablation without training: units, or whole layers, of a trained network are silenced one at a time, and it is counted what
labelled pictures lose by it. (The ZF paper, section 5.1, trains each variant anew: `camlucida train --remove`.)"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from camlucida import taps
from camlucida.errors import LayerError, UsageError
from camlucida.images.datasets import Example
from camlucida.maps.perturbation import laid
from camlucida.metrics import paired_interval
from camlucida.networks.network import Network
from camlucida.networks.structure import Layer
from camlucida.probes.reading import Rejected, batches, pixels_of, reading
from camlucida.taps import Point
from camlucida.values import Label


@dataclass(frozen=True)
class Ablation:
    """What pictures of C classes lose when one of P parts is silenced: units of `layer`, or layers. `put`: what each part
    gave instead of its own: `zero`, `mean`, or `identity` (what it was given).

    Counts over pictures of each class: `pictures (C,)`, `right (C,)` top-1 as the network is, `lost (P, C)` of these with
    the part silenced, `gained (P, C)` of the others. Means over them, NaN where there are none: `logit_drop`,
    `probability_drop (P, C)` of the true class. `blind (P,)`: the output no longer depends on the picture at all.
    `refused`: layers that could not be silenced, `rejected`: pictures, each with the reason.
    """

    parts: tuple[int | str, ...]
    put: tuple[str, ...]
    labels: tuple[Label, ...]
    pictures: NDArray[np.int64]
    right: NDArray[np.int64]
    lost: NDArray[np.int64]
    gained: NDArray[np.int64]
    logit_drop: NDArray[np.float64]
    probability_drop: NDArray[np.float64]
    blind: NDArray[np.bool_]
    layer: str = ""
    refused: tuple[tuple[str, str], ...] = ()
    rejected: tuple[tuple[str, str], ...] = ()

    @property
    def before(self) -> float:
        """Top-1 of the network as it is, a share."""
        return float(self.right.sum() / self.pictures.sum())

    @property
    def change(self) -> NDArray[np.float64]:
        """Of top-1 `(P,)`, a share; below 0 where it falls."""
        return (self.gained - self.lost).sum(1) / self.pictures.sum()

    @property
    def interval(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """95 % interval of `change`, each part alone: ends `(P,)` and `(P,)`."""
        return paired_interval(self.lost.sum(1), self.gained.sum(1), int(self.pictures.sum()))

    @property
    def class_change(self) -> NDArray[np.float64]:
        """Of the accuracy of each class `(P, C)`; NaN for a class without pictures."""
        return _share(self.gained - self.lost, self.pictures)

    @property
    def probability_lost(self) -> NDArray[np.float64]:
        """Mean drop `(P,)` of the true class's probability over all pictures: what parts are ordered by, since it moves
        where top-1 does not yet."""
        return np.nansum(self.probability_drop * self.pictures, 1) / self.pictures.sum()

    @property
    def order(self) -> NDArray[np.int64]:
        """Parts by `probability_lost`, the most first."""
        return np.argsort(-self.probability_lost, kind="stable")

    def falls(self, part: int, most: int = 3) -> list[int]:
        """The classes whose accuracy falls when the part of this index is silenced, the most first."""
        change = np.where(np.isnan(self.class_change[part]), 0, self.class_change[part])
        found = np.lexsort((-np.nan_to_num(self.probability_drop[part]), change))
        return [int(c) for c in found[:most] if change[c] < 0]


def layer_of(network: Network, name: str | None, pixels: Tensor) -> Layer:
    """As `Network.find_layer`, but also a layer that gives one number a unit, such as a fully connected one. Raises
    LayerError."""
    try:
        return network.find_layer(name, pixels)
    except LayerError:
        if not name or name not in dict(network.module.named_modules()):
            raise
        point = Point(name)
        with taps.borrowed(network.module):
            gave = network.run(pixels[:1], [point]).tapped[point]
        if gave.ndim < 2 or gave[0].numel() != gave.shape[1] or gave.shape[1] < 2:
            raise
        return Layer(name, point, gave.shape[1], tuple(gave.shape[2:]), None, None, None, True)


def _share(counts: NDArray, of: NDArray) -> NDArray[np.float64]:
    return np.divide(counts, of, out=np.full(counts.shape, np.nan), where=of > 0)


def nothing(rejected: dict[str, str]) -> UsageError:
    reason = f"; {next(iter(rejected.values()))}" if rejected else ""
    return UsageError("ablation", got=f"no picture that can be read, {len(rejected)} rejected{reason}")


@dataclass
class Tally:
    """Sums over the pictures of each class."""

    count: int = 0
    sums: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, network: Network, logits: Tensor, truth: Tensor, said: Sequence[Tensor]) -> None:
        """`said`: right, logit and probability of the true class, `(N, P)` each, with each part silenced."""
        if int(truth.max()) >= logits.shape[1]:
            raise UsageError(
                "a label", got=int(truth.max()), allowed=f"0 to {logits.shape[1] - 1}, the network's classes"
            )
        right, *numbers = (one.double()[:, None] for one in of_truth(network, logits, truth))
        after, *silenced = (one.double() for one in said)
        columns = [
            torch.ones_like(right), right, right * (1 - after), (1 - right) * after,
            *(before - then for before, then in zip(numbers, silenced, strict=True)),
        ]  # fmt: skip
        per_class = torch.nn.functional.one_hot(truth, logits.shape[1]).double().T
        found = [(per_class @ one).T.cpu().numpy() for one in columns]
        self.sums = [a + b for a, b in zip(self.sums, found, strict=True)] if self.sums else found
        self.count += len(truth)

    def result(
        self, network: Network, rejected: dict[str, str], parts: Sequence[int | str], put: Sequence[str],
        blind: NDArray[np.bool_] | None = None, refused: dict[str, str] | None = None, layer: str = "",
    ) -> Ablation:  # fmt: skip
        if not self.sums:
            raise nothing(rejected)
        pictures, right, lost, gained = (one.round().astype(np.int64) for one in self.sums[:4])
        logit, probability = (_share(one, pictures[0]) for one in self.sums[4:])
        labels = tuple(network.card.label(c) for c in range(len(pictures[0])))
        return Ablation(
            tuple(parts), tuple(put), labels, pictures[0], right[0], lost, gained, logit, probability,
            np.zeros(len(parts), bool) if blind is None else blind, layer, tuple((refused or {}).items()), tuple(rejected.items()),
        )  # fmt: skip


def pictures(
    network: Network, examples: Sequence[Example], batch: int, workers: int, max_pixels: int, rejected: dict[str, str]
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Batches of one shape, as the network wants them, and their labels `(N,)`; what cannot be read goes into `rejected`."""
    if (bare := next((e for e in examples if e.label < 0), None)) is not None:
        raise UsageError(
            "ablation", got=f"{bare.source.name} without a class", allowed="pictures with labels"
        )
    broken: list[Rejected] = []
    sources = [example.source for example in examples]
    with closing(reading(network, sources, workers=workers, max_pixels=max_pixels)) as reads:
        for some in batches(reads, batch, broken):
            truth = torch.tensor([examples[one.number].label for one in some], device=network.device)
            yield pixels_of(network, some), truth
    rejected.update((name, reason) for _, name, reason in broken)


def of_truth(network: Network, logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Whether the true class is the first, its logit and its probability, `(N,)` each."""
    at = truth.clamp(max=logits.shape[1] - 1)[:, None]  # a label beyond is refused by the tally
    own = (one.gather(1, at)[:, 0] for one in (logits, network.probabilities(logits)))
    return (logits.argmax(1) == truth, *own)  # type: ignore[return-value]


def means(
    network: Network, pictures: Iterator[tuple[Tensor, Tensor]], names: Sequence[str | None]
) -> dict[str | None, Tensor]:
    """The mean of each unit `(channels,)` of these layers over all pictures and cells, float64."""
    sums: dict[str | None, Tensor] = {}
    named, cells = {name: name for name in names}, 0
    for pixels, _ in pictures if names else ():
        with taps.borrowed(network.module):
            layers = {name: layer_of(network, called, pixels) for name, called in named.items()}
            named = {name: one.name for name, one in layers.items()}  # the first batch's, for all shapes
            for start in range(0, len(pixels), 8):  # several layers are held at once
                few = pixels[start : start + 8]
                tapped = network.run(laid(few), [one.point for one in layers.values()]).tapped
                for name, one in layers.items():
                    found = one.cells(tapped[one.point]).double()
                    sums[name] = sums.get(name, 0) + found.reshape(*found.shape[:2], -1).mean(2).sum(0)
        cells += len(pixels)
    return {name: total / cells for name, total in sums.items()}
