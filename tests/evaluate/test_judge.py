"""One map against its objects, and all together: by hand, and against the protocols' own functions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from camlucida import metrics
from camlucida.boxes import FractionOfMax, GraphCut, TightLoose
from camlucida.errors import InputError
from camlucida.evaluate import judge, pointing, tally, wsol
from camlucida.evaluate.baselines import centre_gaussian
from camlucida.evaluate.judge import CentreGaussian, Guesses, Objects, Protocol, score_map
from camlucida.evaluate.tally import GAUSSIAN, NETWORK, Case, Tally
from camlucida.values import Box, ScoredBox, Size

SIZE = Size(40, 80)
PROTOCOL = Protocol(FractionOfMax(0.3))


def blob(x0: int, y0: int, x1: int, y1: int, seed: int = 0) -> np.ndarray:
    """A map `(40, 80)` that is hot in a box and has noise elsewhere."""
    heat = 0.2 * np.random.default_rng(seed).random((40, 80)).astype(np.float32)
    heat[y0:y1, x0:x1] += 1
    return heat


def picture() -> Image.Image:
    return Image.new("RGB", (80, 40))


def scored(heat: np.ndarray, *boxes: Box, protocol: Protocol = PROTOCOL, mask=None) -> judge.MapScore:
    return score_map(protocol, heat, heat, Objects(SIZE, boxes, mask), picture)


def test_every_protocol_of_one_map():
    heat, truth = blob(10, 8, 40, 30), (Box(12, 8, 44, 32), Box(60, 0, 80, 10))
    found = scored(heat, *truth)
    assert found.box == (10, 8, 40, 30)
    iou = metrics.box_iou((10, 8, 40, 30), (12, 8, 44, 32))
    assert found.overlap == pytest.approx(float(iou))
    corners = np.array([box.corners for box in truth])
    curve = [
        metrics.box_iou(FractionOfMax(float(t)).on_map(heat, SIZE)[0].box.corners, corners).max() >= 0.5
        for t in judge.CURVE
    ]
    assert 20 < sum(curve) < 99
    assert np.unpackbits(found.curve, count=100).astype(bool).tolist() == curve
    square = corners * (224 / 80, 224 / 40, 224 / 80, 224 / 40)
    for components, packed in (("largest", found.largest), ("all", found.every)):
        wanted = wsol.box_accuracy(
            [judge.squashed(heat)], [square], judge.LEVELS, (0.3, 0.5, 0.7), components, normalise=True
        )
        for i, one in enumerate((0.3, 0.5, 0.7)):
            hits = np.unpackbits(packed[i], count=1000).astype(bool)
            assert hits.tolist() == wanted.hits(one)[0].tolist()
    assert np.unpackbits(found.every[0]).sum() > np.unpackbits(found.largest[2]).sum() > 0
    assert found.points
    assert found.energy == pytest.approx(pointing.energy(heat, boxes=corners))
    assert found.squashed is None


def test_the_pointing_game_is_played_in_pixels_of_the_picture():
    """A map of 20 × 40 samples of a picture of 40 × 80: 15 pixels are 7.5 samples."""
    heat = np.zeros((20, 40), np.float32)
    heat[10, 5] = 1

    def points(x: float) -> bool:
        return score_map(PROTOCOL, heat, heat, Objects(SIZE, (Box(x, 18, x + 10, 24),)), picture).points

    assert points(24)  # its first column of samples is 12: 7 away, 14 pixels
    assert not points(26)  # 13: 8 away, 16 pixels


def test_the_gaussian_is_a_map_like_any_other():
    for protocol in (PROTOCOL, Protocol(FractionOfMax(0.2), iou=0.6), Protocol(GraphCut(side=30))):
        objects = Objects(SIZE, (Box(20, 5, 62, 33),), np.eye(40, 80, dtype=np.uint8))
        noise = Image.effect_noise((80, 40), 80).convert("RGB")
        found = CentreGaussian(protocol).score(objects, lambda picture=noise: picture)
        heat = centre_gaussian(SIZE)
        wanted = score_map(
            protocol, heat, centre_gaussian(Size(224, 224)), objects, lambda picture=noise: picture
        )
        assert found.overlap == pytest.approx(
            wanted.overlap, abs=0.06
        )  # its box is read off 224 × 224 samples
        assert (np.unpackbits(found.largest) != np.unpackbits(wanted.largest)).mean() < 0.002
        assert (np.unpackbits(found.curve) != np.unpackbits(wanted.curve)).mean() < 0.06
        assert (found.points, found.energy) == (wanted.points, wanted.energy)
        peak = centre_gaussian(Size(224, 224)).max()  # no sample lies in the very middle
        np.testing.assert_allclose(found.squashed, wanted.squashed * peak, atol=1e-6)


def test_guesses_of_the_rules():
    def at(x: float) -> ScoredBox:
        return ScoredBox(Box(x, 0, x + 1, 1), 1.0)

    simple = judge.guesses(FractionOfMax(), [7, 3], [(at(0),), (at(1),)])
    assert simple == ((7, Box(0, 0, 1, 1)), (3, Box(1, 0, 2, 1)))
    pairs = [(at(10 * k), at(10 * k + 1)) for k in range(5)]  # tight, loose
    five = judge.guesses(TightLoose(), [4, 5, 6, 7, 8], pairs)
    assert [(c, box.x0) for c, box in five] == [(4, 1), (4, 0), (5, 11), (5, 10), (6, 21)]
    assert judge.guessed(TightLoose(), pairs[0]) == pairs[0][1]


def test_squashing_is_the_benchmarks():
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'camlucida[wsol]'")
    for shape in ((7, 5), (33, 60), (300, 500)):
        heat = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        wanted = cv2.resize(heat, (224, 224), interpolation=cv2.INTER_CUBIC)
        peak = np.abs(heat).max()
        np.testing.assert_allclose(
            judge.squashed(heat) * peak, wanted, atol=1e-4 * peak
        )  # its places are float32
        mask = (heat > 0).astype(np.uint8)
        nearest = cv2.resize(mask, (224, 224), interpolation=cv2.INTER_NEAREST)
        assert (judge.nearest(mask, (224, 224)) == nearest).all()


def test_a_map_that_says_nothing():
    for heat in (np.zeros((4, 8), np.float32), np.full((4, 8), np.nan, np.float32)):
        found = scored(heat, Box(0, 0, 80, 40))
        assert found.flat
        assert found.box == (0, 0, 80, 40)
        assert not found.points
        assert found.energy == 0


def case(path: str, label: int, *boxes: Box, blacklisted: bool = False, mask=None) -> Case:
    return Case(path, label, Objects(SIZE, boxes, mask), blacklisted)


def four(protocol: Protocol = PROTOCOL) -> Tally:
    """Right box and class; right box, class second; wrong box; blacklisted."""
    found = Tally(protocol)
    rows = [
        (case("a", 1, Box(10, 8, 40, 30)), blob(10, 8, 40, 30), [1, 2]),
        (case("b", 1, Box(10, 8, 40, 30)), blob(12, 8, 40, 30), [3, 1]),
        (case("c", 2, Box(10, 8, 20, 12)), blob(50, 8, 70, 38), [2, 1]),
        (case("d", 2, Box(0, 0, 9, 9), blacklisted=True), None, [2, 1]),
    ]
    for one, heat, classes in rows:
        score = scored(heat, *one.objects.boxes, protocol=protocol) if heat is not None else None
        box = Box(*score.box) if score else Box(0, 0, 80, 40)
        made = Guesses(1 + classes.index(one.label), 0.5, tuple((c, box) for c in classes))
        middle = found.gaussian.score(one.objects, picture) if score else None
        found.add(one, {NETWORK: (score, made), GAUSSIAN: (middle, made)})
    return found


def test_all_figures_by_hand():
    found = four()
    own = {name: figure["percent"] for name, figure in found.figures(NETWORK).items()}
    assert own["gt_known"] == 66.67
    assert own["top1_localization"] == 33.33
    assert own["top5_localization"] == 66.67
    assert own["error_at_1"] == 66.67
    assert own["error_at_5"] == 33.33
    assert own["corloc"] == 50.0  # class 1: 2 of 2, class 2: 0 of 1
    assert own["pointing_game"] == 50.0
    assert own["max_box_accuracy"] == 66.67
    assert "pxap" not in own
    for figure in found.figures(NETWORK).values():
        low, high = figure["interval"]
        assert 0 <= low <= figure["percent"] <= high <= 100
    report = tally.report(found, "given by hand")
    assert report["cases"] == 4
    assert report["counted"] == 3
    assert report["blacklisted"] == 1
    assert set(report["figures"]) == set(own) - set(tally.ORACLES)
    assert set(report["oracle_figures"][NETWORK]) == set(tally.ORACLES)
    assert report["threshold"] == {"value": 0.3, "origin": "given by hand", "oracle": False}
    assert report["curve"]["chosen"] == 0.3
    assert report["curve"][NETWORK]["percent"][30] == 66.67
    assert math.isclose(sum(report["curve"]["threshold"]), 49.5)


def test_a_box_on_the_edge_is_judged_in_its_own_convention():
    """Half-open 0.5 exactly is right; ILSVRC counts corner pixels, and the same boxes are right there by another overlap."""
    found = Tally(PROTOCOL)
    heat = np.zeros((40, 80), np.float32)
    heat[0:10, 0:10] = 1
    one = case("a", 0, Box(0, 0, 20, 10))
    score = scored(heat, *one.objects.boxes)
    assert score.overlap == 0.5
    found.add(one, {NETWORK: (score, Guesses(1, 1.0, ((0, Box(*score.box)),)))})
    figures = found.figures(NETWORK)
    assert figures["gt_known"]["percent"] == 100
    assert figures["error_at_1"]["percent"] == 0


def test_constant_boxes_are_judged_like_the_rest():
    found = four()
    whole = found.constant(1, 1)
    assert whole["gt_known"]["percent"] == 0  # at most 660 of 3200 pixels
    width, height = found.centred()
    best = found.constant(width, height)
    assert best["gt_known"]["percent"] >= whole["gt_known"]["percent"]
    assert best["error_at_5"]["percent"] == pytest.approx(
        100 - best["top5_localization"]["percent"], abs=0.01
    )


def test_several_labels_have_no_rank():
    figures = four(Protocol(FractionOfMax(0.3), several=True)).figures(NETWORK)
    assert "error_at_1" not in figures
    assert "top1_localization" not in figures
    assert figures["gt_known"]["percent"] == 66.67


def test_another_overlap_and_another_number_of_guesses():
    figures = four(Protocol(FractionOfMax(0.3), iou=0.95, top=1)).figures(NETWORK)
    assert figures["gt_known"]["percent"] == 33.33  # 28 of 30 columns are 0.93
    assert "error_at_5" not in figures
    assert figures["max_box_accuracy"]["percent"] == 33.33


def test_masks_give_pxap():
    found = Tally(PROTOCOL)
    mask = np.zeros((40, 80), np.uint8)
    mask[8:30, 10:40] = 1
    heat = blob(10, 8, 40, 30)
    one = case("a", 0, mask=mask)
    score = scored(heat, mask=mask)
    found.add(one, {NETWORK: (score, None)})
    assert not found.cases[0].counted  # it has no box
    figures = found.figures(NETWORK)
    wanted = wsol.pixel_average_precision(
        [judge.squashed(heat)], [judge.nearest(mask, (224, 224))], judge.LEVELS, normalise=True
    )
    assert set(figures) == {"pxap", "pointing_game", "energy"}
    assert figures["energy"]["percent"] == round(100 * pointing.energy(heat, mask=mask), 2)
    report = tally.report(found, "by hand")  # a set of masks alone is judged all the same
    assert (report["counted"], report["masked"]) == (0, 1)
    assert report["figures"] == figures
    assert not {"curve", "oracle_figures"} & set(report)
    assert figures["pxap"]["percent"] == round(wanted.value, 2) > 90
    assert found.cases[0].objects.mask is None  # not kept


def test_pictures_that_agree_are_no_certainty():
    """Three pictures right of three: a bootstrap would say from 100 to 100."""
    found = Tally(PROTOCOL)
    for i in range(3):
        heat, one = blob(10, 8, 40, 30, i), case(f"{i}", 0, Box(10, 8, 40, 30))
        score = scored(heat, *one.objects.boxes)
        found.add(one, {NETWORK: (score, Guesses(1, 1.0, ((0, Box(*score.box)),)))})
    low, high = (100 * v for v in metrics.wilson_interval(3, 3))
    figures = found.figures(NETWORK)
    for name in ("gt_known", "top1_localization", "corloc", "pointing_game", "max_box_accuracy"):
        assert figures[name]["percent"] == 100
        assert figures[name]["interval"] == [round(low, 2), high], name
    assert figures["error_at_1"]["interval"] == [0, round(100 - low, 2)]
    curve = found.curve(NETWORK)
    assert (curve["percent"][30], curve["low"][30], curve["high"][30]) == (100, round(low, 2), 100)


def test_boxes_are_squashed_as_the_benchmark_does():
    """int(x · 224 / width): 224 / width first would lose a pixel where the quotient is whole."""
    for width in range(20, 700):
        x = np.arange(1.0, width + 1)
        made = judge._on_square(np.stack([x - 1, x - 1, x, x], 1), Size(width, width), "reference")
        assert made[:, 0].tolist() == [int(v * 224 / width) for v in x - 1]


def test_reading_masks(tmp_path):
    one, two = np.zeros((20, 40), np.uint8), np.zeros((40, 80), np.uint8)
    one[:, :5], two[30:, :] = 255, 1
    files = []
    for name, values in (("one.png", one), ("two.png", two)):
        Image.fromarray(values).save(tmp_path / name)
        files.append(str(tmp_path / name))
    found = judge.read_mask(files, SIZE)
    wanted = np.zeros((40, 80), np.uint8)
    wanted[:, :10] = wanted[30:] = 1
    assert (found == wanted).all()
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"mask .*bad\.png"):
        judge.read_mask([str(tmp_path / "bad.png")], SIZE)


def test_intervals_of_classes_draw_pictures():
    """One picture a class would otherwise pass for certainty."""
    hits = [True, False] * 20
    found = tally._by_class(hits, list(range(40)), seed=0)
    low, high = found["interval"]
    assert found["percent"] == 50
    assert 30 < low < 45
    assert 55 < high < 70
