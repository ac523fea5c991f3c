"""What a batch is made of: a function of seed, epoch and index alone, cached or not, whoever reads it."""

import multiprocessing
import os
import signal
from dataclasses import replace

import made_up
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import camlucida as cl
from camlucida.images import datasets
from camlucida.images.datasets import DataSet, Example
from camlucida.images.read import read_picture
from camlucida.images.sources import Source
from camlucida.train import feed
from camlucida.train.recipe import Recipe
from camlucida.values import Label


@pytest.fixture
def data(tmp_path):
    return datasets.load([made_up.pictures(tmp_path / "data", 3, (20, 31))])


RECIPE = replace(made_up.SMALL, size=16, sizes=())


def batches(data, workers=0, budget=0, epochs=(0,)):
    order = feed.Order(len(data), 4, RECIPE.seed)
    decoded = feed.Decoded(len(data), budget)
    loader = feed.loader(feed.TrainingPictures(data, RECIPE, decoded), order, workers)
    found = []
    for order.epoch in epochs:
        found += list(loader)
    return found, decoded


def test_cached_or_not_read_here_or_by_a_worker_pictures_are_equal(data):
    plain, none = batches(data, epochs=(0, 1))
    assert not none.sizes.any()
    for workers, budget in ((0, 10**6), (1, 10**6)):
        cached, decoded = batches(data, workers, budget, epochs=(0, 1))
        assert (decoded.sizes == (20, 31)).all()  # what the worker decoded is here too
        assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(plain, cached, strict=True))
        assert [b.indices for b in plain] == [b.indices for b in cached]
    assert not torch.equal(plain[0].pixels, plain[2].pixels)  # another epoch


def test_the_cache_gives_the_picture_itself_and_reads_it_once(data, monkeypatch):
    decoded = feed.Decoded(len(data), len(data) * 20 * 31 * 3)
    right = [np.asarray(read_picture(e.source.read())) for e in data.examples]
    reads = []
    monkeypatch.setattr(Source, "read", lambda self, original=Source.read: reads.append(self) or original(self))  # fmt: skip
    for _ in range(2):
        for i, example in enumerate(data.examples):
            np.testing.assert_array_equal(np.asarray(decoded.read(i, example)), right[i])
    assert len(reads) == len(data)


def test_what_does_not_fit_a_slot_is_decoded_each_time(data):
    decoded = feed.Decoded(len(data), len(data) * 20 * 31 * 3 - 1)
    decoded.read(0, data.examples[0])
    assert not decoded.sizes.any()


def test_broken_pictures_are_left_out_of_their_batch_with_the_reason(data, tmp_path):
    (tmp_path / "data" / "n01" / "1.png").write_bytes(b"nothing")
    (first, second), _ = batches(data)
    broken = first.rejected + second.rejected
    assert [(i, "not a picture" in reason) for i, reason in broken] == [(1, True)]
    assert len(first.pixels) + len(second.pixels) == 5
    for batch in (first, second):
        assert [data.examples[i].label for i in batch.indices] == batch.truth.tolist()


def test_an_empty_share_is_an_empty_batch(data):
    empty = feed.collate([])
    assert (len(empty.pixels), len(empty.truth), empty.indices, empty.rejected) == (0, 0, [], [])


def examples(**fields):
    source = Source("a", "a", "a")
    one = Example(source, **fields)
    return DataSet((one, one), (Label("a", "a"), Label("b", "b"), Label("c", "c")))


def test_truth_by_task():
    several = examples(label=2, labels=(2, 0))
    sigmoid, regression = Recipe(task="sigmoid"), Recipe(task="regression")
    assert feed.outputs(several, sigmoid) == 3
    assert feed.truth_of(several.examples[0], sigmoid, 3).tolist() == [1.0, 0.0, 1.0]
    numbers = examples(label=-1, values=(0.5, -2.0))
    assert feed.outputs(numbers, regression) == 2
    assert feed.truth_of(numbers.examples[0], regression, 2).tolist() == [0.5, -2.0]
    with pytest.raises(cl.UsageError, match="2 pictures with several labels.*sigmoid"):
        feed.outputs(several, Recipe())
    with pytest.raises(cl.UsageError, match="2 pictures without values"):
        feed.outputs(several, regression)


def test_a_mean_of_free_memory_is_the_budget():
    assert 0 <= feed.spare_memory() <= feed.CACHE


def test_grey_pictures_come_as_three_channels(tmp_path):
    (tmp_path / "c").mkdir()
    Image.fromarray(np.full((9, 9), 77, np.uint8)).save(tmp_path / "c" / "g.png")
    decoded = feed.Decoded(1, 1000)
    example = datasets.load([tmp_path]).examples[0]
    for _ in range(2):
        assert np.asarray(decoded.read(0, example)).tolist() == np.full((9, 9, 3), 77).tolist()


class Signalled:
    """Every picture is the number of the process that reads it; the second is read after a SIGTERM."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == 1:
            signal.raise_signal(signal.SIGTERM)
        return os.getpid()


@pytest.mark.skipif(os.name != "posix", reason="workers are forked and end by signals")
def test_a_worker_outlives_the_first_sigterm_and_ends_at_the_second():
    loader = DataLoader(Signalled(), batch_size=None, num_workers=1, worker_init_fn=feed._ready_worker)
    readers = {int(reader) for reader in loader}
    assert len(readers) == 1
    assert readers != {os.getpid()}

    ends = multiprocessing.get_context("fork").Process(target=_two_sigterms)
    ends.start()
    ends.join(10)
    assert ends.exitcode == -signal.SIGTERM


def _two_sigterms() -> None:
    feed._ready_worker(0)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
