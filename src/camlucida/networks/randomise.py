"""The same network with a random head, or other random layers: what its maps score, or whether they change at all, shows
how much is owed to the trunk and to the pictures."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn

from camlucida import taps
from camlucida.errors import LayerError, UnsupportedError
from camlucida.networks.network import Network


def randomised_head(net: Network, seed: int = 0) -> Network:
    """A copy whose head (the last linear or convolutional layer with one output per class that the output hangs on, so no
    auxiliary one) has the entries of its weight and bias shuffled; all other tensors are shared, and the given network
    is left as it is. Raises UnsupportedError where there is no such layer."""
    classes = len(net.card.labels)
    heads = [
        name
        for name, part in net.module.named_modules()
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and (part.weight.shape[0] == classes or not classes)
    ]
    if not heads:
        raise UnsupportedError(
            f"a random head on {net.card.name}", got=f"no linear layer of {classes} outputs"
        )
    if len(heads) == 1:
        return _shuffled(net, heads[0], seed)
    noise = torch.rand(net.blank().shape, generator=torch.Generator().manual_seed(0))
    expected = net(noise)
    for head in reversed(heads):
        made = _shuffled(net, head, seed)
        if not torch.equal(made(noise), expected):
            return made
    raise UnsupportedError(f"a random head on {net.card.name}", got=f"none of {', '.join(heads)} counts")


def _shuffled(net: Network, name: str, seed: int) -> Network:
    tensors = chain(net.module.parameters(), net.module.buffers())
    own = dict(net.module.get_submodule(name).named_parameters(recurse=False))
    if "weight" not in own:
        raise UnsupportedError(f"a random head on {net.card.name}", got=f"{name}, whose weight is computed")
    module = copy.deepcopy(net.module, {id(t): t for t in tensors})
    head = module.get_submodule(name)
    draw = torch.Generator().manual_seed(seed)
    for key, parameter in own.items():
        order = torch.randperm(parameter.numel(), generator=draw).to(parameter.device)
        shuffled = parameter.detach().flatten()[order].reshape(parameter.shape).clone()
        setattr(head, key, nn.Parameter(shuffled, requires_grad=False))
    return Network(module, replace(net.card, measured={}), net.layer, net.precision)


def weighted_layers(net: Network, pixels: Tensor) -> tuple[str, ...]:
    """The modules that hold weights of their own (convolutions, linear layers; no norms, no parameters of the whole module),
    in the order in which they run on `pixels (N, C, *spatial)`; one that no hook sees comes after the one that is
    defined before it. Raises UnsupportedError where there is none."""
    with taps.borrowed(net.module):
        ran = {point.name: i for i, point in reversed([*enumerate(taps.trace(net.module, net.forward, pixels[:1]).modules)])}  # fmt: skip
    found, last = [], -1
    for name, part in net.module.named_modules():
        last = ran.get(name, last)
        if (name or not any(part.children())) and any(p.ndim > 1 for p in part.parameters(recurse=False)):
            found.append((last, name))
    if not found:
        raise UnsupportedError(f"random layers of {net.card.name}", got="no layer with weights of its own")
    return tuple(name for _, name in sorted(found, key=lambda one: one[0]))


def randomised_layers(net: Network, names: Iterable[str], seed: int = 0) -> Network:
    """A copy in which the entries of each parameter of these layers are shuffled, so that their distribution stays; all
    other tensors are shared, and the given network is left as it is. How a layer is shuffled hangs on seed and name
    alone. Raises LayerError for a layer that is not there, UnsupportedError for a module that cannot be copied."""
    names, parts = list(names), dict(net.module.named_modules())
    for name in names:
        if name not in parts:
            raise LayerError(f"layer {name!r} does not exist")
    tensors = chain(net.module.parameters(), net.module.buffers())
    try:
        module = copy.deepcopy(net.module, {id(t): t for t in tensors})
    except Exception as error:  # a module may refuse to be copied in any way
        why = f"a module that cannot be copied ({type(error).__name__}: {error})"
        raise UnsupportedError(f"random layers of {net.card.name}", got=why) from error
    copies = dict(module.named_modules())
    for name in names:
        draw = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
        for key, parameter in parts[name].named_parameters(recurse=False):
            order = torch.randperm(parameter.numel(), generator=draw).to(parameter.device)
            shuffled = parameter.detach().flatten()[order].reshape(parameter.shape).clone()
            setattr(copies[name], key, nn.Parameter(shuffled, requires_grad=False))
    return Network(module, replace(net.card, measured={}), net.layer, net.precision)
