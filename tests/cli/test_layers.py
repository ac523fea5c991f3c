"""`camlucida layers`: sizes, strides and fields by hand, gradients by formula, the page by what it holds."""

import json
import re

import numpy as np
import own_networks
import pytest
import torch
from PIL import Image

import camlucida as cl
from camlucida.cli import main
from camlucida.images.views import Preprocessing
from camlucida.report import layers
from small_networks import fully_connected, pixels, seeded


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(seeded(own_networks.gap).state_dict(), "mine.pth")
    noise = np.random.default_rng(0).integers(0, 255, (41, 61, 3), dtype=np.uint8)
    Image.fromarray(noise).save("cat.png")
    return tmp_path


OWN = ["layers", "--arch", "own_networks:gap", "--weights", "mine.pth", "--size", "41"]


def test_the_table_by_hand(desk, capsys):
    """3 × 3, stride 2, no padding on 41 × 61: 20 × 30 cells, the first centred at 1.5; ∂logit/∂A = w / 600 in every cell."""
    assert main([*OWN, "--picture", "cat.png", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(r["name"], r["kind"]) for r in rows] == [("0", "Conv2d"), ("1", "ReLU")]
    for row in rows:
        assert (row["channels"], row["size"], row["stride"]) == (6, [20, 30], [2, 2])
        assert (row["receptive_field"], row["offset"]) == ([3, 3], [1.5, 1.5])
    module = seeded(own_networks.gap)
    net = cl.wrap(module, card=cl.Card(preprocessing=Preprocessing(size=41)))
    batch = net.preprocess("cat.png", view="whole")
    weight = module[4].weight[int(net(batch).argmax())].detach().double()
    assert rows[1]["gradient"] == pytest.approx(float((weight**2).sum() * 600 / 600**2) ** 0.5, rel=1e-5)
    alive = (
        (module[0](batch.pixels) > 0).double()[0].sum((1, 2))
    )  # the ReLU lets the gradient of living cells through
    assert rows[0]["gradient"] == pytest.approx(float((weight**2 * alive).sum() / 600**2) ** 0.5, rel=1e-5)
    assert [r["default_of"] for r in rows] == [[], ["CAM", "Grad-CAM"]]


def test_the_words(desk, capsys):
    assert main([*OWN, "--find", "relu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["layer", "kind", "channels", "size", "stride", "field", "offset", "gradient", "default", "of"]  # fmt: skip
    assert lines[1].split()[:8] == ["1", "ReLU", "6", "20", "×", "20", "2", "3"]
    assert lines[1].endswith("CAM, Grad-CAM")
    assert lines[2].startswith("1 of 2 layers at 41 × 41; gradient of the logit of class ")
    assert main([*OWN, "--find", "nothing"]) == 2


def test_other_heads_have_grad_cam_only():
    surveyed, _ = layers.survey(cl.wrap(fully_connected()), pixels(1))
    assert {one.layer.name: one.default_of for one in surveyed if one.default_of} == {
        "features": ("Grad-CAM",)
    }


def test_gradients_that_are_switched_off_inside_or_never_arrive():
    module = seeded(own_networks.Inside)
    surveyed, top = layers.survey(cl.wrap(module), pixels(1))
    by_name = {one.layer.name: one for one in surveyed}
    weight = module.fc.weight[top].detach().double()
    cells = 10 * 14
    assert by_name["trunk.1"].gradient == pytest.approx(float((weight**2).sum() / cells) ** 0.5, rel=1e-5)
    assert by_name["unused"].gradient == 0
    assert not by_name["unused"].row()["reached"]


def test_thumbnails_are_the_formulas():
    module = seeded(own_networks.gap)
    batch = pixels(1)
    surveyed, top = layers.survey(cl.wrap(module), batch)
    relu = surveyed[1]
    features = module[:2](batch)[0].detach()
    np.testing.assert_allclose(relu.activation, features.abs().mean(0), rtol=1e-5)
    weight = module[4].weight[top].detach() / features[0].numel()
    expected = (weight[:, None, None] * features).sum(0).relu()
    np.testing.assert_allclose(relu.grad_cam, expected, rtol=1e-4, atol=1e-7)


def test_the_page(desk, capsys):
    run = [*OWN, "--picture", "cat.png", "--out", "page"]
    assert main(run) == 0
    text = (desk / "page/layers.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.splitlines()[-1] == str((desk / "page/layers.html").resolve())
    assert text.count("data:image/png;base64,") == 1 + 2 * 2
    assert not re.search(r"https?://|<script|<link", text)
    net = cl.wrap(seeded(own_networks.gap), card=cl.Card(preprocessing=Preprocessing(size=41)))
    surveyed, _ = layers.survey(net, net.preprocess("cat.png", view="whole"))
    low, high = surveyed[1].activation.min(), surveyed[1].activation.max()
    assert f"|activation| {low:.3g} … {high:.3g}" in text
    assert "default of CAM and Grad-CAM" in text
    assert main(run) == 2
    assert main([*run, "--overwrite"]) == 0
    assert main([*OWN, "--out", "other"]) == 2
    assert not (desk / "other").exists()
