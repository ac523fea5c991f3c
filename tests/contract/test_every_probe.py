"""Every probe on every kind of network: it works or is refused in words, and the module comes back as it was, also when
it raises in the middle. Random weights, pictures of three shapes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig

import camlucida as cl
from camlucida import probes
from camlucida.cli import main, probe
from camlucida.errors import CamlucidaError, LayerError, TargetError, UsageError
from camlucida.images import datasets
from camlucida.images.views import Preprocessing
from camlucida.networks.cards import pack
from camlucida.probes.evolution import main_layers
from camlucida.probes.looking import Pictures
from camlucida.probes.receptive_field import strongest_of
from camlucida.values import Label
from fingerprints import unchanged
from pictures import colours
from small_networks import Headed, gap, seeded

CLASSES = 7
LABELS = tuple(Label(f"n{i}", f"class {i}") for i in range(CLASSES))
PICTURES = [colours(40, 56, 0), colours(56, 40, 1), colours(48, 48, 2)]


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, 2, 2), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, 1, 1), nn.ReLU(inplace=True),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 4 * 4, 10), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(10, CLASSES),
    )  # fmt: skip


def torchvisions(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision.models, name)(weights=None, num_classes=CLASSES, **options)


def convnext() -> nn.Module:
    setting = [CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 1)]
    return torchvision.models.ConvNeXt(setting, num_classes=CLASSES)


def mobilenet() -> nn.Module:
    blocks = [
        InvertedResidualConfig(8, 3, 8, 8, True, "RE", 2, 1, 1), InvertedResidualConfig(8, 5, 16, 12, True, "HS", 2, 1, 1)
    ]  # fmt: skip
    return torchvision.models.MobileNetV3(blocks, 24, CLASSES)


def transformer() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 24, num_classes=CLASSES)


FREE = Preprocessing(size=36, crop=None, any_size=True, minimum=36)  # views of three shapes
FIXED = Preprocessing(size=32, crop=32)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Preprocessing]] = {
    "chain with max pooling, fully connected": (chain, FIXED),
    "resnet18": (torchvisions("resnet18"), FREE),
    "squeezenet1_1": (torchvisions("squeezenet1_1"), FREE),
    "depthwise, squeeze and excite": (mobilenet, FREE),
    "convnext": (convnext, FREE),
    "vision transformer": (transformer, FIXED),
}


def network(name: str, **changes: Any) -> cl.Network:
    build, shape = NETWORKS[name]
    shape = replace(shape, **changes)
    return cl.wrap(seeded(build), card=cl.Card(name, preprocessing=shape, labels=LABELS))


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labelled")
    for i, picture in enumerate(PICTURES):
        (folder / f"n{2 * i}").mkdir()
        Image.fromarray(picture).save(folder / f"n{2 * i}" / f"{i}.png")
    return datasets.load([folder]).relabelled(LABELS).examples


def before_pooling(net: cl.Network) -> str:
    return net.find_layer(None, net.blank()).name


def correspond(net: cl.Network) -> Any:
    batch = net.preprocess(PICTURES[:1] * 2)
    boxes = {0: cl.Box(3, 4, 9, 11), 1: cl.Box(12, 10, 19, 16)}
    layers = [before_pooling(net), "logits"]
    return probes.measure_correspondence(net, batch, {"eye": boxes}, layers, draws=1, permutations=9)


def fields(net: cl.Network) -> Any:
    found = [probes.field_of(one, (0, 0)) for one in net.layers() if len(one.size) == 2]
    assert found
    return found


def field(net: cl.Network) -> Any:
    (strongest,) = strongest_of(Pictures.of(net, PICTURES), [None], 1).values()
    return probes.empirical_field(net, None, strongest.ranked()[0], PICTURES, top=1, patch=9, stride=9)


def evolve(net: cl.Network) -> Any:
    return probes.evolution([("1", net), ("2", net)], PICTURES, count=1, workers=1)


PROBES: dict[str, Callable[[cl.Network, Any], Any]] = {
    "field_of": lambda net, _: fields(net),
    "field_by_gradient": lambda net, _: probes.field_by_gradient(net, net.preprocess(PICTURES[:1]), None, (0, 0)),
    "empirical_field": lambda net, _: field(net),
    "top_activations": lambda net, _: probes.top_activations(net, PICTURES, [before_pooling(net)], 2, workers=1),
    "class_units": lambda net, _: probes.class_units(net, PICTURES, units=2, top=1),
    "contributions": lambda net, _: probes.contributions(net, net.preprocess(PICTURES[:1])),
    "evolution": lambda net, _: evolve(net),
    "invariance": lambda net, _: probes.invariance(net, [net.preprocess([one]) for one in PICTURES[:2]], amounts=(0, 60)),
    "study_occlusion": lambda net, _: probes.study_occlusion(net, net.preprocess(PICTURES[:1]).pixels, patch=18, stride=18),
    "measure_correspondence": lambda net, _: correspond(net),
    "first_filters": lambda net, _: probes.first_filters(net),
    "filters_and_units": lambda net, _: probes.filters_and_units(net, PICTURES, k=2, units=1, workers=1),
    "ablate_units": lambda net, of: probes.ablate_units(net, of, units=[0, 3], workers=1),
    "ablate_layers": lambda net, of: probes.ablate_layers(net, of, main_layers(net), workers=1),
}  # fmt: skip
OF_RUNS = {"variant", "depth"}  # they read folders of runs
NO_HEAD = "need a head of pooling → linear; got another head"
REFUSED = {
    ("class_units", "chain with max pooling, fully connected"): NO_HEAD,
    ("class_units", "squeezenet1_1"): "got channels that are the logits: each class has one unit, its own",
    ("class_units", "depthwise, squeeze and excite"): NO_HEAD,
    ("class_units", "vision transformer"): NO_HEAD,
    ("evolution", "depthwise, squeeze and excite"): "two things that depend on the picture are multiplied",
    ("evolution", "convnext"): "got layer_norm",
}
REFUSED |= {("contributions", on): words for (probe, on), words in REFUSED.items() if probe == "class_units"}


def test_the_table_has_every_function():
    functions = {name for name in probes.__all__ if inspect.isfunction(getattr(probes, name))}
    assert {*PROBES} | OF_RUNS == functions


@pytest.mark.parametrize("on", NETWORKS)
@pytest.mark.parametrize("probe", PROBES)
def test_it_works_or_is_refused_in_words(probe, on, examples):
    net = network(on)
    words = REFUSED.get((probe, on))
    with unchanged(net.module):
        if words is None:
            assert PROBES[probe](net, examples) is not None
            return
        with pytest.raises(CamlucidaError) as refused:
            PROBES[probe](net, examples)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_layer_before_pooling_is_one_for_all_shapes_of_pictures(examples):
    """At 32 × 32 the last map has one cell, and another layer comes before the pooling than at 32 × 45."""
    module = seeded(torchvisions("mobilenet_v3_small", width_mult=0.25))
    shape = replace(FREE, size=32, minimum=32)
    net = cl.wrap(module, card=cl.Card("small", preprocessing=shape, labels=LABELS))
    names = [net.find_layer(None, net.preprocess([one]).pixels).name for one in PICTURES]
    assert names == ["features", "features", "features.9.block.0"]
    for value in ("zero", "mean"):
        one = probes.ablate_units(net, examples, value=value, workers=1)
        other = probes.ablate_units(net, examples, "features", value=value, workers=1)
        assert one.layer == "features"
        np.testing.assert_array_equal(one.logit_drop, other.logit_drop)
    with pytest.raises(LayerError, match="layer 'features' has no spatial extent"):
        field(net)
    with pytest.raises(LayerError, match="layer 'features' has no spatial extent"):
        probes.empirical_field(net, None, 0, PICTURES)


def test_nothing_and_zero_are_refused_and_not_taken_for_the_default(examples):
    net = failing()
    with pytest.raises(TargetError, match="got no class"):
        probes.class_units(net, PICTURES, [])
    with pytest.raises(LayerError, match="layer '' has no spatial extent"):
        probes.ablate_units(net, examples, "", workers=1)
    for size in ({"patch": 0}, {"stride": 0}):
        with pytest.raises(UsageError, match=r"allowed: patch 1 … 20, stride ≥ 1"):
            probes.empirical_field(net, None, 4, PICTURES, **size)


class Failing(nn.Module):
    """Counts how often its features run, and fails in the middle of the run that it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.module = gap()
        self.runs = torch.zeros(2, dtype=torch.int64)  # so far, and which fails

    def forward(self, x: Tensor) -> Tensor:
        found = self.module.features(x)
        self.runs[0] += 1
        if self.runs[0] == self.runs[1]:
            raise FloatingPointError("in the middle")
        return self.module.fc(found.mean((2, 3)))


def failing(at: int = 0) -> cl.Network:
    module = Failing().eval()
    module.runs[1] = at
    shape = Preprocessing(size=20, crop=None, any_size=True, minimum=16)
    return cl.wrap(module, card=cl.Card("failing", preprocessing=shape, labels=LABELS))


@pytest.mark.parametrize("probe", [name for name in PROBES if name != "field_of"])  # which runs nothing
def test_a_module_that_raises_comes_back(probe, examples):
    net = failing()
    found = PROBES[probe](net, examples)
    assert found is not None
    runs = int(net.module.runs[0])
    assert runs > 0
    for at in {1, (runs + 1) // 2, runs}:
        net = failing(at)
        with unchanged(net.module), pytest.raises(FloatingPointError, match="in the middle"):
            PROBES[probe](net, examples)


KINDS = {
    "receptive-field": "photos --layers features.1 --units 0 --top 1 --patch 16 --stride 16",
    "top": "photos --k 2 --units 0 --workers 1",
    "class-units": "photos --classes 0 --units 1 --top 1",
    "evolution": "a.safetensors b.safetensors --data photos --layers features.1 --units 0 --workers 1",
    "invariance": "photos --transformations rotation --limit 2",
    "occlusion": "photos --patch 16 --stride 16 --limit 1 --top 1",
    "correspondence": "photos --parts parts.csv --draws 1 --permutations 9",
    "filters": "photos --k 2 --units 1 --workers 1",
    "ablation": "photos --units 0 --layers none --workers 1",
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Two checkpoints, three pictures in class folders, parts of them."""
    folder = tmp_path_factory.mktemp("desk")
    labels = tuple(Label(f"n{i}", f"class {i}") for i in range(5))
    for name, seed in (("a", 0), ("b", 1)):
        module = seeded(Headed, lambda m, x: m.fc(m.pool(x).flatten(1)), seed=seed)
        card = cl.Card("small", "small_networks:gap", {}, Preprocessing(size=32), labels)
        pack(str(folder / f"{name}.safetensors"), module.state_dict(), card)
    for i, picture in enumerate(PICTURES):
        (folder / f"photos/n{i}").mkdir(parents=True)
        Image.fromarray(picture).save(folder / f"photos/n{i}/{i}.png")
    boxes = "n0/0.png,eye,20,10,27,16\nn1/1.png,eye,18,18,25,25\n"
    (folder / "parts.csv").write_text("path,part,x0,y0,x1,y1\n" + boxes)
    return folder


@pytest.mark.parametrize("kind", probe.KINDS)
def test_every_kind_on_the_command_line(kind, desk, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(desk)
    network = [] if kind == "evolution" else ["--network", "a.safetensors"]
    command = ["probe", kind, *KINDS[kind].split(), *network, "--out", str(tmp_path / "out")]
    assert main(command) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert str(tmp_path / "out/report.html") in said.out
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    for link in re.findall(r'href="(pictures/[^"]+)"', page):
        assert (tmp_path / "out" / link).is_file()
    assert 'alt=""' not in page
    assert main(command) == 2
    assert "the results of an earlier run" in capsys.readouterr().err
