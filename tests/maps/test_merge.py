"""Several views of one picture: what each is, and their mean in the picture's own frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from camlucida.errors import UsageError
from camlucida.images.views import Preprocessing
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
    """Zooms, a mirror image and a crop, which did not look everywhere: the mean is over those that did; cells, and
    places of an occluder."""
    whole, zoomed = View.whole(SOURCE, Size(15, 22)), View.whole(SOURCE, Size(24, 35), flip=True)
    cropped = View(SOURCE, Size(15, 22), (2, 3, 11, 13), flip=True)
    maps = [
        heat(random(2, 3, 5, 7, seed=i), view) for i, view in enumerate((whole, zoomed, cropped, cropped))
    ]
    places = Grid((15, 22), (2.0, 2.0), (3.0, 3.0), (4.0, 4.0), "places")
    maps.append(replace(heat(random(2, 3, 4, 7, seed=9), whole), grid=places))
    found = merge(maps, limit)
    for i in range(2):
        total = torch.stack([one.in_source(limit)[i].double() for one in maps]).sum(0)
        ones = [replace(one, values=torch.ones_like(one.values), grid=maps[0].grid) for one in maps]
        slow = total / torch.stack([one.in_source(limit)[i].double() for one in ones]).sum(0)
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
    found = Views.parse(spec)
    assert (found.zooms, found.flip, str(found)) == (zooms, flip, back)
    assert Views.parse(str(found)) == found
    shape = Preprocessing(size=22)
    expected = [
        shape.view(SOURCE, "whole", z, f) for z in zooms for f in ([False, True] if flip else [False])
    ]
    assert list(found.of(SOURCE, shape)) == expected
    assert found.count == len(expected)
    assert found.how == "mean"


@pytest.mark.parametrize("spec", ["flop", "0", "11", "1+nan", "-1", "flip+x", "ten-crop+flip", "crops+0.5"])
def test_words_that_are_no_views(spec):
    with pytest.raises(UsageError, match="views; got"):
        Views.parse(spec)


def test_no_zoom_at_all():
    with pytest.raises(UsageError, match="zooms in"):
        Views(())


def test_the_mean_keeps_the_sign():
    view = View.whole(SOURCE)
    found = merge([heat(torch.full((1, 1, 2, 2), -3.0), view), heat(torch.full((1, 1, 2, 2), 1.0), view)])
    np.testing.assert_allclose(found[0], -1.0)


@pytest.mark.parametrize("spec", ["ten-crop", "Crops"])
def test_ten_crops_as_released(spec):
    """256 squashed, 224 cut: the offsets are 0, 16 and 32."""
    views = Views.parse(spec)
    found = views.of(SOURCE, Preprocessing(size=256, crop=224))
    corners = [(0, 0), (0, 32), (32, 0), (32, 32), (16, 16)]
    assert [(v.crop, v.flip) for v in found] == [
        ((t, s, 224, 224), f) for f in (False, True) for t, s in corners
    ]
    assert {(v.source, v.resized) for v in found} == {(SOURCE, Size(256, 256))}
    assert views.count == 10
    assert str(views) == spec.lower()
    assert Views.parse(str(views)) == views


def test_ten_crops_keep_the_ratio_around_another_side():
    found = Views.parse("crops").of(SOURCE, Preprocessing(size=96))
    assert found[3] == View(SOURCE, Size(110, 110), (14, 14, 96, 96))
    assert Views.parse("crops").of(SOURCE, Preprocessing(size=16, minimum=64))[0].size == Size(64, 64)


def pasted(crops: list[tuple[torch.Tensor, View]]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of absolute values, and mean over the crops that cover a pixel, on the canvas, pixel by pixel."""
    side = crops[0][1].resized.height
    absolute, total, count = (np.zeros((side, side)) for _ in range(3))
    for grid, view in crops:
        top, left, height, width = view.crop
        up = F.interpolate(grid[None, None].double(), (height, width), mode="bilinear", align_corners=False)[
            0, 0
        ]
        up = up.flip(1) if view.flip else up
        for y in range(height):
            for x in range(width):
                value = float(up[y, x])
                absolute[top + y, left + x] += abs(value)
                total[top + y, left + x] += value
                count[top + y, left + x] += 1
    return absolute, total / count


def test_ten_crops_are_pasted_where_they_were_cut():
    source = Size(32, 32)
    views = Views.parse("ten-crop").of(source, Preprocessing(size=28))
    grids = [random(4, 5, seed=i) for i in range(10)]
    absolute, mean = pasted(list(zip(grids, views, strict=True)))
    maps = [heat(g[None, None], v) for g, v in zip(grids, views, strict=True)]
    np.testing.assert_allclose(merge(maps, how="absolute")[0][0], absolute, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(merge(maps)[0][0], mean, rtol=1e-4, atol=1e-5)
    assert absolute.argmax() != np.abs(mean).argmax()


def test_crops_of_a_picture_that_is_no_square_lie_in_its_own_pixels():
    source = Size(30, 60)
    views = Views.parse("crops").of(source, Preprocessing(size=28))
    maps = [heat(torch.full((1, 1, 2, 2), float(i)), v) for i, v in enumerate(views)]
    found = merge(maps)[0][0]
    assert found.shape == (30, 60)
    # the corner pixel is in the crop of that corner and its mirror alone; the centre is in all
    corners = [found[0, 0], found[0, -1], found[-1, 0], found[-1, -1]]
    np.testing.assert_allclose(corners, [(0 + 5) / 2, (1 + 6) / 2, (2 + 7) / 2, (3 + 8) / 2], atol=1e-5)
    np.testing.assert_allclose(found[15, 30], np.mean(range(10)), atol=1e-5)
