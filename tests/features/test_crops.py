"""Own crops against a planted answer, boxes and figures of localization against hand-worked cases and closed forms."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from laid_out import network, picture
from PIL import Image

import camlucida as cl
import planted
from camlucida.features import (  # fmt: skip
    Cropping,
    Descriptor,
    Extractor,
    Features,
    LinearSVM,
    chance,
    class_maps,
    fine_grained,
    own_box,
)
from camlucida.features.crops import BOX, CROP, WHOLE, Made, overlap
from camlucida.images import datasets
from camlucida.images.datasets import Example
from camlucida.images.sources import Source
from camlucida.images.views import Preprocessing
from camlucida.report import features_crops as report
from camlucida.values import Box, Label, ScoredBox, Size

SHAPE = Preprocessing(size=96, mean=(0.0,) * 3, std=(1.0,) * 3)
SVM = {"c": 0.01, "normalise": "standard"}


def colours() -> cl.Network:
    return cl.wrap(planted.network(), card=cl.Card("colours", preprocessing=SHAPE))


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    data = datasets.load([planted.cub(tmp_path_factory.mktemp("cub"), 8, 6)])
    train, test = ([e for e in data.examples if part in e.subsets] for part in ("train", "test"))
    return data, train, test


@pytest.fixture(scope="module")
def result(birds):
    data, train, test = birds
    return fine_grained(colours(), train, test, data.labels, **SVM)


def test_crops_beat_whole_pictures_where_a_background_misleads(result):
    assert list(result.settings) == [WHOLE, CROP, BOX]
    assert result.right(WHOLE).mean() < 0.75
    assert result.right(CROP).all()
    assert result.right(BOX).all()
    kinds = np.array([0, 0, 1, 1])  # red and blue are told apart on whole pictures, too
    np.testing.assert_array_equal(kinds[result.predicted[WHOLE]], kinds[result.truth])
    for name in (WHOLE, CROP, BOX):
        assert result.settings[name].figures["accuracy"] == pytest.approx(result.right(name).mean())
    assert not any(one.is_picture for one in result.crops)
    assert (result.iou > 0.5).all()
    found = report.figures_of_run(result)
    assert found["localization"]["own_crops"] == 100
    assert found["settings"][CROP]["gained"] == 24 - result.right(WHOLE).sum()
    assert "better than whole pictures" in report.finding(found)


def test_each_setting_s_svm_is_of_its_own_features(result, birds):
    """The third setting again, from the extractor and boxes alone."""
    data, train, test = birds
    cut = Extractor(colours(), Descriptor(region="box"))
    every = [*train, *test]
    vectors = np.stack([one.vector for one in cut([cl.features.Wanted(e.source, e.boxes[0]) for e in every])])
    features = Features(vectors, tuple(e.source.name for e in every), tuple(e.labels for e in every), data.labels, cut.blocks)  # fmt: skip
    again = cl.features.judge(features, result.split, **SVM)
    np.testing.assert_allclose(again.svm.weights, result.settings[BOX].svm.weights, atol=1e-9)
    own = np.stack([one.vector for one in cut([cl.features.Wanted(e.source, c.box.box) for e, c in zip(every, result.crops, strict=True)])])  # fmt: skip
    again = cl.features.judge(replace(features, values=own), result.split, **SVM)
    np.testing.assert_allclose(again.svm.weights, result.settings[CROP].svm.weights, atol=1e-9)


def test_no_test_label_is_looked_at(birds):
    data, train, test = birds[0], birds[1][::2], birds[2][::4]
    lied = [replace(e, label=3 - e.label, labels=(3 - e.label,), objects=(), boxes=e.boxes) for e in test]
    for cropping in (Cropping(), Cropping("true"), Cropping("top", top=2)):
        one, two = (fine_grained(colours(), train, part, data.labels, cropping=cropping, **SVM) for part in (test, lied))  # fmt: skip
        assert one.crops == two.crops
        for name in one.predicted:
            np.testing.assert_array_equal(one.predicted[name], two.predicted[name])


def test_whose_map_makes_the_box():
    """Two channels, two classes; class 0 lives left, class 1 right, and the SVM prefers class 1."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[8:24, 8:32, 0], pixels[16:32, 48:72, 2] = 255, 255
    net = cl.wrap(planted.network(), card=cl.Card("colours", preprocessing=replace(SHAPE, size=40)))
    extractor, shown = Extractor(net), Image.fromarray(pixels)
    weights = np.array([[1.0, 0, 0], [0, 0, 2.0]])
    classes = (Label("a", "a"), Label("b", "b"))
    svm = LinearSVM(weights, np.zeros(2), classes, extractor.blocks, "none")
    rule = cl.FractionOfMax(0.5)
    assert own_box(svm, extractor, shown, rule).box == Box(48, 16, 72, 32)
    assert own_box(svm, extractor, shown, rule, label=0).box == Box(8, 8, 32, 24)
    both = own_box(svm, extractor, shown, cl.FractionOfMax(0.2, components="all"), top=2)
    assert both.box.x0 >= 46  # mean of both maps: the stronger class's component, the other below half
    mirrored = Extractor(net, Descriptor(flips=True, scales=(40, 80)))
    svm = LinearSVM(weights, np.zeros(2), classes, mirrored.blocks, "none")
    found = own_box(svm, mirrored, shown, rule).box
    assert overlap(found, [Box(48, 16, 72, 32)]) > 0.85


def test_the_map_is_the_svm_s_over_the_source_picture():
    """One view: the box of the upsampled map that `class_maps` gives, thresholded by hand."""
    net, shown = network(), picture(3)
    extractor = Extractor(net)
    rng = np.random.default_rng(0)
    svm = LinearSVM(rng.normal(size=(3, extractor.width)), np.zeros(3), tuple(Label(str(k), str(k)) for k in range(3)), extractor.blocks, "l2")  # fmt: skip
    maps = class_maps(svm, [extractor], shown)
    values = maps.views[0].values[maps.decisions.argmax()]
    import torch

    heat = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], (shown.height, shown.width), mode="bilinear", align_corners=False)[0, 0].numpy()  # fmt: skip
    (expected,) = cl.FractionOfMax(0.2).on_map(heat, Size(shown.height, shown.width))
    found = own_box(svm, extractor, shown, cl.FractionOfMax(0.2))
    np.testing.assert_allclose(found.box.corners, expected.box.corners, atol=1)


def test_chance_of_both_kinds_has_closed_forms():
    """Boxes of half the width and all the height over the left half: overlap (½ − x)/(½ + x) ≥ ½ for x ≤ 1/6 of 1/2. Between two
    points over the whole picture: P(area ≥ ½) = 2 ∫ (1 − w)(1 − 1/2w)² dw over ½ … 1 = 2.5 − 2 · 1.241434."""
    half = (Box(0, 0, 50, 60), Size(60, 100))
    first, _ = chance([((half[0],), half[1])], [half], draws=200_000)
    assert first == pytest.approx(1 / 3, abs=0.004)
    whole = (Box(0, 0, 30, 70), Size(70, 30))
    first, second = chance([((whole[0],), whole[1])], [whole], draws=200_000)
    assert first == 1
    assert second == pytest.approx(0.017132, abs=0.001)
    sides = (Box(10, 10, 110, 30), Size(60, 200))  # half of the width, a third of the height
    first, _ = chance([((Box(0, 0, 50, 20), Box(50, 0, 100, 60)), Size(60, 100))], [sides, whole], draws=50_000)  # fmt: skip
    # The whole picture's sides: overlap ½ with the right half. Ours: the left box at y ≤ y* … counted by brute force.
    rng = np.random.default_rng(9)
    x, y = rng.random(200_000) * 50, rng.random(200_000) * 40
    shared = np.clip(50 - x, 0, None) * np.clip(20 - y, 0, None)
    assert first == pytest.approx(0.5 + 0.5 * (shared / (2000 - shared) >= 0.5).mean(), abs=0.01)


def test_figures_by_hand():
    """Four test pictures: three rightly named on crops, two on whole pictures, one lost."""
    examples = tuple(Example(Source(f"{i}", f"{i}", f"{i}"), k, (Box(0, 0, 20, 20),)) for i, k in enumerate((0, 1, 0, 0, 1, 1)))  # fmt: skip
    crops = tuple(Made(Size(40, 80), ScoredBox(Box(*corners), 1.0, whole)) for corners, whole in (
        ((0, 0, 20, 20), False), ((0, 0, 20, 20), False), ((0, 0, 20, 10), False), ((0, 0, 20, 9), False), ((10, 0, 30, 20), False), ((0, 0, 80, 40), True),
    ))  # fmt: skip
    given = tuple(one.boxes for one in examples)
    iou = np.array([overlap(c.box.box, g) for c, g in zip(crops, given, strict=True)])
    np.testing.assert_allclose(iou, [1, 1, 0.5, 0.45, 1 / 3, 1 / 8])
    judged = SimpleNamespace(svm=SimpleNamespace(c=1.0), figures={"mean class recall": 0.5})
    predicted = {WHOLE: np.array([0, 1, 1, 0]), CROP: np.array([0, 0, 0, 1]), BOX: np.array([0, 0, 1, 1])}
    result = cl.features.FineGrained(
        examples, (Label("a", "a"), Label("b", "b")), cl.features.Split(np.array([0, 1]), np.arange(2, 6)),
        dict.fromkeys(predicted, judged), predicted, crops, given, iou, (),
    )  # fmt: skip
    found = report.figures_of_run(result)
    crop, located = found["settings"][CROP], found["localization"]
    assert [one["accuracy"] for one in found["settings"].values()] == [50, 75, 100]
    assert (crop["against_whole"], crop["gained"], crop["lost"]) == (25, 2, 1)
    assert "no difference beyond chance" in report.finding(found)
    assert (located["own_crops"], located["whole_picture"]) == (25, 0)  # 0.5 counts, 0.45 does not
    assert found["crops"] == {"mean_share_of_picture": pytest.approx(100 * (200 + 180 + 400 + 3200) / 4 / 3200, abs=0.01), "whole_picture_instead": 3}  # fmt: skip
    assert [row["part"] for row in report.rows(result)] == ["train"] * 2 + ["test"] * 4
    assert [row["class_by_own_crops"] for row in report.rows(result)][2:] == ["a", "a", "a", "b"]
    assert [row["right_by_own_crops"] for row in report.per_class(result)] == [2, 1]


def test_pictures_without_boxes_have_two_settings_or_are_named(birds):
    data, train, test = birds[0], birds[1][::2], birds[2][::4]
    bare = [replace(e, boxes=(), objects=()) for e in train], [replace(e, boxes=(), objects=()) for e in test]
    found = fine_grained(colours(), *bare, data.labels, **SVM)
    assert list(found.settings) == [WHOLE, CROP]
    assert np.isnan(found.iou).all()
    assert "localization" not in report.figures_of_run(found)
    some = fine_grained(colours(), train, [bare[1][0], *test[1:]], data.labels, **SVM)
    assert some.rejected == ((test[0].source.name, "no box on this picture"),)
    assert len(some.split.test) == len(test) - 1
    with pytest.raises(cl.UsageError, match="no box on this picture"):
        fine_grained(colours(), train, bare[1], data.labels, **SVM)
    with pytest.raises(cl.UsageError, match="no picture of blue bright"):
        fine_grained(colours(), [e for e in train if e.label != 3], test, data.labels, **SVM)


def test_options_are_checked():
    for wrong in ({"maps": "test"}, {"top": 0}):
        with pytest.raises(cl.UsageError):
            Cropping(**wrong)
    with pytest.raises(cl.UsageError, match="region box"):
        fine_grained(colours(), [], [], (), how=Descriptor(region="box"))
