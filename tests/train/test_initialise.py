"""Initial weights by their statistics; weights copied by name, shape, layer and class."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import camlucida as cl
from camlucida.networks import cards, catalogue
from camlucida.networks.cards import Card
from camlucida.train.initialise import initialise, start
from camlucida.train.recipe import Recipe
from camlucida.values import Label

CLASSES = tuple(Label(f"n{i}", f"class {i}") for i in range(5))


def network():
    return nn.Sequential(nn.Conv2d(8, 64, 5, groups=2), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(400, 300))


@pytest.mark.parametrize(
    ("how", "deviations"),
    [
        ("gaussian", (0.1, 0.1)),
        # Glorot and Bengio 2010: variance 2 / (inputs + outputs), each counted over the kernel; He: 2 / inputs
        ("glorot", ((2 / (4 * 25 + 64 * 25)) ** 0.5, (2 / 700) ** 0.5)),
        ("he", ((2 / 100) ** 0.5, (2 / 400) ** 0.5)),
    ],
)
def test_statistics(how, deviations):
    torch.manual_seed(0)
    module = network()
    with torch.no_grad():
        module[1].weight.fill_(3.0)
    initialise(module, Recipe(initialisation=how, deviation=0.1))
    for layer, deviation in ((module[0], deviations[0]), (module[3], deviations[1])):
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.03)
        assert layer.weight.mean().item() == pytest.approx(0, abs=0.06 * deviation)
        assert not layer.bias.any()
        largest = layer.weight.abs().max().item() / deviation
        assert (largest <= 3**0.5 + 1e-4) if how == "glorot" else (largest > 3.5)  # uniform, normal
    assert (module[1].weight == 3).all()  # norms keep theirs


def test_own_leaves_everything():
    module = network()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    initialise(module, Recipe())
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())
    assert start(module, Recipe(), CLASSES) == frozenset()


def test_the_seed_alone_decides():
    def drawn(seed):
        torch.manual_seed(seed)
        module = network()
        initialise(module, Recipe(initialisation="he"))
        return module[3].weight

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))


def small(name, classes=5, **arguments):
    return catalogue.build(name, {"num_classes": classes, "width": 0.0625, "size": 64, **arguments})


def packed(tmp_path, name, labels=CLASSES, **arguments):
    torch.manual_seed(7)
    module = small(name, len(labels), **arguments)
    with torch.no_grad():
        for p in module.parameters():
            p.uniform_(0.5, 1)  # told from any initial weights, biases too
    file = tmp_path / f"{name}.safetensors"
    cards.pack(file, module.state_dict(), Card(labels=tuple(labels)))
    return file, module.state_dict()


def filled(module, state, fresh):
    """Names of the parameters that equal those of `state`; all others must be fresh."""
    same = {n for n, p in module.named_parameters() if n in state and torch.equal(p, state[n])}
    assert same.isdisjoint(fresh)
    assert same | fresh == {n for n, _ in module.named_parameters()}
    return same


def test_whole_where_all_fits_and_the_same_classes(tmp_path):
    file, state = packed(tmp_path, "vgg-a")
    module = small("vgg-a")
    fresh = start(module, Recipe(start=str(file)), CLASSES)
    assert not fresh
    assert all(torch.equal(t, state[n]) for n, t in module.state_dict().items())


@pytest.mark.parametrize("others", [CLASSES[:4], tuple(Label(f"m{i}", "") for i in range(5))])
def test_other_classes_begin_with_a_fresh_head(tmp_path, others):
    file, state = packed(tmp_path, "vgg-a")
    module = small("vgg-a", len(others))
    fresh = start(module, Recipe(start=str(file)), others)
    assert fresh == {"classifier.6.weight", "classifier.6.bias"}
    assert len(filled(module, state, fresh)) == len(state) - 2


@pytest.mark.parametrize("name", ["vgg-b", "vgg-c-256", "vgg-d-256", "vgg-e-256"])
def test_deeper_vgg_copies_four_convolutions_and_the_fully_connected_layers(name, tmp_path):
    """1_1, 2_1, 3_1 and 3_2 of A, the only ones whose shapes fit under the same name."""
    from camlucida.networks.vgg import convolution_names
    from camlucida.train import recipe as recipes

    file, state = packed(tmp_path, "vgg-a")
    module = small(name.removesuffix("-256"))
    before = {n: t.clone() for n, t in module.state_dict().items()}
    fresh = start(module, replace(recipes.load(name), start=str(file)), CLASSES)
    in_a, own = convolution_names(small("vgg-a")), convolution_names(module)
    copied = {own[n]: in_a[n] for n in ("1_1", "2_1", "3_1", "3_2")}
    copied |= {n: n for n in ("classifier.0", "classifier.3", "classifier.6")}
    for layer in {n.rpartition(".")[0] for n in before}:
        for kind in ("weight", "bias"):
            weight, place = module.get_parameter(f"{layer}.{kind}"), f"{copied.get(layer)}.{kind}"
            assert torch.equal(weight, state[place] if layer in copied else before[f"{layer}.{kind}"])
            assert (f"{layer}.{kind}" in fresh) == (layer not in copied)


def test_gap_network_takes_the_trunk_and_not_the_head(tmp_path):
    """The added convolution has as many channels as GoogLeNet's last block: the head would fit by shape."""
    from camlucida.train import recipe as recipes

    file, state = packed(tmp_path, "googlenet")
    module = small("googlenet-gap")
    fresh = start(module, replace(recipes.load("googlenet-gap"), start=str(file)), CLASSES)
    assert fresh == {f"classifier.{n}" for n in ("conv.0.weight", "conv.0.bias", "classify.weight", "classify.bias")}  # fmt: skip
    assert all(n.startswith("features.") for n in filled(module, state, fresh))


def test_network_in_network_has_its_classes_in_a_convolution(tmp_path):
    file, _ = packed(tmp_path, "nin")
    module = small("nin")
    fresh = start(module, Recipe(start=str(file)), tuple(Label(f"m{i}", "") for i in range(5)))
    assert fresh == {"features.conv4_3.weight", "features.conv4_3.bias"}


def test_checkpoints_and_plain_state_dicts(tmp_path):
    module, other = small("vgg-a"), small("vgg-a")
    average = {n: t + 1 for n, t in other.state_dict().items()}
    for name, saved, expected in (
        ("plain.pth", other.state_dict(), other.state_dict()),
        ("last.ckpt", {"module": other.state_dict(), "average": {}, "recipe": {}, "step": 3}, other.state_dict()),
        ("averaged.ckpt", {"module": other.state_dict(), "average": average, "recipe": {}, "step": 3}, average),
    ):  # fmt: skip
        torch.save(saved, tmp_path / name)
        assert not start(module, Recipe(start=str(tmp_path / name)), CLASSES)
        assert all(torch.equal(t, expected[n]) for n, t in module.state_dict().items()), name


def test_what_does_not_fit_is_said(tmp_path):
    file, _ = packed(tmp_path, "vgg-a")
    with pytest.raises(cl.UsageError, match="nothing in .* fits alexnet"):
        start(small("alexnet", size=127), Recipe(network="alexnet", start=str(file)), CLASSES)
    with pytest.raises(cl.UsageError, match=r"vgg-a has no layer 'features.1'.*did you mean"):
        start(small("vgg-a"), Recipe(network="vgg-a", start=str(file), start_layers=("features.1",)), CLASSES)
    with pytest.raises(cl.UsageError, match=r"safetensors has no layer 'features.99'"):
        start(small("vgg-a"), Recipe(start=str(file), start_layers=("features.0 = features.99",)), CLASSES)
    with pytest.raises(cl.NetworkError, match="No such file"):
        start(small("vgg-a"), Recipe(start=str(tmp_path / "none.ckpt")), CLASSES)
    (tmp_path / "broken.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(cl.NetworkError, match=r"broken\.ckpt"):
        start(small("vgg-a"), Recipe(start=str(tmp_path / "broken.ckpt")), CLASSES)
