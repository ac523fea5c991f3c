"""The names that --network knows, and what is on the card of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Options:
    network: Annotated[str, tyro.conf.Positional] = ""
    """Show the whole card of this network or packed file."""


def run(options: Options, command: Sequence[str]) -> int:
    import json

    from camlucida.networks import cards, catalogue

    if options.network:
        name = catalogue.ALIASES.get(options.network, options.network)
        is_file = name in catalogue.PUBLISHED or name.endswith(".safetensors")
        card = (
            cards.read_card(catalogue.published_file(name) if name in catalogue.PUBLISHED else name)
            if is_file
            else catalogue.load(name, weights=None).card
        )
        print(json.dumps(json.loads(card.to_json()), indent=1, ensure_ascii=False))
        return 0
    for alias, name in catalogue.ALIASES.items():
        print(f"{alias:<24} the newest network in the package: {name}")
    for name in catalogue.PUBLISHED:
        card = cards.read_card(catalogue.published_file(name))
        print(f"{name:<24} {len(card.labels)} classes; {card.trained_on}")
    for name in catalogue.ARCHITECTURES:
        print(f"{name:<24} architecture without published weights")
    print(f"{'torchvision/NAME':<24} torchvision's classifiers")
    print(f"{'timm/NAME':<24} timm's classifiers (pip install 'camlucida[timm]')")
    print(f"{'FILE.safetensors':<24} a network packed with its card")
    print(f"{'package.module:function':<24} your own code: a function that returns a torch module")
    return 0
