"""Class-specific units: ranks, strongest pictures, segments and contributions against closed forms and slow loops."""
# mypy: disable-error-code="union-attr,arg-type,operator"

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import camlucida as cl
from camlucida.errors import TargetError, UnsupportedError, UsageError
from camlucida.geometry import Box, Grid, Size
from camlucida.networks import cards
from camlucida.probes.class_units import class_units, class_weights, contributions, segment
from camlucida.probes.receptive_field import field_of
from fingerprints import unchanged
from small_networks import CLASSES, EXACT, LINEARISED, MAXIMUM, OTHER, gap, headed, pixels, seeded

WITH_UNITS = {**EXACT, **LINEARISED, **MAXIMUM}
OWN_CHANNELS = {"conv 1x1, pool", "conv 1x1, relu, pool", "channels last, linear, mean"}


# --- contributions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in WITH_UNITS if n not in OWN_CHANNELS])
def test_contributions_sum_to_the_logit_less_its_bias(name):
    net = cl.wrap(WITH_UNITS[name]())
    x = pixels(3)
    with unchanged(net.module):
        found = contributions(net, x, [1, 4, 0])
    logits = net(x)
    torch.testing.assert_close(found.logits, logits[range(3), [1, 4, 0]])
    torch.testing.assert_close(found.values.sum(1) + found.bias, found.logits, rtol=1e-5, atol=1e-5)
    assert found.classes.tolist() == [1, 4, 0]
    assert contributions(net, x).classes.tolist() == logits.argmax(1).tolist()


def test_contributions_are_weight_times_mean():
    module = gap()
    x = pixels(2)
    found = contributions(cl.wrap(module), x, 3)
    means = module.features(x).mean((2, 3))
    torch.testing.assert_close(found.values, (module.fc.weight[3] * means).detach())
    torch.testing.assert_close(found.weights, module.fc.weight[3].detach().expand(2, -1))


# --- ranks and pictures --------------------------------------------------------------------------------------


def test_units_by_weight_and_their_strongest_pictures():
    module = gap()
    x = pixels(7)
    with unchanged(module):
        found = class_units(cl.wrap(module), x, [4, 1], units=2, top=3)
    maps, weight = module.features(x).detach(), module.fc.weight.detach()
    assert [one.index for one in found.classes] == [4, 1]
    for one in found.classes:
        order = sorted(range(6), key=lambda k: -float(weight[one.index, k]))
        assert [u.unit for u in one.units] == order[:2]
        assert [u.rank for u in one.units] == [1, 2]
        for unit in one.units:
            assert unit.weight == pytest.approx(float(weight[one.index, unit.unit]))
            highest = maps[:, unit.unit].flatten(1).amax(1)
            active = [p for p in highest.argsort(descending=True).tolist() if highest[p] > 0]
            assert [s.peak.picture for s in unit.segments] == active[:3]
            for s in unit.segments:
                np.testing.assert_allclose(s.activation, maps[s.peak.picture, unit.unit], atol=1e-6)
                assert s.activation[s.peak.cell] == pytest.approx(s.peak.value)
                assert s.predicted == int(cl.wrap(module)(x)[s.peak.picture].argmax())
        logits = cl.wrap(module)(x)[:, one.index]
        assert one.best == int(logits.argmax())
        assert float(one.contributions.logits[0]) == pytest.approx(float(logits.max()), rel=1e-5)


def test_by_default_the_classes_that_most_pictures_are_predicted_as():
    net = cl.wrap(gap())
    x = pixels(40)
    with torch.no_grad():
        net.module.fc.weight.mul_(40)
    counts = torch.bincount(net(x).argmax(1), minlength=CLASSES)
    found = class_units(net, x, top=1)
    order = sorted(range(CLASSES), key=lambda c: (-int(counts[c]), c))
    assert [one.index for one in found.classes] == [c for c in order if counts[c]][:3]


def test_weights_count_the_gain_of_a_norm():
    module = WITH_UNITS["pool, batch norm, linear"]()
    scale = module.norm.weight / (module.norm.running_var + module.norm.eps).sqrt()
    found = class_weights(cl.wrap(module), pixels(1))
    torch.testing.assert_close(found, (module.fc.weight * scale).detach())


def test_a_grad_cam_layer_chosen_elsewhere_changes_nothing():
    net = cl.wrap(gap())
    other = cl.wrap(net.module, layer="features.0")
    one, two = (class_units(n, pixels(3), [2], top=1).classes[0] for n in (net, other))
    assert [u.unit for u in one.units] == [u.unit for u in two.units]
    assert two.units[0].segments[0].activation.shape == (5, 7)


def test_an_svm_on_a_trunk_is_a_packed_network(tmp_path):
    """The rows of a linear SVM on pooled features, as the head of a network in one file."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = cl.load("alexnet-gap", weights=None, num_classes=3, width=0.1)
    x = torch.randn(30, 3, 67, 83, generator=torch.Generator().manual_seed(0))
    layer = net.structure(x).features
    pooled = layer.cells(net.run(x, [layer.point]).tapped[layer.point]).detach().mean((2, 3))
    pooled /= pooled.std()
    sign = 2 * torch.eye(3).repeat(10, 1) - 1
    rows, bias = torch.zeros(3, pooled.shape[1]), torch.zeros(3)
    for _ in range(100):  # the hinge loss, downhill
        wrong = sign * (sign * (pooled @ rows.T + bias) < 1)
        rows += 0.1 * (wrong.T @ pooled / 30 - 0.01 * rows)
        bias += 0.1 * wrong.mean(0)
    with torch.no_grad():
        head = [m for m in net.module.modules() if isinstance(m, nn.Linear)][-1]
        head.weight.copy_(rows)
        head.bias.copy_(bias)
    cards.pack(tmp_path / "svm.safetensors", net.module.state_dict(), replace(net.card, activation="none"))
    packed = cl.load(str(tmp_path / "svm.safetensors"))
    found = class_units(packed, x, [0, 1, 2], units=3, top=2)
    for one in found.classes:
        assert [u.unit for u in one.units] == (-rows[one.index]).argsort(stable=True)[:3].tolist()
        values = one.contributions.values[0]
        torch.testing.assert_close(
            values.sum(), one.contributions.logits[0] - bias[one.index], rtol=1e-4, atol=1e-5
        )


# --- segments ------------------------------------------------------------------------------------------------


def hot(cell: tuple[int, int], size=(5, 7)) -> np.ndarray:
    values = np.zeros(size, np.float32)
    values[cell] = 3.0
    return values


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    y, x = np.nonzero(mask)
    whole = mask[y.min() : y.max() + 1, x.min() : x.max() + 1]
    assert whole.mean() > 0.7  # bilinear: the corners are rounded
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


def test_a_cell_alone_is_its_own_part_of_the_stretched_map():
    grid = Grid((20, 28), (0.5, 0.5), (4, 4), (7, 7))
    assert extent(segment(hot((2, 3)), grid, None)) == (12, 8, 16, 12)


@pytest.mark.parametrize("cell", [(2, 3), (0, 0), (4, 6)])
def test_a_cell_alone_grows_to_its_field(cell):
    net = cl.wrap(gap())
    layer = net.structure(pixels(1)).features
    grid = layer.grid((20, 28))
    around = Box(-3.5, -3.5, 3.5, 3.5)
    found = extent(segment(hot(cell), grid, around))
    wanted = field_of(layer, cell).clipped(Size(20, 28)).corners
    assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= 1


def test_a_field_off_its_centre_grows_to_that_side():
    grid = Grid((40, 56), (4, 4), (8, 8), (24, 24))
    x0, y0, x1, y1 = extent(segment(hot((2, 3)), grid, Box(-12, -4, 4, 20)))
    assert (x0, y0, x1, y1) == (28 - 12, 20 - 4, 28 + 4, 20 + 20)


def test_a_map_that_is_nowhere_above_zero_keeps_its_highest_cell():
    grid = Grid((20, 28), (2, 2), (4, 4), (7, 7))
    assert extent(segment(hot((1, 1)) - 5, grid, None)) == (4, 4, 8, 8)


@pytest.mark.parametrize("field", ["map", "theoretical", "empirical"])
def test_larger_fields_hold_smaller_segments(field):
    net = cl.wrap(gap())
    x = pixels(4, 40, 56)
    found = class_units(net, x, [0], units=1, top=2, field=field, field_top=2, patch=3, stride=2)
    unit = found.classes[0].units[0]
    assert (unit.field is not None) == (field == "empirical")
    for s in unit.segments:
        assert s.mask.shape == (40, 56)
        assert 0 < s.mask.sum() < 40 * 56
        if field == "theoretical":
            y, x0 = (int(o + c * d) for o, c, d in zip((0.5, 0.5), s.peak.cell, (4, 4), strict=True))
            assert s.mask[max(y - 3, 0) : y + 3, max(x0 - 3, 0) : x0 + 3].all()


# --- what cannot be ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["two linear layers", "pool, linear, relu, linear"])
def test_other_heads_are_refused_in_words(name):
    with pytest.raises(
        UnsupportedError, match="need a head of pooling → linear; got another head.*--head gap"
    ):
        class_units(cl.wrap(OTHER[name]()), pixels(2), [0])


def test_channels_that_are_the_logits_are_refused_in_words():
    with pytest.raises(UnsupportedError, match="channels that are the logits"):
        class_units(cl.wrap(EXACT["conv 1x1, pool"]()), pixels(2), [0])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"classes": [9]}, TargetError, "class 9; allowed: 0 … 4"),
        ({"units": 0}, UsageError, "units 0"),
        ({"field": "square"}, UsageError, "empirical | theoretical | map"),
    ],
)
def test_one_line_each(options, error, words):
    asked = {"classes": [0], **options}
    with pytest.raises(error, match=words.replace("|", r"\|")):
        class_units(cl.wrap(gap()), pixels(2), asked.pop("classes"), **asked)


def test_a_unit_that_no_picture_excites_has_no_segments():
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)))  # fmt: skip
    with torch.no_grad():
        module[0].bias[1] = -1e6
        module[4].weight[0] = torch.tensor([1.0, 2.0])
    found = class_units(
        cl.wrap(module), pixels(2), [0], units=2, field="empirical", field_top=1, patch=6, stride=6
    )
    assert [(u.unit, len(u.segments)) for u in found.classes[0].units] == [(1, 0), (0, 2)]
    assert found.classes[0].units[0].field is None


def test_fewer_pictures_than_asked_for():
    found = class_units(cl.wrap(headed(lambda m, x: m.fc(x.mean((2, 3))))), pixels(2), [0], units=1, top=25)
    assert len(found.classes[0].units[0].segments) <= 2
