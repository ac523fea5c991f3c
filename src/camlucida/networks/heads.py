"""Heads on any trunk: global average or max pooling and one linear layer, which makes class maps possible (CAM paper,
section 1.1 of the specification), regression, a linear SVM's (section 5), the papers' fully connected layers, and their
dense form."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from camlucida import taps
from camlucida.display import sides
from camlucida.errors import LayerError, NetworkError, UnsupportedError, nearest
from camlucida.networks import layouts
from camlucida.networks.cards import Card
from camlucida.networks.network import Network, logits_of
from camlucida.taps import Operation, Point, Value

HEADS = ("gap", "gmp", "regression", "svm", "fc", "dense")


class PooledLinear(nn.Module):
    """Features `(N, channels, h, w)` → [3 × 3 convolution of `units`, ReLU] → global pooling → dropout → [division by the
    L2 norm] → linear → logits.

    `units=None` leaves the convolution out, `normalise="none"` the division. Convolution weights N(0, 0.01²), biases `conv_bias`; linear weights Xavier.
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
        normalise: Literal["none", "l2"] = "none",
    ) -> None:
        super().__init__()
        self.normalise = normalise
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
        pooled = self.dropout(torch.flatten(self.pool(self.conv(features)), 1))
        return self.classify(functional.normalize(pooled) if self.normalise == "l2" else pooled)


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


class GlobalPool(nn.Module):
    """Maps `(N, C, h, w)` → their means `(N, C)`."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.flatten(self.pool(maps), 1)


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
    normalise: Literal["none", "l2"] = "none",
    size: int | None = None,
) -> tuple[nn.Module, Card]:
    """The module with another head instead of its own, and its card. The trunk keeps its weights; what is new is random.

    `gap`, `gmp`: a trunk that already ends in such pooling keeps it or changes it, without the added convolution, unless
    `cut` names a layer. Elsewhere the trunk ends at `cut`, by default its last spatial layer before any pooling, and
    gets the paper's convolution of `units`. `regression`: as `gap`, `num_classes` numbers (by default one) that are no
    probabilities. `fc`: 2 × 2 max pooling of maps above 7 × 7, two hidden layers of 4 · `units`, classes; for the
    card's size alone; a trunk that ends so keeps it. `dense`: see `dense`; logits are the mean of its score maps. `svm`:
    pooling, division by the L2 norm if `normalise`, linear layer; decision values, no probabilities. `size`: side of the
    blank picture that is looked at, by default the card's.
    """
    if head not in HEADS:
        raise NetworkError(f"head {head!r}", do=nearest(head, HEADS))
    recorded: dict[str, Any] = {
        "head": head, "cut": cut, "num_classes": num_classes, "units": units, "groups": groups, "dropout": dropout, "bias": bias,
    }  # fmt: skip
    shape = card.preprocessing
    side = size or shape.crop or shape.size
    recorded |= {"size": side} if head in ("svm", "dense") else {}
    recorded |= {"normalise": normalise} if head == "svm" else {}
    recorded |= {"on": card.arguments["head"]} if "head" in card.arguments else {}
    headed = replace(
        card, name=f"{card.name}-{head}", arguments={**card.arguments, "head": recorded}, sha256="", measured={},
        activation="none" if head in ("regression", "svm") else card.activation,
    )  # fmt: skip
    if head == "dense":
        if cut is not None:
            raise NetworkError(f"a dense head at {cut}", do="it is the network's own head: leave cut out")
        scores = dense(module, size=side)
        top: nn.Module = nn.Sequential(OrderedDict(scores=scores.head, mean=GlobalPool()))
        fixed = any(getattr(part, "kernel_size", 1) not in (1, (1, 1)) for part in scores.head.children())
        shape = replace(shape, any_size=True, minimum=side if fixed else shape.minimum)
        return CutTrunk(scores.trunk, top), replace(headed, preprocessing=shape)
    network = Network(module, card)
    blank = torch.zeros(1, len(shape.channels), side, side)
    with taps.borrowed(module):
        had = logits_of(network.forward(blank)).shape[1]
    classes = num_classes or (1 if head == "regression" else had)
    if len(card.labels) != classes:
        headed = replace(headed, labels=())
    found = network.structure(blank)
    own = found.head if found.head is not None and found.head.norm is None else None
    pooled = own is not None and own.weight is not None
    if cut is None and classes == had and own is not None:
        if (head, own.pool) in (("gap", "avg"), ("gmp", "max")):
            return module, card
        if head == "regression" and own.pool == "avg" and pooled:
            return module, replace(headed, arguments=card.arguments)
    if cut is None and classes == had and head == "fc" and _is_flat(module, side):
        return module, card
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
    if layer.channel_axis != 1:
        raise UnsupportedError(f"a head on {layer.name}", got="channels last", allowed="channels first")
    trunk = _until(module, layer.point, cut or layer.name)
    if head == "fc":
        shrink = 2 if max(layer.size) > 7 else 1
        inputs = layer.channels * math.prod(cells // shrink for cells in layer.size)
        hidden = fully_connected(inputs, {6: 4 * units, 7: 4 * units}, classes, dropout or 0.5)
        top = nn.Sequential(OrderedDict(pool=nn.MaxPool2d(shrink), classify=hidden))
    else:
        added = None if (pooled and cut is None) or head == "svm" else units
        kind: Literal["avg", "max"] = "max" if head == "gmp" else "avg"
        top = PooledLinear(
            layer.channels,
            classes,
            kind,
            added,
            groups=groups,
            dropout=dropout,
            bias=bias,
            normalise=normalise,
        )
    any_size = head != "fc" and (shape.any_size or _is_convolutional(trunk))
    headed = replace(headed, preprocessing=replace(shape, any_size=any_size))
    return CutTrunk(trunk, top.to(next(module.parameters()).device)), headed


def again(module: nn.Module, card: Card, recorded: Mapping[str, Any]) -> nn.Module:
    """The module with the head that a card has `recorded`, on the one below it if that was put on, too."""
    options = dict(recorded)
    below = options.pop("on", None)
    return put(again(module, card, below) if below else module, card, **options)[0]


def _is_flat(module: nn.Module, side: int) -> bool:
    try:
        return _own_head(module, side).kind == "flat"
    except UnsupportedError:
        return False


def _is_convolutional(trunk: nn.Module) -> bool:
    """Whether all weights are convolutions' and norms' that take maps of every size."""
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm)
    return all(isinstance(m, kinds) for m in trunk.modules() if [*m.parameters(recurse=False)])


def _until(module: nn.Module, point: Point, asked: str) -> nn.Module:
    """The part of a module up to a point, as a module of its own that shares the parameters."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    training = module.training
    modes = [(m, m.training) for m in module.modules()]
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
        for m, mode in modes:
            m.training = mode


def _step_back(trunk: Any) -> None:
    """Makes a cut module return the input of its last operation instead of that operation's output."""
    for graph in {id(g): g for g in (trunk.graph, trunk.train_graph, trunk.eval_graph)}.values():
        end = next(node for node in graph.nodes if node.op == "output")
        last = end.args[0]["features"]
        end.args = ({"features": last.args[0]},)
        graph.eliminate_dead_code()
    trunk.recompile()


Linear = tuple[Tensor, Tensor | None]
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "relu_": nn.ReLU, "hardswish": nn.Hardswish, "silu": nn.SiLU, "tanh": nn.Tanh,
}  # fmt: skip


@dataclass(frozen=True)
class OwnHead:
    """How a module makes logits of its last map, `size` cells at `point`: `flat` (the map as one vector) or pooled (`avg`,
    `max`), then `layers`: linear weights and bias, and activations."""

    kind: str
    point: Point
    size: tuple[int, ...]
    layers: list[Linear | nn.Module]


def dense(module: nn.Module, *, size: int | None = None) -> CutTrunk:
    """The module as a convolution over any picture of at least the training `size`: score maps `(N, C, h, w)`, whose
    spatial mean on pictures of that size is the logits (VGG paper, section 16 of the specification).

    A head of pool → linear becomes a 1 × 1 convolution of the last map; fully connected layers become convolutions, the
    first with a kernel of the whole map; maximum pooling slides a window of that size. The weights are shared with the
    module; dropout is left out. `size`: by default the module's own, else 224. Raises UnsupportedError for other heads.
    """
    own = _own_head(module, size or getattr(getattr(module, "preprocessing", None), "crop", None) or 224)
    parts: list[nn.Module] = [nn.MaxPool2d(own.size, 1)] if own.kind == "max" else []
    kernel: Any = own.size if own.kind == "flat" else (1, 1)
    for layer in own.layers:
        if isinstance(layer, nn.Module):
            parts.append(layer)
            continue
        weight, bias = layer
        with torch.device("meta"):  # a place for the weights that are there
            conv = nn.Conv2d(weight.shape[1] // math.prod(kernel), len(weight), kernel, bias=bias is not None)
        conv.weight = nn.Parameter(weight.detach().view(len(weight), -1, *kernel), weight.requires_grad)
        if bias is not None:
            conv.bias = nn.Parameter(bias.detach(), bias.requires_grad)
        parts.append(conv)
        kernel = (1, 1)
    head = nn.Sequential(*parts).train(module.training)
    scores = CutTrunk(_until(module, own.point, own.point.name), head)
    scores.training = module.training
    return scores


def _own_head(module: nn.Module, side: int) -> OwnHead:
    """The head of a module, read from a run on a blank picture of `side`. Raises UnsupportedError."""
    channels = next((m.in_channels for m in module.modules() if isinstance(m, nn.Conv2d)), 3)
    network, blank = Network(module), torch.zeros(1, channels, side, side)
    try:
        found = network.structure(blank)
        head, layer = found.head, found.features
        if head is not None and layer is not None and head.norm is None and head.channel_axis == 1:
            pooled: list[Linear | nn.Module] = [] if head.weight is None else [(head.weight, head.bias)]
            return OwnHead(head.pool, layer.point, layer.size, pooled)
        with taps.borrowed(module):
            trace = taps.trace(module, network.forward, blank)
    except RuntimeError as error:  # from the module itself
        raise UnsupportedError(
            f"{type(module).__name__} fails on a picture of {side} × {side}", got=str(error).splitlines()[0],
            do="give the size it was trained with",
        ) from error  # fmt: skip
    return _flat_head(module, trace, side)


def _flat_head(module: nn.Module, trace: taps.Trace, side: int) -> OwnHead:
    """The fully connected layers of a recorded run, from the logits back to the map that was flattened."""
    producers = {operation.output: operation for operation in trace.operations}
    value = next((v for v in reversed(producers) if v[0] == id(logits_of(trace.output))), None)
    layers: list[Linear | nn.Module] = []
    user: Operation | None = None  # what flattened the map
    while value is not None and value in producers:
        operation = producers[value]
        name, given = operation.name, tuple(getattr(operation.args[0], "shape", ()))
        if user is not None:
            if not name.startswith("adaptive"):
                break
            if given != operation.shape:
                one = math.prod(operation.shape[2:]) == 1
                raise UnsupportedError(
                    f"a dense form of {type(module).__name__} at {side} × {side}",
                    got="several layers after the pooling" if one
                    else f"a map of {sides(given[2:])}, stretched to {sides(operation.shape[2:])}",
                    allowed="pooling → linear, or a flattened map → linear layers",
                    do=None if one else "give the size at which nothing is stretched: size=…",
                )  # fmt: skip
            user = operation
        elif name == "linear" and len(given) == 2:
            layers.append((operation.args[1], operation.argument(2, "bias")))
        elif name in ACTIVATIONS and len(given) == 2:
            layers.append(ACTIVATIONS[name]())
        elif name in layouts.RESHAPING and len(given) == 4 and len(operation.shape) == 2 and layers:
            user = operation
        else:
            value = None
            break
        value = operation.inputs[0]
    first = next((layer for layer in reversed(layers) if not isinstance(layer, nn.Module)), None)
    shape = tuple(user.args[0].shape) if user is not None else ()
    fits = first is not None and first[0].shape[1] == math.prod(shape[1:])
    if value is None or user is None or not fits or _is_pooled(value, producers):
        raise UnsupportedError(
            f"a dense form of {type(module).__name__}", got=f"a head that ends in {_ending(trace)}",
            allowed="pooling → linear, or a flattened map → linear layers",
        )  # fmt: skip
    named = [point for point, (made, _) in trace.modules.items() if made == value]
    point = min(named, key=lambda p: len(p.name), default=Point(user.name, user.call, "function"))
    return OwnHead("flat", point, shape[2:], layers[::-1])


def _is_pooled(value: Value, producers: Mapping[Value, Operation]) -> bool:
    """Whether a map is the one cell that a global pooling left."""
    units = producers[value].shape[1] if value in producers else 0
    while value in producers and math.prod(producers[value].shape) == units:
        operation = producers[value]
        if operation.name.startswith("adaptive") or operation.name in ("mean", "amax"):
            return True
        value = operation.inputs[0]
    return False


def _ending(trace: taps.Trace) -> str:
    return " → ".join(operation.name for operation in trace.operations[-3:])
