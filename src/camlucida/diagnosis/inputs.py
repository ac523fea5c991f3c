"""Checks of what the network saw: the preprocessing, by the memory of the first batch norm, and the view."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from camlucida.diagnosis.inside import Inside, inside, twice
from camlucida.diagnosis.verdict import Finding
from camlucida.images.views import Preprocessing
from camlucida.networks.network import Network
from camlucida.values import View

# Another preprocessing is named when the first batch norm is this many times nearer to it than to the card's, and nearer by
# so much over √pictures: below, the pictures' own light explains the difference. Swapped channels are but one rival, with
# the card's own mean and deviation, so that less evidence will do.
FITS_BETTER, FITS_BETTER_BY = 1.5, 0.05
SWAP_FITS_BETTER, SWAP_FITS_BETTER_BY = 1.4, 0.03
SQUASHED, ENLARGED = 1.34, 2.0


def unnormalised(shape: Preprocessing, pixels: Tensor) -> Image.Image:
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


def _distance(insides: Sequence[Inside]) -> float:
    """Of all pictures together from the memory of the first batch norm."""
    first = torch.stack([one.norms[0] for one in insides])
    mean = first[:, 0].mean(0)
    variance = (first[:, 1] + first[:, 0] ** 2).mean(0) - mean**2
    return norm_distance(mean, variance, first[0, 2], first[0, 3])


def preprocessing(
    net: Network, pictures: Sequence[Image.Image], views: Sequence[View], insides: Sequence[Inside]
) -> tuple[Finding, Preprocessing | None]:
    card = net.card.preprocessing
    pixels = torch.cat([twice(card, p, v)[0].flatten(1) for p, v in zip(pictures, views, strict=True)], 1)
    seen: dict[str, Any] = {
        "mean": _rounded(pixels.mean(1)), "std": _rounded(pixels.std(1, unbiased=False)), "low": float(pixels.min()),
        "high": float(pixels.max()),
    }  # fmt: skip
    saw = f"the network saw {seen['low']:.2f} … {seen['high']:.2f}, mean {_words(seen['mean'])}, deviation {_words(seen['std'])}"
    measured: dict[str, Any] = {"seen": seen, "colourfulness": _colourfulness(pictures)}
    others = _others(card)
    tried = {
        name: [inside(net, twice(one, p, v)) for p, v in zip(pictures, views, strict=True)]
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


def _confidence(net: Network, insides: Sequence[Inside]) -> float:
    return float(torch.stack([net.probabilities(one.logits).amax(1).mean() for one in insides]).mean())


def _colourfulness(pictures: Sequence[Image.Image]) -> float:
    """Mean difference between red and blue, in 0…1: what a swap of the channels moves."""
    arrays = [np.asarray(p.resize((32, 32)), np.float64) for p in pictures]
    return round(float(np.mean([np.abs(a[..., 0] - a[..., 2]).mean() for a in arrays])) / 255, 4)


def view(view: View) -> Finding:
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


def _rounded(values: Tensor) -> list[float]:
    return [round(float(v), 4) for v in values]


def _words(values: Iterable[float]) -> str:
    return " / ".join(f"{v:.2f}" for v in values)
