"""What every perturbation method begins with: the target's scores on the intact pictures, and a way to score changed
copies of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from camlucida import taps
from camlucida.maps import schedule
from camlucida.networks.network import Network
from camlucida.networks.structure import Layer
from camlucida.taps import Point
from camlucida.targets import Bound, Output, Target
from camlucida.values import Batch


@dataclass(frozen=True)
class Intact:
    """One run on the pictures as they are: `pixels` where the network is, `scores (N, K)` float32, `logits (N, C)` where
    the output is logits, the tensors `tapped` on the way; `bytes_each`: what one copy of a picture takes in the network,
    measured in this run; `output`: what came out of it."""

    network: Network
    pixels: Tensor
    bound: Bound
    scores: Tensor
    logits: Tensor | None
    tapped: dict[Point, Tensor]
    bytes_each: int
    layers: Mapping[str, Layer]
    output: Output

    def output_of(
        self, shown: Tensor, instead: Mapping[Point, Callable[[Tensor], Tensor]] | None = None
    ) -> Output:
        """The network on changed copies `(rows, C, *spatial)`; `instead`: see `taps.watched`."""
        points = [one.point for one in self.layers.values()]
        run = self.network.run(laid(shown), points, instead=instead)
        return Output(run.output, {n: one.cells(run.tapped[one.point]) for n, one in self.layers.items()})

    def scores_of(self, shown: Tensor, rows: Tensor) -> Tensor:
        """The target's scores `(rows, K)` float32 on changed copies `(rows, C, *spatial)`, of the pictures `rows`."""
        return self.bound.scores(self.output_of(shown), rows).float()

    def each(
        self, what: str, copies: int, work: Callable[[slice], None], *,
        bytes_each: int | None = None, most: int | None = None, passes: float | None = None, unit: str = schedule.PASSES,
    ) -> None:  # fmt: skip
        """`schedule.run` on these pictures; where the network runs, with its weights laid for speed meanwhile."""
        with nullcontext() if passes == 0 else taps.channels_last(self.network.module):
            schedule.run(
                what, copies, work, bytes_each=bytes_each or self.bytes_each, device=self.pixels.device,
                pictures=len(self.pixels), most=most, passes=passes, unit=unit,
            )  # fmt: skip


def intact(network: Network, batch: Batch, target: Target, points: Iterable[Point] = ()) -> Intact:
    """Runs the network on the pictures; call inside `taps.borrowed`. `points`: what to tap besides the target's layers."""
    pixels = batch.pixels.detach().to(network.device)
    layers = {name: network.find_layer(name, pixels) for name in target.layers}
    wanted = dict.fromkeys([*points, *(one.point for one in layers.values())])
    with taps.Footprint() as footprint:
        run = network.run(laid(pixels), wanted)
    output = Output(run.output, {n: one.cells(run.tapped[one.point]) for n, one in layers.items()})
    bound = target.bind(output)
    copy = pixels[0].numel() * max(pixels.element_size(), 4)
    bytes_each = footprint.peak // len(pixels) + 3 * copy  # the copy, its mask, and one on the way
    scores = bound.scores(output, None).float()
    return Intact(network, pixels, bound, scores, output.any_logits(), run.tapped, bytes_each, layers, output)


def laid(pixels: Tensor) -> Tensor:
    """Pictures with their channels last in memory, so that convolutions run faster whatever the layout of the weights."""
    return pixels.contiguous(memory_format=torch.channels_last) if pixels.ndim == 4 else pixels


def pictures_and(shape: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Every pair of a picture and one of its changes, `shape` = how many of each, picture by picture: two index vectors."""
    pictures, each = shape
    jobs = torch.arange(pictures * each, device=device)
    return jobs // each, jobs % each
