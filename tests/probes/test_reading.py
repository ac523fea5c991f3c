"""Pictures in batches of one shape: all of them, each once, none waiting too long."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from camlucida.images.sources import Source, name_of
from camlucida.images.views import Preprocessing
from camlucida.networks.cards import Card
from camlucida.networks.network import Network
from camlucida.probes import reading
from small_networks import gap


def test_what_has_one_shape_goes_together():
    made = ["".join(some) for some in reading.together("abacbadaaa", str, 3)]
    assert made == ["aaa", "aaa", "bb", "c", "d"]


def test_where_too_many_wait_the_most_of_one_shape_go(monkeypatch):
    monkeypatch.setattr(reading, "WAITING", 4)
    taken = []

    def given():
        for one in "abbcdeff":
            taken.append(one)
            yield one

    made = ["".join(some) for some in reading.together(given(), str, 3)]
    assert made == ["bb", "a", "c", "ff", "d", "e"]
    first = reading.together(given(), str, 3)
    taken.clear()
    assert next(first) == ["b", "b"]
    assert "".join(taken) == "abbc"


@pytest.mark.parametrize("workers", [1, 3])
def test_pictures_come_as_the_card_shows_them_and_broken_ones_apart(workers, tmp_path):
    net = Network(gap(), Card(preprocessing=Preprocessing(size=24)))
    random = np.random.default_rng(0)
    given = [random.integers(0, 256, shape, np.uint8) for shape in [(30, 44, 3), (52, 30, 3)] * 3]
    given.insert(2, tmp_path / "none.png")
    rejected, progress = [], []
    found = {}
    for some in reading.batches(
        reading.reading(net, given, view="whole", workers=workers), 2, rejected, progress.append
    ):
        pixels = reading.pixels_of(net, some)
        assert len({one.size for one in some}) == 1
        for one, seen in zip(some, pixels, strict=True):
            torch.testing.assert_close(seen[None], net.preprocess(given[one.number], view="whole").pixels)
            found[one.number] = (one.size.height, one.size.width)
    assert found == {i: one.shape[:2] for i, one in enumerate(given) if i != 2}
    assert [(number, path) for number, path, _ in rejected] == [(2, str(tmp_path / "none.png"))]
    assert len(progress) == 7


def test_how_pictures_are_called(tmp_path):
    assert name_of(Source("a/b.png", "b.png", "/x")) == "a/b.png"
    assert name_of("b.png") == "b.png"
    assert name_of(tmp_path) == str(tmp_path)
    assert name_of(np.zeros((2, 3), np.uint8)) == "<picture>"
