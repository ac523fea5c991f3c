"""Whole layers silenced one at a time: passed by, or at their mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from camlucida import taps
from camlucida.errors import LayerError
from camlucida.images.datasets import Example
from camlucida.images.read import MAX_PIXELS
from camlucida.maps import schedule
from camlucida.maps.perturbation import laid
from camlucida.networks.network import Network, logits_of
from camlucida.probes.ablation import Ablation, Tally, layer_of, means, nothing, of_truth, pictures


def ablate_layers(
    network: Network,
    examples: Sequence[Example],
    layers: Sequence[str] | None = None,
    *,
    batch: int = 64,
    workers: int = 2,
    max_pixels: int = MAX_PIXELS,
    done: Callable[[int], None] = lambda pictures: None,
) -> Ablation:
    """Silences whole layers, one at a time: passed by (`identity`) where what a layer is given has the shape of what it
    gives, else each of its units at its `mean` over all pictures and cells. Where nothing passes by a layer at its mean,
    nothing of the picture is left above it, and it is `blind`.

    `layers`: modules by name; None: every one with weights but the last, and every group of them that can be passed by,
    as the blocks of a residual network. Those that cannot be silenced are in `refused`; raises LayerError where none can.
    """
    rejected: dict[str, str] = {}

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        return pictures(network, examples, batch, workers, max_pixels, rejected)

    first = next(batches(), None)
    if first is None:
        raise nothing(rejected)
    put, refused = _puts(network, first[0][:1], layers)
    if not put:
        raise LayerError(*refused.values()) if len(refused) == 1 else LayerError(
            "no layer can be silenced", got="; ".join(refused.values()) or "no layer with weights but the last"
        )  # fmt: skip
    fills = means(network, batches(), [name for name, how in put.items() if how == "mean"])
    with taps.borrowed(network.module), taps.Footprint() as footprint:
        network.run(laid(first[0][:1]), [])
    tally, said_first = Tally(), dict[str, Tensor]()
    blind = np.ones(len(put), bool)
    for pixels, truth in batches():
        with taps.borrowed(network.module):
            logits = logits_of(network.run(laid(pixels), []).output).float()
            said = [torch.empty(len(pixels), len(put), device=logits.device) for _ in range(3)]
            for i, name in enumerate(put):
                after = _in_chunks(network, pixels, name, fills.get(name), footprint.peak)
                same = torch.allclose(after, said_first.setdefault(name, after[:1]), rtol=1e-4, atol=1e-5)
                blind[i] &= same
                for one, found in zip(said, of_truth(network, after, truth), strict=True):
                    one[:, i] = found.float()
        tally.add(network, logits, truth, said)
        done(len(pixels))
    blind &= tally.count > 1
    return tally.result(network, rejected, [*put], [*put.values()], blind, refused=refused)


def _in_chunks(network: Network, pixels: Tensor, name: str, mean: Tensor | None, bytes_each: int) -> Tensor:
    parts: dict[int, Tensor] = {}

    def ablate(part: slice) -> None:
        parts[part.start] = _without(network, pixels[part], name, mean)

    with taps.channels_last(network.module):
        schedule.run("ablation", len(pixels), ablate, bytes_each=bytes_each, device=pixels.device)
    return torch.cat([parts[start] for start in sorted(parts)])


def _without(network: Network, pixels: Tensor, name: str, mean: Tensor | None) -> Tensor:
    """The logits without a layer: passed by, or with each unit at its `mean`."""
    if mean is None:
        with taps.bypassed(network.module, name):
            return logits_of(network.forward(laid(pixels))).float()
    layer = layer_of(network, name, pixels)

    def put(value: Tensor) -> Tensor:
        copies = value.clone()
        cells = layer.cells(copies)
        cells[:] = mean.to(copies.dtype).view(-1, *(1,) * (cells.ndim - 2))
        return copies

    return logits_of(network.run(laid(pixels), (), instead={layer.point: put}).output).float()


def _puts(
    network: Network, pixels: Tensor, layers: Sequence[str] | None
) -> tuple[dict[str, str], dict[str, str]]:
    """What each layer is silenced by, and why others cannot be; tried on one picture."""
    parts = dict(network.module.named_modules())
    weighted = {n for n, m in parts.items() if any(p.ndim > 1 for p in m.parameters(recurse=False))}
    with taps.borrowed(network.module):
        ran = [
            *dict.fromkeys(
                point.name for point in taps.trace(network.module, network.forward, pixels).modules
            )
        ]
        leaves = [name for name in ran if name in weighted]
        groups = {
            n for n in ran if n not in weighted and sum(leaf.startswith(f"{n}.") for leaf in leaves) > 1
        }
        asked = (
            [n for n in ran if n in {*leaves[:-1], *groups}] if layers is None else [*dict.fromkeys(layers)]
        )
        put: dict[str, str] = {}
        refused: dict[str, str] = {}
        for name in asked:
            for how in ("identity", "mean"):
                try:
                    if how == "mean":
                        layer_of(network, name, pixels)
                    else:
                        _without(network, pixels, name, None)
                except LayerError as error:
                    refused[name] = str(error)
                    continue
                put[name] = how
                refused.pop(name, None)
                break
            if layers is None and name in groups and put.get(name) != "identity":
                put.pop(name, None)
                refused.pop(name, None)
    return put, refused
