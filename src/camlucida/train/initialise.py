"""Where a run's weights begin: drawn as a paper says, or copied from a network trained before."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from camlucida.errors import NetworkError, UsageError, nearest
from camlucida.networks import cards
from camlucida.train.optimise import CONVOLUTIONS
from camlucida.train.recipe import Recipe
from camlucida.values import Label

LAYERS = (*CONVOLUTIONS, nn.Linear)


def initialise(module: nn.Module, recipe: Recipe) -> None:
    """Draws the weights of convolutions and linear layers from torch's random state, biases 0: `gaussian` N(0, deviation²);
    `glorot` uniform (VGG paper, section 3.1, note), `he` normal for ReLUs; `own` leaves all as the network made it."""
    if recipe.initialisation == "own":
        return
    for layer in module.modules():
        if isinstance(layer, LAYERS):
            if recipe.initialisation == "gaussian":
                nn.init.normal_(layer.weight, 0, recipe.deviation)
            elif recipe.initialisation == "glorot":
                nn.init.xavier_uniform_(layer.weight)
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def start(module: nn.Module, recipe: Recipe, classes: Sequence[Label]) -> frozenset[str]:
    """Copies the weights of `recipe.start` wherever name and shape fit, into `recipe.start_layers` only if these are
    named; gives the names of the parameters that are fresh (of all without `start`: none).

    Outputs that stand for other classes (by id, where the file says which) are not copied. Raises NetworkError for a file
    that cannot be read, UsageError where nothing fits or a layer is not there.
    """
    if not recipe.start:
        return frozenset()
    found, labels = _weights(Path(recipe.start))
    own = module.state_dict()
    sources = _sources(own, found, recipe)
    others = bool(labels) and [one.id for one in labels] != [one.id for one in classes]
    heads = _heads(module, len(classes)) if others else ()
    copied = {
        name: found[source].to(own[name].dtype)
        for name, source in sources.items()
        if found[source].shape == own[name].shape and name.rpartition(".")[0] not in heads
    }
    parameters = [name for name, _ in module.named_parameters()]
    fresh = frozenset(name for name in parameters if name not in copied)
    if len(fresh) == len(parameters):
        raise UsageError(
            f"nothing in {recipe.start} fits {recipe.network}",
            got=", ".join(sorted(found)[:3]) + " …",
            allowed=", ".join(sorted(own)[:3]) + " …",
        )
    module.load_state_dict({**own, **copied})
    return fresh


def _sources(own: Collection[str], found: Collection[str], recipe: Recipe) -> dict[str, str]:
    """Name in the module → name in the file, for all that may be copied. A trunk under a head put on it keeps its names
    behind `trunk.`."""
    if not recipe.start_layers:
        pairs = {name: name if name in found else name.removeprefix("trunk.") for name in own}
        return {name: source for name, source in pairs.items() if source in found}
    pairs = {}
    for entry in recipe.start_layers:
        layer, _, source = (word.strip() for word in entry.partition("="))
        source = source or layer
        for what, names, asked in ((recipe.network, own, layer), (recipe.start, found, source)):
            if not any(name.startswith(asked + ".") for name in names):
                known = {name.rpartition(".")[0] for name in names}
                raise UsageError(
                    f"recipe: start_layers: {what} has no layer {asked!r}", do=nearest(asked, known)
                )
        inside = {name: source + name.removeprefix(layer) for name in own if name.startswith(layer + ".")}
        pairs |= {name: other for name, other in inside.items() if other in found}
    return pairs


def _heads(module: nn.Module, classes: int) -> frozenset[str]:
    """Layers that give the classes: linear ones; without any, the last convolution (network in network)."""
    linear = [
        (n, m.out_features)
        for n, m in module.named_modules(remove_duplicate=False)
        if isinstance(m, nn.Linear)
    ]
    last = [(n, m.out_channels) for n, m in module.named_modules() if isinstance(m, CONVOLUTIONS)][-1:]
    return frozenset(name for name, outputs in linear or last if outputs == classes)


def _weights(file: Path) -> tuple[dict[str, Tensor], tuple[Label, ...]]:
    """The weights of a packed network, of a checkpoint of ours (as it would be packed) or in any file with a state
    dict; the labels of a packed one."""
    if not file.exists():
        raise NetworkError(
            f"the recipe starts from {file}", got="No such file",
            do="train that network first, into that folder, or name its file: --start FILE",
        )  # fmt: skip
    card = cards.card_in(file)
    if card is not None:
        return cards.read_weights(file, card), card.labels
    if file.suffix == ".ckpt" and file.is_file():
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # the reader below says what is wrong with it
            state = None
        if isinstance(state, dict) and "module" in state and "recipe" in state:
            return state.get("average") or state["module"], ()
    return cards.read_state_dict(file), ()
