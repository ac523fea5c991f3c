"""Fields by recurrence against gradients, and the empirical field against slow loops and units whose field is known."""
# mypy: disable-error-code="union-attr,arg-type"

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import camlucida as cl
from camlucida.errors import LayerError, TargetError, UnsupportedError, UsageError
from camlucida.networks import vgg
from camlucida.probes.looking import Pictures
from camlucida.probes.receptive_field import (
    empirical_field,
    field_by_gradient,
    field_of,
    strongest_of,
)
from camlucida.values import Size
from fingerprints import unchanged
from small_networks import gap, headed, pixels, seeded, tokens


def load(name: str, **options) -> cl.Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cl.load(name, weights=None, num_classes=3, width=0.1, precision="64-true", **options)


# --- section 8's table, by recurrence and by gradients -------------------------------------------------------

TABLE = {  # network: view, layer → field, stride
    "vgg-d-gap": ((212, 228), {"3_3": (40, 4), "4_3": (92, 8), "5_3": (196, 16)}),
    "alexnet": ((227, 195), {"conv5": (163, 16)}),
    "zfnet": ((160, 176), {f"conv{n}": rows for n, rows in enumerate([(7, 2), (27, 8), (75, 16), (107, 16), (139, 16)], 1)}),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_the_table_and_what_gradients_reach(name):
    view, rows = TABLE[name]
    net = load(name, head=None if "gap" in name else "gap")
    trunk = net.module if "gap" in name else net.module.trunk
    names = vgg.convolution_names(trunk) if "vgg" in name else {n: f"trunk.features.{n}" for n in rows}
    x = torch.randn(1, 3, *view, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for short, (reach, stride) in rows.items():
        layer = net.find_layer(names[short], x)
        assert (layer.receptive_field, layer.stride) == ((reach, reach), (stride, stride))
        cell = (layer.size[0] // 2, layer.size[1] // 2)
        assert field_by_gradient(net, x, layer.name, cell) == field_of(layer, cell).clipped(Size(*view))


def test_gradients_stay_inside_and_the_module_comes_back():
    net = cl.wrap(gap())
    x = pixels(1)
    layer = net.find_layer(None, x)
    with unchanged(net.module):
        found = field_by_gradient(net, x, None, (0, 6), unit=2)
    theory = field_of(layer, (0, 6)).clipped(Size(20, 28))
    assert theory.x0 <= found.x0 < found.x1 <= theory.x1
    assert theory.y0 <= found.y0 < found.y1 <= theory.y1
    nothing = field_by_gradient(net, torch.full((1, 3, 20, 28), -1e9), None, (2, 3), unit=0)
    assert nothing is None or nothing.area <= theory.area * 4


# --- the empirical field -------------------------------------------------------------------------------------


def slow(net, x, layer, unit, patch, stride, contents_of):
    """Mean discrepancy by place around the peak, and how many pictures reach it: one whole pass for each patch."""
    sums: dict[tuple[int, int], float] = {}
    counts: dict[tuple[int, int], int] = {}
    for number, picture in enumerate(x):
        run = lambda p: net.run(p[None], [layer.point]).tapped[layer.point]  # noqa: E731
        with torch.no_grad():
            clean = layer.cells(run(picture))[0, unit]
        row, column = divmod(int(clean.argmax()), clean.shape[1])
        middle = [
            math.floor(o + c * s - patch / 2 + 0.5)
            for o, c, s in zip(layer.offset, (row, column), layer.stride, strict=True)
        ]
        places = [
            (i, j)
            for i, j in itertools.product(range(-99, 100), repeat=2)
            if 0 <= middle[0] + i * stride <= picture.shape[1] - patch
            and 0 <= middle[1] + j * stride <= picture.shape[2] - patch
        ]
        contents = contents_of(picture, len(places), number)
        for (i, j), new in zip(places, contents, strict=True):
            y, left = middle[0] + i * stride, middle[1] + j * stride
            copy = picture.clone()
            copy[:, y : y + patch, left : left + patch] = new
            with torch.no_grad():
                changed = layer.cells(run(copy))[0, unit, row, column]
            sums[i, j] = sums.get((i, j), 0.0) + abs(float(clean[row, column] - changed))
            counts[i, j] = counts.get((i, j), 0) + 1
    return sums, counts


def noise(picture, count, number, patch=5, seed=0):
    """As the probe draws it."""
    low, high = picture.amin((1, 2))[:, None, None], picture.amax((1, 2))[:, None, None]
    drawn = torch.rand(
        count, 3, patch, patch, generator=torch.Generator().manual_seed(seed * 1_000_003 + number)
    )
    return low + drawn.to(picture) * (high - low)


@pytest.mark.parametrize("engine", ["incremental", "plain"])
def test_the_mean_map_is_the_slow_loop(engine):
    net = cl.wrap(gap().double())
    x = pixels(3).double()
    layer = net.find_layer("features.3", x)
    sums, counts = slow(net, x, layer, 1, 5, 2, noise)
    with unchanged(net.module):
        found = empirical_field(net, "features.3", 1, x, patch=5, stride=2, engine=engine)
    n, m = (side // 2 for side in found.values.shape)
    assert {(i, j): int(found.counts[i + n, j + m]) for i, j in counts} == counts
    assert int(found.counts.sum()) == sum(counts.values())
    for (i, j), total in sums.items():
        assert found.values[i + n, j + m] == pytest.approx(total / counts[i, j], rel=1e-5, abs=1e-9)
    assert found.theory == (7, 7)
    assert found.notes[0].startswith(
        "incremental: 2 of 2 layers" if engine == "incremental" else "plain loop"
    )


class Residual(nn.Module):
    """Two branches, one in place, and a gate over the whole map."""

    def __init__(self, gate: bool = False) -> None:
        super().__init__()
        self.stem, self.near, self.far = (
            nn.Conv2d(3, 6, 3, 2),
            nn.Conv2d(6, 6, 1),
            nn.Conv2d(6, 6, 5, padding=2),
        )
        self.norm, self.last, self.fc = nn.BatchNorm2d(6), nn.Conv2d(6, 8, 3, padding=1), nn.Linear(8, 3)
        self.gate = gate

    def forward(self, x):
        x = F.relu_(self.stem(x))
        y = self.norm(self.far(x))
        y += self.near(x)
        y = F.relu_(y)
        if self.gate:
            y = y * torch.sigmoid(x.mean((2, 3), keepdim=True))
        return self.fc(F.relu(self.last(F.max_pool2d(y, 2))).mean((2, 3)))


MADE = {
    "residual": (lambda: seeded(Residual), "last", True),
    "residual, before pooling": (lambda: seeded(Residual), None, True),
    "gate over the whole map": (lambda: seeded(Residual, True), "last", True),
    "channels last": (
        lambda: headed(lambda m, x: m.fc(m.norm(x.permute(0, 2, 3, 1)).mean((1, 2))), norm=nn.LayerNorm(6)), "norm", True
    ),
    "tokens": (lambda: tokens("norm, mean"), "block", False),
}  # fmt: skip


@pytest.mark.parametrize("kind", MADE)
def test_computing_what_changes_equals_plain_inference(kind):
    make, layer, windows = MADE[kind]
    net = cl.wrap(make().double())
    x = pixels(2).double()
    options = {"patch": 4, "stride": 3, "top": 2}
    plain = empirical_field(net, layer, 3, x, engine="plain", **options)
    assert np.nanmax(plain.values) > 1e-3
    auto = empirical_field(net, layer, 3, x, **options)
    assert auto.notes[0].startswith("incremental" if windows else "plain loop: ")
    np.testing.assert_allclose(auto.values, plain.values, rtol=1e-6, atol=1e-9)
    if not windows:
        with pytest.raises(UnsupportedError):
            empirical_field(net, layer, 3, x, engine="incremental", **options)


def test_graphs_of_many_shapes_that_are_not_all_kept(monkeypatch):
    monkeypatch.setattr("camlucida.networks.network.KEPT_SHAPES", 1)
    net = cl.wrap(gap().double())
    random = torch.Generator().manual_seed(0)
    shapes = [(20, 28), (24, 20), (20, 28), (24, 20)]
    given = [cl.values.Batch.of(torch.randn(1, 3, *shape, generator=random).double()) for shape in shapes]
    plain, found = (
        empirical_field(net, "features.1", 1, Pictures(net, given), patch=6, stride=4, engine=engine)
        for engine in ("plain", "incremental")
    )
    assert sorted(one.peak.picture for one in found.pictures) == [0, 1, 2, 3]
    np.testing.assert_allclose(found.values, plain.values, rtol=1e-6, atol=1e-9)


def test_the_embedded_network_in_float32():
    net = cl.load("embedded")
    x = torch.randn(1, 3, 64, 80, generator=torch.Generator().manual_seed(0))
    some: dict = {"patch": 7, "stride": 24}
    plain = empirical_field(net, "stages.1", 5, x, engine="plain", **some)
    found = empirical_field(net, "stages.1", 5, x, engine="incremental", **some)
    np.testing.assert_allclose(found.values, plain.values, atol=1e-4 * float(np.nanmax(plain.values)))
    assert np.nanmax(plain.values) > 0


def seeing(rows: slice, columns: slice) -> cl.Network:
    """One unit of field 9 × 9 that looks at some of it only, and a silent one."""
    conv = nn.Conv2d(3, 2, 9, padding=4, bias=False)
    nn.init.zeros_(conv.weight)
    conv.weight.data[0, :, rows, columns] = 1.0
    return cl.wrap(
        nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)).eval()
    )


@pytest.mark.parametrize(("rows", "columns"), [((3, 6), (3, 6)), ((0, 2), (5, 9))])
def test_a_unit_that_looks_at_less_than_its_field(rows, columns):
    """Patches of one pixel see the looked-at rectangle to the pixel, where it lies around the peak."""
    net = seeing(slice(*rows), slice(*columns))
    x = torch.rand(12, 3, 24, 31, generator=torch.Generator().manual_seed(3))
    found = empirical_field(net, "1", 0, x, patch=1, stride=1)
    assert found.theory == (9, 9)
    inside = found.values > 1e-3
    n, m = (side // 2 for side in inside.shape)
    at = np.argwhere(inside) - (n, m)
    assert (at.min(0) + 4).tolist() == [rows[0], columns[0]]
    assert (at.max(0) + 5).tolist() == [rows[1], columns[1]]
    box = found.box
    assert columns[0] - 4.5 <= box.x0 < box.x1 <= columns[1] - 4.5
    assert rows[0] - 4.5 <= box.y0 < box.y1 <= rows[1] - 4.5
    assert found.size == (box.y1 - box.y0, box.x1 - box.x0)


def test_the_box_holds_what_is_above_half():
    from camlucida.probes.receptive_field import EmpiricalField

    values = np.full((5, 7), 0.1, np.float32)
    values[1, 3:6], values[2, 3], values[0, 0] = 0.6, 1.0, np.nan
    found = EmpiricalField("a", 0, values, np.ones((5, 7), np.int64), 5, 3, None, ())
    assert found.box.corners == (-1.5, -4.5, 7.5, 1.5)
    assert found.size == (6, 9)
    assert EmpiricalField("a", 0, values * 0, np.ones((5, 7), np.int64), 5, 3, None, ()).box is None


def test_seeds_decide_the_patches():
    net, x = cl.wrap(gap()), pixels(2)
    one, again, other = (
        empirical_field(net, None, 1, x, patch=5, stride=4, seed=s).values for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_default_patches_are_the_papers_in_proportion():
    found = empirical_field(cl.wrap(gap()), None, 1, pixels(1, 112, 130), engine="plain")
    assert (found.patch, found.stride) == (6, 2)
    tops, lefts = found.pictures[0].tops, found.pictures[0].lefts
    assert 0 <= tops[0] < 2
    assert 112 - 6 - 2 < tops[-1] <= 112 - 6
    assert lefts[-1] <= 130 - 6


# --- which pictures ------------------------------------------------------------------------------------------


def test_pictures_of_many_sizes_and_broken_ones(tmp_path):
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate([(40, 56), (64, 44), (40, 56), (51, 90)]):
        Image.fromarray(random.integers(0, 255, (height, width, 3), np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    (tmp_path / "2.png").write_bytes(b"no picture")
    net = cl.wrap(gap(), card=cl.Card(preprocessing=cl.load("embedded").card.preprocessing))
    pictures = Pictures.of(net, tmp_path)
    (kept,) = strongest_of(pictures, [None], 25).values()
    assert {p.picture for p in kept.peaks(0)} == {0, 1, 3}
    assert list(pictures.rejected) == [2]
    assert "not a picture" in pictures.rejected[2]
    found = empirical_field(net, None, 0, pictures, patch=20, stride=20)
    assert len(found.pictures) == 3  # fewer than 25


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"layer": "nowhere"}, LayerError, "layer 'nowhere' does not exist"),
        ({"layer": "4"}, LayerError, "no spatial extent"),
        ({"unit": 2}, TargetError, r"unit 2 of layer 1; allowed: 0 … 1"),
        ({"unit": 1}, UsageError, "unit 1 of layer 1; got no activation above zero in any of 2 pictures"),
        ({"patch": 21}, UsageError, "allowed: patch 1 … 20"),
        ({"patch": 20, "stride": 30, "unit": 0}, UsageError, "no place for a patch of 20 every 30 pixels"),
        ({"engine": "fast"}, UsageError, "auto | incremental | plain"),
        ({"top": 0}, UsageError, "pictures for each unit; got 0"),
    ],
)
def test_what_cannot_be_is_one_line(options, error, words):
    net = seeing(slice(0, 9), slice(0, 9))
    asked = {"layer": "1", "unit": 0, **options}
    with pytest.raises(error, match=words.replace("|", r"\|")) as caught:
        empirical_field(net, asked.pop("layer"), asked.pop("unit"), pixels(2), **asked)
    assert "\n" not in str(caught.value)


def test_an_empty_folder(tmp_path):
    with pytest.raises(UsageError, match="pictures for a probe; got none"):
        Pictures.of(cl.wrap(gap()), tmp_path)
