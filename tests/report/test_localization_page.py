"""The page of the localization protocols: what it says, what is drawn, what the files hold."""

from __future__ import annotations

import csv
import json
import re
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet as parquet
import pytest

from camlucida.boxes import FractionOfMax, TightLoose
from camlucida.evaluate import tally as tallies
from camlucida.evaluate.judge import Guesses, Objects, Protocol, score_map
from camlucida.evaluate.tally import CENTRED, GAUSSIAN, NETWORK, WHOLE, Case, Tally
from camlucida.report import localization, localization_pictures
from camlucida.values import Box, Size

SIZE = Size(30, 50)
EVERY = {"localization.json", "curve.csv", "curve.svg", "pictures.parquet", "report.html", "rejected.csv"}


def judged(rule=None) -> Tally:
    rule = rule or FractionOfMax(0.3)
    found = Tally(Protocol(rule))
    for i in range(6):
        heat = 0.2 * np.random.default_rng(i).random((30, 50)).astype(np.float32)
        heat[5:20, 8 : 30 + i] += 1
        one = Case(f"p{i}.jpg", i % 2, Objects(SIZE, (Box(8, 5, 30, 20 + i),)), blacklisted=i == 5)
        score = score_map(found.protocol, heat, heat, one.objects, lambda: None) if i < 5 else None
        box = Box(*score.box) if score else Box(0, 0, 1, 1)
        made = Guesses(1 + i % 3, 0.5, tuple((c, box) for c in (i % 2, 7, 8)))
        middle = found.gaussian.score(one.objects, lambda: None) if score else None
        found.add(one, {NETWORK: (score, made), GAUSSIAN: (middle, made)})
    found.rejected.append(("bad <b>.jpg", "empty & broken"))
    return found


def report(
    found: Tally, origin: str = "chosen on the tuning split, 7 pictures", oracle: bool = False
) -> dict:
    about = {
        "task": "localization", "command": ["camlucida evaluate", "a b.zip"], "data": ["x/a b.zip"], "split": "all",
        "seed": 0, "network": "small <net>", "method": "cam", "views": "1", "rule": "fraction-of-max",
    }  # fmt: skip
    return about | tallies.report(found, origin, oracle)


def test_the_files(tmp_path):
    found = judged()
    made = report(found)
    localization.save(made, found, [], tmp_path)
    assert {f.name for f in tmp_path.iterdir()} == EVERY
    assert json.loads((tmp_path / "localization.json").read_text()) == made
    with (tmp_path / "curve.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    own = [r for r in rows if r["figure"] == "gt_known" and r["of"] == NETWORK]
    assert [float(r["percent"]) for r in own] == made["curve"][NETWORK]["percent"]
    assert [r["threshold"] for r in own if r["chosen"] == "1"] == ["0.3"]
    assert {r["threshold_origin"] for r in own} == {"chosen on the tuning split, 7 pictures"}
    wsol = [r for r in rows if r["figure"] == "max_box_accuracy" and r["iou"] == "0.5"]
    assert len(wsol) == 1000
    figure = made["oracle_figures"][NETWORK]["max_box_accuracy"]
    (chosen,) = (r for r in wsol if r["chosen"] == "1")
    assert (float(chosen["percent"]), float(chosen["threshold"])) == (figure["percent"], figure["threshold"])
    assert {r["threshold_origin"] for r in wsol} == {"best on these very pictures"}
    pictures = parquet.read_table(tmp_path / "pictures.parquet").to_pylist()
    assert [p["path"] for p in pictures] == [f"p{i}.jpg" for i in range(6)]
    assert [p["counted"] for p in pictures] == [True] * 5 + [False]
    share = np.mean([p["gt_known"] for p in pictures if p["counted"]])
    assert round(100 * share, 2) == made["figures"]["gt_known"]["percent"]
    share = np.mean([p["top1_localization"] for p in pictures if p["counted"]])
    assert round(100 * share, 2) == made["figures"]["top1_localization"]["percent"]
    assert (tmp_path / "rejected.csv").read_text() == "path,reason\nbad <b>.jpg,empty & broken\n"


def test_the_pages_words():
    found = judged()
    made = report(found)
    page = localization.write(made, [], found.rejected)
    assert "small &lt;net&gt;" in page
    assert "bad &lt;b&gt;.jpg" in page
    assert "0.3, chosen on the tuning split, 7 pictures" in page
    assert "<code>camlucida evaluate &#39;a b.zip&#39;</code>" in page  # the command can be copied
    for figures in (made["figures"], made["oracle_figures"][NETWORK]):
        for key, figure in figures.items():
            low, high = figure["interval"]
            assert tallies.title(key) in page
            assert f"<b>{figure['percent']:.2f}</b><small>{low:.1f} … {high:.1f}" in page
    for name in (WHOLE, CENTRED, GAUSSIAN):
        assert f'<th scope="col">{name}</th>' in page
    assert page.count("upper bound") >= 2  # the oracle's block and the curve's best
    assert "Oracle threshold" not in page  # nothing was chosen here
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "5 of 6" in page
    assert "1 pictures could not be judged" in page


def test_an_oracles_threshold_is_said_everywhere(tmp_path):
    found = judged()
    words = "chosen on this very set: an upper bound"
    made = report(found, words, oracle=True)
    localization.save(made, found, [], tmp_path)
    for name in EVERY - {"rejected.csv", "pictures.parquet"}:
        assert words in (tmp_path / name).read_text(), name
    assert "<b>Oracle threshold.</b>" in (tmp_path / "report.html").read_text()
    rows = parquet.read_table(tmp_path / "pictures.parquet").to_pylist()
    assert {row["threshold_origin"] for row in rows} == {words}
    heading, _ = localization.tables(made)[0]
    assert heading == f"Figures at a threshold {words}"


def test_the_curve_is_drawn_to_scale():
    made = report(judged())
    curve = made["curve"]
    drawn = ElementTree.fromstring(localization.curve_svg(curve))
    namespace = "{http://www.w3.org/2000/svg}"
    lines = [line.attrib for line in drawn.iter(f"{namespace}polyline")]
    (own,) = (line for line in lines if line["stroke"] == localization.COLOURS[NETWORK])
    points = np.array([p.split(",") for p in own["points"].split()], float)
    assert len(points) == 100
    x = localization.LEFT + (localization.WIDTH - localization.LEFT - 12) * np.array(curve["threshold"])
    np.testing.assert_allclose(points[:, 0], x, atol=0.06)
    # Higher is more: pixels fall linearly with the percentage.
    values = np.array(curve[NETWORK]["percent"])
    slope, base = np.polyfit(values, points[:, 1], 1)
    assert slope < 0
    np.testing.assert_allclose(points[:, 1], base + slope * values, atol=0.1)
    words = " ".join(drawn.itertext())
    for said in ("chosen: 0.3", "chosen on the tuning split, 7 pictures", "centre Gaussian", "whole picture"):
        assert said in words
    assert "best on these pictures" in drawn.attrib["aria-label"]


def test_a_rule_without_a_place_on_the_axis():
    found = judged(TightLoose(border=0))
    made = report(found, "the rule has no single threshold")
    assert made["threshold"]["value"] is None
    assert made["curve"]["chosen"] is None
    assert "chosen: " not in localization.curve_svg(made["curve"])
    assert "the rule has no single threshold" in localization.write(made, [])


def test_nothing_to_say(tmp_path):
    found = Tally(Protocol(FractionOfMax()))
    found.add(Case("a.jpg", 0, Objects(SIZE, ())), {NETWORK: (None, Guesses(1, 1.0, ()))})
    made = report(found)
    localization.save(made, found, [], tmp_path)
    assert "there is nothing to say of localization" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "curve.svg").exists()


@pytest.mark.parametrize("status", ["ok", "flat"])
def test_a_panel_says_in_words_what_its_colours_show(status):
    from PIL import Image

    heat = np.eye(6, 8, dtype=np.float32)
    picture = Image.new("RGB", (80, 60), (90, 90, 90))
    panel = localization_pictures._panel(
        picture, heat, [Box(5, 6, 30, 40)], [Box(10, 10, 35, 45)], "cat: overlap 0.50", status
    )
    assert panel["words"] == "cat: overlap 0.50" + ("" if status == "ok" else " (flat)")
    assert "truth, green: from (10, 10) to (35, 45)" in panel["alt"]
    assert "prediction, red: from (5, 6) to (30, 40)" in panel["alt"]
    assert panel["data"].startswith("data:image/jpeg;base64,")


def test_truth_is_green_and_solid_prediction_red_and_dashed():
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (120, 100), (90, 90, 90))
    draw = ImageDraw.Draw(image)
    localization_pictures._rectangle(draw, image.size, Box(10, 10, 110, 50), 1.0, (64, 200, 96), dashed=False)
    localization_pictures._rectangle(draw, image.size, Box(10, 60, 110, 90), 1.0, (255, 66, 66), dashed=True)
    pixels = np.asarray(image)
    assert (pixels[10, 12:108] == (64, 200, 96)).all()
    dashes = (pixels[60, 12:108] == (255, 66, 66)).all(1)
    assert 0.4 < dashes.mean() < 0.8
