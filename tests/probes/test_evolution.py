"""Leaders, correlations and takeovers against a slow loop in float64; settling by hand; what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from torch import nn

import camlucida as cl
from camlucida.errors import LayerError, NetworkError, TargetError, UnsupportedError, UsageError
from camlucida.images.views import Preprocessing
from camlucida.probes import evolution as evolve
from camlucida.probes.evolution import Evolution, History, Moment, correlation, main_layers
from fingerprints import unchanged
from pictures import colours
from small_networks import Headed, fully_connected, seeded

SHAPE = Preprocessing(size=20)
LAYERS = ("features.1", "features.3")
PICTURES = [colours(20, 28, seed) for seed in range(7)]


def checkpoint(seed: int, **card) -> cl.Network:
    module = seeded(Headed, lambda m, x: m.fc(m.pool(x).flatten(1)), seed=seed)
    return cl.wrap(module, card=cl.Card(preprocessing=SHAPE, **card))


def run(seeds=(0, 1, 1, 2), **options) -> Evolution:
    return evolve(
        [(f"{10 * i}", checkpoint(seed)) for i, seed in enumerate(seeds)], PICTURES, LAYERS, **options
    )


@pytest.fixture(scope="module")
def found() -> Evolution:
    return run(units=(0, 3))


@pytest.fixture(scope="module")
def activations() -> list[list[np.ndarray]]:
    """By checkpoint and layer, `(pictures, units, *cells)`, float64."""
    made = []
    for seed in (0, 1, 1, 2):
        net = checkpoint(seed)
        double, each = net.module.double(), []
        for picture in PICTURES:
            x = checkpoint(0).preprocess([picture]).pixels.double()
            first = double.features[:2](x)
            each.append([first[0].detach().numpy(), double.features[2:](first)[0].detach().numpy()])
        made.append([np.stack(layer) for layer in zip(*each, strict=True)])
    return made


def test_the_strongest_place_of_each_unit_by_a_slow_loop(found, activations):
    assert [(one.layer, one.unit) for one in found.histories] == [
        (layer, unit) for layer in LAYERS for unit in (0, 3)
    ]
    for one in found.histories:
        for moment, layers in zip(one.moments, activations, strict=True):
            maps = layers[LAYERS.index(one.layer)][:, one.unit]
            picture, *cell = np.unravel_index(maps.argmax(), maps.shape)
            if maps.max() == 0:
                assert moment.picture is None
                continue
            assert (moment.picture, moment.cell) == (picture, tuple(cell))
            assert moment.value == pytest.approx(maps.max(), rel=1e-5)


def test_projections_are_the_deconvnets_at_that_place(found):
    """features.1 sees 3 × 3 pixels from (2 row − 1, 2 column − 1), features.3 7 × 7 from (4 row − 3, 4 column − 3)."""
    for one in found.histories:
        stride, offset, side = {"features.1": (2, -1, 3), "features.3": (4, -3, 7)}[one.layer]
        for seed, moment in zip((0, 1, 1, 2), one.moments, strict=True):
            if moment.picture is None:
                continue
            net = checkpoint(seed)
            batch = net.preprocess([PICTURES[moment.picture]])
            made = (
                cl.DeconvNet(one.layer, one.unit, moment.cell)(net, batch).values[0].permute(1, 2, 0).numpy()
            )
            top, left = (stride * at + offset for at in moment.cell)
            padded = np.pad(made, ((8, 8), (8, 8), (0, 0)))[
                top + 8 : top + 8 + side, left + 8 : left + 8 + side
            ]
            np.testing.assert_allclose(moment.projection, padded, atol=1e-6)
            assert np.abs(moment.projection).sum() == pytest.approx(np.abs(made).sum(), rel=1e-5)
            assert made.any()
            seen = np.full((36, 44, 3), SHAPE.mean_colour, np.uint8)
            seen[8:28, 8:36] = PICTURES[moment.picture]
            np.testing.assert_array_equal(
                moment.patch, seen[top + 8 : top + 8 + side, left + 8 : left + 8 + side]
            )


def test_the_networks_come_back_as_they_were():
    net = checkpoint(0)
    with unchanged(net.module.train()):
        evolve([("1", net), ("2", net)], PICTURES[:2], LAYERS)


def test_correlations_and_new_leaders_by_a_slow_loop(found, activations):
    for i, layer in enumerate(LAYERS):
        best = [each[i].max((2, 3)) for each in activations]  # (pictures, units)
        lead = [np.where(one.max(0) > 0, one.argmax(0), -1) for one in best]

        def r(a, b):
            each = [
                np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True) if x.std() > 0 and y.std() > 0
            ]
            return np.mean(each)

        np.testing.assert_allclose(found.to_last[layer], [r(one, best[-1]) for one in best], atol=1e-5)
        before = [r(best[e], best[e - 1]) for e in (1, 2, 3)]
        np.testing.assert_allclose(found.to_previous[layer], [np.nan, *before], atol=1e-5)
        new = []
        for e in (1, 2, 3):
            both = (lead[e] >= 0) & (lead[e - 1] >= 0)
            new.append(np.mean(lead[e][both] != lead[e - 1][both]))
        np.testing.assert_allclose(found.replaced[layer], [np.nan, *new])
        assert found.to_previous[layer][2] == pytest.approx(1)  # the same weights twice
        assert found.replaced[layer][2] == 0
        assert 0 < found.replaced[layer][1] <= 1


def test_takeovers_are_where_the_picture_changes():
    def history(*pictures):
        return History("a", 0, tuple(Moment(1.0, one) for one in pictures)).takeovers

    assert history(3, 3, 4, 4, 3) == (2, 4)
    assert history(None, 5, 5, None, 6) == ()  # a silent unit that wakes up has nothing to be taken over
    assert history(2, 2) == ()


def test_settling_by_hand():
    def settled(*values, level=0.9):
        names = tuple(map(str, range(len(values))))
        one = {"a": np.array(values)}
        return Evolution(names, ("a",), (), one, one, one, 1, 1, ()).settled("a", level)

    assert settled(0.2, 0.9, 0.95, 1) == 1
    assert settled(0.95, 0.5, 0.95, 1) == 2  # it stays there
    assert settled(0.95, 0.96, 1) == 0
    assert settled(0.1, 0.89, 1) is None
    assert settled(0.1, 0.6, 1, level=0.5) == 1
    assert settled(np.nan, np.nan, np.nan) is None


def test_a_correlation_leaves_out_units_that_say_the_same_of_all_and_pictures_without_numbers():
    a = np.array([[1.0, 5, 0], [2, 5, 1], [4, 5, 0], [np.nan, 5, 9]])
    b = np.array([[2.0, 1, 1], [4, 2, 0], [8, 3, 1], [0, 0, 0]])
    assert correlation(a, b) == pytest.approx(0)  # r = 1 and −1
    assert np.isnan(correlation(a[:, 1:2], b[:, 1:2]))
    assert np.isnan(correlation(a[:0], b[:0]))


def test_silent_units_have_no_picture():
    net = checkpoint(1)
    nn.init.constant_(net.module.features[0].bias[:1], -100)
    found = evolve([("1", checkpoint(0)), ("2", net)], PICTURES, LAYERS[:1], (0, 1))
    assert found.histories[0].moments[1] == Moment(0.0)
    assert found.histories[0].takeovers == ()
    assert found.histories[1].moments[1].picture is not None


def test_broken_pictures_are_listed_and_do_not_count(tmp_path, found):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    networks = [(f"{10 * i}", checkpoint(seed)) for i, seed in enumerate((0, 1, 1, 2))]
    again = evolve(networks, [*PICTURES, tmp_path / "broken.png"], LAYERS, (0, 3))
    assert [(number, path) for number, path, _ in again.rejected] == [(7, str(tmp_path / "broken.png"))]
    for layer in LAYERS:
        np.testing.assert_allclose(again.to_last[layer], found.to_last[layer], atol=1e-6)


def test_layers_and_units_by_themselves():
    net = cl.load("alexnet", weights=None, num_classes=7, width=0.05, arguments={"size": 67})
    assert main_layers(net) == tuple(f"features.relu{i}" for i in range(1, 6))
    assert main_layers(net, 3) == ("features.relu1", "features.relu3", "features.relu5")
    found = run((0, 1), count=2)
    assert [one.unit for one in found.histories] == [0, 2, 0, 3]  # of 4 and 6


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"layers": ["features.9"]}, LayerError, "does not exist"),
        ({"layers": ["fc"]}, LayerError, "no spatial extent"),
        ({"layers": []}, UsageError, "no layer"),
        ({"units": [0, 6]}, TargetError, "0…3"),
        ({"units": []}, TargetError, "none"),
    ],
)
def test_layers_and_units_that_are_not_there(options, kind, said):
    options = {"layers": LAYERS} | options
    with pytest.raises(kind, match=said):
        evolve([("1", checkpoint(0)), ("2", checkpoint(1))], PICTURES, **options)


def test_layers_that_no_deconvnet_inverts_are_refused_before_any_picture_is_read():
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    net = cl.wrap(seeded(lambda: module), card=cl.Card(preprocessing=SHAPE))
    with pytest.raises(UnsupportedError, match="tanh"):
        evolve([("1", net), ("2", net)], [object()], ["1"])


def test_checkpoints_of_another_network_are_refused():
    first = checkpoint(0, architecture="a", labels=(cl.Label("n1", "cat"),))
    for other, said in [
        (replace(first, card=replace(first.card, architecture="b")), "got b, not a"),
        (replace(first, card=replace(first.card, labels=(cl.Label("n2", "dog"),))), "other classes"),
        (
            replace(first, card=replace(first.card, preprocessing=Preprocessing(size=24))),
            "other preprocessing",
        ),
        (cl.wrap(fully_connected(), card=first.card), "other shapes"),
    ]:
        with pytest.raises(NetworkError, match=said) as caught:
            evolve([("1", first), ("2", other)], PICTURES, LAYERS, (0,))
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="1 checkpoints"):
        evolve([("1", first)], PICTURES, LAYERS, (0,))
