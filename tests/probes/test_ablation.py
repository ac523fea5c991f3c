"""Units and layers silenced on a trained network, against plain hooks and whole forward passes."""

# mypy: disable-error-code="union-attr,index,operator,assignment"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import camlucida as cl
from camlucida import metrics, probes, taps
from camlucida.images import datasets
from camlucida.images.views import Preprocessing
from camlucida.maps import schedule
from camlucida.probes import unit_ablation
from camlucida.values import Label
from fingerprints import fingerprint
from small_networks import CHANNELS, CLASSES, Headed, fully_connected, gap, seeded, tokens

SHAPE = Preprocessing(size=20, crop=None, any_size=True, minimum=16)
LABELS = tuple(Label(f"n{i}", f"class {i}") for i in range(CLASSES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng, made = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    for i in range(11):  # the last class has no picture
        file = made / f"n{i % (CLASSES - 1)}" / f"{i}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 28, 3), dtype=np.uint8)).save(file)
    (made / "n0" / "broken.png").write_bytes(b"no picture")
    return made


@pytest.fixture(scope="module")
def examples(folder):
    return datasets.load([folder]).relabelled(LABELS).examples


def wrapped(module: nn.Module, loud: float = 20.0) -> cl.Network:
    """With logits that differ enough for classes to change."""
    with torch.no_grad():
        last = [m for m in module.modules() if isinstance(m, nn.Linear)][-1]
        last.weight.mul_(loud)
    return cl.wrap(module, card=cl.Card("small", preprocessing=SHAPE, labels=LABELS))


class Residual(Headed):
    """A block whose input passes beside it: `join` puts both together."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(lambda m, x: m.fc(F.relu(m.join(m.block(x), x)).mean((2, 3))))
        self.block, self.join = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), join


def residual(join: Callable[[Tensor, Tensor], Tensor] = torch.add) -> cl.Network:
    return wrapped(seeded(Residual, join))


def joined(own: Tensor, beside: Tensor) -> Tensor:
    """Of tensors that must agree in their number of pictures."""
    return torch.cat([own, beside], 1)[:, :CHANNELS] + beside


NETWORKS: dict[str, tuple[Callable[[], cl.Network], str, str | None]] = {
    "before the head": (lambda: wrapped(gap()), "features.3", None),
    "below": (lambda: wrapped(gap()), "features.1", "any"),
    "before fully connected layers": (lambda: wrapped(fully_connected()), "features.2", "any"),
    "a fully connected layer": (lambda: wrapped(fully_connected()), "classifier.2", "any"),
    "in a residual block": (residual, "block", "own"),
    "joined higher up": (lambda: residual(joined), "block", "all"),
    "tokens": (lambda: wrapped(tokens("norm, mean")), "block", "any"),
}


def slow(
    net: cl.Network, examples, change: Callable[[Any], tuple[str, Callable]], parts
) -> dict[str, np.ndarray]:
    """One whole pass a picture and part, with a plain hook that `change` gives for the part."""
    truth, before, after = [], [], []
    for example in examples:
        try:
            pixels = net.preprocess([example.source.read()]).pixels
        except cl.CamlucidaError:
            continue
        truth.append(example.label)
        with torch.no_grad():
            before.append(net.module(pixels)[0])
            rows = []
            for part in parts:
                name, hook = change(part)
                handle = net.module.get_submodule(name).register_forward_hook(hook)
                rows.append(net.module(pixels)[0])
                handle.remove()
            after.append(torch.stack(rows))
    right = np.array([int(b.argmax()) == t for b, t in zip(before, truth, strict=True)])
    then = np.array([[int(r.argmax()) == t for r in a] for a, t in zip(after, truth, strict=True)])
    logit = np.array([[float(b[t] - r[t]) for r in a] for b, a, t in zip(before, after, truth, strict=True)])
    chance = np.array(
        [
            [float(b.softmax(0)[t] - r.softmax(0)[t]) for r in a]
            for b, a, t in zip(before, after, truth, strict=True)
        ]
    )
    found = {
        name: np.zeros((len(parts), CLASSES)) for name in ("lost", "gained", "logit_drop", "probability_drop")
    }
    for c in range(CLASSES):
        of = np.array(truth) == c
        found["lost"][:, c] = (right[of, None] & ~then[of]).sum(0)
        found["gained"][:, c] = (~right[of, None] & then[of]).sum(0)
        found["logit_drop"][:, c] = logit[of].mean(0) if of.any() else np.nan
        found["probability_drop"][:, c] = chance[of].mean(0) if of.any() else np.nan
    return found


def same(found: probes.Ablation, wanted: dict[str, np.ndarray]) -> None:
    assert np.nanmax(np.abs(wanted["probability_drop"])) > 0.01
    for name, values in wanted.items():
        np.testing.assert_allclose(getattr(found, name), values, rtol=1e-4, atol=1e-5, err_msg=name)


def silencing(net: cl.Network, layer: str, fill: Tensor | None = None) -> Callable:
    def change(unit: int):
        def hook(module: nn.Module, inputs, output: Tensor) -> Tensor:
            output = output.clone()
            value = 0.0 if fill is None else float(fill[unit])
            if layer == "block" and output.ndim == 3:  # tokens: the first is none of the cells
                output[:, 1:, unit] = value
            else:
                output[:, unit] = value
            return output

        return layer, hook

    return change


@pytest.mark.parametrize("which", NETWORKS)
def test_units_are_those_of_whole_passes_with_hooks(which, examples):
    build, layer, below = NETWORKS[which]
    net = build()
    before = fingerprint(net.module)
    found = probes.ablate_units(net, examples, layer, batch=4)
    assert fingerprint(net.module) == before
    assert found.layer == layer
    assert found.parts == tuple(range(len(found.parts)))
    assert [path.rsplit("/")[-1] for path, _ in found.rejected] == ["broken.png"]
    assert found.pictures.tolist() == [3, 3, 3, 2, 0]
    same(found, slow(net, examples, silencing(net, layer), found.parts))
    if below is not None:
        with taps.borrowed(net.module):
            assert unit_ablation._way(intact(net, layer, examples)).below == below


def whole(net: cl.Network, examples) -> tuple[Tensor, Tensor]:
    """All pictures and their labels, but the broken one's."""
    picked = [e for e in examples if "broken" not in e.source.name]
    pixels = net.preprocess([e.source.read() for e in picked]).pixels
    return pixels, torch.tensor([e.label for e in picked])


def intact(net, layer, examples):
    pixels, _ = whole(net, examples)
    where = probes.ablation.layer_of(net, layer, pixels)
    run = net.run(pixels, [where.point])
    return unit_ablation._Intact(
        net, where, pixels, run.output, run.tapped[where.point], torch.zeros(where.channels).double()
    )


@pytest.mark.parametrize("which", ["before the head", "below", "a fully connected layer"])
def test_a_unit_at_its_mean_over_all_pictures(which, examples):
    build, layer, _ = NETWORKS[which]
    net = build()
    given: list[Tensor] = []
    handle = net.module.get_submodule(layer).register_forward_hook(lambda m, i, o: given.append(o.clone()))
    net(whole(net, examples)[0])
    handle.remove()
    fill = torch.cat(given).double().reshape(11, given[0].shape[1], -1).mean((0, 2))
    found = probes.ablate_units(net, examples, layer, units=[3, 0], value="mean")
    assert found.parts == (3, 0)
    assert found.put == ("mean", "mean")
    same(found, slow(net, examples, silencing(net, layer, fill), [3, 0]))


def test_chunks_of_the_budget_change_nothing(examples):
    net = wrapped(fully_connected())
    passes: list[int] = []
    net.module.features[0].register_forward_hook(lambda m, i, o: passes.append(len(o)))
    whole = probes.ablate_units(net, examples, "features.2")
    few = len(passes)
    with schedule.memory("20kB"):
        small = probes.ablate_units(net, examples, "features.2")
    assert len(passes) - few > few
    np.testing.assert_allclose(small.logit_drop, whole.logit_drop, rtol=1e-4, atol=1e-5)


def test_only_what_lies_above_runs_again(examples):
    """Of the 11 × 8 copies none goes through the trunk: it sees the pictures, what is tried, and one picture a chunk."""
    net = wrapped(fully_connected())
    below, above = [], []
    net.module.features[0].register_forward_hook(lambda m, i, o: below.append(len(o)))
    net.module.classifier[3].register_forward_hook(lambda m, i, o: above.append(len(o)))
    probes.ablate_units(net, examples, "classifier.2")
    assert sum(above) > 11 * 8 + 11
    assert sum(below) < 11 + 12


def test_layers_are_passed_by_or_at_their_mean(examples):
    net = residual()
    before = fingerprint(net.module)
    found = probes.ablate_layers(net, examples, batch=4)
    assert fingerprint(net.module) == before
    assert dict(zip(found.parts, found.put, strict=True)) == {
        "features.0": "mean", "features.2": "mean", "block": "identity",
    }  # fmt: skip
    fills: dict[str, list[Tensor]] = {}
    names = ("features.0", "features.2")
    handles = [
        net.module.get_submodule(n).register_forward_hook(
            lambda m, i, o, n=n: fills.setdefault(n, []).append(o.clone())
        )
        for n in names
    ]
    net(whole(net, examples)[0])
    for handle in handles:
        handle.remove()

    def change(name: str):
        if name == "block":
            return name, lambda m, inputs, output: inputs[0]
        mean = torch.cat(fills[name]).double().mean((0, 2, 3)).float()
        return name, lambda m, inputs, output: mean[:, None, None].expand_as(output)

    same(found, slow(net, examples, change, found.parts))
    assert found.blind.tolist() == [True, True, False]


def test_a_layer_that_works_in_place_is_passed_by_whole(examples):
    net = wrapped(fully_connected())
    found = probes.ablate_layers(net, examples, ["classifier.2"])
    assert found.put == ("identity",)
    net.module.classifier[2] = nn.Identity()
    pixels, truth = whole(net, examples)
    without = net(pixels).gather(1, truth[:, None])[:, 0].double()
    net.module.classifier[2] = nn.ReLU(inplace=True)
    own = net(pixels).gather(1, truth[:, None])[:, 0].double()
    assert float((own - without).abs().max()) > 0.1
    np.testing.assert_allclose(found.logit_drop[0, 1], float((own - without)[truth == 1].mean()), rtol=1e-4)


def test_torchvision_networks_pass_without_special_cases(examples):
    net = cl.load("torchvision/resnet18", weights=None, num_classes=CLASSES, width=1.0)
    shape = Preprocessing(size=40, crop=None, any_size=True, minimum=32)
    net = cl.wrap(net.module, card=cl.Card("r", preprocessing=shape, labels=LABELS))
    some = examples[:3]
    found = probes.ablate_units(net, some, "layer3.0.conv1", units=[0, 200])
    assert np.isfinite(found.logit_drop[:, 0]).all()
    layers = probes.ablate_layers(net, some, ["layer1.0", "layer2.0", "layer2.0.conv2", "fc"])
    assert layers.put == ("identity", "mean", "identity", "mean")
    assert layers.blind.tolist() == [False, True, False, True]


def test_the_order_and_the_classes_that_fall():
    lost, gained = np.array([[0, 1, 0], [2, 0, 1]]), np.array([[0, 0, 0], [0, 1, 0]])
    drop = np.array([[0.1, 0.2, np.nan], [0.5, -0.3, np.nan]])
    pictures, right = np.array([4, 2, 0]), np.array([3, 1, 0])
    found = probes.Ablation(
        (7, 9), ("zero", "zero"), LABELS[:3], pictures, right, lost, gained, drop, drop, np.zeros(2, bool)
    )
    assert found.before == pytest.approx(4 / 6)
    np.testing.assert_allclose(found.change, [-1 / 6, -2 / 6])
    np.testing.assert_allclose(found.class_change[1], [-0.5, 0.5, np.nan])
    np.testing.assert_allclose(found.probability_lost, [(0.4 + 0.4) / 6, (2.0 - 0.6) / 6])
    assert found.order.tolist() == [1, 0]
    assert found.falls(1) == [0]
    assert found.falls(0) == [1]


def test_the_paired_interval_is_bonett_and_prices():
    low, high = metrics.paired_interval([12], [3], 100)
    half = 1.96 * np.sqrt((17 / 102 - (9 / 102) ** 2) / 102)
    np.testing.assert_allclose([low[0], high[0]], [-9 / 102 - half, -9 / 102 + half])
    low, high = metrics.paired_interval([0], [0], 50)
    assert low[0] < 0 < high[0]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"layer": "features.9"}, "'features.9' does not exist"),
        ({"layer": "dropout"}, "layer dropout did not run"),
        ({"layer": "features.1", "units": [4]}, r"units of features.1; got 4; allowed: 0 to 3"),
        ({"layer": "features.1", "units": []}, "got none"),
        ({"value": "noise"}, "zero | mean"),
    ],
)
def test_what_cannot_be_silenced_is_one_clear_line(how, words, examples):
    with pytest.raises(cl.CamlucidaError, match=words) as caught:
        probes.ablate_units(wrapped(gap()), examples, **how)
    assert "\n" not in str(caught.value)


def test_layers_that_cannot_be_silenced_are_named(examples):
    net = wrapped(gap())
    found = probes.ablate_layers(net, examples, ["features.2", "dropout", "nothing"])
    assert found.parts == ("features.2",)
    assert [name for name, _ in found.refused] == ["dropout", "nothing"]
    with pytest.raises(cl.LayerError, match="'nothing' does not exist"):
        probes.ablate_layers(net, examples, ["nothing"])


def test_pictures_without_a_class_or_none_at_all_are_refused(examples):
    broken = [e for e in examples if "broken" in e.source.name]
    with pytest.raises(cl.UsageError, match="no picture that can be read, 1 rejected"):
        probes.ablate_units(wrapped(gap()), broken)
    with pytest.raises(cl.UsageError, match="no picture"):
        probes.ablate_layers(wrapped(gap()), [])
