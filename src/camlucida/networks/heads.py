"""Heads that make class maps possible: global average or max pooling and one linear layer, on any trunk
(CAM paper, section 1.1 of the specification)."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from camlucida import taps
from camlucida.errors import LayerError, NetworkError, UnsupportedError, nearest
from camlucida.networks.cards import Card
from camlucida.networks.network import Network, logits_of
from camlucida.taps import Point

HEADS = ("gap", "gmp")


class PooledLinear(nn.Module):
    """Features `(N, channels, h, w)` → [3 × 3 convolution of `units`, ReLU] → global pooling → dropout → linear → logits.

    `units=None` leaves the convolution out. Convolution weights N(0, 0.01²), biases `conv_bias`; linear weights Xavier.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        pool: Literal["avg", "max"] = "avg",
        units: int | None = 1024,
        kernel: int = 3,
        groups: int = 1,
        dropout: float = 0.0,
        bias: bool = True,
        conv_bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv: nn.Module = nn.Identity()
        if units is not None:
            conv = nn.Conv2d(channels, units, kernel, 1, kernel // 2, groups=groups)
            nn.init.normal_(conv.weight, 0, 0.01)
            nn.init.constant_(conv.bias, conv_bias)  # type: ignore[arg-type]
            self.conv = nn.Sequential(conv, nn.ReLU())
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1) if pool == "avg" else nn.AdaptiveMaxPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(units or channels, num_classes, bias=bias)
        nn.init.xavier_uniform_(self.classify.weight)
        if bias:
            nn.init.zeros_(self.classify.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.classify(self.dropout(torch.flatten(self.pool(self.conv(features)), 1)))


class FullyConnected(nn.Sequential):
    """Features `(N, channels, h, w)`, flattened → linear → ReLU → dropout → … → logits `(N, num_classes)`."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(torch.flatten(features, 1))


def fully_connected(
    inputs: int, units: Mapping[int, int], num_classes: int, dropout: float = 0.5
) -> FullyConnected:
    """The papers' head: hidden layers fc6, fc7 … with their `units`, each with ReLU and dropout, and the classes. He's
    initial weights, N(0, 0.01²) for the classes, biases 0."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for number, outputs in units.items():
        parts[f"fc{number}"] = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(parts[f"fc{number}"].weight, nonlinearity="relu")  # type: ignore[arg-type]
        parts[f"relu{number}"], parts[f"dropout{number}"] = nn.ReLU(), nn.Dropout(dropout)
        inputs = outputs
    parts["fc8"] = nn.Linear(inputs, num_classes)
    nn.init.normal_(parts["fc8"].weight, 0, 0.01)  # type: ignore[arg-type]
    for part in parts.values():
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)
    return FullyConnected(parts)


class CutTrunk(nn.Module):
    """A trunk that ends at a layer, and the head on it."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.trunk(pixels)["features"])


def put(
    module: nn.Module,
    card: Card,
    head: str,
    *,
    cut: str | None = None,
    num_classes: int | None = None,
    units: int = 1024,
    groups: int = 1,
    dropout: float = 0.0,
    bias: bool = True,
) -> tuple[nn.Module, Card]:
    """The module with a `gap` or `gmp` head instead of its own, and its card.

    A trunk that already ends in pooling → linear keeps it (`gap`) or changes its pooling (`gmp`) without the added
    convolution, unless `cut` names a layer. Elsewhere the trunk ends at `cut`, by default its last spatial layer before
    any pooling, and gets the paper's convolution of `units`. The trunk keeps its weights; what is new is random.
    """
    if head not in HEADS:
        raise NetworkError(f"head {head!r}", do=nearest(head, HEADS))
    network = Network(module, card)
    shape = card.preprocessing
    side = shape.crop or shape.size
    blank = torch.zeros(1, len(shape.channels), side, side)
    with taps.borrowed(module):
        classes = num_classes or logits_of(network.forward(blank)).shape[1]
    found = network.structure(blank)
    own = found.head
    pooled = own is not None and own.norm is None and own.weight is not None
    same_classes = own is not None and own.weight is not None and classes == len(own.weight)
    if own is not None and pooled and same_classes and cut is None and head == "gap" and own.pool == "avg":
        return module, card
    recorded: dict[str, Any] = {
        "head": head, "cut": cut, "num_classes": num_classes, "units": units, "groups": groups, "dropout": dropout, "bias": bias,
    }  # fmt: skip
    card = replace(
        card, name=f"{card.name}-{head}", arguments={**card.arguments, "head": recorded}, sha256="", measured={},
        labels=card.labels if len(card.labels) == classes else (),
    )  # fmt: skip
    layer = network.find_layer(cut, blank)
    if math.prod(layer.size) < 2:
        raise LayerError(
            f"cutting at {layer.name}", got=f"a map of {layer.size}", allowed="a layer with cells"
        )
    if layer.prefix is not None:
        raise UnsupportedError(
            f"a head on the tokens of {layer.name}", allowed="layers that give maps",
            do="use cl.GradCAM(), or a transformer with average pooling, whose own head CAM reads",
        )  # fmt: skip
    trunk = _until(module, layer.point, cut or layer.name)
    added = None if pooled and cut is None else units
    top = PooledLinear(
        layer.channels,
        classes,
        "avg" if head == "gap" else "max",
        added,
        groups=groups,
        dropout=dropout,
        bias=bias,
    )
    return CutTrunk(trunk, top.to(next(module.parameters()).device)), card


def _until(module: nn.Module, point: Point, asked: str) -> nn.Module:
    """The part of a module up to a point, as a module of its own that shares the parameters."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    training = module.training
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that training adds nodes (auxiliary heads) is known and wanted
            nodes = get_graph_node_names(module.eval(), suppress_diff_warning=True)[1]
            known = {n.rsplit(".", i)[0] for n in nodes for i in range(n.count(".") + 1)}
            name = point.name if point.of == "module" or not point.call else f"{point.name}_{point.call}"
            if name not in known:
                raise LayerError(f"the trunk cannot be cut at {asked!r}", do=nearest(asked, known))
            trunk = create_feature_extractor(module, {name: "features"}, suppress_diff_warning=True)
        if point.of == "function":
            _step_back(trunk)
        return trunk.train(training)
    except LayerError:
        raise
    except Exception as error:  # symbolic tracing fails in many ways on modules with data-dependent code
        raise UnsupportedError(
            f"{type(module).__name__} cannot be cut",
            got=f"{type(error).__name__}: {error}",
            do="build the trunk yourself and use cl.wrap",
        ) from error
    finally:
        module.train(training)


def _step_back(trunk: Any) -> None:
    """Makes a cut module return the input of its last operation instead of that operation's output."""
    for graph in {id(g): g for g in (trunk.graph, trunk.train_graph, trunk.eval_graph)}.values():
        end = next(node for node in graph.nodes if node.op == "output")
        last = end.args[0]["features"]
        end.args = ({"features": last.args[0]},)
        graph.eliminate_dead_code()
    trunk.recompile()
