"""What a unit sees: size, stride and offset of its field by recurrence over the traced graph (section 8)."""

from __future__ import annotations

from camlucida.geometry import Box
from camlucida.networks.structure import Layer


def field_of(layer: Layer, cell: tuple[int, int]) -> Box | None:
    """The receptive field of a cell (row, column) of a layer of a 2-D network, in pixels of the view; it may reach beyond its
    borders. None where the run does not tell (attention, global operations)."""
    if layer.stride is None or layer.offset is None or layer.receptive_field is None or len(layer.size) != 2:
        return None
    (y, x), (h, w) = (
        [o + i * s for o, i, s in zip(layer.offset, cell, layer.stride, strict=True)],
        layer.receptive_field,
    )
    return Box(x - w / 2, y - h / 2, x + w / 2, y + h / 2)
