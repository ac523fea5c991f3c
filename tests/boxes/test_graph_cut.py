"""The graph cut of section 4.2: the cut against all labellings, the box on a made picture."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

import camlucida as cl
from camlucida import specs
from camlucida.boxes import RULES, FractionOfMax, GraphCut, rule
from camlucida.boxes.from_map import boxes_of
from camlucida.boxes.graph_cut import minimum_cut
from camlucida.errors import UsageError
from camlucida.values import Box, Size
from oracles import boxes as oracle

OBJECT = Box(50, 30, 140, 80)


def made(noise: float = 6.0, seed: int = 0) -> tuple[np.ndarray, Image.Image]:
    """A brown thing on grey, 180 × 120 pixels, and a map that is hot on a small part of it."""
    rng = np.random.default_rng(seed)
    colours = np.full((120, 180, 3), 60.0)
    colours[30:80, 50:140] = (190, 120, 40)
    colours += rng.normal(0, noise, colours.shape)
    heat = 0.2 * rng.random((120, 180))
    heat[45:65, 70:100] += 1
    return heat, Image.fromarray(colours.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("seed", range(6))
def test_no_labelling_costs_less(seed):
    """All 2^12 labellings of 3 × 4 pixels: none is cheaper than the cut."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(0, 255, (3, 4, 3)).astype(float)
    background, foreground = rng.random((2, 3, 4)) * 5
    smoothness = (0.3, 1.0, 3.0)[seed % 3]
    found = minimum_cut(background, foreground, colours, smoothness)

    def energy(labels) -> float:
        return oracle.cut_energy(labels, background, foreground, colours, smoothness)

    every = (np.reshape(bits, (3, 4)) for bits in itertools.product([False, True], repeat=12))
    best = min(energy(labels) for labels in every)
    assert best - 1e-9 <= energy(found) <= best + 1e-2  # costs are rounded to thousandths
    assert 0 < found.sum() < 12 or smoothness == 3.0


def test_a_forbidden_side_is_never_taken():
    colours, free = np.zeros((2, 3, 3)), np.zeros((2, 3))
    background, foreground = free.copy(), free.copy()
    background[0, 0] = np.inf  # must be foreground
    foreground[:, 2] = np.inf  # must be background
    found = minimum_cut(background, foreground, colours, 1.0)
    assert found.tolist() == [
        [True, False, False],
        [False, False, False],
    ]  # one corner is the shortest border


@pytest.mark.parametrize("side", [64, 96, 180])
def test_the_box_of_a_known_object(side):
    heat, picture = made()
    (found,) = GraphCut(side=side).on_picture(heat, picture)
    assert cl.metrics.box_iou(found.box.corners, OBJECT.corners) > 0.9
    (simple,) = FractionOfMax(0.5).on_map(heat, Size(120, 180))
    assert cl.metrics.box_iou(simple.box.corners, OBJECT.corners) < 0.2  # the map alone does not know


def test_at_full_resolution_it_is_the_object_to_the_pixel():
    heat, picture = made(noise=3.0)
    (found,) = GraphCut(side=180).on_picture(heat, picture)
    assert found.box == OBJECT
    assert found.score == 1.0
    turned = picture.transpose(Image.Transpose.TRANSPOSE)
    assert GraphCut(side=180).on_picture(heat.T, turned)[0].box == Box(30, 50, 80, 140)


def test_a_coarse_map_is_laid_over_the_picture():
    heat, picture = made()
    small = heat.reshape(12, 10, 18, 10).mean((1, 3))
    (found,) = GraphCut(side=180).on_picture(small, picture)
    assert cl.metrics.box_iou(found.box.corners, OBJECT.corners) > 0.95


def test_fixed_marks_stay():
    """Marks outside the object's colours are foreground where they are fixed, and only teach where they are not."""
    heat, picture = made()
    heat[100:104, 10:14] = 3.0  # 16 pixels of background among the hottest
    taught, fixed = (GraphCut(side=180, fixed=f).mask(heat, picture) for f in (False, True))
    assert taught is not None
    assert fixed is not None
    assert not taught[100:104, 10:14].any()
    assert fixed[100:104, 10:14].all()
    assert not fixed[heat < np.quantile(heat, 0.3)].any()


@pytest.mark.parametrize("heat", [np.zeros((6, 8)), np.full((6, 8), np.nan), np.ones((6, 8))])
def test_no_map_no_cut(heat):
    (found,) = GraphCut().on_picture(heat, Image.new("RGB", (16, 12)))
    assert found.whole
    assert found.box == Box(0, 0, 16, 12)


def test_a_picture_of_one_colour_and_a_map_of_few_values():
    heat = np.zeros((6, 8))
    heat[2, 3] = 1
    (found,) = GraphCut().on_picture(heat, Image.new("RGB", (8, 6), (40, 40, 40)))
    assert found.box.area <= 48  # nothing tells the colours apart, and nothing fails


def test_it_needs_the_picture():
    maps = cl.HeatMaps(
        torch.rand(1, 1, 4, 5), None, torch.zeros(1, 1), cl.Grid((40, 50), (5, 5), (10, 10), (10, 10)),
        (cl.View.whole(Size(40, 50)),), "made", "nothing",
    )  # fmt: skip
    with pytest.raises(UsageError, match="a map and its picture"):
        GraphCut().on_map(np.ones((2, 3)), Size(2, 3))
    with pytest.raises(UsageError, match="got none pictures; allowed: 1"):
        GraphCut()(maps)
    picture = Image.effect_noise((50, 40), 60)
    heat = maps.in_source()[0][0].numpy()
    assert GraphCut()(maps, [picture]) == ((GraphCut().on_picture(heat, picture),),)
    assert boxes_of(GraphCut(), heat, Size(40, 50), lambda: picture) == GraphCut().on_picture(heat, picture)


def test_by_name():
    assert rule("graph-cut") == GraphCut()
    described = specs.describe(GraphCut(smoothness=2.0, fixed=True), RULES)
    assert described == "graph-cut:smoothness=2.0,fixed=true"
    for options in ({"foreground": 1.2}, {"background": 0.96}, {"smoothness": -1}, {"side": 1}):
        with pytest.raises(UsageError, match=r"GraphCut\."):
            GraphCut(**options)
