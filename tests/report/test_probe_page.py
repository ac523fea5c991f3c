"""The page, folder and charts that every probe is made of."""

import csv
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from camlucida.errors import UsageError
from camlucida.report import charts
from camlucida.report.probe_folder import ProbeFolder
from camlucida.report.probe_page import Page, Patch, Section, Strip, Table, write

PATCH = Patch(np.zeros((5, 7, 3), np.uint8), "a <black> patch", "unit 3", link="pictures/a.jpg")


def page() -> Page:
    table = Table(["layer", "units"], [["conv1", 1234], ["conv2", None]])
    return Page(
        "Title", "Finding.", [("Seed", "0")], [Section("One", "Text", [Strip([PATCH], "Strip"), table])]
    )


def test_page_holds_what_it_is_given_and_asks_nothing_of_a_network():
    text = write(page(), "filters", ["camlucida probe filters", "--out", "a b"], [("x.jpg", "not a picture")])
    assert '<a href="pictures/a.jpg"><img src="data:image/png' in text
    assert 'alt="a &lt;black&gt; patch" width="7" height="5"' in text
    assert '<td class="n">1,234</td>' in text
    assert '<td class="n">–</td>' in text
    assert "camlucida probe filters --out &#39;a b&#39;" in text
    assert "not a picture" in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_a_folder_lists_its_files_and_overwriting_removes_only_these(tmp_path):
    def run(**options):
        folder = ProbeFolder.open(tmp_path / "out", "filters", ["camlucida probe filters"], **options)
        folder.table("units", [{"unit": 1, "mean": 0.5}])
        return folder

    folder = run()
    link = folder.picture("a/b.png", Image.new("RGB", (1300, 650), "red"))
    folder.arrays("maps", {"one": np.arange(3)})
    folder.save(page(), {"seed": 0})
    assert Image.open(tmp_path / "out" / link).size == (640, 320)
    assert next(csv.DictReader((tmp_path / "out" / "units.csv").open())) == {"unit": "1", "mean": "0.5"}
    stored = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert stored["state"] == "done"
    assert sorted(stored["files"]) == ["maps.npz", link, "report.html", "units.csv"]
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="--overwrite"):
        run()
    with pytest.raises(UsageError, match="camlucida probe units wrote"):
        ProbeFolder.open(tmp_path / "out", "units", [], overwrite=True)
    run(overwrite=True).save(page(), {})
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert names == {"mine.txt", "manifest.json", "report.html", "units.csv"}


def test_a_line_lies_where_its_numbers_say():
    svg = ET.fromstring(
        charts.lines({"a": ([0, 1, 2, 3], [0.0, 5.0, np.nan, 10.0])}, "T", "x", "y", marks=True)
    )
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in svg.iter("{http://www.w3.org/2000/svg}circle")]
    assert len(dots) == 3
    (x0, y0), (x1, y1), (x3, y3) = dots
    assert np.isclose((x1 - x0) * 3, x3 - x0, atol=0.3)
    assert np.isclose((y0 - y1) * 2, y0 - y3, atol=0.3)
    assert y3 < y1 < y0


def test_bars_are_as_long_as_their_values():
    svg = ET.fromstring(charts.bars({"up": 4.0, "down": -2.0, "none": float("nan")}, "T"))
    up, down, none = (float(r.get("width")) for r in svg.iter("{http://www.w3.org/2000/svg}rect"))
    assert np.isclose(up, 2 * down, rtol=1e-2)
    assert none <= 0.5


@pytest.mark.parametrize(
    ("low", "high", "wanted"), [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-60, 60, [-75, -50, -25, 0, 25, 50, 75])]
)
def test_ticks_are_round(low, high, wanted):
    assert charts.ticks(low, high) == wanted


def test_files_of_a_killed_run_are_known_and_earlier_results_stay_until_the_new_are_there(tmp_path):
    def run(name, done):
        folder = ProbeFolder.open(tmp_path / "out", "filters", ["camlucida probe filters"], overwrite=True)
        folder.table(name, [{"unit": 1}])
        if done:
            folder.save(page(), {})

    def names():
        return {p.name for p in (tmp_path / "out").iterdir()} - {"manifest.json", "report.html", ".written"}

    run("first", True)
    run("second", False)
    assert names() == {"first.csv", "second.csv"}
    run("third", True)
    assert names() == {"third.csv"}


def test_a_run_that_was_refused_before_it_wrote_anything_stands_in_nobodys_way(tmp_path):
    ProbeFolder.open(tmp_path / "out", "filters", ["camlucida probe filters"])
    again = ProbeFolder.open(tmp_path / "out", "filters", ["camlucida probe filters"])
    with pytest.raises(UsageError, match="other files"):
        ProbeFolder.open(tmp_path / "out", "top", ["camlucida probe top"])
    again.table("units", [{"unit": 1}])
    with pytest.raises(UsageError, match="results of an earlier run"):
        ProbeFolder.open(tmp_path / "out", "filters", ["camlucida probe filters"])
