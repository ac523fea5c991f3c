"""The graph of a network up to one unit of a layer inside it, so that its map can be followed under local edits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from camlucida.errors import UnsupportedError
from camlucida.maps.incremental.export import run_node
from camlucida.maps.incremental.graph import LocalGraph, local_graph, sort
from camlucida.networks.network import Network
from camlucida.networks.structure import Layer

SAME = 1e-4  # of the largest value: a node that gives the layer's tensor


def unit_graph(network: Network, pixels: Tensor, layer: Layer, unit: int) -> LocalGraph:
    """The graph for pictures of this shape whose output is what `layer` gives, of its channel `unit` alone: the other
    channels of the layer are computed, but never laid out as whole maps. Call it inside `taps.borrowed`. Raises
    UnsupportedError with the reason."""
    whole = local_graph(network, pixels)
    if layer.name not in whole.layers:
        try:
            whole.layers[layer.name] = _node(network, pixels, layer, whole)
        except RuntimeError as error:
            whole.layers[layer.name] = f"the exported graph does not run: {str(error).splitlines()[0][:150]}"
    found = whole.layers[layer.name]
    if not isinstance(found, fx.Node):
        raise UnsupportedError(
            found or f"no operation of the exported graph gives what layer {layer.name} gives"
        )
    needed, queue = {whole.pixels}, [found]
    while queue:
        node = queue.pop()
        if node not in needed:
            needed.add(node)
            queue += node.all_input_nodes
    graph, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in whole.module.graph.nodes:
        if node in needed:
            copied[node] = graph.node_copy(node, copied.__getitem__)
    node = copied[found]
    axis = layer.channel_axis % len(node.meta["val"].shape)
    one = graph.call_function(torch.ops.aten.slice.Tensor, (node, axis, unit, unit + 1))
    shape = list(node.meta["val"].shape)
    shape[axis] = 1
    one.meta["val"] = torch.empty(shape, device="meta")
    graph.output((one,))
    module: Any = fx.GraphModule(whole.module, graph)
    module._out_spec = pytree.tree_structure(one.meta["val"])
    return sort(module)


def _node(network: Network, pixels: Tensor, layer: Layer, whole: LocalGraph) -> fx.Node | None:
    """The first operation that gives what the layer gives, on a picture of noise: names do not survive the export where an
    operation belongs to no module."""
    noise = torch.randn(pixels[:1].shape, generator=torch.Generator().manual_seed(0))
    wanted = network.run(noise, [layer.point]).tapped[layer.point]
    near = SAME * float(wanted.abs().max())
    values: dict[fx.Node, Any] = dict(whole.constants)
    nodes = list(whole.module.graph.nodes)
    last = {given: node for node in nodes for given in node.all_input_nodes}
    for node in nodes:
        if node is whole.pixels:
            values[node] = network.as_input(noise)
        elif node.op == "call_function" and node not in values:
            values[node] = run_node(node, 1, values)
        else:
            continue
        made = values[node]
        if (
            isinstance(made, Tensor)
            and made.shape == wanted.shape
            and float((made - wanted).abs().max()) <= near
        ):
            return node
        for given in node.all_input_nodes:
            if last[given] is node and given not in whole.constants:
                del values[given]
    return None
