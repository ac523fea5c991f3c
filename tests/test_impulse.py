"""One hot cell lands where it should: in the view and in the source picture, through resize, squash, crop,
mirror and EXIF. Every closed form here is written out in plain arithmetic, away from `View`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

import camlucida as cl
from camlucida.images.views import Preprocessing
from camlucida.networks.lucida import Lucida
from camlucida.values import HeatMaps, Size, View
from pictures import UPRIGHT, encoded, stored_for

LANDSCAPE, PORTRAIT = Size(225, 301), Size(301, 225)
SHORT = 112
CARD = Preprocessing(size=SHORT, crop=96)

# Stride and centre of the first cell's receptive field, in view pixels. Padding keeps centres where they are;
# VGG's four 2 × 2 poolings move them to the middle of their windows, the strided convolutions of the others
# do not.
CLOSED_FORM = {"vgg16": (16, 8.0), "resnet18": (32, 0.5), "lucida": (8, 0.5)}


def cells_along(name: str, length: int) -> int:
    """Cells of the features over a side of the view."""
    if name == "vgg16":
        return length // 16
    for _ in range({"resnet18": 5, "lucida": 3}[name]):
        length = -(-length // 2)
    return length


def build(name: str) -> nn.Module:
    if name == "lucida":
        return Lucida(num_classes=4, width=0.25)
    if name == "resnet18":
        return torchvision.models.resnet18(weights=None)
    with torch.device("meta"):  # its linear layers hold a hundred million weights that matter to nothing here
        module = torchvision.models.vgg16(weights=None, init_weights=False)
    module.classifier = nn.Linear(512 * 7 * 7, 4)
    return module.to_empty(device="cpu").requires_grad_(False).apply(_zero)


def _zero(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.zero_()


@pytest.fixture(scope="module", params=list(CLOSED_FORM))
def named(request):
    return request.param, cl.wrap(build(request.param).eval())


def views(source: Size) -> dict[str, View]:
    squashed, fixed = Preprocessing(size=SHORT, resize="squash"), Preprocessing(size=SHORT, any_size=False)
    return {
        "whole": CARD.view(source, "whole"),
        "flip": CARD.view(source, "whole", flip=True),
        "squash": squashed.view(source, "whole"),
        "fixed-size-flip": fixed.view(source, "whole", flip=True),
        "card-flip": CARD.view(source, "card", flip=True),
    }


def maps_of(name: str, net, view: View, hot: tuple[int, int]) -> HeatMaps:
    """One hot cell on the network's own grid for this view."""
    pixels = torch.zeros(1, 3, view.size.height, view.size.width)
    layer = net.structure(pixels).features
    values = torch.zeros(1, 1, *layer.size)
    values[0, 0][hot] = 3.0
    grid = layer.grid((view.size.height, view.size.width))
    return HeatMaps(values, None, torch.zeros(1, 1), grid, (view,), "impulse", name, layer.name)


def rectangle_of(cell: tuple[int, int], cells: tuple[int, int], view: View) -> np.ndarray:
    """x0, y0, x1, y1 in source pixels of what a cell covers when its grid is stretched over the view."""
    top, left, height, width = view.crop
    ys = [(cell[0] + k) * height / cells[0] for k in (0, 1)]
    xs = [(cell[1] + k) * width / cells[1] for k in (0, 1)]
    if view.flip:
        xs = [width - xs[1], width - xs[0]]
    down, across = view.source.height / view.resized.height, view.source.width / view.resized.width
    return np.array(
        [(xs[0] + left) * across, (ys[0] + top) * down, (xs[1] + left) * across, (ys[1] + top) * down]
    )


def peak(heat: torch.Tensor) -> np.ndarray:
    """Centre (x, y) of the pixels at the maximum."""
    ys, xs = np.nonzero((heat >= heat.max() - 1e-6).numpy())
    return np.array([xs.mean() + 0.5, ys.mean() + 0.5])


def centre_of_mass(heat: torch.Tensor) -> np.ndarray:
    heat = heat.double().numpy()
    ys, xs = np.mgrid[: heat.shape[0], : heat.shape[1]] + 0.5
    return np.array([(heat * xs).sum(), (heat * ys).sum()]) / heat.sum()


def test_the_grid_is_the_closed_form(named):
    name, net = named
    stride, offset = CLOSED_FORM[name]
    for source in (LANDSCAPE, PORTRAIT):
        view = CARD.view(source, "whole")
        maps = maps_of(name, net, view, (0, 0))
        assert maps.values.shape[2:] == tuple(
            cells_along(name, s) for s in (view.size.height, view.size.width)
        )
        assert maps.grid.stride == (stride, stride)
        assert maps.grid.offset == (offset, offset)


@pytest.mark.parametrize("how", list(views(LANDSCAPE)))
@pytest.mark.parametrize("source", [LANDSCAPE, PORTRAIT], ids=["225x301", "301x225"])
def test_one_hot_cell(named, source, how):
    name, net = named
    view = views(source)[how]
    cells = cells_along(name, view.size.height), cells_along(name, view.size.width)
    inner = (1, cells[1] - 2)  # off the middle on both axes, and of all four neighbours inside
    for cell in [(0, 0), inner, (cells[0] - 1, 1)]:
        maps = maps_of(name, net, view, cell)
        rectangle = rectangle_of(cell, cells, view)
        centre, half = (rectangle[:2] + rectangle[2:]) / 2, (rectangle[2:] - rectangle[:2]) / 2

        in_view = maps.in_view()[0, 0]
        size = np.array([view.size.width, view.size.height]) / cells[::-1]
        assert (np.abs(peak(in_view) - (np.array(cell[::-1]) + 0.5) * size) <= size / 2 + 1e-6).all()

        (heat,) = maps.in_source()[0]
        assert heat.shape == (source.height, source.width)
        assert (np.abs(peak(heat) - centre) <= half + 1e-6).all()
        if cell == inner:
            assert np.abs(peak(heat) - centre).max() <= 1  # the pixel that holds it, or its neighbour
            assert np.abs(centre_of_mass(heat) - centre).max() <= 0.25

        ((found,),) = cl.FractionOfMax(0.5)(maps)
        # Half of the tent is the cell itself; in pixels, an edge lies within one of where it should.
        assert len(found) == 1
        assert np.abs(np.array(found[0].box.corners) - rectangle).max() <= 1
        assert found[0].score == 1


@pytest.mark.parametrize("source", [LANDSCAPE, PORTRAIT], ids=["225x301", "301x225"])
def test_one_hot_cell_at_its_receptive_field(named, source):
    name, net = named
    stride, offset = CLOSED_FORM[name]
    view = CARD.view(source, "whole")
    cell = (1, 2)
    heat = maps_of(name, net, view, cell).in_view("receptive-field")[0, 0]
    centre = np.array([offset + cell[1] * stride, offset + cell[0] * stride])
    assert np.abs(peak(heat) - centre).max() <= 0.5
    assert (
        np.abs(centre_of_mass(heat) - centre).max() <= 0.05 or name == "resnet18"
    )  # its tent leaves the view


@pytest.mark.parametrize("name", ["resnet18", "lucida"])
def test_the_receptive_field_s_centre_is_where_the_gradient_is(name):
    """What a cell can see, found by its gradient with all weights positive: symmetric about the closed
    form."""
    module = build(name).eval()
    with torch.no_grad():
        for m in module.modules():
            if isinstance(m, nn.Conv2d):
                m.weight.fill_(1 / m.weight[0].numel())
            if isinstance(m, nn.BatchNorm2d):
                m.weight.fill_(1)
    trunk = module.stages[:3] if name == "lucida" else nn.Sequential(module.layer1, module.layer2)
    start = (
        module.stem
        if name == "lucida"
        else nn.Sequential(module.conv1, module.bn1, module.relu, module.maxpool)
    )
    pixels = torch.ones(1, 3, 225, 301, requires_grad=True)
    features = trunk(start(pixels))
    row, column = features.shape[2] // 2, features.shape[3] // 2 - 2
    features[0, 0, row, column].backward()
    ys, xs = np.nonzero(pixels.grad[0].abs().sum(0).numpy())
    stride, offset = 8, 0.5  # of all of Lucida, and of ResNet up to its second stage
    middle = (xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2
    # A max pooling's gradient goes to one of its equal inputs, and Lucida's average path sees one pixel more.
    assert np.abs(np.array(middle) - (offset + column * stride, offset + row * stride)).max() <= stride / 2


class Brightness(nn.Module):
    """Its one feature is the mean brightness of 8 × 8 pixels; class `light` wants much of it."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 1, 8, 8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classify = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.features.weight.fill_(1 / 192)
            self.features.bias.zero_()
            self.classify.weight.copy_(torch.tensor([[1.0], [-1.0]]))

    def forward(self, x):
        return self.classify(self.pool(self.features(x)).flatten(1))


def light(source: Size) -> tuple[np.ndarray, np.ndarray]:
    """A black picture with one light rectangle, off the middle; and the rectangle."""
    pixels = np.zeros((source.height, source.width, 3), np.uint8)
    box = np.array(
        [0.55 * source.width, 0.15 * source.height, 0.85 * source.width, 0.4 * source.height]
    ).round()
    x0, y0, x1, y1 = box.astype(int)
    pixels[y0:y1, x0:x1] = 255
    return pixels, box


def brightness(**options) -> cl.Network:
    # At 96 × 128 the convolution leaves no rest: stretching cells over a rest would move them, up to a cell.
    shape = Preprocessing(**({"size": 96, "mean": (0.0,) * 3, "std": (1.0,) * 3} | options))
    labels = (cl.Label("0", "light"), cl.Label("1", "dark"))
    return cl.wrap(Brightness().eval(), card=cl.Card(preprocessing=shape, labels=labels))


HOW = {
    "whole": ({}, 1),
    "flip": ({}, "flip"),
    "squash": ({"resize": "squash"}, 1),
    "fixed-size": ({"any_size": False}, "flip"),
    "zooms": ({}, "flip+1+1.5"),
}


@pytest.mark.parametrize("how", list(HOW))
@pytest.mark.parametrize("source", [LANDSCAPE, PORTRAIT], ids=["225x301", "301x225"])
def test_from_file_to_box_whatever_the_camera_wrote(tmp_path, source, how):
    """The whole way, for every EXIF orientation: the box is that of the light rectangle in the upright
    picture."""
    options, several = HOW[how]
    pixels, box = light(source)
    for orientation in UPRIGHT if how in ("whole", "flip") else (1, 6, 7):
        data = encoded(stored_for(pixels, orientation), "JPEG", orientation, quality=95)
        (tmp_path / f"{orientation}.jpg").write_bytes(data)
        assert Image.open(tmp_path / f"{orientation}.jpg").getexif()[0x0112] == orientation
    net, rule = brightness(**options), cl.FractionOfMax(0.5)
    scale = np.array([source.width, source.height] * 2) / 96 if options else 225 / 96
    for found in cl.localize(net, tmp_path, top=1, method="cam", boxes=rule, views=several):
        assert found[0].class_name == "light"
        corners = np.array(found[0].boxes[0].box.corners)
        assert (np.abs(corners - box) <= 4 * scale).all(), found[0].path  # half a cell of 8 × 8 pixels


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_map_of_a_turned_file_is_the_map_of_the_upright_one(tmp_path, orientation):
    pixels, _ = light(LANDSCAPE)
    (tmp_path / "a.png").write_bytes(encoded(stored_for(pixels, orientation), "PNG", orientation))
    net = brightness()
    batch = net.preprocess(tmp_path / "a.png", view="whole")
    assert batch.views == (View.whole(LANDSCAPE, Size(96, 128)),)
    found = cl.CAM()(net, batch, cl.ClassTarget(0)).in_source()[0]
    upright = cl.CAM()(net, net.preprocess(pixels, view="whole"), cl.ClassTarget(0)).in_source()[0]
    assert found.shape == (1, 225, 301)
    torch.testing.assert_close(found, upright)
