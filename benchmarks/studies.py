"""The studies of docs/papers: small twins of the papers' networks on 50 classes of Tiny-ImageNet, trained, measured, tabled.

    python benchmarks/studies.py prepare DATA WORK      50 of the 200 classes → WORK/train.zip, WORK/val.zip
    python benchmarks/studies.py train WORK [RUN …]     every run that is not done yet, in order; resumes what was stopped
    python benchmarks/studies.py ablate WORK [SEED …]   the variants of alexnet-64 (ZF paper, section 5.1) trained and tabled
    python benchmarks/studies.py measure WORK           what is trained and not measured yet → WORK/measured.jsonl
    python benchmarks/studies.py table FILE.jsonl       the measured figures as a table

Recipes are the package's twins and those of benchmarks/studies/, which shorten them to what two cores can carry.

DATA: the folder with tiny-imagenet-train-1.zip, -2.zip and tiny-imagenet-val.zip. A RUN is RECIPE or RECIPE@SEED; a run trains without the
tuning split (`--split train`) in WORK/seed-N/runs/RECIPE, where the recipes that start from another twin look for it. Thresholds of
boxes are chosen on the tuning split, everything else is read once on the validation pictures.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

CLASSES = 50  # every fourth of the 200 ids in order

HERE = Path(__file__).parent / "studies"  # recipes of these studies, beside those of the package

THRICE = (
    "googlenet-gap-short",
    "googlenet-gmp-short",
)  # from one trunk: seeds differ in the new layers and the order of pictures
ONCE = (
    "alexnet-twin", "alexnet-gap-twin", "alexnet-star-gap-twin", "nin-twin", "zfnet-twin",
    "vgg-a-64", "vgg-d-256-64", "vgg-d-384-64", "vgg-d-jitter-64",
    "vgg-shallow-b-64", "vgg-b-64", "vgg-c-256-64", "vgg-a-lrn-64",
)  # fmt: skip
ABLATION = (
    "alexnet-64", "alexnet-64-without-3-4", "alexnet-64-without-7", "alexnet-64-without-6-7", "alexnet-64-without-3-4-6-7",
    "alexnet-64-fc-2048", "alexnet-64-fc-8192",
)  # fmt: skip
FOR_PROBES, KEPT = ("alexnet-twin", "zfnet-twin"), "1,2,5,10,20,30,40,64"
RUNS = (
    ("googlenet-twin", 0),
    *((name, seed) for seed in range(3) for name in THRICE),
    *((name, 0) for name in ONCE),
)


def prepare(data: Path, work: Path) -> None:
    """Bytes as published: only the choice of pictures is ours."""
    parts = [data / f"tiny-imagenet-train-{i}.zip" for i in (1, 2)]
    ids = sorted({Path(n).parent.name for p in parts for n in zipfile.ZipFile(p).namelist() if "/" in n})
    chosen = set(ids[:: len(ids) // CLASSES])
    work.mkdir(parents=True, exist_ok=True)
    for name, sources in (("train.zip", parts), ("val.zip", [data / "tiny-imagenet-val.zip"])):
        count = 0
        tables: dict[str, list[dict[str, str]]] = {"boxes.csv": [], "classes.csv": []}
        with zipfile.ZipFile(work / name, "w") as target:
            for source in map(zipfile.ZipFile, sources):
                for member in source.namelist():
                    if Path(member).parent.name in chosen:
                        target.writestr(member, source.read(member))
                        count += 1
                for table, rows in tables.items():
                    text = io.StringIO(source.read(table).decode())
                    rows += [row for row in csv.DictReader(text) if row["wnid"] in chosen]
            for table, rows in tables.items():
                lines = io.StringIO()
                writer = csv.DictWriter(lines, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
                target.writestr(table, lines.getvalue())
        print(f"{work / name}: {count} pictures of {len(chosen)} classes")


def train(work: Path, wanted: list[str], workers: str) -> None:
    every = [*RUNS, *((name, seed) for seed in range(10) for name in ABLATION)]
    known = {f"{name}@{seed}": (name, seed) for name, seed in every}
    chosen = [known[w if "@" in w else f"{w}@0"] for w in wanted] or list(RUNS)
    for name, seed in chosen:
        place = work / f"seed-{seed}"
        out = place / "runs" / name
        if (out / "network.safetensors").exists():
            continue
        place.mkdir(parents=True, exist_ok=True)
        own = HERE / f"{name}.toml"
        words = [
            "train",
            str((work / "train.zip").resolve()),
            "--recipe",
            str(own.resolve()) if own.exists() else name,
        ]
        words += ["--seed", str(seed), "--split", "train"]
        words += ["--start", "../seed-0/runs/googlenet-twin/network.safetensors"] if name in THRICE else []
        words += ["--out", f"runs/{name}", *(["--resume"] if out.exists() else []), "--workers", workers]
        words += ["--epochs", "64", "--keep-epochs", KEPT] if name in FOR_PROBES else []
        print(" ".join(["camlucida", *words]), f"   (in {place})", flush=True)
        subprocess.run([sys.executable, "-m", "camlucida", *words], cwd=place, check=True, env=os.environ)


def ablate(work: Path, seeds: list[int], workers: str) -> None:
    """Trains the variants and writes WORK/seed-N/ablation: errors on all training and all validation pictures."""
    for seed in seeds or [0]:
        train(work, [f"{name}@{seed}" for name in ABLATION], workers)
        place, data = (
            work / f"seed-{seed}",
            [str((work / f"{one}.zip").resolve()) for one in ("val", "train")],
        )
        words = [
            "probe",
            "ablation",
            data[0],
            "--runs",
            *(f"runs/{name}" for name in ABLATION),
            "--train",
            data[1],
        ]
        words += ["--out", "ablation", "--overwrite"]
        print(" ".join(["camlucida", *words]), f"   (in {place})", flush=True)
        subprocess.run([sys.executable, "-m", "camlucida", *words], cwd=place, check=True, env=os.environ)


def ways(name: str) -> dict[str, list[str]]:
    """What is measured of a run: name → words of `camlucida evaluate`."""
    found = {"centre crop": ["--protocol", "centre-crop"]}
    has_maps = "gap" in name or "gmp" in name or name.startswith(("googlenet", "nin"))
    if name.startswith("vgg") and not has_maps:
        wide = {"vgg-d-384-64": "101/110/119", "vgg-d-jitter-64": "73/110/146"}.get(name, "64/73/82")
        found |= {
            "dense": ["--protocol", "dense"],
            "dense, three scales": ["--protocol", f"dense:scales={wide}"],
            "multi-crop, three scales": ["--protocol", f"multi-crop:scales={wide}"],
            "both": ["--protocol", f"together:scales={wide}"],
        }
    if name == "vgg-d-jitter-64":
        other = "runs/vgg-d-256-64/network.safetensors"
        found["dense, two nets"] = ["--protocol", f"dense:scales={wide}", "--fuse", other]
    for method in ("cam" if has_maps else "grad-cam", "saliency:blur=4"):
        found[method] = ["--task", "localization", "--method", method, "--views", "1", "--figures", "0"]
    return found


def evaluate(place: Path, data: Path, name: str, words: list[str]) -> dict[str, Any]:
    command = ["evaluate", str(data.resolve()), "--network", f"runs/{name}/network.safetensors", *words, "--json"]  # fmt: skip
    print(" ".join(["camlucida", *command]), f"   (in {place})", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "camlucida", *command], cwd=place, check=True, stdout=subprocess.PIPE
    )
    return json.loads(done.stdout)


def measure(work: Path) -> None:
    file = work / "measured.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    known = {(line["run"], line["seed"], line["way"]) for line in lines}
    for name, seed in RUNS:
        place = work / f"seed-{seed}"
        if not (place / "runs" / name / "network.safetensors").exists():
            continue
        for way, words in ways(name).items():
            if (name, seed, way) in known:
                continue
            line: dict[str, Any] = {"run": name, "seed": seed, "way": way}
            if "localization" in words:
                like = words[words.index("--method") : words.index("--figures")]
                tuned = evaluate(place, work / "train.zip", name, ["--split", "tuning", *like])
                line["threshold"] = tuned["best_on_this_set"]["threshold"]
                words = [*words, "--threshold", str(line["threshold"])]
            found = evaluate(place, work / "val.zip", name, words)
            figures = {
                **found,
                **found.get("figures", {}),
                **found.get("oracle_figures", {}).get("network", {}),
            }
            line |= {key: figures[key] for key in FIGURES if key in figures}
            line["baselines"] = {
                base: {key: own[key] for key in FIGURES if key in own}
                for base, own in found.get("baselines", {}).items()
            }
            with file.open("a") as out:
                out.write(json.dumps(line) + "\n")


FIGURES = {
    "top1": "top-1",
    "top5": "top-5",
    "gt_known": "ground-truth-known",
    "top1_localization": "Top-1 Loc",
    "max_box_accuracy_v2": "MaxBoxAccV2 (oracle)",
    "pointing_game": "pointing game",
}


def table(file: Path) -> None:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    print("| run | seed | way | " + " | ".join(FIGURES.values()) + " |")
    print("|---" * (3 + len(FIGURES)) + "|")
    for line in lines:
        way = line["way"] + (f", threshold {line['threshold']:g}" if "threshold" in line else "")
        cells = [
            f"{line[key]['percent']:.1f} ({line[key]['interval'][0]:.1f} … {line[key]['interval'][1]:.1f})"
            if key in line
            else ""
            for key in FIGURES
        ]
        print("| " + " | ".join([line["run"], str(line["seed"]), way, *cells]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    for step in ("prepare", "train", "ablate", "measure", "table"):
        one = steps.add_parser(step)
        if step == "prepare":
            one.add_argument("data", type=Path)
        one.add_argument("work", type=Path)
        if step == "train":
            one.add_argument("runs", nargs="*")
        if step == "ablate":
            one.add_argument("seeds", nargs="*", type=int)
        if step in ("train", "ablate"):
            one.add_argument("--workers", default="2")
    given = parser.parse_args()
    if given.step == "prepare":
        prepare(given.data, given.work)
    elif given.step == "train":
        train(given.work, given.runs, given.workers)
    elif given.step == "ablate":
        ablate(given.work, given.seeds, given.workers)
    elif given.step == "measure":
        measure(given.work)
    else:
        table(given.work)


if __name__ == "__main__":
    main()
