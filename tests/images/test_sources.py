"""Files, folders, globs, archives and manifests → one ordered list; nothing climbs out of an archive."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from camlucida.errors import InputError, UsageError
from camlucida.images import sources
from camlucida.images.read import decode
from camlucida.images.sources import Source, expand, is_archive, unique_names
from pictures import colours, encoded, smooth


def picture(seed: int) -> bytes:
    return encoded(colours(9, 13, seed), "PNG")


def relative(listing) -> list[str]:
    return [source.relative for source in listing.sources]


def read_all(listing) -> list[int]:
    """Which picture each source is, by its seed."""
    known = {picture(seed): seed for seed in range(9)}
    return [known[source.read()] for source in listing.sources]


@pytest.fixture
def folder(tmp_path):
    """b.png, B/a.JPG, B/deep/c.webp and three files that are no pictures."""
    for seed, name in enumerate(["b.png", "B/a.JPG", "B/deep/c.webp"]):
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(seed))
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    (tmp_path / "in" / "B" / "._a.JPG").write_bytes(b"what macOS leaves behind")
    (tmp_path / "in" / "B" / "list.csv").write_text("path\n")
    return tmp_path / "in"


def make_zip(file, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return file


def make_tar(file, members: dict[str, bytes], mode: str = "w"):
    with tarfile.open(file, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


MEMBERS = {
    "z.png": picture(0),
    "a/y.png": picture(1),
    "a/x.png": picture(2),
    "ab/w.png": picture(3),
    "read.me": b"x",
}


class TestPlaces:
    def test_a_folder_is_searched_to_its_bottom_in_order(self, folder):
        listing = expand([folder])
        assert relative(listing) == ["B/a.JPG", "B/deep/c.webp", "b.png"]
        assert read_all(listing) == [1, 2, 0]
        assert listing.others == 3
        assert [s.name for s in listing.sources] == [str(folder / r) for r in relative(listing)]

    def test_an_empty_folder(self, tmp_path):
        assert expand([tmp_path]) == sources.Listing(())

    def test_a_named_file_is_taken_whatever_its_suffix(self, folder):
        assert relative(expand([folder / "notes.txt"])) == ["notes.txt"]

    def test_globs(self, folder):
        assert relative(expand([str(folder / "B" / "*.JPG")])) == ["a.JPG"]
        assert relative(expand([str(folder / "**" / "*.webp")])) == ["c.webp"]
        found = expand([str(folder / "[Bb]*")])  # a folder and a picture
        assert relative(found) == ["a.JPG", "deep/c.webp", "b.png"]
        assert found.others == 2

    def test_a_name_with_the_signs_of_a_glob(self, tmp_path):
        (tmp_path / "a[1].png").write_bytes(picture(4))
        (tmp_path / "a1.png").write_bytes(picture(5))
        assert read_all(expand([tmp_path / "a[1].png"])) == [4]

    def test_the_order_is_that_of_the_inputs_and_nothing_comes_twice(self, folder, monkeypatch):
        monkeypatch.chdir(folder)
        listing = expand(["b.png", folder, folder / "b.png", "B/../b.png", "*.png"])
        assert read_all(listing) == [0, 1, 2]

    @pytest.mark.parametrize("missing", ["none.png", "none/", "*.nothing", "in.zip/a", "b.png/a"])
    def test_what_is_not_there(self, folder, missing):
        with pytest.raises(
            UsageError, match=r"no such picture, folder, archive or manifest: .*check the path"
        ):
            expand([folder, f"{folder}/{missing}"])

    def test_a_picture_that_vanished(self, folder):
        listing = expand([folder])
        (folder / "b.png").unlink()
        with pytest.raises(InputError, match=r"^cannot read: No such file or directory$"):
            listing.sources[2].read()


class TestManifests:
    def check(self, file):
        listing = expand([file])
        assert relative(listing) == ["b.png", "B/a.JPG"]
        assert read_all(listing) == [0, 1]

    def test_csv(self, folder):
        (folder / "m.csv").write_text(
            "path,label,x0,y0,x1,y1\nb.png,cat,1,1,3,4\nB/a.JPG,dog,,,,\nb.png,cat,5,5,6,7\n"
        )
        self.check(folder / "m.csv")

    def test_json_lines(self, folder):
        lines = [{"path": "b.png"}, {"path": "B/a.JPG", "labels": ["x", "y"]}]
        (folder / "m.jsonl").write_text("\n".join(map(json.dumps, lines)))
        self.check(folder / "m.jsonl")

    def test_parquet(self, folder):
        import pyarrow as pa
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.table({"path": ["b.png", "B/a.JPG"]}), folder / "m.parquet")
        self.check(folder / "m.parquet")

    def test_paths_are_below_the_manifest_or_absolute(self, folder, tmp_path):
        (tmp_path / "m.csv").write_text(f"path\nin/b.png\n{folder / 'B' / 'a.JPG'}\n")
        assert read_all(expand([tmp_path / "m.csv", folder / "b.png"])) == [0, 1]

    def test_a_picture_that_is_listed_but_missing_is_told_when_read(self, folder):
        (folder / "m.csv").write_text("path\nnone.png\nb.png\n")
        first, second = expand([folder / "m.csv"]).sources
        with pytest.raises(InputError, match="cannot read"):
            first.read()
        assert second.read() == picture(0)


class TestArchives:
    @pytest.mark.parametrize("name", ["x.zip", "x.tar", "X.ZIP"])
    def test_sorted_and_read(self, tmp_path, name):
        file = (make_tar if name.endswith("tar") else make_zip)(tmp_path / name, MEMBERS)
        listing = expand([file])
        assert relative(listing) == ["a/x.png", "a/y.png", "ab/w.png", "z.png"]
        assert read_all(listing) == [2, 1, 3, 0]
        assert listing.others == 1
        assert listing.sources[0].name == f"{file}/a/x.png"

    @pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
    def test_compressed_tars_keep_their_own_order(self, tmp_path, mode):
        file = make_tar(tmp_path / f"x.tar.{mode}", MEMBERS, f"w:{mode}")
        assert read_all(expand([file])) == [0, 1, 2, 3]
        assert read_all(expand([make_tar(tmp_path / "y.tgz", MEMBERS, "w:gz")])) == [0, 1, 2, 3]

    @pytest.mark.parametrize("name", ["x.zip", "x.tar"])
    def test_below_a_folder_inside(self, tmp_path, name):
        file = (make_tar if name.endswith("tar") else make_zip)(tmp_path / name, MEMBERS)
        assert read_all(expand([f"{file}/a"])) == [2, 1]  # and not ab/
        assert read_all(expand([f"{file}/a/"])) == [2, 1]
        assert read_all(expand([f"{file}/a/y.png"])) == [1]
        with pytest.raises(UsageError, match="no such picture"):
            expand([f"{file}/b"])

    def test_a_tar_of_the_current_folder(self, tmp_path):
        file = make_tar(
            tmp_path / "x.tar", {"./a/x.png": picture(1), "./z.png": picture(2), "./boxes.csv": b"path\n"}
        )
        assert relative(expand([file])) == ["a/x.png", "z.png"]
        assert read_all(expand([f"{file}/a"])) == [1]
        assert sources.read_text(file, "boxes.csv") == "path\n"

    def test_folders_links_and_leftovers_are_no_pictures(self, tmp_path):
        members = {"a.png": picture(1), "__MACOSX/a.png": b"", "d/._b.png": b"", "folder.png/": b""}
        assert relative(expand([make_zip(tmp_path / "x.zip", members)])) == ["a.png"]
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            link = tarfile.TarInfo("link.png")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(link)
        assert expand([tmp_path / "x.tar"]).sources == ()

    @pytest.mark.parametrize(
        "name",
        [
            "../x.png",
            "a/../../x.png",
            "/x.png",
            "\\x.png",
            "..\\x.png",
            "a\\..\\x.png",
            "C:\\x.png",
            "c:x.png",
        ],
    )
    @pytest.mark.parametrize("kind", ["zip", "tar"])
    def test_a_path_that_climbs_out_is_not_read(self, tmp_path, name, kind):
        members = {name: picture(1), "good.png": picture(2)}
        file = (make_tar if kind == "tar" else make_zip)(tmp_path / f"x.{kind}", members)
        bad = next(s for s in expand([file]).sources if s.relative != "good.png")
        with pytest.raises(InputError, match="unsafe archive path .* climbs out"):
            bad.read()
        assert [s.read() for s in expand([file]).sources if s.relative == "good.png"] == [picture(2)]

    def test_dots_in_names_do_not_climb(self, tmp_path):
        file = make_zip(tmp_path / "x.zip", {"a..b/..c.png": picture(1), "d...png": picture(2)})
        assert read_all(expand([file])) == [1, 2]

    @pytest.mark.parametrize(
        "compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_STORED]
    )
    def test_a_broken_member_of_a_zip_is_refused_alone(self, tmp_path, compression):
        big = encoded(colours(60, 80, 1), "BMP")
        file = make_zip(
            tmp_path / "x.zip", {"a.png": picture(0), "b.bmp": big, "c.png": picture(2)}, compression
        )
        with zipfile.ZipFile(file) as archive:
            info = archive.getinfo("b.bmp")
        data = bytearray(file.read_bytes())
        middle = info.header_offset + 30 + len("b.bmp") + info.compress_size // 2
        data[middle : middle + 50] = bytes(b ^ 255 for b in data[middle : middle + 50])
        file.write_bytes(data)
        first, broken, last = expand([file]).sources
        assert (first.read(), last.read()) == (picture(0), picture(2))
        with pytest.raises(InputError, match=r"^(broken archive member|cannot read): ."):
            broken.read()

    def test_an_encrypted_member(self, tmp_path):
        file = make_zip(tmp_path / "x.zip", {"a.png": picture(0), "b.png": picture(1)}, zipfile.ZIP_STORED)
        data = bytearray(file.read_bytes())
        data[6] |= 1  # the flag, in the first member's own header
        data[data.index(b"PK\x01\x02") + 8] |= 1  # and in the list of members
        file.write_bytes(data)
        first, second = expand([file]).sources
        with pytest.raises(InputError, match="encrypted"):
            first.read()
        assert second.read() == picture(1)

    def test_a_member_that_declares_to_be_huge(self, tmp_path):
        file = make_zip(tmp_path / "x.zip", {"a.png": picture(0), "b.png": picture(1)}, zipfile.ZIP_STORED)
        data = bytearray(file.read_bytes())
        at = data.index(b"PK\x01\x02")
        data[at + 24 : at + 28] = struct.pack("<I", 2**30)
        file.write_bytes(data)
        first, second = expand([file]).sources
        with pytest.raises(InputError, match=r"archive member of 1073741824 bytes; allowed: up to 536870912"):
            first.read()
        assert second.read() == picture(1)

    @pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
    def test_a_member_larger_than_allowed(self, tmp_path, monkeypatch, kind):
        members = {"a.png": picture(0), "b.png": encoded(colours(60, 80), "PNG")}
        file = tmp_path / f"x.{kind}"
        make_zip(file, members) if kind == "zip" else make_tar(file, members, "w:gz" if "gz" in kind else "w")
        monkeypatch.setattr(sources, "MAX_MEMBER_BYTES", 5000)
        small, large = expand([file]).sources
        assert small.read() == picture(0)
        with pytest.raises(InputError, match="archive member of .* allowed: up to 5000"):
            large.read()

    def test_a_member_that_declares_less_than_it_holds(self, tmp_path):
        file = make_zip(tmp_path / "x.zip", {"a.png": picture(0)})
        data = bytearray(file.read_bytes())
        at = data.index(b"PK\x01\x02")
        data[at + 24 : at + 28] = struct.pack("<I", 20)
        file.write_bytes(data)
        with pytest.raises(InputError, match="broken archive member"):
            expand([file]).sources[0].read()

    @pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tar.bz2", "x.tar.xz"])
    def test_what_is_no_archive(self, tmp_path, name):
        for data in (b"", b"no archive, only words " * 30):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(
                UsageError, match=r"cannot open the archive .*; got .+; check that it is complete"
            ):
                expand([tmp_path / name])

    @pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
    @pytest.mark.parametrize("damage", ["cut", "bytes"])
    def test_an_archive_that_is_damaged(self, tmp_path, kind, damage):
        members = {f"{i}.bmp": encoded(smooth(60, 80 + i), "BMP") for i in range(4)}
        file = tmp_path / f"x.{kind}"
        if kind == "zip":
            make_zip(file, members)
            data = file.read_bytes()[:-30]  # without the end of the list of members
        else:
            data = io.BytesIO()
            with tarfile.open(fileobj=data, mode="w") as archive:
                for name, content in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
            packed = {
                "tar.gz": gzip.compress,
                "tar.bz2": bz2.compress,
                "tar.xz": lzma.compress,
            }[kind](data.getvalue())
            half = len(packed) // 2
            data = packed[:half] if damage == "cut" else packed[:half] + bytes(200) + packed[half + 200 :]
        file.write_bytes(data)
        with pytest.raises(UsageError, match="cannot open the archive"):
            expand([file])

    def test_an_archive_that_was_written_anew_is_read_anew(self, tmp_path):
        file = make_zip(tmp_path / "x.zip", {"a.png": picture(1)})
        assert read_all(expand([file])) == [1]
        make_zip(file, {"a.png": picture(2), "b.png": picture(3)})
        os.utime(file, ns=(1, 1))
        assert read_all(expand([file])) == [2, 3]

    def test_a_picture_out_of_an_archive_decodes(self, tmp_path):
        (source,) = expand([make_zip(tmp_path / "x.zip", {"a.png": picture(1)})]).sources
        np.testing.assert_array_equal(np.asarray(decode(source.read())), colours(9, 13, 1))
        assert isinstance(decode(source.read()), Image.Image)

    def test_which_names_are_archives(self):
        assert all(is_archive(n) for n in ("a.zip", "b.TAR", "c.tar.gz", "d.tgz", "e.tar.bz2", "f.tar.xz"))
        assert not any(is_archive(n) for n in ("a.gz", "zip", "b.zip.txt"))


class TestUniqueNames:
    def names(self, *relatives: str) -> list[str]:
        return unique_names([Source(r, r, r) for r in relatives])

    def test_folders_keep_pictures_apart(self):
        assert self.names("a/x.jpg", "b/x.jpg", "x.jpg") == ["a_x", "b_x", "x"]

    def test_where_two_meet_a_counter_is_added(self):
        assert self.names("x.jpg", "x.png", "X.gif", "a/b.png", "a_b.png") == [
            "x",
            "x-2",
            "X-3",
            "a_b",
            "a_b-2",
        ]
        assert self.names("x.jpg", "x-2.jpg", "x.png", "X-2.png") == ["x", "x-2", "x-3", "X-2-2"]

    def test_letters_that_a_disk_may_not_take(self):
        assert self.names('a b:c*?"<>|.jpg', "tab\tline\n.jpg", "Fähre.jpg", "日本.jpg") == [
            "a_b_c",
            "tab_line",
            "Fähre",
            "日本",
        ]
        assert self.names("../../etc/passwd.jpg", "/x.jpg", "C:\\x.jpg") == ["etc_passwd", "x", "C__x"]
        assert self.names("???.jpg", "", "...jpg", "\udc80.jpg") == [
            "picture",
            "picture-2",
            "picture-3",
            "picture-4",
        ]

    def test_only_the_last_suffix_goes(self):
        assert self.names("a.tar.png", "b.1.5", "noext") == ["a.tar", "b.1", "noext"]

    @pytest.mark.parametrize("letter", ["a", "ä", "日"])
    def test_long_names_fit_on_a_disk_and_stay_apart(self, tmp_path, letter):
        names = self.names(letter * 400 + ".jpg", letter * 500 + ".jpg", f"{letter * 300}/{letter * 300}.jpg")
        assert len(set(names)) == 3
        for name in names:
            (tmp_path / f"{name}-1.png").touch()  # raises where the name is too long
        assert len(list(tmp_path.iterdir())) == 3
