"""First-layer filters, dead units and the second layer's frequencies, against slow formulas and planted cases."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import camlucida as cl
from camlucida.errors import LayerError, UnsupportedError, UsageError
from camlucida.images.views import Preprocessing
from camlucida.networks.cards import Card
from camlucida.probes import activity, filters_and_units, first_filters
from camlucida.probes.activity import watch
from camlucida.probes.filters import measure
from camlucida.probes.spectra import high_energy
from pictures import colours
from small_networks import CHANNELS, FullyConnected, called_twice, fully_connected, gap, seeded, trunk

PLAIN = Preprocessing(size=20, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
PICTURES = [colours(20, 28, seed) for seed in range(5)] + [colours(33, 20, seed) for seed in (5, 6)]


def network(module, **changes):
    return cl.wrap(module, card=Card(preprocessing=replace(PLAIN, **changes)))


def grating(frequency, side=32):
    """`(3, side, side)`: a cosine along x, in red and blue."""
    wave = np.cos(2 * np.pi * frequency * np.arange(side))
    return np.stack([np.tile(wave, (side, 1))] * 3) * np.array([1, 0, 0.5])[:, None, None]


# --- filters -----------------------------------------------------------------------------------------------


def test_energies_are_those_of_the_fourier_sum_written_out():
    weights = np.random.default_rng(0).normal(size=(3, 2, 5, 7)).astype(np.float32)
    found = measure(weights, (2, 4))
    y, x = np.arange(5), np.arange(7)
    energy = np.zeros((3, 64, 64))
    each = [i / 64 if i < 32 else i / 64 - 1 for i in range(64)]
    for i, u in enumerate(each):
        for j, v in enumerate(each):
            wave = np.exp(-2j * np.pi * (u * y[:, None] + v * x[None]))
            energy[:, i, j] = (np.abs((weights * wave).sum((2, 3))) ** 2).sum(1)
    distance = np.array([[math.hypot(u, v) for v in each] for u in each])
    folded = np.array([[abs(u) > 1 / 4 or abs(v) > 1 / 8 for v in each] for u in each])
    for k in range(3):
        total = energy[k].sum()
        low, high = energy[k][distance < 1 / 6].sum() / total, energy[k][distance >= 1 / 3].sum() / total
        np.testing.assert_allclose(found.bands[k], [low, 1 - low - high, high], rtol=1e-9)
        np.testing.assert_allclose(found.beyond[k], energy[k][folded].sum() / total, rtol=1e-9)
        assert found.peaks[k] == pytest.approx(distance.ravel()[energy[k].argmax()])
        ring = (distance >= 5 / 32) & (distance < 6 / 32)
        assert found.distances[5] == pytest.approx(5.5 / 32)
        assert found.rings[k, 5] == pytest.approx(energy[k][ring].mean() / energy[k].mean())
    np.testing.assert_allclose(found.rms, np.sqrt((weights.astype(float) ** 2).mean((1, 2, 3))))


def test_a_grating_peaks_at_its_frequency_and_lies_in_its_band():
    frequencies = [0.0625, 0.25, 0.4375, 0.25]
    weights = np.stack([grating(f) for f in frequencies]).astype(np.float32)
    weights[3] *= 0.05  # faint: below a tenth of the median
    found = measure(weights, (4, 4))
    np.testing.assert_allclose(found.peaks, frequencies, atol=1 / 64)
    assert (found.bands[[0, 1, 2], [0, 1, 2]] > 0.9).all()
    assert found.dead.tolist() == [False, False, False, True]
    np.testing.assert_allclose(found.peaks_in_bands, [1 / 3] * 3)
    assert found.beyond[0] < 0.1 < 0.9 < found.beyond[1]  # what 4 pixels a cell can hold ends at 0.125
    gap = measure(weights[[0, 2, 2]], (4, 4))
    assert gap.peaks_in_bands[1] == 0


def test_white_noise_is_spread_over_the_bands_as_the_page_says():
    found = measure(np.random.default_rng(1).normal(size=(400, 3, 9, 9)).astype(np.float32), (4, 4))
    np.testing.assert_allclose(found.mean(found.bands), [0.087, 0.262, 0.651], atol=0.01)
    assert found.mean(found.beyond) == pytest.approx(1 - 1 / 16, abs=0.01)
    np.testing.assert_allclose(found.mean(found.rings), 1, atol=0.1)


def test_all_filters_zero():
    found = measure(np.zeros((3, 3, 3, 3), np.float32))
    assert found.dead.all()
    assert np.isnan(found.peaks_in_bands).all()
    assert np.isnan(found.mean(found.bands)).all()


def test_filters_are_those_of_the_first_convolution_in_red_green_blue():
    module = gap()
    weights = module.features[0].weight.detach().numpy()
    found = first_filters(network(module))
    assert (found.layer, found.stride) == ("features.0", (2, 2))
    np.testing.assert_array_equal(found.weights, weights)
    np.testing.assert_array_equal(first_filters(network(module, channels="BGR")).weights, weights[:, ::-1])


def test_networks_without_such_filters_are_refused():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 20, 4))
    with pytest.raises(UnsupportedError, match="no convolution"):
        first_filters(network(flat, crop=20, any_size=False))


# --- activity ----------------------------------------------------------------------------------------------


def answers(net, layer, pictures=PICTURES):
    """`(units, cells)` of each picture, by the module's own hooks."""
    kept = []
    module = dict(net.module.named_modules())[layer]
    handle = module.register_forward_hook(lambda m, i, o: kept.append(o[0].detach().double().reshape(o.shape[1], -1).numpy()))  # fmt: skip
    for one in pictures:
        net.module(net.preprocess(one).pixels)
    handle.remove()
    return kept


@pytest.mark.parametrize("batch", [1, 2, 32])
def test_figures_are_those_of_all_activations_at_once(batch):
    net = network(gap())
    layers = activity.units(net)
    assert [(one.name, one.count) for one in layers] == [("features.1", 4), ("features", CHANNELS)]
    watched = watch(net, PICTURES, layers, batch=batch)
    assert watched.pictures == len(PICTURES)
    for one in watched.activities:
        each = answers(net, one.layer)
        together = np.concatenate(each, 1)
        assert one.cells == together.shape[1]
        for found, wanted in (
            (one.mean, together.mean(1)), (one.std, together.std(1)), (one.maximum, together.max(1)),
            (one.active, (together > 0).mean(1)),
            (one.pictures_active, np.mean([(a > 0).any(1) for a in each], 0)),
        ):  # fmt: skip
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)


def test_a_large_offset_does_not_eat_the_deviation():
    """Sums of squares would: 1e7² leaves no digit of 1."""
    net = network(gap())
    tally = activity.Tally(activity.units(net)[0])
    values = torch.randn(6, 4, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e7
    for part in values.split([1, 2, 3]):
        tally.add(part)
    np.testing.assert_allclose(tally.result().std, values.numpy().std((0, 2)), rtol=1e-7)


def test_planted_units_are_found_dead_and_nearly_constant():
    module = gap()
    first = module.features[0]
    with torch.no_grad():
        first.bias[1] = -1e4
        first.weight[2], first.bias[2] = 0, 0.5
    found = filters_and_units(network(module), PICTURES, k=2, units=2)
    assert found.first is not None
    assert found.first.layer == "features.1"
    assert found.first.dead.tolist() == [False, True, False, False]
    assert found.first.nearly_constant.tolist() == [False, False, True, False]
    assert found.filters.dead.tolist() == [False, False, True, False]
    assert found.dead.tolist() == [False, True, True, False]


def test_fully_connected_units_and_repeated_modules_count():
    net = network(fully_connected(), crop=20, any_size=False)
    net.module.classifier[1] = seeded(nn.Linear, CHANNELS * 5 * 5, 8)
    assert [(one.name, one.count) for one in activity.units(net)][-1] == ("classifier.2", 8)
    found = watch(net, PICTURES[:3], activity.units(net, ["classifier.2"])).activities[0]
    assert found.cells == 3
    np.testing.assert_allclose(found.mean, np.concatenate(answers(net, "classifier.2", PICTURES[:3])).reshape(3, 8).mean(0), rtol=1e-5, atol=1e-7)  # fmt: skip
    # The activation functions of this one are no modules, and its convolution runs twice.
    assert [one.name for one in activity.units(network(called_twice()), ["again#2"])] == ["again#2"]


def test_a_network_without_activation_functions_has_its_convolutions():
    linear = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))  # fmt: skip
    assert [one.name for one in activity.units(network(linear))] == ["0"]


def test_layers_that_are_not_there_or_have_no_units():
    net = network(gap())
    with pytest.raises(LayerError, match="does not exist"):
        filters_and_units(net, PICTURES, layers=["features.9"], k=2)
    with pytest.raises(LayerError, match="no spatial extent"):
        filters_and_units(net, PICTURES, second="fc", k=2)
    flat = network(seeded(FullyConnected), size=20, resize="squash", any_size=False)
    flat.module.classifier[1] = seeded(nn.Linear, CHANNELS * 5 * 5, 8)
    with pytest.raises(LayerError, match="no spatial extent"):
        filters_and_units(flat, PICTURES, second="classifier.2", k=2)
    with pytest.raises(UsageError, match=r"got 3 pictures; allowed: k up to 3"):
        filters_and_units(net, PICTURES[:3], k=9)


def test_broken_pictures_are_left_out_and_named():
    net = network(gap())
    layers = activity.units(net)
    mixed = watch(net, [PICTURES[0], b"no picture", PICTURES[1]], layers, layers[1], 2)
    clean = watch(net, PICTURES[:2], layers)
    assert mixed.pictures == 2
    assert [path for path, _ in mixed.rejected] == ["<picture>"]
    np.testing.assert_allclose(mixed.activities[0].mean, clean.activities[0].mean)
    assert mixed.top is not None
    assert sorted(set(mixed.top.pictures.flatten().tolist())) == [0, 2]
    with pytest.raises(UsageError, match="0 of 1 pictures"):
        watch(net, [b"no picture"], layers)


def test_a_picture_with_infinite_activations_does_not_count():
    module = gap()
    module.features.register_forward_hook(
        lambda m, i, o: o / (i[0].mean() > 0)
    )  # the bright picture alone is finite
    dark, bright = np.zeros((20, 28, 3), np.uint8), np.full((20, 28, 3), 255, np.uint8)
    net = network(module)
    found = watch(net, [dark, bright], activity.units(net, ["features"]), batch=1)
    assert [reason for _, reason in found.rejected] == ["activations of it are NaN or infinite"]
    assert found.activities[0].pictures == 1


# --- the second layer --------------------------------------------------------------------------------------


def test_high_energy_of_known_waves():
    x = np.arange(64)
    low, high = np.cos(2 * np.pi * x / 8), np.cos(2 * np.pi * x * 3 / 8)
    wave = np.tile(2 * low + high, (48, 1))[None]
    assert high_energy(wave) == pytest.approx(1 / 5, abs=1e-3)
    assert high_energy(wave + 1e4) == pytest.approx(high_energy(wave))
    assert high_energy(wave.swapaxes(1, 2)) == pytest.approx(high_energy(wave))
    y, x = np.mgrid[:48, :64]
    slow = np.sin(x * 2.3 / 10 + 1) + np.sin(y * 2.3 / 8 + 1)  # broken off at the borders
    assert high_energy(slow[None]) < 1e-5
    noise = np.random.default_rng(0).normal(size=(3, 200, 150))
    assert high_energy(noise) == pytest.approx(1 - math.pi / 16, abs=0.01)
    assert math.isnan(high_energy(np.full((3, 9, 9), 5.0)))
    assert math.isnan(high_energy(np.ones((3, 3, 9))))


def test_projections_are_deconvnets_cut_to_the_field_of_the_strongest_cell():
    net = network(gap())
    found = filters_and_units(net, PICTURES, k=3, units=2)
    second = found.second
    assert second is not None
    assert second.layer == "features"
    assert len(second.units) == 2
    for unit in second.units:
        assert [one.activation for one in unit] == sorted((one.activation for one in unit), reverse=True)
        for one in unit:
            batch = net.preprocess(PICTURES[one.picture])
            assert one.activation == pytest.approx(float(answers(net, "features", [PICTURES[one.picture]])[0][one.unit].max()), rel=1e-5)  # fmt: skip
            whole = cl.DeconvNet("features", one.unit)(net, batch).values[0].numpy()
            top, left, height, width = one.window
            assert (height, width) == (7, 7) == one.values.shape[1:]
            y, x = max(top, 0), max(left, 0)
            inside = (
                slice(y - top, min(whole.shape[1] - top, 7)),
                slice(x - left, min(whole.shape[2] - left, 7)),
            )
            within = whole[:, y : top + height, x : left + width]
            np.testing.assert_allclose(one.values[:, *inside], within, atol=1e-6)
            assert np.abs(whole).sum() == pytest.approx(np.abs(one.values).sum(), rel=1e-5)
            shown = np.asarray(batch.pictures()[0])
            np.testing.assert_array_equal(one.patch[inside], shown[y : top + height, x : left + width])
            np.testing.assert_allclose(one.high, high_energy(one.values))
    each = [[one.high for one in unit if math.isfinite(one.high)] for unit in second.units]
    assert second.high == pytest.approx(np.mean([np.mean(one) for one in each]))


def test_projections_of_a_network_of_blue_green_red_are_turned_round():
    module = gap()
    turned = gap()
    with torch.no_grad():
        turned.features[0].weight.copy_(module.features[0].weight.flip(1))
    bgr = {"channels": "BGR", "mean": PLAIN.mean[::-1], "std": PLAIN.std[::-1]}
    one, other = (
        filters_and_units(network(m, **changes), PICTURES, k=1, units=1).second
        for m, changes in ((module, {}), (turned, bgr))
    )
    assert one is not None
    assert other is not None
    np.testing.assert_allclose(one.units[0][0].values, other.units[0][0].values, atol=1e-6)
    assert one.high == pytest.approx(other.high)


def test_what_deconvnet_cannot_project_is_said_and_the_rest_stands():
    soft = seeded(lambda: nn.Sequential(*(nn.GELU() if isinstance(m, nn.ReLU) else m for m in trunk()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 2)))  # fmt: skip
    found = filters_and_units(network(soft), PICTURES, k=2)
    assert found.second is None
    assert "gelu" in found.refused
    assert [one.layer for one in found.activities] == ["1", "3"]


def test_the_module_comes_back_as_it_was():
    module = gap().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    filters_and_units(network(module), PICTURES, k=2, units=2)
    assert module.training
    assert module.dropout.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert not any(m._forward_hooks for m in module.modules())
