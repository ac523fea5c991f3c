"""Occlusion against two loops (section 11)."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

import camlucida as cl
from camlucida.errors import UsageError
from oracles import maps as oracle
from small_networks import fully_connected, gap, pixels


def expected(module, x, score, patch, stride, fill) -> torch.Tensor:
    def of(picture: torch.Tensor) -> float:
        with torch.no_grad():
            return float(score(module(picture[None])))

    return torch.stack([torch.from_numpy(oracle.occlusion(of, one, patch, stride, fill)) for one in x])


@pytest.mark.parametrize(("patch", "stride"), [(8, 8), (7, 3), (20, 5), (1, 19), (13, 40)])
@pytest.mark.parametrize("fill", [0.0, -1.5])
def test_against_two_loops(patch, stride, fill):
    module, x = fully_connected().double(), pixels().double()
    found = cl.Occlusion(patch, stride, fill)(cl.wrap(module), x, cl.ClassTarget([[3, 0], [3, 0]]))
    assert found.values.dtype == torch.float32
    assert found.values.shape[2:] == tuple(math.floor((side - patch) / stride) + 1 for side in (20, 28))
    for k, c in enumerate((3, 0)):
        wanted = expected(module, x, lambda z, c=c: z[0, c], patch, stride, fill)
        assert float(wanted.abs().max()) > 1e-4
        torch.testing.assert_close(found.values[:, k].double(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 5, 7, 1000])
def test_the_batch_size_changes_nothing(batch):
    network, x = cl.wrap(fully_connected()), pixels(3)
    base = cl.Occlusion(9, 6)(network, x, cl.ClassTarget.top(2))
    found = cl.Occlusion(9, 6, batch=batch)(network, x, cl.ClassTarget.top(2))
    torch.testing.assert_close(found.values, base.values, rtol=1e-4, atol=1e-6)
    assert found.classes.tolist() == base.classes.tolist()


def test_a_batch_equals_single_runs():
    network, x = cl.wrap(gap()), pixels(3)
    together = cl.Occlusion(9, 6)(network, x, cl.MarginTarget())
    for i in range(3):
        single = cl.Occlusion(9, 6)(network, x[i : i + 1], cl.MarginTarget())
        torch.testing.assert_close(single.values, together.values[i : i + 1], rtol=1e-4, atol=1e-6)


def test_the_predicted_class_is_that_of_the_intact_picture():
    module, x = fully_connected(), pixels()
    found = cl.Occlusion(15, 5, fill=4.0)(cl.wrap(module), x)
    classes = module(x).argmax(1).tolist()
    for i, c in enumerate(classes):
        wanted = expected(module, x[i : i + 1], lambda z, c=c: z[0, c], 15, 5, 4.0)
        torch.testing.assert_close(found.values[i].double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "score"),
    [
        (cl.CallableTarget(lambda out: out.square().sum(1)), lambda z: z.square().sum()),
        (cl.ProbabilityTarget(1), lambda z: z.softmax(1)[0, 1]),
        (cl.MarginTarget(4, 2), lambda z: z[0, 4] - z[0, 2]),
    ],
)
def test_other_targets(target, score):
    module, x = fully_connected().double(), pixels().double()
    found = cl.Occlusion(9, 6, batch=7)(cl.wrap(module), x, target)
    torch.testing.assert_close(
        found.values[:, 0].double(), expected(module, x, score, 9, 6, 0.0), rtol=1e-4, atol=1e-6
    )


def test_a_unit_is_watched_where_it_was_strongest_on_the_intact_picture():
    module, x = gap().double(), pixels().double()
    found = cl.Occlusion(9, 6, batch=4)(cl.wrap(module), x, cl.UnitTarget("features", 2))
    for i in range(2):
        where = int(module.features(x[i : i + 1])[0, 2].argmax())
        with torch.no_grad():
            unit = partial(lambda w, p: float(module.features(p[None])[0, 2].flatten()[w]), where)
            wanted = oracle.occlusion(unit, x[i], 9, 6, 0.0)
        assert abs(wanted).max() > 1e-3
        torch.testing.assert_close(
            found.values[i, 0].double(), torch.from_numpy(wanted), rtol=1e-4, atol=1e-6
        )


def test_only_the_place_that_counts_matters():
    """A network that reads one pixel loses all of it where the patch covers the pixel, and nothing
    elsewhere."""

    class OnePixel(torch.nn.Module):
        def forward(self, x):
            return x[:, :2, 11, 17]

    x = torch.zeros(1, 3, 20, 28)
    x[0, :, 11, 17] = 3.0
    found = cl.Occlusion(patch=6, stride=4)(cl.wrap(OnePixel()), x, cl.ClassTarget.all())
    covered = torch.zeros(4, 6)
    covered[2, 3:5] = 3.0  # rows 8…13; columns 12…17 and 16…21
    assert found.values[0].tolist() == [covered.tolist()] * 2
    view = found.in_view()[0, 0]
    assert view.shape == (20, 28)
    assert view[11, 17] == 3.0
    assert (view[:8] == 0).all()
    assert (found.grid.offset, found.grid.stride, found.grid.extent) == ((3.0, 3.0), (4.0, 4.0), (6.0, 6.0))
    assert found.grid.kind == "places"


def test_one_and_three_axes():
    for shape, cells in (((30,), (4,)), ((12, 14, 16), (1, 1, 2))):
        x = torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(0))
        network = cl.wrap(
            torch.nn.Sequential(torch.nn.Flatten(2), torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten())
        )
        found = cl.Occlusion(patch=12, stride=5 if len(shape) == 1 else 4)(network, x, cl.ClassTarget(1))
        assert found.values.shape == (2, 1, *cells)
        corner = (slice(0, 12),) * len(shape)
        lost = x[(slice(None), 1, *corner)].flatten(1).sum(1) / x[0, 0].numel()
        torch.testing.assert_close(found.values[:, 0].flatten(1)[:, 0], lost, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("options", [{"patch": 21}, {"patch": 0}, {"stride": 0}, {"batch": 0}])
def test_what_does_not_fit(options):
    with pytest.raises(UsageError, match=r"Occlusion; got patch .*allowed: patch 1 … 20"):
        cl.Occlusion(**{"patch": 8, **options})(cl.wrap(gap()), pixels())


def test_the_pixels_are_not_changed():
    x = pixels()
    before = x.clone()
    cl.Occlusion(9, 9, fill=7.0)(cl.wrap(gap()), x)
    assert torch.equal(x, before)
