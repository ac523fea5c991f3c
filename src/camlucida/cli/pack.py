"""Pack one's own network: weights and the card that says how to use them, in one safetensors file.

camlucida pack mine.safetensors --arch torchvision/resnet18 --weights mine.pth --labels names.txt

camlucida localize photos/ --network mine.safetensors --out seen/

With --network instead of --arch, a network that is ready is packed again, its card changed. The file is written only
after the network in it, loaded anew, gave the same logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import tyro

from camlucida.cli import choices

if TYPE_CHECKING:
    import torch

    from camlucida.networks.network import Network


@dataclass(frozen=True)
class Options:
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT.safetensors")]
    """The file to write."""
    network: choices.Chosen = choices.DEFAULT
    name: str | None = None
    """What the network is called; by default as the file, or as before."""
    licence: str | None = None
    """Licence of the weights."""
    terms: str | None = None
    """Other terms of use, of the data for example."""
    trained_on: str | None = None
    """The data it was trained on."""
    half: bool = False
    """Keep the weights as 16-bit numbers: half the size, logits rounded."""
    overwrite: bool = False
    """Replace the file if it is there."""
    json: bool = False
    """Print the card as JSON."""


def run(options: Options, command: Sequence[str]) -> int:
    import os
    import sys
    from pathlib import Path

    import torch

    from camlucida.cli import networks
    from camlucida.errors import NetworkError, UsageError
    from camlucida.networks import cards, catalogue

    asked, out = options.network, Path(options.out)
    if out.suffix != ".safetensors":
        raise UsageError(f"pack {out}", allowed="a file name that ends with .safetensors")
    if asked.network is None and asked.arch is None:
        raise UsageError(
            "pack needs a network",
            do="--arch NAME --weights FILE for your own, or --network NAME to pack again",
        )
    if asked.precision != "32-true":
        raise UsageError(f"--precision {asked.precision}", do="--half packs 16-bit weights")
    if out.exists() and not options.overwrite:
        raise UsageError(f"{out} is there already", do="--overwrite replaces it, or name another file")
    net = choices.network(
        replace(asked, device="cpu")
    )  # where the file is read back, so that logits can be equal
    given = {n: getattr(options, n) for n in ("name", "licence", "terms", "trained_on")}
    changes = {n: value for n, value in given.items() if value is not None}
    if asked.arch:
        changes = {"name": out.stem, **changes}
    card = replace(net.card, **changes)
    before = _logits(net)
    if options.half:
        with torch.no_grad():
            for tensor in net.module.state_dict().values():
                if tensor.is_floating_point():
                    tensor.copy_(tensor.half())
        card = replace(card, measured={})
    expected = _logits(net)
    for logits, why in ((before, "the weights are broken"), (expected, "they are too large for --half")):
        if not bool(logits.isfinite().all()):
            raise NetworkError(f"{card.name} gives logits that are not numbers on a picture of noise", do=why)
    temporary = out.with_name(f".{out.stem}.{os.getpid()}.safetensors")
    try:
        card = cards.pack(
            temporary, net.module.state_dict(), card, dtype=torch.float16 if options.half else None
        )
        module, read = catalogue.rebuild(temporary, cards.read_card(temporary))
        found = _logits(catalogue.wrap(module, card=read))
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-4, atol=1e-6):
            raise NetworkError(
                f"{card.name} cannot be packed: loaded anew it gives other logits",
                got=f"they differ by up to {float((found - expected).abs().max()):.3g}" if found.shape == expected.shape else f"{tuple(found.shape)}",
                do="its function must build the same network every time",
            )  # fmt: skip
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    if options.json:
        print(card.to_json())
    else:
        networks.show(card)
        print(f"checked on a picture of noise: loaded anew, all {found.shape[1]} logits are equal")
        if options.half:
            print(f"16-bit weights moved them by up to {float((expected - before).abs().max()):.2g}")
        if ":" in card.architecture:
            print(
                f"{card.architecture.partition(':')[0]} must be importable wherever the file is used: PYTHONPATH=FOLDER camlucida …"
            )
    print(f"{out}  {out.stat().st_size / 1e6:.1f} MB", file=sys.stderr if options.json else sys.stdout)
    return 0


def _logits(net: Network) -> torch.Tensor:
    """Logits of one picture of noise, always the same, of the shape that the card crops to."""
    import torch

    shape = net.card.preprocessing
    side = max(shape.crop or shape.size, shape.minimum)
    noise = torch.randint(
        0, 256, (1, len(shape.channels), side, side), generator=torch.Generator().manual_seed(0)
    )
    return net(shape.normalise(noise.to(torch.uint8))).cpu()
