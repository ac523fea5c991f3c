"""What a dense evaluation costs against 50 crops: processor time of both on the same pictures, in one process, rounds
interleaved. `python benchmarks/classify.py [--network vgg-d] [--scale 256 384] [--json FILE]`

The network has random weights (the time does not depend on them), the pictures are noise of 375 × 500 pixels as most of
ILSVRC's; resizing counts, making the dense form, once a run, does not. Beside the measured ratio, that of the pixels
which the two show the network.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import camlucida as cl
from camlucida.evaluate.classify import Dense, MultiCrop, Protocol, classify
from camlucida.values import Size

SIZE = Size(375, 500)


def seconds(net: cl.Network, how: Protocol, pictures: list[Image.Image], batch: int) -> float:
    """Processor time of one pass over the pictures, all threads; wall-clock time on a GPU."""
    gpu = net.device.type == "cuda"
    clock = time.perf_counter if gpu else time.process_time
    began = clock()
    for _ in classify(net, how, pictures, batch=batch):
        pass  # every posterior has come back to the CPU
    return clock() - began


def pixels(how: Protocol, net: cl.Network) -> float:
    """Pixels that a protocol shows the network of one picture."""
    views = [look.view.size for look in how.looks(SIZE, net.card.preprocessing)]
    return float(sum(one.height * one.width for one in views))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--network", default="vgg-d")
    options.add_argument("--width", type=float, default=1.0)
    options.add_argument("--scale", type=int, nargs="+", default=[256, 384])
    options.add_argument("--pictures", type=int, default=2)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--batch", type=int, default=16)
    options.add_argument("--device", default="cpu")
    options.add_argument("--json")
    given = options.parse_args()
    torch.manual_seed(0)
    net = cl.load(given.network, weights=None, width=given.width, device=given.device)
    rng = np.random.default_rng(0)
    shape = (SIZE.height, SIZE.width, 3)
    pictures = [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(given.pictures)]
    clock = "wall-clock" if net.device.type == "cuda" else "processor"
    rows = []
    for scale in given.scale:
        ways: dict[str, Protocol] = {"dense": Dense((scale,)), "crops": MultiCrop((scale,))}
        each: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(given.rounds + 1):
            for name, how in ways.items():
                once = seconds(net, how, [], given.batch)  # the dense form is made once a run
                spent = seconds(net, how, pictures, given.batch) - once
                if turn:  # the first round warms up
                    each[name].append(spent)
        ratios = [c / d for c, d in zip(each["crops"], each["dense"], strict=True)]
        row = {
            "network": given.network, "width": given.width, "scale": scale, "ratio": statistics.median(ratios), "ratios": ratios,
            "pixels": pixels(ways["crops"], net) / pixels(ways["dense"], net),
            **{f"{name}_seconds_a_picture": statistics.median(spent) / given.pictures for name, spent in each.items()},
        }  # fmt: skip
        rows.append(row)
        print(
            f"{given.network}, width {given.width:g}, Q {scale}: 50 crops cost {row['ratio']:.1f} × dense and its mirror image"
            f" ({min(ratios):.1f} … {max(ratios):.1f}, {given.rounds} rounds); pixels {row['pixels']:.1f} ×;"
            f" {clock} time a picture {row['crops_seconds_a_picture']:.2f} s and {row['dense_seconds_a_picture']:.2f} s",
            flush=True,
        )
    if given.json:
        Path(given.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
