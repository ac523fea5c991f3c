"""The scheduler under the perturbation methods: chunks by memory, none lost, and what a listener hears."""
# mypy: disable-error-code="union-attr,index,operator,arg-type"

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import camlucida as cl
from camlucida import maps, taps
from camlucida.errors import UsageError
from camlucida.maps import schedule
from fingerprints import unchanged
from small_networks import fully_connected, pixels

CPU = torch.device("cpu")
METHODS = {
    name: maps.method(name)
    for name in ("occlusion:patch=8,stride=6", "score-cam", "ablation-cam:layer=features.1", "rise:masks=9")
}
pytestmark = pytest.mark.filterwarnings("ignore:Ablation-CAM divides")


def slices(copies: int, work=lambda part: None, **options) -> list[tuple[int, int]]:
    """What was done, in order, and that it was everything once."""
    done: list[tuple[int, int]] = []

    def watched(part: slice) -> None:
        work(part)
        done.append((part.start, part.stop))

    schedule.run("a test", copies, watched, device=CPU, **({"bytes_each": 10} | options))
    assert [i for start, stop in done for i in range(start, stop)] == list(range(copies))
    return done


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("2GB", 2 * 10**9),
        ("512 MiB", 512 << 20),
        ("1.5k", 1500),
        (800, 800),
        ("7", 7),
        ("3 gb", 3 * 10**9),
        (None, None),
    ],
)
def test_sizes(words, wanted):
    assert schedule.parse(words) == wanted


@pytest.mark.parametrize("words", ["", "much", "-1GB", "0", "2 XB", "1.2.3G", 0])
def test_sizes_that_are_none(words):
    with pytest.raises(UsageError, match="memory"), schedule.memory(words):
        pass


def test_chunks_fit_the_budget_and_are_even():
    with schedule.memory(100):
        assert slices(25) == [(0, 9), (9, 18), (18, 25)]
        assert slices(25, bytes_each=101) == [(i, i + 1) for i in range(25)]
        assert slices(25, most=3)[0] == (0, 3)
        assert slices(0) == []
    assert slices(25) == [(0, 25)]
    assert slices(4, bytes_each=schedule.BEST_ON_CPU // 2) == [(0, 2), (2, 4)]
    with schedule.memory("1TB"):  # it is a limit, and larger chunks are slower on a CPU
        assert slices(4, bytes_each=schedule.BEST_ON_CPU // 2) == [(0, 2), (2, 4)]
    assert slices(2000, bytes_each=1)[0] == (0, 500)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)  # fmt: skip
def test_where_memory_runs_out_the_chunk_is_halved_and_done_again(error):
    tried: list[int] = []

    def work(part: slice) -> None:
        tried.append(part.stop - part.start)
        if part.stop - part.start > 3:
            raise error

    assert slices(20, work)[:2] == [(0, 2), (2, 4)]
    assert tried[:4] == [20, 10, 5, 2]
    with pytest.raises(type(error)):
        slices(4, lambda part: work(slice(0, 9)))


def test_other_errors_are_not_swallowed():
    def work(part: slice) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        slices(8, work)


def test_what_a_listener_hears():
    heard: list[tuple[str, int]] = []
    with schedule.heard_by(lambda work, done: heard.append((str(work), done))), schedule.memory(80):
        slices(20, pictures=2)
    words = "a test: ≈ 10 forward passes a picture"
    assert heard == [(words, 0), (words, 7), (words, 14), (words, 20)]
    slices(20)
    assert len(heard) == 4


class Small(nn.Module):
    """Runs out of memory on more than `most` pictures."""

    def __init__(self, most: int) -> None:
        super().__init__()
        inner = fully_connected()
        self.features, self.classifier, self.most, self.seen = inner.features, inner.classifier, most, 0

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        self.seen = max(self.seen, len(features))
        if len(features) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.classifier(features)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("most", [2, 3])
def test_no_work_is_lost_where_memory_runs_out(method, most):
    x, target = pixels(2), cl.ClassTarget.top(2)
    wanted = METHODS[method](cl.wrap(fully_connected()), x, target)
    module = Small(most)
    with unchanged(module.features):
        found = METHODS[method](cl.wrap(module), x, target)
    assert module.seen > most
    assert float(wanted.values.std()) > 0
    torch.testing.assert_close(
        found.values, wanted.values, rtol=1e-4, atol=1e-5 * float(wanted.values.abs().max())
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_budget_is_kept_and_changes_nothing_but_noise(method):
    net, x = cl.wrap(fully_connected()), pixels(2)
    wanted = METHODS[method](net, x)
    seen: list[int] = []
    handle = net.module.features[2].register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    with schedule.memory(1):
        found = METHODS[method](net, x)
        again = METHODS[method](net, x)
    handle.remove()
    assert set(seen) <= {1, 2}
    assert seen.count(2) <= 6  # of each run the intact pictures, and the two sides of a trial
    assert torch.equal(found.values, again.values)
    torch.testing.assert_close(
        found.values, wanted.values, rtol=1e-4, atol=1e-5 * float(wanted.values.abs().max())
    )


def test_a_footprint_is_what_was_alive_at_once():
    with taps.Footprint() as counted:
        a = torch.zeros(1000)  # 4,000 bytes
        b = a + 1
        del a
        c = b.view(10, 100).exp()
        del b, c
        d = torch.zeros(10)
    assert counted.peak == 8000
    assert counted.now == d.nbytes
    weight = torch.zeros(50, 100)
    with taps.Footprint() as counted:
        e = weight.T  # no bytes of its own
    assert counted.peak == 0
    assert e is not None


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_memory_stays_flat_over_500_pictures():
    """One picture after another, the methods by turns: what is resident after 500 is what was after the first 100."""
    net = cl.wrap(fully_connected())
    for picture in range(500):
        x = torch.randn(1, 3, 20, 28, generator=torch.Generator().manual_seed(picture))
        list(METHODS.values())[picture % len(METHODS)](net, x)
        if picture == 100:
            gc.collect()
            before = resident()
    gc.collect()
    assert resident() - before < 4_000_000
