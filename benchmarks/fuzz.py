"""Broken files by the thousand: each must end as a picture or as a reason, soon, and without a word on stderr.
`python benchmarks/fuzz.py [--files 2000] [--seed 0] [--only NUMBER]`. Exit 1 if one does not."""

from __future__ import annotations

import argparse
import faulthandler
import functools
import gzip
import io
import json
import lzma
import os
import re
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from camlucida.errors import InputError, UsageError
from camlucida.images import sources
from camlucida.images.read import MAX_PIXELS, read_picture

SECONDS = 10.0  # of processor time that one file may take
CHUNK = 100  # files that one process reads


@dataclass(frozen=True)
class File:
    """A broken file: `kind` of the sound one, `how` it was broken."""

    kind: str
    how: str
    suffix: str
    data: bytes


def _encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


@functools.cache
def sound() -> dict[str, tuple[str, bytes]]:
    """Small files of every format → suffix and bytes; of pictures, archives and manifests."""
    y, x = np.mgrid[:45, :61]
    noise = np.random.default_rng(0).integers(0, 60, (45, 61, 3))
    rgb = Image.fromarray((np.stack([x * 3, y * 4, x + y], -1) + noise).astype(np.uint8))
    other, grey, palette = rgb.transpose(Image.Transpose.ROTATE_180), rgb.convert("L"), rgb.quantize(32)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    alpha = rgb.convert("RGBA")
    alpha.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "turned"
    pages = {"save_all": True, "append_images": [other]}
    files = {
        "JPEG": (".jpg", _encoded(rgb, "JPEG", quality=85)),
        "JPEG progressive": (".jpg", _encoded(rgb, "JPEG", progressive=True)),
        "JPEG grey, turned": (".jpeg", _encoded(grey, "JPEG", exif=exif.tobytes())),
        "JPEG ink": (".jpg", _encoded(rgb.convert("CMYK"), "JPEG")),
        "PNG": (".png", _encoded(rgb, "PNG")),
        "PNG palette": (".png", _encoded(palette, "PNG", transparency=bytes(range(0, 256, 8)))),
        "PNG deep": (".png", _encoded(deep, "PNG")),
        "PNG animated": (".png", _encoded(alpha, "PNG", **pages)),
        "WebP": (".webp", _encoded(rgb, "WEBP", exif=exif.tobytes())),
        "WebP lossless": (".webp", _encoded(alpha, "WEBP", lossless=True)),
        "WebP animated": (".webp", _encoded(rgb, "WEBP", **pages)),
        "TIFF": (".tif", _encoded(rgb, "TIFF")),
        "TIFF LZW": (".tiff", _encoded(alpha, "TIFF", compression="tiff_lzw")),
        "TIFF deflate": (".tif", _encoded(deep, "TIFF", compression="tiff_adobe_deflate")),
        "TIFF JPEG": (".tif", _encoded(rgb, "TIFF", compression="jpeg")),
        "TIFF pages": (".tif", _encoded(rgb, "TIFF", compression="packbits", **pages)),
        "BMP": (".bmp", _encoded(rgb, "BMP")),
        "BMP palette": (".bmp", _encoded(palette, "BMP")),
        "GIF": (".gif", _encoded(palette, "GIF")),
        "GIF animated": (".gif", _encoded(palette, "GIF", duration=40, **pages)),
    }
    return files | _archives(files) | _manifests()


def _archives(files: dict[str, tuple[str, bytes]]) -> dict[str, tuple[str, bytes]]:
    members = [(f"{i}/{kind}{suffix}", data) for i, (kind, (suffix, data)) in enumerate(files.items())][::4]
    packed, archived = io.BytesIO(), {}
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    plain = stream.getvalue()
    archived["tar"] = (".tar", plain)
    archived["tar.gz"] = (".tar.gz", gzip.compress(plain, mtime=0))  # the same bytes in every run
    archived["tar.xz"] = (".tar.xz", lzma.compress(plain))
    return {"zip": (".zip", packed.getvalue()), **archived}


def _manifests() -> dict[str, tuple[str, bytes]]:
    import pyarrow as pa
    import pyarrow.parquet

    rows = [
        {"path": f"{i}.png", "label": "cat", "x0": 1.0, "y0": 2.0, "x1": 30.0, "y1": 40.0} for i in range(9)
    ]
    table = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(rows), table)
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    return {
        "CSV": (".csv", "\n".join(lines).encode()),
        "JSON lines": (".jsonl", "\n".join(map(json.dumps, rows)).encode()),
        "Parquet": (".parquet", table.getvalue()),
    }


HOW = ("bytes", "bits", "cut", "gap", "repeat", "splice", "zeros", "header", "huge", "suffix", "empty")


def broken(count: int, seed: int) -> Iterator[File]:
    """`count` files, every kind broken in every way in turn, by a seeded generator."""
    files, rng = sound(), np.random.default_rng(seed)
    kinds = list(files)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        how = HOW[int(rng.integers(len(HOW) - 1)) if number % 97 else len(HOW) - 1]
        suffix, data = files[kind]
        other = files[kinds[int(rng.integers(len(kinds)))]]
        yield File(kind, how, other[0] if how == "suffix" else suffix, mutated(data, how, other[1], rng))


def mutated(data: bytes, how: str, other: bytes, rng: np.random.Generator) -> bytes:
    a, b = sorted(int(i) for i in rng.integers(0, len(data) + 1, 2))
    some = rng.integers(0, min(len(data), 64) if how == "header" else len(data), int(rng.integers(1, 12)))
    changed = bytearray(data)
    if how in ("bytes", "header"):
        for i in some:
            changed[i] = int(rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))]))
    elif how == "bits":
        for i in some:
            changed[i] ^= 1 << int(rng.integers(8))
    elif how == "cut":
        del changed[b:]
    elif how == "gap":
        del changed[a:b]
    elif how == "repeat":
        changed[b:b] = changed[a:b]
    elif how == "splice":
        changed[a:b] = other[: len(other) // 2] if rng.integers(2) else other[len(other) // 2 :]
    elif how == "zeros":
        changed[a:b] = bytes(b - a)
    elif how == "huge":
        return huge(data, rng)
    elif how == "empty":
        return b""
    return bytes(changed)


def huge(data: bytes, rng: np.random.Generator) -> bytes:
    """The same with sides from large to absurd written into its header."""
    width, height = (int(rng.choice([3000, 9000, 30000, 65535, 2**31 - 1])) for _ in range(2))
    changed = bytearray(data)
    if data.startswith(b"\x89PNG"):
        changed[16:24] = struct.pack(">II", width, height)
        changed[29:33] = struct.pack(">I", zlib.crc32(changed[12:29]))
    elif data.startswith(b"GIF8"):
        changed[6:10] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    elif data.startswith(b"BM"):
        changed[18:26] = struct.pack("<ii", width, height)
    elif data.startswith(b"II*\0"):
        directory = struct.unpack_from("<I", data, 4)[0]
        for i in range(struct.unpack_from("<H", data, directory)[0]):
            at = directory + 2 + 12 * i
            tag = struct.unpack_from("<H", data, at)[0]
            if tag in (256, 257):  # width and height, as longs
                changed[at + 2 : at + 12] = struct.pack("<HII", 4, 1, (width, height)[tag - 256])
    elif data.startswith(b"\xff\xd8"):
        at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
        changed[at + 5 : at + 9] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    elif data.startswith(b"RIFF"):
        changed[24:30] = struct.pack("<I", width)[:3] + struct.pack("<I", height)[:3]
    return bytes(changed)


def judged(file: File, folder: Path) -> tuple[str, float]:
    """What became of a file, `read` or its reason, and the processor seconds it took. Anything but InputError,
    UsageError and an upright RGB picture raises."""
    started = time.process_time()
    path = folder / f"file{file.suffix}"
    path.write_bytes(file.data)
    try:
        found = sources.expand([path]).sources
        reasons = []
        for source in found:
            try:
                picture = read_picture(source.read())
                assert picture.mode == "RGB", picture.mode
                assert 0 < picture.width * picture.height <= MAX_PIXELS
                picture.tobytes()
            except InputError as error:
                reasons.append(str(error))
        what = reasons[0] if reasons else "read"
    except UsageError as error:
        what, reasons = str(error), [str(error)]
    for reason in reasons:
        assert reason, "no reason"
        assert "\n" not in reason, reason
    return what, time.process_time() - started


def _chunk(files: list[tuple[int, File]]) -> Iterator[dict]:
    """Judges files in a process of their own, whose death and whose words on stderr are findings."""
    reading, writing = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        noise = Path(folder) / "stderr"
        child = os.fork()
        if not child:
            os.dup2(os.open(noise, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 2)
            faulthandler.enable()
            with os.fdopen(writing, "w", buffering=1) as stream:
                for number, file in files:
                    print(json.dumps({"begun": number}), file=stream)
                    os.ftruncate(2, 0)
                    faulthandler.dump_traceback_later(60 * SECONDS, exit=True)
                    try:
                        what, seconds = judged(file, Path(folder))
                        found = {"what": what, "seconds": seconds}
                    except BaseException as error:
                        found = {"failed": f"{type(error).__name__}: {error}"}
                    faulthandler.cancel_dump_traceback_later()
                    sys.stderr.flush()
                    said = noise.read_text(errors="replace").strip("\0\n ")
                    if said:
                        found["failed"] = found.get("failed", "") + f" said on stderr: {said}"
                    if found.get("seconds", 0) > SECONDS:
                        found["failed"] = f"{found['seconds']:.1f} s"
                    print(json.dumps({"number": number, **found}), file=stream)
            os._exit(0)
        os.close(writing)
        begun = None
        with os.fdopen(reading) as stream:
            for line in stream:
                found = json.loads(line)
                if "begun" in found:
                    begun = found["begun"]
                else:
                    begun = None
                    yield found
        _, status = os.waitpid(child, 0)
        if status or begun is not None:
            yield {
                "number": begun,
                "failed": f"the process ended with status {status}: {noise.read_text()[-300:]}",
            }


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--files", type=int, default=2000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--only", type=int, help="judge this file alone, here, and show what it raises")
    given = options.parse_args()
    if given.only is not None:
        file = list(broken(given.only + 1, given.seed))[-1]
        with tempfile.TemporaryDirectory() as folder:
            print(f"{file.kind}, {file.how}, {len(file.data)} bytes, as {file.suffix}")
            print(*judged(file, Path(folder)))
        return 0
    files = list(enumerate(broken(given.files, given.seed)))
    outcomes: Counter[str] = Counter()
    slowest, failures, judged_files = 0.0, [], 0
    for start in range(0, len(files), CHUNK):
        for found in _chunk(files[start : start + CHUNK]):
            judged_files += 1
            if "failed" in found:
                failures.append(found)
                continue
            slowest = max(slowest, found["seconds"])
            what = found["what"]
            outcomes["read" if what == "read" else re.split("[:;,]| /", what)[0]] += 1
    for what, count in outcomes.most_common():
        print(f"{count:6d}  {what}")
    print(
        f"{judged_files} of {len(files)} files accounted for, slowest {slowest:.2f} s, {len(failures)} failures"
    )
    for found in failures:
        file = files[found["number"]][1] if found["number"] is not None else None
        print(
            f"number {found['number']} ({file and file.kind}, {file and file.how}): {found['failed'][:300]}"
        )
    return int(bool(failures) or judged_files != len(files))


if __name__ == "__main__":
    raise SystemExit(main())
