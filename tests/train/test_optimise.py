"""Optimiser groups by name, schedules by hand, filter renormalisation against a slow loop."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from camlucida.train import optimise
from camlucida.train.optimise import Schedule
from camlucida.train.recipe import Recipe


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(5, 2)
    )


def settings(module, recipe, fresh=()):
    """Parameter name → (decay, factor)."""
    names = {id(p): n for n, p in module.named_parameters()}
    groups = optimise.optimiser(module, recipe, fresh).param_groups
    found = [(names[id(p)], g["weight_decay"], g["factor"]) for g in groups for p in g["params"]]
    assert len(found) == len(names)  # each once
    return {name: (decay, factor) for name, decay, factor in found}


@pytest.mark.parametrize("decay_norms", [False, True])
def test_decay_and_rates_by_name(decay_norms):
    module = network()
    recipe = Recipe(weight_decay=0.01, bias_rate=2, head_rate=10, decay_norms=decay_norms)
    found = settings(module, recipe, {"5.weight", "5.bias"})
    spared = 0.01 if decay_norms else 0.0
    assert found == {
        "0.weight": (0.01, 1), "0.bias": (spared, 2), "1.weight": (spared, 1), "1.bias": (spared, 2),
        "3.weight": (0.01, 1), "3.bias": (spared, 2), "5.weight": (0.01, 10), "5.bias": (spared, 20),
    }  # fmt: skip


def test_frozen_parameters_are_left_out():
    module = network()
    module[0].requires_grad_(False)
    groups = optimise.optimiser(module, Recipe()).param_groups
    assert sum(len(g["params"]) for g in groups) == 6


def test_one_step_is_the_slow_formula():
    """v ← m·v + g + λw; w ← w − η·factor·v, twice, in float64."""
    torch.manual_seed(0)
    module = nn.Linear(3, 2).double()
    recipe = Recipe(learning_rate=0.1, momentum=0.9, nesterov=False, weight_decay=0.5, bias_rate=2)
    steps_by = optimise.optimiser(module, recipe)
    w, b = (p.detach().numpy().copy() for p in (module.weight, module.bias))
    vw, vb = np.zeros_like(w), np.zeros_like(b)
    for rate in (0.1, 0.01):
        for group in steps_by.param_groups:
            group["lr"] = rate * group["factor"]
        steps_by.zero_grad()
        module(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
        steps_by.step()
        vw = 0.9 * vw + 1 + 0.5 * w
        vb = 0.9 * vb + 1
        w, b = w - rate * vw, b - rate * 2 * vb
    np.testing.assert_allclose(module.weight.detach(), w, rtol=1e-12)
    np.testing.assert_allclose(module.bias.detach(), b, rtol=1e-12)


def test_steps_schedule_by_hand():
    recipe = Recipe(learning_rate=1.0, schedule="steps", drop_at=(1, 2.5), drop_factor=0.1, epochs=4, warmup=0)  # fmt: skip
    schedule = Schedule(recipe, 2)
    assert [round(schedule.rate(s), 6) for s in range(8)] == [1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01]
    schedule.observe(0, 1.0)
    assert schedule.rate(0) == 1
    assert not schedule.finished


def test_plateau_drops_three_times_and_stops():
    recipe = Recipe(learning_rate=0.01, schedule="plateau", patience=2, drops=3, epochs=74, warmup=0)
    schedule = Schedule(recipe, 10)
    figures = [10, 20, 20, 19, 25, 24, 25, 25, 25.1, 25, 25, 24, 24, 99]
    rates = []
    for epoch, figure in enumerate(figures):
        rates.append(schedule.rate(10 * epoch))
        schedule.observe(epoch, figure)
        if schedule.finished:
            break
    # No new best in epochs 2 and 3, 5 and 6, 9 and 10: a drop after each; in 11 and 12: the end.
    drops = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    assert rates == pytest.approx([0.01 * 0.1**d for d in drops])
    assert epoch == 12  # the fourth plateau ends the run


@pytest.mark.parametrize("stop", range(1, 9))
def test_a_restored_schedule_goes_on_alike(stop):
    recipe = Recipe(learning_rate=0.01, schedule="plateau", patience=2, drops=1, warmup=0)
    figures = [5, 4, 3, 6, 6, 7, 6, 6, 6]
    whole, first, second = (Schedule(recipe, 3) for _ in range(3))
    for epoch, figure in enumerate(figures):
        whole.observe(epoch, figure)
        if epoch < stop:
            first.observe(epoch, figure)
    second.restore(first.state())
    for epoch, figure in list(enumerate(figures))[stop:]:
        second.observe(epoch, figure)
    assert second.state() == whole.state()
    assert second.rate(0) == whole.rate(0)
    assert all(isinstance(v, (int, float)) for v in whole.state().values())


def test_a_figure_that_is_no_number_counts_as_no_better():
    schedule = Schedule(Recipe(schedule="plateau", patience=1, warmup=0), 1)
    schedule.observe(0, math.nan)
    schedule.observe(1, 50.0)
    assert schedule.best == 50.0
    assert schedule.dropped == 1


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 8, (3, 5), groups=2), nn.Conv1d(3, 4, 3), nn.Conv3d(2, 3, 2)])
def test_renormalise_is_the_slow_formula(layer):
    torch.manual_seed(1)
    layer = layer.double()
    with torch.no_grad():
        layer.weight.mul_(torch.linspace(0.0, 3, len(layer.weight)).view(-1, *[1] * (layer.weight.ndim - 1)))
    before, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimise.renormalise(layer, 0.1)
    scaled = 0
    for old, new in zip(before.flatten(1).tolist(), layer.weight.detach().flatten(1).tolist(), strict=True):
        rms = math.sqrt(sum(v * v for v in old) / len(old))
        factor = min(1.0, 0.1 / rms) if rms else 1.0
        scaled += factor < 1
        np.testing.assert_allclose(new, [v * factor for v in old], rtol=1e-12)
    assert 0 < scaled < len(before)  # some were too large, some were not
    assert torch.equal(layer.bias, bias)


def test_renormalise_leaves_linear_layers_and_does_nothing_at_zero():
    module = network()
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(100)
    before = {n: t.clone() for n, t in module.state_dict().items()}
    optimise.renormalise(module, 0.0)
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    optimise.renormalise(module, 0.1)
    changed = {n for n, t in module.state_dict().items() if not torch.equal(before[n], t)}
    assert changed == {"0.weight", "3.weight"}


def test_constant_rate_where_the_plateau_has_not_come():
    recipe = Recipe(learning_rate=0.3, schedule="plateau", warmup=0.5, epochs=2)
    assert [round(Schedule(recipe, 2).rate(s), 6) for s in range(4)] == [0.1, 0.2, 0.3, 0.3]
    assert optimise.learning_rate(replace(recipe, warmup=0), 3, 4) == 0.3
