"""Box accuracy: CPU milliseconds a map (224 × 224, 1,000 thresholds, one core), against the loop that the published
evaluation code runs: `python benchmarks/wsol.py --json FILE`.

Every map goes through every way in turn, so that what else the machine does hits all alike; a ratio is taken per
map. Needs `pip install 'camlucida[wsol]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from scipy import ndimage

from camlucida import metrics
from camlucida.boxes import component_tree
from camlucida.evaluate.wsol import box_accuracy

SIDE = 224
THRESHOLDS = np.arange(0, 1, 0.001)
TRUTH = [[40, 50, 170, 190], [10, 20, 90, 120]]
IOUS = (0.3, 0.5, 0.7)


def loop(heat: np.ndarray, components: str) -> np.ndarray:
    """The published code's way: at every threshold cut, find contours, take the boxes of the largest or of all; then the IoU
    with the given boxes, inclusive. Hits `(3, 1000)`."""
    image = np.expand_dims((heat * 255).astype(np.uint8), 2)
    height, width = heat.shape
    found, counts = [], []
    for threshold in THRESHOLDS:
        _, mask = cv2.threshold(image, int(threshold * np.max(image)), 255, cv2.THRESH_BINARY)
        contours = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[-2]
        if components == "largest" and len(contours):
            contours = [max(contours, key=cv2.contourArea)]
        boxes = []
        for contour in contours:
            x, y, w, h = cv2.boundingRect(contour)
            boxes.append([x, y, min(x + w, width - 1), min(y + h, height - 1)])
        found.append(np.asarray(boxes or [[0, 0, 0, 0]]))
        counts.append(max(len(boxes), 1))
    overlap = metrics.box_iou(np.concatenate(found)[:, None], np.array(TRUTH)[None], "inclusive").max(1)
    best = np.maximum.reduceat(overlap, np.cumsum([0, *counts[:-1]]))
    return best >= np.array(IOUS)[:, None]


def maps(each: int) -> dict[str, list[np.ndarray]]:
    """Maps in [0, 1] of several kinds: stretched class maps, smoothed saliency, saliency with grain, noise."""
    generator = np.random.default_rng(0)

    def scaled(heat: np.ndarray) -> np.ndarray:
        return (heat - heat.min()) / (heat.max() - heat.min())

    def stretched(cells: int) -> np.ndarray:
        return ndimage.zoom(
            generator.random((cells, cells)), SIDE / cells, order=1, grid_mode=True, mode="nearest"
        )

    def blurred(sigma: float) -> np.ndarray:
        return ndimage.gaussian_filter(generator.random((SIDE, SIDE)), sigma)

    kinds: dict[str, Callable[[], np.ndarray]] = {
        "class map of 7 × 7": lambda: stretched(7),
        "class map of 14 × 14": lambda: stretched(14),
        "smoothed saliency": lambda: blurred(6),
        "saliency with grain": lambda: scaled(blurred(20)) + 0.3 * scaled(blurred(1.5)),
        "noise": lambda: generator.random((SIDE, SIDE)),
    }
    # Noise takes the loop half a minute: one map of it tells enough.
    return {
        name: [scaled(make()) for _ in range(1 if name == "noise" else each)] for name, make in kinds.items()
    }


def ours(heat: np.ndarray, components: str, convention: str, patience: int) -> np.ndarray:
    component_tree.PATIENCE = patience
    result = box_accuracy([heat], [TRUTH], THRESHOLDS, IOUS, components, convention)  # type: ignore[arg-type]
    return np.array([result.correct[iou] for iou in IOUS])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--maps", type=int, default=5, help="maps of each kind but noise")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    ways: dict[str, Callable[[np.ndarray, str], np.ndarray]] = {
        "loop": loop,
        "half-open, numba": lambda heat, which: ours(heat, which, "half-open", 0),
        "half-open, plain": lambda heat, which: ours(heat, which, "half-open", 10**9),
        "reference": lambda heat, which: ours(heat, which, "reference", 0),
    }
    figures: dict[str, Any] = {
        "machine": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "what": f"CPU ms a map, {SIDE} × {SIDE}, {len(THRESHOLDS)} thresholds, {len(TRUTH)} boxes, {arguments.maps} maps a kind, one of noise",
    }
    kinds = maps(arguments.maps)
    for which in ("largest", "all"):
        seconds: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in kinds} for name in ways}
        for way in ways.values():
            way(kinds["class map of 7 × 7"][0], which)
        for kind, several in kinds.items():
            for heat in several:
                hits = {}
                for name, way in ways.items():
                    began = time.process_time()
                    hits[name] = way(heat, which)
                    seconds[name][kind].append(time.process_time() - began)
                assert np.array_equal(hits["loop"], hits["reference"]), "reference differs from the loop"
                assert np.array_equal(hits["half-open, numba"], hits["half-open, plain"]), "numba differs"
        figures[which] = {}
        for name in ways:
            rows = {}
            for kind in [*kinds, "all kinds"]:
                taken, whole = (
                    np.concatenate([seconds[n][k] for k in (kinds if kind == "all kinds" else [kind])])
                    for n in (name, "loop")
                )
                low, high = metrics.bootstrap_interval(whole / taken, lambda v: float(np.median(v)))
                rows[kind] = {
                    "ms": round(1000 * float(np.median(taken)), 2),
                    "times_faster": round(float(np.median(whole / taken)), 1),
                    "interval": [round(low, 1), round(high, 1)],
                }
                print(f"{which:8} {name:17} {kind:21} {rows[kind]}", flush=True)
            figures[which][name] = rows
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
