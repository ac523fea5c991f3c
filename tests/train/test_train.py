"""Training on a handful of made-up pictures: the same run whether interrupted or not, and what it leaves behind."""

import json
import tomllib

import made_up
import pytest
import torch
from made_up import SMALL
from PIL import Image

import camlucida as cl
from camlucida.images import datasets
from camlucida.images.augment import Augmentation
from camlucida.networks import cards
from camlucida.train import loop, optimise, recipe
from camlucida.train.feed import Order
from camlucida.train.recipe import Recipe

pytest.importorskip("lightning_fabric")


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


def test_an_exploding_rate_stops_at_its_step_and_keeps_the_last_good_state(data, tmp_path):
    from dataclasses import replace

    wild = replace(SMALL, learning_rate=1e30, epochs=30, average=0.0, warmup=0.0)
    with pytest.raises(cl.CamlucidaError, match="not finite at step") as raised:
        list(loop.train(wild, data, tmp_path / "run", accelerator="cpu", workers=0))
    assert int(str(raised.value).split("at step ")[1].split()[0]) <= 3
    assert "lower learning_rate" in str(raised.value)
    if (tmp_path / "run" / "checkpoints" / "last.ckpt").exists():
        state = made_up.checkpoint(tmp_path / "run")["module"]
        assert all(torch.isfinite(t).all() for t in state.values())


def numbers(tmp_path, values):
    """A data set of pictures with one number each."""
    from camlucida.images.datasets import DataSet, Example

    found = datasets.load([tmp_path / "data"])
    pairs = zip(found.examples, values, strict=True)
    return DataSet(tuple(Example(e.source, -1, values=(float(v),)) for e, v in pairs), ())


def test_a_poisoned_picture_stops_at_its_step_and_is_named(data, tmp_path):
    from dataclasses import replace

    poisoned = numbers(tmp_path, [0.1] * 15 + [float("nan")])
    recipe = replace(
        SMALL, task="regression", batch=1, epochs=1, augmentation=Augmentation(), arguments={"width": 0.125}
    )
    order = [i for batch in Order(16, 1, 0) for _, i in batch]
    at = order.index(15) + 1
    with pytest.raises(cl.CamlucidaError, match=rf"not finite at step {at} .*its pictures: .*n02/7\.png"):
        list(
            loop.train(recipe, poisoned, tmp_path / "run", accelerator="cpu", workers=0, save_every_seconds=0)
        )
    if at > 1:
        state = made_up.checkpoint(tmp_path / "run")
        assert state["step"] == at - 1
        assert all(torch.isfinite(t).all() for t in state["module"].values())


def test_accumulated_batches_give_the_large_batch_in_float64(data, tmp_path):
    """No batch norm, whose statistics are each small batch's own. The last batch of 4 is uneven: 2 and 2 against 3 + 1."""
    from dataclasses import replace

    torch.set_default_dtype(torch.float64)
    try:
        large = replace(
            SMALL, network="test_train:plain_network", arguments={}, size=16, sizes=(), batch=6, average=0.0, precision="64-true",
            augmentation=Augmentation(mixup=0.2),
        )  # fmt: skip
        for name, made in (("large", large), ("parts", replace(large, batch=2, accumulate=3))):
            list(loop.train(made, data, tmp_path / name, accelerator="cpu", workers=0))
    finally:
        torch.set_default_dtype(torch.float32)
    one, parts = (made_up.checkpoint(tmp_path / name) for name in ("large", "parts"))
    assert one["step"] == parts["step"] == 6
    for name, tensor in one["module"].items():
        torch.testing.assert_close(parts["module"][name], tensor, rtol=1e-11, atol=1e-13)


def plain_network(num_classes):
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)
    )


def test_several_labels_and_numbers_are_learnt(data, tmp_path):
    from dataclasses import replace

    from camlucida.images.datasets import DataSet

    easy = replace(
        SMALL,
        epochs=8,
        size=16,
        sizes=(),
        average=0.0,
        arguments={"width": 0.125},
        augmentation=Augmentation(pca=0.0),
    )
    # Red pictures carry the first label, blue ones both.
    both = DataSet(
        tuple(replace(e, label=0, labels=(0, 1)[: e.label + 1], boxes=(), objects=()) for e in data.examples),
        data.labels,
        True,
    )
    for task, given, figure in (
        ("sigmoid", both, "labels"),
        ("regression", numbers(tmp_path, [0.0] * 8 + [1.0] * 8), "squared_error"),
    ):
        recipe = replace(easy, task=task, label_smoothing=0.0)
        events = list(
            loop.train(recipe, given, tmp_path / task, validate_on=given, accelerator="cpu", workers=0)
        )
        found = [e.values[figure] for e in finished(events)]
        if task == "sigmoid":
            assert found[-1] == 100.0
        else:
            assert found[-1] < 0.125  # the best constant answer: 0.25
        net = cl.load(str(tmp_path / task / "network.safetensors"))
        assert net.card.activation == {"sigmoid": "sigmoid", "regression": "none"}[task]


def test_broken_pictures_are_named_and_skipped(data, tmp_path):
    from dataclasses import replace

    (tmp_path / "data" / "n01" / "3.png").write_bytes(b"not a picture")
    events = list(loop.train(replace(SMALL, epochs=1), data, tmp_path / "run", accelerator="cpu", workers=0))
    (rejected,) = [e.values for e in events if e.kind == "rejected"]
    assert rejected["path"].endswith("n01/3.png")
    assert "not a picture" in rejected["reason"]
    assert events[-1].kind == "done"


def test_order_visits_every_picture_once_an_epoch():
    order = Order(23, 5, seed=3)
    once = [i for batch in order for _, i in batch]
    assert sorted(once) == list(range(23))
    order.epoch = 1
    assert [i for batch in order for _, i in batch] != once
    order.epoch, order.skip = 0, 2
    assert [i for batch in order for _, i in batch] == once[10:]


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


def test_command_line_trains_and_resumes(words, tmp_path, capsys):
    from camlucida.cli import main

    words[1] = str(made_up.pictures(tmp_path / "more", 9))  # of 8 none would be in the tuning split
    nothing = f"--resume: no checkpoint in {tmp_path / 'run'}, the run starts from the beginning"
    (tmp_path / "run").mkdir()
    assert main([*words, "--split", "train", "--keep-epochs", "0,1", "--tensorboard", "--resume"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[0]["kind"] == "command"
    assert lines[-1]["kind"] == "done"
    printed = capsys.readouterr()
    assert printed.out.split() == [str(tmp_path / "run" / "network.safetensors")]
    assert printed.err.count(nothing) == 1
    made = {file.name for file in (tmp_path / "run").iterdir()}
    assert made == {
        "best.safetensors", "checkpoints", "curves.png", "epochs", "log.jsonl", "network.safetensors", "recipe.toml", "rejected.csv",
        "tensorboard", "training.html",
    }  # fmt: skip
    assert main(words) == 2  # the folder holds a run
    assert "--resume" in capsys.readouterr().err
    assert main([*words, "--split", "train", "--resume"]) == 0
    assert nothing not in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert not (tmp_path / "run" / "best.safetensors").exists()


def test_command_line_trains_on_permuted_labels(words, tmp_path, capsys):
    from camlucida.cli import main

    assert main([*words, "--shuffle-labels", "1"]) == 0
    net = cl.load(str(tmp_path / "run" / "network.safetensors"))
    assert net.card.trained_on.endswith("labels permuted (seed 1)")
    capsys.readouterr()
    assert main([*words, "--resume"]) == 2  # other labels, and the recipe says so


def test_an_unknown_recipe_is_answered_with_those_that_are_known(words, capsys):
    from camlucida.cli import main

    words[3] = "zzz"
    assert main(words) == 2
    assert "embedded" in capsys.readouterr().err


def test_command_line_lists_broken_pictures_once_and_ends_with_3(words, tmp_path, capsys):
    from camlucida.cli import main

    (tmp_path / "data" / "n01" / "3.png").write_bytes(b"no picture")
    for more in ([], ["--resume"]):
        assert main([*words, *more, "--epochs", "2"]) == 3
        rows = (tmp_path / "run" / "rejected.csv").read_text().splitlines()
        assert rows[0] == "path,reason"
        assert [row.split(",")[0].endswith("n01/3.png") for row in rows[1:]] == [True]
    lines = [json.loads(line)["kind"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines.count("rejected") == 1
    assert "1 picture could not be read" in capsys.readouterr().err


def test_command_line_fits_colours_to_the_pictures(words, tmp_path):
    from camlucida.cli import main

    assert main([*words, "--fit-pca"]) == 0
    made = recipe.load(tmp_path / "run" / "recipe.toml").augmentation
    values, first = made.pca_values, [row[0] for row in made.pca_vectors]
    # Red against blue: they differ along (1, 0, −1), by 160 of 255.
    assert values[0] == pytest.approx(2 * (80 / 255) ** 2, rel=0.05)
    assert [abs(v) for v in first] == pytest.approx([0.5**0.5, 0.0, 0.5**0.5], abs=0.02)
    assert main([*words, "--fit-pca", "--resume"]) == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--keep-epochs", "1,x"], "--keep-epochs"), (["--devices", "0"], "--devices"), (["--resume", "--overwrite"], "together"),
     (["--precision", "7"], "precision"), (["--accelerator", "tpu2"], "accelerator"), (["--accelerator", "tpu"], "accelerator"),
     (["--cache", "-1"], "--cache"), (["--cache", "nan"], "--cache"), (["--seed", "-1"], "seed"), (["--keep-epochs", "0,2"], "0 to 1"),
     (["--start", "none.safetensors"], "--start FILE")],
)  # fmt: skip
def test_command_line_says_what_is_wrong(words, more, said, capsys):
    from camlucida.cli import main

    assert main([*words, *more]) == 2
    assert said in capsys.readouterr().err
