"""An SVM as the head of its network (CAM paper, section 4): class maps from SVM weights, like any other network's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch

from camlucida.errors import UsageError
from camlucida.features.extract import PENULTIMATE, Block, Extractor, penultimate
from camlucida.features.svm import LinearSVM
from camlucida.networks import heads
from camlucida.networks.cards import Tuned
from camlucida.networks.network import Network

STACKS = "cl.features.class_maps(svm, [extractor], picture) gives the maps of any stack"


def packed(net: Network, svm: LinearSVM, *, name: str | None = None, **about: Any) -> Network:
    """The network with the SVM as its head: its logits are the decision values, `cl.CAM` their maps, and mean of the map +
    bias = decision value. Standardisation is folded into weights and bias; division by the L2 norm stays in the head.

    Averaged scales and mirror images become the card's views, whose mean is the decision value of the averaged features.
    Raises UsageError for an SVM of another network, and for what one network cannot express: stacked blocks, boxes, the
    L2 norm of features averaged over several views. `about`: fields of the card.
    """
    (block,) = svm.blocks if len(svm.blocks) == 1 else (None,)
    if block is None:
        raise UsageError(f"packing an SVM on {len(svm.blocks)} stacked blocks", allowed="one block: one network, its scales averaged", do=f"extract with --combine average; {STACKS}")  # fmt: skip
    if block.region != "picture":
        raise UsageError("packing an SVM on boxes", allowed="features of whole pictures", do="extract with --region picture: what localizes is not told the box")  # fmt: skip
    views = len(block.scales) * (1 + block.flips)
    if views > 1 and svm.normalise == "l2":
        raise UsageError(f"packing an SVM on the L2 norm of features averaged over {views} views", allowed="the norm of one view", do=f"--normalise standard, or one scale without --flips; {STACKS}")  # fmt: skip
    check_network(net, block)
    card = net.card
    module, cut, side = net.module, block.layer, None
    if cut == PENULTIMATE:
        dense, cut, side = penultimate(net)
        module, card = dense.module, dense.card
    shape = card.preprocessing
    norm: Literal["none", "l2"] = "l2" if svm.normalise == "l2" else "none"
    headed, card = heads.put(
        module, card, "svm", cut=cut, num_classes=len(svm.classes), normalise=norm, size=side
    )
    weights, bias = svm.linear(svm.weights[:1]) if norm == "none" else (svm.weights[None], svm.bias)
    linear = headed.get_submodule("head.classify")
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weights[0]))  # type: ignore[operator]
        linear.bias.copy_(torch.from_numpy(bias))  # type: ignore[operator]
    if shape.any_size:
        shape = replace(shape, size=block.scales[0], crop=None)
    zooms = "+".join(f"{q / block.scales[0]:.9g}" for q in block.scales)
    words = ("flip+" if block.flips else "") + zooms
    card = replace(
        card, name=name or f"{net.card.name}-svm", labels=svm.classes, preprocessing=shape, activation="none", measured={},
        localization=Tuned(boxes=net.card.localization.boxes, views=words, chosen_on=""), **about,
    )  # fmt: skip
    return Network(headed.eval(), card, precision=net.precision)


def check_network(net: Network, block: Block) -> None:
    """Raises UsageError where features were extracted with other weights."""
    own = Extractor(net).blocks[0]
    if (own.network, own.pixels) != (block.network, block.pixels):
        what = "weights" if own.network != block.network else "preprocessing"
        raise UsageError(f"an SVM on features of {block.name}, sha256 {block.network[:12]}", got=f"the network {net.card.name}, sha256 {own.network[:12]}: other {what}", do="name the network as when the features were extracted")  # fmt: skip
