"""Memory of `camlucida localize` over many pictures, in one process: is it flat?
`python benchmarks/memory.py [--pictures 10000] [--network embedded]`. Exit 1 where the last pictures take over 5 %
more than the first 1,000. Linux."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from camlucida import report
from camlucida.cli import main as camlucida

ALLOWED = 0.05


def resident() -> float:
    """MB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def make_zip(file: Path, count: int, seed: int = 0) -> None:
    """Small JPEGs of 64 × 48 and 48 × 64 pixels."""
    rng = np.random.default_rng(seed)
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(count):
            stream = io.BytesIO()
            shape = (48, 64, 3) if i % 2 else (64, 48, 3)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(stream, "JPEG")
            archive.writestr(f"{i:06d}.jpg", stream.getvalue())


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pictures", type=int, default=10_000)
    options.add_argument("--part", type=int, default=100)
    options.add_argument("--every", type=int, default=500)
    options.add_argument("--network", default="embedded")
    given = options.parse_args()
    taken: dict[int, float] = {}
    done, started, part = 0, time.monotonic(), report.ResultFolder.part

    @contextlib.contextmanager
    def watched(self: Any, index: int, names: Any) -> Any:
        with part(self, index, names) as add:

            def counted(one: Any) -> None:
                nonlocal done
                done += 1
                add(one)

            yield counted
        taken[done] = resident()
        if done % given.every == 0:
            print(
                f"{done:7d} pictures  {taken[done]:7.1f} MB  {time.monotonic() - started:7.1f} s",
                file=sys.stderr,
                flush=True,
            )

    report.ResultFolder.part = watched  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as place:
        make_zip(Path(place) / "photos.zip", given.pictures)
        words = ["localize", f"{place}/photos.zip", "--out", f"{place}/out", "--part", str(given.part)]
        with contextlib.redirect_stdout(io.StringIO()):
            code = camlucida([*words, "--network", given.network])
    if code or done != given.pictures:
        raise SystemExit(f"exit code {code} after {done} pictures")
    early = taken[min(n for n in taken if n >= min(1000, given.pictures // 3))]
    late = taken[done]
    print(f"with the tables and the page written: {resident():.1f} MB")
    print(
        f"after the first {min(1000, given.pictures // 3)}: {early:.1f} MB, after {done}: {late:.1f} MB, {100 * (late / early - 1):+.1f} %"
    )
    return int(late > early * (1 + ALLOWED))


if __name__ == "__main__":
    raise SystemExit(main())
