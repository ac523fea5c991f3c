"""Inputs that vanish, share their names, are no files, hold several frames or too many pixels: each is accounted for."""

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile

import pyarrow.parquet as parquet
import pytest
from PIL import Image

import camlucida as cl
from camlucida import pipeline
from camlucida.cli import main
from camlucida.errors import InputError, UsageError
from camlucida.images import sources
from camlucida.images.sources import expand
from pictures import colours, encoded


def localize(small, inputs, out, *more):
    return main(["localize", *map(str, inputs), "--network", small, "--top", "2", "--out", str(out), *more])


def rows(out):
    return [r for f in sorted(out.glob("localizations/*.parquet")) for r in parquet.read_table(f).to_pylist()]


def rejected(out):
    with (out / "rejected.csv").open(encoding="utf-8") as stream:
        return {row["path"]: row["reason"] for row in csv.DictReader(stream)}


def put(file, seed=0, kind="PNG", **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encoded(colours(40, 50, seed), kind, **options))
    return file


def test_what_vanishes_while_running_is_rejected_and_the_rest_goes_on(small, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    files = [put(photos / f"{i}.png", i) for i in range(5)]
    archive = tmp_path / "more.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(files[0], "inside.png")
    look, begun = pipeline.look, []

    def vanishing(*arguments, **options):
        begun.append(1)
        if len(begun) == 2:
            files[3].unlink()
            archive.unlink()
        return look(*arguments, **options)

    monkeypatch.setattr(pipeline, "look", vanishing)
    assert localize(small, [photos, archive], tmp_path / "out", "--part", "2") == 3
    assert len(begun) == 3
    gone = "cannot read: No such file or directory"
    assert rejected(tmp_path / "out") == {str(files[3]): gone, f"{archive}/inside.png": gone}
    assert {r["path"] for r in rows(tmp_path / "out")} == {str(files[i]) for i in (0, 1, 2, 4)}


def test_a_large_picture_that_vanishes_before_it_is_drawn(small, tmp_path, monkeypatch):
    file = put(tmp_path / "photos" / "x.png")
    put(tmp_path / "photos" / "y.png")
    monkeypatch.setattr(pipeline, "KEPT_PIXELS", 0)
    mapped = pipeline._map

    def vanishing(*arguments):
        file.unlink(missing_ok=True)
        return mapped(*arguments)

    monkeypatch.setattr(pipeline, "_map", vanishing)
    assert localize(small, [tmp_path / "photos"], tmp_path / "out") == 3
    assert list(rejected(tmp_path / "out")) == [str(file)]
    assert len(rows(tmp_path / "out")) == 2


def test_equal_names_stay_apart(small, tmp_path):
    photos = tmp_path / "photos"
    names = [
        "a/x.png",
        "b/x.png",
        "x.png",
        "X.png",
        "a_x.png",
        "x.PNG",
        "x-2.png",
        "e\u0301.png",
        "\u00e9.png",
    ]
    for seed, name in enumerate(names):
        put(photos / name, seed)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        for seed, name in enumerate(("x.png", "a/x.png")):
            packed.writestr(name, encoded(colours(40, 50, 20 + seed), "PNG"))
    listing = expand([photos, tmp_path / "x.zip"])
    assert localize(small, [photos, tmp_path / "x.zip", photos / "a" / "x.png"], tmp_path / "out") == 0
    found = rows(tmp_path / "out")
    paths = {r["path"] for r in found}
    assert paths == {s.name for s in listing.sources}
    assert len(paths) == len(found) / 2 == 11
    overlays = [p.name for p in (tmp_path / "out" / "overlays").iterdir()]
    assert len({sources._folded(name) for name in overlays}) == len(overlays) == 22
    coco = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert {image["file_name"] for image in coco["images"]} == paths
    boxes = {(r["path"], r["rank"]): [r["x0"], r["y0"], r["x1"] - r["x0"], r["y1"] - r["y0"]] for r in found}
    of = {image["id"]: image["file_name"] for image in coco["images"]}
    assert all(boxes[of[one["image_id"]], one["rank"]] == one["bbox"] for one in coco["annotations"])


def test_names_that_only_differ_in_what_no_table_can_hold(small, tmp_path):
    photos = tmp_path / "photos"
    for seed, name in enumerate((b"\xe9.png", b"\xe8.png")):
        put(photos / os.fsdecode(name), seed)
    assert localize(small, [photos], tmp_path / "out") == 0
    coco = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [image["id"] for image in coco["images"]] == [1, 2]
    assert {one["image_id"] for one in coco["annotations"]} == {1, 2}
    assert len(list((tmp_path / "out" / "overlays").iterdir())) == 4


def test_many_equal_names_are_told_apart_soon():
    names = sources.unique_names([sources.Source(f"{i}", "x.jpg", f"{i}") for i in range(20_000)])
    assert len(set(names)) == 20_000
    assert names[:3] == ["x", "x-2", "x-3"]


def test_a_first_frame_is_said_in_every_table(small, tmp_path, capsys):
    photos, out = tmp_path / "photos", tmp_path / "out"
    frame = [Image.fromarray(colours(40, 50, 9))]
    put(photos / "moves.gif", 1, "GIF", save_all=True, append_images=frame)
    put(photos / "still.png", 2)
    assert localize(small, [photos], out, "--csv") == 0
    shown = capsys.readouterr().out
    assert "first of several frames)" in shown
    status = {r["path"].rsplit("/", 1)[-1]: r["status"] for r in rows(out) if r["rank"] == 1}
    assert status["moves.gif"].endswith("; first of several frames")
    assert status["still.png"] == status["moves.gif"].partition(";")[0]
    with (out / "localizations.csv").open() as stream:
        assert [r["status"] for r in csv.DictReader(stream)] == [r["status"] for r in rows(out)]
    assert (out / "report.html").read_text().count("first of several frames") == 1
    assert not any(
        ";" in word for word in json.loads((out / "manifest.json").read_text())["counts"]["status"]
    )
    (one,) = cl.localize(cl.load(small), str(photos / "moves.gif"), top=1)
    assert one[0].status == status["still.png"]


def test_the_limit_of_pixels_is_an_option(small, tmp_path, capsys):
    photos = tmp_path / "photos"
    put(photos / "CLASS" / "small.png")
    large = photos / "CLASS" / "large.png"
    large.write_bytes(encoded(colours(80, 90), "PNG"))
    assert localize(small, [photos], tmp_path / "out", "--max-pixels", "7199") == 3
    reason = rejected(tmp_path / "out")[str(large)]
    assert "90 × 80 pixels" in reason
    assert "allowed: up to 7199 pixels; raise --max-pixels" in reason
    assert localize(small, [photos], tmp_path / "out", "--overwrite", "--max-pixels", "7200") == 0
    assert localize(small, [photos], tmp_path / "out", "--resume") == 2  # other pictures would be rejected
    assert localize(small, [photos], tmp_path / "none", "--max-pixels", "0") == 2
    assert "--max-pixels" in capsys.readouterr().err


def test_the_limit_of_pixels_in_evaluate(small, tmp_path, capsys):
    for name, seed in (("n0", 1), ("n1", 2), ("n2", 3)):
        put(tmp_path / "data" / name / "x.png", seed)
    (tmp_path / "data" / "n2" / "large.png").write_bytes(encoded(colours(80, 90), "PNG"))
    words = ["evaluate", str(tmp_path / "data"), "--network", small, "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == 4
    assert main([*words, "--max-pixels", "7199"]) == 3
    assert json.loads(capsys.readouterr().out)["pictures"] == 3


def test_evaluate_looks_at_its_folder_before_the_work(small, tmp_path, monkeypatch, capsys):
    put(tmp_path / "data" / "n0" / "x.png")
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(pipeline, "measure", lambda *a, **k: pytest.fail("it went to work"))
    words = ["evaluate", str(tmp_path / "data"), "--network", small, "--out", str(tmp_path / "file")]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "cannot use" in said
    assert said.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_tables_that_cannot_be_printed(small):
    code = "import sys; from camlucida.cli import main; sys.exit(main(['networks', sys.argv[1]]))"
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", code, small], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 1
    assert ended.stderr == "camlucida networks: [Errno 28] No space left on device\n"


class TestPlaces:
    def test_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "x.jpg")
        (source,) = expand([tmp_path]).sources
        with pytest.raises(InputError, match=r"^not a file; got a pipe$"):
            source.read()

    def test_a_file_that_is_too_large_is_not_read(self, tmp_path):
        with (tmp_path / "x.png").open("wb") as stream:
            stream.truncate(2**30 + 1)  # takes no room on the disk
        (source,) = expand([tmp_path]).sources
        with pytest.raises(InputError, match=r"^file of 1073741825 bytes; allowed: up to 1073741824$"):
            source.read()

    def test_a_folder_that_cannot_be_listed_is_rejected(self, tmp_path, monkeypatch):
        put(tmp_path / "open" / "x.png")
        (tmp_path / "closed").mkdir()
        scan = os.scandir

        def closed(path):
            if str(path).endswith("closed"):
                raise PermissionError(13, "Permission denied", str(path))
            return scan(path)

        monkeypatch.setattr(os, "scandir", closed)
        first, second = expand([tmp_path]).sources
        assert second.relative == "open/x.png"
        with pytest.raises(InputError, match="^cannot list this folder: Permission denied$"):
            first.read()

    def test_links_to_folders_elsewhere_are_followed_once(self, tmp_path):
        put(tmp_path / "in" / "a" / "x.png")
        put(tmp_path / "out" / "y.png")
        for link, target in (("a/up", "in"), ("b", "in/a"), ("c", "out"), ("d", "out")):
            (tmp_path / "in" / link).symlink_to(tmp_path / target)
        (tmp_path / "out" / "round").symlink_to(tmp_path / "out")
        (tmp_path / "out" / "all").symlink_to(tmp_path)
        assert [s.relative for s in expand([tmp_path / "in"]).sources] == ["a/x.png", "c/y.png"]

    def test_a_path_that_no_disk_can_hold(self, tmp_path):
        (tmp_path / "m.jsonl").write_text('{"path": "\\ud800.png"}\n')
        (source,) = expand([tmp_path / "m.jsonl"]).sources
        with pytest.raises(InputError, match="^cannot read: UnicodeEncodeError"):
            source.read()
        for line in ('{"path": "a\\u0000.png"}', "[" * 100_000):
            (tmp_path / "m.jsonl").write_text(line)
            with pytest.raises(UsageError):
                expand([tmp_path / "m.jsonl"])


class TestTars:
    def members(self, mode="w", count=3, size=2000):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode=mode) as archive:
            for i in range(count):
                about = tarfile.TarInfo(f"{i}.png")
                about.size = size
                archive.addfile(about, io.BytesIO(bytes(size)))
        return stream.getvalue()

    @pytest.mark.parametrize("damage", ["header", "no end", "cut header"])
    def test_members_behind_a_broken_header_are_not_lost_in_silence(self, tmp_path, damage):
        data = bytearray(self.members())
        step = 512 + 2048
        if damage == "header":
            data[step + 100] ^= 255
        else:
            del data[2 * step + (100 if "cut" in damage else 0) :]
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(UsageError, match=r"cannot open the archive .*broken or cut at byte (2560|5120)"):
            expand([tmp_path / "x.tar"])

    def test_a_tar_that_unpacks_without_end(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sources, "MAX_UNPACKED", 100_000)
        for name, count, size in (("one", 1, 10_000_000), ("many", 60, 100_000)):
            (tmp_path / f"{name}.tar.gz").write_bytes(self.members("w:gz", count, size))
            with pytest.raises(UsageError, match=r"unpacks to \d+ bytes or more; up to \d+ are read"):
                expand([tmp_path / f"{name}.tar.gz"])
        tail = io.BytesIO(self.members() + bytes(20_000_000))
        import gzip

        (tmp_path / "tail.tar.gz").write_bytes(gzip.compress(tail.getvalue()))
        with pytest.raises(UsageError, match="unpacks to"):
            expand([tmp_path / "tail.tar.gz"])
        (tmp_path / "fine.tar.gz").write_bytes(self.members("w:gz"))
        assert len(expand([tmp_path / "fine.tar.gz"]).sources) == 3

    def test_a_name_of_a_gigabyte(self, tmp_path):
        about = tarfile.TarInfo("././@LongLink")
        about.type, about.size = tarfile.GNUTYPE_LONGNAME, 2**30
        (tmp_path / "x.tar").write_bytes(about.tobuf(tarfile.GNU_FORMAT) + bytes(10_000))
        with pytest.raises(UsageError, match="a name of 1073741824 bytes"):
            expand([tmp_path / "x.tar"])


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is read off Linux's /proc")
def test_memory_stays_flat(small):
    """Plain calls, no with block: what one picture took is there for the next."""

    def resident():
        with open("/proc/self/statm") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    net = cl.load(small)
    some = [colours(40, 50, seed) for seed in range(50)]
    taken = []
    for _ in range(10):
        assert sum(1 for _ in cl.localize(net, some, top=2, method="grad-cam")) == 50
        taken.append(resident())
    assert taken[-1] - taken[2] < 8e6  # 350 pictures; their maps in source pixels alone are 5.6 MB
