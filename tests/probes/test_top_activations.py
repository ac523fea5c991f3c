"""The strongest pictures of a unit, against a sort of everything."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import camlucida as cl
from camlucida.errors import LayerError, UsageError
from camlucida.images.views import Preprocessing
from camlucida.networks.cards import Card
from camlucida.networks.network import Network
from camlucida.probes import projections
from camlucida.probes.top_activations import RunningTop, running, top_activations
from camlucida.values import Size
from small_networks import gap, seeded, trunk


def sorted_by_force(activations, k, numbers):
    """For each unit the k best `(value, picture, cell)`, one a picture, by Python's own sort."""
    found = []
    for unit in range(activations.shape[1]):
        entries = []
        for maps, number in zip(activations, numbers, strict=True):
            cells = {cell: float(maps[(unit, *cell)]) for cell in np.ndindex(*maps.shape[1:])}
            value, cell = max((v, tuple(-c for c in cell)) for cell, v in cells.items())
            if math.isfinite(value):
                entries.append((-value, number, tuple(-c for c in cell)))
        found.append(sorted(entries)[:k])
    return found


def listed(top):
    return [
        [
            (-value, picture, tuple(cell))
            for value, picture, cell in zip(values, pictures, cells, strict=True)
            if picture >= 0
        ]
        for values, pictures, cells in zip(
            top.values.tolist(), top.pictures.tolist(), top.cells.tolist(), strict=True
        )
    ]


def rounded(pictures=40, units=7, cells=(3, 5), seed=0, levels=4):
    """Activations of few levels: many ties, among pictures and inside one; a unit that is always silent."""
    values = torch.randint(
        0, levels, (pictures, units, *cells), generator=torch.Generator().manual_seed(seed)
    )
    values[:, 3] = 0
    return values.float()


@pytest.mark.parametrize("cells", [(3, 5), (4,), (2, 3, 2)])
@pytest.mark.parametrize("k", [1, 4, 60])
def test_the_running_top_is_what_a_sort_gives(k, cells):
    for levels in (4, 10**6):
        activations = rounded(cells=cells, levels=levels)
        top = RunningTop.empty(7, k, len(cells))
        for start in range(0, 40, 6):
            assert top.update(activations[start : start + 6], start) == []
        assert listed(top) == sorted_by_force(activations, k, range(40))


@pytest.mark.parametrize("order", [[3, 0, 2, 1], [1, 2, 3, 0]])
def test_pictures_and_shares_may_come_in_any_order(order):
    activations = rounded(seed=1)
    whole, late = RunningTop.empty(7, 4), RunningTop.empty(7, 4)
    whole.update(activations, 0)
    shares = []
    for i in order:
        late.update(activations[i * 10 : i * 10 + 10], range(i * 10, i * 10 + 10))
        one = RunningTop.empty(7, 4)
        one.update(activations[i * 10 : i * 10 + 10], i * 10)
        shares.append(one)
    merged = shares[0].merge(shares[1]).merge(shares[3].merge(shares[2]))
    for top in (late, merged, RunningTop.of_arrays(whole.arrays())):
        for name, one in whole.arrays().items():
            np.testing.assert_array_equal(one, top.arrays()[name])


def test_few_pictures_leave_places_free_and_merge_alike():
    few, more = RunningTop.empty(7, 4), RunningTop.empty(7, 4)
    few.update(rounded(2), 0)
    more.update(rounded(1, seed=5), 2)
    assert (few.pictures[:, 2:] == -1).all()
    assert (few.cells[:, 2:] == 0).all()
    for name, one in few.merge(more).arrays().items():
        np.testing.assert_array_equal(one, more.merge(few).arrays()[name])
    assert (few.merge(more).pictures[:, 3] == -1).all()


def test_a_map_with_nan_or_infinity_does_not_count():
    activations = rounded()
    activations[4, 2, 1, 3], activations[9, 5, 0, 0] = math.nan, math.inf
    top = RunningTop.empty(7, 40)
    assert top.update(activations, 0) == [4, 9]
    assert (top.pictures[2] >= 0).sum() == (top.pictures[5] >= 0).sum() == 39
    assert 4 not in top.pictures[2]
    assert 9 not in top.pictures[5]


def test_peaks_are_of_pictures_that_excite_a_unit_in_any_order_of_batches():
    """Not of one in which the unit is nowhere above zero: a ReLU that stays shut, a linear unit that stays below."""
    maps = torch.randn(9, 5, 3, 5, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    maps[2], maps[5, 1], maps[6, 1], maps[7, 1, 0, 0] = 0.0, 9.0, -9.0, math.nan
    maps[8, 3] = maps[0, 3] = maps[4, 3]
    maps[:, 4] = -maps[:, 4].abs()
    top = RunningTop.empty(5, 8)
    for some in ([7, 1, 8], [0, 2], [5, 6, 3, 4]):
        top.update(maps[some], some)
    for unit in range(5):
        highest = {p: float(maps[p, unit].max()) for p in range(9)}  # NaN is not above zero
        order = sorted((p for p in highest if highest[p] > 0), key=lambda p: (-highest[p], p))
        assert [peak.picture for peak in top.peaks(unit)] == order[:8]
        for peak in top.peaks(unit):
            assert peak.value == float(maps[peak.picture, unit][peak.cell])
    assert top.peaks(1)[0].picture == 5  # one value everywhere, which is above zero
    assert top.excited.tolist() == [True, True, True, True, False]
    assert top.ranked() == sorted(range(4), key=lambda u: -top.peaks(u)[0].value)
    assert top.units == 5


# --- the pass ------------------------------------------------------------------------------------------------------


def pictures(count=23):
    """Noise in two shapes, none of them square; the last picture is the first again."""
    rng = np.random.default_rng(0)
    made = [
        rng.integers(0, 256, (30, 44, 3) if i % 3 else (52, 30, 3), dtype=np.uint8) for i in range(count - 1)
    ]
    return [*made, made[0]]


def network(build=gap):
    return Network(build(), Card(preprocessing=Preprocessing(size=24)))


def equal(one, other):
    assert (one.parts, one.pictures, one.sizes, one.rejected) == (
        other.parts,
        other.pictures,
        other.sizes,
        other.rejected,
    )
    for name, top in one.tops.items():
        for what, values in top.arrays().items():
            np.testing.assert_array_equal(values, other.tops[name].arrays()[what])


def test_the_pass_finds_what_one_picture_at_a_time_gives():
    net, given = network(), pictures()
    found = top_activations(net, given, ["features.0", "features.3"], 5, batch=4, part=10)
    for name, layer in (("features.0", 1), ("features.3", 4)):
        each = [net.module.features[:layer](net.preprocess(one).pixels)[0].detach() for one in given]
        top = found.tops[name]
        for unit in range(len(top.values)):
            best = sorted((-float(maps[unit].max()), i) for i, maps in enumerate(each))[:5]
            np.testing.assert_allclose(top.values[unit], [-v for v, _ in best], rtol=1e-5, atol=1e-6)
            for value, picture, cell in zip(
                top.values[unit], top.pictures[unit], top.cells[unit], strict=True
            ):
                assert each[int(picture)][(unit, *cell)] == pytest.approx(float(value), rel=1e-5, abs=1e-6)
            assert len({*top.pictures[unit].tolist()}) == 5
    assert {*found.sizes} == {i for top in found.tops.values() for i in top.pictures.flatten().tolist()}
    assert all((size.height, size.width) == given[i].shape[:2] for i, size in found.sizes.items())
    assert 22 not in found.tops["features.3"].pictures[:, 0]  # it ties with picture 0, which comes first


def test_a_unit_is_looked_at_before_a_relu_in_place_overwrites_it():
    net = network(
        lambda: seeded(lambda: nn.Sequential(trunk(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    )
    for i in (0, 2):
        nn.init.constant_(net.module[0][i].bias[:1], -100)
    tops = top_activations(net, pictures(), ["0.0", "0.2"], 23).tops  # from the first the pass goes on
    assert all((top.values[0] < -10).all() for top in tops.values())


def test_the_pass_ends_at_the_deepest_layer_and_leaves_the_network_alone():
    net = network()
    ran = []
    net.module.features[2].register_forward_hook(lambda *_: ran.append("conv2"))
    net.module.fc.register_forward_hook(lambda *_: ran.append("fc"))
    layers = [net.find_layer(name, net.blank()) for name in ("features.1", "features.2")]
    before, hooks = (
        {n: t.clone() for n, t in net.module.state_dict().items()},
        len(net.module.features[1]._forward_hooks),
    )
    ran.clear()
    top_activations(net, pictures(), layers, 2)
    assert {*ran} == {"conv2"}
    assert len(net.module.features[1]._forward_hooks) == hooks
    assert all(torch.equal(before[n], t) for n, t in net.module.state_dict().items())


def test_shares_and_a_pass_that_goes_on_give_the_same_bits():
    net, given = network(), pictures()
    options = {"batch": 3, "part": 5}
    whole = top_activations(net, given, ["features.1", "features"], 4, **options)
    shares = [
        top_activations(net, given, ["features.1", "features"], 4, share=(i, 3), **options) for i in (2, 0, 1)
    ]
    equal(shares[0].merge(shares[1]).merge(shares[2]), whole)
    stopped = copy.deepcopy(next(running(net, given, ["features.1", "features"], 4, **options)))
    assert stopped.parts == [0]
    done = []
    equal(
        top_activations(
            net, given, ["features.1", "features"], 4, begun=stopped, progress=done.append, **options
        ),
        whole,
    )
    assert len(done) == 18
    equal(top_activations(net, given, ["features.1", "features"], 4, begun=whole, **options), whole)
    with pytest.raises(UsageError, match="part 2 twice"):
        shares[0].merge(whole)


def test_the_state_does_not_grow_with_the_pictures():
    net = network()
    states = [top_activations(net, pictures(count), ["features.0"], 2, part=8) for count in (9, 90)]
    assert (
        len({tuple(one.shape for one in each.tops["features.0"].arrays().values()) for each in states}) == 1
    )
    assert all(len(one.sizes) <= 4 * 2 for one in states)


def test_a_picture_that_cannot_be_read_is_listed():
    found = top_activations(network(), [*pictures(6), "nowhere.jpg"], ["features.0"], 3)
    assert [(i, path) for i, path, _ in found.rejected] == [(6, "nowhere.jpg")]
    assert found.pictures == 7


@pytest.mark.parametrize(
    ("layers", "k", "error", "words"),
    [
        (["nothing"], 2, LayerError, "does not exist"),
        (["fc"], 2, LayerError, "no spatial extent"),
        (["features.0"], 24, UsageError, "23 pictures"),
        (["features.0"], 0, UsageError, "≥ 1"),
        ([], 2, UsageError, "no layer"),
    ],
)
def test_bad_input_is_one_line(layers, k, error, words):
    with pytest.raises(error, match=words) as caught:
        top_activations(network(), pictures(), layers, k)
    assert "\n" not in str(caught.value)


# --- patches and projections ---------------------------------------------------------------------------------------


def test_a_projection_is_deconvnet_from_that_cell():
    net = network()
    batch = net.preprocess(pictures()[1:3])
    layer = net.find_layer("features.3", batch.pixels)
    made = projections.projected(net, batch.pixels, layer, [1, 4], [(2, 3), (0, 1)])
    for i, (unit, cell) in enumerate([(1, (2, 3)), (4, (0, 1))]):
        wanted = cl.DeconvNet("features.3", unit=unit, at=cell)(net, batch)
        torch.testing.assert_close(made[i], wanted.values[i])


def test_only_what_is_max_pooled_has_switches():
    def pooled():
        return nn.Sequential(
            trunk(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )

    net = network(lambda: seeded(pooled))
    found = [projections.has_switches(net, net.find_layer(name, net.blank())) for name in ("0.2", "2")]
    assert found == [False, True]


def test_a_window_is_the_receptive_field_and_beyond_the_border_lies_the_fill():
    """Two 3 × 3 convolutions, stride 2, padding 1: 7 pixels around 4·cell + 0.5."""
    net = network()
    layer = net.find_layer("features.3", torch.zeros(1, 3, 24, 36))
    assert projections.window(layer, (0, 2), Size(24, 36)) == (-3, 5, 7, 7)
    assert projections.window(layer, (1, 1), Size(3, 36)) == (2, 1, 6, 7)  # twice the view's height at most
    values = np.arange(24 * 36).reshape(24, 36, 1)
    made = projections.cut(values, (-3, 5, 7, 7), -1)
    assert (made[:3] == -1).all()
    np.testing.assert_array_equal(made[3:, :, 0], values[:4, 5:12, 0])
    assert projections.inside((-3, 33, 7, 7), Size(24, 36)).sum() == 4 * 3
    assert projections.inside((50, 50, 7, 7), Size(24, 36)).sum() == 0


def test_likeness_is_the_mean_of_all_pairs_where_both_see_the_picture():
    rng = np.random.default_rng(0)
    windows = [rng.normal(size=(4, 5, 3)) for _ in range(3)]
    where = [np.ones((4, 5), bool) for _ in range(3)]
    where[2][:, :2] = False
    windows[2][:, :2] = 1e6  # beyond the border
    pairs = [(0, 1, slice(0, 5)), (0, 2, slice(2, 5)), (1, 2, slice(2, 5))]
    wanted = [np.corrcoef(windows[a][:, s].ravel(), windows[b][:, s].ravel())[0, 1] for a, b, s in pairs]
    assert projections.likeness(windows, where) == pytest.approx(np.mean(wanted))
    assert projections.likeness(windows[:1], where[:1]) is None
    assert projections.likeness([windows[0], np.ones((4, 5, 3))], where[:2]) is None
