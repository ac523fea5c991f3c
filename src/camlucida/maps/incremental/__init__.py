"""A network evaluated for many local edits of one picture: only the windows that an edit changes are computed
(section 11.1; Nakandala et al., "Incremental and Approximate Inference", 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from camlucida.errors import UnsupportedError
from camlucida.maps.incremental.graph import LocalGraph, local_graph
from camlucida.maps.incremental.runner import Runner
from camlucida.networks.network import Network

CHUNK = 48  # edits in a batch of windows
WHOLE_MAPS = 128  # edits in a batch of whole maps
AGREEMENT = 1e-4  # of the largest output: the graph against the module


class Edits:
    """Outputs of `network` for local edits of one picture `pixels (1, C, H, W)`; call it inside `taps.borrowed`.

    `expected`: the module's own output for the picture. Raises UnsupportedError, with the reason, where the network
    cannot be followed.
    """

    def __init__(self, network: Network, pixels: Tensor, expected: Any) -> None:
        self.graph: LocalGraph = local_graph(network, pixels)
        parameter = next((p for p in network.module.parameters() if p.is_floating_point()), pixels)
        self.pixels = pixels.to(parameter.device, parameter.dtype)
        self.runner = Runner(self.graph, self.pixels)
        bound = AGREEMENT if self.pixels.dtype in (torch.float32, torch.float64) else 0.05
        for wanted, found in zip(*(pytree.tree_leaves(o) for o in (expected, self.runner.output)), strict=True):
            off = float((wanted - found).abs().max()) / (float(wanted.abs().max()) or 1.0)
            if not off <= bound:
                raise UnsupportedError(f"the exported graph differs from the module by {off:.1g} of its output")

    def outputs(
        self, corners: Tensor, contents: Tensor, chunk: int = CHUNK, whole_maps: int = WHOLE_MAPS
    ) -> Iterator[tuple[Tensor, Any]]:
        """For edits whose top-left pixels are `corners (P, 2)`: positions in that list, in any order, and the
        network's output for them. `contents`: the new pixels, `(C, h, w)` for all or `(P, C, h, w)`."""
        return self.runner.run(corners, contents.to(self.pixels), chunk, whole_maps)
