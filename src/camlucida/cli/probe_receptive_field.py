"""What each layer's units see of the picture: size, stride and offset of their receptive fields, by recurrence over the graph.

camlucida probe receptive-field --out fields/                                  every layer of the network in the package
camlucida probe receptive-field --network vgg-d --weights none --out fields/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from camlucida.cli import probing


@dataclass(frozen=True, kw_only=True)
class Options(probing.Common):
    layers: str | None = None
    """Layers with commas between; by default all."""


def run(options: Options, command: Sequence[str]) -> int:
    from camlucida.cli import choices
    from camlucida.report.probe_folder import ProbeFolder
    from camlucida.report.probe_page import Page, Section, Table

    folder = ProbeFolder.open(options.out, "receptive-field", command, overwrite=options.overwrite)
    net = choices.network(options.network)
    shown = probing.layers_of(net, options.layers) if options.layers else net.layers()
    rows = [
        {
            "layer": one.name, "channels": one.channels, "cells": " × ".join(map(str, one.size)),
            "stride": one.stride and one.stride[0], "offset": one.offset and one.offset[0],
            "field": one.receptive_field and one.receptive_field[0],
        }
        for one in shown
    ]  # fmt: skip
    folder.table("layers", rows)
    last = rows[-1]
    finding = f"A unit of {last['layer']} sees {last['field'] or 'an unknown number of'} pixels a side."
    page = Page(
        "What the units of each layer see", finding, [("Network", net.card.name), ("Layers", str(len(rows)))],
        [Section("Layers", "In pixels of the view.", [Table([*rows[0]], [[*row.values()] for row in rows])])],
    )  # fmt: skip
    return probing.finish(options, folder, page, net, {"layers": rows}, finding)
