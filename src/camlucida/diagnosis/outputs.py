"""Checks of what the network made of it: the logits, the classes, and whether the head fits the features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camlucida import taps
from camlucida.diagnosis.inside import Inside
from camlucida.diagnosis.verdict import Finding
from camlucida.errors import TargetError, nearest
from camlucida.networks.network import Network
from camlucida.values import Batch, Label

# The spread of the logits, in deviations of its spread under heads with permuted channels. Were the head another
# network's it would be one of them, and few of those stand above 3; a head that fits stands far above.
HEAD_FITS, HEAD_FOREIGN = 5.0, 3.0
PERMUTATIONS = 499
FEW_CLASSES = 10  # below, a picture between two classes has narrow logits under its own head as well


def outputs(net: Network, batch: Batch, inside: Inside) -> Finding:
    logits, labels = inside.logits, len(net.card.labels)
    number = logits.shape[1]
    measured: dict[str, Any] = {"outputs": number, "labels": labels}
    if not logits.isfinite().all():
        where = _first_broken(net, batch)
        measured["first non-finite layer"] = where
        words = "the logits hold NaN or infinite values" + (f", from layer {where} on" if where else "")
        return Finding("outputs", "bad", words, measured)
    if labels and labels != number:
        return Finding("outputs", "bad", f"{number} outputs, but {labels} labels on the card", measured)
    sums = logits.sum(1)
    if number > 1 and bool((logits >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all()):
        words = "the outputs look like probabilities: a softmax inside the module flattens gradients and maps; return logits"
        return Finding("outputs", "bad", words, measured)
    words = (
        f"{number} finite logits, {labels} labels"
        if labels
        else f"{number} finite logits, no labels on the card"
    )
    return Finding("outputs", "good" if labels else "doubtful", words, measured)


def _first_broken(net: Network, batch: Batch) -> str | None:
    layers = net.structure(batch.pixels).layers
    with taps.borrowed(net.module):
        tapped = net.run(batch.pixels, [one.point for one in layers]).tapped
    return next((one.name for one in layers if not tapped[one.point].isfinite().all()), None)


def top(net: Network, logits: Tensor) -> tuple[tuple[Label, float], ...]:
    probabilities = net.probabilities(logits)[0]
    order = logits[0].argsort(descending=True, stable=True)[:5].tolist()
    return tuple((net.card.label(i), float(probabilities[i])) for i in order)


def classes(
    net: Network, logits: Tensor, top: Sequence[tuple[Label, float]], truth: int | str | None
) -> Finding:
    shares = [f"{p:.3g}" if net.card.activation == "none" else f"{100 * p:.1f} %" for _, p in top]
    words = ", ".join(f"{label.name.split(',')[0]} {p}" for (label, _), p in zip(top, shares, strict=True))
    measured: dict[str, Any] = {"probabilities": [round(p, 6) for _, p in top]}
    if truth is None:
        return Finding("top-5", "good", words, measured)
    index = _truth(net, truth, logits.shape[1])
    rank = 1 + int((logits[0] > logits[0, index]).sum())
    name = net.card.label(index).name.split(",")[0]
    measured |= {"truth": index, "rank of the truth": rank}
    if rank == 1:
        return Finding("top-5", "good", f"right: {words}", measured)
    words = f"the truth, {name}, is number {rank} of {logits.shape[1]}: {words}; the map explains the first of them"
    return Finding("top-5", "doubtful" if rank <= 5 else "bad", words, measured)


def _truth(net: Network, truth: int | str, number: int) -> int:
    if isinstance(truth, int) or truth.isdigit():
        if not 0 <= int(truth) < number:
            raise TargetError(f"truth {truth}", allowed=f"a class, 0 … {number - 1}")
        return int(truth)
    wanted = truth.strip().casefold()
    for i, label in enumerate(net.card.labels):
        if wanted in (
            label.id.casefold(),
            *(part.strip().casefold() for part in [label.name, *label.name.split(",")]),
        ):
            return i
    raise TargetError(
        f"truth {truth!r} is no class of {net.card.name}",
        do=nearest(truth, [one.name for one in net.card.labels]),
    )


def head_fit(given: Tensor, weight: Tensor, bias: Tensor, seed: int = 0) -> float:
    """How far the spread of the logits over classes lies above that of heads with permuted channels, in their standard
    deviations. `given (N, D)`, `weight (C, D)`, `bias (C,)`; the permutation is the same for all N. Near 0 for the head
    of another network, whose channels might be in any order; NaN where no permutation changes anything."""
    rng = np.random.default_rng(seed)
    orders = torch.from_numpy(np.stack([rng.permutation(given.shape[1]) for _ in range(PERMUTATIONS)])).to(
        given.device
    )

    def spread(x: Tensor) -> Tensor:
        return (x @ weight.T + bias).var(-1, unbiased=False)

    own = spread(given).mean()
    null = torch.stack([spread(x[orders]) for x in given]).mean(0)
    deviation = null.std()
    return (
        float((own - null.mean()) / deviation)
        if float(deviation) > 1e-6 * float(null.mean().abs())
        else math.nan
    )


def head(insides: Sequence[Inside], seed: int) -> Finding:
    first = insides[0]
    if first.given is None or first.weight is None or first.bias is None or len(first.weight) < 2:
        what = "one output" if first.weight is not None else "the logits come from no linear layer"
        return Finding("head", "doubtful", f"cannot be told: {what}", {"fit": None})
    given = torch.cat([one.given for one in insides if one.given is not None])
    fit = head_fit(given, first.weight, first.bias, seed)
    measured: dict[str, Any] = {
        "fit": None if math.isnan(fit) else round(fit, 3),
        "permutations": PERMUTATIONS,
        "views": len(given),
    }
    if math.isnan(fit):
        return Finding(
            "head", "doubtful", "cannot be told: no order of the channels changes the logits", measured
        )
    words = (
        f"the spread of the logits stands at {fit:.1f} deviations of that under heads with permuted channels"
    )
    if fit >= HEAD_FITS:
        return Finding("head", "good", f"fits the features: {words}", measured)
    if fit >= HEAD_FOREIGN or len(first.weight) < FEW_CLASSES:
        few = f" with only {len(first.weight)} classes" if len(first.weight) < FEW_CLASSES else ""
        words = f"fits the features loosely: {words}{few}; more pictures could tell"
        return Finding("head", "doubtful", words, measured)
    words = f"the head does not fit the features: it is another network's, or untrained; {words}"
    return Finding("head", "bad", words, measured)
