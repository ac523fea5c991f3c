"""Maps from SVM weights: mean of the map + bias = decision value, for every normalisation and stack, packed or not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from laid_out import network, picture

import camlucida as cl
from camlucida.features import Descriptor, Extractor, Features, class_maps, fit, packed, stacked
from camlucida.images.views import Preprocessing
from camlucida.networks import cards, catalogue
from camlucida.values import Box, Label
from small_networks import FullyConnected, seeded

COUNT, CLASSES = 12, 3
PICTURES = [picture(i, 40 + 8 * (i % 2), 56) for i in range(COUNT)]
LABELS = tuple(Label(f"n{k}", f"kind {k}") for k in range(CLASSES))


def features(extractor, boxes=None) -> Features:
    from camlucida.features import Wanted

    given = [Wanted(one, boxes[i] if boxes else None) for i, one in enumerate(PICTURES)]
    values = np.stack([one.vector for one in extractor(given)])
    return Features(values, tuple(map(str, range(COUNT))), tuple((i % CLASSES,) for i in range(COUNT)), LABELS, extractor.blocks)  # fmt: skip


@pytest.mark.parametrize("normalise", ["none", "l2", "standard"])
def test_a_packed_network_gives_decision_values_and_their_maps(normalise, tmp_path):
    layer = "stages.1" if normalise == "l2" else None
    net = network()
    extractor = Extractor(net, Descriptor(layer=layer, scales=(40,)))
    given = features(extractor)
    svm = fit(given, normalise=normalise, c=10.0)
    made = packed(net, svm)
    assert (made.card.activation, made.card.labels, made.card.preprocessing.size) == ("none", LABELS, 40)
    cards.pack(tmp_path / "svm.safetensors", made.module.state_dict(), made.card)
    for one in (made, cl.load(str(tmp_path / "svm.safetensors"))):
        for i in (0, 1):
            batch = one.preprocess(PICTURES[i], view="whole")
            expected = svm.decide(given)[i]
            np.testing.assert_allclose(one(batch)[0], expected, atol=2e-5)
            maps = cl.CAM()(one, batch, cl.ClassTarget.all())
            bias = svm.linear(given.values[i : i + 1])[1]
            np.testing.assert_allclose(
                maps.values.double().mean((2, 3))[0].numpy() + bias, expected, atol=2e-5
            )
            np.testing.assert_allclose(maps.scores[0], expected, atol=2e-5)
            assert maps.method == "cam"


def test_a_network_of_one_size_stays_one():
    plain = network()
    shape = Preprocessing(size=32, any_size=False)
    net = replace(plain, card=replace(plain.card, preprocessing=shape))
    given = features(Extractor(net))
    svm = fit(given)
    made = packed(net, svm)
    assert made.card.preprocessing == shape
    batch = made.preprocess(PICTURES[1], view="whole")
    assert batch.pixels.shape[2:] == (32, 32)
    np.testing.assert_allclose(made(batch)[0], svm.decide(given)[1], atol=2e-5)


def test_two_pictures_of_one_batch_have_norms_of_their_own():
    net = network()
    given = features(Extractor(net))
    svm = fit(given, normalise="l2", c=10.0)
    made = packed(net, svm)
    batch = made.preprocess([PICTURES[0], PICTURES[2]], view="whole")
    maps = cl.CAM()(made, batch, cl.ClassTarget.all())
    means = maps.values.double().mean((2, 3)).numpy() + svm.bias
    np.testing.assert_allclose(means, svm.decide(given)[[0, 2]], atol=2e-5)
    lengths = np.linalg.norm(given.values[[0, 2]], axis=1)
    assert abs(lengths[0] / lengths[1] - 1) > 0.02
    with torch.no_grad():
        trunk = Extractor(net).maps(batch.pixels)
    by_hand = torch.einsum("ck,nkhw->nchw", torch.from_numpy(svm.weights), trunk.double())
    torch.testing.assert_close(maps.values.double(), by_hand / torch.from_numpy(lengths).view(2, 1, 1, 1).double(), atol=1e-5, rtol=1e-5)  # fmt: skip


@pytest.mark.parametrize("normalise", ["none", "standard"])
def test_averaged_scales_and_mirror_images_become_views(normalise):
    net = network()
    given = features(Extractor(net, Descriptor(scales=(32, 48), flips=True)))
    svm = fit(given, normalise=normalise, c=10.0)
    made = packed(net, svm)
    assert made.card.localization.views == "flip+1+1.5"
    (found,) = cl.localize(made, PICTURES[1], top=CLASSES)
    by_class = {one.class_index: one for one in found}
    np.testing.assert_allclose([by_class[k].logit for k in range(CLASSES)], svm.decide(given)[1], atol=2e-5)
    assert all(one.probability is None for one in found)
    assert found[0].class_index == svm.decide(given)[1].argmax()
    assert found[0].map_method == "cam"


def test_penultimate_maps_are_packed(tmp_path):
    class Square(FullyConnected):
        def __init__(self, num_classes=5):
            super().__init__()
            self.classifier[1] = torch.nn.Linear(6 * 5 * 5, 8)

    globals()["Square"] = Square
    card = cl.Card("square", f"{__name__}:Square", {}, Preprocessing(size=20, any_size=False))
    net = cl.wrap(seeded(Square), card=card)
    extractor = Extractor(net, Descriptor(layer="penultimate", scales=(30,)))
    given = features(extractor)
    svm = fit(given, normalise="l2", c=10.0)
    made = packed(net, svm)
    file = tmp_path / "svm.safetensors"
    cards.pack(file, made.module.state_dict(), made.card)
    module, read = catalogue.rebuild(file, cards.read_card(file))
    again = catalogue.wrap(module, card=read)
    for one in (made, again):
        batch = one.preprocess(PICTURES[3], view="whole")
        maps = cl.CAM()(one, batch, cl.ClassTarget.all())
        assert maps.values.shape[3] > 1
        np.testing.assert_allclose(
            maps.values.double().mean((2, 3))[0].numpy() + svm.bias, svm.decide(given)[3], atol=2e-5
        )
        np.testing.assert_allclose(one(batch)[0], svm.decide(given)[3], atol=2e-5)


@pytest.mark.parametrize("normalise", ["none", "l2", "standard"])
def test_the_identity_holds_for_any_stack(normalise):
    boxes = [Box(4 + i, 3, 40, 30 + i % 5) for i in range(COUNT)]
    extractors = [
        Extractor(network(0), Descriptor(scales=(32, 24), combine="stack", flips=True)),
        Extractor(network(1), Descriptor(scales=(32, 40), region="picture+box")),
    ]
    given = stacked([features(one, boxes) for one in extractors])
    svm = fit(given, normalise=normalise, c=10.0)
    for i in (0, 5):
        found = class_maps(svm, extractors, PICTURES[i], boxes[i])
        np.testing.assert_allclose(found.decisions, svm.decide(given)[i], atol=2e-5)
        total = sum(one.values.mean((1, 2)) for one in found.views) + found.bias
        np.testing.assert_allclose(total, found.decisions, atol=1e-9)
        assert len(found.views) == 2 * 2 + 2 * 2
        assert len({one.values.shape for one in found.views}) > 2
    with pytest.raises(cl.UsageError, match="another|other features"):
        class_maps(svm, extractors[::-1], PICTURES[0], boxes[0])


def test_what_one_network_cannot_express_is_refused_with_what_does():
    net = network()
    two = Extractor(net, Descriptor(scales=(32, 48), combine="stack"))
    with pytest.raises(cl.UsageError, match="2 stacked blocks.*class_maps"):
        packed(net, fit(features(two)))
    averaged = Extractor(net, Descriptor(flips=True))
    with pytest.raises(cl.UsageError, match="averaged over 2 views.*standard"):
        packed(net, fit(features(averaged), normalise="l2"))
    svm = fit(features(Extractor(net)))
    with pytest.raises(cl.UsageError, match="other weights"):
        packed(network(1), svm)
    shown = replace(
        net, card=replace(net.card, preprocessing=replace(net.card.preprocessing, mean=(0, 0, 0)))
    )
    with pytest.raises(cl.UsageError, match="other preprocessing"):
        packed(shown, svm)
    boxed = Extractor(net, Descriptor(region="box"))
    with pytest.raises(cl.UsageError, match="boxes"):
        packed(net, fit(features(boxed, [Box(0, 0, 30, 30)] * COUNT)))


def test_the_user_s_network_is_as_it_was():
    net = network()
    before = {n: t.clone() for n, t in net.module.state_dict().items()}
    packed(net, fit(features(Extractor(net))))
    assert all(torch.equal(before[n], t) for n, t in net.module.state_dict().items())
    assert net.card.labels == ()
