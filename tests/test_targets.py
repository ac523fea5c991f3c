"""What is explained: the broadcasting rule, and the value of every kind of target."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from camlucida.errors import NetworkError, TargetError
from camlucida.targets import (
    BinaryTarget,
    CallableTarget,
    ClassTarget,
    MarginTarget,
    Output,
    ProbabilityTarget,
    RegionTarget,
    RegressionTarget,
    UnitTarget,
)

LOGITS = torch.tensor([[1.0, 4.0, 2.0, 4.0], [0.5, -1.0, 3.0, -2.0], [2.0, 2.0, 2.0, 2.0]])


def output(logits: Tensor = LOGITS, **layers: Tensor) -> Output:
    return Output(logits, layers)


def scores(target, given: Output | None = None, rows: list[int] | None = None) -> list:
    given = given or output()
    bound = target.bind(given)
    return bound.scores(given, None if rows is None else torch.tensor(rows)).tolist()


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (2, [[2], [2], [2]]),
        (np.int64(0), [[0], [0], [0]]),
        (torch.tensor(3), [[3], [3], [3]]),
        ([3, 0, 1], [[3], [0], [1]]),
        ((3, 0, 1), [[3], [0], [1]]),
        (np.array([3, 0, 1], np.uint8), [[3], [0], [1]]),
        (torch.tensor([3, 0, 1], dtype=torch.int32), [[3], [0], [1]]),
        ([[3, 0], [1, 2], [0, 0]], [[3, 0], [1, 2], [0, 0]]),
        (torch.tensor([[3], [1], [2]]), [[3], [1], [2]]),
    ],
)
def test_one_for_all_one_each_or_several_each(index, expected):
    target = ClassTarget(index)
    bound = target.bind(output())
    assert bound.classes is not None
    assert bound.classes.tolist() == expected
    assert bound.classes.dtype == torch.int64
    assert scores(target) == [[LOGITS[i, c].item() for c in row] for i, row in enumerate(expected)]


@pytest.mark.parametrize("index", [[1, 2], [1, 2, 3, 0], [[1, 2], [0, 3]], [[[0]], [[1]], [[2]]]])
def test_any_other_length_raises_with_both_numbers(index):
    with pytest.raises(TargetError, match=r"3 pictures.*got .*(2|4|1).*\(3,\)"):
        ClassTarget(index).bind(output())


def test_a_list_for_one_picture_is_one_each_not_several():
    with pytest.raises(TargetError, match=r"1 pictures.*got 2"):
        ClassTarget([1, 2]).bind(output(LOGITS[:1]))
    assert scores(ClassTarget([[1, 2]]), output(LOGITS[:1])) == [[4.0, 2.0]]


@pytest.mark.parametrize(
    ("index", "wrong"), [(4, 4), (-1, -1), ([0, 1, 7], 7), ([[0, 1], [2, -3], [0, 0]], -3)]
)
def test_a_class_out_of_range(index, wrong):
    with pytest.raises(TargetError, match=rf"class {wrong}; allowed: 0 … 3"):
        ClassTarget(index).bind(output())


@pytest.mark.parametrize(
    "index", [1.0, [0.0, 1.0, 2.0], True, [True, False, True], [], [[0, 1], [2], [3]], "cat", ["a", "b", "c"]]
)
def test_what_is_no_whole_number_is_refused(index):
    with pytest.raises(TargetError, match="class indices"):
        ClassTarget(index).bind(output())


def test_predicted_top_and_all_with_ties_to_the_lower_index():
    assert ClassTarget.predicted().bind(output()).classes.tolist() == [[1], [2], [0]]
    assert ClassTarget.top(3).bind(output()).classes.tolist() == [[1, 3, 2], [2, 0, 1], [0, 1, 2]]
    assert ClassTarget.all().bind(output()).classes.tolist() == [[0, 1, 2, 3]] * 3
    assert scores(ClassTarget.top(2)) == [[4.0, 4.0], [3.0, 0.5], [2.0, 2.0]]


@pytest.mark.parametrize("k", [0, 5, -1])
def test_more_classes_than_there_are(k):
    with pytest.raises(TargetError, match=rf"the top {k} classes; allowed: 1 … 4"):
        ClassTarget.top(k).bind(output())


def test_rows_say_which_picture_a_row_belongs_to():
    bound = ClassTarget([[3, 0], [1, 2], [0, 0]]).bind(output())
    other = output(torch.arange(8.0).view(2, 4))
    assert bound.scores(other, torch.tensor([2, 0])).tolist() == [[0.0, 0.0], [7.0, 4.0]]
    margin = MarginTarget([1, 2, 0], 3).bind(output())
    assert margin.scores(other, torch.tensor([1, 1])).tolist() == [[2.0 - 3.0], [6.0 - 7.0]]


def test_probabilities():
    exact = LOGITS.double().exp() / LOGITS.double().exp().sum(1, keepdim=True)
    assert scores(ProbabilityTarget([1, 2, 0])) == [
        [pytest.approx(exact[i, c].item(), rel=1e-6)] for i, c in enumerate([1, 2, 0])
    ]
    assert scores(ProbabilityTarget(1, sigmoid=True)) == [
        [pytest.approx(1 / (1 + np.exp(-z)), rel=1e-6)] for z in (4.0, -1.0, 2.0)
    ]
    assert ProbabilityTarget().bind(output()).classes.tolist() == [[1], [2], [0]]


def test_margins():
    assert scores(MarginTarget(0, 1)) == [[-3.0], [1.5], [0.0]]
    assert scores(MarginTarget([0, 1, 2], [1, 2, 3])) == [[-3.0], [-4.0], [0.0]]
    # The runner-up is the best class other than a: the second for the predicted class, else the first.
    assert scores(MarginTarget()) == [[0.0], [2.5], [0.0]]
    assert scores(MarginTarget(2)) == [[-2.0], [2.5], [0.0]]
    assert scores(MarginTarget([[2, 1], [2, 1], [0, 3]])) == [[-2.0, 0.0], [2.5, -4.0], [0.0, 0.0]]


def test_a_margin_is_the_combination_that_its_coefficients_name():
    for target in (MarginTarget(), MarginTarget([[2, 1], [2, 1], [0, 3]]), MarginTarget(1, [0, 2, 3])):
        bound = target.bind(output())
        assert bound.coefficients is not None
        combined = torch.einsum("nkc,nc->nk", bound.coefficients, LOGITS)
        assert combined.tolist() == bound.scores(output(), None).tolist()


def test_margins_that_do_not_fit():
    with pytest.raises(TargetError, match=r"'second'.*runner-up"):
        MarginTarget(0, "second").bind(output())
    with pytest.raises(TargetError, match="at least two classes"):
        MarginTarget(0).bind(output(LOGITS[:, :1]))
    with pytest.raises(TargetError, match="got 2 classes a picture; allowed: 1 or 3"):
        MarginTarget([[0, 1, 2]] * 3, [[0, 1]] * 3).bind(output())


@pytest.mark.parametrize(
    ("target", "sign"),
    [(BinaryTarget(), 1), (BinaryTarget(False), -1), (RegressionTarget(), 1), (RegressionTarget(False), -1)],
)
def test_networks_of_one_number(target, sign):
    assert scores(target, output(LOGITS[:, :1])) == [[sign * 1.0], [sign * 0.5], [sign * 2.0]]
    assert target.bind(output(LOGITS[:, :1])).coefficients.tolist() == [[[sign]]] * 3
    with pytest.raises(TargetError, match="got 4 outputs; allowed: a network of one output; use ClassTarget"):
        target.bind(output())


MAPS = torch.tensor([[[[0.0, 1, 2], [5, 4, 3]]], [[[9.0, 8, 7], [-1, -2, -3]]]]).repeat(1, 2, 1, 1)
MAPS[:, 0] = 100.0


@pytest.mark.parametrize(
    ("at", "expected"), [("max", [[5.0], [9.0]]), ("sum", [[15.0], [18.0]]), ((1, 2), [[3.0], [-3.0]])]
)
def test_one_channel_of_a_layer(at, expected):
    target = UnitTarget("conv", 1, at)
    assert target.layers == ("conv",)
    assert scores(target, output(conv=MAPS)) == expected
    assert target.bind(output(conv=MAPS)).classes is None


def test_the_place_of_the_maximum_is_fixed_on_the_intact_picture():
    bound = UnitTarget("conv", 1).bind(output(conv=MAPS))
    other = output(conv=MAPS.flip(3))
    flipped = MAPS.flip(3)
    expected = [[flipped[0, 1, 0, 0].item()], [flipped[1, 1, 1, 0].item()]]  # cells of pictures 1 and 0
    assert bound.scores(other, torch.tensor([1, 0])).tolist() == expected


@pytest.mark.parametrize("at", [(2, 0), (0, -1), (0,), (0, 0, 0), "mean", 3])
def test_a_cell_outside_the_map(at):
    with pytest.raises(TargetError, match=r"'max', 'sum' or a cell inside \(2, 3\)"):
        UnitTarget("conv", 1, at).bind(output(conv=MAPS))


def test_a_channel_that_is_not_there():
    with pytest.raises(TargetError, match="channel 2 of layer conv; allowed: 0 … 1"):
        UnitTarget("conv", 2).bind(output(conv=MAPS))


def test_the_mean_over_a_region():
    mask = [[0, 1, 0], [1, 0, 1]]
    one = RegionTarget("conv", mask, channel=1)
    assert scores(one, output(conv=MAPS)) == [[pytest.approx(9 / 3)], [pytest.approx(4 / 3)]]
    both = RegionTarget("conv", np.array(mask, bool))
    assert scores(both, output(conv=MAPS)) == [[pytest.approx(309 / 6)], [pytest.approx(304 / 6)]]


@pytest.mark.parametrize("mask", [np.ones((3, 2)), np.zeros((2, 3)), np.ones(6)])
def test_a_region_that_does_not_fit(mask):
    with pytest.raises(TargetError, match=r"mask for layer conv.*\(2, 3\) with at least one"):
        RegionTarget("conv", mask).bind(output(conv=MAPS))


def test_any_function_of_the_output():
    target = CallableTarget(lambda out: out[:, 0] - out[:, 2] ** 2, "a difference")
    assert scores(target) == [[-3.0], [-8.5], [-2.0]]
    bound = target.bind(output())
    assert bound.words == "a difference"
    assert bound.scores(output(LOGITS[1:]), torch.tensor([1, 2])).tolist() == [[-8.5], [-2.0]]
    assert scores(CallableTarget(lambda out: out["a"]), Output({"a": LOGITS[:, 1]}, {})) == [
        [4.0],
        [-1.0],
        [2.0],
    ]


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda out: out, r"\(3, 4\)"),
        (lambda out: out.sum(), r"\(\)"),
        (lambda out: out[:2, 0], r"\(2,\)"),
        (lambda out: 3.0, "float"),
    ],
)
def test_a_function_that_gives_no_scalar_a_picture(function, got):
    with pytest.raises(TargetError, match=rf"'f' must be one scalar per picture; got {got}; allowed: \(3,\)"):
        CallableTarget(function, "f").bind(output())


def test_a_function_of_a_dict_is_checked_too():
    with pytest.raises(TargetError, match=r"got \(2,\); allowed: \(3,\)"):
        CallableTarget(lambda out: out["logits"][:2, 0]).bind(Output({"logits": LOGITS}, {}))


def test_logits_in_any_wrapping():
    raw: Any
    for raw in (LOGITS, {"logits": LOGITS, "loss": 1}, SimpleNamespace(logits=LOGITS)):
        assert Output(raw, {}).logits is LOGITS
        assert scores(ClassTarget(1), Output(raw, {})) == [[4.0], [-1.0], [2.0]]
    wrong: list[tuple[Any, str]] = [(LOGITS[0], r"\(4,\)"), ({"out": LOGITS}, "dict"), ((LOGITS,), "tuple")]
    for raw, got in wrong:
        assert Output(raw, {}).any_logits() is None
        with pytest.raises(NetworkError, match=f"module's output; got {got}"):
            ClassTarget(1).bind(Output(raw, {}))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (ClassTarget(3), "logit of the given class"),
        (ClassTarget.predicted(), "logit of the predicted class"),
        (ClassTarget.top(3), "logits of the top 3 classes"),
        (ClassTarget.all(), "logits of all classes"),
        (MarginTarget(), "logit of the class minus the other's"),
    ],
)
def test_words(target, words):
    assert target.bind(output()).words == words
