"""How values show themselves: one line for a console, a table with small pictures for a notebook."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import camlucida as cl
from camlucida import render
from camlucida.errors import UsageError
from camlucida.images.views import Preprocessing
from camlucida.networks.cards import Card
from camlucida.values import (
    Batch,
    Box,
    Grid,
    HeatMaps,
    Label,
    Localization,
    Prediction,
    Reconstruction,
    ScoredBox,
    Size,
    View,
)
from small_networks import gap

EVIL = '<img src=x onerror="alert(1)">'
COLD, HOT = render.palette("heat")[[0, -1]].tolist()


def maps(values: torch.Tensor, *, classes: torch.Tensor | None = None, **fields) -> HeatMaps:
    """Maps over whole views of 48 × 96 pixels."""
    stride = tuple(side / cells for side, cells in zip((48, 96), values.shape[2:], strict=True))
    grid = Grid((48, 96), tuple(s / 2 for s in stride), stride, stride)
    views = (View.whole(Size(48, 96)),) * len(values)
    given = {"method": "cam", "target": "logit of the given class", "layer": "conv5"} | fields
    return HeatMaps(values, classes, torch.full(values.shape[:2], 2.5), grid, views, **given)


def hot(pictures: int = 1, targets: int = 1, low: float = 0.0) -> torch.Tensor:
    """Maps of 3 × 6 cells: 4 in the cell of row 1, column 4, `low` in that of row 2, column 0, else 0."""
    values = torch.zeros(pictures, targets, 3, 6)
    values[..., 1, 4], values[..., 2, 0] = 4.0, low
    return values


def decoded(html: str) -> list[np.ndarray]:
    """The pictures in a piece of HTML."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))).astype(int) for one in found]


def found(name: str = "cat", **fields) -> Localization:
    box = ScoredBox(Box(10, 20, 110.5, 220), 0.75)
    return replace(
        Localization("a.jpg", 1, 7, "n01", name, 0.873, 9.25, (box,), "ok", "cam", "fraction-of-max", 0.2, "conv5"), **fields
    )  # fmt: skip


def prediction(pictures: int = 1) -> Prediction:
    logits = torch.tensor([[0.0, 2.0, 1.0]] * pictures)
    labels = (Label("n1", EVIL), Label("n2", "dog"), Label("n0", "cat"))
    return Prediction(
        logits,
        logits.softmax(1),
        torch.tensor([[1, 2, 0]] * pictures),
        (labels,) * pictures,
        (None,) * pictures,
    )


def every_value() -> dict[str, object]:
    net = cl.wrap(gap(), card=Card("mine " + EVIL, labels=(Label("n1", EVIL),) * 5))
    picture = Image.fromarray(np.zeros((30, 40, 3), np.uint8))
    small = replace(net, card=replace(net.card, preprocessing=Preprocessing(size=20)))
    return {
        "Size": Size(3, 4), "Box": Box(1, 2, 3, 4), "ScoredBox": ScoredBox(Box(1, 2, 3, 4), 0.5),
        "View": View(Size(225, 301), Size(64, 86), (0, 11, 64, 64), True), "Batch": small.preprocess([picture] * 2),
        "Label": Label("n1", EVIL), "Prediction": prediction(2), "Grid": maps(hot()).grid, "HeatMaps": maps(hot(2, 2), target=EVIL),
        "Reconstruction": Reconstruction(torch.randn(2, 3, 8, 9), (None, None), "deconvnet", EVIL), "Localization": found(EVIL),
        "Network": net, "Card": net.card, "Layer": net.layers(torch.zeros(1, 3, 20, 28))[0],
    }  # fmt: skip


def test_every_value_is_short_in_a_console_and_escaped_in_a_notebook():
    for name, value in every_value().items():
        line = repr(value)
        assert line.startswith(f"{name}("), name
        assert "\n" not in line, name
        assert "tensor(" not in line, name
        assert len(line) < 400, (name, line)
        html = value._repr_html_()  # type: ignore[attr-defined]
        assert html.startswith('<div class="camlucida">'), name
        assert f"<b>{name}</b>" in html, name
        assert "<img src=x" not in html, name
        if EVIL in line:
            assert "&lt;img src=x onerror=&quot;alert(1)&quot;&gt;" in html, name
        for tag in ("div", "table", "tr", "th", "td", "figure", "figcaption", "b"):
            assert len(re.findall(rf"<{tag}[ >]", html)) == html.count(f"</{tag}>"), (name, tag)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        (Size(3, 4), "Size(height=3, width=4)"),
        (Box(1.5, 2, 3, 4), "Box(x0=1.5, y0=2, x1=3, y1=4)"),
        (maps(hot(2, 3)), "HeatMaps(pictures 2, maps each 3 of 3 × 6 cells, method cam at conv5, explained logit of the given class, status 6 ok)"),
        (found(), "Localization(path a.jpg, rank 1, class cat (n01, 7), probability 87.3%, logit 9.25, boxes (10, 20) to (110.5, 220) score 0.75, status ok, map cam at conv5, rule fraction-of-max)"),
        (Batch.of(torch.zeros(2, 3, 20, 28)), "Batch(pictures 2, pixels 2 × 3 × 20 × 28 float32 on cpu, views 20 × 28 → 20 × 28)"),
        (prediction(), "Prediction(pictures 1, classes 3, best <img src=x onerror=\"alert(1)\"> 66.5%)"),
        (Card("small", labels=(Label("1", "a"),) * 3, trained_on="dogs"), "Card(small, 3 named classes, trained on dogs)"),
        (cl.wrap(torch.nn.Linear(3, 2)), "Network(Linear: Linear, 8 weights, 0 named classes, 32-true on cpu)"),
    ],
)  # fmt: skip
def test_what_the_line_says(value, line):
    assert repr(value) == line


def test_a_view_in_words():
    html = View(Size(225, 301), Size(64, 86), (0, 11, 64, 64), True)._repr_html_()
    for words in ("225 × 301 pixels", "64 × 86 pixels", "64 × 64 from row 0, column 11", "yes"):
        assert words in html
    assert str(View.whole(Size(225, 301))) == "225 × 301 → 225 × 301"


class TestHeatMaps:
    def test_a_hot_cell_has_its_colour_at_its_place(self):
        (shown,) = decoded(maps(hot())._repr_html_())
        assert shown.shape == (112, 224, 3)
        cell = (112 / 3, 224 / 6)
        assert shown[int(1.5 * cell[0]), int(4.5 * cell[1])].tolist() == HOT
        assert shown[int(2.5 * cell[0]), int(0.5 * cell[1])].tolist() == COLD
        assert (shown == HOT).all(-1).sum() == pytest.approx(cell[0] * cell[1], rel=0.05)

    def test_a_signed_map_is_centred_at_zero(self):
        (shown,) = decoded(maps(hot(low=-4.0))._repr_html_())
        table = render.palette("signed").tolist()
        assert shown[56, 168].tolist() == table[-1]
        assert shown[93, 18].tolist() == table[0]
        assert shown[10, 10].tolist() == table[128]
        (half,) = decoded(maps(hot(low=-2.0))._repr_html_())  # equally steep on both sides
        assert half[93, 18].tolist() == table[64]

    def test_captions_say_class_score_status_and_range(self):
        html = maps(hot(low=-1.0), classes=torch.tensor([[281]]))._repr_html_()
        assert "1 · class 281 · 2.5 · ok · -1 … 4" in html
        for words in ("3 × 6 cells", "cam at conv5", "logit of the given class", "1 ok"):
            assert words in html

    def test_what_has_nothing_to_show_says_so(self):
        values = torch.zeros(1, 2, 3, 6)
        values[0, 1, 0, 0] = torch.nan
        html = maps(values)._repr_html_()
        assert "1 · 2.5 · flat<" in html
        assert "1 · 2.5 · non-finite<" in html
        assert all((shown == COLD).all() for shown in decoded(html))

    def test_a_few_pictures_and_how_many_more(self):
        html = maps(hot(7, 8))._repr_html_()
        assert len(decoded(html)) == 4 * 6
        assert "And 2 more maps of each picture. And 3 more pictures." in html
        assert "more" not in maps(hot(4, 6))._repr_html_()

    def test_maps_that_are_no_pictures(self):
        flat = HeatMaps(
            torch.ones(1, 1, 5), None, torch.ones(1, 1), Grid((20,), (2,), (4,), (4,)), (None,), "cam", "a"
        )
        assert "1 of 5 cells" in flat._repr_html_()
        assert flat._repr_png_() is None

    def test_overlay_on_the_batch_itself_is_what_the_network_sees(self):
        pixels = np.random.default_rng(0).integers(0, 256, (48, 96, 3), np.uint8)
        shape = Preprocessing(size=48)
        view = View.whole(Size(48, 96))
        batch = Batch(shape.normalise(torch.from_numpy(pixels).movedim(-1, 0)[None]), (view,), shape)
        ((shown,),) = maps(hot()).overlay(batch)
        factor = 4  # 96 pixels are shown as 384
        seen = np.asarray(shown)[: 48 * factor : factor, : 96 * factor : factor].astype(float)
        heat = np.clip(maps(hot()).in_view()[0, 0].numpy() / maps(hot()).in_view().max().item(), 0, 1)
        slow = np.rint(0.45 * pixels + 0.55 * render.palette("heat")[np.rint(heat * 255).astype(int)])
        assert np.abs(seen - slow).max() <= 3
        ((own,),) = maps(hot()).overlay([Image.fromarray(pixels)])
        np.testing.assert_array_equal(np.asarray(own), np.asarray(shown))
        with pytest.raises(UsageError, match="1 pictures; allowed: 2"):
            maps(hot(2)).overlay(batch)

    def test_a_signed_overlay_lies_on_grey_and_has_a_bar_with_zero_in_it(self):
        pixels = np.random.default_rng(0).integers(0, 256, (48, 96, 3), np.uint8)
        values = hot(low=-2.0)
        ((shown,),) = maps(values).overlay([Image.fromarray(pixels)], colours="signed")
        seen = np.asarray(shown).astype(float)
        heat = maps(values).in_source()[0][0].double().numpy()
        steps = np.rint((0.5 + heat / (2 * heat.max())) * 255).astype(int)
        slow = np.rint(
            0.3 * pixels.astype(float).mean(2, keepdims=True) + 0.7 * render.palette("signed")[steps]
        )
        assert np.abs(seen[: 48 * 4 : 4, : 96 * 4 : 4] - slow).max() <= 3
        bar = seen[-14, :, :]  # from −2, a third of the way in, to 4
        coloured = bar[(bar.max(1) - bar.min(1)) > 60]
        table = render.palette("signed").astype(float)
        assert np.abs(coloured[0] - table[64]).max() < 12
        assert np.abs(coloured[-1] - table[255]).max() < 12


class TestBatch:
    @pytest.mark.parametrize(
        "shape",
        [
            Preprocessing(size=20),
            Preprocessing(
                size=20, channels="BGR", scale=255.0, mean=(103.9, 116.8, 123.7), std=(1.0, 1.0, 1.0)
            ),
            Preprocessing(size=20, channels="L", mean=(0.4,), std=(0.2,)),
        ],
    )
    def test_pictures_are_those_the_network_is_shown(self, shape):
        source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 45, 3), np.uint8))
        net = cl.wrap(gap(), card=Card(preprocessing=shape))
        batch = net.preprocess(source, view="whole")
        shown = batch.views[0].show(source)
        shown = shown.convert("L").convert("RGB") if shape.channels == "L" else shown
        np.testing.assert_array_equal(np.asarray(batch.pictures()[0]), np.asarray(shown))

    def test_a_few_and_how_many_more(self):
        greys = [np.full((20, 30, 3), 40 * i, np.uint8) for i in range(6)]
        net = cl.wrap(gap(), card=Card(preprocessing=Preprocessing(size=20)))
        html = net.preprocess(greys)._repr_html_()
        assert [shown[0, 0].tolist() for shown in decoded(html)] == [[40 * i] * 3 for i in range(4)]
        assert "And 2 more pictures." in html
        assert "Units unknown" not in html
        assert "6 × 3 × 20 × 30 float32 on cpu" in html

    def test_bare_pixels_are_spread_from_lowest_to_highest(self):
        pixels = torch.zeros(1, 3, 4, 5)
        pixels[0, 0, 1, 2], pixels[0, 1, 3, 4] = 3.0, -1.0
        batch = Batch.of(pixels)
        shown = np.asarray(batch.pictures()[0]).tolist()
        assert shown[1][2] == [255, 64, 64]
        assert shown[3][4] == [64, 0, 64]
        assert shown[0][0] == [64, 64, 64]
        assert "Units unknown" in batch._repr_html_()

    def test_other_than_pictures(self):
        batch = Batch.of(torch.zeros(2, 3, 8))
        assert batch._repr_png_() is None
        assert "2 × 3 × 8" in batch._repr_html_()
        with pytest.raises(UsageError, match=r"allowed: \(N, C, H, W\)"):
            batch.pictures()


def test_a_reconstruction_is_grey_where_it_is_zero():
    values = torch.zeros(1, 3, 4, 6)
    values[0, 0, 1, 2], values[0, 1, 2, 5] = 2.0, -1.0
    one = Reconstruction(values, (None,), "deconvnet", "a unit")
    shown = np.asarray(one.picture()).tolist()
    assert shown[0][0] == [128, 128, 128]
    assert shown[1][2] == [255, 128, 128]
    assert shown[2][5] == [128, 64, 128]
    assert "± 2" in one._repr_html_()
    with pytest.raises(UsageError):
        Reconstruction(values[0], (None,), "deconvnet", "a unit").picture()


def test_a_prediction_lists_its_best_classes_per_picture():
    html = prediction(6)._repr_html_()
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", html)
    assert cells[4:10] == [
        "1 · &lt;img src=x onerror=&quot;alert(1)&quot;&gt;", "66.5% · logit 2 · n1 · class 1",
        "1 · dog", "24.5% · logit 1 · n2 · class 2", "1 · cat", "9.0% · logit 0 · n0 · class 0",
    ]  # fmt: skip
    assert len(cells) == 2 * (2 + 4 * 3)
    assert "And 2 more pictures." in html


def test_a_layer_in_words():
    (first, *_) = cl.wrap(gap()).layers(torch.zeros(1, 3, 20, 28))
    html = first._repr_html_()
    for words in ("features.0", "10 × 14", "2 × 2", "3 × 3", "reached by gradients"):
        assert words in html


def test_no_notebook_needs_to_be_installed():
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('IPython', 'ipykernel', 'matplotlib'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import torch\n"
        "from camlucida.values import Batch, Size\n"
        "print(Size(3, 4)._repr_html_()[:50], Batch.of(torch.zeros(1, 3, 4, 4))._repr_png_()[:4])\n"
        "print([m for m in ('IPython', 'matplotlib') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [
        "<div class=\"camlucida\"><b>Size</b><table><tr style b'\\x89PNG'",
        "[]",
    ]
