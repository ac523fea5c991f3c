"""`camlucida doctor` as a person types it: the table, the page, JSON."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import camlucida as cl
from camlucida.cli import main
from camlucida.images.views import Preprocessing
from camlucida.networks import cards
from camlucida.networks.lucida import Lucida
from camlucida.values import Label

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A small network of three classes with seeded weights, packed with its card."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Lucida(num_classes=3, width=0.125)
    labels = tuple(Label(f"n{i}", name) for i, name in enumerate(("one <1>", "two", "three")))
    shape = Preprocessing(size=64, minimum=64)
    card = cl.Card("small", "lucida", {"num_classes": 3, "width": 0.125}, shape, labels)
    file = tmp_path_factory.mktemp("network") / "small.safetensors"
    cards.pack(file, module.state_dict(), card)
    return str(file)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    coarse = np.random.default_rng(1).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    file = tmp_path_factory.mktemp("photos") / "a & b.png"
    Image.fromarray(coarse).resize((100, 70), Image.Resampling.BICUBIC).save(file)
    return str(file)


@pytest.fixture(scope="module")
def page(packed, photo, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert (
        main(["doctor", photo, "--network", packed, "--truth", "two", "--layer", "stem", "--out", str(out)])
        == 0
    )
    return out / "doctor.html"


def test_table_verdict_and_page(packed, photo, tmp_path, capsys):
    asked = ["doctor", photo, "--network", packed, "--out", str(tmp_path / "out")]
    assert main(asked) == 0
    shown = capsys.readouterr().out
    found = cl.doctor(cl.load(packed), photo)
    assert shown.splitlines()[0] == str(tmp_path / "out" / "doctor.html")
    assert shown.splitlines()[-1] == found.verdict
    for one in found.findings:
        assert re.search(rf"^{one.name} +{one.verdict} ", shown, re.MULTILINE), one.name
    before = (tmp_path / "out" / "doctor.html").read_bytes()
    assert main(asked) == 2  # it is there already
    assert (tmp_path / "out" / "doctor.html").read_bytes() == before
    assert "--overwrite" in capsys.readouterr().err


def test_json_alone_goes_to_stdout(packed, photo, tmp_path, capsys):
    assert main(["doctor", photo, "--network", packed, "--json", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["picture"] == photo
    assert {one["verdict"] for one in found["findings"]} <= {"good", "doubtful", "bad"}
    assert shown.err.strip().endswith("doctor.html")


def test_what_cannot_be_used_ends_in_one_line(packed, photo, tmp_path, capsys):
    (tmp_path / "text.png").write_text("hello")
    assert main(["doctor", str(tmp_path / "text.png"), "--network", packed]) == 3
    assert main(["doctor", str(tmp_path / "none.png"), "--network", packed]) == 2
    assert main(["doctor", photo, "--network", packed, "--truth", "four"]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_the_page_is_whole_and_asks_nothing_of_a_network(page):
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert "one &lt;1&gt;" in text
    assert "<1>" not in text
    assert "a &amp; b.png" in text
    for words in (
        "What the network saw",
        "The map of",
        "What a grey square costs",
        "under a randomised head",
    ):
        assert words in text
    assert text.count("<img ") >= 4


@pytest.mark.skipif(not CHROMIUM.is_file(), reason="no chromium here")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_readable_at_400_pixels(page, scheme):
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme=scheme)
        asked, said = [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: said.append(message.text))
        tab.goto(page.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= 400
        smallest = tab.evaluate(
            "Math.min(...[...document.querySelectorAll('p, li, h2')].map(e => parseFloat(getComputedStyle(e).fontSize)))"
        )
        ink, paper = tab.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        browser.close()
    assert smallest >= 12
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (ink, paper)]
    assert (brightness[0] < brightness[1]) == (scheme == "light")
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert said == []
