"""The names that --network and --arch know, and what is on the card of each.

camlucida networks: all; networks torchvision | timm: that library's; networks NAME or FILE.safetensors: its card in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from camlucida.networks.cards import Card


@dataclass(frozen=True)
class Options:
    network: Annotated[str, tyro.conf.Positional] = ""
    """A network or packed file, whose card is shown; or torchvision, timm: its classifiers."""
    json: bool = False
    """Print JSON: the whole card, or the names."""


def run(options: Options, command: Sequence[str]) -> int:
    import json

    from camlucida.networks import adapt, cards, catalogue

    libraries = {"torchvision": adapt.torchvision_names, "timm": adapt.timm_names}
    if options.network in libraries:
        names = [f"{options.network}/{name}" for name in libraries[options.network]()]
        print(json.dumps(names) if options.json else "\n".join(names))
        return 0
    if options.network:
        name = catalogue.ALIASES.get(options.network, options.network)
        is_file = name in catalogue.PUBLISHED or name.endswith(".safetensors")
        card = (
            cards.read_card(catalogue.published_file(name) if name in catalogue.PUBLISHED else name)
            if is_file
            else catalogue.load(name, weights=None).card
        )
        if options.json:
            print(json.dumps(json.loads(card.to_json()), indent=1, ensure_ascii=False))
        else:
            show(card)
        return 0
    published = {name: cards.read_card(catalogue.published_file(name)) for name in catalogue.PUBLISHED}
    if options.json:
        packed = {
            name: {"classes": len(card.labels), "trained_on": card.trained_on}
            for name, card in published.items()
        }
        print(json.dumps({"aliases": catalogue.ALIASES, "published": packed, "architectures": [*catalogue.ARCHITECTURES]}))  # fmt: skip
        return 0
    rows = [
        (alias, f"the newest network in the package: {name}") for alias, name in catalogue.ALIASES.items()
    ]
    rows += [(name, f"{len(card.labels)} classes; {card.trained_on}") for name, card in published.items()]
    rows += [
        (name, "architecture: --arch, with --weights FILE of your own") for name in catalogue.ARCHITECTURES
    ]
    rows += [
        ("torchvision/NAME", "torchvision's classifiers: camlucida networks torchvision lists them"),
        ("timm/NAME", "timm's classifiers (pip install 'camlucida[timm]'): camlucida networks timm"),
        ("FILE.safetensors", "a network packed with its card: camlucida pack makes one"),
        ("package.module:function", "your own code: a function that returns a torch module"),
    ]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {about}" for name, about in rows))
    return 0


def words(card: Card) -> list[tuple[str, str]]:
    """A card as people read it: pairs of what and how."""
    shape = card.preprocessing
    unit = "0…255" if shape.scale == 255 else f"0…{shape.scale:g}"
    view = f"square of {shape.size}" if shape.resize == "squash" else f"shorter side {shape.size}"
    view += f", crop {shape.crop}" if shape.crop else ""
    view += "" if shape.any_size else f"; takes squares of {shape.crop or shape.size} only"
    labels = ", ".join(label.name.split(",")[0] for label in card.labels[:4])
    tuned = card.localization
    found = [
        ("architecture", " ".join([card.architecture, *(f"{k}={v}" for k, v in card.arguments.items())])),
        ("pictures", f"{view}, {shape.interpolation}"),
        (
            "pixels",
            f"{shape.channels} in {unit}, minus {'a mean picture' if shape.mean_picture else _numbers(shape.mean)}, divided by {_numbers(shape.std)}",
        ),
        (
            "labels",
            f"{len(card.labels)}: {labels}{', …' if len(card.labels) > 4 else ''}"
            if labels
            else "none: classes are called by their numbers",
        ),
        ("probabilities", card.activation),
        ("localizes by", f"map {tuned.method}, boxes {tuned.boxes}, views {tuned.views}"),
        ("chosen on", tuned.chosen_on),
        ("trained by", card.trained_by),
        ("trained on", card.trained_on),
        ("licence", card.licence),
        ("terms", card.terms),
        ("measured", "; ".join(f"{k} {_brief(v)}" for k, v in card.measured.items())),
        ("sha256", card.sha256),
    ]
    return [(what, how) for what, how in found if how]


def show(card: Card) -> None:
    """Prints a card in words."""
    print(card.name)
    for what, how in words(card):
        print(f"  {what:<14} {how}")


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:g}" for v in values) + ")"


def _brief(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
