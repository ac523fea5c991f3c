"""Figures and sentences of an ablation, from counts set by hand."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET

import numpy as np
from PIL import Image

from camlucida.probes import Ablation
from camlucida.report import probe_ablation
from camlucida.report.probe_page import Table
from camlucida.values import Label

LABELS = tuple(Label(f"n{i}", f"class {i}, also") for i in range(3))


def made(
    lost: list[list[int]], gained: list[list[int]], blind=(False, False), layer: str = "conv5"
) -> Ablation:
    """Two parts, three classes; the last has no picture."""
    pictures, right = np.array([100, 60, 0]), np.array([60, 20, 0])
    drop = (np.array(lost) - np.array(gained)) / np.array([100, 60, np.nan])
    put = ("zero", "zero") if layer else ("identity", "mean")
    parts = (4, 9) if layer else ("a", "b")
    return Ablation(
        parts,
        put,
        LABELS,
        pictures,
        right,
        np.array(lost),
        np.array(gained),
        drop,
        drop / 2,
        np.array(blind),
        layer,
    )


def test_the_sentence_says_what_the_counts_say():
    said = probe_ablation.finding(made([[24, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 30, 0]]), None)
    assert "Of the 2 units of conv5" in said
    assert "1 costs top-1 accuracy (50.0%)" in said
    assert "1 holds it down" in said
    assert "unit 4: −15.0 points" in said
    assert "most of class 0 (−24.0 of 100)" in said
    said = probe_ablation.finding(made([[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]), None)
    assert "none costs" in said
    assert "Most is lost" not in said


def test_layers_that_leave_nothing_are_told_apart():
    found = made([[8, 0, 0], [60, 20, 0]], [[0, 0, 0], [10, 0, 0]], (False, True), "")
    said = probe_ablation.finding(None, found)
    assert "moves by −5.0 (a) to −5.0 points (a)" in said
    assert "Above 1 layer at its mean, nothing of the picture is left." in said
    section = probe_ablation.layers_section(found)
    table = section.blocks[1]
    assert isinstance(table, Table)
    assert table.rows[1][1] == "mean, blind"


def test_the_strip_is_blue_where_a_class_falls_and_grey_at_zero():
    svg = ET.fromstring(
        probe_ablation.heat(np.array([[-10.0, 0.0], [5.0, 10.0]]), ["4", "9"], ["one", "two"], 10)
    )
    image = next(svg.iter("{http://www.w3.org/2000/svg}image"))
    data = base64.b64decode(re.sub("^data:image/png;base64,", "", image.get("href", "")))
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert pixels.shape == (2, 2, 3)
    assert pixels[0, 0, 2] > pixels[0, 0, 0] + 40  # falls: blue
    assert pixels[1, 1, 0] > pixels[1, 1, 2] + 40  # rises: red
    assert np.ptp(pixels[0, 1]) < 12
    assert "the deepest fall, -10.0 points, is of one without unit 4" in svg.get("aria-label", "")


def test_rows_of_the_files_are_the_counts():
    found = made([[24, 0, 0], [0, 3, 0]], [[0, 6, 0], [0, 0, 0]])
    first, second = probe_ablation.rows(found, "unit")
    assert (first["lost"], first["gained"], first["top1_before"]) == (24, 6, 0.5)
    assert np.isclose(first["top1_after"], (80 - 18) / 160)
    assert second["low"] < second["change"] < second["high"]
    assert [row["class_index"] for row in probe_ablation.class_rows(found, "unit")] == [0, 1, 0, 1]
