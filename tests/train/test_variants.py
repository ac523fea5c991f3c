"""Recipes whose network leaves layers out or has other widths (section 13)."""

import tomllib

import made_up
import pytest
import torch

import camlucida as cl
from camlucida.images.augment import Augmentation
from camlucida.networks import catalogue
from camlucida.train import recipe
from camlucida.train.recipe import Recipe
from camlucida.train.variants import change, varied

ALEXNET = Recipe(
    name="short", network="alexnet", arguments={"width": 0.0625, "size": 64}, size=64, card_size=64, card_crop=64,
    any_size=False, epochs=1, batch=8, learning_rate=0.01, precision="32-true", augmentation=Augmentation(),
)  # fmt: skip


def test_a_variant_says_so_and_reads_back():
    found = varied(recipe.load("alexnet-twin"), "3,4", "6:2048, 7:8192")
    assert found.name == "alexnet-twin-without-3-4-6-2048-7-8192"
    assert found.about.endswith("Here without layers 3, 4; 6: 2048 units, 7: 8192 units.")
    assert found.arguments == {"width": 0.25, "size": 128, "remove": [3, 4], "widths": {"6": 2048, "7": 8192}}
    assert recipe.from_dict(tomllib.loads(recipe.to_toml(found))) == found
    with torch.device("meta"):
        parts = dict(catalogue.build(found.network, found.arguments).named_modules())
    assert "features.conv4" not in parts
    assert (parts["classifier.fc6"].out_features, parts["classifier.fc7"].out_features) == (512, 2048)
    assert varied(recipe.load("alexnet-twin")) == recipe.load("alexnet-twin")


def test_changes_in_words():
    assert change({"remove": (3, 4)}) == "without layers 3, 4"
    assert change({"widths": {6: 2048}}) == "6: 2048 units"
    assert change({"width": 0.25, "widths": [8, 8]}) == ""  # another network's


@pytest.mark.parametrize(
    ("name", "remove", "widths", "words"),
    [
        (
            "vgg-a-twin",
            "3",
            None,
            "--remove; got recipe vgg-a-twin, whose network vgg-a has no numbered layers",
        ),
        ("embedded", None, "3:5", "--widths; got recipe embedded"),
        ("zfnet-twin", "9", None, r"remove; got \[9\]; allowed: layers"),
        ("zfnet-twin", "three", None, "--remove; got 'three'"),
        ("zfnet-twin", "", None, "--remove; got ''"),
        ("zfnet-twin", None, "6=20", "--widths; got '6=20'"),
        ("zfnet-twin", None, "6:0", "--widths; got '6:0'"),
        ("zfnet-twin", "6", "6:20", "a removed layer has no width"),
    ],
)
def test_what_cannot_be_varied_is_one_line(name, remove, widths, words):
    with pytest.raises(cl.CamlucidaError, match=words) as caught:
        varied(recipe.load(name), remove, widths)
    assert "\n" not in str(caught.value)


def test_the_command_line_trains_a_variant_that_rebuilds_itself(data, tmp_path, capsys):
    pytest.importorskip("lightning_fabric")
    from camlucida.cli import main

    file = made_up.write_recipe(tmp_path / "short.toml", ALEXNET)
    words = ["train", str(tmp_path / "data"), "--recipe", str(file), "--accelerator", "cpu", "--workers", "0"]
    out = tmp_path / "run"
    assert main([*words, "--out", str(out), "--remove", "3,4,7", "--widths", "6:320"]) == 0
    written = recipe.load(out / "recipe.toml")
    assert (written.name, written.arguments["remove"]) == ("short-without-3-4-7-6-320", [3, 4, 7])
    net = cl.load(str(out / "network.safetensors"))
    assert net.card.arguments["widths"] == {"6": 320}
    assert net.card.trained_by.startswith("recipe short-without-3-4-7-6-320")
    names = [name for name, _ in net.module.named_parameters() if name.endswith("weight")]
    assert names == ["features.conv1.weight", "features.conv2.weight", "features.conv5.weight", "classifier.fc6.weight", "classifier.fc8.weight"]  # fmt: skip
    assert net.module.get_submodule("classifier.fc6").out_features == 20
    capsys.readouterr()
    assert main([*words, "--out", str(out), "--remove", "3,4,7", "--widths", "6:320", "--resume"]) == 0
    assert main([*words, "--out", str(tmp_path / "other"), "--remove", "8"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("camlucida train: remove; got [8]")
    assert not (tmp_path / "other").exists()
