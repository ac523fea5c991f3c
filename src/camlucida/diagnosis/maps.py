"""Checks of where the map looks: its layer, gradient and status, its sum, occlusion, and the map under another head."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional as F

from camlucida import maps, taps
from camlucida.diagnosis.inside import Inside
from camlucida.diagnosis.verdict import Finding
from camlucida.errors import LayerError, UnsupportedError, UsageError
from camlucida.maps.cam import CAM
from camlucida.maps.catalogue import Method, for_network
from camlucida.maps.grad_cam import GradCAM
from camlucida.networks.network import Network, logits_of
from camlucida.networks.structure import Layer
from camlucida.targets import ClassTarget
from camlucida.values import Batch, HeatMaps, View

# Share of the picture's shorter side: a cell that sees less than half of it cannot see the object whole.
SEES_ENOUGH = 0.5
CELLS = 4  # a side: below, a box cannot be finer than a quarter of the picture
# The map's mean + bias must be the logit up to the rounding of the arithmetic it was made in.
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4}
COARSE = 7  # occluder places along the shorter side, each a quarter of it wide
AGREES, BY_CHANCE, SHIFTS = 0.4, 0.05, 199
# Rank correlation of the map with itself under another head: half of the variance of the ranks and more is the picture's.
SAME, SIMILAR, HEADS = 0.9, 0.7, 5
SATURATED = 0.9999


def mapped(
    net: Network, batch: Batch, target: ClassTarget, method: Any, layer: str | nn.Module | None
) -> tuple[HeatMaps, Method, str | None]:
    """The map, the method that made it, and why it is not the one that was asked for."""
    if layer is not None and isinstance(method, str) and method == "auto":
        chosen: Any = GradCAM()
    elif isinstance(method, str):
        tuned = net.card.localization.method if method == "auto" else method
        chosen = for_network(net, batch) if tuned == "auto" else maps.method(tuned)
    else:
        chosen = method
    if layer is not None:
        if not hasattr(chosen, "layer"):
            raise UsageError(
                f"layer {layer}", got=f"the method {type(chosen).__name__}, which looks at no layer"
            )
        chosen = replace(chosen, layer=layer)
    try:
        return chosen(net, batch, target), chosen, None
    except (LayerError, UnsupportedError) as error:
        instead = for_network(net, batch)
        return instead(net, batch, target), instead, str(error)


def layer(
    looked: Layer | None, default: Layer | None, view: View, own: Mapping[str, Any], other: Mapping[str, Any] | None,
    refused: str | None,
) -> Finding:  # fmt: skip
    if looked is None:
        return Finding("layer", "good", "the method looks at no layer", {}, "map")
    short = min(view.size.height, view.size.width)
    field_ = None if looked.receptive_field is None else [float(f) for f in looked.receptive_field]
    sees = None if field_ is None else min(field_) / short
    measured: dict[str, Any] = {
        "layer": looked.name, "cells": list(looked.size), "stride": looked.stride and [float(s) for s in looked.stride],
        "receptive field": field_, "share of the shorter side": sees and round(sees, 3),
        "default layer": default and default.name, "reached": looked.reached,
    }  # fmt: skip
    grid = " × ".join(map(str, looked.size))
    words = f"{looked.name}: {grid} cells" + (
        f", each sees {min(field_):.0f} of {short} pixels" if field_ else ""
    )
    if refused is not None:
        return Finding("layer", "bad", f"{refused}; looked at {words} instead", measured, "map")
    if not looked.reached:
        return Finding("layer", "bad", f"the logits do not depend on {words}", measured, "map")
    early = sees is not None and sees < SEES_ENOUGH
    if other is not None and default is not None:
        measured |= {"agreement": own["correlation"], "agreement of the default layer": other["correlation"]}
        worse = other["correlation"] >= AGREES > own["correlation"] and other["chance"] <= BY_CHANCE
        against = f"its map agrees with occlusion by {own['correlation']:.2f}, that of {default.name} by {other['correlation']:.2f}"
        if early or worse:
            why = "too early a layer to see a whole object" if early else "the wrong layer"
            return Finding("layer", "bad", f"{why}: {words}; {against}", measured, "map")
        words += f"; {against}"
    doubts = []
    if other is None and early:
        doubts.append("less than half of the picture, so a cell cannot see a large object whole")
    if min(looked.size) < CELLS:
        doubts.append("a coarse grid: boxes from it cannot be tight")
    return Finding("layer", "doubtful" if doubts else "good", "; ".join([words, *doubts]), measured, "map")


def gradient(net: Network, batch: Batch, layer: Layer, target: ClassTarget, logits: Tensor) -> Finding:
    with taps.borrowed(net.module):
        run = net.run(batch.pixels, [layer.point], gradient_at=layer.point)
        score = logits_of(run.output)[0, target.index].float()
        gradient = None
        if score.requires_grad:
            (gradient,) = torch.autograd.grad(score, run.tapped[layer.point], allow_unused=True)
        activation = layer.cells(run.tapped[layer.point].detach()).float()[0].flatten(1)
    if gradient is None:
        return Finding("gradient", "bad", f"none reaches {layer.name}", {"norm": 0.0}, "map")
    gradient = layer.cells(gradient).float()[0].flatten(1)
    top = float(net.probabilities(logits).max())
    norm, empty = float(gradient.norm()), float((gradient == 0).all(0).float().mean())
    dead = float((activation == 0).all(1).float().mean())
    measured = {
        "norm": norm, "cells without gradient": round(empty, 4), "channels at zero": round(dead, 4), "top probability": top,
    }  # fmt: skip
    words = f"norm {norm:.2g} at {layer.name}, {100 * empty:.0f} % of the cells without any, {100 * dead:.0f} % of the channels at zero"
    if not math.isfinite(norm):
        return Finding("gradient", "bad", f"not finite at {layer.name}", measured, "map")
    if norm == 0:
        return Finding(
            "gradient", "bad", f"zero everywhere at {layer.name}: dead units above it", measured, "map"
        )
    if empty > 0.9 or dead > 0.9:
        return Finding("gradient", "doubtful", f"hardly any is alive: {words}", measured, "map")
    if net.card.activation != "none" and top > SATURATED:
        words += "; the probability is saturated, so explain the logit (as here), not the probability"
    return Finding("gradient", "good", words, measured, "map")


def status(looked: HeatMaps) -> Finding:
    word, values = looked.status[0][0], looked.values[0, 0]
    measured = {"status": word, "low": float(values.min()), "high": float(values.max())}
    spoken = {
        "ok": "has a region that speaks for the class", "flat": "has one value everywhere", "all-negative": "is nowhere above zero: nothing speaks for the class",
        "no-gradient": "is blank: no gradient reaches its layer", "non-finite": "holds NaN or infinite values",
    }  # fmt: skip
    words = f"{spoken[word]} ({measured['low']:.3g} … {measured['high']:.3g}, raw)"
    return Finding("map", "good" if word == "ok" else "bad", words, measured, "map")


def completeness(net: Network, batch: Batch, target: ClassTarget, logits: Tensor) -> Finding:
    found = net.structure(batch.pixels)
    if found.head is None or found.features is None:
        words = "no sum to check: the head is not pooling → linear, so there is no CAM, and Grad-CAM has no such identity"
        return Finding("completeness", "doubtful", words, {"exact": False}, "map")
    if found.head.pool == "max":
        words = "no sum to check: the head pools by the maximum"
        return Finding("completeness", "doubtful", words, {"exact": False}, "map")
    cam = CAM()(net, batch, target)
    with taps.borrowed(net.module):
        features = net.run(batch.pixels, [found.features.point]).tapped[found.features.point]
    features = found.features.cells(features).float()
    bias = float(found.head.linear(features)[2][0, target.index])
    mean, logit = float(cam.values[0, 0].double().mean()), float(logits[0, target.index])
    error = abs(mean + bias - logit) / max(float(logits.abs().max()), 1e-12)
    kind = "exact" if found.head.is_exact else "linearised at this picture's own norm"
    measured = {
        "mean of the map": mean,
        "bias": bias,
        "logit": logit,
        "relative error": error,
        "exact": found.head.is_exact,
    }
    words = f"mean of CAM {mean:.4f} + bias {bias:.4f} = {mean + bias:.4f}, logit {logit:.4f} ({kind})"
    parameter = next(net.module.parameters(), features)
    limit = ROUNDING.get(parameter.dtype, 2e-2) if net.precision.endswith("true") else 2e-2
    if error > limit:
        return Finding("completeness", "bad", f"the sum does not hold: {words}", measured, "map")
    return Finding("completeness", "good", words, measured, "map")


def coarse(short: int) -> tuple[int, int]:
    """Occluder and stride, in pixels: a quarter of the shorter side, at `COARSE` places along it."""
    patch = max(1, round(short / 4))
    return patch, max(1, (short - patch) // (COARSE - 1))


def rank_correlation(a: NDArray, b: NDArray) -> float:
    """Spearman's; ties share their mean rank, and a constant correlates with nothing (0)."""
    x, y = (rankdata(v, axis=None) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / size if size > 0 else 0.0


def agreement(looked: HeatMaps, drops: HeatMaps, seed: int) -> dict[str, Any]:
    """Rank correlation of the map's mean under each occluder with what the occluder cost; and by chance: how often a map
    moved by a random toroidal shift, which keeps its shape, does as well."""
    heat = looked.in_view()[:1, :1].double().nan_to_num().cpu()
    patch, stride = int(drops.grid.extent[0]), int(drops.grid.stride[0])
    lost = drops.values[0, 0].double().cpu().numpy()
    rng = np.random.default_rng(seed)

    def at(down: int, right: int) -> float:
        moved = torch.roll(heat, (down, right), (2, 3))
        return rank_correlation(F.avg_pool2d(moved, patch, stride)[0, 0].numpy(), lost)

    own = at(0, 0)
    shifts = zip(rng.integers(0, heat.shape[2], SHIFTS), rng.integers(0, heat.shape[3], SHIFTS), strict=True)
    as_good = sum(at(int(down), int(right)) >= own for down, right in shifts)
    return {
        "correlation": round(own, 4), "chance": (1 + as_good) / (1 + SHIFTS), "places": list(lost.shape), "patch": patch,
        "stride": stride, "largest drop": float(lost.max()),
    }  # fmt: skip


def occlusion(own: Mapping[str, Any], drops: HeatMaps) -> Finding:
    rows, columns = own["places"]
    words = (
        f"rank correlation {own['correlation']:.2f} between the map and what a grey square costs at {rows} × {columns} places"
        f" (shifted maps do as well {100 * own['chance']:.1f} % of the time)"
    )
    if own["largest drop"] <= 0:
        return Finding(
            "occlusion",
            "doubtful",
            f"no place that a grey square hides costs the class anything; {words}",
            own,
            "map",
        )
    if own["correlation"] >= AGREES and own["chance"] <= BY_CHANCE:
        return Finding("occlusion", "good", f"agrees: {words}", own, "map")
    if own["correlation"] < 0:
        return Finding("occlusion", "bad", f"the map contradicts occlusion: {words}", own, "map")
    return Finding("occlusion", "doubtful", f"agrees little: {words}", own, "map")


def randomised(
    net: Network,
    batch: Batch,
    target: ClassTarget,
    method: Method,
    looked: HeatMaps,
    inside: Inside,
    seed: int,
) -> tuple[Finding, HeatMaps | None]:
    """The map under heads whose channels are permuted, on copies that share every other weight."""
    if inside.parameter is None or inside.weight is None:
        words = "cannot be told: the logits come from no linear layer"
        return Finding("randomised head", "doubtful", words, {}, "map"), None
    if isinstance(getattr(method, "layer", None), nn.Module):
        method = replace(method, layer=looked.layer)  # type: ignore[type-var]
    own, made = looked.values[0, 0].cpu().numpy(), []
    rng = np.random.default_rng(seed)
    try:
        for _ in range(1 if looked.grid.kind == "places" else HEADS):
            other = _with_head(net, inside.parameter, rng.permutation(inside.weight.shape[1]))
            made.append(method(other, batch, target))
    except Exception as error:  # a module may refuse to be copied in any way
        words = f"cannot be told: no copy with another head ({type(error).__name__}: {error})"
        return Finding("randomised head", "doubtful", words, {}, "map"), None
    each = [rank_correlation(own, one.values[0, 0].cpu().numpy()) for one in made]
    middle = float(np.median(each))
    measured = {"correlation": round(middle, 4), "each": [round(c, 4) for c in each]}
    words = f"rank correlation {middle:.2f} with the map under a randomised head (median of {len(each)})"
    if middle >= SAME:
        words = f"the map does not depend on the head: it shows the picture, not the class; {words}"
        return Finding("randomised head", "bad", words, measured, "map"), made[0]
    if middle >= SIMILAR:
        return Finding(
            "randomised head", "doubtful", f"the map changes little: {words}", measured, "map"
        ), made[0]
    return Finding(
        "randomised head", "good", f"the map changes with the head: {words}", measured, "map"
    ), made[0]


def _with_head(net: Network, weight: Tensor, order: NDArray[np.int64]) -> Network:
    """A copy of the network whose head has its channels in another order; all other tensors are shared."""
    tensors = chain(net.module.parameters(), net.module.buffers())
    module = copy.deepcopy(net.module, {id(t): t for t in tensors})
    for name, part in net.module.named_modules():
        for key, parameter in part.named_parameters(recurse=False):
            if parameter.data_ptr() == weight.data_ptr() and parameter.numel() == weight.numel():
                other = parameter.detach()[:, torch.from_numpy(order).to(parameter.device)].clone()
                setattr(module.get_submodule(name), key, nn.Parameter(other, requires_grad=False))
                return Network(module, net.card, net.layer, net.precision)
    raise LayerError("the head's weights are no parameter of the module")
