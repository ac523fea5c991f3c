"""`camlucida explain` with methods that give signed pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import camlucida as cl
from camlucida.cli import main
from camlucida.images.sources import Source
from camlucida.maps.merge import Views
from camlucida.report import explain
from pictures import colours


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    file = tmp_path_factory.mktemp("photos") / "noise.png"
    Image.fromarray(colours(70, 100)).save(file)
    return file


def test_the_command(photo, tmp_path, capsys):
    out = tmp_path / "out"
    code = main(
        ["explain", str(photo), "--out", str(out), "--classes", "3", "--method",
         "guided-backprop,deconvnet:layer=stages.1,guided-grad-cam,cam", "--json"]
    )  # fmt: skip
    assert code == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["method"] for row in rows] == [
        "guided-backprop",
        "deconvnet:layer=stages.1",
        "guided-grad-cam",
        "cam",
    ]
    guided, deconv, _, cam = rows
    assert guided["scale"] is None
    assert cam["scale"] is not None
    assert "adds most to the logit of the given class, at its strongest position: unit" in deconv["target"]
    assert guided["score"] == pytest.approx(guided["logit"], rel=1e-4)
    net = cl.load("embedded")
    batch = net.preprocess(str(photo), view="whole")
    values = cl.GuidedBackprop()(net, batch, cl.ClassTarget(3)).values[0]
    with np.load(out / "maps.npz") as stored:
        np.testing.assert_allclose(
            stored[guided["map"]], values, rtol=1e-3, atol=1e-5 * float(values.abs().max())
        )
    assert guided["maximum"] == pytest.approx(float(values.max()), rel=1e-3)
    shown = np.asarray(Image.open(out / guided["overlay"]))[:270]
    assert np.abs(np.median(shown.astype(int), (0, 1)) - 128).max() < 8  # grey, not the photograph
    assert shown.std() > 5
    page = (out / "explain.html").read_text(encoding="utf-8")
    assert "Grey\n  pictures are reconstructions" in page
    assert page.count("; grey is 0 ±") == 3


def test_it_lies_where_the_view_looked(photo):
    """With a mirrored view the picture is turned back; of several views it is the first one's."""
    net = cl.load("embedded")
    source = Source(str(photo), photo.name, str(photo))
    both = explain.explain(net, source, (3,), (cl.GuidedBackprop(),), Views.parse("flip"))
    alone = explain.explain(net, source, (3,), (cl.GuidedBackprop(),), Views.parse("1"))
    (cell,), (again,) = both.rows[0].cells, alone.rows[0].cells
    assert (cell.picture == again.picture).all()
    values = torch.zeros(1, 3, 8, 10)
    values[:, :, 2, 1] = 1.0
    view = cl.View(cl.Size(80, 100), cl.Size(8, 10), (0, 0, 8, 10), True)
    found = cl.Reconstruction(values, (view,), "guided-backprop", "x")
    drawn = np.asarray(explain._reconstructed(found, "x", cl.Batch(values, (view,)), (80, 100)).picture)
    assert drawn[25, 85].tolist() == [255] * 3
    assert drawn[25, 15].tolist() == [128] * 3


def test_colours_of_a_network_that_takes_blue_first():
    class Blue:
        channels = "BGR"

    values = torch.zeros(1, 3, 4, 4)
    values[:, 0] = 1.0
    view = cl.View.whole(cl.Size(4, 4))
    found = cl.Reconstruction(values, (view,), "guided-backprop", "x")
    drawn = explain._reconstructed(found, "x", cl.Batch(values, (view,), Blue()), (4, 4)).picture
    assert drawn is not None
    assert drawn[0, 0].tolist() == [128, 128, 255]


def test_one_that_is_zero_everywhere_says_so():
    view = cl.View.whole(cl.Size(4, 4))
    found = cl.Reconstruction(
        torch.zeros(1, 3, 4, 4), (view,), "deconvnet", "unit 3", details=("unit 3, activation 0",)
    )
    cell = explain._reconstructed(found, "deconvnet", cl.Batch(torch.zeros(1, 3, 4, 4), (view,)), (4, 4))
    assert (cell.status, cell.picture, cell.target) == ("flat", None, "unit 3: unit 3, activation 0")


def test_localize_refuses_them(photo, tmp_path, capsys):
    code = main(["localize", str(photo), "--out", str(tmp_path / "out"), "--method", "deconvnet"])
    assert code == 2
    assert "a signed picture, which is no heat map" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "method", [cl.GuidedBackprop(), cl.SmoothGrad(of=cl.GuidedBackprop()), cl.SmoothGrad("guided-grad-cam")]
)
def test_so_does_the_pipeline_in_python(method):
    with pytest.raises(cl.UsageError, match="a signed picture, which is no heat map"):
        next(iter(cl.localize(cl.load("embedded"), torch.zeros(3, 40, 56), method=method)))
