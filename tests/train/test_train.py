"""Training on a handful of made-up pictures: the same run whether interrupted or not, and what it leaves behind."""

import json
import tomllib

import numpy as np
import pytest
import torch
from PIL import Image

import camlucida as cl
from camlucida.images import datasets
from camlucida.images.augment import Augmentation
from camlucida.networks import cards
from camlucida.train import loop, optimise, recipe
from camlucida.train.feed import Order
from camlucida.train.recipe import Recipe

pytest.importorskip("lightning_fabric")

SMALL = Recipe(
    name="small", network="lucida", arguments={"width": 0.125, "dropout": 0.2}, size=32, sizes=(24,), card_size=64,
    epochs=2, batch=6, learning_rate=0.05, average=0.9, precision="32-true", augmentation=Augmentation(jitter=0.2, cutmix=1.0, mixup=0.2),
)  # fmt: skip


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    for label, colour in (("n01", (200, 40, 40)), ("n02", (40, 40, 200))):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(8):
            noise = rng.integers(-30, 30, (50, 70, 3))
            Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(
                tmp_path / "data" / label / f"{i}.png"
            )
    return datasets.load([tmp_path / "data"])


def finished(events):
    return [e for e in events if e.kind == "epoch"]


def weights(out):
    return cards.read_weights(out / "network.safetensors", cards.read_card(out / "network.safetensors"))


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_interrupted_and_resumed_is_the_uninterrupted_run(data, tmp_path, stop_after):
    list(loop.train(SMALL, data, tmp_path / "whole", accelerator="cpu", workers=0))
    # The generator is closed after that many steps, as a kill would: what is on disk is what the run goes on from.
    steps = 0
    original = loop.checkpoint.save

    def counted(*arguments):
        nonlocal steps
        original(*arguments)
        steps += 1
        if steps == stop_after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.checkpoint, "save", counted)
        with pytest.raises(KeyboardInterrupt):
            list(
                loop.train(
                    SMALL, data, tmp_path / "parts", accelerator="cpu", workers=0, save_every_seconds=0
                )
            )
    torch.manual_seed(99)
    list(loop.train(SMALL, data, tmp_path / "parts", accelerator="cpu", workers=0, resume=True))
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_two_runs_are_equal_and_other_seeds_are_not(data, tmp_path):
    from dataclasses import replace

    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        list(
            loop.train(
                replace(SMALL, seed=seed, epochs=1), data, tmp_path / name, accelerator="cpu", workers=0
            )
        )
    a, b, c = (weights(tmp_path / n) for n in "abc")
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not torch.equal(a["classify.weight"], c["classify.weight"])


def test_it_learns_and_the_packed_network_localizes(data, tmp_path):
    from dataclasses import replace

    easy = replace(
        SMALL, epochs=12, average=0.0, arguments={"width": 0.125}, augmentation=Augmentation(pca=0.0)
    )
    events = list(loop.train(easy, data, tmp_path / "run", validate_on=data, accelerator="cpu", workers=0))
    assert finished(events)[-1].values["top1"] == 100.0  # red against blue
    net = cl.load(str(tmp_path / "run" / "network.safetensors"))
    assert [label.id for label in net.card.labels] == ["n01", "n02"]
    (found,) = cl.localize(net, Image.new("RGB", (90, 70), (200, 40, 40)), top=1)
    assert found[0].class_id == "n01"


def test_checkpoint_of_another_recipe_is_refused(data, tmp_path):
    from dataclasses import replace

    list(loop.train(replace(SMALL, epochs=1), data, tmp_path / "run", accelerator="cpu", workers=0))
    with pytest.raises(cl.UsageError, match="weight_decay"):
        list(
            loop.train(
                replace(SMALL, epochs=1, weight_decay=0.1),
                data,
                tmp_path / "run",
                accelerator="cpu",
                workers=0,
                resume=True,
            )
        )


def test_a_loss_that_is_not_finite_stops_with_the_step(data, tmp_path):
    from dataclasses import replace

    wild = replace(SMALL, learning_rate=1e30, epochs=30, average=0.0)
    with pytest.raises(cl.CamlucidaError, match="not finite at step"):
        list(loop.train(wild, data, tmp_path / "run", accelerator="cpu", workers=0))


def test_broken_pictures_are_named_and_skipped(data, tmp_path):
    from dataclasses import replace

    (tmp_path / "data" / "n01" / "3.png").write_bytes(b"not a picture")
    events = list(loop.train(replace(SMALL, epochs=1), data, tmp_path / "run", accelerator="cpu", workers=0))
    reasons = [e.values["reason"] for e in events if e.kind == "rejected"]
    assert len(reasons) == 1
    assert "3.png" in reasons[0]
    assert events[-1].kind == "done"


def test_order_visits_every_picture_once_an_epoch_and_shares_between_processes():
    order = Order(23, 5, seed=3)
    once = [i for batch in order for _, i in batch]
    assert sorted(once) == list(range(23))
    order.epoch = 1
    assert [i for batch in order for _, i in batch] != once
    order.epoch, order.skip = 0, 2
    assert [i for batch in order for _, i in batch] == once[10:]
    shares = [[i for batch in Order(23, 5, 3, rank, 2) for _, i in batch] for rank in (0, 1)]
    assert set(shares[0]) | set(shares[1]) == set(range(23))
    assert len(shares[0]) == len(shares[1])


def test_learning_rate_by_hand():
    r = Recipe(learning_rate=1.0, warmup=0.5, schedule="one-cycle")
    assert [round(optimise.learning_rate(r, s, 8), 6) for s in range(8)] == [
        0.2,
        0.4,
        0.6,
        0.8,
        1.0,
        0.75,
        0.5,
        0.25,
    ]
    cosine = Recipe(learning_rate=2.0, warmup=0.0, schedule="cosine")
    assert optimise.learning_rate(cosine, 5, 10) == pytest.approx(1.0)
    assert optimise.learning_rate(Recipe(learning_rate=0.3, warmup=0.0, schedule="constant"), 9, 10) == 0.3


def test_weight_decay_spares_biases_and_norms():
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(4, 2)
    )
    decayed, others = optimise.optimiser(module, Recipe(weight_decay=0.01)).param_groups
    assert (len(decayed["params"]), decayed["weight_decay"]) == (2, 0.01)
    assert (len(others["params"]), others["weight_decay"]) == (4, 0.0)


def test_average_is_the_slow_formula():
    module, decay = torch.nn.Linear(3, 2).double(), 0.9
    average = {n: t.detach().clone() for n, t in module.state_dict().items()}
    slow = average["weight"].clone()
    for step in range(5):
        with torch.no_grad():
            module.weight += 1.0
        keep = min(decay, (1 + step) / (10 + step))
        slow = keep * slow + (1 - keep) * module.weight.detach()
        optimise.update_average(average, module, decay, step)
    assert torch.allclose(average["weight"], slow, rtol=1e-12)


@pytest.mark.parametrize("name", recipe.names())
def test_recipes_read_and_round_trip(name):
    found = recipe.load(name)
    assert recipe.from_dict(tomllib.loads(recipe.to_toml(found))) == found


def test_recipe_errors_name_the_nearest():
    with pytest.raises(cl.UsageError, match="did you mean 'embedded'"):
        recipe.load("embeded")
    with pytest.raises(cl.UsageError, match="did you mean 'epochs'"):
        recipe.load("embedded", {"epoch": 3})
    with pytest.raises(cl.UsageError, match="did you mean 'jitter'"):
        recipe.load("embedded", {"augmentation": {"jiter": 3}})


def test_command_line_trains_and_resumes(data, tmp_path, capsys):
    from camlucida.cli import main

    (tmp_path / "small.toml").write_text(recipe.to_toml(SMALL), encoding="utf-8")
    common = [
        "train",
        str(tmp_path / "data"),
        "--recipe",
        str(tmp_path / "small.toml"),
        "--out",
        str(tmp_path / "run"),
        "--accelerator",
        "cpu",
        "--workers",
        "0",
    ]
    assert main([*common, "--epochs", "1"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[0]["kind"] == "command"
    assert lines[-1]["kind"] == "done"
    assert main([*common, "--epochs", "1"]) == 2  # the folder holds a run
    assert "--resume" in capsys.readouterr().err
    assert main([*common, "--epochs", "1", "--resume"]) == 0
    assert main([*common[:3], "nonsense", *common[4:]]) == 2
