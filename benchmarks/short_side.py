"""At which shorter side the embedded network knows full-size photographs best: top-1 on Caltech-101's training pictures of
the classes it shares with the vocabulary. `python benchmarks/short_side.py caltech101.zip/train [--network FILE]`"""

from __future__ import annotations

import argparse
from dataclasses import replace

import camlucida as cl
from camlucida import pipeline
from camlucida.images import datasets
from camlucida.values import Label

SHARED = {
    "barrel": "n02795169",
    "binocular": "n02841315",
    "cannon": "n02950826",
    "cougar_body": "n02125311",
    "cougar_face": "n02125311",
    "dragonfly": "n02268443",
    "elephant": "n02504458",
    "lobster": "n01983481",
    "pizza": "n07873807",
    "scorpion": "n01770393",
    "trilobite": "n01768244",
    "umbrella": "n04507155",
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("data", nargs="+")
    options.add_argument("--network", default="embedded")
    options.add_argument("--sizes", type=int, nargs="+", default=[64, 72, 80, 88, 96, 112, 128])
    options.add_argument("--views", default="1")
    given = options.parse_args()
    found = datasets.load(given.data)
    labels = tuple(Label(SHARED.get(label.id, label.id), label.name) for label in found.labels)
    kept = tuple(e for e in found.examples if found.labels[e.label].id in SHARED)
    net = cl.load(given.network)
    data = replace(found, labels=labels, examples=kept).relabelled(net.card.labels)
    print(f"{len(data)} pictures of {len(SHARED)} folders")
    for size in given.sizes:
        shown = replace(net, card=replace(net.card, preprocessing=replace(net.card.preprocessing, size=size)))
        *_, measured = pipeline.measure(pipeline.plan(shown, top=1, views=given.views), data)
        report = measured.report()
        low, high = report["top1"]["interval"]
        print(
            f"shorter side {size:4d}: top-1 {report['top1']['percent']:5.1f} % ({low:.1f} … {high:.1f}), top-5 {report['top5']['percent']:5.1f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
