"""Rows of every measure, and the figures made of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import camlucida as cl
from camlucida.errors import UsageError
from camlucida.evaluate import baselines, faithfulness
from camlucida.evaluate.faithfulness import sanity, summary
from camlucida.evaluate.faithfulness.measure import Account, Row, groups_of
from fingerprints import unchanged
from small_networks import fully_connected, gap, pixels

SIZE = (12, 16)


def explainers(*names: str) -> dict:
    found = {name: faithfulness.explainer(cl.maps.method(name)) for name in names}
    return found | {"random": faithfulness.BASELINES["random"](0)}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    net = cl.wrap(gap())
    account = Account()
    with unchanged(net.module):
        found = faithfulness.measure(
            net, explainers("cam"), pixels(2, *SIZE), step=224**2 / 10, layers=2,
            permuted=cl.wrap(gap(bias=False)), account=account,
        )  # fmt: skip
    assert set(account.seconds) == {"cam", "random"}
    assert account.forward > 0
    assert account.layers == {"cascading": ("conv", "features.0"), "independent": ("conv", "features.0"), "labels": ("all",)}  # fmt: skip
    return found


def test_a_row_for_each_picture_method_and_metric(rows):
    names = ["cam", "random"]
    found = [(r.picture, r.method, r.metric) for r in rows]
    assert len(set(found)) == len(found) == 2 * len(names) * len(faithfulness.METRICS)
    assert {r.metric for r in rows} == {*faithfulness.METRICS}
    for row in rows:
        assert faithfulness.METRICS[row.metric].lowest - 1e-9 <= row.value <= 1 + 1e-6
        if row.curve is not None:
            assert all(map(math.isfinite, row.curve))
    net = cl.wrap(gap())
    logits = net(pixels(2, *SIZE))
    assert [r.class_index for r in rows[:2]] == logits.argmax(1).tolist()
    assert [r.probability for r in rows[:2]] == pytest.approx(logits.softmax(1).amax(1).tolist())


def test_rows_are_what_the_functions_say(rows):
    net, shown = cl.wrap(gap()), pixels(2, *SIZE)
    classes = net(shown).argmax(1)
    maps = cl.CAM()(net, shown, cl.ClassTarget(classes)).in_view()[:, 0]
    own = {(r.metric, r.picture): r for r in rows if r.method == "cam"}
    gone = faithfulness.deletion(net, shown, maps, classes, step=224**2 / 10)
    roads = faithfulness.road(net, shown, maps, classes)
    hidden = faithfulness.masked(shown, maps)
    again = cl.CAM()(net, hidden, cl.ClassTarget(classes)).in_view()[:, 0]
    drops = faithfulness.occluder(*SIZE)(net, shown, cl.ClassTarget(classes))
    wanted = {
        "deletion": gone.auc, "road": roads.combined, "road-morf": roads.morf.mean(1),
        "average-drop": faithfulness.confidence(net, shown, maps, classes).drop,
        "coherency": faithfulness.coherency(maps, again), "infidelity": faithfulness.agreement(maps, drops).infidelity,
    }  # fmt: skip
    for metric, values in wanted.items():
        assert [own[metric, i].value for i in range(2)] == pytest.approx(values.tolist(), abs=1e-6), metric
    three = [torch.tensor([own[m, i].value for i in range(2)]) for m in ("average-drop", "coherency", "complexity")]  # fmt: skip
    assert [own["adcc", i].value for i in range(2)] == pytest.approx(faithfulness.adcc(*three).tolist(), abs=1e-6)  # fmt: skip
    assert own["deletion", 1].curve == pytest.approx(gone.scores[1].tolist(), abs=1e-6)
    for check in ("cascading", "independent"):
        done = faithfulness.randomisation(
            net, faithfulness.explainer(cl.CAM()), cl.Batch.of(shown), classes, maps, how=check, layers=2
        )
        for kind in sanity.SIMILARITIES:
            for i in range(2):
                row = own[f"{check}-{kind}", i]
                assert row.curve == pytest.approx(done.values[kind][i].tolist(), abs=1e-6)
                assert row.value == pytest.approx(np.mean(row.curve))


def test_a_method_that_this_network_cannot_have_is_left_out():
    account = Account()
    shown = pixels(2)
    found = faithfulness.measure(
        cl.wrap(fully_connected()), explainers("cam", "grad-cam"), shown, metrics=["drop"], account=account
    )
    assert "pooling" in account.failed["cam"]
    assert {r.method for r in found} == {"grad-cam", "random"}


def test_a_guided_picture_is_judged_by_its_magnitude():
    class Guided:
        def __call__(self, network, batch, target=None):
            return cl.Reconstruction(-2 * batch.pixels, batch.views, "guided", "x")

    net, shown = cl.wrap(gap()), cl.Batch.of(pixels(1, *SIZE))
    found = faithfulness.explainer(Guided())(net, shown, torch.tensor([0]))
    assert torch.equal(found, 2 * shown.pixels.abs().amax(1))


def test_baselines_hang_on_pixels_and_seed_alone():
    a, b = pixels(2, *SIZE).numpy()
    assert np.array_equal(baselines.random_map(a), baselines.random_map(a.copy()))
    for other in (baselines.random_map(b), baselines.random_map(a, 1)):
        assert abs(np.corrcoef(baselines.random_map(a).ravel(), other.ravel())[0, 1]) < 0.2
    step = np.zeros((3, 9, 12), np.float32)
    step[:, :, 6:] = 1
    found = baselines.edges(step)
    assert found.shape == (9, 12)
    assert (found > 0).any(0).tolist() == [i in (5, 6) for i in range(12)]


def test_groups_are_asked_for_by_name():
    assert groups_of(["road", " deletion"]) == ("deletion", "road")
    for wrong in (["deletoin"], [""]):
        with pytest.raises(UsageError, match="metrics"):
            groups_of(wrong)


# --- figures -----------------------------------------------------------------------------------------------------


def made(values: dict[str, dict[str, list[float]]], **curves: tuple[float, ...]) -> list[Row]:
    return [
        Row(i, 0, 0.5, method, metric, value, curves.get(metric))
        for method, of in values.items()
        for metric, each in of.items()
        for i, value in enumerate(each)
    ]


def test_figures_by_hand():
    found = summary.figures(
        made(
            {
                "good": {"deletion": [0.1, 0.2, 0.1, 0.2], "insertion": [0.9, 0.8, 0.7, 0.8], "average-drop": [0.1, 0.1, 0.5, 0]},
                "bad": {"deletion": [0.6, 0.7, 0.6, 0.6], "insertion": [0.3, 0.2, 0.1, 0.2], "average-drop": [0.2, 0.3, 0.5, 0]},
                "random": {"deletion": [0.3, 0.4, 0.3, 0.4], "insertion": [0.4, 0.1, 0.3, 0.3], "average-drop": [0.6, 0.7, 0.9, 1]},
            },
            deletion=(1.0, 0.0),
        )
    )  # fmt: skip
    assert found["pictures"] == 4
    assert [one["method"] for one in found["ranking"]] == ["good", "random", "bad"]
    assert [one["mean_rank"] for one in found["ranking"]] == pytest.approx([1, 2.3333, 2.6667], abs=1e-3)
    good, bad = found["figures"]["good"], found["figures"]["bad"]
    assert (good["deletion"]["mean"], good["deletion"]["rank"], good["insertion"]["rank"]) == (0.15, 1, 1)
    assert (good["deletion"]["against_random"], bad["deletion"]["against_random"]) == ("better", "worse")
    assert bad["insertion"]["against_random"] == "no different"
    assert found["figures"]["random"]["deletion"].keys() == {"mean", "interval", "rank"}
    assert good["deletion"]["interval"] == pytest.approx([0.1, 0.2])
    assert found["wins"]["good"] == {"bad": 0.5, "random": 1.0}
    assert found["wins"]["bad"]["good"] == 0
    curve = found["curves"]["deletion"]["good"]
    assert (len(curve), curve[0], curve[25], curve[-1]) == (summary.POINTS, 1, 0.5, 0)
    json.dumps(found, allow_nan=False)


def test_a_map_that_turns_into_its_reverse_has_not_changed():
    """Likeness to the map of a random network is best at 0, not below."""
    found = summary.figures(
        made({
            "reversed": {"cascading-spearman": [-0.9, -0.8, -0.9]}, "sound": {"cascading-spearman": [0.1, -0.1, 0.0]},
            "random": {"cascading-spearman": [0.6, 0.6, 0.6]},
        })
    )  # fmt: skip
    ranks = {name: of["cascading-spearman"]["rank"] for name, of in found["figures"].items()}
    assert ranks == {"sound": 1, "random": 2, "reversed": 3}
    assert found["figures"]["reversed"]["cascading-spearman"]["against_random"] == "worse"
    assert found["figures"]["sound"]["cascading-spearman"]["against_random"] == "better"


def test_pictures_that_agree_leave_a_wilson_interval():
    found = summary.figures(made({"one": {"increase": [1.0] * 9, "occlusion": [1.0] * 9}}))["figures"]["one"]
    low = 1 / (1 + 1.96**2 / 9)
    assert found["increase"]["interval"] == pytest.approx([low, 1], abs=1e-4)
    assert found["occlusion"]["interval"] == pytest.approx([2 * low - 1, 1], abs=1e-4)  # of −1 … 1


def test_figures_need_the_same_pictures(rows):
    with pytest.raises(UsageError, match="the same for all"):
        summary.figures(rows[:-1])
    with pytest.raises(UsageError, match="no picture"):
        summary.figures([])
    moved = [replace(row, picture=row.picture + 7) for row in rows[::-1]]
    assert summary.figures(moved)["ranking"] == summary.figures(rows[::-1])["ranking"]
