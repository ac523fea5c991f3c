"""Units of one layer silenced one at a time: what is kept of the layer goes through what lies above it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from camlucida import taps
from camlucida.errors import UsageError
from camlucida.images.datasets import Example
from camlucida.images.read import MAX_PIXELS
from camlucida.maps import schedule
from camlucida.maps.ablation_cam import FAILS
from camlucida.maps.perturbation import laid, pictures_and
from camlucida.networks.network import Network, logits_of
from camlucida.networks.structure import Head, Layer
from camlucida.probes.ablation import Ablation, Tally, layer_of, means, of_truth, pictures

Put = Literal["zero", "mean"]


def ablate_units(
    network: Network,
    examples: Sequence[Example],
    layer: str | None = None,
    units: Sequence[int] | None = None,
    *,
    value: Put = "zero",
    batch: int = 64,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    done: Callable[[int], None] = lambda pictures: None,
) -> Ablation:
    """Silences one unit (channel) of a layer after another on pictures whose labels are the network's, through the card's
    view. `layer`: of maps, tokens, or fully connected; None: the one before pooling. `value`: `zero`, or the unit's
    `mean` over all pictures and cells. `done` hears how many pictures are through.

    The layer's activation is kept and only what lies above runs again, for a chunk of units and pictures at once; before a
    head of pooling and one linear layer, in closed form. Where something passes by the layer, as in a residual block, what
    lies below runs once a chunk for each picture; where what is joined higher up cannot be shared, all of the network
    runs. Raises LayerError for a layer that is not there or has no units, UsageError for a unit that it has not.
    """
    if value not in ("zero", "mean"):
        raise UsageError("value", got=repr(value), allowed="zero | mean")
    rejected: dict[str, str] = {}

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        return pictures(network, examples, batch, workers, max_pixels, rejected)

    fills = means(network, batches(), [layer]) if value == "mean" else {}
    tally, ways = Tally(), dict[tuple[int, ...], _Way]()
    chosen: list[int] = []
    name = ""
    for pixels, truth in batches():
        with taps.borrowed(network.module):
            where = layer_of(network, name or layer, pixels)  # the first batch's, for all shapes
            chosen, name = _units(where, units), where.name
            fill = fills.get(layer, torch.zeros(where.channels, dtype=torch.float64)).to(network.device)
            run = network.run(laid(pixels), [where.point])
            intact = _Intact(
                network, where, pixels, logits_of(run.output).float(), run.tapped[where.point], fill
            )
            head, shape = _head_at(network, where, pixels), tuple(pixels.shape[1:])
            if head is None and shape not in ways:
                ways[shape] = _way(intact)
            said = _judge(intact, truth, torch.tensor(chosen, device=network.device), head or ways[shape])
        tally.add(network, intact.logits, truth, said)
        done(len(pixels))
    return tally.result(network, rejected, chosen, [value] * len(chosen), layer=name)


def _units(layer: Layer, units: Sequence[int] | None) -> list[int]:
    chosen = [*range(layer.channels)] if units is None else [*dict.fromkeys(units)]
    if not chosen or min(chosen) < 0 or max(chosen) >= layer.channels:
        wrong = ", ".join(str(u) for u in chosen if not 0 <= u < layer.channels) or "none"
        raise UsageError(f"units of {layer.name}", got=wrong, allowed=f"0 to {layer.channels - 1}")
    return chosen


@dataclass(frozen=True)
class _Intact:
    """A batch that went through as it is: its `logits (N, C)` and what the layer gave, `kept`; `fill (channels,)`: what
    silenced units are set to."""

    network: Network
    layer: Layer
    pixels: Tensor
    logits: Tensor
    kept: Tensor
    fill: Tensor

    def silenced(
        self, rows: Tensor, unit: Tensor, below: Tensor, reached: Callable[[], None] = lambda: None
    ) -> Tensor:
        """The logits `(R, C)` of the pictures `rows`, each with one `unit` of the layer at its fill; `below`: what runs
        under the layer meanwhile. `reached` is called there."""

        def put(value: Tensor) -> Tensor:
            reached()
            copies = self.kept[rows]
            cells = self.layer.cells(copies)
            new = self.fill[unit].to(copies.dtype).view(-1, *(1,) * (cells.ndim - 2))
            cells[torch.arange(len(rows), device=rows.device), unit] = new
            return copies

        run = self.network.run(laid(below), (), instead={self.layer.point: put})
        return logits_of(run.output).float()

    def in_closed_form(self, rows: Tensor, unit: Tensor, head: Head) -> Tensor:
        """The same at the layer before the head: each logit loses its weight times what the pooled unit loses."""
        cells = self.layer.cells(self.kept)
        weight, pooled = head.linear(cells)[0][0], head.pooled(cells)
        gone = pooled[rows, unit] - self.fill[unit].float()
        return self.logits[rows] - weight.T[unit] * gone[:, None]


@dataclass(frozen=True)
class _Way:
    """How what lies above a layer runs again. `below`: what runs under it meanwhile: `any` one picture, where nothing
    passes by the layer; the `own` picture of all copies; or `all` pictures. `bytes_each`: what a copy takes."""

    below: Literal["any", "own", "all"]
    bytes_each: int


def _judge(intact: _Intact, truth: Tensor, chosen: Tensor, how: _Way | Head) -> list[Tensor]:
    """Right, logit and probability of the true class `(N, units)` each."""
    count, device = len(intact.pixels), intact.logits.device
    said = [torch.empty(count, len(chosen), device=device) for _ in range(3)]
    picture, place = pictures_and((count, len(chosen)), device)

    def ablate(part: slice) -> None:
        rows, unit = picture[part], chosen[place[part]]
        if isinstance(how, Head):
            after = intact.in_closed_form(rows, unit, how)
        elif how.below == "own":
            each = [(rows == n, intact.pixels[n : n + 1]) for n in rows.unique().tolist()]  # rows rise
            after = torch.cat([intact.silenced(rows[of], unit[of], own) for of, own in each])
        else:
            below = intact.pixels[:1] if how.below == "any" else intact.pixels[rows]
            after = intact.silenced(rows, unit, below)
        for one, found in zip(said, of_truth(intact.network, after, truth[rows]), strict=True):
            one[rows, place[part]] = found.float()

    each = 12 * intact.logits.shape[1] if isinstance(how, Head) else how.bytes_each
    with taps.channels_last(intact.network.module):
        schedule.run("ablation", len(picture), ablate, bytes_each=each, device=device, pictures=count)
    return said


def _way(intact: _Intact) -> _Way:
    """The cheapest way that gives what running everything gives, tried on two units of a picture: over the picture itself
    alone, then over noise in its place, which must not show: as little as rounding, beside what the network says of noise."""
    pixels, channels = intact.pixels, intact.layer.channels
    rows = torch.zeros(2, dtype=torch.int64, device=pixels.device)
    unit = torch.arange(2, device=pixels.device) % channels
    loud = replace(intact, fill=intact.kept.float().abs().amax().double().expand(channels))
    start = 0

    def reached() -> None:
        nonlocal start
        start = footprint.peak = footprint.now

    with taps.Footprint() as footprint:
        whole = loud.silenced(rows, unit, pixels[rows])
    best = _Way("all", max(1, footprint.peak // 2))
    noise = torch.randn(pixels[:1].shape, generator=torch.Generator().manual_seed(0)).to(pixels)
    eps, scale = torch.finfo(intact.kept.dtype).eps, float(whole.abs().max())
    other = logits_of(intact.network.run(noise, []).output).float()
    near = eps**0.5 * float((other - intact.logits[:1]).abs().max()) + 64 * eps * scale
    ways: tuple[tuple[Literal["own", "any"], Tensor], ...] = (("own", pixels[:1]), ("any", noise))
    for below, given in ways:
        with taps.Footprint() as footprint:
            try:
                found = loud.silenced(rows, unit, given, reached)
            except FAILS:
                break
        if found.shape != whole.shape or not torch.allclose(found, whole, rtol=0, atol=near):
            break
        best = _Way(below, max(1, (footprint.peak - start) // 2))
    return best


def _head_at(network: Network, layer: Layer, pixels: Tensor) -> Head | None:
    """The head of pooling and one linear layer, where this is the layer before it."""
    found = network.structure(pixels)
    at = found.features is not None and layer.point == found.features.point
    return found.head if at and found.head is not None and found.head.is_exact else None
