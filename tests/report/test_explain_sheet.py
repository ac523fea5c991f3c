"""The contact sheet, from cells made by hand: which tile lies where, what it shows, what is said under it."""

from __future__ import annotations

import numpy as np
import pytest

from camlucida import render
from camlucida.images.sources import Source
from camlucida.report import explain, explain_page, explain_sheet
from camlucida.report.explain_cost import Cost
from camlucida.values import Label, Size

WIDTH = 2 * 16 + 6 * 240 + 5 * 14
LABEL = Label("n07920052", "espresso, coffee")


def cell(hot: int, method: str = "cam", status: str = "ok", **other) -> explain.Cell:
    """A map over 80 × 120 pixels, hot in one of its six cells of 40 × 40."""
    heat = np.zeros((80, 120), np.float32)
    y, x = divmod(hot, 3)
    heat[40 * y : 40 * y + 40, 40 * x : 40 * x + 40] = 2.0
    return explain.Cell(
        method, "conv5", status, target="logit", raw=heat, heat=heat, cost=Cost(0.1, 2.0), **other
    )


def explained(*rows: tuple[explain.Cell, ...]) -> explain.Explained:
    picture = np.full((80, 120, 3), (160, 100, 100), np.uint8)
    made = tuple(explain.Row(i, LABEL, 0.5, 1.0, cells) for i, cells in enumerate(rows))
    return explain.Explained(Source("in/a.png", "a.png", "a.png"), Size(80, 120), picture, made, (), 0.05)


def drawn(one: explain.Explained) -> np.ndarray:
    return np.asarray(explain_sheet.contact_sheet(one, explain.Scale().limits([one]))).astype(int)


def tiles(sheet: np.ndarray, rows: int) -> list[list[np.ndarray]]:
    """The pictures of 160 × 240 on the sheet, line by line: found by their left column, which is nowhere white."""
    full = (sheet[:, 16:256].min(2) < 250).all(1)
    starts = np.flatnonzero(full & ~np.roll(full, 1))
    assert len(starts) == rows
    return [[sheet[y : y + 160, x : x + 240] for x in range(16, WIDTH - 16, 254)] for y in starts]


def test_tiles_follow_the_picture_in_lines_of_six():
    """Seven cells and the picture: six and two; and another class below."""
    one = explained(tuple(cell(i % 6) for i in range(7)), (cell(4),))
    sheet = drawn(one)
    assert sheet.shape[1] == WIDTH
    first, second, other = tiles(sheet, 3)
    plain = np.array([160, 100, 100])
    assert (first[0] == plain).all()
    hot, cold = (0.45 * plain + 0.55 * c for c in render.palette("heat")[[255, 0]].astype(float))
    for shown, i in [*((first[k + 1], k) for k in range(5)), (second[0], 5), (second[1], 0), (other[1], 4)]:
        for place in range(6):
            y, x = divmod(place, 3)
            expected = hot if place == i else cold
            np.testing.assert_allclose(shown[80 * y + 40, 80 * x + 40], expected, atol=1.01)
    assert (second[2] == 255).all()
    assert (other[2] == 255).all()


def test_reconstructions_are_grey_and_refusals_say_so():
    grey = np.full((80, 120, 3), 128, np.uint8)
    grey[:, 60:] = (200, 90, 128)
    signed = explain.Cell("deconvnet", None, "ok", target="unit 3", picture=grey)
    refused = explain.Cell("cam", None, "refused", "CAM needs a head of pooling → linear")
    flat = cell(0, status="flat")
    (line,) = tiles(drawn(explained((signed, refused, flat))), 1)
    np.testing.assert_array_equal(line[1][80, 30], [128] * 3)
    np.testing.assert_array_equal(line[1][80, 200], [200, 90, 128])
    for shown in line[2:4]:
        assert np.ptp(shown[:40], 2).max() == 0  # the picture without its colours …
        assert (shown[60:100] != shown[0, 0]).any()  # … and a word across it


def test_the_words_under_a_tile():
    def words(one: explain.Cell) -> list[str]:
        return [text for text, _, _ in explain_sheet._lines(one)]

    runs = explain.Cell(
        "rise:masks=400,s=5", None, "ok", target="logit", cost=Cost(26.6, 288.2, "400 forward passes")
    )
    assert words(runs) == [
        "rise:masks=400, s=5",
        "288 passes, 26.6 s",
        "runs 400 forward passes",
        "ok",
        "logit",
    ]
    assert words(cell(1, "grad-cam")) == ["grad-cam", "at conv5", "2.0 passes, 100 ms", "ok", "logit"]
    refused = explain.Cell("cam", None, "refused", "CAM needs a head of pooling")
    assert words(refused) == ["cam", "refused: CAM needs a head of pooling"]
    warned = cell(1, "ablation-cam", reason="divides by the magnitude")
    assert "ok: divides by the magnitude" in words(warned)
    assert words(cell(1, status="flat"))[3] == f"flat: {explain_page.MEANING['flat']}"
    assert explain_sheet.summary([runs, refused, warned]) == "2 ok, 1 refused"


def test_the_key_says_what_a_pass_is_and_who_shares_it():
    one, two = explained((cell(0),)), explained((cell(0),), (cell(1),))
    assert "(50 ms each), then the seconds waited. " in explain_sheet.key(one)
    assert "for all 2 classes together" in explain_sheet.key(two)


def test_a_class_without_probability_is_headed_by_its_logit():
    row = explain.Row(7, LABEL, None, -3.25, ())
    assert explain_page.heading(row) == "espresso logit -3.25 · n07920052 · class 7"
    assert explain_page.heading(explain.Row(7, LABEL, 0.931, 12.34, ())) == (
        "espresso 93.1 % · logit 12.3 · n07920052 · class 7"
    )


@pytest.mark.parametrize(
    ("values", "ends"), [((3.0, 4.0), (3, 4)), ((1.0, 4.0), (0, 4)), ((2.0, 2.0), (0, 2))]
)
def test_a_map_far_from_zero_is_painted_from_its_lowest_value(values, ends):
    heat = np.array([values], np.float32)
    one = explain.Cell("rise", None, "ok", raw=heat, heat=heat)
    assert explain.Scale().limits([])(one) == ends
