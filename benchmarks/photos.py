"""Top-1 and top-5 on photographs whose file name starts with the WordNet id of their class, at their real size:

    python benchmarks/photos.py photos.zip [--network embedded] [--views auto] [--size N]

Pictures of classes that the network does not know are passed over. `--size` tries another shorter side than the card's;
the card's own is chosen by `short_side.py`, never here.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import camlucida as cl
from camlucida.images import sources
from camlucida.metrics import wilson_interval


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos")
    parser.add_argument("--network", default="embedded")
    parser.add_argument("--views", default="auto")
    parser.add_argument("--size", type=int)
    options = parser.parse_args()
    net = cl.load(options.network)
    shape = net.card.preprocessing
    if options.size:
        net = replace(net, card=replace(net.card, preprocessing=replace(shape, size=options.size)))
    known = {label.id for label in net.card.labels}
    pictures = {s.name: Path(s.name).name.split("_")[0] for s in sources.expand([options.photos]).sources}
    seen = [
        found
        for found in cl.localize(net, options.photos, top=5, views=options.views)
        if pictures[found[0].path] in known
    ]
    if not seen:
        raise SystemExit(f"none of {len(pictures)} pictures is of a class that {net.card.name} knows")
    right = [[one.class_id == pictures[one.path] for one in found] for found in seen]
    for name, hits in (("top-1", sum(r[0] for r in right)), ("top-5", sum(any(r) for r in right))):
        low, high = wilson_interval(hits, len(seen))
        print(
            f"{name} {100 * hits / len(seen):.1f} % ({100 * low:.1f} … {100 * high:.1f}), {hits} of {len(seen)} pictures"
        )
    for found, r in zip(seen, right, strict=True):
        if not r[0]:
            print(f"  {found[0].path}: {found[0].class_name.split(',')[0]} ({found[0].probability:.0%})")


if __name__ == "__main__":
    main()
