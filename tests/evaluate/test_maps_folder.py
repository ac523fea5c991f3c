"""Score maps in and out, in the WSOL benchmark's layout."""

from __future__ import annotations

import numpy as np
import pytest

from camlucida.errors import InputError, UsageError
from camlucida.evaluate.maps_folder import open_folder, read_map, write_map


def test_there_and_back(tmp_path):
    heat = np.random.default_rng(0).normal(size=(224, 224)).astype(np.float32)
    file = write_map(tmp_path, "val/0/1.jpeg", heat)
    assert file == tmp_path / "scoremaps" / "val" / "0" / "1.jpeg.npy"
    raw = np.load(file)  # as the benchmark reads it: float, 224 × 224, 0 … 1, nothing else
    assert raw.dtype == np.float32
    assert (raw.min(), raw.max()) == (0, 1)
    back = read_map(open_folder(tmp_path), "val/0/1.jpeg")
    np.testing.assert_allclose(back * (heat.max() - heat.min()) + heat.min(), heat, atol=1e-5)
    assert [f.name for f in file.parent.iterdir()] == ["1.jpeg.npy"]


@pytest.mark.parametrize("heat", [np.ones((3, 4)), np.full((3, 4), np.nan)])
def test_a_map_of_nothing_is_zeros(tmp_path, heat):
    assert (np.load(write_map(tmp_path, "a.png", heat)) == 0).all()


def test_what_other_tools_write(tmp_path):
    heat = np.arange(12.0).reshape(3, 4)
    (tmp_path / "sub").mkdir()
    np.save(tmp_path / "sub" / "a.npy", heat)  # without the picture's ending
    np.save(tmp_path / "b.jpg.npy", heat[None].astype(np.float16))
    np.save(tmp_path / "c.jpg.npy", heat[..., None].astype(np.uint8))
    folder = open_folder(tmp_path)
    for name in ("sub/a.jpg", "b.jpg", "c.jpg", "./b.jpg"):
        found = read_map(folder, name)
        assert found.dtype == np.float32
        assert (found == heat).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([{"a": 1}], object), "no readable .npy file"),
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\)"),
        (np.zeros(5), r"shape \(5,\)"),
        (np.zeros((0, 4)), "shape"),
        (np.full((2, 2), np.inf), "NaN or infinite"),
        (np.full((2, 2), 1e300), "NaN or infinite"),
        (np.array([["a", "b"]]), "an array of real numbers"),
        (np.zeros((2, 2), complex), "an array of real numbers"),
    ],
)
def test_what_is_no_map_is_refused(tmp_path, values, message):
    """A pickle is never loaded, and nothing else passes for numbers."""
    np.save(tmp_path / "a.jpg.npy", values, allow_pickle=True)
    with pytest.raises(InputError, match=message):
        read_map(tmp_path, "a.jpg")


def test_broken_and_missing_files(tmp_path):
    (tmp_path / "a.jpg.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match="no readable"):
        read_map(tmp_path, "a.jpg")
    with pytest.raises(InputError, match=r"no map of b\.jpg"):
        read_map(tmp_path, "b.jpg")
    np.savez(tmp_path / "c.npz", a=np.ones((2, 2)))
    (tmp_path / "c.npz").rename(tmp_path / "c.jpg.npy")
    with pytest.raises(InputError, match="an array of real numbers"):
        read_map(tmp_path, "c.jpg")
    with pytest.raises(UsageError, match="no folder"):
        open_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["../a.jpg", "sub/../../a.jpg", "..\\a.jpg", ""])
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    with pytest.raises(InputError, match="a path below the data"):
        write_map(tmp_path / "in", name, np.eye(3))
    with pytest.raises(InputError, match="a path below the data"):
        read_map(tmp_path, name)
    assert write_map(tmp_path, "/etc/a.jpg", np.eye(3)) == tmp_path / "scoremaps" / "etc" / "a.jpg.npy"
