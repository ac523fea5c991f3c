"""RISE against loops over masks in float64 (section 19)."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

import camlucida as cl
from camlucida.errors import UsageError
from camlucida.maps import rise, schedule
from oracles import maps as oracle
from small_networks import by_axes, fully_connected, gap, pixels

VIEW = (20, 28)


@pytest.mark.parametrize(("s", "p"), [(7, 0.5), (3, 0.2), (1, 0.5), (28, 0.9)])
def test_masks_against_loops(s, p):
    method = cl.RISE(masks=9, s=s, p=p, seed=4)
    cells, shifts = method.drawn(VIEW)
    found = rise.laid_over(cells, shifts, VIEW)
    assert found.shape == (9, *VIEW)
    assert shifts.min() >= 0
    for axis, side in enumerate(VIEW):
        assert shifts[:, axis].max() < -(-side // s)
    for i in range(9):
        wanted = oracle.rise_mask(cells[i].double().numpy(), tuple(shifts[i].tolist()), *VIEW)
        np.testing.assert_allclose(found[i].numpy(), wanted, atol=1e-5)
    assert s == 1 or ((found > 0).any() and (found < 1).any())


def test_cells_are_drawn_with_their_probability_and_shifts_evenly():
    cells, shifts = cl.RISE(masks=4000, s=5, p=0.3).drawn(VIEW)
    assert abs(float(cells.mean()) - 0.3) < 0.01
    for axis, size in enumerate((4, 6)):
        counts = torch.bincount(shifts[:, axis], minlength=size)
        assert len(counts) == size
        assert counts.min() > 0.8 * 4000 / size


def test_against_loops():
    module, x = fully_connected().double(), pixels().double()
    method = cl.RISE(masks=12, s=4, p=0.4, seed=7)
    found = method(cl.wrap(module), x, cl.ClassTarget([[3, 0], [3, 0]]))
    cells, shifts = method.drawn(VIEW)
    masks = [
        oracle.rise_mask(c.double().numpy(), tuple(t.tolist()), *VIEW)
        for c, t in zip(cells, shifts, strict=True)
    ]

    def score(c: int, picture: Tensor) -> float:
        with torch.no_grad():
            return float(module(picture[None])[0, c])

    for n in range(2):
        for k, c in enumerate((3, 0)):
            wanted = torch.from_numpy(oracle.rise(partial(score, c), x[n], masks, 0.4))
            assert float(wanted.std()) > 0
            torch.testing.assert_close(
                found.values[n, k].double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max())
            )


def test_the_seed_is_an_argument():
    net, x = cl.wrap(gap()), pixels()
    found, again, other = (cl.RISE(masks=8, seed=seed)(net, x) for seed in (3, 3, 4))
    assert torch.equal(found.values, again.values)
    assert not torch.allclose(found.values, other.values)
    assert (found.seed, found.method, found.layer) == (3, "rise", None)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert torch.equal(cl.RISE(masks=8, seed=3)(net, x).values, found.values)
    assert torch.equal(torch.get_rng_state(), before)


def test_chunks_across_pictures_add_up():
    net, x = cl.wrap(fully_connected()), pixels(3)
    wanted = cl.RISE(masks=5)(net, x, cl.ClassTarget.top(2)).values
    for memory in (1, 60_000, 130_000):
        with schedule.memory(memory):
            found = cl.RISE(masks=5)(net, x, cl.ClassTarget.top(2)).values
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_a_network_that_reads_one_pixel():
    """The map peaks there: its mask values are all that counts."""

    class OnePixel(torch.nn.Module):
        def forward(self, x):
            return x[:, :2, 11, 17]

    x = torch.ones(1, 3, *VIEW)
    found = cl.RISE(masks=500)(cl.wrap(OnePixel()), x, cl.ClassTarget(0))
    peak = int(found.values[0, 0].argmax())
    row, column = divmod(peak, VIEW[1])
    assert abs(row - 11) <= 2
    assert abs(column - 17) <= 2
    assert torch.equal(found.in_view(), found.values)
    assert found.grid == cl.Grid(VIEW, (0.5, 0.5), (1.0, 1.0), (1.0, 1.0))


@pytest.mark.parametrize("axes", [1, 3])
def test_one_and_three_axes(axes):
    shape = (9, 11, 6)[:axes]
    x = torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(0))
    module, method = by_axes(axes), cl.RISE(masks=6, s=3)
    found = method(cl.wrap(module), x, cl.ClassTarget(1))
    masks = rise.laid_over(*method.drawn(shape), shape)
    with torch.no_grad():
        scores = torch.stack([module(x * m)[:, 1] for m in masks], 1)
    wanted = torch.einsum("ni,i...->n...", scores, masks) / (6 * 0.5)
    torch.testing.assert_close(found.values[:, 0], wanted, rtol=1e-4, atol=1e-6)
    # A mask of three axes is made of lines: along any of them as if it stood alone.
    cells, shifts = method.drawn(shape)
    line = rise.laid_over(torch.ones_like(cells), shifts, shape)
    assert torch.allclose(line, torch.ones_like(line))


@pytest.mark.parametrize("options", [{"masks": 0}, {"s": 0}, {"p": 0.0}, {"p": 1.5}])
def test_what_does_not_fit(options):
    with pytest.raises(UsageError, match="RISE"):
        cl.RISE(**options)
