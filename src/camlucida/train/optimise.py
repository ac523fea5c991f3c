"""Optimiser, learning rate, filter renormalisation and the running mean of weights."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import nn

from camlucida.train.recipe import Recipe

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def optimiser(module: nn.Module, recipe: Recipe, fresh: Collection[str] = ()) -> torch.optim.SGD:
    """SGD with momentum; weight decay on weights, and on biases and norms only if the recipe says so. `fresh`: names of the
    parameters that learn at `head_rate`. Each group keeps its factor: `group["lr"] = rate * group["factor"]`."""
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            factor = recipe.head_rate if name in fresh else 1.0
            factor *= recipe.bias_rate if name.split(".")[-1] == "bias" else 1.0
            groups.setdefault((parameter.ndim > 1 or recipe.decay_norms, factor), []).append(parameter)
    return torch.optim.SGD(
        [
            {"params": found, "weight_decay": recipe.weight_decay if decays else 0.0, "factor": factor, "lr": recipe.learning_rate * factor}
            for (decays, factor), found in sorted(groups.items(), key=lambda item: (not item[0][0], item[0][1]))
        ],
        recipe.learning_rate, recipe.momentum, nesterov=recipe.nesterov,
    )  # fmt: skip


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The rate of step 0 … steps − 1: a linear rise over the warm-up, then a half cosine to 0 (`cosine`), the straight
    line down to 0 of one cycle (`one-cycle`), × `drop_factor` at each of the epochs `drop_at` (`steps`), or constant (so too `plateau`,
    whose drops `Schedule` knows); `piecewise`: straight lines between the recipe's knots."""
    epoch = step / steps * recipe.epochs
    if recipe.schedule == "piecewise":
        epochs, rates = (list(knots) for knots in zip(*recipe.rates, strict=True))
        return float(np.interp(epoch, epochs, rates))
    warm = recipe.warmup * steps
    if step < warm:
        return recipe.learning_rate * (step + 1) / (warm + 1)
    rest = (step - warm) / max(steps - warm, 1)
    if recipe.schedule == "cosine":
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * rest))
    if recipe.schedule == "steps":
        return recipe.learning_rate * recipe.drop_factor ** sum(at <= epoch for at in recipe.drop_at)
    return recipe.learning_rate * (1 - rest) if recipe.schedule == "one-cycle" else recipe.learning_rate


class Schedule:
    """The rate of each step of a run. For `plateau` (VGG paper, section 3.1) call `observe` after each epoch with its
    validation figure, in percent or anything else of which more is better; the other schedules ignore it.

    After `patience` epochs without a new best the rate drops, and the count begins anew; after the last drop the run is
    `finished` instead. `state` and `restore`: plain numbers, for checkpoints.
    """

    def __init__(self, recipe: Recipe, steps_per_epoch: int) -> None:
        self.recipe, self.steps = recipe, steps_per_epoch * recipe.epochs
        self.best, self.stale, self.dropped, self.finished = -math.inf, 0, 0, False

    def rate(self, step: int) -> float:
        """The rate of step 0, 1, … of the run."""
        return learning_rate(self.recipe, step, self.steps) * self.recipe.drop_factor**self.dropped

    def observe(self, epoch: int, accuracy_percent: float) -> None:
        """The validation figure after epoch 0, 1, …"""
        if self.recipe.schedule != "plateau":
            return
        self.stale = 0 if accuracy_percent > self.best else self.stale + 1
        self.best = max(self.best, accuracy_percent)
        if self.stale >= self.recipe.patience:
            self.stale = 0
            self.finished = self.dropped == self.recipe.drops
            self.dropped = min(self.dropped + 1, self.recipe.drops)

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "stale": self.stale, "dropped": self.dropped, "finished": self.finished}

    def restore(self, state: dict[str, Any]) -> None:
        self.best, self.stale, self.dropped, self.finished = (
            state[name] for name in ("best", "stale", "dropped", "finished")
        )


@torch.no_grad()
def renormalise(module: nn.Module, radius: float) -> None:
    """Scales each convolution filter whose root mean square exceeds `radius` back to it, and none up (ZF paper, section
    3: 0.1, after each update, so that no filter dominates). In place; `radius` 0 does nothing."""
    for layer in module.modules() if radius else ():
        if isinstance(layer, CONVOLUTIONS):
            size = layer.weight.pow(2).mean(tuple(range(1, layer.weight.ndim)), keepdim=True).sqrt()
            layer.weight.mul_((radius / size).clamp(max=1))


@torch.no_grad()
def update_average(average: dict[str, torch.Tensor], module: nn.Module, decay: float, step: int) -> None:
    """Moves the running mean of all floating state towards the module's; early steps weigh more, so that the random
    start is forgotten."""
    keep = min(decay, (1 + step) / (10 + step))
    state = module.state_dict()
    names = [n for n, t in state.items() if t.is_floating_point()]
    torch._foreach_lerp_([average[n] for n in names], [state[n].detach() for n in names], 1 - keep)
    for name in state.keys() - set(names):
        average[name].copy_(state[name])
