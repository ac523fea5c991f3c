"""Checkpoints: killed and resumed is not killed, to the bit; nothing bad is ever written over something good."""

import errno
import json
import multiprocessing
import random
import signal
import time
from dataclasses import replace

import made_up
import numpy as np
import pytest
import torch

import camlucida as cl
from camlucida.cli import main
from camlucida.images import datasets
from camlucida.train import checkpoint, loop
from camlucida.train.recipe import Recipe

pytest.importorskip("lightning_fabric")


@pytest.fixture
def data(tmp_path):
    return datasets.load([made_up.pictures(tmp_path / "data", 9, (20, 24))])


def train(recipe, data, out, **options):
    return list(loop.train(recipe, data, out, accelerator="cpu", workers=0, cache=0, **options))


def same(a, b) -> bool:
    """Whether two checkpoints, or parts of them, are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, (list, tuple)) else a == b


def in_a_process(recipe, tmp_path, name) -> multiprocessing.Process:
    """`camlucida train` in a process of its own, which reads with a worker and saves after every step."""
    words = [
        "train", str(tmp_path / "data"), "--recipe", str(made_up.write_recipe(tmp_path / "small.toml", recipe)), "--out", str(tmp_path / name),
        "--accelerator", "cpu", "--workers", "1", "--save-every", "0", "--keep-epochs", "2", "--resume",
    ]  # fmt: skip

    def work():
        torch.set_num_threads(1)
        raise SystemExit(main(words))

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def test_killed_by_the_system_and_resumed_is_the_run_that_nobody_killed(data, tmp_path):
    """Four times SIGKILL, wherever it strikes, the saving of a checkpoint not excepted."""
    recipe = replace(made_up.SMALL, size=16, sizes=(), card_size=16, epochs=6, batch=3)
    in_a_process(recipe, tmp_path, "whole").join()
    rng, kills, last = random.Random(0), 0, tmp_path / "killed" / "checkpoints" / "last.ckpt"
    for _ in range(4):
        begun = last.stat().st_mtime_ns if last.exists() else 0
        process = in_a_process(recipe, tmp_path, "killed")
        while process.is_alive() and not (last.exists() and last.stat().st_mtime_ns != begun):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 2  # the last may find the run done
    last_run = in_a_process(recipe, tmp_path, "killed")
    last_run.join()
    assert last_run.exitcode == 0  # the folder is not held by a worker that was left behind
    assert same(made_up.checkpoint(tmp_path / "whole"), made_up.checkpoint(tmp_path / "killed"))
    for name in ("network.safetensors", "epochs/epoch-0002.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert sorted(f.name for f in last.parent.iterdir()) == ["last.ckpt"]


def test_a_checkpoint_holds_all_that_the_rest_depends_on(data, tmp_path):
    recipe = replace(made_up.SMALL, epochs=1, schedule="plateau", warmup=0.0)
    train(recipe, data.split("train"), tmp_path / "run", validate_on=data.split("tuning"))
    state = made_up.checkpoint(tmp_path / "run")
    assert (state["epoch"], state["step"], state["versions"]["torch"]) == (1, 3, str(torch.__version__))
    assert {"camlucida", "python", "torch", "numpy"} == state["versions"].keys()
    assert {"optimiser", "average", "schedule", "random", "recipe", "best"} < state.keys()
    assert state["schedule"]["best"] == state["best"]["score"]


def test_random_state_comes_back_for_all_generators():
    torch.manual_seed(5), np.random.seed(6), random.seed(7)
    random.gauss(0, 1), np.random.normal()
    state = checkpoint.random_state()

    def draw():
        return (
            torch.rand(3).tolist(),
            np.random.normal(size=3).tolist(),
            [random.gauss(0, 1) for _ in range(3)],
        )

    first = draw()
    assert draw() != first
    checkpoint.set_random_state(state)
    assert draw() == first


def test_best_and_wanted_epochs_are_kept_and_a_resumed_run_keeps_the_same(data, tmp_path, monkeypatch):
    tuning = data.split("tuning")
    recipe = replace(made_up.SMALL, epochs=4, average=0.0, size=16, sizes=())
    scores = iter([50.0, 75.0, 75.0, 60.0])

    def judged(run):
        run.tuning = {"top1": next(scores)}
        return {}

    monkeypatch.setattr(loop.Run, "judge", judged)
    options = {"validate_on": tuning, "keep_epochs": {0, 1, 3}}
    out = tmp_path / "run"
    events = loop.train(recipe, data, out, accelerator="cpu", workers=0, cache=0, **options)
    for event in events:
        if event.kind == "epoch" and event.values["epoch"] == 2:
            break
    events.close()
    best = (out / "best.safetensors").read_bytes()
    done = train(recipe, data, out, resume=True, **options)[-1]
    assert done.values["best"] == {"epoch": 2, "score": 75.0, "top1": 75.0}
    assert (out / "best.safetensors").read_bytes() == best
    kept = sorted(file.name for file in (out / "epochs").iterdir())
    assert kept == ["epoch-0000.safetensors", "epoch-0001.safetensors", "epoch-0003.safetensors"]
    nets = [cl.load(str(out / "epochs" / name)) for name in kept]
    assert [net.card.measured["epoch"] for net in nets] == [0, 1, 3]
    weights = [net.module.classify.weight for net in nets]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    assert cl.load(str(out / "best.safetensors")).card.measured == {"epoch": 2, "top1": 75.0}


def test_a_full_disk_is_one_clear_line_and_the_old_checkpoint_stays(tmp_path, monkeypatch):
    file = tmp_path / "last.ckpt"
    state = {"module": {"w": torch.ones(3)}, "step": 1, "random": []}
    checkpoint.save(file, state, Recipe())
    whole = file.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for breaks in ("torch.save", "os.fsync", "os.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(breaks, full)
            with pytest.raises(cl.CamlucidaError, match=r"cannot write .*last\.ckpt; got No space left"):
                checkpoint.save(file, {**state, "step": 2}, Recipe())
        assert file.read_bytes() == whole
        assert [f.name for f in tmp_path.iterdir()] == ["last.ckpt"]
    assert checkpoint.load(file, Recipe())["step"] == 1


@pytest.mark.parametrize("cut", [0, 10, -200])
def test_a_damaged_checkpoint_is_named(tmp_path, cut):
    file = tmp_path / "last.ckpt"
    checkpoint.save(file, {"module": {}, "step": 1, "random": []}, Recipe())
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(cl.CamlucidaError, match=r"cannot read .*last\.ckpt.*--overwrite"):
        checkpoint.load(file, Recipe())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_says_how_to_go_on(data, tmp_path, number, monkeypatch, capsys):
    recipe = replace(made_up.SMALL, epochs=3, size=16, sizes=(), batch=4)
    file = made_up.write_recipe(tmp_path / "small.toml", recipe)
    words = [
        "train", str(tmp_path / "data"), "--recipe", str(file), "--out", str(tmp_path / "run"), "--accelerator", "cpu", "--workers", "0",
    ]  # fmt: skip
    original = loop.Run.take

    def take(run, *given):
        found = original(run, *given)
        if run.step == 5:
            signal.raise_signal(number)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "take", take)
        assert main(words) == 130
    assert "--resume goes on" in capsys.readouterr().err
    assert made_up.checkpoint(tmp_path / "run")["step"] in (5, 6)
    assert main([*words, "--resume"]) == 0
    train(recipe, data, tmp_path / "whole")
    assert same(made_up.checkpoint(tmp_path / "whole"), made_up.checkpoint(tmp_path / "run"))
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [k for k in kinds if k in ("start", "stopped", "done")] == ["start", "stopped", "start", "done"]


def test_weights_that_are_not_finite_are_never_saved_over_good_ones(data, tmp_path, monkeypatch):
    """The loss is finite, the step then is not: the weights are found out when they are to be saved."""
    original = loop.Run.take

    def take(run, *given):
        found = original(run, *given)
        if run.step == 5:
            with torch.no_grad():
                run.module.classify.bias[0] = float("inf")
        return found

    monkeypatch.setattr(loop.Run, "take", take)
    with pytest.raises(
        cl.CamlucidaError, match=r"classify\.bias is not finite at step .*last\.ckpt holds the last good"
    ):
        train(replace(made_up.SMALL, epochs=3, average=0.0), data, tmp_path / "run", save_every_seconds=0)
    state = made_up.checkpoint(tmp_path / "run")
    assert state["step"] == 4
    assert all(torch.isfinite(t).all() for t in state["module"].values())
