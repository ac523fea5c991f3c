import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from camlucida import render
from camlucida.errors import UsageError
from camlucida.report import row, sheet
from camlucida.report.figures import sheets, stretched
from camlucida.values import Box, ScoredBox
from report import report_values as made


def without_boxes(one):
    return replace(one, found=tuple(replace(found, boxes=()) for found in one.found), truth=())


@pytest.mark.parametrize(("width", "height"), [(400, 300), (300, 400)])
def test_a_hot_cell_lands_where_it_should(width, height):
    found = (made.localization("x.jpg", 1, 1, 0.5, ()),)
    one = made.seen("x.jpg", found, [made.hot(1, 4)], width=width, height=height)
    shown = np.asarray(sheet(one, 1))[:height, :width].astype(float)
    x, y = int(4.5 * width / 6), int(1.5 * height / 4)
    source = np.asarray(one.picture).astype(float)
    hottest, coldest = render.palette("heat")[[255, 0]].astype(float)
    np.testing.assert_allclose(shown[y, x], 0.45 * source[y, x] + 0.55 * hottest, atol=4)
    for row_, column in ((0, 0), (3, 5), (1, 2), (3, 4)):
        y, x = int((row_ + 0.5) * height / 4), int((column + 0.5) * width / 6)
        np.testing.assert_allclose(shown[y, x], 0.45 * source[y, x] + 0.55 * coldest, atol=4)


def test_signed_values_are_grey_at_zero_and_their_channels_red_green_and_blue():
    values = np.array([[[0, 2.0]], [[-2, np.nan]], [[1, -1]]])
    assert render.signed_rgb(values).tolist() == [[[128, 0, 191], [255, 128, 64]]]
    assert render.signed_rgb(values, 4.0)[0, 1].tolist() == [191, 128, 96]
    assert render.signed_rgb(np.array([[[3.0, -1.0]]])).tolist() == [[[255] * 3, [85] * 3]]
    assert (render.signed_rgb(np.zeros((2, 1, 1))) == 128).all()


def test_stretching_is_bilinear_between_pixel_centres():
    np.testing.assert_allclose(stretched(np.array([[0.0, 1.0]]), 1, 4)[0], [0, 0.25, 0.75, 1])


def test_large_pictures_shrink_and_small_ones_grow():
    boxes = (ScoredBox(Box(500, 250, 1000, 750), 1.0),)
    one = made.seen(
        "x.jpg", (made.localization("x.jpg", 1, 1, 0.5, boxes),), [made.hot(1, 4)], width=2048, height=1000
    )
    shown = sheet(one, 1)
    assert shown.width == 1024
    pixels = np.asarray(shown)
    assert tuple(pixels[125, 375]) == render.FOUND
    assert tuple(pixels[250, 250]) == render.FOUND
    assert tuple(pixels[125, 600]) != render.FOUND
    small = made.seen(
        "x.jpg", (made.localization("x.jpg", 1, 1, 0.5, ()),), [made.hot(1, 4)], width=64, height=48
    )
    assert sheet(small, 1).width == 320


def test_found_boxes_are_red_and_given_ones_green():
    pixels = np.asarray(sheet(made.two_boxes(), 1))
    factor = 2  # 300 × 200 is enlarged to be read
    assert tuple(pixels[70 * factor, 50 * factor]) == render.FOUND
    assert tuple(pixels[60 * factor, 25 * factor]) == render.FOUND
    assert tuple(pixels[32 * factor - 3, 80 * factor]) == render.TRUTH


def test_a_map_that_is_not_finite_prints_its_status_on_grey():
    plain = np.asarray(sheet(without_boxes(made.broken_map()), 1))
    picture = plain[: 240 * 2, : 120 * 2]
    assert (picture.max(-1) == picture.min(-1)).mean() > 0.9
    assert (picture[230:250] > 200).any()
    assert picture[240, :5].max() < 0.6 * made.picture(120, 240).getpixel((1, 120))[1]  # the band is dark


def test_the_bar_shows_that_all_below_zero_is_the_coldest():
    blank = np.zeros((300, 400, 3), np.uint8)
    bar = np.asarray(render.captioned(blank, "x", bar=(-1.0, 1.0)))[300:]
    coldest = (bar == render.palette("heat")[0]).all(-1)
    assert coldest.any(0)[180]
    assert not coldest.any(0)[230]


def test_a_rank_that_is_not_there():
    with pytest.raises(UsageError, match="got 9; allowed: 1, 2"):
        sheet(made.two_boxes(), 9)


def test_a_row_has_the_picture_and_each_class():
    assert row(made.two_boxes()).width == 3 * 600 + 2 * 8


def test_all_the_sheets_are_the_sheets_of_each_rank():
    one = made.two_boxes()
    shown = dict(sheets(one))
    assert list(shown) == [1, 2]
    for rank in shown:
        np.testing.assert_array_equal(np.asarray(shown[rank]), np.asarray(sheet(one, rank)))


@pytest.mark.parametrize("opacity", [0.0, 0.3, 0.55, 1.0])
def test_the_blend_is_the_blend_of_floats(opacity):
    """In 256ths and 16 bits, so at most one step from it."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (40, 56, 3)).astype(np.uint8)
    heat = rng.normal(size=(40, 56)).astype(np.float32)
    colours = render.colourise(render.scaled(heat, "max")).astype(float)
    slow = np.rint((1 - opacity) * picture + opacity * colours)
    found = render.overlay(picture, heat, opacity=opacity).astype(float)
    assert np.abs(found - slow).max() <= 1
    if opacity in (0, 1):
        np.testing.assert_array_equal(found, slow)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (40, 56)])
def test_what_png_packs_is_what_a_reader_gets(shape):
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    for given in (picture, Image.fromarray(picture)):
        read = Image.open(io.BytesIO(render.png(given)))
        assert (read.format, read.mode) == ("PNG", "RGB")
        np.testing.assert_array_equal(np.asarray(read), picture)


def test_names_beyond_the_font_do_not_fail():
    one = made.two_boxes()
    one = replace(one, found=(replace(one.found[0], class_name="café 猫"), one.found[1]))
    assert sheet(one, 1).size == sheet(made.two_boxes(), 1).size
