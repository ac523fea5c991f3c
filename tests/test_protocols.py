"""The pictures' way through all protocols: against a slow way by the public functions, picture by picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import camlucida as cl
from camlucida import metrics, pipeline, protocols
from camlucida.boxes import FractionOfMax
from camlucida.errors import UsageError
from camlucida.evaluate.judge import Protocol, laid_over, read_mask, squashed
from camlucida.evaluate.tally import GAUSSIAN, NETWORK, RANDOM, Tally
from camlucida.images.datasets import DataSet, Example, Truth
from camlucida.images.sources import Source
from camlucida.images.views import Preprocessing
from camlucida.networks.randomise import randomised_head
from camlucida.values import Box, Label
from small_networks import gap

LABELS = tuple(Label(f"n{i}", f"class {i}") for i in range(5))
BOXES = {"a.png": Box(5, 4, 40, 30), "b.png": Box(0, 0, 30, 44), "c.png": Box(10, 10, 50, 20)}


@pytest.fixture
def net():
    shape = Preprocessing(size=24, minimum=8)
    return cl.wrap(gap(), card=cl.Card("small", "", {}, shape, LABELS))


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    examples = []
    for i, (name, shape) in enumerate((("a.png", (36, 50)), ("b.png", (48, 33)), ("c.png", (36, 52)))):
        coarse = Image.fromarray(rng.integers(0, 255, (5, 6, 3), dtype=np.uint8))
        coarse.resize(shape[::-1], Image.Resampling.BICUBIC).save(tmp_path / name)
        examples.append(Example(Source(name, name, str(tmp_path / name)), i, (BOXES[name],)))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    examples.insert(1, Example(Source("broken.png", "broken.png", str(tmp_path / "broken.png")), 0, (Box(0, 0, 9, 9),)))  # fmt: skip
    return DataSet(tuple(examples), LABELS)


def test_against_picture_by_picture(net, data):
    plan = pipeline.plan(net, top=3, boxes="fraction-of-max:threshold=0.4")
    tally = Tally(Protocol(plan.rule, top=3))
    rival = replace(plan, network=randomised_head(net, 1))
    assert list(protocols.judge(plan, data, tally, rival=rival, part=2, batch=2)) == [2, 2]
    assert [path for path, _ in tally.rejected] == ["broken.png"]
    assert [case.path for case in tally.cases] == ["a.png", "b.png", "c.png"]
    assert set(tally.contenders) == {NETWORK, RANDOM, GAUSSIAN}
    for name, of in ((NETWORK, net), (RANDOM, rival.network)):
        for i, example in enumerate(e for e in data.examples if e.source.name != "broken.png"):
            batch = of.preprocess(example.source.file, view="whole")
            made = of.predict(batch, top=3)
            maps = cl.CAM()(of, batch, cl.ClassTarget([[example.label, *made.classes[0].tolist()]]))
            own, *best = FractionOfMax(0.4)(maps)[0]
            score, guesses = tally.contenders[name].scores[i], tally.contenders[name].guesses[i]
            np.testing.assert_allclose(score.box, own[0].box.corners, atol=1e-3)
            wanted = metrics.box_iou(own[0].box.corners, example.boxes[0].clipped(tally.cases[i].objects.size).corners)  # fmt: skip
            assert score.overlap == pytest.approx(float(wanted), abs=1e-4)
            assert [c for c, _ in guesses.made] == made.classes[0].tolist()
            for (_, box), boxes in zip(guesses.made, best, strict=True):
                np.testing.assert_allclose(box.corners, boxes[0].box.corners, atol=1e-3)
            ranked = made.logits[0].argsort(descending=True).tolist()
            assert guesses.rank == 1 + ranked.index(example.label)
            assert guesses.probability == pytest.approx(float(made.probabilities[0, example.label]), abs=1e-5)
    middle = tally.contenders[GAUSSIAN]
    for score, guesses, ours in zip(middle.scores, middle.guesses, tally.contenders[NETWORK].guesses, strict=True):  # fmt: skip
        assert [c for c, _ in guesses.made] == [c for c, _ in ours.made]
        assert {box.corners for _, box in guesses.made} == {score.box}


def test_views_and_other_methods_go_the_same_way(net, data):
    """The true class comes first, then the classes that the views agree on; Grad-CAM = CAM / cells at this head."""
    found = []
    for method in ("cam", "grad-cam:relu=false"):
        plan = pipeline.plan(net, top=2, method=method, views="flip+1+1.5")
        tally = Tally(Protocol(plan.rule, top=2))
        list(protocols.judge(plan, data, tally))
        found.append(tally.contenders[NETWORK])
    for one, other in zip(found[0].scores, found[1].scores, strict=True):
        np.testing.assert_allclose(one.box, other.box, atol=1e-3)
    for one, other in zip(found[0].guesses, found[1].guesses, strict=True):
        assert one.rank == other.rank
        assert [c for c, _ in one.made] == [c for c, _ in other.made]


def test_what_is_not_scored(net, data):
    first, _, *others = data.examples
    changed = DataSet(
        (replace(first, blacklisted=True), replace(others[0], boxes=(), objects=()), others[1]), LABELS
    )
    plan = pipeline.plan(net, top=2)
    tally = Tally(Protocol(plan.rule, top=2))
    list(protocols.judge(plan, changed, tally))
    assert tally.counted.tolist() == [False, False, True]
    assert [s is None for s in tally.contenders[NETWORK].scores] == [True, True, False]
    assert all(g is not None for g in tally.contenders[NETWORK].guesses)


def test_several_labels_are_several_cases(net, data):
    one = data.examples[0]
    objects = (Truth(Box(0, 0, 9, 9), 0), Truth(Box(20, 20, 40, 30), 3), Truth(Box(1, 1, 4, 4), 4, difficult=True))  # fmt: skip
    several = DataSet((Example(one.source, 0, labels=(0, 3, 4), objects=objects),), LABELS, multi_label=True)
    cases = protocols.one_label_each(several)
    assert [(e.label, e.boxes) for e in cases] == [
        (0, (Box(0, 0, 9, 9),)), (3, (Box(20, 20, 40, 30),)), (4, ())
    ]  # fmt: skip
    plan = pipeline.plan(net, top=2)
    tally = Tally(Protocol(plan.rule, top=2, several=True))
    list(protocols.judge(plan, several, tally))
    assert tally.counted.tolist() == [True, True, False]
    assert len({s.box for s in tally.contenders[NETWORK].scores if s}) == 2  # each class has a map of its own


def test_boxes_beside_the_picture_are_said(net, data):
    away = replace(data.examples[0], boxes=(Box(900, 900, 950, 950),), objects=())
    plan = pipeline.plan(net, top=2)
    tally = Tally(Protocol(plan.rule, top=2))
    list(protocols.judge(plan, DataSet((away,), LABELS), tally))
    assert not tally.cases
    assert "boxes outside the picture" in tally.rejected[0][1]


def test_tight_loose_is_judged_alike_by_the_summary(net, data):
    """The loose box counts, whichever way it is asked for."""
    plan = pipeline.plan(net, top=3, boxes="tight-loose")
    tally = Tally(Protocol(plan.rule, top=3))
    list(protocols.judge(plan, data, tally))
    *_, measured = pipeline.measure(plan, data)
    hits = [s.overlap >= 0.5 for s in tally.contenders[NETWORK].scores]
    loose = [Box(*s.box) for s in tally.contenders[NETWORK].scores]
    for example, box in zip((e for e in data.examples if e.source.name != "broken.png"), loose, strict=True):
        maps = cl.CAM()(net, net.preprocess(example.source.file, view="whole"), cl.ClassTarget(example.label))
        assert box == plan.rule(maps)[0][0][1].box != plan.rule(maps)[0][0][0].box
    assert measured.rule_hits.tolist() == hits


def test_a_network_that_answers_nan_is_not_right(net, data):
    """Of NaN none is larger than another: the true class would rank first."""
    with torch.no_grad():
        for parameter in net.module.parameters():
            parameter.fill_(float("nan"))
    plan = pipeline.plan(net, top=2)
    tally = Tally(Protocol(plan.rule, top=2))
    list(protocols.judge(plan, data, tally))
    assert not tally.cases
    assert sum("NaN" in reason for _, reason in tally.rejected) == 3
    with pytest.raises(UsageError, match="4 rejected"):
        list(pipeline.measure(plan, data))


def test_maps_that_were_saved_judge_the_same(net, data, tmp_path):
    """Out in the benchmark's layout and in again: the benchmark's own figures do not see that maps were scaled."""
    plan = pipeline.plan(net, top=2, boxes="fraction-of-max:threshold=0.5,normalise=true")
    protocol = Protocol(plan.rule, top=2)
    direct, again = Tally(protocol), Tally(protocol)
    list(protocols.judge(plan, data, direct, maps_to=tmp_path / "maps"))
    assert sum(protocols.judge_maps(tmp_path / "maps", data, again)) == 4
    assert [c.path for c in again.cases] == ["a.png", "b.png", "c.png"]
    assert [p for p, _ in again.rejected] == ["broken.png"]
    assert set(again.contenders) == {NETWORK, GAUSSIAN}
    for one, other in zip(direct.contenders[NETWORK].scores, again.contenders[NETWORK].scores, strict=True):
        assert (one.largest == other.largest).mean() > 0.98
        assert one.points == other.points
    for case, score in zip(again.cases, again.contenders[NETWORK].scores, strict=True):
        heat = laid_over(
            np.load(tmp_path / "maps" / "scoremaps" / f"{case.path}.npy"), case.objects.size, 1024
        )
        assert score.box == plan.rule.on_map(heat, case.objects.size)[0].box.corners
    assert "error_at_1" not in again.figures(NETWORK)
    heat = np.load(tmp_path / "maps" / "scoremaps" / "a.png.npy")
    batch = net.preprocess(data.examples[0].source.file, view="whole")
    wanted = squashed(cl.CAM()(net, batch, cl.ClassTarget(0)).values[0, 0].numpy())
    np.testing.assert_allclose(heat, (wanted - wanted.min()) / (wanted.max() - wanted.min()), atol=1e-4)


def test_masks_travel(net, data, tmp_path):
    mask = np.zeros((36, 50), np.uint8)
    mask[4:30, 5:40] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    example = replace(data.examples[0], masks=(str(tmp_path / "mask.png"),))
    bad = replace(data.examples[2], masks=(str(tmp_path / "missing.png"),))
    plan = pipeline.plan(net, top=2)
    tally = Tally(Protocol(plan.rule, top=2))
    list(protocols.judge(plan, DataSet((example, bad), LABELS), tally))
    assert 0 < tally.figures(NETWORK)["pxap"]["percent"] <= 100
    assert 0 < tally.figures(GAUSSIAN)["pxap"]["percent"] <= 100
    assert [p for p, _ in tally.rejected] == ["b.png"]
    assert "missing.png" in tally.rejected[0][1]
    assert read_mask([str(tmp_path / "mask.png")], cl.Size(36, 50)).sum() == 26 * 35
