"""Several views of one picture: what each is, and their mean in the picture's own frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from camlucida.errors import UsageError
from camlucida.maps.merge import Views, merge
from camlucida.values import Grid, HeatMaps, Size, View


def heat(values: torch.Tensor, view: View) -> HeatMaps:
    size, cells = view.size, values.shape[2:]
    stride = (size.height / cells[0], size.width / cells[1])
    grid = Grid((size.height, size.width), (stride[0] / 2, stride[1] / 2), stride, stride)
    return HeatMaps(
        values, None, torch.zeros(values.shape[:2]), grid, (view,) * len(values), "by hand", "nothing"
    )


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SOURCE = Size(30, 44)


def test_a_view_and_its_mirror_give_the_mirrored_mean():
    view, mirrored = View.whole(SOURCE, Size(15, 22)), View.whole(SOURCE, Size(15, 22), flip=True)
    one, other = random(2, 3, 5, 7), random(2, 3, 5, 7, seed=1)
    found = merge([heat(one, view), heat(other, mirrored)])
    mean = (one + other.flip(3)) / 2
    expected = F.interpolate(mean, (30, 44), mode="bilinear", align_corners=False)
    assert len(found) == 2
    for i in range(2):
        assert found[i].shape == (3, 30, 44)
        torch.testing.assert_close(found[i], expected[i], rtol=1e-4, atol=1e-5)


def test_zooms_are_laid_over_the_same_picture():
    views = [View.whole(SOURCE, Size(15, 22)), View.whole(SOURCE, Size(30, 44))]
    grids = [random(1, 2, 4, 6), random(1, 2, 8, 12, seed=1)]
    found = merge([heat(g, v) for g, v in zip(grids, views, strict=True)])
    each = [F.interpolate(g, (30, 44), mode="bilinear", align_corners=False) for g in grids]
    torch.testing.assert_close(found[0], ((each[0] + each[1]) / 2)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("limit", [None, 20])
def test_the_product_is_the_mean_of_the_views_laid_over_the_picture_one_by_one(limit):
    """Zooms, a mirror image and a crop, which did not look everywhere; cells, and places of an occluder."""
    whole, zoomed = View.whole(SOURCE, Size(15, 22)), View.whole(SOURCE, Size(24, 35), flip=True)
    cropped = View(SOURCE, Size(15, 22), (2, 3, 11, 13), flip=True)
    maps = [
        heat(random(2, 3, 5, 7, seed=i), view) for i, view in enumerate((whole, zoomed, cropped, cropped))
    ]
    places = Grid((15, 22), (2.0, 2.0), (3.0, 3.0), (4.0, 4.0), "places")
    maps.append(replace(heat(random(2, 3, 4, 7, seed=9), whole), grid=places))
    found = merge(maps, limit)
    for i in range(2):
        slow = torch.stack([one.in_source(limit)[i].double() for one in maps]).mean(0)
        assert float(slow.std()) > 0.1
        torch.testing.assert_close(found[i].double(), slow, rtol=1e-5, atol=1e-6)


def test_one_view_is_itself_and_a_limit_makes_it_coarser():
    values = random(1, 1, 5, 7)
    view = View.whole(SOURCE)
    torch.testing.assert_close(
        merge([heat(values, view)])[0], heat(values, view).in_source()[0], rtol=0, atol=0
    )
    assert merge([heat(values, view)], limit=22)[0].shape == (1, 15, 22)


def test_views_of_other_pictures_do_not_merge():
    with pytest.raises(ValueError, match="zip"):
        merge([heat(random(2, 1, 3, 3), View.whole(SOURCE)), heat(random(1, 1, 3, 3), View.whole(SOURCE))])


@pytest.mark.parametrize(
    ("spec", "zooms", "flip", "back"),
    [
        (1, (1.0,), False, "1"),
        ("1", (1.0,), False, "1"),
        ("", (1.0,), False, "1"),
        ("flip", (1.0,), True, "flip+1"),
        ("Flips", (1.0,), True, "flip+1"),
        ("scales", (1.0, 1.5, 2.0), False, "1+1.5+2"),
        ("flip + scales", (1.0, 1.5, 2.0), True, "flip+1+1.5+2"),
        ("flip+1+1.25", (1.0, 1.25), True, "flip+1+1.25"),
        ("1, 1, 0.5", (1.0, 0.5), False, "1+0.5"),
        (Views((2.0,), True), (2.0,), True, "flip+2"),
    ],
)
def test_words_for_views(spec, zooms, flip, back):
    found = Views.of(spec)
    assert (found.zooms, found.flip, str(found)) == (zooms, flip, back)
    assert Views.of(str(found)) == found
    expected = [(z, f) for z in zooms for f in ([False, True] if flip else [False])]
    assert list(found.each) == expected


@pytest.mark.parametrize("spec", ["flop", "0", "11", "1+nan", "-1", "flip+x"])
def test_words_that_are_no_views(spec):
    with pytest.raises(UsageError, match="views; got"):
        Views.of(spec)


def test_no_zoom_at_all():
    with pytest.raises(UsageError, match="zooms in"):
        Views(())


def test_the_mean_keeps_the_sign():
    view = View.whole(SOURCE)
    found = merge([heat(torch.full((1, 1, 2, 2), -3.0), view), heat(torch.full((1, 1, 2, 2), 1.0), view)])
    np.testing.assert_allclose(found[0], -1.0)
