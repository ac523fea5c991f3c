"""What keeping the strongest pictures of every unit adds to a bare pass over the data, in one process, rounds interleaved:
`python benchmarks/top_activations.py --network embedded --pictures photos/ [--layers conv1,conv5]`.

A bare pass reads the same pictures with the same threads, prepares them in the same way and runs the whole network on
the same batches. `seconds` is wall time, `cpu` that of all processors, which other work on the machine disturbs less;
`ratio` is the median over the rounds of our time by the bare pass's, with the range of the middle half. By default every layer
of the network is watched; the pass ends at the deepest one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import torch

import camlucida as cl
from camlucida import taps
from camlucida.images import sources
from camlucida.images.read import ahead, read_picture
from camlucida.networks.network import Network
from camlucida.probes.top_activations import PART, top_activations
from camlucida.values import Size


def bare(net: Network, pictures: Sequence[sources.Source], batch: int, workers: int) -> None:
    """Reads, prepares and runs; keeps nothing."""
    shape = net.card.preprocessing

    def read(source: sources.Source) -> torch.Tensor:
        picture = read_picture(source.read(), shape.mean_colour)
        return shape.pixels(picture, shape.view(Size(picture.height, picture.width)))

    def run(some: Sequence[torch.Tensor]) -> None:
        pixels = shape.normalise(torch.stack([*some]).to(net.device))
        with taps.borrowed(net.module):
            net.forward(pixels.contiguous(memory_format=torch.channels_last))
        if net.device.type == "cuda":
            torch.cuda.synchronize()

    with ThreadPoolExecutor(workers) as pool:
        reads = ahead(pool, read, pictures, 2 * workers)
        for _ in range(
            0, len(pictures), PART
        ):  # pictures of one shape share a batch, as in the pass that is measured
            waiting: dict[tuple[int, ...], list[torch.Tensor]] = defaultdict(list)
            for one in islice(reads, PART):
                waiting[one.shape].append(one)
                if len(waiting[one.shape]) == batch:
                    run(waiting.pop(one.shape))
            for rest in waiting.values():
                run(rest)


def taken(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of the processors."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def figures(values: Sequence[float]) -> str:
    """Median, and the range of the middle half."""
    ordered = sorted(values)
    quarter = len(ordered) // 4
    return f"{statistics.median(ordered):.3f} ({ordered[quarter]:.3f} … {ordered[-1 - quarter]:.3f})"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--network", default="embedded")
    options.add_argument("--random", action="store_true", help="random weights: they change no time")
    options.add_argument("--pictures", nargs="+", required=True)
    options.add_argument("--limit", type=int, help="of the pictures so many")
    options.add_argument("--layers", help="commas between; all where nothing is said")
    options.add_argument("--k", type=int, default=9)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--device", default="cpu")
    given = options.parse_args()
    net = cl.load(
        given.network, device=given.device, **({"weights": None, "num_classes": 1000} if given.random else {})
    )
    pictures = sources.expand(given.pictures).sources[: given.limit]
    names = given.layers.split(",") if given.layers else []
    layers = [net.find_layer(name, net.blank()) for name in names] or net.layers()
    tasks = {
        "bare": partial(bare, net, pictures, given.batch, given.workers),
        "top": partial(
            top_activations, net, pictures, layers, given.k, batch=given.batch, workers=given.workers
        ),
    }
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
    for turn in range(given.rounds + 1):
        for name, task in tasks.items():
            one = taken(task)
            if turn:  # the first warms up
                rounds[name].append(one)
    units = sum(layer.channels for layer in layers)
    print(
        f"{net.card.name}, {len(pictures)} pictures, {len(layers)} layers, {units} units, k = {given.k}, batch {given.batch}, {net.device}"
    )
    for i, kind in enumerate(("seconds", "cpu")):
        ratios = [top[i] / base[i] for base, top in zip(rounds["bare"], rounds["top"], strict=True)]
        medians = {name: round(statistics.median(one[i] for one in each), 3) for name, each in rounds.items()}
        print(f"{kind:8} ratio {figures(ratios)}   {json.dumps(medians)}")


if __name__ == "__main__":
    main()
