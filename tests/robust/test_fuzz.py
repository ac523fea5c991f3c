"""Broken files of every format, seeded: each is a picture or a reason, soon, and nobody shouts on stderr."""

import io
import json
import resource
import struct
import warnings
import zlib

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from camlucida.cli import main
from camlucida.errors import InputError
from camlucida.images.read import SEVERAL, SUFFIXES, read_picture
from pictures import colours, encoded, smooth
from robust import helpers  # noqa: F401  (knows the way to the benchmarks)

import fuzz  # isort: skip

FILES = list(fuzz.broken(200, seed=1))


def test_the_files_are_of_every_kind_and_broken_in_every_way():
    assert {file.kind for file in FILES} == set(fuzz.sound())
    assert {file.how for file in FILES} == set(fuzz.HOW)
    assert [file.data for file in fuzz.broken(200, seed=1)] == [file.data for file in FILES]
    assert sum(file.data != fuzz.sound()[file.kind][1] for file in FILES) > 150


@pytest.mark.parametrize("kind", fuzz.sound())
def test_the_sound_files_are_read(kind, tmp_path):
    suffix, data = fuzz.sound()[kind]
    what, _ = fuzz.judged(fuzz.File(kind, "not", suffix, data), tmp_path)
    assert what == (
        "cannot read: No such file or directory" if suffix in (".csv", ".jsonl", ".parquet") else "read"
    )


def test_each_is_a_picture_or_a_reason(tmp_path, capfd):
    outcomes = []
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        for file in FILES:
            what, seconds = fuzz.judged(file, tmp_path)
            assert seconds < fuzz.SECONDS, (file.kind, file.how)
            outcomes.append(what)
    assert [str(one.message) for one in leaked] == []
    assert capfd.readouterr().err == ""
    assert 20 < outcomes.count("read") < 100


@pytest.mark.parametrize("kind", [k for k, (suffix, _) in fuzz.sound().items() if suffix in SUFFIXES])
def test_a_cut_picture_is_refused_or_whole(kind):
    data = fuzz.sound()[kind][1]
    whole = read_picture(data).tobytes()
    for part in np.linspace(0.1, 0.99, 12):
        try:
            assert read_picture(data[: int(len(data) * part)]).tobytes() == whole
        except InputError:
            continue


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_whose_scan_ends_early_is_refused(options, mode):
    """The decoder would paint the rest grey and call it a picture."""
    data = encoded(
        Image.fromarray(colours(90, 120) // 2 + smooth(90, 120) // 2).convert(mode), "JPEG", **options
    )
    assert read_picture(data).size == (120, 90)
    for part in (0.5, 0.8, 0.95):
        for ending in (b"\xff\xd9", b"\xff\xc4\x00\x02\xff\xd9"):
            with pytest.raises(InputError, match="^broken picture: "):
                read_picture(data[: int(len(data) * part)] + ending)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_is_grey_itself_is_read(mode):
    for level in (127, 128):
        for options in ({}, {"progressive": True}):
            grey = Image.new(mode, (61, 45), (level,) * len(mode) if mode != "L" else level)
            assert read_picture(encoded(grey, "JPEG", quality=95, **options)).size == (61, 45)


def test_a_png_with_a_wrong_checksum_is_refused():
    rows = b"".join(b"\0" + row.tobytes() for row in colours(45, 61))

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 61, 45, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows, 0))
    sound = b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")
    np.testing.assert_array_equal(np.asarray(read_picture(sound)), colours(45, 61))
    at = sound.index(pixels) + len(pixels) - 1
    with pytest.raises(InputError, match="^broken picture: wrong checksum of its pixels$"):
        read_picture(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])


def test_a_limit_above_pillows_own_is_kept_and_its_own_left_alone(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in ("PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG"):
        data = encoded(Image.fromarray(smooth()), kind)
        assert read_picture(data, max_pixels=45 * 61).size == (61, 45)
        with pytest.raises(InputError, match="allowed: up to 2744 pixels; raise --max-pixels"):
            read_picture(data, max_pixels=45 * 61 - 1)
    assert Image.MAX_IMAGE_PIXELS == 100


@pytest.mark.parametrize(
    ("kind", "several"),
    [(k, "animated" in k or "pages" in k) for k, (s, _) in fuzz.sound().items() if s in SUFFIXES],
)
def test_a_first_frame_is_marked(kind, several):
    assert (SEVERAL in read_picture(fuzz.sound()[kind][1]).info) == several


def test_broken_files_through_a_whole_run(small, tmp_path, capsys):
    rng = np.random.default_rng(2)
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    given = [file for file in fuzz.broken(80, seed=3) if file.suffix in SUFFIXES][:20]
    for i, file in enumerate(given):
        (photos / f"{i:02d}{file.suffix}").write_bytes(file.data)
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(photos / "sound.png")
    assert main(["localize", str(photos), "--network", small, "--top", "1", "--out", str(out)]) == 3
    paths = parquet.read_table(out / "localizations")["path"].to_pylist()
    rejected = [line.split(",")[0] for line in (out / "rejected.csv").read_text().splitlines()[1:]]
    assert sorted(paths + rejected) == sorted(map(str, photos.iterdir()))
    assert str(photos / "sound.png") in paths
    assert capsys.readouterr().err.count("\n") == 1  # the line that counts them
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert (counts["pictures"], counts["rejected"]) == (len(paths), len(rejected))


def test_metadata_that_warns_is_read_in_silence(capfd):
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x0112, 3, 10**6, 10**6)
    data = encoded(Image.fromarray(smooth()), "JPEG")
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(data)).getexif()
        alone = len(leaked)
        assert alone  # Pillow alone does warn
        assert read_picture(data).size == (61, 45)
    assert len(leaked) == alone
    stream = io.BytesIO()
    Image.fromarray(smooth()).save(stream, "TIFF", compression="tiff_adobe_deflate")
    with pytest.raises(InputError):
        read_picture(stream.getvalue().replace(b"\x78\x9c", b"\x00\x00", 1))
    assert capfd.readouterr().err == ""


def test_a_gif_that_clears_a_huge_frame_takes_no_memory():
    """Pillow makes room for the cleared frame as soon as it opens the file."""
    data = bytearray(fuzz.sound()["GIF animated"][1])
    at = data.index(b"\x21\xf9\x04")
    data[at + 3] = 2 << 2  # cleared after it was shown
    frame = data.index(b"\x2c", at + 8)
    data[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="^decompression bomb: far too many pixels in .*raise --max-pixels"):
        read_picture(bytes(data))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB; 4 GB it would be
