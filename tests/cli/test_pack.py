"""`camlucida pack`: what is packed is what was given, and nothing is written that does not come back."""

import json

import numpy as np
import own_networks
import pytest
import torch

import camlucida as cl
from camlucida.cli import main
from camlucida.errors import NetworkError
from camlucida.images.views import Preprocessing
from camlucida.networks import cards
from camlucida.values import Label
from small_networks import seeded

OWN = ["--arch", "own_networks:gap", "--weights", "mine.pth"]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": seeded(own_networks.gap).state_dict(), "epoch": 1}, "mine.pth")
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\n")
    return tmp_path


def pixels():
    return torch.randn(2, 3, 20, 28, generator=torch.Generator().manual_seed(1))


def test_the_file_and_its_card(desk, capsys):
    words = ["--licence", "MIT", "--terms", "for study", "--trained-on", "my garden", "--name", "Garten"]
    shape = ["--size", "48", "--crop", "40", "--interpolation", "bicubic", "--activation", "sigmoid"]
    assert main(["pack", "deep/out.safetensors", *OWN, "--labels", "names.txt", *words, *shape]) == 0
    shown = capsys.readouterr().out
    card = cards.read_card("deep/out.safetensors")
    assert card == cl.Card(
        "Garten", "own_networks:gap", {}, Preprocessing(48, 40, interpolation="bicubic"),
        tuple(Label(str(i), n) for i, n in enumerate(("ant", "bee", "cat", "dog"))), "sigmoid", licence="MIT", terms="for study",
        trained_on="my garden", sha256=cards.digest(seeded(own_networks.gap).state_dict()),
    )  # fmt: skip
    net = cl.load("deep/out.safetensors")
    torch.testing.assert_close(net(pixels()), seeded(own_networks.gap)(pixels()).detach(), rtol=0, atol=0)
    for said in ("Garten", "shorter side 48, crop 40", "4: ant, bee, cat, dog", "loaded anew, all 4 logits are equal", "PYTHONPATH"):  # fmt: skip
        assert said in shown
    assert sorted(p.name for p in (desk / "deep").iterdir()) == ["out.safetensors"]


def test_sixteen_bits(desk, capsys):
    assert main(["pack", "half.safetensors", *OWN, "--half"]) == 0
    assert "16-bit weights moved" in capsys.readouterr().out
    rounded = seeded(own_networks.gap)
    rounded.load_state_dict({n: t.half().float() for n, t in rounded.state_dict().items()})
    found = cl.load("half.safetensors")(pixels())
    torch.testing.assert_close(found, rounded(pixels()).detach(), rtol=0, atol=0)
    assert not torch.equal(found, seeded(own_networks.gap)(pixels()))


def test_packed_again_with_another_card(desk, capsys):
    assert main(["pack", "a.safetensors", *OWN]) == 0
    (desk / "others.txt").write_text("A\nB\nC\nD\n")
    mean = ["--mean", "0", "0", "0", "--std", "1", "1", "1"]
    assert main(["pack", "b.safetensors", "--network", "a.safetensors", "--labels", "others.txt", *mean]) == 0
    a, b = cards.read_card("a.safetensors"), cards.read_card("b.safetensors")
    assert (b.name, b.sha256, a.labels) == ("a", a.sha256, ())
    assert [one.name for one in b.labels] == ["A", "B", "C", "D"]
    assert (b.preprocessing.mean, b.preprocessing.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    before = (desk / "b.safetensors").read_bytes()
    capsys.readouterr()
    assert main(["pack", "b.safetensors", *OWN]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (desk / "b.safetensors").read_bytes() == before
    assert main(["pack", "b.safetensors", *OWN, "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == []


def test_a_network_that_does_not_come_back_is_not_written(desk, capsys):
    torch.save(own_networks.Unsteady().state_dict(), "unsteady.pth")
    assert (
        main(["pack", "out.safetensors", "--arch", "own_networks:Unsteady", "--weights", "unsteady.pth"]) == 2
    )
    assert "loaded anew it gives other logits" in capsys.readouterr().err
    broken = seeded(own_networks.gap).state_dict()
    broken["0.weight"][0] = float("nan")
    torch.save(broken, "broken.pth")
    assert main(["pack", "out.safetensors", "--arch", "own_networks:gap", "--weights", "broken.pth"]) == 2
    assert "not numbers" in capsys.readouterr().err
    huge = seeded(own_networks.gap).state_dict()
    huge["4.bias"] += 1e6
    torch.save(huge, "huge.pth")
    assert (
        main(["pack", "out.safetensors", "--arch", "own_networks:gap", "--weights", "huge.pth", "--half"])
        == 2
    )
    assert "too large for --half" in capsys.readouterr().err
    assert not list(desk.glob("*.safetensors")) + list(desk.glob(".*.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["out.pth", *OWN], "ends with .safetensors"),
        (["out.safetensors"], "--arch NAME --weights FILE"),
        (["out.safetensors", *OWN, "--precision", "16-true"], "--half"),
        (["out.safetensors", "--arch", "own_networks:gap", "--weights", "gone.pth"], "gone.pth"),
    ],
)
def test_usage_errors(desk, capsys, arguments, said):
    assert main(["pack", *arguments]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


def test_a_file_cannot_call_what_is_installed(desk):
    """Only code of the user's own, or named by the user, is run for a packed file."""
    for architecture, arguments in (
        ("os:system", {"command": "touch ran"}),
        ("torch.hub:load", {"repo_or_dir": "x/y", "model": "z"}),
        ("timm/hf-hub:x/y", {}),
    ):
        cards.pack("evil.safetensors", {"a": torch.zeros(1)}, cl.Card("evil", architecture, arguments))
        with pytest.raises(NetworkError, match=f"asks to run {architecture}"):
            cl.load("evil.safetensors")
    assert not (desk / "ran").exists()
    cards.pack("gone.safetensors", {"a": torch.zeros(1)}, cl.Card("gone", "no_such_package:build"))
    with pytest.raises(NetworkError, match="cannot import no_such_package, .*PYTHONPATH"):
        cl.load("gone.safetensors")


def test_named_code_takes_the_card_of_packed_weights(desk):
    assert main(["pack", "a.safetensors", *OWN, "--labels", "names.txt", "--size", "50"]) == 0
    packed, named = cl.load("a.safetensors"), cl.load("own_networks:gap", weights="a.safetensors")
    assert named.card == packed.card
    np.testing.assert_array_equal(named(pixels()), packed(pixels()))


def test_networks_shows_cards_and_lists(desk, capsys):
    assert main(["pack", "a.safetensors", *OWN, "--labels", "names.txt"]) == 0
    capsys.readouterr()
    assert main(["networks", "a.safetensors"]) == 0
    shown = capsys.readouterr().out
    assert "RGB in 0…1, minus (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225)" in shown
    assert "4: ant, bee, cat, dog" in shown
    assert main(["networks", "torchvision"]) == 0
    assert "torchvision/resnet18\n" in capsys.readouterr().out
    assert main(["networks", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["aliases"]["embedded"].startswith("lucida-tiny200")
