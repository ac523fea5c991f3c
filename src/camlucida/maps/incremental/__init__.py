"""A network evaluated for many local edits of one picture: only the windows that an edit changes are computed
(section 11.1; Nakandala et al., "Incremental and Approximate Inference", 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from camlucida import taps
from camlucida.errors import UnsupportedError, UsageError
from camlucida.maps.incremental.graph import LocalGraph, local_graph
from camlucida.maps.incremental.runner import Runner
from camlucida.maps.schedule import is_out_of_memory
from camlucida.networks.network import Network, logits_of

CHUNK = 48  # edits in a batch of windows
WHOLE_MAPS = 128  # edits in a batch of whole maps
AGREEMENT = {
    torch.float32: 1e-4,
    torch.float64: 1e-9,
}  # of the largest output, graph against module; else 0.05


class Edits:
    """Outputs of `network` for local edits of one picture `pixels (1, C, H, W)`; use it inside `taps.borrowed`.

    `expected`: the module's own output for the picture. Raises UnsupportedError, with the reason, where the network
    cannot be followed. `words`: how far windows carry. `graph`: another than the whole network's, as `inner.unit_graph`;
    its outputs are then followed, and `expected` is what the module gives there.
    """

    def __init__(
        self, network: Network, pixels: Tensor, expected: Any, graph: LocalGraph | None = None
    ) -> None:
        graph = self.graph = graph or local_graph(network, pixels)
        self.words = graph.words
        self.pixels = network.as_input(pixels)
        wanted = pytree.tree_leaves(expected)
        if not all(bool(t.isfinite().all()) for t in wanted):
            raise UnsupportedError("the output for the intact picture is not finite")
        try:
            self.runner = Runner(graph, self.pixels)
        except RuntimeError as error:
            graph.refused = f"the exported graph does not run: {str(error).splitlines()[0][:150]}"
            raise UnsupportedError(graph.refused) from error
        for one, other in zip(wanted, pytree.tree_leaves(self.runner.output), strict=True):
            off = float((one - other).abs().max()) / (float(one.abs().max()) or 1.0)
            if not off <= AGREEMENT.get(self.pixels.dtype, 0.05):
                graph.refused = f"the exported graph differs from the module by {off:.1g} of its output"
                raise UnsupportedError(graph.refused)

    def outputs(
        self,
        corners: Tensor,
        contents: Tensor,
        *,
        field: float = 1.0,
        chunk: int = CHUNK,
        whole_maps: int = WHOLE_MAPS,
    ) -> Iterator[tuple[Tensor, Any]]:
        """For edits whose top-left pixels are `corners (P, 2)`: positions in that list, in any order, and the
        network's output for them. `contents`: the new pixels, `(C, h, w)` for all or `(P, C, h, w)`. `field` < 1: no
        window wider than that share of its map, an approximation. `chunk`, `whole_maps`: edits in a batch of windows, and
        of whole maps; halved where memory runs out, and what is left is done again."""
        left, contents = torch.arange(len(corners)), contents.to(self.pixels)
        while len(left):
            some = contents if contents.ndim < self.pixels.ndim else contents[left]
            waiting = torch.ones(len(left), dtype=torch.bool)
            run = self.runner.run(corners[left], some, chunk, whole_maps, field)
            try:
                for at, output in run:
                    waiting[at.cpu()] = False
                    yield left.to(at.device)[at], output
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or max(chunk, whole_maps) == 1:
                    raise
                chunk, whole_maps = max(1, chunk // 2), max(1, whole_maps // 2)
            left = left[waiting]


def evaluate(network: Network, pixels: Tensor, corners: Tensor, contents: Tensor) -> Tensor:
    """Logits `(P, classes)` float32 of one picture `pixels (1, C, H, W)` with `contents`, `(C, h, w)` or
    `(P, C, h, w)`, laid at the top-left pixels `corners (P, 2)` (row, column), one edit each. Exact to 1e-4 of the range of
    the logits. Raises UsageError for an edit that leaves the picture, UnsupportedError, with the reason, where the
    network cannot be followed."""
    inside = (
        [pixels.shape[2] - contents.shape[-2], pixels.shape[3] - contents.shape[-1]]
        if pixels.ndim == 4
        else []
    )
    low, high = (corners.amin(0).tolist(), corners.amax(0).tolist()) if corners.numel() else ([0, 0], [0, 0])
    if len(pixels) != 1 or min(low) < 0 or any(h > most for h, most in zip(high, inside, strict=False)):
        raise UsageError(
            "incremental.evaluate",
            got=f"pixels {tuple(pixels.shape)}, corners from {low} to {high}, edits of {tuple(contents.shape[-2:])}",
            allowed=f"one picture (1, C, H, W), corners from [0, 0] to {inside}",
        )
    with taps.borrowed(network.module):
        output = network.forward(pixels)
        edits = Edits(network, pixels, output)
        logits = logits_of(output).float()
        found = logits.new_empty(len(corners), logits.shape[1])
        for at, changed in edits.outputs(corners, contents):
            found[at] = logits_of(changed).float()
    return found
