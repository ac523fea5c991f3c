"""Losses and figures of the three heads: one class a picture (softmax), several (sigmoid), numbers (regression).
Class maps need only that the head is linear (CAM paper, section 2), so all three have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from camlucida.errors import UsageError
from camlucida.networks.network import logits_of
from camlucida.train.recipe import Recipe


def loss(output: Any, truth: Tensor, recipe: Recipe) -> Tensor:
    """The loss of a module's output (logits `(N, C)`, or `{"logits", "auxiliary": (…)}`, whose auxiliary classifiers are added
    with weight `recipe.auxiliary` each), mean over the batch, float32 (float64 where they are).

    `truth` by task: softmax: classes `(N,)` int64 or shares `(N, C)`: cross entropy with the recipe's label smoothing; sigmoid:
    `(N, C)` of 0 and 1: binary cross entropy, mean over classes; regression: `(N, C)` numbers: half the squared error,
    summed over outputs (VGG paper, appendix A).
    """
    total = _of_one(logits_of(output), truth, recipe)
    auxiliary = output.get("auxiliary", ()) if isinstance(output, Mapping) else ()
    for logits in auxiliary:
        total = total + recipe.auxiliary * _of_one(logits, truth, recipe)
    return total


def _of_one(logits: Tensor, truth: Tensor, recipe: Recipe) -> Tensor:
    logits = logits if logits.dtype == torch.float64 else logits.float()
    classes_given = recipe.task == "softmax" and truth.ndim == 1
    if truth.shape != (logits.shape[:1] if classes_given else logits.shape):
        raise UsageError(
            f"the truth of task {recipe.task}", got=tuple(truth.shape), allowed=f"{tuple(logits.shape)}"
        )
    if recipe.task == "softmax":
        truth = truth if classes_given else truth.to(logits.dtype)
        return F.cross_entropy(logits, truth, label_smoothing=recipe.label_smoothing)
    if recipe.task == "sigmoid":
        return F.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype))
    return 0.5 * (logits - truth.to(logits.dtype)).pow(2).sum(1).mean()


@torch.no_grad()
def correct(logits: Tensor, truth: Tensor, recipe: Recipe) -> dict[str, float]:
    """Sums over a batch, to be added over batches and turned into `figures`: `pictures`; softmax: `top1`, `top5`, hits;
    sigmoid: `top1` (the surest class is one of the picture's) and `labels` (share of yes and no that is right, each by
    the sign of its logit); regression: `squared_error`, summed over outputs. Truth as for `loss`."""
    logits, sums = logits.float(), {"pictures": float(len(logits))}
    if recipe.task == "regression":
        return sums | {"squared_error": float((logits - truth.float()).pow(2).sum())}
    ranked = logits.argsort(dim=1, descending=True, stable=True)[:, :5]
    if recipe.task == "sigmoid":
        yes = truth > 0.5
        return sums | {
            "top1": float(yes.gather(1, ranked[:, :1]).sum()),
            "labels": float(((logits > 0) == yes).float().mean(1).sum()),
        }
    classes = truth if truth.ndim == 1 else truth.argmax(1)
    hits = ranked == classes[:, None]
    return sums | {"top1": float(hits[:, :1].sum()), "top5": float(hits.sum())}


def figures(sums: Mapping[str, float]) -> dict[str, float]:
    """Sums of `correct` as figures of one epoch: percent of pictures, and `squared_error` a picture."""
    count = max(sums["pictures"], 1.0)
    return {
        name: value / count if name == "squared_error" else round(100 * value / count, 2)
        for name, value in sums.items()
        if name != "pictures"
    }


def watched(found: Mapping[str, float]) -> float:
    """The one of these figures that a plateau is seen on, more being better: top-1, or minus the squared error."""
    return found["top1"] if "top1" in found else -found["squared_error"]
