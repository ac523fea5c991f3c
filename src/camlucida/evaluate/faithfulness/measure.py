"""Every measure of faithfulness of several methods on one batch of pictures, as rows."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from camlucida.errors import LayerError, TargetError, UnsupportedError, UsageError, nearest
from camlucida.evaluate import baselines
from camlucida.evaluate.faithfulness import drop, infidelity, perturbation, sanity
from camlucida.evaluate.faithfulness.explain import Classes, Explainer, chosen
from camlucida.evaluate.faithfulness.road import road
from camlucida.networks.network import Network
from camlucida.targets import ClassTarget
from camlucida.values import Batch, Size


@dataclass(frozen=True)
class Metric:
    """What a row's `metric` means. `group`: the word that asks for it; `ranks`: whether methods are ranked by it."""

    title: str
    group: str
    better: Literal["higher", "lower", "zero"]
    about: str
    ranks: bool = False
    lowest: float = 0.0
    """The least it can be; the most is 1."""


KINDS = {
    "spearman": "rank correlation", "absolute": "rank correlation of magnitudes", "ssim": "SSIM", "hog": "correlation of HOG",
}  # fmt: skip
CHECKS = {
    "cascading": "layers randomised from the head downwards",
    "independent": "one layer randomised at a time",
    "labels": "the network trained on permuted labels",
}
METRICS: dict[str, Metric] = {
    "deletion": Metric("Deletion", "deletion", "lower", "area under the probability while the map’s pixels go", True),
    "insertion": Metric("Insertion", "insertion", "higher", "area under the probability while the map’s pixels come", True),
    "average-drop": Metric("Average drop", "drop", "lower", "share of the probability lost where only the map’s part is shown", True),
    "increase": Metric("Increase", "drop", "higher", "share of pictures whose probability rises there"),
    "adcc": Metric("ADCC", "adcc", "higher", "harmonic mean of coherency, 1 − complexity and 1 − drop", True),
    "coherency": Metric("Coherency", "adcc", "higher", "whether the map’s part of the picture gets the same map"),
    "complexity": Metric("Complexity", "adcc", "lower", "mean of the map from 0 to 1"),
    "road": Metric("ROAD", "road", "higher", "(LeRF − MoRF) / 2, mean over the shares of pixels replaced", True, -1),
    "road-morf": Metric("ROAD, MoRF", "road", "lower", "probability with the most relevant pixels replaced"),
    "road-lerf": Metric("ROAD, LeRF", "road", "higher", "probability with the least relevant pixels replaced"),
    "occlusion": Metric("Occlusion", "occlusion", "higher", "rank correlation with what a grey square costs at each place", True, -1),
    "infidelity": Metric("Infidelity", "occlusion", "lower", "share of that cost which the map, scaled, does not say"),
    **{
        f"{check}-{kind}": Metric(
            f"{check.capitalize()}, {words}", check, "zero", f"with the map of {about}",
            (check, kind) == ("cascading", "spearman"), -1,
        )
        for check, about in CHECKS.items()
        for kind, words in KINDS.items()
    },
}  # fmt: skip
"""By the name in a row."""
GROUPS = tuple(dict.fromkeys(metric.group for metric in METRICS.values()))


@dataclass(frozen=True)
class Row:
    """One figure of one method on picture number `picture` of the batch; `curve`: what it is the area or the mean of."""

    picture: int
    class_index: int
    probability: float
    method: str
    metric: str
    value: float
    curve: tuple[float, ...] | None = None


@dataclass
class Account:
    """Filled while measuring: `seconds` of computing time (processor time on the CPU) for the maps of each method and for
    one `forward` pass over the same pictures; `layers` of each sanity check; `failed`: methods that this network cannot
    have, and why."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    forward: float = 0.0
    layers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def _of_pixels(make: Callable[[Any], Any]) -> Explainer:
    """An explainer that looks at the pixels alone."""

    def explain(network: Network, batch: Batch, classes: Tensor) -> Tensor:
        pictures = batch.pixels.detach().float().cpu().contiguous().numpy()
        return torch.from_numpy(np.stack([make(one) for one in pictures])).float().to(batch.pixels.device)

    return explain


def _gaussian(pixels: Any) -> Any:
    return baselines.centre_gaussian(Size(*pixels.shape[1:]))


BASELINES: dict[str, Callable[[int], Explainer]] = {
    "random": lambda seed: _of_pixels(lambda pixels: baselines.random_map(pixels, seed)),
    "centre-gaussian": lambda seed: _of_pixels(_gaussian),
    "edges": lambda seed: _of_pixels(baselines.edges),
}
"""By name: a seed → an explainer that knows no network."""


def groups_of(metrics: Iterable[str]) -> tuple[str, ...]:
    """The groups asked for, in the order of `GROUPS`. Raises UsageError."""
    asked = [one.strip() for one in metrics if one.strip()]
    for one in asked:
        if one not in GROUPS:
            raise UsageError("metrics", got=repr(one), do=nearest(one, GROUPS))
    if not asked:
        raise UsageError("metrics", got="none", allowed=", ".join(GROUPS))
    return tuple(group for group in GROUPS if group in asked)


def measure(
    network: Network, explainers: Mapping[str, Explainer], batch: Batch | Tensor, classes: Classes = None, *,
    metrics: Sequence[str] = GROUPS, step: float = perturbation.STEP, layers: int = sanity.LAYERS,
    permuted: Network | None = None, seed: int = 0, size: int = 64, account: Account | None = None,
) -> list[Row]:  # fmt: skip
    """Rows for each explainer, picture and metric of the groups asked for. The same arguments give the same rows, however
    pictures are batched, up to rounding.

    `classes`: the predicted ones; `step`: of deletion and insertion; `layers`: of the sanity checks; `permuted`: a network of
    the same classes trained on permuted labels, without which the group `labels` is left out; `size`: pictures a forward
    pass. An explainer that raises LayerError, TargetError or UnsupportedError has no rows; `account.failed` says why."""
    batch = Batch.of(batch)
    if batch.pixels.ndim != 4:
        raise UsageError("faithfulness", got=f"pixels {tuple(batch.pixels.shape)}", allowed="(N, C, H, W)")
    groups, account = groups_of(metrics), account if account is not None else Account()
    pixels, found = batch.pixels, chosen(network, batch.pixels, classes)
    own: dict[str, Tensor] = {}

    def mapped(name: str, of: Network, shown: Batch) -> Tensor | None:
        """The maps by that name, or None, and the reason kept, where it has none."""
        if name in account.failed:
            return None
        try:
            return explainers[name](of, shown, found)
        except (LayerError, TargetError, UnsupportedError) as error:
            account.failed[name] = str(error)
            return None

    started = _clock(network)
    clean = network.probabilities(network(pixels)).gather(1, found[:, None])[:, 0]
    account.forward += _clock(network) - started
    for name in explainers:
        started = _clock(network)
        made = mapped(name, network, batch)
        account.seconds[name] += _clock(network) - started
        if made is not None:
            own[name] = made
    values: dict[str, dict[str, tuple[Any, Any]]] = {name: {} for name in own}
    for name, maps in own.items():
        again = partial(mapped, name, network)
        values[name] = _of_map(network, batch, maps, found, groups, step, seed, size, again)
    if "occlusion" in groups:
        height, width = pixels.shape[2:]
        drops = infidelity.occluder(height, width)(network, batch, ClassTarget(found))
        for name, maps in own.items():
            agreed = infidelity.agreement(maps, drops)
            values[name] |= {"occlusion": (agreed.correlation, None), "infidelity": (agreed.infidelity, None)}
    for check in ("cascading", "independent", "labels"):
        others: Iterable[tuple[str, Network]] = ()
        if check in groups and check != "labels":
            others = sanity.randomised(network, pixels, check, layers, seed)
        elif check in groups and permuted is not None:
            others = [("all", permuted)]
        each: dict[str, list[dict[str, Any]]] = {name: [] for name in own}
        seen = []
        for layer, other in others:
            seen.append(layer)
            for name in own:
                heat = mapped(name, other, batch)
                if heat is not None:
                    each[name].append(sanity.similarities(own[name], heat))
        if seen:
            account.layers[check] = tuple(seen)
        for name, list_of in each.items():
            for kind in sanity.SIMILARITIES if len(list_of) == len(seen) > 0 else ():
                curve = np.stack([one[kind] for one in list_of], 1)
                values[name][f"{check}-{kind}"] = (curve.mean(1), curve)
    return [
        Row(i, int(found[i]), float(clean[i]), name, metric, float(value[i]), None if curve is None else tuple(curve[i].tolist()))
        for name, figures in values.items()
        if name not in account.failed
        for metric, (value, curve) in figures.items()
        for i in range(len(pixels))
    ]  # fmt: skip


def _of_map(
    network: Network, batch: Batch, maps: Tensor, classes: Tensor, groups: Sequence[str], step: float, seed: int, size: int,
    again: Callable[[Batch], Tensor | None],
) -> dict[str, tuple[Any, Any]]:  # fmt: skip
    """By metric the value `(N,)` and the curve `(N, …)` of what is measured by showing pictures changed by the map; `again`: its maps of
    other pictures."""
    found: dict[str, tuple[Any, Any]] = {}
    pixels = batch.pixels
    if "deletion" in groups:
        curves = perturbation.deletion(network, pixels, maps, classes, step=step, batch=size)
        found["deletion"] = (curves.auc, curves.scores)
    if "insertion" in groups:
        curves = perturbation.insertion(network, pixels, maps, classes, step=step, batch=size)
        found["insertion"] = (curves.auc, curves.scores)
    if {"drop", "adcc"} & {*groups}:
        kept = drop.confidence(network, pixels, maps, classes, batch=size)
        if "drop" in groups:
            found |= {"average-drop": (kept.drop, None), "increase": (kept.increase, None)}
        hidden = replace(batch, pixels=drop.masked(pixels, maps))
        second = again(hidden) if "adcc" in groups else None
        if second is not None:
            coherent, full = drop.coherency(maps, second), drop.complexity(maps)
            joint = drop.adcc(*(one.cpu() for one in (kept.drop, coherent, full)))
            found |= {"adcc": (joint, None), "coherency": (coherent, None), "complexity": (full, None)}
    if "road" in groups:
        roads = road(network, pixels, maps, classes, seed=seed, batch=size)
        found |= {
            "road": (roads.combined, None), "road-morf": (roads.morf.double().mean(1), roads.morf),
            "road-lerf": (roads.lerf.double().mean(1), roads.lerf),
        }  # fmt: skip
    return found


def _clock(network: Network) -> float:
    """Seconds of the processor's time; where another device computes, of the clock, once it is done."""
    if network.device.type == "cpu":
        return time.process_time()
    if network.device.type == "cuda":
        torch.cuda.synchronize(network.device)
    return time.perf_counter()
