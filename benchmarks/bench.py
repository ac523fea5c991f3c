"""Speeds as ratios, in one process, repetitions interleaved: `make bench`, or `python benchmarks/bench.py --json FILE`.

Peers are measured where they are installed (`pip install 'camlucida[peers]'`), at their own best settings.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from scipy import ndimage

import camlucida as cl
from camlucida.boxes.component_tree import sweep
from camlucida.values import Size


def interleaved(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each task in each round, after one round to warm up; all tasks run in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(rounds + 1):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratios(seconds: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Median over rounds of task / base, with the range of the middle half."""
    found = {}
    for name, taken in seconds.items():
        shares = sorted(a / b for a, b in zip(taken, seconds[base], strict=True))
        quarter = len(shares) // 4
        found[name] = {
            "ratio": statistics.median(shares),
            "low": shares[quarter],
            "high": shares[-1 - quarter],
            "milliseconds": 1000 * statistics.median(taken),
        }
    return found


def maps(rounds: int) -> tuple[str, dict[str, dict[str, float]]]:
    """CAM for five classes and Grad-CAM for one, ResNet-50, batch 8, 224 × 224, against one bare forward pass."""
    torch.manual_seed(0)
    module = torchvision.models.resnet50(weights=None).eval()
    net, pixels = cl.wrap(module), torch.randn(8, 3, 224, 224)
    classes = [[1, 2, 3, 4, 5]] * 8

    def bare() -> None:
        with torch.inference_mode():
            module(pixels)

    tasks: dict[str, Callable[[], object]] = {
        "bare forward pass": bare,
        "CAM, five classes": lambda: cl.CAM()(net, pixels, cl.ClassTarget(classes)),
        "Grad-CAM, one class": lambda: cl.GradCAM()(net, pixels, cl.ClassTarget(1)),
    }
    try:
        from torchcam.methods import CAM, GradCAM

        def torchcam(kind: type) -> None:
            with kind(module) as extract:
                out = module(pixels)
                extract([1] * 8, out) if kind is GradCAM else extract([1] * 8)

        tasks["torchcam: CAM, one class"] = lambda: torchcam(CAM)
        tasks["torchcam: Grad-CAM, one class"] = lambda: torchcam(GradCAM)
    except ImportError:
        pass
    try:
        from pytorch_grad_cam import GradCAM as Peer
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        def grad_cam() -> None:
            with Peer(model=module, target_layers=[module.layer4]) as peer:
                peer(input_tensor=pixels, targets=[ClassifierOutputTarget(1)] * 8)

        tasks["grad-cam: Grad-CAM, one class"] = grad_cam
    except ImportError:
        pass
    return "bare forward pass", ratios(interleaved(tasks, rounds), "bare forward pass")


def boxes(rounds: int) -> tuple[str, dict[str, dict[str, float]]]:
    """The largest component's box at 1,000 thresholds of a 224 × 224 map, one core."""
    torch.manual_seed(0)
    coarse = torch.randn(1, 1, 14, 14)
    heat = torch.nn.functional.interpolate(coarse, (224, 224), mode="bilinear")[0, 0].numpy()
    thresholds, size = np.arange(1000) / 1000, Size(224, 224)

    def loop() -> None:
        for threshold in thresholds:
            labels, count = ndimage.label(heat > threshold * heat.max(), np.ones((3, 3)))
            if count:
                sizes = np.bincount(labels.ravel())
                ndimage.find_objects((labels == sizes[1:].argmax() + 1).astype(np.int8))

    tasks = {"loop over thresholds": loop, "one tree": lambda: sweep(heat, size, thresholds)}
    return "loop over thresholds", ratios(interleaved(tasks, max(1, rounds // 3)), "loop over thresholds")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--json", type=Path, help="write the figures here")
    given = options.parse_args()
    results = {}
    for study in (maps, boxes):
        base, found = study(given.rounds)
        results[study.__name__] = {"base": base, "about": study.__doc__, "figures": found}
        print(f"\n{study.__doc__}\n")
        for name, one in found.items():
            print(
                f"  {name:<32} {one['ratio']:8.3f} ×  ({one['low']:.3f} … {one['high']:.3f})  {one['milliseconds']:9.2f} ms"
            )
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
