"""Is it the model or the map? One network and a picture (or several), checked one thing at a time; each check ends in a
measured number, a verdict by a stated threshold, and words. docs/how-to/doctor.md says where the thresholds come from."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional as F

from camlucida import maps, taps
from camlucida.errors import LayerError, TargetError, UnsupportedError, UsageError, nearest
from camlucida.images import sources
from camlucida.images.read import read_picture
from camlucida.images.sources import Source
from camlucida.images.views import Preprocessing
from camlucida.maps.cam import CAM
from camlucida.maps.catalogue import Method, for_network
from camlucida.maps.grad_cam import GradCAM
from camlucida.maps.occlusion import Occlusion
from camlucida.networks.network import Network, logits_of
from camlucida.networks.structure import Layer
from camlucida.targets import ClassTarget
from camlucida.values import Batch, HeatMaps, Label, Size, View

# Another preprocessing is named when the first batch norm is this many times nearer to it than to the card's, and nearer by
# so much over √pictures: below, the pictures' own light explains the difference. Swapped channels are but one rival, with
# the card's own mean and deviation, so that less evidence will do.
FITS_BETTER, FITS_BETTER_BY = 1.5, 0.05
SWAP_FITS_BETTER, SWAP_FITS_BETTER_BY = 1.4, 0.03
# The spread of the logits, in deviations of its spread under heads with permuted channels. Were the head another
# network's it would be one of them, and few of those stand above 3; a head that fits stands far above.
HEAD_FITS, HEAD_FOREIGN = 5.0, 3.0
PERMUTATIONS = 499
FEW_CLASSES = 10  # below, a picture between two classes has narrow logits under its own head as well
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
SQUASHED, ENLARGED = 1.34, 2.0

Verdict = Literal["good", "doubtful", "bad"]


@dataclass(frozen=True)
class Finding:
    """One check: how it came out, in words, and the numbers behind them (plain values, ready for JSON). `about`: what
    is to blame where it is bad."""

    name: str
    verdict: Verdict
    words: str
    measured: Mapping[str, Any]
    about: Literal["model", "map"] = "model"


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What the checks found, the most telling first. `top`: labels and probabilities, best first; the map explains the
    first of them. `shown`: what the network saw, un-normalised; `expected`: the same pixels as the better
    preprocessing would read them, if one was named; `heat`: raw maps `(H, W)` over `shown`, by name."""

    picture: str
    pictures: int
    network: str
    method: str
    layer: str | None
    top: tuple[tuple[Label, float], ...]
    findings: tuple[Finding, ...]
    shown: Image.Image = field(repr=False)
    expected: Image.Image | None = field(repr=False, default=None)
    heat: Mapping[str, NDArray[np.float32]] = field(repr=False, default_factory=dict)

    @property
    def verdict(self) -> str:
        """`the model: …`, `the map: …`, or `neither: the map may be trusted as far as …`."""
        bad = [one for one in self.findings if one.verdict == "bad"]
        if bad:
            more = f"; also bad: {', '.join(one.name for one in bad[1:])}" if bad[1:] else ""
            return f"the {bad[0].about}: {bad[0].words}{more}"
        doubtful = [one for one in self.findings if one.verdict == "doubtful"]
        found = next((one for one in self.findings if one.name == "occlusion"), None)
        places = (
            f"{found.measured['places'][0]} × {found.measured['places'][1]} places" if found else "it goes"
        )
        if not doubtful:
            return f"neither: the map may be trusted as far as occlusion at {places} can tell"
        doubts = "; ".join(f"{one.name}: {one.words}" for one in doubtful)
        return f"neither: the map may be trusted as far as these doubts allow: {doubts}"

    def __getitem__(self, name: str) -> Finding:
        """A finding by its name."""
        for one in self.findings:
            if one.name == name:
                return one
        raise UsageError(f"finding {name!r}", do=nearest(name, [one.name for one in self.findings]))

    def __str__(self) -> str:
        lines = [
            f"{self.picture}, {self.network}, {self.method}" + (f" at {self.layer}" if self.layer else "")
        ]
        lines += [f"  {one.verdict:<9}{one.name}: {one.words}" for one in self.findings]
        return "\n".join([*lines, self.verdict])

    def to_json(self) -> str:
        top = [{"id": label.id, "name": label.name, "probability": p} for label, p in self.top]
        found = [
            {
                "name": one.name,
                "about": one.about,
                "verdict": one.verdict,
                "words": one.words,
                "measured": one.measured,
            }
            for one in self.findings
        ]
        whole = {
            "picture": self.picture, "pictures": self.pictures, "network": self.network, "method": self.method,
            "layer": self.layer, "top": top, "findings": found, "verdict": self.verdict,
        }  # fmt: skip
        return json.dumps(_finite(whole), ensure_ascii=False, allow_nan=False)


def doctor(
    net: Network, image: Any, *, truth: int | str | None = None, layer: str | nn.Module | None = None,
    method: Any = "auto", seed: int = 0,
) -> Diagnosis:  # fmt: skip
    """Checks a network on a picture: a path, PIL picture, array or tensor; or on several, whose statistics are then
    taken together, while the maps are the first one's.

    `truth`: the right class (index, id or name); `layer`: where Grad-CAM looks; `method` as in `localize`. The module
    comes back bit for bit as it was. Raises InputError for a picture that cannot be read, TargetError for a truth that
    is no class, UsageError.
    """
    names, pictures = _pictures(net, image)
    shape = net.card.preprocessing
    views = [shape.view(Size(p.height, p.width), "whole") for p in pictures]
    batch = Batch(shape.normalise(shape.pixels(pictures[0], views[0])[None]).to(net.device), (views[0],))
    insides = [_inside(net, _twice(shape, p, v)) for p, v in zip(pictures, views, strict=True)]
    preprocessing, better = _preprocessing(net, pictures, views, insides)
    findings = [preprocessing, _view(views[0]), _outputs(net, batch, insides[0])]
    logits = insides[0].logits[:1]
    shown = _unnormalised(shape, batch.pixels)
    expected = None if better is None else _unnormalised(better, batch.pixels)
    about: dict[str, Any] = {"picture": names[0], "pictures": len(pictures), "network": net.card.name}
    if not logits.isfinite().all():
        return Diagnosis(**about, method="none", layer=None, top=(), findings=tuple(findings), shown=shown)
    top = _top(net, logits)
    findings += [_head(insides, seed), _classes(net, logits, top, truth)]
    target = ClassTarget(int(logits.argmax()))
    looked, chosen, refused = _mapped(net, batch, target, method, layer)
    patch, stride = _coarse(min(views[0].size.height, views[0].size.width))
    drops = Occlusion(patch, stride)(net, batch, target)
    own = _agreement(looked, drops, seed)
    default = net.structure(batch.pixels).features
    elsewhere = default is not None and looked.layer is not None and looked.layer != default.name
    other = _agreement(for_network(net, batch)(net, batch, target), drops, seed) if elsewhere else None
    looked_at = None if looked.layer is None else net.find_layer(looked.layer, batch.pixels)
    findings.append(_layer(looked_at, default, views[0], own, other, refused))
    if looked_at is not None:
        findings.append(_gradient(net, batch, looked_at, target, logits))
    findings += [_status(looked), _completeness(net, batch, target, logits), _occlusion(own, drops)]
    randomised, again = _randomised(net, batch, target, chosen, looked, insides[0], seed)
    heat = {"map": looked, "occlusion": drops, "map, head randomised": again}
    return Diagnosis(
        **about, method=looked.method, layer=looked.layer, top=top,
        findings=(*findings, randomised), shown=shown, expected=expected,
        heat={name: one.in_view()[0, 0].cpu().numpy() for name, one in heat.items() if one is not None},
    )  # fmt: skip


# --- what the network saw ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Inside:
    """One pass over a picture and its mirror image. `norms`: for each batch norm over cells the mean and variance of
    what came in, and those it remembers from training, `(4, channels)`; `given (N, D)`: what the last linear layer
    got; its `weight (C, D)` and `bias (C,)`; `parameter`: the tensor behind that weight."""

    logits: Tensor
    norms: tuple[Tensor, ...]
    given: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    parameter: Tensor | None = None


def _inside(net: Network, pixels: Tensor) -> _Inside:
    with taps.borrowed(net.module):
        trace = taps.trace(net.module, net.forward, pixels.to(net.device))
        logits = logits_of(trace.output).float()
        norms = []
        for operation in trace.operations:
            given = [*operation.args, *operation.kwargs.values()]
            if operation.name != "batch_norm" or given[0].ndim != pixels.ndim or given[1] is None:
                continue
            x = given[0].float().movedim(1, 0).flatten(1)
            norms.append(
                torch.stack(
                    [x.mean(1), x.var(1, unbiased=False), given[1].float(), given[2].float()]
                ).detach()
            )
        for operation in reversed(trace.operations):
            if operation.name not in ("linear", "conv1d", "conv2d", "conv3d"):
                continue
            x, weight = operation.args[0], operation.args[1]
            bias = operation.argument(2, "bias")
            if weight.shape[0] != logits.shape[1] or math.prod(weight.shape[2:]) != 1:
                break
            cells = (
                x.flatten(2).mean(2)
                if operation.name != "linear"
                else x.reshape(len(x), -1, x.shape[-1]).mean(1)
            )
            bias = torch.zeros(len(weight), device=x.device) if bias is None else bias.detach().float()
            return _Inside(
                logits, tuple(norms), cells.float(), weight.detach().flatten(1).float(), bias, weight
            )
    return _Inside(logits, tuple(norms))


def _pictures(net: Network, image: Any) -> tuple[list[str], list[Image.Image]]:
    one_picture = isinstance(image, (str, Path, bytes, Image.Image)) or getattr(image, "ndim", 4) < 4
    if one_picture or not isinstance(image, Iterable):
        image = [image]
    given = chain.from_iterable(
        sources.expand([one]).sources if isinstance(one, (str, Path)) else [one] for one in image
    )
    names, pictures = [], []
    for one in given:
        names.append(one.name if isinstance(one, Source) else "<picture in memory>")
        data = one.read() if isinstance(one, Source) else one
        pictures.append(read_picture(data, net.card.preprocessing.mean_colour))
    if not pictures:
        raise UsageError("doctor", got="no picture", allowed="one or several")
    return names, pictures


def _twice(shape: Preprocessing, picture: Image.Image, view: View) -> Tensor:
    """The picture and its mirror image, as the network wants them."""
    pixels = shape.pixels(picture, view)
    return shape.normalise(torch.stack([pixels, pixels.flip(-1)]))


def _unnormalised(shape: Preprocessing, pixels: Tensor) -> Image.Image:
    """Normalised pixels `(1, C, H, W)` back as a picture, as a network that was trained with `shape` reads them."""
    values = pixels[0].detach().float().cpu().movedim(0, -1).numpy() * np.array(shape.std) + np.array(
        shape.mean
    )
    seen = np.clip(np.rint(values / shape.scale * 255), 0, 255).astype(np.uint8)
    if shape.channels == "L":
        return Image.fromarray(seen[..., 0]).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(seen[..., ::-1] if shape.channels == "BGR" else seen))


def _others(card: Preprocessing) -> dict[str, Preprocessing]:
    """The usual mistakes: what else the pixels may have been in training, by name."""
    number = len(card.channels)
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if number == 3 else ((0.449,), (0.226,))
    order = -1 if card.channels == "BGR" else 1
    swapped: Literal["RGB", "BGR"] = "BGR" if card.channels == "RGB" else "RGB"
    plain = replace(card, mean_picture="")
    others = {
        "ImageNet's mean and deviation": replace(plain, scale=1.0, mean=mean[::order], std=std[::order]),
        "mean 0.5 and deviation 0.5": replace(plain, scale=1.0, mean=(0.5,) * number, std=(0.5,) * number),
        "pixels in 0…1 as they are": replace(plain, scale=1.0, mean=(0.0,) * number, std=(1.0,) * number),
        "pixels in 0…255 as they are": replace(plain, scale=255.0, mean=(0.0,) * number, std=(1.0,) * number),
    }
    if number == 3:
        others = {f"channels swapped to {swapped}": replace(card, channels=swapped), **others}
    return {name: one for name, one in others.items() if not _same(one, card)}


def _same(a: Preprocessing, b: Preprocessing) -> bool:
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, len(a.channels), 1, 1)
    return a.channels == b.channels and torch.allclose(
        a.normalise(ends), b.normalise(ends), rtol=1e-3, atol=1e-3
    )


def norm_distance(
    mean: Tensor, variance: Tensor, remembered_mean: Tensor, remembered_variance: Tensor
) -> float:
    """Bhattacharyya distance of the Gaussians of each channel, averaged: 0 where they are the same. It is symmetric and
    grows by logarithms, so that a channel that hardly moved in training cannot outvote the others."""
    a, b = variance + 1e-5, remembered_variance + 1e-5
    apart = (mean - remembered_mean) ** 2 / (a + b) / 4 + ((a + b) / (2 * (a * b).sqrt())).log() / 2
    return float(apart.mean())


def _distance(insides: Sequence[_Inside]) -> float:
    """Of all pictures together from the memory of the first batch norm."""
    first = torch.stack([one.norms[0] for one in insides])
    mean = first[:, 0].mean(0)
    variance = (first[:, 1] + first[:, 0] ** 2).mean(0) - mean**2
    return norm_distance(mean, variance, first[0, 2], first[0, 3])


def _preprocessing(
    net: Network, pictures: Sequence[Image.Image], views: Sequence[View], insides: Sequence[_Inside]
) -> tuple[Finding, Preprocessing | None]:
    card = net.card.preprocessing
    pixels = torch.cat([_twice(card, p, v)[0].flatten(1) for p, v in zip(pictures, views, strict=True)], 1)
    seen: dict[str, Any] = {
        "mean": _rounded(pixels.mean(1)), "std": _rounded(pixels.std(1, unbiased=False)), "low": float(pixels.min()),
        "high": float(pixels.max()),
    }  # fmt: skip
    saw = f"the network saw {seen['low']:.2f} … {seen['high']:.2f}, mean {_words(seen['mean'])}, deviation {_words(seen['std'])}"
    measured: dict[str, Any] = {"seen": seen, "colourfulness": _colourfulness(pictures)}
    others = _others(card)
    tried = {
        name: [_inside(net, _twice(one, p, v)) for p, v in zip(pictures, views, strict=True)]
        for name, one in others.items()
    }
    sure = {name: _confidence(net, one) for name, one in {"card": insides, **tried}.items()}
    measured["top-1 probability"] = sure
    if not insides[0].norms:
        # Large inputs make every network sure of itself, so 0…255 is no rival here.
        rivals = {name: p for name, p in sure.items() if "255" not in name}
        best = max(rivals, key=lambda name: rivals[name])
        guess = (
            f"it is surest with {best} ({rivals[best]:.2f} against {sure['card']:.2f})"
            if rivals[best] > 2 * sure["card"]
            else f"it is not much surer of its class with any usual alternative ({sure['card']:.2f} as it is)"
        )
        words = f"{saw}; there is no batch norm to compare with, so statistics cannot tell; {guess}"
        return Finding("preprocessing", "doubtful", words, measured), None
    far = {name: _distance(one) for name, one in {"card": insides, **tried}.items()}
    measured["distance from the first batch norm"] = far
    swap = next((name for name in far if name.startswith("channels swapped")), None)
    best = min(far, key=lambda name: far[name])

    def nearer(name: str, than: str, times: float, by: float) -> bool:
        return far[than] > times * far[name] and far[than] - far[name] > by / math.sqrt(len(pictures))

    swapped = swap is not None and nearer(swap, "card", SWAP_FITS_BETTER, SWAP_FITS_BETTER_BY)
    if swapped and swap is not None and not nearer(best, swap, FITS_BETTER, FITS_BETTER_BY):
        best = swap  # another mean hardly moves what a swap moves: where both would do, it is the swap
    if (best == swap and swapped) or (best != swap and nearer(best, "card", FITS_BETTER, FITS_BETTER_BY)):
        what = (
            f"the channels look swapped: {best.split()[-1]} fits"
            if best == swap
            else f"mean, deviation or range look wrong: {best} would fit"
        )
        words = f"{what} the first batch norm better: {far[best]:.2f} against {far['card']:.2f}; {saw}"
        return Finding("preprocessing", "bad", words, measured), others[best]
    words = f"{saw}; the first batch norm knows such values (distance {far['card']:.2f})"
    if swap is not None and far[swap] < SWAP_FITS_BETTER * far["card"]:
        words += f", but with {swap} about as well ({far[swap]:.2f}): more pictures could tell"
    return Finding("preprocessing", "good", words, measured), None


def _confidence(net: Network, insides: Sequence[_Inside]) -> float:
    return float(torch.stack([net.probabilities(one.logits).amax(1).mean() for one in insides]).mean())


def _colourfulness(pictures: Sequence[Image.Image]) -> float:
    """Mean difference between red and blue, in 0…1: what a swap of the channels moves."""
    arrays = [np.asarray(p.resize((32, 32)), np.float64) for p in pictures]
    return round(float(np.mean([np.abs(a[..., 0] - a[..., 2]).mean() for a in arrays])) / 255, 4)


def _view(view: View) -> Finding:
    source, shown = view.source, view.resized
    up, across = shown.height / source.height, shown.width / source.width
    squash = max(up / across, across / up)
    kept = view.size.height * view.size.width / (shown.height * shown.width)
    measured = {
        "source": [source.height, source.width], "shown": [view.size.height, view.size.width], "squashed": round(squash, 3),
        "scale": round(min(up, across), 4), "kept": round(kept, 4),
    }  # fmt: skip
    words = f"{source.height} × {source.width} pixels shown at {view.size.height} × {view.size.width}"
    doubts = []
    if squash > SQUASHED:
        doubts.append(f"squashed {squash:.1f} times along one side")
    if min(up, across) > ENLARGED:
        doubts.append(f"enlarged {min(up, across):.1f} times: blurred")
    return Finding("view", "doubtful" if doubts else "good", ", ".join([words, *doubts]), measured)


# --- what it made of it ------------------------------------------------------------------------------------


def _outputs(net: Network, batch: Batch, inside: _Inside) -> Finding:
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


def _top(net: Network, logits: Tensor) -> tuple[tuple[Label, float], ...]:
    probabilities = net.probabilities(logits)[0]
    order = logits[0].argsort(descending=True, stable=True)[:5].tolist()
    return tuple((net.card.label(i), float(probabilities[i])) for i in order)


def _classes(
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


def _head(insides: Sequence[_Inside], seed: int) -> Finding:
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


# --- where the map looks -----------------------------------------------------------------------------------


def _mapped(
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


def _layer(
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


def _gradient(net: Network, batch: Batch, layer: Layer, target: ClassTarget, logits: Tensor) -> Finding:
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


def _status(looked: HeatMaps) -> Finding:
    word, values = looked.status[0][0], looked.values[0, 0]
    measured = {"status": word, "low": float(values.min()), "high": float(values.max())}
    spoken = {
        "ok": "has a region that speaks for the class", "flat": "has one value everywhere", "all-negative": "is nowhere above zero: nothing speaks for the class",
        "no-gradient": "is blank: no gradient reaches its layer", "non-finite": "holds NaN or infinite values",
    }  # fmt: skip
    words = f"{spoken[word]} ({measured['low']:.3g} … {measured['high']:.3g}, raw)"
    return Finding("map", "good" if word == "ok" else "bad", words, measured, "map")


def _completeness(net: Network, batch: Batch, target: ClassTarget, logits: Tensor) -> Finding:
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


def _coarse(short: int) -> tuple[int, int]:
    """Occluder and stride, in pixels: a quarter of the shorter side, at `COARSE` places along it."""
    patch = max(1, round(short / 4))
    return patch, max(1, (short - patch) // (COARSE - 1))


def rank_correlation(a: NDArray, b: NDArray) -> float:
    """Spearman's; ties share their mean rank, and a constant correlates with nothing (0)."""
    x, y = (rankdata(v, axis=None) for v in (a, b))
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt(float((x**2).sum() * (y**2).sum()))
    return float((x * y).sum()) / size if size > 0 else 0.0


def _agreement(looked: HeatMaps, drops: HeatMaps, seed: int) -> dict[str, Any]:
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


def _occlusion(own: Mapping[str, Any], drops: HeatMaps) -> Finding:
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


def _randomised(
    net: Network,
    batch: Batch,
    target: ClassTarget,
    method: Method,
    looked: HeatMaps,
    inside: _Inside,
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


def _rounded(values: Tensor) -> list[float]:
    return [round(float(v), 4) for v in values]


def _words(values: Iterable[float]) -> str:
    return " / ".join(f"{v:.2f}" for v in values)


def _finite(tree: Any) -> Any:
    """Numbers that JSON cannot hold become None."""
    if isinstance(tree, Mapping):
        return {key: _finite(branch) for key, branch in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_finite(branch) for branch in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
