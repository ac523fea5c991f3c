"""A network's operations as a graph: `torch.export`, layers whole, nothing in place."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, fx

from camlucida.errors import UnsupportedError
from camlucida.networks.network import Network

EXAMPLES = 7  # pictures in the batch that is exported


def export(network: Network, pixels: Tensor) -> fx.GraphModule:
    """The network's operations as a graph, layers whole, none in place. The weights are the module's own. Batches are
    of `EXAMPLES`: where a graph names that number, `sizes` puts another."""
    example = network.as_input(pixels[:1]).repeat(EXAMPLES, 1, 1, 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(network.module, (example,))
            module = program.module()
            if not functional(
                module
            ):  # a view of what is written in place: torch untangles it, in three times as long
                module = whole_norms(program.run_decompositions({}).module())
            return module
    except Exception as error:  # of any kind: it is the reason that is reported
        words = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise UnsupportedError(
            f"torch.export cannot follow the network: {type(error).__name__}: {words[:150]}"
        ) from error


def functional(module: fx.GraphModule) -> bool:
    """Puts `relu` for `relu_`, and so on: whoever reads the tensor later reads the result. False where a view would
    have changed with it; the graph is then of no use."""
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    for node in list(module.graph.nodes):
        name = name_of(node)
        if not name or not node.target._schema.is_mutable:
            continue
        packet, overload = name.removesuffix("_"), node.target._overloadname
        other = getattr(getattr(torch.ops.aten, packet, None), overload, None)
        written = node.args[0] if node.args else None
        if packet == name or other is None or not isinstance(written, fx.Node):
            return False
        if _is_view(written) or any(_is_view(u) and order[u] < order[node] for u in written.users):
            return False
        node.target = other
        for user in list(written.users):
            if order[user] > order[node]:
                user.replace_input_with(written, node)
    return True


def _is_view(node: fx.Node) -> bool:
    """Whether the output may be the input's own memory."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return node.op == "call_function"
    if node.target._schema.is_mutable:
        return False
    views = any(r.alias_info is not None for r in node.target._schema.returns)
    return views or "dropout" in name_of(node)


def sizes(node: fx.Node, count: int) -> tuple[Any, ...]:
    """The arguments of a node, for batches of `count`."""
    if name_of(node) not in ("view", "reshape", "_unsafe_view", "expand"):
        return node.args
    given, shape, *others = node.args
    return (given, [count if i == 0 and n == EXAMPLES else n for i, n in enumerate(shape)], *others)  # type: ignore[arg-type]


def whole_norms(module: fx.GraphModule) -> fx.GraphModule:
    """Batch normalisation in evaluation as one operation with one output."""
    for node in list(module.graph.nodes):
        if name_of(node) == "_native_batch_norm_legit_no_training":
            *tensors, momentum, eps = node.args
            with module.graph.inserting_before(node):
                made = module.graph.call_function(
                    torch.ops.aten.batch_norm.default, (*tensors, False, momentum, eps, False)
                )
            made.meta = {**node.meta, "val": node.meta["val"][0]}
            for part in list(node.users):
                part.replace_all_uses_with(made)
                module.graph.erase_node(part)
            module.graph.erase_node(node)
    return module


def name_of(node: fx.Node) -> str:
    """`conv2d` of `aten.conv2d.default`; empty for what is no operation."""
    return node.target.__name__.split(".")[0] if isinstance(node.target, torch._ops.OpOverload) else ""


def named(node: fx.Node) -> dict[str, Any]:
    """Arguments by the names of the operation's schema, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    found = {a.name: a.default_value for a in node.target._schema.arguments if a.has_default_value()}
    found |= {a.name: v for a, v in zip(node.target._schema.arguments, node.args, strict=False)}
    return found | dict(node.kwargs)


def filled(tree: Any, values: dict[fx.Node, Any]) -> Any:
    """Arguments with the values of the nodes in them."""
    return fx.node.map_arg(tree, lambda n: values[n])


def run_node(node: fx.Node, count: int, values: dict[fx.Node, Any]) -> Any:
    """What a node gives, in a batch of `count`."""
    assert callable(node.target)
    given, by_name = filled((sizes(node, count), node.kwargs), values)
    if name_of(node) == "view":  # maps may lie channels-last where the module's own do not
        return torch.reshape(*given)
    return node.target(*given, **by_name)
