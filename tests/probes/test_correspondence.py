"""Correspondence (section 12): against the formula in loops, closed forms, and all permutations."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import camlucida as cl
from camlucida.errors import LayerError, NetworkError, UsageError
from camlucida.maps import schedule
from camlucida.probes import correspondence, measure_correspondence
from camlucida.probes.correspondence import _Measured, distances, sign_of_change, square_of
from small_networks import called_twice, fully_connected, gap, pixels

PARTS = {
    "eye": {0: cl.Box(2, 3, 7, 8), 1: cl.Box(4, 3, 9, 8), 2: cl.Box(20, 11, 26, 17)},
    "nose": {0: cl.Box(10, 10, 18, 16), 2: cl.Box(9, 12, 18, 19)},
}


def written_out(module, x, of, read) -> tuple[float, float]:
    """Mean and deviation of Δ for one part, unit by unit."""
    signs = {}
    for i, box in of.items():
        hidden = x[i : i + 1].clone()
        for y in range(int(box.y0), int(box.y1)):
            for z in range(int(box.x0), int(box.x1)):
                hidden[0, :, y, z] = 0
        with torch.no_grad():
            clean, other = (
                read(module, x[i : i + 1]).flatten().tolist(),
                read(module, hidden).flatten().tolist(),
            )
        signs[i] = [
            0 if abs(a - b) < 1e-13 else 1 if a > b else -1 for a, b in zip(clean, other, strict=True)
        ]
    found = []
    for i, j in itertools.permutations(signs, 2):
        found.append(sum(a != b for a, b in zip(signs[i], signs[j], strict=True)) / len(signs[i]))
    mean = sum(found) / len(found)
    return mean, (sum((f - mean) ** 2 for f in found) / len(found)) ** 0.5


READ = {
    "features.1": lambda m, x: m.features[:2](x),
    "features": lambda m, x: m.features(x),
    "classifier.1": lambda m, x: m.classifier[:2](m.features(x)),
    "logits": lambda m, x: m(x),
}


def test_against_the_formula_in_loops():
    module, x = fully_connected().double(), pixels(3).double()
    layers = ["features.1", "features", "logits"]
    found = measure_correspondence(cl.wrap(module), x, PARTS, layers, draws=2, permutations=9)
    for layer in layers:
        for part, of in PARTS.items():
            one = found.of(layer, part)
            mean, std = written_out(module, x, of, READ[layer])
            assert (one.mean, one.std) == (pytest.approx(mean, abs=1e-12), pytest.approx(std, abs=1e-12))
            assert one.pictures == len(of)
        assert 0 < found.of(layer, "eye").mean < 1
    assert found.units == {"features.1": 4 * 10 * 14, "features": 6 * 5 * 7, "logits": 5}


def test_a_layer_without_extent_in_space():
    class Plain(nn.Module):  # its ReLU is not in place, so that the units before it stay
        def __init__(self):
            super().__init__()
            self.inner = fully_connected()
            self.inner.classifier[2] = nn.ReLU()

        def forward(self, x):
            return self.inner(x)

    module, x = Plain().double().eval(), pixels(3).double()
    found = measure_correspondence(cl.wrap(module), x, PARTS, ["inner.classifier.1"], draws=1, permutations=1)
    mean, std = written_out(module.inner, x, PARTS["eye"], READ["classifier.1"])
    assert found.units == {"inner.classifier.1": 8}
    one = found.of("inner.classifier.1", "eye")
    assert (one.mean, one.std) == (pytest.approx(mean, abs=1e-12), pytest.approx(std, abs=1e-12))


def test_signs_worked_by_hand():
    clean = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [5.0, 0.0, -1.0]])
    hidden = torch.tensor([[0.5, 2.0, 4.0], [0.0, 0.0, 2.0], [5.0, 0.0, 0.0]])
    signs = sign_of_change(clean, hidden)
    assert signs.tolist() == [[1, 0, -1], [1, 1, -1], [0, 0, -1]]
    made = distances(signs.numpy()[:, None])[:, 0, :, 0]
    np.testing.assert_allclose(made, np.array([[0, 1, 1], [1, 0, 2], [1, 2, 0]]) / 3)
    measured = _Measured(made[:, None, :, None], made[:, None, :, None])
    assert measured.pairs("part").mean() == pytest.approx(4 / 9)
    assert measured.pairs("part").std() == pytest.approx(np.sqrt(2) / 9)


def test_rounding_is_no_change():
    clean = torch.tensor([[1000.0, 1.0, 0.0]])
    assert sign_of_change(clean, clean + torch.tensor([[0.0, 1e-4, -1e-4]])).tolist() == [[0, 0, 0]]
    assert sign_of_change(clean, clean + torch.tensor([[0.0, 0.1, -0.1]])).tolist() == [[0, -1, 1]]


class Pixels(nn.Module):
    """Its layer `same` has the pixels for units."""

    def __init__(self):
        super().__init__()
        self.same = nn.Identity()

    def forward(self, x):
        return self.same(x).flatten(1)[:, :5]


def test_closed_form_where_the_units_are_the_pixels():
    """All pixels are positive, so a hidden one changes by +1 and no other at all: two pictures differ by the pixels that
    one square covers and the other does not."""
    x = pixels(3).abs() + 1
    parts = {"one": {i: cl.Box(4 + 3 * i, 2, 12 + 3 * i, 8) for i in range(3)}, "still": {0: cl.Box(0, 0, 5, 5), 1: cl.Box(0, 0, 5, 5)}}  # fmt: skip
    found = measure_correspondence(cl.wrap(Pixels()), x, parts, ["same"], draws=40, permutations=999)
    moved = {1: 2 * 3 * 6 / (20 * 28), 2: 2 * 6 * 6 / (20 * 28)}  # by 3 and by 6 columns, 6 rows each
    wanted = [[moved.get(abs(i - j), 0.0) for j in range(3)] for i in range(3)]
    np.testing.assert_allclose(found.of("same", "one").pairs, wanted)
    still = found.of("same", "still")
    assert still.together_as_low == 1.0  # a square at one place in both pictures never differs
    assert (still.mean, still.std, still.together_mean) == (0.0, 0.0, 0.0)
    assert still.random_mean > 0.03
    assert still.p_value < 0.01  # the label meets a coinciding pair of squares by chance, if ever
    # of n pixels a square, at random places, pairs differ by at most 2 n
    assert found.of("same", "one").random_mean <= 2 * 48 / (20 * 28)


def test_the_permutation_test_is_the_share_of_all_labellings():
    random = np.random.default_rng(3)
    n, draws = 3, 3
    table = random.random((n * (draws + 1), n * (draws + 1)))
    table = ((table + table.T) / 2).reshape(n, draws + 1, n, draws + 1)
    table[:, 0, :, 0] *= 0.6
    measured = _Measured(table, table[:, 1:, :, 1:])

    def mean(label) -> float:
        return float(
            np.mean([table[i, label[i], j, label[j]] for i, j in itertools.permutations(range(n), 2)])
        )

    draw_by_draw = [
        table[i, k, j, k] for k in range(1, draws + 1) for i, j in itertools.permutations(range(n), 2)
    ]
    for which in ("random", "together"):  # the part itself is none of the random places
        assert sorted(measured.pairs(which)) == sorted(draw_by_draw)
    np.testing.assert_allclose(measured.together(), [mean((k, k, k)) for k in range(1, draws + 1)])
    as_low = correspondence._change("layer", "part", [measured], np.array([0.5])).together_as_low
    assert as_low == np.mean([mean((k, k, k)) <= 0.5 for k in range(1, draws + 1)])
    assert 0 < as_low < 1
    every = [mean(label) for label in itertools.product(range(draws + 1), repeat=n)]
    exact = np.mean(np.array(every) <= mean((0, 0, 0)) + 1e-12)
    dealt = measured.dealt(20_000, np.random.default_rng(0))
    assert dealt[0] == pytest.approx(mean((0, 0, 0)))
    assert 0.01 < exact < 0.5
    assert (dealt <= dealt[0]).mean() == pytest.approx(exact, abs=4 * np.sqrt(exact / 20_000))


def test_all_parts_together_and_the_same_numbers_again():
    network, x = cl.wrap(gap()), pixels(3)
    found, again = (
        measure_correspondence(network, x, PARTS, ["features"], draws=4, permutations=50, seed=5)
        for _ in range(2)
    )
    eye, nose, both = (found.of("features", part) for part in ("eye", "nose", correspondence.ALL_PARTS))
    assert both.mean == pytest.approx((6 * eye.mean + 2 * nose.mean) / 8)
    assert both.random_mean == pytest.approx((6 * eye.random_mean + 2 * nose.random_mean) / 8)
    assert 1 / 51 <= both.p_value <= 1
    assert [c.p_value for c in found.changes] == [c.p_value for c in again.changes]
    other = measure_correspondence(network, x, PARTS, ["features"], draws=4, permutations=50, seed=6)
    assert other.of("features").random_mean != both.random_mean
    assert other.of("features").mean == both.mean


def test_the_size_of_a_batch_changes_nothing():
    network, x = cl.wrap(gap()), pixels(3)
    with schedule.memory(1):
        one_by_one = measure_correspondence(
            network, x, PARTS, ["features", "logits"], draws=3, permutations=20
        )
    together = measure_correspondence(network, x, PARTS, ["features", "logits"], draws=3, permutations=20)
    for a, b in zip(one_by_one.changes, together.changes, strict=True):
        assert (a.mean, a.random_mean, a.together_mean, a.p_value) == (
            b.mean,
            b.random_mean,
            b.together_mean,
            b.p_value,
        )


def test_random_places_are_of_the_part_size_and_reach_every_edge():
    square, view = (3, 4, 8, 11), (20, 28)
    shares = np.random.default_rng(0).random((4000, 2))
    for room, tops, lefts in (
        ((0, 0, *view), range(16), range(22)),
        ((2, 5, 9, 20), range(2, 5), range(5, 14)),
    ):
        places = [correspondence.anywhere(square, room, share) for share in shares]
        assert {(bottom - top, right - left) for top, left, bottom, right in places} == {(5, 7)}
        assert ({p[0] for p in places}, {p[1] for p in places}) == (set(tops), set(lefts))


def test_random_places_lie_on_the_object():
    """Units that are the pixels: of a square on the object, nothing beside it changes; where the object is no larger than
    the part, every random place is the part's."""
    network, x = cl.wrap(Pixels()), pixels(3).abs() + 1
    box = {i: cl.Box(4, 2, 12, 8) for i in range(3)}
    options = {"draws": 6, "permutations": 20}
    tight = measure_correspondence(network, x, {"part": box}, ["same"], within=box, **options)
    assert (tight.of("same").random_mean, tight.of("same").together_mean) == (0.0, 0.0)
    loose = measure_correspondence(network, x, {"part": box}, ["same"], **options)
    assert loose.of("same").random_mean > 0.05
    with pytest.raises(UsageError, match="part 'object'"):
        measure_correspondence(
            network, x, {"part": box}, ["same"], within={0: cl.Box(0, 0, 99, 9)}, **options
        )


def test_a_box_hides_the_pixels_whose_centres_it_holds():
    assert square_of(cl.Box(2, 3, 7, 8), (20, 28)) == (3, 2, 8, 7)
    assert square_of(cl.Box(2.6, 3.4, 7.4, 8.6), (20, 28)) == (3, 3, 9, 7)
    assert square_of(cl.Box(27.6, 0, 27.9, 0.2), (20, 28)) == (0, 27, 1, 28)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"layers": ["features.9"]}, LayerError, "layer 'features.9' does not exist; did you mean 'features"),
        ({"layers": ["nowhere"]}, LayerError, "'nowhere' does not exist"),
        ({"layers": []}, UsageError, "0 layers"),
        ({"parts": {"eye": {0: cl.Box(0, 0, 5, 5)}}}, UsageError, "part 'eye'; got a box in 1 picture"),
        (
            {"parts": {"eye": {0: cl.Box(0, 0, 29, 5), 1: cl.Box(0, 0, 5, 5)}}},
            UsageError,
            "inside the view of 28 × 20",
        ),
        ({"draws": 0}, UsageError, "draws 0"),
    ],
)
def test_what_does_not_fit(change, kind, says):
    given = {"parts": PARTS, "layers": ["features"], "draws": 2, "permutations": 5, **change}
    with pytest.raises(kind, match=says):
        measure_correspondence(cl.wrap(gap()), pixels(3), **given)


def test_layers_of_several_calls_and_values_that_are_not_finite():
    twice = cl.wrap(called_twice())
    with pytest.raises(LayerError, match="runs 2 times; allowed: again#1"):
        measure_correspondence(twice, pixels(3), PARTS, ["again"])
    found = measure_correspondence(twice, pixels(3), PARTS, ["again#1", "again#2"], draws=1, permutations=1)
    assert found.of("again#1").mean != found.of("again#2").mean
    broken = gap()
    broken.features[2].weight.data[0] = float("nan")
    with pytest.raises(NetworkError, match="not finite"):
        measure_correspondence(cl.wrap(broken), pixels(3), PARTS, ["features"])
