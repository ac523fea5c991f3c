"""What one map of each method costs, in forward passes: pictures that went through the network, and processor time over that
of one bare forward pass. `python benchmarks/prices.py [--network embedded] [--markdown]`, every method as it comes;
`--methods grad-cam,rise:masks=1000` for some, with options."""

from __future__ import annotations

import argparse
import re
import statistics
import time
import warnings
from typing import Any

import torch

import camlucida as cl
from camlucida import maps
from camlucida.errors import CamlucidaError


def seconds(work: Any) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def price(method: Any, net: cl.Network, pixels: torch.Tensor, rounds: int) -> tuple[float, float]:
    """Pictures through the network, and processor time in bare forward passes, rounds interleaved; for one picture and
    class."""
    entered: list[int] = []
    target = cl.ClassTarget(0)
    counted = net.module.register_forward_pre_hook(
        lambda module, given, named: entered.append(len(given[0] if given else next(iter(named.values())))),
        with_kwargs=True,
    )
    try:
        method(net, pixels, target)  # the first one also reads how the network is made
        entered.clear()
        method(net, pixels, target)
    finally:
        counted.remove()

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(10):
                net.module(pixels)

    ratios = [10 * seconds(lambda: method(net, pixels, target)) / seconds(bare) for _ in range(rounds)]
    return sum(entered), statistics.median(ratios)


def rows(given: argparse.Namespace) -> list[tuple[str, str, str]]:
    net = cl.load(given.network, weights=None if given.random else "default")
    card = net.card.preprocessing
    side = given.side or card.crop or card.size
    pixels = torch.randn(1, len(card.channels), side, side, generator=torch.Generator().manual_seed(0))
    weights = sum(p.numel() for p in net.module.parameters())
    print(
        f"{net.card.name}, {weights / 1e6:.1f} million weights, {side} × {side} pixels, one picture, one class"
    )
    found = []
    specs = re.split(r",(?![^,:]*=)", given.methods) if given.methods else list(maps.METHODS)
    for spec in specs:
        try:
            passes, share = price(maps.method(spec), net, pixels, given.rounds)
        except CamlucidaError as error:
            found.append((spec, "–", f"refused: {error}"))
            continue
        found.append((spec, f"{passes:,.0f}", f"{share:,.1f}"))
        print(f"  {spec:<32} {found[-1][1]:>8} {found[-1][2]:>10}", flush=True)
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--network", default="embedded")
    options.add_argument("--random", action="store_true", help="random weights, which cost the same")
    options.add_argument("--side", type=int, help="pixels a side; the card's unless told")
    options.add_argument("--methods", help="with commas between; all of them unless told")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--markdown", action="store_true", help="print the table for a page, too")
    given = options.parse_args()
    warnings.filterwarnings("ignore", "Ablation-CAM divides")
    found = rows(given)
    if given.markdown:
        print("\n| method | pictures through the network | time, in bare forward passes |\n|---|---:|---:|")
        print("\n".join(f"| `{spec}` | {passes} | {share} |" for spec, passes, share in found))


if __name__ == "__main__":
    main()
