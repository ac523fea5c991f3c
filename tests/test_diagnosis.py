"""Is it the model or the map: each made-up fault is named first, the healthy network is not accused, each number is what
its formula says."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional as F

import camlucida as cl
from camlucida.diagnosis import doctor, inputs, maps, outputs
from camlucida.errors import TargetError, UsageError
from camlucida.images.views import Preprocessing
from camlucida.values import Label
from fingerprints import unchanged
from small_networks import CHANNELS, CLASSES, fully_connected, gap, headed, seeded

PHOTOS = Path(os.environ.get("CAMLUCIDA_DATA", "")) / "photos.zip"
needs_photos = pytest.mark.skipif(
    not PHOTOS.is_file(), reason="$CAMLUCIDA_DATA holds no photos.zip: see docs/data.md"
)


# --- the embedded network, healthy and with four faults ----------------------------------------------------


@pytest.fixture(scope="module")
def net() -> cl.Network:
    return cl.load("embedded")


@pytest.fixture(scope="module")
def coffee() -> Image.Image:
    data = pytest.importorskip("skimage").data
    return Image.fromarray(data.coffee())


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """Every sixth photograph."""
    with zipfile.ZipFile(PHOTOS) as archive:
        return [Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()[::6]]


def with_card(net: cl.Network, **changes: Any) -> cl.Network:
    card = replace(net.card, preprocessing=replace(net.card.preprocessing, **changes))
    return replace(net, card=card)


def with_head(net: cl.Network, weight: torch.Tensor) -> cl.Network:
    """The embedded network with another head; the first one's module stays as it is."""
    module = cl.load("embedded").module
    with torch.no_grad():
        module.classify.weight.copy_(weight)
    return cl.wrap(module, card=net.card)


@pytest.fixture(scope="module")
def healthy(net, coffee) -> cl.Diagnosis:
    with unchanged(net.module):
        return doctor(net, coffee)


def test_the_healthy_network_is_not_accused(healthy):
    assert healthy.verdict.startswith("neither: the map may be trusted as far as"), healthy
    names = [one.name for one in healthy.findings]
    assert names == ["preprocessing", "view", "outputs", "head", "top-5", "layer", "gradient", "map", "completeness", "occlusion", "randomised head"]  # fmt: skip
    assert healthy["completeness"].measured["relative error"] < 1e-5
    short = cl.load("embedded").card.preprocessing.size
    assert healthy.shown.size == (short * 3 // 2, short)  # the whole cup, 600 × 400
    assert {heat.shape for heat in healthy.heat.values()} == {(short, short * 3 // 2)}
    assert healthy.expected is None
    assert str(healthy).endswith(healthy.verdict)


def test_the_distance_is_that_of_the_first_batch_norms_input(net, healthy, coffee):
    pixels = net.preprocess(coffee, view="whole").pixels
    both = torch.cat([pixels, pixels.flip(-1)]).double()
    x = F.conv2d(both, net.module.stem[0].weight.double(), None, 2, 1)
    norm, total = net.module.stem[1], 0.0
    for c in range(x.shape[1]):
        m, v = float(x[:, c].mean()), float(x[:, c].var(unbiased=False)) + 1e-5
        rm, rv = float(norm.running_mean[c]), float(norm.running_var[c]) + 1e-5
        overlap = math.sqrt(2 * math.sqrt(v * rv) / (v + rv)) * math.exp(-((m - rm) ** 2) / (4 * (v + rv)))
        total -= math.log(overlap)
    found = healthy["preprocessing"].measured["distance from the first batch norm"]["card"]
    assert found == pytest.approx(total / x.shape[1], rel=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [{"mean": (0.0,) * 3, "std": (1.0,) * 3}, {"mean": (0.5,) * 3, "std": (0.5,) * 3}],
    ids=["none", "half"],
)
def test_fault_one_wrong_mean_is_named(net, coffee, wrong):
    found = doctor(with_card(net, **wrong), coffee)
    assert found.verdict.startswith("the model: mean, deviation or range look wrong"), found
    far = found["preprocessing"].measured["distance from the first batch norm"]
    assert (
        min(far, key=far.get) == "ImageNet's mean and deviation"
    )  # the nearest of the usual ones to the true card
    assert found.expected is not None


def test_fault_two_swapped_channels_are_named(net, coffee):
    found = doctor(with_card(net, channels="BGR"), coffee)
    assert found.verdict.startswith("the model: the channels look swapped: RGB fits"), found
    # What the network takes the brown cup for is blue.
    red, _, blue = np.asarray(found.expected, np.float64).mean((0, 1))
    assert blue > red + 30


@pytest.mark.parametrize("layer", ["stem", "stages.0"])
def test_fault_three_a_wrong_layer_is_named(net, coffee, layer):
    found = doctor(net, coffee, layer=layer)
    assert found.verdict.startswith(f"the map: too early a layer to see a whole object: {layer}"), found
    measured = found["layer"].measured
    assert measured["agreement of the default layer"] > measured["agreement"]
    assert found["gradient"].verdict != "bad"
    assert found.method == "grad-cam"


def test_fault_four_the_head_of_another_network_is_named(net, coffee):
    generator = torch.Generator().manual_seed(3)
    own = net.module.classify.weight.detach()
    order = torch.randperm(own.shape[1], generator=generator)
    fresh = (torch.rand(own.shape, generator=generator) * 2 - 1) / math.sqrt(own.shape[1])
    for weight in (own[:, order], fresh):
        found = doctor(with_head(net, weight), coffee)
        assert found.verdict.startswith("the model: the head does not fit the features"), found


@needs_photos
def test_photographs_do_not_accuse_the_healthy_network(net, photos):
    accused = []
    for photo in photos[:3]:
        found = doctor(net, photo)
        accused += [one for one in found.findings if one.verdict == "bad" and one.about == "model"]
    assert not accused


@needs_photos
def test_several_photographs_together_name_swapped_channels(net, photos):
    assert doctor(net, photos)["preprocessing"].verdict == "good"
    found = doctor(with_card(net, channels="BGR"), photos)
    assert found.verdict.startswith("the model: the channels look swapped"), found
    assert found.pictures == 10


# --- the numbers -------------------------------------------------------------------------------------------


def test_norm_distance_in_closed_form():
    zero, one = torch.zeros(3), torch.ones(3)
    assert inputs.norm_distance(zero, one, zero, one) == pytest.approx(0, abs=1e-6)
    assert inputs.norm_distance(zero + 2, one, zero, one) == pytest.approx(4 / 8, rel=1e-4)
    assert inputs.norm_distance(zero, one, zero, 4 * one) == pytest.approx(math.log(5 / 4) / 2, rel=1e-4)


def test_head_fit_is_high_for_the_own_head_and_near_zero_for_another_order():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 256, generator=generator)
    given = (2 * weight[7] + torch.randn(256, generator=generator)).relu()[None]
    bias = torch.zeros(20)
    assert outputs.head_fit(given, weight, bias) > outputs.HEAD_FITS
    others = [
        outputs.head_fit(given, weight[:, torch.randperm(256, generator=generator)], bias) for _ in range(40)
    ]
    assert sum(fit >= outputs.HEAD_FOREIGN for fit in others) <= 1
    assert abs(float(np.mean(others))) < 0.6
    assert math.isnan(outputs.head_fit(torch.ones(1, 256), weight, bias))


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (4, 6)), rng.normal(size=(4, 6))
    assert maps.rank_correlation(a, b) == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic)
    assert maps.rank_correlation(np.ones((4, 6)), b) == 0


def picture(height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


LABELS = tuple(Label(f"n{i:04d}", f"thing {i}, sort {i}") for i in range(CLASSES))
CARD = cl.Card("small", labels=LABELS, preprocessing=Preprocessing(size=20, mean=(0.5,) * 3, std=(0.25,) * 3))


def test_agreement_is_that_of_a_slow_loop():
    net = cl.wrap(gap(), card=CARD)
    found = doctor(net, picture())
    batch = net.preprocess(picture(), view="whole")
    assert tuple(batch.pixels.shape[2:]) == (20, 28)
    patch, stride = 5, 2  # a quarter of 20; (20 − 5) // 6
    clean = net(batch)[0]
    c = int(clean.argmax())
    heat = cl.CAM()(net, batch, cl.ClassTarget(c)).in_view()[0, 0].numpy()
    lost, covered = [], []
    for y in range(0, 20 - patch + 1, stride):
        for x in range(0, 28 - patch + 1, stride):
            hidden = batch.pixels.clone()
            hidden[..., y : y + patch, x : x + patch] = 0
            lost.append(float(clean[c] - net(hidden)[0, c]))
            covered.append(heat[y : y + patch, x : x + patch].mean())
    measured = found["occlusion"].measured
    assert measured["places"] == [8, 12]
    assert measured["correlation"] == pytest.approx(spearmanr(covered, lost).statistic, abs=0.01)


def test_a_randomised_head_is_the_own_one_in_another_order():
    net = cl.wrap(gap(), card=CARD)
    batch = net.preprocess(picture(), view="whole")
    order = np.array([3, 0, 5, 1, 2, 4])
    with unchanged(net.module):
        other = maps._with_head(net, net.module.fc.weight, order)
        values = cl.CAM()(other, batch, cl.ClassTarget(2)).values[0, 0]
    features = net.module.features(batch.pixels)[0].detach()
    expected = torch.einsum("k,khw->hw", net.module.fc.weight.detach()[2][order.tolist()], features)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    assert other.module.features[0].weight is net.module.features[0].weight
    assert other.module.fc.weight is not net.module.fc.weight


# --- other faults, on small networks -----------------------------------------------------------------------


def test_a_module_comes_back_as_it_was_training_and_frozen_or_not():
    module = seeded(lambda: nn.Sequential(nn.Conv2d(3, CHANNELS, 3, 2), nn.BatchNorm2d(CHANNELS), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(CHANNELS, CLASSES)))  # fmt: skip
    module.train()
    module[0].weight.requires_grad_(False)
    with unchanged(module), torch.no_grad():
        found = doctor(cl.wrap(module, card=CARD), [picture(), picture(64, 30, 1)])
    assert found.pictures == 2


def test_without_batch_norm_statistics_cannot_tell():
    found = doctor(cl.wrap(gap(), card=CARD), picture())["preprocessing"]
    assert found.verdict == "doubtful"
    assert "no batch norm" in found.words


def test_other_heads_have_no_sum_to_check():
    assert doctor(cl.wrap(gap(), card=CARD), picture())["completeness"].verdict == "good"
    net = cl.wrap(
        fully_connected(), card=replace(CARD, preprocessing=replace(CARD.preprocessing, any_size=False))
    )
    # 20 × 20 pixels do not fit this head, 20 × 28 do; a square network is made by hand.
    net.module.classifier[1] = nn.Linear(CHANNELS * 25, 8)
    found = doctor(net, picture())
    assert found["completeness"].verdict == "doubtful"
    assert found.method == "grad-cam"
    assert found["view"].verdict == "doubtful"  # 40 × 56 squashed to a square
    assert found["randomised head"].measured["correlation"] <= 1


def test_probabilities_instead_of_logits_are_named():
    net = cl.wrap(headed(lambda m, x: m.fc(x.mean((2, 3))).softmax(1)), card=CARD)
    assert "softmax inside" in doctor(net, picture())["outputs"].words


def test_broken_weights_are_named_with_the_layer_where_they_begin():
    module = gap()
    with torch.no_grad():
        module.features[2].weight[0] = torch.nan
    found = doctor(cl.wrap(module, card=CARD), picture())
    assert found.verdict.startswith(
        "the model: the logits hold NaN or infinite values, from layer features.2 on"
    )


def test_labels_that_do_not_fit_are_named():
    found = doctor(cl.wrap(gap(), card=replace(CARD, labels=LABELS[:3])), picture())
    assert found["outputs"].words == f"{CLASSES} outputs, but 3 labels on the card"
    assert found["outputs"].verdict == "bad"


@pytest.mark.parametrize("layer", ["nowhere", "pool"])
def test_a_layer_that_is_not_there_or_after_the_pooling_is_named(layer):
    found = doctor(cl.wrap(gap(), card=CARD), picture(), layer=layer)["layer"]
    assert found.verdict == "bad"
    assert layer in found.words


def test_a_map_that_does_not_depend_on_the_head_is_named():
    class Energy:
        """The mean activation, whatever the class."""

        def __call__(self, network, batch, target=None):
            found = cl.CAM()(network, batch, target)
            features = network.module.features(cl.Batch.of(batch).pixels).detach()
            return replace(found, values=features.mean(1, keepdim=True), method="energy")

    net = cl.wrap(gap(), card=CARD)
    assert doctor(net, picture())["randomised head"].verdict != "bad"
    diagnosed = doctor(net, picture(), method=Energy())["randomised head"]
    assert diagnosed.verdict == "bad"
    assert diagnosed.measured["correlation"] == pytest.approx(1)
    assert "shows the picture, not the class" in diagnosed.words


def test_a_class_that_no_gradient_reaches_is_named():
    net = cl.wrap(headed(lambda m, x: m.fc(F.relu(x - 1e6).mean((2, 3)))), card=CARD)
    found = doctor(net, picture(), method="grad-cam")
    assert found["map"].verdict == "bad"
    assert found["map"].measured["status"] in ("flat", "all-negative", "no-gradient")


def test_the_truth_is_found_by_number_id_and_name():
    net = cl.wrap(gap(), card=CARD)
    logits = net(net.preprocess(picture(), view="whole"))[0]
    last = int(logits.argmin())
    for truth in (last, str(last), f"n{last:04d}", f"thing {last}", f"SORT {last}"):
        found = doctor(net, picture(), truth=truth)["top-5"]
        assert (found.measured["truth"], found.measured["rank of the truth"]) == (last, CLASSES)
    assert doctor(net, picture(), truth=int(logits.argmax()))["top-5"].words.startswith("right: ")
    with pytest.raises(TargetError, match="did you mean 'thing 3, sort 3'"):
        doctor(net, picture(), truth="thing 3, sort")
    with pytest.raises(TargetError, match="0 … 4"):
        doctor(net, picture(), truth=5)
    with pytest.raises(UsageError, match="no picture"):
        doctor(net, [])


def test_json_holds_every_finding_and_no_nan():
    found = doctor(cl.wrap(gap(), card=CARD), picture())
    read = json.loads(found.to_json())
    assert [one["name"] for one in read["findings"]] == [one.name for one in found.findings]
    assert read["verdict"] == found.verdict
    assert read["top"][0]["probability"] == found.top[0][1]
    with pytest.raises(UsageError, match="did you mean 'head'"):
        found["haed"]
