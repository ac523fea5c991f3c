"""A handful of made-up pictures, and the command that trains on them."""

import made_up
import pytest
from made_up import SMALL

from camlucida.images import datasets


@pytest.fixture
def data(tmp_path):
    return datasets.load([made_up.pictures(tmp_path / "data")])


@pytest.fixture
def words(data, tmp_path):
    file = made_up.write_recipe(tmp_path / "small.toml", SMALL)
    return [
        "train", str(tmp_path / "data"), "--recipe", str(file), "--out", str(tmp_path / "run"), "--accelerator", "cpu",
        "--workers", "0", "--epochs", "1",
    ]  # fmt: skip
