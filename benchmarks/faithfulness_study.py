"""Which map should be the default: every method on the embedded network by localization, faithfulness, sanity and cost.

    python benchmarks/faithfulness_study.py tuning DATA WORK     the tuning split of the training set: here the default is chosen
    python benchmarks/faithfulness_study.py final DATA WORK      tiny-imagenet-val.zip, read once, with the thresholds of the tuning split
    python benchmarks/faithfulness_study.py table WORK           one table a split, as Markdown

DATA: the folder with tiny-imagenet-train-1.zip, -2.zip and tiny-imagenet-val.zip. Faithfulness is measured on --faithful pictures, in
the quick mode, localization on --boxed; both spread evenly over the split. What is done is not done again; what was stopped goes on.
Methods: all of the catalogue, or --methods, specs separated by spaces. A method's map is made 2 + 4 times a picture (itself, the masked
picture, four random networks); all else costs each picture and method about 85 forward passes
and 18 linear systems, and each picture some 150 forward passes more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from camlucida.maps import METHODS

SPECS = {"occlusion": "occlusion:patch=24,stride=12"}  # as fine as a map of 8 × 8 can say
METRICS = "deletion,insertion,drop,adcc,road,occlusion,cascading"  # one layer at a time says little more, and doubles the maps
FIGURES = {
    "deletion": "deletion ↓", "insertion": "insertion ↑", "average-drop": "average drop ↓", "increase": "increase ↑", "adcc": "ADCC ↑",
    "road": "ROAD ↑", "occlusion": "occlusion ↑", "infidelity": "infidelity ↓", "cascading-spearman": "cascading → 0", "independent-spearman": "independent → 0",
}  # fmt: skip


def pictures(split: str, data: Path) -> list[str]:
    if split == "tuning":
        return [*(str(data / f"tiny-imagenet-train-{i}.zip") for i in (1, 2)), "--split", "tuning"]
    return [str(data / "tiny-imagenet-val.zip")]


def measure(split: str, data: Path, work: Path, methods: list[str], faithful: int, boxed: int, permuted: str, metrics: str) -> None:  # fmt: skip
    place = work / split
    thresholds = {}
    if split == "final":
        for one in methods:
            file = work / "tuning" / "localization" / safe(one) / "localization.json"
            if not file.is_file():
                sys.exit(f"{one} has no threshold yet: run `tuning` first")
            thresholds[one] = json.loads(file.read_text())["curve"]["best_on_these_pictures"]["threshold"]
    out = place / "faithfulness"
    if not (out / "faithfulness.json").is_file():
        metrics += ",labels" if permuted else ""
        more = [
            "--metrics",
            metrics,
            "--sanity-layers",
            "4",
            *(["--permuted-network", permuted] if permuted else []),
        ]
        run([*pictures(split, data), "--task", "faithfulness", "--method", ",".join(methods), "--step", "1792", "--limit", str(faithful), "--resume", *more, "--out", str(out)])  # fmt: skip
    for one in methods:
        out = place / "localization" / safe(one)
        if not (out / "localization.json").is_file():
            at = ["--threshold", str(thresholds[one])] if thresholds else []
            run([*pictures(split, data), "--task", "localization", "--method", one, "--boxes", "fraction-of-max", "--views", "1", *at, "--limit", str(boxed), "--figures", "0", "--out", str(out)])  # fmt: skip


def safe(spec: str) -> str:
    return spec.replace(":", "-").replace(",", "-").replace("=", "-")


def run(words: list[str]) -> None:
    """A method that the network cannot have leaves no figures, and the study goes on."""
    command = [sys.executable, "-m", "camlucida", "evaluate", *words]
    print(" ".join(command), flush=True)
    code = subprocess.run(command, env={**os.environ}).returncode
    if code not in (0, 2, 3):
        sys.exit(code)


def table(work: Path) -> None:
    for split in ("tuning", "final"):
        file = work / split / "faithfulness" / "faithfulness.json"
        if file.is_file():
            show(split, json.loads(file.read_text()), work / split / "localization")


def show(split: str, found: dict[str, Any], boxes: Path) -> None:
    names = [key for key in FIGURES if key in found["metrics"]]
    print(f"\n{split}: {found['pictures']} pictures; * not better than a random map\n")
    print("| " + " | ".join(["method", "mean rank", "MaxBoxAccV2 ↑", "GT-known ↑", *(FIGURES[n] for n in names), "cost in forward passes"]) + " |")  # fmt: skip
    print("|---" * (len(names) + 5) + "|")
    for entry in found["ranking"]:
        name = entry["method"]
        file = boxes / safe(name) / "localization.json"
        located = ["–", "–"]
        if file.is_file():
            report = json.loads(file.read_text())
            both = (report["oracle_figures"]["network"]["max_box_accuracy_v2"], report["figures"]["gt_known"])
            located = [f"{one['percent']:.1f} ({one['interval'][0]:.1f} … {one['interval'][1]:.1f})" for one in both]  # fmt: skip
        cells = []
        for key in names:
            one = found["figures"][name][key]
            star = "" if one.get("against_random", "better") == "better" else "*"
            cells.append(f"{one['mean']:.3f}{star} ({one['interval'][0]:.3f} … {one['interval'][1]:.3f})")
        price = found["cost"].get(name)
        print("| " + " | ".join([name, f"{entry['mean_rank']:.2f}", *located, *cells, "–" if price is None else f"{price:.1f}"]) + " |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("tuning", "final", "table"))
    parser.add_argument("folders", nargs="+", type=Path, metavar="DATA WORK")
    parser.add_argument("--methods", default=" ".join(SPECS.get(name, name) for name in METHODS))
    parser.add_argument("--faithful", type=int, default=200, help="pictures whose faithfulness is measured")
    parser.add_argument("--boxed", type=int, default=1000, help="pictures whose boxes are judged")
    parser.add_argument(
        "--permuted", default="", help="the embedded network trained on permuted labels, if there"
    )
    parser.add_argument("--metrics", default=METRICS)
    given = parser.parse_args()
    if len(given.folders) != (1 if given.what == "table" else 2):
        parser.error("DATA and WORK; for table WORK alone")
    if given.what == "table":
        return table(given.folders[0])
    data, work = given.folders
    return measure(
        given.what,
        data,
        work,
        given.methods.split(),
        given.faithful,
        given.boxed,
        given.permuted,
        given.metrics,
    )


if __name__ == "__main__":
    main()
