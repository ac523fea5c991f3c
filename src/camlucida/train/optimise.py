"""The optimiser, its rate at every step, and the running mean of the weights. All but the momentum is a function of the
step number, so that resuming needs nothing else."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from camlucida.train.recipe import Recipe


def optimiser(module: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD with momentum; weight decay on weights, and on biases and norms only if the recipe says so."""
    decayed = [p for p in module.parameters() if p.ndim > 1 or recipe.decay_norms]
    others = [p for p in module.parameters() if not (p.ndim > 1 or recipe.decay_norms)]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        [g for g in groups if g["params"]], recipe.learning_rate, recipe.momentum, nesterov=recipe.nesterov
    )


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The rate of step 0 … steps − 1: a linear rise over the warm-up, then constant, a half cosine to 0 (`cosine`), or
    the straight line down to 0 of one cycle (`one-cycle`); `piecewise`: straight lines between the recipe's knots."""
    if recipe.schedule == "piecewise":
        epochs, rates = (list(knots) for knots in zip(*recipe.rates, strict=True))
        return float(np.interp(step / steps * recipe.epochs, epochs, rates))
    warm = recipe.warmup * steps
    if step < warm:
        return recipe.learning_rate * (step + 1) / (warm + 1)
    rest = (step - warm) / max(steps - warm, 1)
    if recipe.schedule == "cosine":
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * rest))
    return recipe.learning_rate * (1 - rest) if recipe.schedule == "one-cycle" else recipe.learning_rate


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
