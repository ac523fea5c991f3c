"""Kills `camlucida localize` at random moments and goes on with --resume, until it is done: is the result the one of
a run that nobody killed, byte for byte? `python benchmarks/kill_study.py [--kills 50] [--pictures 500] [--seed 0]`.
Makes its own pictures, broken ones among them. Exit 1 where anything differs."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

LIKELY = (
    0.8  # share of the kills that strike when pictures are looked at; the others strike at any time before
)


def make_pictures(folder: Path, count: int, seed: int = 0) -> None:
    """Small pictures of several formats and shapes in two folders; one in ten is broken."""
    rng = np.random.default_rng(seed)
    suffixes = (".jpg", ".png", ".webp", ".gif")
    for i in range(count):
        file = folder / f"{'ab'[i % 2]}" / f"{i:05d}{suffixes[i % 4]}"
        file.parent.mkdir(parents=True, exist_ok=True)
        shape = ((48, 64), (64, 48), (40, 72))[i % 3]
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(file)
        if i % 10 == 7:
            file.write_bytes(file.read_bytes()[: 100 * (i % 20 == 7)])


def command(photos: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "camlucida", "localize", str(photos), "--out", str(out), "--csv", *more]


def files(out: Path) -> dict[str, bytes]:
    """All that must not depend on whether the run was killed."""
    inside = (p for p in out.rglob("*") if p.is_file() and p.name not in ("manifest.json", "report.html"))
    return {str(p.relative_to(out)): p.read_bytes() for p in inside}


def differences(whole: Path, killed: Path) -> list[str]:
    """Names of files that are in one folder only, or are not equal."""
    a, b = files(whole), files(killed)
    return sorted(name for name in a | b if a.get(name) != b.get(name))


def killed_once(words: list[str], out: Path, wait: float, working: bool) -> bool:
    """Runs the command and kills it after `wait` seconds, counted from its first write to the folder if `working`.
    Whether it was killed before it ended."""
    manifest = out / "manifest.json"
    before = manifest.stat().st_mtime_ns if manifest.exists() else None
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while working and process.poll() is None:
        if manifest.exists() and manifest.stat().st_mtime_ns != before:
            break
        time.sleep(0.002)
    try:
        process.wait(wait)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    _, said = process.communicate()
    if process.returncode not in (0, 3, -signal.SIGKILL):
        raise SystemExit(f"exit code {process.returncode}: {said}")
    return process.returncode == -signal.SIGKILL


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=50)
    options.add_argument("--pictures", type=int, default=500)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--part", type=int, default=5)
    options.add_argument("--network", default="embedded")
    given = options.parse_args()
    rng = np.random.default_rng(given.seed)
    more = ["--network", given.network, "--part", str(given.part), "--resume"]
    with tempfile.TemporaryDirectory() as place:
        photos, whole = Path(place) / "photos", Path(place) / "whole"
        make_pictures(photos, given.pictures, given.seed)
        started = time.monotonic()
        if killed_once(command(photos, whole, *more), whole, 1e6, working=False):
            raise SystemExit("the run to compare with was killed")
        seconds = time.monotonic() - started
        first = whole / "localizations" / "part-00000.parquet"
        begun = first.stat().st_mtime - (time.time() - (time.monotonic() - started))
        work = max(seconds - begun, 0.1)
        print(f"uninterrupted: {seconds:.1f} s, of which {work:.1f} s after the first part", flush=True)
        kills, rounds, wrong = 0, 0, []
        while kills < given.kills:
            out = Path(place) / f"killed-{rounds}"
            rounds, strikes = rounds + 1, 0
            while kills < given.kills:
                working = bool(rng.random() < LIKELY)
                wait = rng.uniform(0, 2 * work / given.kills if working else begun)
                if not killed_once(command(photos, out, *more), out, wait, working):
                    break
                kills, strikes = kills + 1, strikes + 1
            killed_once(command(photos, out, *more), out, 1e6, working=False)
            found = differences(whole, out)
            wrong += found
            shown = f"{len(found)} files differ: {', '.join(found[:5])}" if found else "no file differs"
            print(f"run {rounds}: {strikes} kills, {len(files(out))} files, {shown}", flush=True)
    print(f"{kills} kills over {given.pictures} pictures, seed {given.seed}: {len(wrong)} files differ")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
