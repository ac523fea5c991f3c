"""What listing a large data set costs: CPU time and memory of `datasets.load` on empty files, per million pictures.

python benchmarks/listing.py --folder /tmp/listing --pictures 200000
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import shutil
import sys
import tarfile
import time
from pathlib import Path

CLASSES = 1000


def class_folders(root: Path, pictures: int) -> Path:
    for c in range(CLASSES):
        (root / f"n{c:08d}").mkdir(parents=True)
        for i in range(pictures // CLASSES):
            os.close(os.open(root / f"n{c:08d}" / f"n{c:08d}_{i}.JPEG", os.O_CREAT))
    return root


def tar_shards(root: Path, pictures: int) -> Path:
    root.mkdir(parents=True)
    for shard in range(0, pictures, 10_000):
        with tarfile.open(root / f"train-{shard // 10_000:06d}.tar", "w") as tar:
            for i in range(shard, min(shard + 10_000, pictures)):
                tar.addfile(tarfile.TarInfo(f"{i:08d}.jpg"))
                label = str(i % CLASSES).encode()
                about = tarfile.TarInfo(f"{i:08d}.cls")
                about.size = len(label)
                tar.addfile(about, io.BytesIO(label))
    return root


def parquet(root: Path, pictures: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir(parents=True)
    image = pa.array([{"bytes": b"", "path": f"{i:08d}.jpg"} for i in range(pictures)])
    table = pa.table({"image": image, "label": [i % CLASSES for i in range(pictures)]})
    pq.write_table(table, root / "train-00000-of-00001.parquet", row_group_size=100)
    return root


def measure(folder: Path, pictures: int) -> None:
    """CPU seconds and growth of resident memory of one reading, in this process."""
    from camlucida.images import datasets

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    before, start = resident(), time.process_time()
    data = datasets.load([folder])
    seconds, kept = time.process_time() - start, resident() - before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert len(data) == pictures
    print(
        f"{folder.name}: {seconds:.2f} s of CPU for {pictures} pictures, {seconds * 1e6 / pictures:.1f} s per million;"
        f" memory kept {kept / pictures:.0f} bytes a picture, at the peak {peak / pictures:.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="a folder that is not there; deleted afterwards"
    )
    parser.add_argument("--pictures", type=int, default=200_000, help="a multiple of 1,000")
    options = parser.parse_args()
    import camlucida.images.datasets  # noqa: F401  (torch is imported before anything is measured)

    if options.folder.exists():
        sys.exit(f"{options.folder} is there; name another folder")
    try:
        for make in (class_folders, tar_shards, parquet):
            made = make(options.folder / make.__name__, options.pictures)
            child = os.fork()  # one process each, so that peaks do not add up
            if child == 0:
                try:
                    measure(made, options.pictures)
                    sys.stdout.flush()
                finally:
                    os._exit(0)  # the folder is the parent's to delete
            os.waitpid(child, 0)
            shutil.rmtree(made)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
