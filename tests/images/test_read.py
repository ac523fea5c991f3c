"""Every kind of file, array and tensor → one upright RGB picture of known values, or a reason why not."""

from __future__ import annotations

import io
import struct
import threading
import time
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from camlucida.errors import InputError
from camlucida.images.read import MAX_PIXELS, MEAN_COLOUR, SUFFIXES, decode, read_picture
from pictures import UPRIGHT, colours, encoded, smooth, stored_for

LOSSLESS = [
    ("PNG", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("WEBP", {"lossless": True}),
]
GREY16 = np.linspace(0, 65535, 45 * 61).reshape(45, 61).astype(np.uint16)


def pixels(source, **options) -> np.ndarray:
    picture = read_picture(source, **options)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def blended(colour, alpha, background) -> np.ndarray:
    """Exact values; what is found may differ by its rounding."""
    alpha = np.asarray(alpha, np.float64)[..., None] / 255
    return alpha * np.asarray(colour, np.float64) + (1 - alpha) * np.asarray(background, np.float64)


class TestFormats:
    @pytest.mark.parametrize(("kind", "options"), LOSSLESS)
    def test_lossless(self, kind, options):
        np.testing.assert_array_equal(pixels(encoded(colours(), kind, **options)), colours())

    @pytest.mark.parametrize(
        ("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {"method": 6})]
    )
    def test_lossy(self, kind, options):
        found = pixels(encoded(smooth(), kind, quality=95, **options))
        assert found.shape == (45, 61, 3)
        assert np.abs(found.astype(int) - smooth()).mean() < 2

    def test_a_path_as_text_or_path(self, tmp_path):
        file = tmp_path / "ä picture.dat"  # the suffix does not matter
        file.write_bytes(encoded(colours(), "PNG"))
        np.testing.assert_array_equal(pixels(file), colours())
        np.testing.assert_array_equal(pixels(str(file)), colours())
        np.testing.assert_array_equal(pixels(bytearray(file.read_bytes())), colours())
        np.testing.assert_array_equal(pixels(memoryview(file.read_bytes())), colours())

    def test_every_suffix_has_a_decoder(self):
        known = Image.registered_extensions()
        assert {known[s] for s in SUFFIXES} == {"JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"}

    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
    def test_an_animation_gives_its_first_frame(self, kind):
        frames = [Image.new("RGB", (61, 45), c) for c in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
        more = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=40, **more)
        assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
        np.testing.assert_array_equal(pixels(data), np.full((45, 61, 3), (250, 0, 0)))

    def test_pages_give_the_first(self):
        second = Image.fromarray(colours(30, 20, seed=1))
        data = encoded(colours(), "TIFF", save_all=True, append_images=[second])
        assert Image.open(io.BytesIO(data)).n_frames == 2
        np.testing.assert_array_equal(pixels(data), colours())


class TestOrientation:
    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
    @pytest.mark.parametrize("orientation", UPRIGHT)
    def test_upright_whatever_the_camera_wrote(self, orientation, kind):
        stored = stored_for(colours(), orientation)
        np.testing.assert_array_equal(UPRIGHT[orientation](stored), colours())
        more = {"lossless": True} if kind == "WEBP" else {}
        np.testing.assert_array_equal(pixels(encoded(stored, kind, orientation, **more)), colours())

    @pytest.mark.parametrize("orientation", UPRIGHT)
    def test_a_jpeg_and_the_same_opened_by_pillow(self, orientation):
        data = encoded(stored_for(smooth(), orientation), "JPEG", orientation, quality=95)
        found = pixels(data)
        assert found.shape == (45, 61, 3)
        assert np.abs(found.astype(int) - smooth()).mean() < 2
        opened = Image.open(io.BytesIO(data))
        np.testing.assert_array_equal(pixels(opened), found)
        assert opened.size == (
            (61, 45) if orientation < 5 else (45, 61)
        )  # the caller's picture is left alone

    def test_what_was_read_is_not_turned_again(self):
        once = read_picture(encoded(stored_for(colours(), 6), "PNG", 6))
        np.testing.assert_array_equal(pixels(once), colours())

    @pytest.mark.parametrize(
        "exif", [b"Exif\x00\x00nonsense", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00"]
    )
    def test_exif_that_cannot_be_read_says_nothing(self, exif):
        plain = encoded(smooth(), "JPEG")
        data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:]
        np.testing.assert_array_equal(pixels(data), pixels(plain))

    def test_an_orientation_that_does_not_exist(self):
        np.testing.assert_array_equal(pixels(encoded(colours(), "PNG", 77)), colours())


class TestModes:
    def test_grey(self):
        grey = colours()[..., 0]
        np.testing.assert_array_equal(pixels(encoded(grey, "PNG")), np.repeat(grey[..., None], 3, 2))

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_grey_of_16_bits(self, kind):
        found = pixels(encoded(Image.fromarray(GREY16), kind))
        np.testing.assert_array_equal(found, np.rint(GREY16 / 257)[..., None].repeat(3, 2))
        assert (found.min(), found.max()) == (0, 255)

    def test_dark_grey_of_16_bits_stays_dark(self):
        dark = np.full((45, 61), 200, np.uint16)  # not taken for 8 bits
        assert (pixels(encoded(Image.fromarray(dark), "PNG")) == 1).all()

    def test_grey_of_16_bits_from_the_other_end(self):
        swapped = Image.frombytes("I;16B", (61, 45), GREY16.astype(">u2").tobytes())
        np.testing.assert_array_equal(pixels(swapped)[..., 0], np.rint(GREY16 / 257))

    @pytest.mark.parametrize(("top", "highest"), [(1.0, 1.0), (255.0, 200.0), (65535.0, 60000.0)])
    def test_floating_point_tiff(self, top, highest):
        values = np.linspace(0, highest, 45 * 61, dtype=np.float32).reshape(45, 61)
        found = pixels(encoded(Image.fromarray(values), "TIFF"))
        np.testing.assert_array_equal(found[..., 1], np.rint(values.astype(np.float64) / top * 255))

    @pytest.mark.parametrize(("value", "reason"), [(np.nan, "nan"), (-1, "-1"), (70000, "70000")])
    def test_floating_point_tiff_beyond_the_scale(self, value, reason):
        values = np.zeros((45, 61), np.float32)
        values[3, 4] = value
        with pytest.raises(InputError, match=rf"a grey picture; got values .*{reason}.*allowed: 0 … 65535"):
            read_picture(encoded(Image.fromarray(values), "TIFF"))

    def test_one_bit(self):
        bits = colours()[..., 0] > 127
        for kind in ("PNG", "TIFF", "BMP"):
            found = pixels(encoded(Image.fromarray(bits), kind))
            np.testing.assert_array_equal(found, np.where(bits, 255, 0)[..., None].repeat(3, 2))

    def test_palette(self):
        index = (colours()[..., 0] % 3).astype(np.uint8)
        table = np.array([(10, 20, 30), (200, 100, 0), (7, 250, 99)], np.uint8)
        picture = Image.fromarray(index)
        picture.putpalette(table.tobytes())
        for kind in ("PNG", "GIF", "BMP", "TIFF"):
            np.testing.assert_array_equal(pixels(encoded(picture, kind)), table[index])

    @pytest.mark.parametrize("background", [MEAN_COLOUR, (1, 254, 77)])
    def test_palette_with_a_transparent_entry(self, background):
        index = (colours()[..., 0] % 3).astype(np.uint8)
        table = np.array([(10, 20, 30), (200, 100, 0), (7, 250, 99)], np.uint8)
        picture = Image.fromarray(index)
        picture.putpalette(table.tobytes())
        seen = table.copy()
        seen[1] = background
        for kind in ("PNG", "GIF"):
            found = pixels(encoded(picture, kind, transparency=1), background=background)
            np.testing.assert_array_equal(found, seen[index])

    def test_palette_with_an_alpha_per_entry(self):
        index = (colours()[..., 0] % 3).astype(np.uint8)
        table = np.array([(10, 20, 30), (200, 100, 0), (7, 250, 99)], np.uint8)
        alpha = np.array([0, 128, 255], np.uint8)
        exact = blended(table, alpha, MEAN_COLOUR)[index]
        stored = Image.fromarray(index)
        stored.putpalette(table.tobytes())
        np.testing.assert_allclose(
            pixels(encoded(stored, "PNG", transparency=bytes(alpha))), exact, atol=0.51
        )
        held = Image.fromarray(index)
        held.putpalette(np.concatenate([table, alpha[:, None]], 1).tobytes(), "RGBA")
        np.testing.assert_allclose(pixels(held), exact, atol=0.51)

    @pytest.mark.parametrize("background", [MEAN_COLOUR, (0, 128, 255)])
    def test_alpha_is_laid_onto_the_background(self, background):
        alpha = colours(seed=5)[..., 0]
        for kind, more in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
            data = encoded(np.concatenate([colours(), alpha[..., None]], 2), kind, **more)
            found = pixels(data, background=background)
            np.testing.assert_allclose(found, blended(colours(), alpha, background), atol=0.51)
        grey = colours()[..., 0]
        picture = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha)])
        found = pixels(encoded(picture, "PNG"), background=background)
        np.testing.assert_allclose(found, blended(grey[..., None], alpha, background), atol=0.51)

    def test_alpha_by_hand(self):
        picture = Image.new("RGBA", (2, 1), (200, 100, 0, 51))  # a fifth of it
        picture.putpixel((1, 0), (9, 9, 9, 0))
        assert pixels(picture).tolist() == [[[139, 113, 83], list(MEAN_COLOUR)]]

    def test_a_colour_declared_transparent(self):
        data = encoded(np.where(colours() > 127, 255, 0).astype(np.uint8), "PNG", transparency=(255, 0, 255))
        shown = np.where(colours() > 127, 255, 0)
        shown[(shown == (255, 0, 255)).all(2)] = MEAN_COLOUR
        np.testing.assert_array_equal(pixels(data), shown)

    def test_ink(self):
        inks = np.stack([smooth()[..., 0], smooth()[..., 1], smooth()[..., 2], smooth()[..., 0] // 2], -1)
        picture = Image.frombytes("CMYK", (61, 45), inks.tobytes())
        paper = 255 - inks[..., :3].astype(float)
        exact = paper * (255 - inks[..., 3:].astype(float)) / 255
        np.testing.assert_allclose(pixels(picture), exact, atol=1)
        found = pixels(encoded(picture, "JPEG", quality=95, subsampling=0))
        assert np.abs(found - exact).mean() < 2.5


class TestArraysAndTensors:
    @pytest.mark.parametrize("channels", [0, 1, 3, 4])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64, np.bool_])
    def test_every_kind_of_array_and_tensor(self, dtype, channels):
        rng = np.random.default_rng(2)
        shape = (45, 61, channels) if channels else (45, 61)
        levels = rng.integers(0, 256, shape)
        if dtype == np.bool_:
            array, levels = levels > 127, np.where(levels > 127, 255, 0)
        elif dtype == np.uint16:
            array = (levels * 257).astype(dtype)
        else:
            array = (levels if dtype == np.uint8 else levels / 255).astype(dtype)
        expected = levels if channels else levels[..., None]
        if channels == 4:
            expected = blended(levels[..., :3], levels[..., 3], MEAN_COLOUR)
        expected = np.broadcast_to(expected, (45, 61, 3))
        np.testing.assert_allclose(pixels(array), expected, atol=0.51 if channels == 4 else 0)
        tensor = torch.from_numpy(array)
        np.testing.assert_array_equal(pixels(tensor.movedim(-1, 0) if channels else tensor), pixels(array))

    def test_tensors_of_half_precision_and_with_a_gradient(self):
        grey = torch.rand(1, 45, 61, generator=torch.Generator().manual_seed(0))
        half = grey.bfloat16().requires_grad_()
        expected = np.rint(half.detach().double().numpy() * 255)[0]
        np.testing.assert_array_equal(pixels(half)[..., 2], expected)

    def test_rows_stay_rows(self):
        array = np.zeros((2, 5, 3), np.uint8)
        array[0, 4] = (1, 2, 3)
        assert read_picture(array).getpixel((4, 0)) == (1, 2, 3)
        assert read_picture(torch.from_numpy(array).movedim(2, 0)).getpixel((4, 0)) == (1, 2, 3)
        assert read_picture(array[::-1, ::-1]).getpixel((0, 1)) == (1, 2, 3)  # a view with negative strides

    @pytest.mark.parametrize(
        "shape", [(5,), (4, 5, 2), (4, 5, 5), (3, 4, 5), (1, 4, 5, 3), (0, 5, 3), (4, 0)]
    )
    def test_a_shape_that_is_no_picture(self, shape):
        with pytest.raises(InputError, match=rf"got shape \({shape[0]},.*allowed: \(H, W\), \(H, W, 1\)"):
            read_picture(np.zeros(shape, np.uint8))

    def test_a_tensor_with_channels_last(self):
        with pytest.raises(InputError, match="shape"):
            read_picture(torch.zeros(45, 61, 3))

    @pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint32, np.complex64])
    def test_a_dtype_that_says_no_scale(self, dtype):
        with pytest.raises(InputError, match=f"dtype {np.dtype(dtype)}; allowed: uint8, uint16, or floats"):
            read_picture(np.zeros((4, 5), dtype))

    @pytest.mark.parametrize("value", [-0.01, 1.01, 255.0, np.nan, np.inf])
    def test_floats_outside_their_scale(self, value):
        array = np.zeros((4, 5, 3), np.float32)
        array[1, 2, 0] = value
        with pytest.raises(InputError, match="a picture of floats; got values .*allowed: 0 … 1"):
            read_picture(array)

    @pytest.mark.parametrize("given", [None, 7, [[1, 2]], {"a": 1}])
    def test_other_things(self, given):
        with pytest.raises(InputError, match=f"got {type(given).__name__}; allowed: a path, bytes"):
            read_picture(given)


def png_bomb(side: int) -> bytes:
    """A real PNG, one bit a pixel, all black: kilobytes that unpack to side² pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    packed = zlib.compress(bytes((side + 7) // 8 + 1) * side, 6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


class TestRejected:
    def rejected(self, data, reason, **options):
        with pytest.raises(InputError, match=reason) as caught:
            read_picture(data, **options)
        assert "\n" not in str(caught.value)

    def test_empty(self, tmp_path):
        self.rejected(b"", "^empty file$")
        (tmp_path / "empty.jpg").touch()
        self.rejected(tmp_path / "empty.jpg", "^empty file$")

    def test_text_that_is_called_a_picture(self, tmp_path):
        (tmp_path / "notes.jpg").write_text("no picture at all, only words\n" * 40)
        self.rejected(tmp_path / "notes.jpg", "not a picture.*allowed: JPEG, PNG, WEBP, TIFF, BMP, GIF")

    def test_formats_that_are_not_read(self):
        self.rejected(encoded(colours(), "PPM"), "not a picture")
        self.rejected(b"%PDF-1.7\n" + bytes(900), "not a picture")
        self.rejected(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"
        )  # needs a program

    @pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
    def test_cut_short(self, kind, part):
        data = encoded(colours(120, 160), kind)
        self.rejected(
            data[: int(len(data) * part)], "^(broken picture|not a picture, or broken in its header)"
        )

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
    def test_every_length_is_read_or_refused_and_never_raises_anything_else(self, kind):
        data = encoded(colours(9, 13), kind)
        whole = pixels(data)
        for length in range(0, len(data), max(1, len(data) // 60)):
            try:
                found = pixels(data[:length])
            except InputError:
                continue
            np.testing.assert_array_equal(found, whole)  # only what comes after the pixels was missing

    def test_damaged_in_the_middle(self):
        data = bytearray(encoded(colours(120, 160), "PNG"))
        data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
        self.rejected(bytes(data), "^broken picture: ")

    def test_a_small_limit(self):
        data = encoded(colours(), "PNG")
        self.rejected(
            data, "decompression bomb: 61 × 45 pixels in .* allowed: up to 2744 pixels", max_pixels=2744
        )
        assert pixels(data, max_pixels=2745).shape == (45, 61, 3)

    @pytest.mark.parametrize("side", [9_600, 14_000])  # above the limit, and above twice the limit
    def test_a_decompression_bomb(self, side):
        data = png_bomb(side)
        assert len(data) < 60_000
        assert side * side > MAX_PIXELS
        started = time.perf_counter()
        self.rejected(data, "^decompression bomb: ")
        assert time.perf_counter() - started < 5
        assert pixels(png_bomb(40)).shape == (40, 40, 3)

    def test_missing_and_folder(self, tmp_path):
        self.rejected(tmp_path / "none.jpg", "^cannot read: No such file or directory$")
        self.rejected(tmp_path, "^cannot read: Is a directory$")

    def test_pictures_that_pillow_opened_but_cannot_load(self):
        data = encoded(colours(120, 160), "JPEG")
        self.rejected(Image.open(io.BytesIO(data[: len(data) // 2])), "^broken picture: ")

    def test_a_picture_without_pixels(self):
        self.rejected(Image.new("RGB", (5, 0)), "got 0 × 5; allowed: at least 1 × 1")


def test_reading_in_many_threads_leaves_warnings_as_they_were(monkeypatch):
    """Filters of warnings belong to the whole process: two overlapping reads must not leave them switched
    off."""
    real, data = Image.open, encoded(colours(), "PNG")

    def slow(*arguments, **options):
        time.sleep(0.1)
        return real(*arguments, **options)

    monkeypatch.setattr(Image, "open", slow)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        threads = [threading.Thread(target=decode, args=(data,)) for _ in range(2)]
        for thread in threads:
            thread.start()
            time.sleep(0.04)
        for thread in threads:
            thread.join()
        assert warnings.filters == before
