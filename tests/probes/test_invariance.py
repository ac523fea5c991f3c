"""Transformations against NumPy's, distances and probabilities against a slow loop, the curve's figures by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import camlucida as cl
from camlucida.errors import LayerError, UnsupportedError, UsageError
from camlucida.probes.feature_points import feature_points
from camlucida.probes.invariance import TRANSFORMATIONS, Invariance, invariance
from fingerprints import unchanged
from small_networks import called_twice, fully_connected, gap, headed, pixels, tokens

NEUTRAL = {name: one.neutral for name, one in TRANSFORMATIONS.items()}


def apply(name: str, given: torch.Tensor, amount: float) -> torch.Tensor:
    return TRANSFORMATIONS[name].apply(given, amount)


@pytest.mark.parametrize(("name", "axis"), [("vertical-shift", 2), ("horizontal-shift", 3)])
@pytest.mark.parametrize("amount", [-300, -60, -8, 0, 4, 56, 300])
def test_shifts_are_rolls_with_fill(name, axis, amount):
    """On 40 × 56 a pixel of 224 is 40 / 224 of one."""
    given = pixels(2, 40, 56)
    by = round(amount * 40 / 224)
    rolled = np.roll(given.numpy(), by, axis)
    index = np.arange(given.shape[axis])
    gone = (index < by) | (index >= given.shape[axis] + by)
    rolled[(slice(None),) * axis + (gone,)] = 0
    np.testing.assert_array_equal(apply(name, given, amount).numpy(), rolled)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3, 4, -1])
def test_quarter_turns_of_squares_are_exact(quarters):
    given = pixels(2, 40, 40)
    turned = apply("rotation", given, 90.0 * quarters)
    np.testing.assert_array_equal(turned.numpy(), np.rot90(given.numpy(), quarters, (2, 3)))


@pytest.mark.parametrize("amount", [90, 270])
def test_a_quarter_turn_of_a_wide_picture_is_the_turn_of_its_square(amount):
    """40 × 56 lies centred in 56 × 56: rows beyond the picture are filled, columns beyond the frame are lost."""
    given = pixels(1, 40, 56)
    square = np.pad(given.numpy(), ((0, 0), (0, 0), (8, 8), (0, 0)))
    wanted = np.rot90(square, amount // 90, (2, 3))[:, :, 8:48]
    np.testing.assert_allclose(apply("rotation", given, amount).numpy(), wanted, atol=1e-4)


def test_half_turns_are_exact_and_small_turns_go_counter_clockwise():
    given = pixels(1, 40, 56)
    np.testing.assert_array_equal(apply("rotation", given, 180).numpy(), given.numpy()[:, :, ::-1, ::-1])
    right = torch.zeros(1, 1, 41, 41)
    right[..., 20, 40] = 1  # at three o'clock
    at = apply("rotation", right, 30)[0, 0].argmax()
    assert divmod(int(at), 41) == (10, 37)  # 20 (cos 30°, sin 30°) = (17.3, 10), up


def test_scale_doubles_about_the_centre():
    """Twice: what lies at u from the centre goes to 2u; bilinear, so a plane stays the plane, flatter."""
    y, x = np.mgrid[:40, :56].astype(np.float64)
    plane = torch.tensor(0.3 * (y - 19.5) - 0.2 * (x - 27.5))[None, None].float()
    np.testing.assert_allclose(apply("scale", plane, 2).numpy(), plane.numpy() / 2, atol=1e-5)
    ones = torch.ones(1, 1, 40, 56)
    np.testing.assert_allclose(
        apply("scale", ones, 1.8).numpy(), ones.numpy(), atol=1e-6
    )  # nothing comes into the frame
    small = apply("scale", ones, 0.5)
    assert small.sum() == pytest.approx(20 * 28, rel=0.02)


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_the_neutral_amount_changes_nothing(name):
    found = invariance(cl.wrap(gap()), [pixels(2)], [1, 4], ["features.0"], name)
    at = found.amounts.index(NEUTRAL[name])
    assert (found.distances[:, :, at] == 0).all()
    np.testing.assert_array_equal(found.probabilities[:, at], found.intact)
    changed = [not torch.equal(apply(name, pixels(2), a), pixels(2)) for a in found.amounts]
    assert sum(changed) >= 16
    assert ((found.distances > 0) == changed).all()  # on 20 × 28, a shift by 4 of 224 is none


def test_distances_and_probabilities_by_a_slow_loop():
    module, given = fully_connected(), pixels(3)
    steps = (-60.0, 11.0, 0.0, 60.0)
    layers = ("features.0", "classifier.2")
    found = invariance(
        cl.wrap(module), [given[:1], given[1:]], [4, 0, 2], layers, "vertical-shift", steps, batch=2
    )
    double = fully_connected().double().requires_grad_(False)
    vectors = np.zeros((3, 2), object)
    for p in range(3):
        seen = {}
        for amount in (None, *steps):
            by = 0 if amount is None else round(amount * 20 / 224)
            padded = F.pad(given[p : p + 1].double(), (0, 0, 20, 20))
            first = double.features[0](padded[:, :, 20 - by : 40 - by])
            hidden = double.classifier[:3](double.features[1:](first.clone()))
            seen[amount] = (first, hidden, double.classifier[3](hidden).softmax(1)[0, (4, 0, 2)[p]])
        for i in range(2):
            vectors[p, i] = seen[None][i].flatten().numpy()
            wanted = [float((seen[a][i] - seen[None][i]).norm()) for a in steps]
            np.testing.assert_allclose(found.distances[p, i], wanted, rtol=1e-4, atol=1e-6)
            assert found.norms[p, i] == pytest.approx(float(seen[None][i].norm()), rel=1e-5)
        np.testing.assert_allclose(found.probabilities[p], [float(seen[a][2]) for a in steps], rtol=1e-4)
        assert found.intact[p] == pytest.approx(float(seen[None][2]), rel=1e-5)
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    for i in range(2):
        squares = [np.sum((vectors[a, i] - vectors[b, i]) ** 2) for a, b in pairs]
        assert found.apart[i] == pytest.approx(np.mean(squares) ** 0.5, rel=1e-5)
    assert found.layers == layers


def result(
    distances: list[float], probabilities: list[float], amounts: tuple[float, ...], name: str
) -> Invariance:
    """Of one picture with features of norm 2 at one layer."""
    return Invariance(
        name, amounts, ("a",), (0,), np.array([[distances]]), np.array([[2.0]]), np.array([probabilities]),
        np.array([probabilities[0]]), np.array([np.nan]),
    )  # fmt: skip


def test_the_network_comes_back_as_it_was():
    module = gap().train()
    with unchanged(module):
        invariance(cl.wrap(module), [pixels(1)], None, None, "rotation", (0, 10))


def test_figures_of_a_curve_by_hand():
    straight = result([0, 1, 2, 3, 4], [0.8, 0.6, 0.4, 0.2, 0.0], (1, 1.2, 1.4, 1.6, 1.8), "scale").movement(
        0
    )
    assert dataclasses.astuple(straight) == pytest.approx((0.5 / 0.2, 0.1, 0.5, 2))
    jump = result([0, 4, 4, 4, 4], [0.8, 0.8, 0.8, 0.8, 0], (1, 1.2, 1.4, 1.6, 1.8), "scale")
    assert dataclasses.astuple(jump.movement(0)) == pytest.approx((10, 0.4, 0.875, 2))
    assert jump.kept == pytest.approx(0.875)
    # both directions of one magnitude together: −20 and 20 give 2, 350° is 10°
    both = result([4, 2, 0, 2, 8], [1] * 5, (-40, -20, 0, 20, 40), "vertical-shift")
    np.testing.assert_allclose(both.curve(both.relative[:, 0]), [[0, 20, 40], [0, 1, 3]])
    round_ = result([0, 2, 6], [1] * 3, (0, 10, 350), "rotation")
    np.testing.assert_allclose(round_.curve(round_.relative[:, 0]), [[0, 10], [0, 2]])


def test_a_layer_that_never_moves_or_gives_zeros_has_no_figures():
    still = result([0, 0, 0], [1] * 3, (1, 1.2, 1.4), "scale").movement(0)
    assert np.isnan([still.rate, still.at_a_tenth, still.area]).all()
    module = gap()
    nn.init.constant_(module.features[0].bias, -100)
    nn.init.zeros_(module.features[0].weight)
    found = invariance(cl.wrap(module), [pixels(1)], None, ["features.1"], "scale")
    assert np.isnan(found.relative).all()
    assert np.isnan(found.movement(0).area)
    assert np.isnan(found.apart).all()


def test_layers_by_themselves_are_the_first_and_the_last_hidden():
    net = cl.load("alexnet", weights=None, num_classes=7, width=0.05, arguments={"size": 67})
    names = [str(point) for point in feature_points(net, torch.zeros(1, 3, 67, 67))]
    assert names == ["features.pool1", "classifier.relu7"]
    assert [str(p) for p in feature_points(cl.wrap(gap()), pixels(1))] == ["features.1", "pool"]
    functional = headed(lambda m, x: m.fc(x.mean((2, 3))))  # no module gives what the last layer is given
    assert [str(p) for p in feature_points(cl.wrap(functional), pixels(1))] == [
        "features.1",
        "input of linear",
    ]
    found = invariance(cl.wrap(tokens("class token")), [pixels(1)], None, None, "rotation", (0, 90))
    assert found.layers[1].startswith("input of linear")  # the class token alone, not the tokens
    assert found.norms[0, 1] ** 2 == pytest.approx(8, rel=0.01)  # 8 numbers, out of a layer norm
    assert found.distances.shape == (1, 2, 2)
    assert (found.distances[..., 1] > 0).all()


def test_the_predicted_class_stands_in_and_sizes_may_differ():
    module = gap()
    given = [pixels(1), pixels(2, 24, 20, seed=3)]
    found = invariance(cl.wrap(module), given, None, ["features.2", "fc"], "horizontal-shift", (0, 30))
    assert found.labels == tuple(int(module(one[None]).argmax()) for batch in given for one in batch)
    assert np.isnan(found.apart[0])  # 5 × 7 and 6 × 5 cells have no distance
    assert found.apart[1] > 0
    assert found.norms.shape == (3, 2)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (["feature.0"], "does not exist"),
        (["again"], "runs 2 times"),
        (["again#3"], "did not run"),
        (["norm"], "did not run"),
    ],
)
def test_layers_that_are_not_there(layers, said):
    with pytest.raises(LayerError, match=said) as caught:
        invariance(cl.wrap(called_twice()), [pixels(1)], None, layers)
    assert "\n" not in str(caught.value)


def test_bad_calls_are_refused_in_one_line():
    net = cl.wrap(gap())
    for options, said in [
        ({"transformation": "rotate"}, "did you mean 'rotation'"),
        ({"amounts": (1,)}, "two or more"),
        ({"amounts": (1, 1)}, "different"),
        ({"amounts": (1, float("nan"))}, "different"),
        ({"labels": [1]}, "1 for 2 pictures"),
        ({"labels": [1, 5]}, "0…4"),
        ({"transformation": "scale", "amounts": (1, 0)}, "> 0"),
    ]:
        with pytest.raises(UsageError, match=said):
            invariance(net, [pixels(2)], **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no picture"):
        invariance(net, [])
    with pytest.raises(UnsupportedError, match="N, C, H, W"):
        invariance(net, [torch.zeros(1, 3, 20)])
