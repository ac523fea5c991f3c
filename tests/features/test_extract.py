"""Vectors of pictures against the formula written slowly: each view by itself, the mean of its map, then the rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from laid_out import network, picture
from PIL import Image

import camlucida as cl
from camlucida.features import Descriptor, Extractor, Wanted
from camlucida.features.extract import penultimate
from camlucida.images.views import Preprocessing
from camlucida.values import Box
from small_networks import FullyConnected, seeded, tokens


def vector(extractor, *pictures, **options):
    found = list(extractor([one if isinstance(one, Wanted) else Wanted(one) for one in pictures], **options))
    assert not [one.problem for one in found if one.problem]
    return np.stack([one.vector for one in found])


def pooled(net, shown: Image.Image, side: int, flip: bool = False, layer: str = "stages"):
    """The mean map of one layer, in float64: Pillow resizes, mean and std by hand, the module alone."""
    short = side / min(shown.size)
    size = tuple(int(np.floor(s * short + 0.5)) if s != min(shown.size) else side for s in shown.size)
    array = np.asarray(shown.resize(size, Image.Resampling.BILINEAR), np.float64) / 255
    shape = net.card.preprocessing
    pixels = torch.from_numpy((array - shape.mean) / shape.std).movedim(-1, 0)[None]
    pixels = pixels.flip(3) if flip else pixels
    kept = {}
    module = net.module.double()
    hook = module.get_submodule(layer).register_forward_hook(lambda m, i, o: kept.update(o=o))
    with torch.no_grad():
        module(pixels)
    hook.remove()
    module.float()
    return kept["o"].mean((2, 3))[0].numpy()


def test_the_map_before_pooling_is_averaged():
    net = network()
    pictures = [picture(0), picture(1, 64, 36), picture(2)]
    expected = [pooled(net, one, 32) for one in pictures]
    np.testing.assert_allclose(vector(Extractor(net), *pictures), expected, atol=2e-6)


def test_any_layer():
    net = network()
    found = vector(Extractor(net, Descriptor(layer="stages.1")), picture(0))
    np.testing.assert_allclose(found[0], pooled(net, picture(0), 32, layer="stages.1"), atol=2e-6)
    assert found.shape == (1, 8)


def test_scales_and_mirror_images_averaged_or_stacked():
    net, one = network(), picture(3, 44, 70)
    each = {q: (pooled(net, one, q) + pooled(net, one, q, flip=True)) / 2 for q in (24, 32, 48)}
    assert np.abs(pooled(net, one, 24) - pooled(net, one, 24, flip=True)).max() > 1e-4
    averaged = Extractor(net, Descriptor(scales=(24, 32, 48), flips=True))
    np.testing.assert_allclose(vector(averaged, one)[0], np.mean(list(each.values()), axis=0), atol=2e-6)
    stacked = Extractor(net, Descriptor(scales=(48, 24, 32), flips=True, combine="stack"))
    np.testing.assert_allclose(
        vector(stacked, one)[0], np.concatenate([each[48], each[24], each[32]]), atol=2e-6
    )
    assert [(b.scales, b.start, b.stop) for b in stacked.blocks] == [
        ((48,), 0, 16),
        ((24,), 16, 32),
        ((32,), 32, 48),
    ]


def test_the_box_is_cut_out_and_stacked_with_the_picture():
    net, one = network(), picture(4, 50, 80)
    box = Box(10.4, 5.0, 60.0, 40.2)
    both = Extractor(net, Descriptor(region="picture+box"))
    expected = np.concatenate([pooled(net, one, 32), pooled(net, one.crop((10, 5, 60, 41)), 32)])
    np.testing.assert_allclose(vector(both, Wanted(one, box))[0], expected, atol=2e-6)
    wider = Extractor(net, Descriptor(region="box", margin=0.1))
    np.testing.assert_allclose(
        vector(wider, Wanted(one, box))[0], pooled(net, one.crop((5, 1, 65, 44)), 32), atol=2e-6
    )
    tiny = Extractor(net, Descriptor(region="box"))
    np.testing.assert_allclose(
        vector(tiny, Wanted(one, Box(3, 3, 18, 40)))[0], pooled(net, one, 32), atol=2e-6
    )
    (missing,) = tiny([Wanted(one)])
    assert "no box on this picture" in missing.problem


def test_the_penultimate_map_of_the_dense_network():
    class Square(FullyConnected):
        def __init__(self):
            super().__init__()
            self.classifier[1] = torch.nn.Linear(6 * 5 * 5, 8)

    net = cl.wrap(seeded(Square), card=cl.Card("fc", preprocessing=Preprocessing(size=20, any_size=False)))
    extractor = Extractor(net, Descriptor(layer="penultimate"))
    one = Image.new("RGB", (20, 20), (200, 30, 90))
    shown = net.preprocess(one).pixels
    with torch.no_grad():
        expected = net.module.classifier[:3](net.module.features(shown))[0]
    assert expected.max() > 0
    np.testing.assert_allclose(vector(extractor, one)[0], expected, atol=1e-6)
    larger = vector(extractor, picture(0, 20, 36))[0]  # the card's side is its dense form's shorter one
    dense, name, _ = penultimate(net)
    pixels = dense.card.preprocessing
    batch = dense.preprocess(picture(0, 20, 36), view="whole").pixels
    kernel = net.module.classifier[1].weight.view(8, 6, 5, 5)
    with torch.no_grad():
        hidden = torch.conv2d(net.module.features(batch), kernel, net.module.classifier[1].bias).relu()
    assert hidden.shape[3] > 1
    assert name == "head.scores.1"
    assert pixels.any_size
    np.testing.assert_allclose(larger, hidden.mean((2, 3))[0], atol=1e-6)
    with pytest.raises(cl.UnsupportedError, match="leave --layer out"):
        Extractor(network(), Descriptor(layer="penultimate"))


def test_tokens_have_their_grid():
    net = cl.wrap(
        tokens("norm, mean"), card=cl.Card("vit", preprocessing=Preprocessing(size=20, any_size=False))
    )
    pixels = torch.randn(2, 3, 20, 28)
    extractor = object.__new__(Extractor)
    extractor.net, extractor.how = net, Descriptor(layer="block")
    extractor.layer = net.find_layer("block", pixels)
    with torch.no_grad():
        x = net.module.embed(pixels)
        expected = net.module.mixed(x, net.module.norm1(x))[:, 1:].mean(1)
    torch.testing.assert_close(extractor.maps(pixels).mean((2, 3)), expected)


def test_the_same_whatever_the_batch_and_broken_pictures_keep_their_place(tmp_path):
    net, extractor = network(), Extractor(network())
    pictures = [picture(i, 40, 56 if i % 2 else 40) for i in range(5)]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    given = [*pictures[:2], str(tmp_path / "broken.png"), *pictures[2:]]
    found = list(extractor(given, batch=2))
    assert [one.vector is None for one in found] == [False, False, True, False, False, False]
    assert found[2].problem
    assert found[2].path.endswith("broken.png")
    alone = [vector(Extractor(net), one)[0] for one in pictures]
    np.testing.assert_allclose([one.vector for one in found if one.vector is not None], alone, atol=2e-6)


def test_what_a_network_does_not_take_is_refused_in_words():
    net = network()
    fixed = cl.wrap(net.module, card=replace(net.card, preprocessing=Preprocessing(size=32, any_size=False)))
    with pytest.raises(cl.UsageError, match="takes 32 × 32 only"):
        Extractor(fixed, Descriptor(scales=(32, 48)))
    with pytest.raises(cl.UsageError, match="≥ 16"):
        Extractor(net, Descriptor(scales=(8,)))
    with pytest.raises(cl.LayerError):
        Extractor(net, Descriptor(layer="stagse"))
    with pytest.raises(cl.UsageError, match="each once"):
        Descriptor(scales=(32, 32))


def test_the_module_is_as_it_was():
    net = network()
    net.module.train()
    before = {n: t.clone() for n, t in net.module.state_dict().items()}
    vector(Extractor(net), picture(0))
    assert net.module.training
    assert all(torch.equal(before[n], t) for n, t in net.module.state_dict().items())
