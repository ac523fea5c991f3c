"""The page of a classification run: what it says is what was found, and what it draws stands where it should."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from camlucida import render
from camlucida.evaluate import scores
from camlucida.evaluate.predictions import Predictions
from camlucida.report import classification
from camlucida.values import Label

NAMES = ("<script>alert(1)</script>", "b & c", "plain", "four", "five", "six")
CLASSES = tuple(Label(f"n{i}", name) for i, name in enumerate(NAMES))


@pytest.fixture(scope="module")
def report():
    rng = np.random.default_rng(4)
    rows = rng.dirichlet(np.full(6, 0.4), 60).astype(np.float32)
    labels = tuple((int(i % 5),) for i in rng.integers(0, 5, 60))  # nothing is of class 5
    said = Predictions(
        tuple(f"{i}.jpg" for i in range(60)), labels, rows, CLASSES, "a < b", "dense:scales=20/40"
    )
    return {"command": ["camlucida evaluate", "x"], "split": "all", **scores.figures(said)}


class Reader(HTMLParser):
    """Rows of tables by id, and all shapes of the drawing."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.shapes, self.table, self.cell = {}, [], None, None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "table":
            self.table = self.tables.setdefault(found.get("id"), [])
        elif tag == "tr" and self.table is not None:
            self.table.append([])
        elif tag in ("td", "th") and self.table is not None:
            self.table[-1].append("")
            self.cell = True
        elif tag in ("rect", "line"):
            self.shapes.append((tag, found))

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        if self.cell:
            self.table[-1][-1] += data


def test_the_page_says_what_was_found(report):
    page = classification.write(report, [("broken<.jpg", "empty file")])
    read = Reader(page)
    for key in ("top1", "top5", "mean_per_class", "calibration_error"):
        low, high = report[key]["interval"]
        assert f"{report[key]['percent']:.2f} %" in page
        assert f"{low:.2f} … {high:.2f}" in page
    assert f"{report['brier']['score']:.4f}" in page
    rows = read.tables["classes"][1:]
    assert len(rows) == 5
    hardest = sorted(report["classes"], key=lambda one: one["percent"])
    assert [row[2] for row in rows] == [f"{one['percent']:.1f}" for one in hardest]
    assert [row[1] for row in rows] == [str(one["pictures"]) for one in hardest]
    pairs = read.tables["confused"][1:]
    assert pairs[0] == [report["confused"][0]["true"], report["confused"][0]["predicted"], str(report["confused"][0]["pictures"]), f"{report['confused'][0]['percent']:.1f}"]  # fmt: skip
    assert "<script" not in page
    assert "broken&lt;.jpg" in page
    assert "1 rejected picture<" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)  # asks nothing of any network


def test_the_reliability_diagram_stands_where_it_should(report):
    shapes = Reader(classification.write(report)).shapes
    full = [one for one in report["calibration"] if one["pictures"]]
    bars = [found for tag, found in shapes if tag == "rect" and found.get("class") != "count"]
    gaps = [found for tag, found in shapes if tag == "line" and found.get("class") == "gap"]
    counts = [found for tag, found in shapes if tag == "rect" and found.get("class") == "count"]
    assert len(bars) == len(gaps) == len(counts) == len(full) > 5
    most = max(one["pictures"] for one in full)
    for one, bar, gap, count in zip(full, bars, gaps, counts, strict=True):
        # 300 units are 100 %: x from 36, y upwards from 306.
        left, width = float(bar["x"]) - 1, float(bar["width"]) + 2
        assert (left - 36) / 300 == pytest.approx(one["from"], abs=1e-3)
        assert (left + width - 36) / 300 == pytest.approx(one["to"], abs=1e-3)
        assert float(bar["y"]) + float(bar["height"]) == pytest.approx(306, abs=0.02)
        assert float(bar["height"]) / 3 == pytest.approx(one["right"], abs=0.01)
        assert (float(gap["x1"]) - 36) / 3 == pytest.approx(one["confidence"], abs=0.01)
        assert (306 - float(gap["y2"])) / 3 == pytest.approx(one["confidence"], abs=0.01)
        assert float(gap["y1"]) == float(bar["y"])
        assert float(count["height"]) / 44 == pytest.approx(one["pictures"] / most, abs=1e-3)
    even = next(found for tag, found in shapes if found.get("class") == "even")
    assert [even[name] for name in ("x1", "y1", "x2", "y2")] == ["36", "306", "336", "6"]


def test_the_matrix_is_the_table_of_confusions(report):
    page = classification.write(report)
    data = re.search(r'class="matrix" src="data:image/png;base64,([^"]+)"', page)[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    cell = pixels.shape[0] // 5
    shares = np.zeros((5, 6))
    for true, predicted, count in report["confusion"]:
        shares[true, predicted] = count
    shares /= shares.sum(1, keepdims=True)
    expected = render.colourise(np.sqrt(shares[:, :5]))  # the class without pictures has no column
    assert np.array_equal(pixels[cell // 2 :: cell, cell // 2 :: cell], expected)


def test_files_for_machines(report, tmp_path):
    classification.save(report, [("a.jpg", "why, indeed")], tmp_path / "new")
    names = sorted(p.name for p in (tmp_path / "new").iterdir())
    assert names == ["classes.csv", "classification.html", "confusion.csv", "evaluation.json", "rejected.csv"]
    assert json.loads((tmp_path / "new" / "evaluation.json").read_text()) == json.loads(json.dumps(report))
    rows = list(csv.DictReader((tmp_path / "new" / "classes.csv").open()))
    assert [(row["name"], float(row["percent"])) for row in rows] == [(c["name"], c["percent"]) for c in report["classes"]]  # fmt: skip
    table = list(csv.reader((tmp_path / "new" / "confusion.csv").open()))
    assert table[0] == ["true", "predicted", "pictures"]
    assert sum(int(row[2]) for row in table[1:]) == 60
    assert (tmp_path / "new" / "rejected.csv").read_text() == 'path,reason\na.jpg,"why, indeed"\n'


def test_a_page_of_several_labels(tmp_path):
    rows = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.7]], np.float32)
    said = Predictions(
        ("a", "b", "c"), ((0,), (1,), (0, 1)), rows, CLASSES[:2], "n", "centre-crop", "sigmoid"
    )
    found = scores.figures(said)
    classification.save(found, (), tmp_path)
    page = (tmp_path / "classification.html").read_text()
    assert "mean average precision, all points" in page
    assert "<svg" not in page
    assert [row[2:4] for row in Reader(page).tables["classes"][1:]] == [["100.0", "100.0"]] * 2
    assert not (tmp_path / "confusion.csv").exists()
