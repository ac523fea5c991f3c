"""What a run refuses before it begins or goes on: other pictures, another recipe, sizes that cannot be, weights that are
not there."""

import json
from dataclasses import replace

import made_up
import pytest
from made_up import SMALL

import camlucida as cl
from camlucida.train import recipe
from camlucida.train.loop import train
from camlucida.values import Label

pytest.importorskip("lightning_fabric")


def test_a_refused_command_leaves_the_folder_free(words, capsys):
    from camlucida.cli import main

    assert main([*words, "--start", "none.safetensors"]) == 2
    assert main(words) == 0  # no run is held there


def test_resuming_with_another_recipe_keeps_the_recipe_of_the_run(words, tmp_path):
    from camlucida.cli import main

    assert main(words) == 0
    before = (tmp_path / "run" / "recipe.toml").read_text()
    assert main([*words, "--resume", "--batch", "7"]) == 2
    assert (tmp_path / "run" / "recipe.toml").read_text() == before
    assert main([*words, "--overwrite", "--batch", "7"]) == 0
    assert "batch = 7" in (tmp_path / "run" / "recipe.toml").read_text()


def test_resuming_with_other_pictures_is_refused(data, tmp_path):
    def other(**changes):
        return replace(data, **changes)

    first, *rest = data.examples
    renamed = replace(first, source=replace(first.source, relative="n01/other.png"))
    moved = replace(first, source=replace(first.source, name="elsewhere", file="/elsewhere/0.png"))
    list(train(SMALL, data, tmp_path / "run", accelerator="cpu", workers=0, stop=lambda: True))
    for given, tuning in (
        (other(examples=tuple(rest)), None),
        (other(labels=(*data.labels, Label("n03", "n03"))), None),
        (other(examples=(renamed, *rest)), None),
        (other(examples=(replace(first, label=1, labels=(1,)), *rest)), None),
        (data, data),  # a tuning split that was not held out before
    ):
        with pytest.raises(cl.UsageError, match=r"other pictures.*--split"):
            list(train(SMALL, given, tmp_path / "run", validate_on=tuning, accelerator="cpu", workers=0, resume=True, stop=lambda: True))  # fmt: skip
    found = train(
        SMALL, other(examples=(moved, *rest)), tmp_path / "run", accelerator="cpu", workers=0, resume=True
    )
    assert next(found).values["from_step"] == 1  # the same pictures in another place


def fully_connected(**changes):
    arguments = {"width": 0.0625, "size": 64}
    given = {
        "network": "alexnet",
        "arguments": arguments,
        "size": 64,
        "sizes": (),
        "card_size": 72,
        "card_crop": 64,
        "any_size": False,
    }
    return replace(SMALL, **{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"size": 48}, "recipe: size; got 48; allowed: 64"), ({"sizes": (48,)}, "recipe: size; got 48, 64"), ({"card_crop": 0}, "card_crop; got 72"),
     ({"any_size": True}, "any_size"), ({"arguments": {"width": 0.0625, "size": 64, "num_classes": 7}}, "num_classes; got 7; allowed: 2")],
)  # fmt: skip
def test_fully_connected_layers_take_one_side(data, tmp_path, changes, said):
    with pytest.raises(cl.UsageError, match=said):
        next(train(fully_connected(**changes), data, tmp_path / "run", accelerator="cpu", workers=0))


def test_fully_connected_network_is_shown_whole_pictures(data, tmp_path):
    made = fully_connected(epochs=1, average=0.0)
    list(train(made, data, tmp_path / "run", accelerator="cpu", workers=0))
    net = cl.load(str(tmp_path / "run" / "network.safetensors"))
    batch = net.preprocess([data.examples[0].source.name], view="whole")  # 50 × 70, squashed
    assert batch.pixels.shape == (1, 3, 64, 64)
    assert net(batch).shape == (1, 2)


def test_start_replaces_the_recipe_s_and_is_told(words, tmp_path):
    from camlucida.cli import main

    assert main(words) == 0
    made = str(tmp_path / "run" / "network.safetensors")
    words[words.index("--out") + 1] = str(tmp_path / "second")
    assert main([*words, "--start", made]) == 0
    assert recipe.load(tmp_path / "second" / "recipe.toml").start == made
    lines = [json.loads(line) for line in (tmp_path / "second" / "log.jsonl").read_text().splitlines()]
    told = next(line for line in lines if line["kind"] == "start")
    net = cl.load(made)
    count = len(list(net.module.parameters()))
    assert (told["started_from"], told["copied"], told["fresh_layers"]) == (made, f"{count} of {count} parameters", "none")  # fmt: skip


def test_colours_are_not_fitted_for_nothing(words, tmp_path, capsys):
    from camlucida.cli import main

    still = replace(SMALL, augmentation=replace(SMALL.augmentation, pca=0.0))
    made_up.write_recipe(tmp_path / "small.toml", still)
    assert main([*words, "--fit-pca"]) == 2
    assert "shifts no colours" in capsys.readouterr().err


def test_published_splits_that_are_learnt_together_are_named(words, tmp_path, capsys):
    from camlucida.cli import main

    made_up.pictures(tmp_path / "set" / "train")
    made_up.pictures(tmp_path / "set" / "val", each=2)
    words[1] = str(tmp_path / "set")
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "the published splits train, val are learnt together" in said
    assert "pictures 20 " in said
    assert main([*words, "--subset", "train", "--overwrite"]) == 0
    said = capsys.readouterr().err
    assert "together" not in said
    assert "pictures 16 " in said
