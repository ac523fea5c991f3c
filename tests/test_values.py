"""Sizes, boxes, views and maps: coordinates through every resize, crop and mirror, on pictures that are not
square."""

from __future__ import annotations

import io
import json
import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from camlucida import render
from camlucida.errors import UsageError
from camlucida.values import Batch, Box, Grid, HeatMaps, ScoredBox, Size, View
from oracles import geometry

LANDSCAPE, PORTRAIT = Size(225, 301), Size(301, 225)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def noise(size: Size, low: int = 0, high: int = 256) -> Image.Image:
    pixels = np.random.default_rng(0).integers(low, high, (size.height, size.width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def heat_maps(values: torch.Tensor, *views: View, grid: Grid | None = None, **fields) -> HeatMaps:
    """Maps over views; their cells cover each view evenly unless a grid is given."""
    if grid is None:
        shape = (views[0].size.height, views[0].size.width)
        stride = tuple(v / c for v, c in zip(shape, values.shape[2:], strict=True))
        grid = Grid(shape, tuple(s / 2 for s in stride), stride, stride)
    fields = {"classes": None, "scores": torch.zeros(values.shape[:2])} | fields
    return HeatMaps(values, grid=grid, views=views, method="by hand", target="logit of cat", **fields)


class TestSize:
    @pytest.mark.parametrize("short", [1, 5, 32, 64, 224, 256])
    def test_the_longer_side_is_rounded_half_up(self, short):
        for height in range(1, 61):
            for width in range(1, 61):
                least = min(height, width)
                expected = tuple((2 * side * short + least) // (2 * least) for side in (height, width))
                found = Size(height, width).with_short_side(short)
                assert (found.height, found.width) == expected, (height, width)

    def test_by_hand(self):
        assert LANDSCAPE.with_short_side(64) == Size(64, 86)  # 85.6
        assert PORTRAIT.with_short_side(64) == Size(86, 64)
        assert Size(10, 15).with_short_side(5) == Size(5, 8)  # 7.5
        assert Size(2, 3).with_short_side(7) == Size(7, 11)  # 10.5

    @pytest.mark.parametrize("sides", [(0, 5), (5, 0), (-1, 5)])
    def test_a_side_has_at_least_one_pixel(self, sides):
        with pytest.raises(UsageError, match=r"Size; got .* × .*; allowed: at least 1 × 1"):
            Size(*sides)


class TestBox:
    def test_corners_and_area(self):
        box = Box(1.5, 2, 4, 10)
        assert (box.corners, box.area) == ((1.5, 2, 4, 10), 20)
        assert Box(3, 3, 3, 7).area == 0

    @pytest.mark.parametrize(
        "corners", [(2, 0, 1, 5), (0, 6, 1, 5), (math.nan, 0, 1, 1), (0, 0, 1, math.nan)]
    )
    def test_inverted_or_no_numbers(self, corners):
        with pytest.raises(UsageError, match="x0 ≤ x1 and y0 ≤ y1"):
            Box(*corners)

    def test_clipped_to_a_picture(self):
        size = Size(20, 30)
        assert Box(-5, -5, 40, 40).clipped(size) == Box(0, 0, 30, 20)
        assert Box(3.5, 4, 9, 25).clipped(size) == Box(3.5, 4, 9, 20)
        assert Box(3.5, 4, 9, 5).clipped(size) == Box(3.5, 4, 9, 5)
        assert Box(35, 25, 40, 40).clipped(size) == Box(30, 20, 30, 20)  # outside: nothing is left
        assert Box(-9, -9, -1, -1).clipped(size).area == 0

    def test_frozen(self):
        with pytest.raises(FrozenInstanceError):
            Box(0, 0, 1, 1).x0 = 2.0
        assert not ScoredBox(Box(0, 0, 1, 1), 0.5).whole


sizes = st.builds(Size, st.integers(1, 600), st.integers(1, 600))


@st.composite
def views(draw) -> View:
    resized = draw(sizes)
    height, width = draw(st.integers(1, resized.height)), draw(st.integers(1, resized.width))
    top, left = draw(st.integers(0, resized.height - height)), draw(st.integers(0, resized.width - width))
    return View(draw(sizes), resized, (top, left, height, width), draw(st.booleans()))


class TestView:
    @settings(deadline=None, max_examples=150)
    @given(views(), st.lists(st.tuples(*[st.floats(-50, 650)] * 2), min_size=1, max_size=5))
    def test_points_come_back(self, view, points):
        points = np.array(points)
        np.testing.assert_allclose(view.to_source(view.to_view(points)), points, atol=1e-9, rtol=0)
        scale = max(view.resized.height / view.source.height, view.resized.width / view.source.width)
        back = view.to_view(view.to_source(points))
        np.testing.assert_allclose(back, points, atol=1e-9 * max(scale, 1), rtol=0)

    @settings(deadline=None, max_examples=100)
    @given(views(), st.tuples(*[st.floats(0, 300)] * 4))
    def test_boxes_come_back_the_right_way_round(self, view, numbers):
        (x0, x1), (y0, y1) = sorted(numbers[:2]), sorted(numbers[2:])
        box = Box(x0, y0, x1, y1)
        shown = view.box_to_view(box)
        np.testing.assert_allclose(view.box_to_source(shown).corners, box.corners, atol=1e-9)
        scale = (view.resized.height / view.source.height) * (view.resized.width / view.source.width)
        assert shown.area == pytest.approx(box.area * scale, abs=1e-6 * max(scale, 1))

    def test_points_by_hand(self):
        # 225 × 301 shown at 450 × 903 (twice as high, three times as wide), cut, mirrored.
        view = View(LANDSCAPE, Size(450, 903), (30, 100, 200, 400), flip=True)
        np.testing.assert_allclose(view.to_view([(100, 50), (34, 16)]), [[200, 70], [398, 2]], atol=1e-12)
        np.testing.assert_allclose(view.to_source([(0, 0), (400, 200)]), [[500 / 3, 15], [100 / 3, 115]])
        assert view.box_to_view(Box(40, 20, 60, 50)) == Box(320, 10, 380, 70)
        assert view.size == Size(200, 400)
        assert not view.is_whole

    def test_the_whole_picture(self):
        assert View.whole(PORTRAIT) == View(PORTRAIT, PORTRAIT, (0, 0, 301, 225))
        whole = View.whole(PORTRAIT, Size(64, 48), flip=True)
        assert whole.is_whole
        assert whole.flip
        corners = whole.to_source([(0, 0), (48, 64)])
        np.testing.assert_allclose(corners, [[225, 0], [0, 301]], atol=1e-9)

    @pytest.mark.parametrize("crop", [(0, 0, 0, 5), (0, 0, 5, 0), (-1, 0, 5, 5), (0, 9, 5, 5), (6, 0, 5, 5)])
    def test_a_crop_lies_inside(self, crop):
        with pytest.raises(UsageError, match=r"View\.crop"):
            View(LANDSCAPE, Size(10, 12), crop)

    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize(
        ("source", "resized", "crop"),
        [
            (LANDSCAPE, Size(64, 86), (0, 11, 64, 64)),  # the middle of a smaller one
            (LANDSCAPE, Size(97, 83), (13, 7, 61, 70)),  # odd crop, aspect not kept
            (PORTRAIT, Size(450, 337), (100, 31, 224, 300)),  # enlarged
            (PORTRAIT, PORTRAIT, (31, 17, 200, 150)),  # cut only
            (LANDSCAPE, Size(112, 301), (0, 0, 112, 301)),  # one axis only
            (PORTRAIT, Size(64, 64), (0, 0, 64, 64)),  # squashed
        ],
    )
    def test_show_equals_resize_then_cut_then_mirror(self, source, resized, crop, interpolation):
        picture = noise(source, 60, 196)  # bicubic overshoots; what it would cut depends on the order of axes
        how = Image.Resampling[interpolation.upper()]
        top, left, height, width = crop
        slow = np.asarray(picture.resize((resized.width, resized.height), how)).astype(int)
        slow = slow[top : top + height, left : left + width]
        shown = np.asarray(View(source, resized, crop).show(picture, interpolation)).astype(int)
        assert shown.shape == (height, width, 3)
        assert np.abs(shown - slow).max() <= 2  # rounded once an axis
        assert np.abs(shown - slow).mean() < 0.35
        mirrored = np.asarray(View(source, resized, crop, flip=True).show(picture, interpolation))
        np.testing.assert_array_equal(mirrored, shown[:, ::-1])

    @pytest.mark.parametrize("flip", [False, True])
    def test_what_is_shown_lies_where_points_say(self, flip):
        pixels = np.zeros((225, 301, 3), np.uint8)
        pixels[60:80, 200:210] = 255
        view = View(LANDSCAPE, Size(150, 172), (10, 20, 120, 140), flip)
        shown = np.asarray(view.show(Image.fromarray(pixels))).astype(float)[..., 0]
        ys, xs = np.mgrid[:120, :140] + 0.5
        centre = [(shown * xs).sum() / shown.sum(), (shown * ys).sum() / shown.sum()]
        np.testing.assert_allclose(centre, view.to_view((205, 70)), atol=0.02)

    def test_show_wants_the_picture_it_was_made_for(self):
        with pytest.raises(UsageError, match="301 × 225; allowed: 225 × 301"):
            View.whole(LANDSCAPE).show(noise(PORTRAIT))


class TestBatch:
    def test_bare_pixels_get_identity_views(self):
        batch = Batch.of(torch.zeros(2, 3, 20, 30))
        assert batch.views == (View.whole(Size(20, 30)),) * 2
        assert len(batch) == 2
        assert Batch.of(batch) is batch
        assert Batch.of(torch.zeros(2, 1, 50)).views == (None, None)
        assert Batch.of(torch.zeros(1, 1, 5, 6, 7)).views == (None,)

    @pytest.mark.parametrize("given", [torch.zeros(3, 20), [torch.zeros(1, 3, 4, 4)], np.zeros((1, 3, 4, 4))])
    def test_what_is_no_batch(self, given):
        with pytest.raises(UsageError, match=r"a batch; got .*net\.preprocess"):
            Batch.of(given)

    def test_one_view_a_picture(self):
        with pytest.raises(UsageError, match="1 views"):
            Batch(torch.zeros(2, 3, 4, 5), (View.whole(Size(4, 5)),))


GEOMETRIES = [
    pytest.param(View.whole(LANDSCAPE, Size(64, 86)), id="landscape"),
    pytest.param(View.whole(PORTRAIT, Size(86, 64), flip=True), id="portrait-flip"),
    pytest.param(View.whole(LANDSCAPE, Size(64, 64)), id="squash"),
    pytest.param(View(LANDSCAPE, Size(96, 128), (16, 24, 64, 80), True), id="landscape-crop-flip"),
    pytest.param(View(PORTRAIT, Size(400, 299), (101, 3, 224, 290)), id="portrait-crop-enlarged"),
]


class TestInView:
    @pytest.mark.parametrize("view", [(64, 86), (37, 20), (5, 7), (4, 3)])
    def test_stretch_is_torch_and_the_slow_loop(self, view):
        values = random(2, 3, 5, 7)
        found = heat_maps(values, *[View.whole(Size(*view))] * 2).in_view()
        torch.testing.assert_close(found, F.interpolate(values, view, mode="bilinear", align_corners=False))
        for n, k in ((0, 0), (1, 2)):
            slow = geometry.stretched(values[n, k].double().tolist(), *view)
            np.testing.assert_allclose(found[n, k], slow, atol=1e-6)

    @pytest.mark.parametrize("offset", [(0.5, 0.5), (8.0, 8.0), (-3.5, 11.25)])
    def test_receptive_fields_are_the_slow_loop(self, offset):
        values = random(1, 2, 5, 7)
        grid = Grid((75, 110), offset, (16.0, 15.5), (43.0, 43.0))
        found = heat_maps(values, View.whole(Size(75, 110)), grid=grid).in_view(align="receptive-field")
        for k in range(2):
            slow = geometry.at_receptive_fields(values[0, k].double().tolist(), 75, 110, offset, (16, 15.5))
            np.testing.assert_allclose(found[0, k], slow, atol=1e-5)

    def test_both_agree_where_cells_divide_the_view(self):
        values = random(1, 1, 5, 7)
        grid = Grid((80, 112), (8.0, 8.0), (16.0, 16.0), (60.0, 60.0))
        maps = heat_maps(values, View.whole(Size(80, 112)), grid=grid)
        torch.testing.assert_close(maps.in_view(), maps.in_view("receptive-field"), atol=1e-6, rtol=0)

    def test_one_and_three_axes(self):
        line = HeatMaps(
            torch.tensor([[[0.0, 4.0]]]), None, torch.zeros(1, 1), Grid((8,), (2.0,), (4.0,), (4.0,)),
            (None,), "m", "t"
        )  # fmt: skip
        expected = torch.tensor([[[0, 0, 0.5, 1.5, 2.5, 3.5, 4, 4]]])
        torch.testing.assert_close(line.in_view(), expected)
        torch.testing.assert_close(line.in_view("receptive-field"), expected)
        cube = HeatMaps(
            random(1, 1, 2, 3, 4), None, torch.zeros(1, 1), Grid((4, 9, 8), (1.0, 1.5, 1.0), (2.0, 3.0, 2.0),
            (2.0,) * 3), (None,), "m", "t"
        )  # fmt: skip
        torch.testing.assert_close(cube.in_view(), cube.in_view("receptive-field"), atol=1e-6, rtol=0)
        with pytest.raises(UsageError, match="use .in_view()"):
            cube.in_source()

    def test_an_unknown_alignment(self):
        with pytest.raises(UsageError, match=r"'corners'; allowed: stretch \| receptive-field"):
            heat_maps(random(1, 1, 2, 2), View.whole(Size(8, 8))).in_view("corners")


class TestInSource:
    @pytest.mark.parametrize("view", GEOMETRIES)
    def test_the_slow_loop(self, view):
        values = random(1, 2, 6, 9)
        (found,) = heat_maps(values, view).in_source()
        assert found.shape == (2, view.source.height, view.source.width)
        source, resized = (view.source.height, view.source.width), (view.resized.height, view.resized.width)
        slow = geometry.in_source(values[0, 1].double().tolist(), source, resized, view.crop, view.flip)
        np.testing.assert_allclose(found[1], slow, atol=2e-6)

    def test_each_picture_has_its_own_size(self):
        values = random(2, 1, 4, 4)
        both = [View.whole(LANDSCAPE, Size(64, 64)), View.whole(PORTRAIT, Size(64, 64), flip=True)]
        found = heat_maps(values, *both).in_source()
        assert [tuple(f.shape) for f in found] == [(1, 225, 301), (1, 301, 225)]
        for i, view in enumerate(both):
            torch.testing.assert_close(found[i], heat_maps(values[i : i + 1], view).in_source()[0])

    @pytest.mark.parametrize("view", GEOMETRIES)
    @pytest.mark.parametrize("limit", [50, 150])
    def test_limit_samples_the_same_map_on_a_coarser_frame(self, view, limit):
        values = random(1, 1, 6, 9)
        (found,) = heat_maps(values, view).in_source(limit=limit)
        source = (view.source.height, view.source.width)
        short = round(225 * limit / 301)
        sampled = (short, limit) if source == (225, 301) else (limit, short)
        resized = (view.resized.height, view.resized.width)
        slow = geometry.in_source(
            values[0, 0].double().tolist(), source, resized, view.crop, view.flip, sampled
        )
        assert found.shape[1:] == sampled
        np.testing.assert_allclose(found[0], slow, atol=2e-6)

    def test_a_limit_that_is_not_reached_changes_nothing(self):
        maps = heat_maps(random(1, 1, 6, 9), View.whole(LANDSCAPE, Size(64, 86)))
        assert torch.equal(maps.in_source(limit=301)[0], maps.in_source()[0])
        assert maps.in_source(limit=1)[0].shape == (1, 1, 1)

    def test_nothing_is_painted_where_the_view_did_not_look(self):
        view = View(LANDSCAPE, Size(225, 301), (100, 40, 50, 60))
        (found,) = heat_maps(torch.ones(1, 1, 3, 4), view).in_source()
        seen = torch.zeros(225, 301)
        seen[100:150, 40:100] = 1
        assert torch.equal(found[0], seen)


class TestOcclusionPlaces:
    GRID = Grid((40, 59), (8.0, 8.0), (6.0, 6.0), (16.0, 16.0), "places")  # 5 × 8 places; 3 columns uncovered

    def test_in_view_is_the_mean_over_what_covered_a_pixel(self):
        values = random(1, 2, 5, 8)
        found = heat_maps(values, View.whole(Size(40, 59)), grid=self.GRID).in_view()
        for k in range(2):
            slow = geometry.coverage_mean(values[0, k].double().tolist(), 40, 59, (16, 16), (6, 6))
            np.testing.assert_allclose(found[0, k], slow, atol=1e-6)
        assert not found[..., 58:].any()  # 7 · 6 + 16 = 58: no occluder reached the last column
        assert found[..., 57].all()

    def test_places_with_gaps_and_an_odd_size(self):
        values = random(1, 1, 4, 6)
        grid = Grid((30, 45), (2.5, 2.5), (8.0, 8.0), (5.0, 5.0), "places")
        found = heat_maps(values, View.whole(Size(30, 45)), grid=grid).in_view()
        slow = geometry.coverage_mean(values[0, 0].double().tolist(), 30, 45, (5, 5), (8, 8))
        np.testing.assert_allclose(found[0, 0], slow, atol=1e-6)
        assert not found[0, 0, 5:8].any()

    @pytest.mark.parametrize("flip", [False, True])
    def test_in_source_shows_the_same_map(self, flip):
        values = random(1, 1, 5, 8)
        view = View(LANDSCAPE, Size(60, 80), (10, 15, 40, 59), flip)
        (found,) = heat_maps(values, view, grid=self.GRID).in_source()
        covered = geometry.coverage_mean(values[0, 0].double().tolist(), 40, 59, (16, 16), (6, 6))
        slow = geometry.in_source(covered.tolist(), (225, 301), (60, 80), view.crop, flip)
        np.testing.assert_allclose(found[0], slow, atol=2e-6)


class TestStatus:
    def test_a_word_for_each_case(self):
        values = torch.zeros(1, 9, 2, 3)
        values[0, 0] = torch.tensor([[-1.0, 0, 2], [0, 0, 0]])
        values[0, 1] = 0
        values[0, 2] = 7
        values[0, 3] = torch.tensor([[-1.0, -2, 0], [-1, -1, -1]])
        values[0, 4] = -3
        values[0, 5, 0, 0] = math.nan
        values[0, 6, 1, 1] = math.inf
        values[0, 7, 1, 1] = -math.inf
        dead = torch.zeros(1, 9, dtype=torch.bool)
        dead[0, 8] = dead[0, 5] = True
        maps = heat_maps(values, View.whole(Size(8, 12)), no_gradient=dead)
        assert maps.status == (
            (
                "ok",
                "flat",
                "flat",
                "all-negative",
                "flat",
                "non-finite",
                "non-finite",
                "non-finite",
                "no-gradient",
            ),
        )

    def test_one_row_a_picture(self):
        values = torch.zeros(2, 1, 2, 3)
        values[1, 0, 0, 0] = 1e-30
        assert heat_maps(values, *[View.whole(Size(8, 12))] * 2).status == (("flat",), ("ok",))


class TestShown:
    def test_scaled_map_by_map_and_the_raw_values_stay(self):
        values = torch.tensor([[[[1.0, 3, 5]], [[-4, 0, 2]]], [[[7, 7, 7]], [[-3, -2, -1]]]])
        maps = heat_maps(values.clone(), *[View.whole(Size(2, 6))] * 2)
        expected = {
            "minmax": [[[[0, 0.5, 1]], [[0, 4 / 6, 1]]], [[[0, 0, 0]], [[0, 0.5, 1]]]],
            "max": [[[[0.2, 0.6, 1]], [[0, 0, 1]]], [[[1, 1, 1]], [[0, 0, 0]]]],
            "symmetric": [[[[0.2, 0.6, 1]], [[-1, 0, 0.5]]], [[[1, 1, 1]], [[-1, -2 / 3, -1 / 3]]]],
            "none": values.tolist(),
        }
        for how, scaled in expected.items():
            torch.testing.assert_close(maps.scaled(how), torch.tensor(scaled), msg=how)
        assert torch.equal(maps.values, values)
        with pytest.raises(UsageError, match="did you mean 'minmax'"):
            maps.scaled("minmaks")

    def test_scaled_by_percentiles(self):
        values = random(1, 1, 20, 30)
        low, high = np.percentile(values.double().numpy(), [1, 99])
        expected = np.clip((values.numpy() - low) / (high - low), 0, 1)
        np.testing.assert_allclose(
            heat_maps(values, View.whole(Size(20, 30))).scaled("percentile"), expected, atol=1e-5
        )

    def test_values_that_are_no_numbers_are_shown_as_zero(self):
        values = torch.tensor([[[[math.nan, 2.0, math.inf, 4.0]]]])
        shown = heat_maps(values, View.whole(Size(1, 4))).scaled("max")
        assert shown.tolist() == [[[[0, 0.5, 0, 1]]]]

    @pytest.mark.parametrize("size", [LANDSCAPE, PORTRAIT])
    def test_overlay_paints_the_map_in_source_pixels(self, size):
        picture = noise(size)
        view = View.whole(size, Size(64, 64), flip=True)
        maps = heat_maps(random(1, 1, 5, 7), view)
        (sheets,) = maps.overlay([picture])
        shown = np.asarray(sheets[0])[
            : 2 * size.height, : 2 * size.width
        ]  # smaller than 320: shown twice as large
        heat = maps.in_source()[0][0].double().numpy()
        unit = np.clip(heat / heat.max(), 0, 1)
        colours = render.palette("heat").astype(float)[np.rint(unit * 255).astype(int)]
        slow = np.rint(0.45 * np.asarray(picture) + 0.55 * colours)
        assert np.abs(shown[::2, ::2].astype(float) - slow).max() <= 3  # a colour step at a rounding edge
        np.testing.assert_array_equal(shown[::2, ::2], shown[1::2, 1::2])

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 0.0])
    def test_overlay_of_a_map_that_shows_nothing_is_the_grey_picture(self, bad):
        picture = noise(LANDSCAPE)
        values = torch.full((1, 1, 3, 4), -2.0 if bad == -1 else 0.0)
        values[0, 0, 1, 1] = bad
        maps = heat_maps(values, View.whole(LANDSCAPE, Size(64, 86)))
        assert maps.status[0][0] != "ok"
        (sheets,) = maps.overlay([picture])
        grey = np.rint(np.asarray(picture).astype(float).mean(2, keepdims=True)).repeat(3, 2)
        np.testing.assert_array_equal(np.asarray(sheets[0])[:450:2, :602:2], grey)

    def test_overlay_refuses_other_pictures(self):
        maps = heat_maps(random(1, 1, 3, 4), View.whole(LANDSCAPE, Size(64, 86)))
        with pytest.raises(UsageError, match="equal sizes"):
            maps.overlay([noise(PORTRAIT)])
        with pytest.raises(UsageError, match="2 pictures"):
            maps.overlay([noise(LANDSCAPE)] * 2)

    def test_an_8_bit_and_a_float_mask_give_the_same_overlay(self):
        picture = np.asarray(noise(LANDSCAPE))
        mask = np.random.default_rng(1).integers(0, 256, (225, 301)).astype(np.uint8)
        mask[0, 0] = 255
        as_float = render.overlay(picture, mask / np.float32(255))
        np.testing.assert_array_equal(render.overlay(picture, mask), as_float)

    def test_save(self, tmp_path):
        view = View(LANDSCAPE, Size(64, 86), (0, 11, 64, 64), True)
        values, scores = random(1, 2, 3, 4), random(1, 2, seed=1)
        maps = heat_maps(values, view, classes=torch.tensor([[7, 1]]), scores=scores, layer="conv5", seed=3)
        maps.save(tmp_path / "deep" / "folder")
        with np.load(tmp_path / "deep" / "folder" / "maps.npz", allow_pickle=False) as stored:
            np.testing.assert_array_equal(stored["values"], values)
            np.testing.assert_array_equal(stored["classes"], [[7, 1]])
            np.testing.assert_array_equal(stored["scores"], scores)
        about = json.loads((tmp_path / "deep" / "folder" / "maps.json").read_text(encoding="utf-8"))
        assert about["method"] == "by hand"
        assert (about["target"], about["layer"], about["seed"]) == ("logit of cat", "conv5", 3)
        assert about["status"] == [["ok", "ok"]]
        assert about["grid"]["view"] == [64, 64]
        assert about["views"] == [
            {
                "source": {"height": 225, "width": 301},
                "resized": {"height": 64, "width": 86},
                "crop": [0, 11, 64, 64],
                "flip": True,
            }
        ]

    def test_a_notebook_shows_maps_in_their_own_shape(self):
        maps = heat_maps(random(1, 2, 3, 6), View.whole(Size(48, 96)))
        shown = Image.open(io.BytesIO(maps._repr_png_()))
        assert shown.size == (2 * 224 + 8, 112)
