"""The strongest pictures of a unit, against a sort of everything."""

import math

import numpy as np
import pytest
import torch
from small_networks import gap, seeded, trunk

from camlucida.errors import LayerError, UsageError
from camlucida.networks.network import Network
from camlucida.probes.top_activations import RunningTop, running, top_activations


def sorted_by_force(activations, k, numbers):
    """For each unit the k best `(value, picture, cell)`, one a picture, by Python's own sort."""
    found = []
    for unit in range(activations.shape[1]):
        entries = []
        for maps, number in zip(activations, numbers, strict=True):
            cells = {cell: float(maps[(unit, *cell)]) for cell in np.ndindex(*maps.shape[1:])}
            value, cell = max((v, tuple(-c for c in cell)) for cell, v in cells.items())
            if math.isfinite(value):
                entries.append((-value, number, tuple(-c for c in cell)))
        found.append(sorted(entries)[:k])
    return found


def listed(top):
    return [
        [
            (-value, picture, tuple(cell))
            for value, picture, cell in zip(values, pictures, cells, strict=True)
            if picture >= 0
        ]
        for values, pictures, cells in zip(
            top.values.tolist(), top.pictures.tolist(), top.cells.tolist(), strict=True
        )
    ]


def rounded(pictures=40, units=7, cells=(3, 5), seed=0, levels=4):
    """Activations of few levels: many ties, among pictures and inside one; a unit that is always silent."""
    values = torch.randint(
        0, levels, (pictures, units, *cells), generator=torch.Generator().manual_seed(seed)
    )
    values[:, 3] = 0
    return values.float()


@pytest.mark.parametrize("cells", [(3, 5), (4,), (2, 3, 2)])
@pytest.mark.parametrize("k", [1, 4, 60])
def test_the_running_top_is_what_a_sort_gives(k, cells):
    for levels in (4, 10**6):
        activations = rounded(cells=cells, levels=levels)
        top = RunningTop.empty(7, k, len(cells))
        for start in range(0, 40, 6):
            assert top.update(activations[start : start + 6], start) == []
        assert listed(top) == sorted_by_force(activations, k, range(40))
