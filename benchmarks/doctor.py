"""How often `doctor` accuses the healthy embedded network, and how often it names a made-up fault, on photographs.

    python benchmarks/doctor.py PHOTOS [--faults] [--every N] [--together N]

PHOTOS: a folder, archive or picture. One line a picture (or N pictures given `--together`), then the counts. `--faults` puts each of five faults into the network
as well and asks whether it is named first.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from dataclasses import replace

import torch

import camlucida as cl
from camlucida.images import sources


def faults(net: cl.Network) -> dict[str, tuple[cl.Network, str | None, str]]:
    """Name → network, the layer that is asked for, and how the verdict must begin."""

    def card(**changes: object) -> cl.Network:
        shape = replace(net.card.preprocessing, **changes)  # type: ignore[arg-type]
        return replace(net, card=replace(net.card, preprocessing=shape))

    other = cl.load("embedded")
    weight = other.module.classify.weight  # type: ignore[union-attr]
    with torch.no_grad():
        fresh = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1  # type: ignore[arg-type]
        weight.copy_(fresh / math.sqrt(weight.shape[1]))  # type: ignore[operator,union-attr,index]
    mean = "the model: mean, deviation or range look wrong"
    return {
        "no mean and deviation": (card(mean=(0.0,) * 3, std=(1.0,) * 3), None, mean),
        "mean and deviation 0.5": (card(mean=(0.5,) * 3, std=(0.5,) * 3), None, mean),
        "swapped channels": (card(channels="BGR"), None, "the model: the channels look swapped"),
        "wrong layer": (net, "stages.0", "the map: too early a layer"),
        "head of another network": (other, None, "the model: the head does not fit"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--together", type=int, default=1)
    options = parser.parse_args()
    net = cl.load("embedded")
    broken = faults(net) if options.faults else {}
    bad, doubtful, named = Counter[str](), Counter[str](), Counter[str]()
    pictures = sources.expand(options.photos).sources[:: options.every]
    groups = [pictures[i : i + options.together] for i in range(0, len(pictures), options.together)]
    for group in groups:
        found = cl.doctor(net, group)
        words = [f"{one.name} {one.verdict}" for one in found.findings if one.verdict != "good"]
        bad.update({one.name for one in found.findings if one.verdict == "bad"} or {"nothing"})
        doubtful.update(one.name for one in found.findings if one.verdict == "doubtful")
        fit, agreement = found["head"].measured["fit"], found["occlusion"].measured["correlation"]
        same = found["randomised head"].measured["correlation"]
        numbers = f"head {fit:.1f}, occlusion {agreement:.2f}, randomised {same:.2f}"
        for name, (network, layer, begins) in broken.items():
            is_named = cl.doctor(network, group, layer=layer).verdict.startswith(begins)
            named[name] += is_named
            words += [] if is_named else [f"missed: {name}"]
        print(f"{group[0].relative}: {numbers}; {', '.join(words) or 'all good'}", flush=True)
    print(
        f"\n{len(groups)} times {options.together} pictures, healthy network; bad: {dict(bad)}; doubtful: {dict(doubtful)}"
    )
    for name in broken:
        print(f"{name}: named first in {named[name]} of {len(groups)}")


if __name__ == "__main__":
    main()
