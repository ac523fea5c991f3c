"""List a network's spatial layers: which one to look at, how far it sees, whether the class depends on it.

Sizes are those for the picture (--picture) or, without one, for noise of the card's size. The gradient is that of the best
class's logit, its L2 norm over the layer: 0 means that no map of the class can be made there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from camlucida.cli import choices

if TYPE_CHECKING:
    from camlucida.report.layers import Surveyed


@dataclass(frozen=True)
class Options:
    network: choices.Chosen = choices.DEFAULT
    picture: str | None = None
    """A picture to run the network on; the whole of it, as localize shows it."""
    out: str | None = None
    """Folder for layers.html: each layer with its mean |activation| and its Grad-CAM on --picture."""
    find: str | None = None
    """Only layers whose name or kind contains this text."""
    json: bool = False
    """Print JSON lines, one a layer."""
    overwrite: bool = False
    """Replace layers.html if it is there."""


def run(options: Options, command: Sequence[str]) -> int:
    import json
    import shlex
    import sys
    from pathlib import Path

    import torch

    from camlucida.errors import UsageError
    from camlucida.report import layers as report
    from camlucida.values import Batch

    if options.out and not options.picture:
        raise UsageError("--out", got="no --picture", do="name the picture whose layers the page shows")
    file = Path(options.out) / "layers.html" if options.out else None
    if file is not None and file.exists() and not options.overwrite:
        raise UsageError(f"{file} is there already", do="--overwrite replaces it, or name another folder")
    picture = None
    net = choices.network(options.network)
    shape = net.card.preprocessing
    if options.picture:
        from camlucida.images.read import read_picture

        picture = read_picture(options.picture, shape.mean_colour)
        batch = net.preprocess(picture, view="whole")
    else:
        side = max(shape.crop or shape.size, shape.minimum)
        noise = torch.Generator().manual_seed(0)
        drawn = torch.randint(0, 256, (1, len(shape.channels), side, side), generator=noise).to(torch.uint8)
        batch = Batch.of(shape.normalise(drawn).to(net.device))
    surveyed, top = report.survey(net, batch)
    wanted = (options.find or "").lower()
    shown = [one for one in surveyed if wanted in one.layer.name.lower() or wanted in one.kind.lower()]
    if not shown:
        raise UsageError(f"--find {options.find}", got=f"none of {len(surveyed)} layers", do="camlucida layers without it lists all")  # fmt: skip
    if options.json:
        print("\n".join(json.dumps(one.row()) for one in shown))
    else:
        _table(shown)
        asked = f"{net.card.label(top).name} on " + (options.picture or "noise")
        height, width = batch.pixels.shape[2:]
        print(
            f"{len(shown)} of {len(surveyed)} layers at {height} × {width}; gradient of the logit of {asked}"
        )
    if file is not None and picture is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        line = f"{command[0]} {shlex.join(command[1:])}"
        text = report.page(shown, picture, net.card.label(top).name, net.card.name, line)
        temporary = file.with_name(f".{file.name}.tmp")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
        print(str(file.resolve()), file=sys.stderr if options.json else sys.stdout)
    return 0


def _table(shown: Sequence[Surveyed]) -> None:
    from camlucida.report.layers import in_words

    lines = [("layer", "kind", "channels", "size", "stride", "field", "offset", "gradient", "default of")]
    for one in shown:
        layer = one.layer
        lines.append((
            layer.name, one.kind, str(layer.channels), in_words(layer.size, short=False), in_words(layer.stride), in_words(layer.receptive_field),
            in_words(layer.offset), f"{one.gradient:.3g}" if one.gradient else "none", ", ".join(one.default_of),
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:  # names whole, however long: they are there to be copied
        cells = [f"{word:<{w}}" if i in (0, 1, 8) else f"{word:>{w}}" for i, (word, w) in enumerate(zip(line, widths, strict=True))]  # fmt: skip
        print("  ".join(cells).rstrip())
