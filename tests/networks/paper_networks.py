"""The papers' networks for tests: without memory for counting, small with weights for computing."""

import torch

import camlucida as cl
from camlucida.networks import catalogue

NAMES = [name for name in catalogue.ARCHITECTURES if name != "lucida"]


def unfilled(name, **arguments):
    """The network at full size without any memory for its weights."""
    with torch.device("meta"):
        return catalogue.build(name, arguments).eval()


def parameters(name, **arguments):
    return sum(p.numel() for p in unfilled(name, **arguments).parameters())


def last_map(name, **arguments):
    """Shape of the map before the head, at the network's own input."""
    module = unfilled(name, **arguments)
    side = module.preprocessing.crop
    with torch.device("meta"):
        return tuple(module.features(torch.zeros(1, 3, side, side)).shape[1:])


def small(name, seed=0, **arguments):
    torch.manual_seed(seed)
    return cl.load(name, weights=None, num_classes=5, width=0.1, arguments=arguments)


def fields(net, pixels=None):
    """Receptive field and stride of each layer, by name."""
    return {one.name: (one.receptive_field[0], one.stride[0]) for one in net.layers(pixels)}


def incomplete(net, pixels):
    """Largest difference between mean of the map + bias and the logit, as a share of the largest logit; and the maps."""
    maps = cl.CAM()(net, pixels, cl.ClassTarget.all())
    bias = net.structure(pixels).head.bias
    again = maps.values.mean((2, 3)) + (0 if bias is None else bias.detach())
    return ((again - maps.scores).abs().max() / maps.scores.abs().max()).item(), maps
