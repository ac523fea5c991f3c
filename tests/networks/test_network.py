"""`Network`: logits, predictions, preprocessing, layers by name."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import camlucida as cl
from camlucida.errors import InputError, LayerError, NetworkError, UsageError
from camlucida.images.views import Preprocessing
from camlucida.values import Batch, Label, Size, View
from small_networks import CHANNELS, gap, headed, pixels, seeded

LABELS = tuple(Label(f"n{i}", f"thing {i}") for i in range(4))


def network(activation: str = "softmax", **options) -> cl.Network:
    return cl.wrap(gap(), card=cl.Card(labels=LABELS, activation=activation, **options))  # type: ignore[arg-type]


def test_logits_of_pixels_and_batches():
    net = network()
    expected = net.module(pixels()).detach()
    for given in (pixels(), Batch.of(pixels())):
        found = net(given)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert (found.dtype, found.requires_grad) == (torch.float32, False)
    net.module.train()
    torch.testing.assert_close(net(pixels()), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("softmax", lambda z: np.exp(z) / np.exp(z).sum(1, keepdims=True)),
        ("sigmoid", lambda z: 1 / (1 + np.exp(-z))),
        ("none", lambda z: z),
    ],
)
def test_predictions(activation, function):
    net = network(activation)
    found = net.predict(pixels(), top=3)
    logits = net.module(pixels()).detach().double().numpy()
    np.testing.assert_allclose(found.logits, logits, rtol=1e-6)
    np.testing.assert_allclose(found.probabilities, function(logits), rtol=1e-5)
    order = np.argsort(-logits, axis=1)[:, :3]
    assert found.classes.tolist() == order.tolist()
    expected = [[LABELS[c] if c < 4 else Label("4", "class 4") for c in row] for row in order]
    assert [list(row) for row in found.labels] == expected
    assert found.views == (View.whole(Size(20, 28)),) * 2


def test_more_classes_asked_for_than_there_are():
    assert network().predict(pixels(), top=99).classes.shape == (2, 5)


def test_an_unknown_precision():
    with pytest.raises(NetworkError, match=r"precision; got 'bf16'.*did you mean"):
        cl.Network(gap(), precision="bf16")


def test_mixed_precision_gives_float32_near_the_exact_logits():
    exact = network()(pixels())
    found = cl.Network(gap(), precision="bf16-mixed")(pixels())
    assert found.dtype == torch.float32
    assert not torch.equal(found, exact)
    torch.testing.assert_close(found, exact, rtol=0.05, atol=0.05)


def test_a_network_without_weights():
    net = cl.wrap(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    torch.testing.assert_close(net(pixels()), pixels().mean((2, 3)))


@pytest.mark.parametrize(
    ("output", "got"),
    [(lambda m, x: x, r"\(2, 6, 5, 7\)"), (lambda m, x: (x, x), "tuple"), (lambda m, x: {"out": x}, "dict")],
)
def test_an_output_that_is_no_logits(output, got):
    net = cl.wrap(headed(output))
    with pytest.raises(NetworkError, match=rf"module's output; got {got}; allowed: logits \(N, C\)"):
        net(pixels())


def test_outputs_that_hold_logits():
    expected = network()(pixels())
    for wrapped in (lambda z: {"logits": z}, lambda z: SimpleNamespace(logits=z)):
        net = cl.wrap(headed(lambda m, x, wrapped=wrapped: wrapped(m.fc(m.pool(x).flatten(1)))))
        torch.testing.assert_close(net(pixels()), expected, rtol=0, atol=0)


# --- preprocessing -----------------------------------------------------------------------------------------

PLAIN = Preprocessing(size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def picture(height: int = 32, width: int = 48) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_one_batch_from_anything(tmp_path):
    net = network(preprocessing=PLAIN)
    array = picture(16, 24)
    Image.fromarray(array).save(tmp_path / "one.png")
    given = [
        tmp_path / "one.png",
        str(tmp_path / "one.png"),
        (tmp_path / "one.png").read_bytes(),
        Image.fromarray(array),
        array,
        torch.from_numpy(array).permute(2, 0, 1),
    ]
    expected = (array / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    batch = net.preprocess(given)
    assert len(batch) == 6
    for found in batch.pixels:
        np.testing.assert_allclose(found.permute(1, 2, 0), expected, rtol=1e-4, atol=1e-5)
    for one in given:
        torch.testing.assert_close(net.preprocess(one).pixels, batch.pixels[:1], rtol=0, atol=0)
    torch.testing.assert_close(
        net.preprocess(np.stack([array, array])).pixels, batch.pixels[:2], rtol=0, atol=0
    )
    assert batch.views == (View.whole(Size(16, 24)),) * 6


def test_the_card_crops_and_the_whole_does_not():
    net = network(preprocessing=Preprocessing(size=16, crop=12))
    assert net.preprocess(picture()).pixels.shape == (1, 3, 12, 12)
    assert net.preprocess(picture()).views == (View(Size(32, 48), Size(16, 24), (2, 6, 12, 12)),)
    assert net.preprocess(picture(), view="whole").pixels.shape == (1, 3, 16, 24)


def test_pictures_that_make_no_batch(tmp_path):
    net = network(preprocessing=PLAIN)
    with pytest.raises(InputError, match=r"one batch of one shape; got \[\(16, 16\), \(16, 24\)\]"):
        net.preprocess([picture(), picture(32, 32)])
    with pytest.raises(InputError, match="got no picture"):
        net.preprocess([])
    with pytest.raises(InputError, match="cannot read: No such file"):
        net.preprocess(tmp_path / "none.png")
    with pytest.raises(InputError, match="a picture; got int"):
        net.preprocess(3)
    with pytest.raises(UsageError, match=r"'middle'; allowed: card | whole"):
        net.preprocess(picture(), view="middle")


# --- layers ------------------------------------------------------------------------------------------------


def test_layers_in_the_order_they_run():
    net = network()
    found = net.layers(pixels())
    assert [one.name for one in found] == ["features.0", "features.1", "features.2", "features.3", "features"]
    assert [one.size for one in found] == [(10, 14)] * 2 + [(5, 7)] * 3
    assert [one.channels for one in found] == [4, 4, CHANNELS, CHANNELS, CHANNELS]
    assert [one.stride for one in found] == [(2, 2)] * 2 + [(4, 4)] * 3
    assert [one.receptive_field for one in found] == [(3, 3)] * 2 + [(7, 7)] * 3
    assert [one.offset for one in found] == [(0.5, 0.5)] * 5
    assert all(one.reached for one in found)


def test_layers_on_a_blank_picture_of_the_cards_size():
    net = network(preprocessing=Preprocessing(size=40, crop=32))
    assert [one.size for one in net.layers()][-1] == (8, 8)
    grey = Preprocessing(size=8, channels="L", mean=(0.5,), std=(0.5,))
    module = seeded(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    assert cl.wrap(module, card=cl.Card(preprocessing=grey)).layers()[0].size == (6, 6)


def test_a_layer_that_the_logits_do_not_depend_on():
    def end(m, x):
        m.conv(x)
        return m.fc(x.mean((2, 3)))

    reached = {one.name: one.reached for one in cl.wrap(headed(end)).layers(pixels())}
    assert reached["features"]
    assert not reached["conv"]


def test_a_layer_by_name_by_module_and_by_itself():
    net: Any = network()
    by_name = net.find_layer("features.1", pixels())
    assert by_name.name == "features.1"
    assert net.find_layer(net.module.features[1], pixels()) == by_name
    assert net.find_layer(None, pixels()).name == "features"
    assert cl.wrap(net.module, layer="features.1").find_layer(None, pixels()) == by_name
    assert cl.wrap(net.module, layer="features.1").find_layer("features.0", pixels()).name == "features.0"


def test_layers_that_cannot_be_found():
    net = network()
    with pytest.raises(LayerError, match=r"layer 'feature.1' does not exist; did you mean 'features.1'\?"):
        net.find_layer("feature.1", pixels())
    with pytest.raises(
        LayerError, match=r"layer 'fc' has no spatial extent or did not run; live: features.0"
    ):
        net.find_layer("fc", pixels())
    with pytest.raises(LayerError, match="the given Conv2d is not part of this network"):
        net.find_layer(nn.Conv2d(3, 3, 1), pixels())
    with pytest.raises(LayerError, match="no spatial layer was found"):
        cl.wrap(nn.Sequential(nn.Flatten(), nn.Linear(3 * 20 * 28, 4))).find_layer(None, pixels())


@pytest.mark.filterwarnings("ignore:.* is compiled:UserWarning")
def test_the_inner_module_of_wrappers():
    module = gap()
    assert cl.wrap(nn.DataParallel(module)).module is module
    compiled: Any = torch.compile(module, backend="eager")
    assert cl.wrap(compiled).module is module
    assert cl.wrap(nn.DataParallel(compiled)).module is module
