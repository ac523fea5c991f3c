"""The pictures that make a unit most active: the best position of each picture, one picture once (section 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Peak:
    """A unit's highest activation in one picture: which picture, the value, and its cell `(row, column)`."""

    picture: int
    value: float
    cell: tuple[int, ...]


@dataclass
class Strongest:
    """Keeps the `top` pictures of every unit of a layer, over batches in any order: highest first, of equals the earlier
    picture. A picture in which a unit has one value everywhere (a ReLU that never opens), or none that is finite, shows
    nothing of it and is left out."""

    top: int
    _found: Tensor | None = field(default=None, repr=False)  # (units, kept, 3): value, −picture, cell
    _sizes: dict[int, tuple[int, ...]] = field(default_factory=dict, repr=False)

    def add(self, positions: Sequence[int], maps: Tensor) -> None:
        """`maps (N, units, *cells)` of the pictures `positions`."""
        self._sizes |= dict.fromkeys(positions, tuple(maps.shape[2:]))
        flat = maps.detach().flatten(2).double()
        value, cell = flat.nan_to_num(-torch.inf, posinf=-torch.inf).max(2)
        value = value.masked_fill((flat.amax(2) == flat.amin(2)) & (flat.shape[2] > 1), -torch.inf).cpu()
        picture = torch.tensor([-p for p in positions], dtype=torch.float64)[:, None].expand(value.shape)
        new = torch.stack([value, picture, cell.cpu().double()], 2).transpose(0, 1)
        every = new if self._found is None else torch.cat([self._found, new], 1)
        order = every[..., 1].argsort(dim=1, descending=True)
        every = every.gather(1, order[..., None].expand(every.shape))
        order = every[..., 0].argsort(dim=1, descending=True, stable=True)[:, : self.top]
        self._found = every.gather(1, order[..., None].expand(-1, -1, 3))

    @property
    def units(self) -> int:
        return 0 if self._found is None else len(self._found)

    def of(self, unit: int) -> tuple[Peak, ...]:
        """The peaks of a unit."""
        rows = [] if self._found is None else self._found[unit].tolist()
        found = []
        for value, picture, cell in rows:
            if value > -torch.inf:
                at = np.unravel_index(int(cell), self._sizes[-int(picture)])
                found.append(Peak(-int(picture), value, tuple(int(a) for a in at)))
        return tuple(found)

    def ranked(self) -> list[int]:
        """Units by their highest activation, highest first; those that no picture shows are left out."""
        if self._found is None or not self._found.shape[1]:
            return []
        best = self._found[:, 0, 0]
        return [u for u in best.argsort(dim=0, descending=True, stable=True).tolist() if best[u] > -torch.inf]
