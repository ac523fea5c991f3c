"""Cards and packed files: what was written is read back, what is damaged is refused, no file runs code."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from camlucida.errors import NetworkError
from camlucida.images.views import Preprocessing
from camlucida.networks import cards
from camlucida.networks.cards import Card, Tuned
from camlucida.values import Label
from small_networks import gap

RAN: list[str] = []


class RunsCode:
    """Unpickling this calls a function: what a hostile weights file does."""

    def __reduce__(self):
        return (RAN.append, ("it ran",))


FULL = Card(
    name="small",
    architecture="somewhere:build",
    arguments={"classes": 5, "head": {"pool": "gap", "cut": None}},
    preprocessing=Preprocessing(
        96, 64, "squash", "bicubic", "BGR", 255.0, (1.0, 2.0, 3.0), (1.0, 1.0, 2.0), False, 32
    ),
    labels=(Label("n01", "Katze, größer"), Label("n02", "")),
    activation="sigmoid",
    localization=Tuned("grad-cam", "quantile:q=0.7", "flip", "the tuning split"),
    licence="MIT",
    terms="none",
    trained_by="recipe",
    trained_on="data",
    measured={"top-1": 0.7, "by": ["a", "b"]},
    sha256="0" * 64,
)


@pytest.mark.parametrize("card", [Card(), FULL])
def test_a_card_in_json_and_back(card):
    assert Card.from_json(card.to_json()) == card


def test_labels_of_classes():
    assert FULL.label(0) == Label("n01", "Katze, größer")
    assert FULL.label(2) == Label("2", "class 2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {**d, "schema": 2}, "got schema 2; allowed: schema 1"),
        (lambda d: {k: v for k, v in d.items() if k != "schema"}, "got schema None"),
        (lambda d: {k: v for k, v in d.items() if k != "labels"}, "KeyError: 'labels'"),
        (lambda d: {**d, "surprise": 1}, "TypeError: .*surprise"),
        (lambda d: {**d, "preprocessing": {"sizes": 3}}, "TypeError: .*sizes"),
        (lambda d: [d], "cannot be read"),
        (lambda d: None, "cannot be read"),
    ],
)
def test_another_schema_or_a_broken_card(change, message):
    text = json.dumps(change(json.loads(FULL.to_json())))
    with pytest.raises(NetworkError, match=message):
        Card.from_json(text)
    with pytest.raises(NetworkError, match="cannot be read"):
        Card.from_json(text[:-3] + "}")


def state() -> dict:
    return {**gap().state_dict(), "count": torch.tensor(3), "flags": torch.tensor([True, False])}


def test_packed_weights_come_back(tmp_path):
    file = tmp_path / "deep" / "net.safetensors"
    written = cards.pack(file, state(), FULL)
    assert written == replace(FULL, sha256=cards.digest(state()))
    assert cards.read_card(file) == written
    found = cards.read_weights(file, written)
    assert found.keys() == state().keys()
    assert all(torch.equal(found[name], value) for name, value in state().items())
    assert [f.name for f in file.parent.iterdir()] == ["net.safetensors"]


def test_half_precision_is_half_as_large_and_comes_back_rounded(tmp_path):
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    big = {"w": torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), "count": torch.tensor(70000)}
    cards.pack(whole, big, FULL)
    card = cards.pack(half, big, FULL, torch.float16)
    found = cards.read_weights(half, card)
    assert found["w"].dtype == torch.float32
    assert torch.equal(found["w"], big["w"].half().float())
    assert int(found["count"]) == 70000
    assert whole.stat().st_size - half.stat().st_size == 64 * 64 * 2


def test_a_flipped_bit_is_refused(tmp_path):
    file = tmp_path / "net.safetensors"
    card = cards.pack(file, state(), FULL)
    raw = bytearray(file.read_bytes())
    raw[-5] ^= 1
    file.write_bytes(raw)
    with pytest.raises(NetworkError, match="damaged: its weights do not match"):
        cards.read_weights(file, cards.read_card(file))
    assert cards.read_weights(file, replace(card, sha256=""))


def test_the_digest_sees_names_types_shapes_and_values():
    base = {"a": torch.arange(4.0), "b": torch.zeros(2)}
    others = [
        {"a": torch.arange(4.0), "c": torch.zeros(2)},
        {"a": torch.arange(4.0).view(2, 2), "b": torch.zeros(2)},
        {"a": torch.arange(4.0), "b": torch.zeros(2, dtype=torch.int32)},
        {"a": torch.arange(4.0) + 1e-6, "b": torch.zeros(2)},
    ]
    assert len({cards.digest(one) for one in [base, *others]}) == 5
    assert cards.digest(dict(reversed(base.items()))) == cards.digest(base)
    strided = torch.arange(8.0).view(4, 2).T.contiguous().T[:, 0]
    assert cards.digest({"a": strided}) == cards.digest({"a": torch.arange(0.0, 8, 2)})


def test_files_without_a_card(tmp_path):
    bare = tmp_path / "bare.safetensors"
    save_file(gap().state_dict(), bare)
    with pytest.raises(NetworkError, match=r"bare.safetensors has no card"):
        cards.read_card(bare)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not at all")
    with pytest.raises(NetworkError, match="cannot open"):
        cards.read_card(broken)
    with pytest.raises(NetworkError, match="cannot open"):
        cards.read_card(tmp_path / "none.safetensors")


def test_another_card_for_the_same_weights(tmp_path):
    file = tmp_path / "net.safetensors"
    card = cards.pack(file, state(), FULL, torch.float16)
    cards.rewrite_card(file, replace(card, name="renamed", sha256="1" * 64))
    assert cards.read_card(file) == replace(card, name="renamed")
    assert cards.read_weights(file, cards.read_card(file)).keys() == state().keys()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "net.safetensors"
    cards.pack(file, state(), FULL)
    before = file.read_bytes()
    with pytest.raises(TypeError):
        cards.pack(file, state(), replace(FULL, measured={"not": object()}))
    assert file.read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == ["net.safetensors"]


# --- state dicts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_state_dicts_of_every_make(tmp_path, prefix, key):
    weights = gap().state_dict()
    given = {prefix + name: value for name, value in weights.items()}
    torch.save({key: given, "epoch": 3} if key else given, tmp_path / "net.pth")
    found = cards.read_state_dict(tmp_path / "net.pth")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_a_prefix_on_some_names_only_stays(tmp_path):
    given = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    save_file(given, tmp_path / "net.safetensors")
    assert cards.read_state_dict(tmp_path / "net.safetensors").keys() == given.keys()


def test_a_file_that_would_run_code_is_refused_and_does_not_run(tmp_path):
    torch.save({"a": torch.zeros(1), "evil": RunsCode()}, tmp_path / "evil.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    for name in ("evil.pth", "whole.pth"):
        with pytest.raises(
            NetworkError, match=r"would have to run code to load; where it was made: torch.save"
        ):
            cards.read_state_dict(tmp_path / name)
    assert RAN == []


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda s: {"model_state_dict": s, "optimizer_state_dict": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}},
        lambda s: {"net": s, "acc": 93.1, "epoch": 7},
        lambda s: {"model": {"state_dict": s}, "args": {"lr": 0.1, "sizes": (1, 2)}},
        lambda s: {"model": {"name": "resnet"}, "state_dict": s},
        lambda s: {"generator": s, "epoch": 3},
        lambda s: {"state_dict": s, "ema": s, "hyper_parameters": {}},
    ],
    ids=["optimizer", "net", "nested", "config", "one unknown", "two"],
)  # fmt: skip
def test_state_dicts_within_checkpoints(tmp_path, wrapped):
    weights = gap().state_dict()
    torch.save(wrapped(weights), tmp_path / "ckpt.pth")
    found = cards.read_state_dict(tmp_path / "ckpt.pth")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_formats_are_told_by_what_is_in_them(tmp_path):
    save_file(gap().state_dict(), tmp_path / "net.pth")
    torch.save(gap().state_dict(), tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("net.pth", "old.bin"):
        assert cards.read_state_dict(tmp_path / name).keys() == gap().state_dict().keys()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("page.pth", b"\n<!DOCTYPE html><html>", "holds no weights; got an HTML page"),
        ("lfs.pth", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("keras.pth", b"\x89HDF\r\n", "Keras or HDF5"),
        ("empty.pth", b"", "an empty file"),
        ("text.pth", b"hello", r"cannot read weights from .*text.pth; got 5 bytes"),
        ("none.safetensors", b"hello there", "11 bytes that does not begin as safetensors do"),
        ("cut.pth", 0.6, "cannot read weights from .*it is cut short"),
        ("cut.safetensors", 0.6, "cannot read weights from .*it is cut short"),
        ("old.pth", 0.6, "cannot read weights from .*it is cut short"),
    ],
)
def test_files_that_are_something_else_or_cut_short(tmp_path, name, content, message):
    file = tmp_path / name
    if isinstance(content, float):
        if name == "cut.safetensors":
            save_file(gap().state_dict(), file)
        else:
            torch.save(gap().state_dict(), file, _use_new_zipfile_serialization=name == "cut.pth")
        content = file.read_bytes()[: int(file.stat().st_size * content)]
    file.write_bytes(content)
    with pytest.raises(NetworkError, match=message) as caught:
        cards.read_state_dict(file)
    assert "\n" not in str(caught.value)


def test_a_refused_file_is_converted_by_the_line_it_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layer = nn.Linear(2, 2)
    torch.save(layer, "whole.pth")
    with pytest.raises(NetworkError, match=r"got torch.nn.modules.linear.Linear.* python -c ") as caught:
        cards.read_state_dict("whole.pth")
    line = str(caught.value).split('python -c "', 1)[1].rstrip('"')
    exec(line, {})
    assert torch.equal(cards.read_state_dict("weights.pth")["weight"], layer.weight)


def test_files_that_are_no_state_dict(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    torch.save({"a": torch.zeros(1), "epoch": 3}, tmp_path / "mixed.pth")
    for name in ("list.pth", "mixed.pth"):
        with pytest.raises(NetworkError, match="is no state dict; allowed: names → tensors"):
            cards.read_state_dict(tmp_path / name)
    (tmp_path / "text.pth").write_text("hello")
    for name in ("text.pth", "none.pth", "none.safetensors"):
        with pytest.raises(NetworkError, match=name):
            cards.read_state_dict(tmp_path / name)


def test_numbers_too_large_for_half_precision_stay_as_they_are(tmp_path):
    """Variances of pixels in 0…255 reach beyond 65,504, where float16 ends."""
    state = {"weight": torch.tensor([0.5, -2.0]), "running_var": torch.tensor([1.0, 3e6]), "steps": torch.tensor(9), "none": torch.zeros(0)}  # fmt: skip
    card = cards.pack(tmp_path / "n.safetensors", state, Card(), torch.float16)
    read = cards.read_weights(tmp_path / "n.safetensors", card)
    assert all(torch.equal(read[name], state[name]) for name in state)
    kept = {name: tensor.dtype for name, tensor in load_file(tmp_path / "n.safetensors").items()}
    assert (kept["weight"], kept["running_var"]) == (torch.float16, torch.float32)
