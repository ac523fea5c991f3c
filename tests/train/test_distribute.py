"""Several processes make the steps of one: real processes, gloo on this machine."""

import json
import multiprocessing
import socket
from dataclasses import replace

import made_up
import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import nn

from camlucida.images import datasets
from camlucida.train import distribute, loop
from camlucida.train.feed import Order

pytest.importorskip("lightning_fabric")

# Float64 also where PyTorch's default type decides: Lightning converts outputs to it.
IN_FLOAT64 = """import sys
import torch
torch.set_default_dtype(torch.float64)
from camlucida.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.fixture
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def data(tmp_path):
    return datasets.load([made_up.pictures(tmp_path / "data", 9, (20, 24))])


def equal(a: dict, b: dict, within: float) -> None:
    assert a["module"].keys() == b["module"].keys()
    for name, tensor in a["module"].items():
        torch.testing.assert_close(b["module"][name], tensor, rtol=within, atol=within, msg=name)


def test_two_processes_make_the_steps_of_one_on_uneven_batches(data, tmp_path, in_float64):
    """Weights, running statistics, losses and figures of two epochs in float64; 16 pictures in batches of 15: the last batch is
    one picture, and the second process has none; one picture is broken."""
    (tmp_path / "data" / "n01" / "3.png").write_bytes(b"no picture")
    recipe = replace(made_up.PLAIN, batch=15)
    split = {"validate_on": data.split("tuning")}
    assert len(data.split("train")) == 16
    events = list(
        loop.train(
            recipe, data.split("train"), tmp_path / "one", accelerator="cpu", workers=0, cache=0, **split
        )
    )
    made_up.write_recipe(tmp_path / "plain.toml", recipe)
    (tmp_path / "float64.py").write_text(IN_FLOAT64)
    done = made_up.run([
        str(tmp_path / "float64.py"), "train", str(tmp_path / "data"), "--recipe", str(tmp_path / "plain.toml"), "--out", str(tmp_path / "two"),
        "--accelerator", "cpu", "--devices", "2", "--workers", "0", "--split", "train",
    ])  # fmt: skip
    assert done.returncode == 3, done.stderr  # one picture could not be read
    equal(made_up.checkpoint(tmp_path / "one"), made_up.checkpoint(tmp_path / "two"), 1e-10)
    told = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert [one["processes"] for one in told if one["kind"] == "start"] == [2]
    names = ("loss", "error", "top1", "top5")
    ours = [[e.values[n] for n in names] for e in events if e.kind == "epoch"]
    assert [[one[n] for n in names] for one in told if one["kind"] == "epoch"] == ours
    assert "3.png" in (tmp_path / "two" / "rejected.csv").read_text()
    assert done.stdout.split() == [str(tmp_path / "two" / "network.safetensors")]  # said once


def test_torchrun_on_loopback_makes_the_same_steps_and_one_process_goes_on_with_them(data, tmp_path):
    recipe = replace(made_up.PLAIN, precision="32-true", batch=5)
    common = [
        "train", str(tmp_path / "data"), "--recipe", str(made_up.write_recipe(tmp_path / "plain.toml", recipe)),
        "--accelerator", "cpu", "--workers", "0",
    ]  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", port, "-m", "camlucida"]  # fmt: skip
    done = made_up.run([*launch, *common, "--out", str(tmp_path / "two")])
    assert done.returncode == 0, done.stderr
    list(loop.train(recipe, data, tmp_path / "one", accelerator="cpu", workers=0, cache=0))
    equal(made_up.checkpoint(tmp_path / "one"), made_up.checkpoint(tmp_path / "two"), 1e-4)
    assert len(made_up.checkpoint(tmp_path / "two")["random"]) == 2
    resumed = list(
        loop.train(recipe, data, tmp_path / "two", accelerator="cpu", workers=0, cache=0, resume=True)
    )
    assert resumed[0].values["from_step"] == 8


@pytest.mark.parametrize(("length", "batch", "world"), [(23, 5, 2), (7, 6, 3), (4, 4, 8)])
def test_shares_leave_no_picture_out_and_double_none(length, batch, world):
    whole = list(Order(length, batch, 3))
    shares = [list(Order(length, batch, 3, rank, world)) for rank in range(world)]
    for step, keys in enumerate(whole):
        of_step = [share[step] for share in shares]
        assert sorted(key for share in of_step for key in share) == sorted(keys)
        assert max(map(len, of_step)) - min(map(len, of_step)) <= 1
        assert Order(length, batch, 3).pictures(step) == len(keys)


def norms(rank: int, world: int, port: int, pixels: np.ndarray, results) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.manual_seed(0)
    module = nn.Sequential(nn.BatchNorm2d(3, momentum=0.2)).double()
    nn.init.uniform_(module[0].weight)
    module = distribute.synchronise(module, torch.device("cpu"))
    share = torch.from_numpy(pixels[rank::world]).requires_grad_()
    module(share).pow(3).sum().backward()
    gradients = [p.grad for p in module.parameters()]
    for gradient in gradients:
        dist.all_reduce(gradient)
    found = [share.grad, *gradients, module[0].running_mean, module[0].running_var]
    results.put((rank, [t.numpy() for t in found]))
    dist.destroy_process_group()


def test_batch_norm_over_processes_is_the_norm_of_the_whole_batch():
    """Outputs' gradients and running statistics in float64; two pictures for three processes: one has none."""
    pixels = np.random.default_rng(0).normal(2, 3, (2, 3, 4, 5))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    world = 3  # two pictures: the third process has none
    processes = [context.Process(target=norms, args=(r, world, port, pixels, results)) for r in range(world)]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3, momentum=0.2).double()
    nn.init.uniform_(norm.weight)
    whole = torch.from_numpy(pixels).requires_grad_()
    norm(whole).pow(3).sum().backward()
    for rank, (gradient, *others) in found.items():
        np.testing.assert_allclose(gradient, whole.grad[rank::world].numpy(), rtol=1e-10, atol=1e-12)
        expected = [*(p.grad for p in norm.parameters()), norm.running_mean, norm.running_var]
        for ours, right in zip(others, expected, strict=True):
            np.testing.assert_allclose(ours, right.numpy(), rtol=1e-10, atol=1e-12)
