"""Class maps from SVM weights for any stack of networks, scales, mirror images and boxes (CAM paper, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from camlucida.errors import UsageError
from camlucida.features.extract import Block, Extractor
from camlucida.features.svm import LinearSVM
from camlucida.values import Box, View


@dataclass(frozen=True, eq=False)
class ViewMap:
    """The maps `values (C, h, w)` float64 of all classes in one view of the picture, and the block it belongs to; where the
    region is a box, the view is of the box cut out."""

    block: Block
    view: View
    values: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ClassMaps:
    """Maps of every view of one picture. `decisions (C,)` = the sum over views of the mean of each map, + `bias (C,)`."""

    views: tuple[ViewMap, ...]
    bias: NDArray[np.float64]
    decisions: NDArray[np.float64]


def class_maps(
    svm: LinearSVM, extractors: Sequence[Extractor], picture: Image.Image, box: Box | None = None
) -> ClassMaps:
    """M_c = Σ_k w_ck f_k in every view of a picture, with the weights that speak for it there: divided by its own norms and
    by the number of views averaged, or by the training deviations. `extractors`: those whose features were stacked, in
    that order. Raises UsageError for others, InputError for a picture without the box they ask for."""
    blocks, start = list[Block](), 0
    for one in extractors:
        blocks += [_moved(block, start) for block in one.blocks]
        start += one.width
    if not extractors:
        raise UsageError("class_maps", got="no extractor", allowed="those of the SVM's features")
    svm.check(blocks)
    seen: list[tuple[Block, View, NDArray[np.float64]]] = []
    vector, start = np.zeros(start), 0
    for one in extractors:
        shape = one.net.card.preprocessing
        for index, of, view in one.views(picture, box):
            pixels = shape.normalise(shape.pixels(of, view)[None].to(one.net.device))
            features = one.maps(pixels)[0].double().cpu().numpy()
            block = _moved(one.blocks[index], start)
            share = 1 / (len(block.scales) * (1 + block.flips))
            vector[block.start : block.stop] += share * features.mean((1, 2))
            seen.append((block, view, share * features))
        start += one.width
    weights, bias = svm.linear(vector[None])
    views = tuple(
        ViewMap(block, view, torch.tensordot(torch.from_numpy(weights[0, :, block.start : block.stop]), torch.from_numpy(f), 1).numpy())
        for block, view, f in seen
    )  # fmt: skip
    return ClassMaps(views, bias, svm.decide(vector[None])[0])


def _moved(block: Block, start: int) -> Block:
    return replace(block, start=block.start + start, stop=block.stop + start)
