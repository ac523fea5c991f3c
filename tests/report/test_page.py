import base64
import functools
import http.server
import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from camlucida import render
from camlucida.report import entry, write
from report import report_values as made

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--no-first-run"]
SUMMARY = {
    "facts": [("Network", "small <net>"), ("Map", "cam")],
    "total": 2,
    "rejected": [("bad.jpg", "not a picture & more")],
    "command": "camlucida localize 'a b' --out x",
}


@functools.cache
def page():
    return write([entry(made.two_boxes()), entry(made.broken_map())], SUMMARY)


def test_an_entry_is_json_and_keeps_the_numbers():
    one = json.loads(json.dumps(entry(made.two_boxes()), allow_nan=False))
    assert (one["path"], one["name"], one["width"], one["height"]) == (
        "photos/pets/cat.jpg",
        "pets/cat.jpg",
        300,
        200,
    )
    first = one["classes"][0]
    assert (first["rank"], first["id"], first["probability"], first["status"]) == (
        1,
        "n00000007",
        0.873,
        "ok",
    )
    assert first["boxes"] == [[50, 50, 100, 100.5, 1.0], [25, 40, 150, 120, 0.75]]
    assert one["truth"] == [[40, 30, 120, 110]]
    grid = one["classes"][1]["grid"]
    steps = np.frombuffer(base64.b64decode(grid["values"]), "<u2").reshape(grid["rows"], grid["columns"])
    values = grid["low"] + (grid["high"] - grid["low"]) * steps / 65535
    np.testing.assert_allclose(values, made.hot(3, 5, value=2.0) - 0.5, atol=1e-4)
    sweep = np.frombuffer(base64.b64decode(first["sweep"]), "<u2").reshape(100, 4)
    np.testing.assert_allclose(
        sweep[:99] / 65535 * [300, 200, 300, 200], made.swept(300, 200)[:99], atol=0.01
    )
    assert sweep[99].tolist() == [65535, 65535, 0, 0]
    assert entry(made.broken_map())["classes"][0]["grid"] is None


def test_large_grids_are_averaged_down_but_keep_their_range():
    heat = np.linspace(-1, 3, 200 * 100, dtype=np.float32).reshape(100, 200)
    one = made.seen("x.jpg", (made.localization("x.jpg", 1, 1, 0.5, ()),), [heat])
    grid = entry(one)["classes"][0]["grid"]
    assert (grid["rows"], grid["columns"], grid["low"], grid["high"]) == (32, 64, -1.0, 3.0)


def test_nothing_in_the_page_points_outside():
    text = page()
    addresses = re.findall(r"""(?:src|href|action|poster|data)\s*=\s*["']([^"']*)""", text)
    assert addresses
    assert all(one.startswith("data:") for one in addresses)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|sendBeacon|import\(", text)
    assert set(re.findall(r"https?://[^\s\"'`<]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text


def test_the_page_says_what_was_done_and_escapes_it():
    text = page()
    for words in (
        "small &lt;net&gt;",
        "not a picture &amp; more",
        "camlucida localize",
        "NaN or infinite",
        "87.3 %",
    ):
        assert words in text
    evil = made.two_boxes('x"><script>alert(1)</script>.jpg')
    found = tuple(replace(one, class_name="</script><b>", class_id='" onload="x') for one in evil.found)
    text = write([entry(replace(evil, found=found))], {})
    assert "<script>alert" not in text
    assert "</script><b>" not in text
    assert '" onload="' not in text


def test_another_list_of_thresholds_does_not_follow_the_slider():
    other = entry(replace(made.two_boxes("z.jpg"), thresholds=made.THRESHOLDS / 2))
    assert write([entry(made.two_boxes()), other], {}).count('"sweep":null') == 2


def test_a_page_without_pictures():
    text = write([], {"rejected": [("a.jpg", "broken")]})
    assert "1 rejected picture" in text
    assert "<article" not in text


# The rest looks at the page in a browser.


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}")
    with playwright.sync_playwright() as tool:
        opened = tool.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def tab(browser, tmp_path):
    """The page, served over HTTP so that every request of the page is seen by the server too."""
    (tmp_path / "report.html").write_text(page(), encoding="utf-8")
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given):
            super().__init__(*given, directory=str(tmp_path))

        def log_message(self, *_):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tab = browser.new_page(viewport={"width": 1200, "height": 900})
    problems, requests = [], []
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(f"http://127.0.0.1:{server.server_port}/report.html")
    tab.wait_for_selector("canvas", state="attached")
    yield tab
    tab.wait_for_timeout(100)
    assert problems == []
    assert [url for url in requests if not url.startswith("data:")] == [tab.url]
    assert asked == ["/report.html"]
    tab.close()
    server.shutdown()
    server.server_close()


def boxes(tab, card, rank):
    return tab.evaluate(f"window.camlucida.boxes({card}, {rank})")


def slide(tab, name, value):
    tab.evaluate(
        """([id, value]) => { const control = document.getElementById(id);
                              control.value = value; control.dispatchEvent(new Event('input')) }""",
        [name, str(value)],
    )


def test_the_slider_redraws_every_box_and_the_button_brings_the_rules_own_back(tab):
    own = [[50, 50, 100, 100.5], [25, 40, 150, 120]]
    assert boxes(tab, 0, 1) == own
    assert tab.input_value("#threshold") == "19"
    assert "0.2" in tab.inner_text("#threshold-words")
    assert tab.is_disabled("#own")
    slide(tab, "threshold", 60)
    for rank in (1, 2):
        np.testing.assert_allclose(boxes(tab, 0, rank), made.swept(300, 200)[60:61], atol=0.01)
    np.testing.assert_allclose(boxes(tab, 1, 1), made.swept(120, 240)[60:61], atol=0.01)
    assert "61 %" in tab.inner_text("#threshold-words")
    slide(tab, "threshold", 99)
    assert boxes(tab, 0, 1) == []
    tab.click("#own")
    assert boxes(tab, 0, 1) == own
    assert tab.input_value("#threshold") == "19"


def test_the_truth_is_green_on_the_picture_and_on_its_maps(tab):
    assert tab.locator("#picture-1 rect.truth").count() == 3
    assert tab.locator("#picture-2 rect.truth").count() == 0


def test_filters_hide_cards_and_tiles(tab):
    def shown():
        return tab.evaluate(
            "[...document.querySelectorAll('.card')].filter(c => !c.hidden).map(c => c.dataset.name)"
        )

    assert shown() == ["pets/cat.jpg", "dogs/dog.jpg"]
    slide(tab, "text", "DOG")
    assert shown() == ["dogs/dog.jpg"]
    assert tab.inner_text("#count") == "1 of 2 pictures"
    slide(tab, "text", "class 3")
    assert shown() == ["pets/cat.jpg"]
    assert tab.locator("#picture-1 .tile:visible").count() == 1
    slide(tab, "text", "")
    slide(tab, "least", 50)
    assert shown() == ["pets/cat.jpg"]
    slide(tab, "least", 0)
    slide(tab, "status", "non-finite")
    assert shown() == ["dogs/dog.jpg"]
    slide(tab, "text", "cat")
    assert shown() == []
    tab.click("#all")
    assert len(shown()) == 2


def test_sorting(tab):
    def order():
        return tab.evaluate("[...document.querySelectorAll('.card')].map(c => Number(c.dataset.index))")

    for key, expected in (("file", [1, 0]), ("confidence", [0, 1]), ("class", [1, 0]), ("order", [0, 1])):
        slide(tab, "sort", key)
        assert order() == expected, key


def test_the_map_is_painted_as_the_library_paints_it(tab):
    pixels = tab.evaluate(
        """() => { const c = document.querySelector('#picture-1 .tile canvas');
                   const { width: w, height: h } = c;
                   const { data } = c.getContext('2d').getImageData(0, 0, w, h);
                   const at = (x, y) => [...data.slice(4 * (Math.floor(y) * w + Math.floor(x))).slice(0, 4)];
                   return { size: [w, h], hot: at(w * 1.5 / 6, h * 1.5 / 4),
                            cold: at(w * 4.5 / 6, h * 2.5 / 4) } }"""
    )
    assert pixels["size"] == [256, 171]
    table = render.palette("heat").astype(int)
    assert np.abs(np.array(pixels["hot"][:3]) - table[255]).max() <= 6
    assert pixels["cold"] == [*table[0].tolist(), 255]
    assert tab.locator("#picture-2 canvas").count() == 0


def test_the_overlay_switch_and_opacity(tab):
    opacity = "getComputedStyle(document.querySelector('.tile canvas')).opacity"
    assert tab.evaluate(opacity) == "0.55"
    slide(tab, "opacity", 80)
    assert tab.evaluate(opacity) == "0.8"
    tab.click("#overlay")
    assert tab.evaluate(opacity) == "0"


def test_maps_out_of_sight_are_let_go(browser, tmp_path):
    (tmp_path / "many.html").write_text(
        write([entry(made.two_boxes(f"{i}.jpg")) for i in range(120)], {}), "utf-8"
    )
    tab = browser.new_page(viewport={"width": 390, "height": 800})
    tab.goto((tmp_path / "many.html").as_uri())
    tab.wait_for_selector("canvas", state="attached")
    assert tab.locator("canvas").count() < 30
    tab.evaluate("document.getElementById('picture-110').scrollIntoView()")
    tab.wait_for_selector("#picture-110 canvas", state="attached")
    tab.wait_for_selector("#picture-1 canvas", state="detached")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.close()


def test_every_picture_has_words_for_those_who_do_not_see_it(tab):
    assert tab.locator("img:not([alt])").count() == 0
    label = tab.get_attribute("#picture-1 .tile .frame", "aria-label")
    assert label == "cat.jpg: map of class 7, boxes from (50, 50) to (100, 100), from (25, 40) to (150, 120)"
    unnamed = (
        "[...document.querySelectorAll('input, select')].filter(e => !e.labels.length && !e.ariaLabel).length"
    )
    assert tab.evaluate(unnamed) == 0
