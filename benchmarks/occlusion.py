"""Occlusion maps by what each occluder changes, against Captum's `Occlusion` and against batched full inference, in one
process, rounds interleaved: `python benchmarks/occlusion.py --networks vgg16,resnet18,googlenet`.

Ours is measured over all columns of every `--every`-th row of places, from the upper border to the lower: 1 is the whole map,
more is quicker and a little to our disadvantage (fewer places share a batch). The others cost the same at every place, so a
sample of places is enough. All figures are per place; ratios are of wall time and of processor time. `--exact 12` compares with
full inference instead, at so many places, the four corners among them. Weights are random: they change no time.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torchvision

import camlucida as cl
from camlucida.maps import incremental

BATCHES = (4, 16)  # of full inference: each contender gets its quickest


class Enough(Exception):
    """Captum has worked for as many batches as were asked for."""


def network(name: str) -> torch.nn.Module:
    """A torchvision network, or the embedded one, as it stands there; statistics of batch norms that matter."""
    if name == "embedded":
        return cl.load("embedded").module
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    module = getattr(torchvision.models, name)(weights=None, **options)
    for m in module.modules():
        if isinstance(m, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
        if isinstance(m, torch.nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.7, 1.3)
        if isinstance(getattr(m, "layer_scale", None), torch.nn.Parameter):
            torch.nn.init.constant_(m.layer_scale, 0.3)
    return module.eval()


def taken(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of the processors."""
    wall, work_time = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - work_time


def corners_of(given: argparse.Namespace, every: int) -> torch.Tensor:
    starts = range(0, given.side - given.patch + 1, given.stride)
    return torch.tensor(list(itertools.product(list(starts)[::every], starts)))


def occluded(pixels: torch.Tensor, corners: torch.Tensor, patch: int) -> torch.Tensor:
    copies = pixels.repeat(len(corners), 1, 1, 1)
    for one, (row, column) in zip(copies, corners.tolist(), strict=True):
        one[:, row : row + patch, column : column + patch] = 0
    return copies


def quickest(run: Callable[[int], object]) -> int:
    """The batch size that takes least time per picture."""
    run(BATCHES[0])
    return min(BATCHES, key=lambda batch: taken(lambda: run(batch))[1] / batch)


def speed(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per place and ratios, each the median over the rounds."""
    dtype = getattr(torch, given.dtype)
    module = network(name).to(dtype)
    last = copy.deepcopy(module).to(memory_format=torch.channels_last)
    net, pixels = cl.wrap(module), torch.randn(1, 3, given.side, given.side).to(dtype)
    corners, patch = corners_of(given, given.every), torch.zeros(3, given.patch, given.patch, dtype=dtype)
    first = taken(lambda: incremental.evaluate(net, pixels, corners[:1], patch))

    def full(batch: int, m: torch.nn.Module = module) -> object:
        with torch.inference_mode():
            given_format = torch.channels_last if m is last else torch.contiguous_format
            return m(pixels.repeat(batch, 1, 1, 1).contiguous(memory_format=given_format))

    batch, batch_last = quickest(full), quickest(lambda b: full(b, last))
    tasks: dict[str, tuple[int, Callable[[], object]]] = {
        "ours": (len(corners), lambda: incremental.evaluate(net, pixels, corners, patch)),
        "full, channels-last": (given.sample * batch_last, lambda: [full(batch_last, last) for _ in range(given.sample)]),
        "full": (given.sample * batch, lambda: [full(batch) for _ in range(given.sample)]),
    }  # fmt: skip
    try:
        from captum.attr import Occlusion

        def captum() -> None:
            left = [given.sample]

            def some(x: torch.Tensor) -> torch.Tensor:
                if len(x) == batch:
                    if not left[0]:
                        raise Enough
                    left[0] -= 1
                return module(x)

            window, strides = (3, given.patch, given.patch), (3, given.stride, given.stride)
            with torch.inference_mode(), suppress(Enough):
                Occlusion(some).attribute(
                    pixels, target=1, sliding_window_shapes=window, strides=strides, baselines=0,
                    perturbations_per_eval=batch,
                )  # fmt: skip

        tasks["captum"] = (given.sample * batch + 1, captum)  # and the intact picture, alone
    except ImportError:
        print("  captum is not installed: pip install 'camlucida[peers]'")
    seconds: dict[str, list[tuple[float, float]]] = {task: [] for task in tasks}
    for _ in range(given.rounds):
        for task, (places, work) in tasks.items():
            wall, processor = taken(work)
            seconds[task].append((wall / places, processor / places))
    found: dict[str, Any] = {"places": len(corners), "batch": batch, "batch, channels-last": batch_last}
    found["first call, graph included, s"] = [round(s, 2) for s in first]
    for i, clock in enumerate(("wall", "processor")):
        for task, each in seconds.items():
            found[f"{task}: ms, {clock}"] = round(1000 * statistics.median(s[i] for s in each), 2)
            if task != "ours":
                ratios = [s[i] / o[i] for s, o in zip(each, seconds["ours"], strict=True)]
                found[f"{task} / ours, {clock}"] = [
                    round(v, 2) for v in (statistics.median(ratios), min(ratios), max(ratios))
                ]
    return found


def exact(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """The largest difference to full inference over all logits, as a share of the range of the logits."""
    module = network(name)
    net, pixels = cl.wrap(module), torch.randn(1, 3, given.side, given.side)
    most = given.side - given.patch
    generator = torch.Generator().manual_seed(0)
    anywhere = torch.randint(0, most + 1, (max(0, given.exact - 4), 2), generator=generator)
    corners = torch.cat([torch.tensor([[0, 0], [0, most], [most, 0], [most, most]]), anywhere])
    found = incremental.evaluate(net, pixels, corners, torch.zeros(3, given.patch, given.patch))
    clean = net(pixels)
    wanted = torch.cat([net(x) for x in occluded(pixels, corners, given.patch).split(4)])
    span = float(clean.max() - clean.min())
    return {
        "places": len(corners),
        "difference": f"{float((found - wanted).abs().max()) / span:.1e}",
        "effect": f"{float((wanted - clean).abs().max()) / span:.1e}",
    }


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--networks", default="vgg16,resnet18,googlenet", help="torchvision names, or embedded"
    )
    options.add_argument("--side", type=int, default=224, help="pixels")
    options.add_argument("--patch", type=int, default=16)
    options.add_argument("--stride", type=int, default=4)
    options.add_argument(
        "--every", type=int, default=1, help="of the rows of places, for ours; 1: the whole map"
    )
    options.add_argument(
        "--sample", type=int, default=2, help="batches of Captum and of full inference in a round"
    )
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    options.add_argument("--exact", type=int, default=0, metavar="PLACES", help="compare instead of timing")
    options.add_argument("--json", type=Path, help="write the figures here")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    warnings.filterwarnings("ignore", module="captum")
    results: dict[str, Any] = {}
    for name in given.networks.split(","):
        results[name] = exact(name, given) if given.exact else speed(name, given)
        print(name)
        for key, value in results[name].items():
            print(f"  {key:<34} {value}", flush=True)
    if given.json:
        settings = {k: str(v) for k, v in vars(given).items()} | {"torch": torch.__version__}
        given.json.write_text(
            json.dumps({"settings": settings, "figures": results}, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
