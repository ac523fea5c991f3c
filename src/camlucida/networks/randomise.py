"""The same network with a random head: what its maps score shows how much is owed to the trunk and to the pictures."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import chain

import torch
from torch import nn

from camlucida.errors import UnsupportedError
from camlucida.networks.network import Network


def randomised_head(net: Network, seed: int = 0) -> Network:
    """A copy whose head (the last linear or convolutional layer with one output per class) has the entries of its weight
    and bias shuffled; all other tensors are shared, and the given network is left as it is. Raises UnsupportedError
    where there is no such layer."""
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
    tensors = chain(net.module.parameters(), net.module.buffers())
    if "weight" not in dict(net.module.get_submodule(heads[-1]).named_parameters(recurse=False)):
        raise UnsupportedError(
            f"a random head on {net.card.name}", got=f"{heads[-1]}, whose weight is computed"
        )
    module = copy.deepcopy(net.module, {id(t): t for t in tensors})
    head = module.get_submodule(heads[-1])
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in net.module.get_submodule(heads[-1]).named_parameters(recurse=False):
        order = torch.randperm(parameter.numel(), generator=draw).to(parameter.device)
        shuffled = parameter.detach().flatten()[order].reshape(parameter.shape).clone()
        setattr(head, name, nn.Parameter(shuffled, requires_grad=False))
    return Network(module, replace(net.card, measured={}), net.layer, net.precision)
