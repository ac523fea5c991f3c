"""The ten-crop CAM against the released code's steps, written slowly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import camlucida as cl
from camlucida.errors import UnsupportedError
from camlucida.images.views import Preprocessing
from camlucida.maps import ten_crop_cam
from camlucida.networks.cards import Card
from fingerprints import unchanged
from small_networks import OTHER, gap

CARD = Card(preprocessing=Preprocessing(size=32, crop=28, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)))


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)


def released(module: torch.nn.Module, one: Image.Image, index: int | None) -> tuple[np.ndarray, torch.Tensor]:
    """Squash, ten crops, their CAMs upsampled, un-flipped, absolute, added on the canvas; mean probabilities."""
    module = module.double()
    pixels = torch.from_numpy(np.array(one.resize((32, 32), Image.Resampling.BILINEAR))).double() / 255
    pixels = ((pixels - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.3, 0.4])).permute(2, 0, 1)
    crops = [(t, s, f) for f in (False, True) for t, s in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))]
    cut = [pixels[:, t : t + 28, s : s + 28] for t, s, _ in crops]
    cut = [one.flip(2) if f else one for one, (_, _, f) in zip(cut, crops, strict=True)]
    with torch.no_grad():
        probabilities = torch.stack([module(one[None]).softmax(1)[0] for one in cut]).mean(0)
        index = int(probabilities.argmax()) if index is None else index
        canvas = np.zeros((32, 32))
        for one, (t, s, f) in zip(cut, crops, strict=True):
            features = module.features(one[None])
            cam = (module.fc.weight[index][:, None, None] * features[0]).sum(0)
            up = F.interpolate(cam[None, None], (28, 28), mode="bilinear", align_corners=False)[0, 0]
            canvas[t : t + 28, s : s + 28] += (up.flip(1) if f else up).abs().numpy()
    return canvas, probabilities


@pytest.mark.parametrize("index", [None, 3])
def test_as_released(index):
    module = gap()
    one = picture(32, 32)
    target = None if index is None else cl.ClassTarget(index)
    with unchanged(module):
        found = ten_crop_cam(cl.wrap(module, card=CARD), [one], target)
    canvas, probabilities = released(gap(), one, index)
    np.testing.assert_allclose(found.maps[0][0], canvas / canvas.max(), atol=1e-4)
    np.testing.assert_allclose(found.probabilities[0], probabilities, atol=1e-5)
    assert found.classes.tolist() == [[int(probabilities.argmax()) if index is None else index]]


def test_pictures_of_any_shape_share_the_crops():
    network = cl.wrap(gap(), card=CARD)
    pictures = [picture(40, 60), picture(33, 21, 1)]
    both = ten_crop_cam(network, pictures, cl.ClassTarget([[1, 2], [0, 4]]))
    assert [tuple(m.shape) for m in both.maps] == [(2, 40, 60), (2, 33, 21)]
    assert [float(m.max()) for maps in both.maps for m in maps] == [1.0] * 4
    alone = ten_crop_cam(network, pictures[1:], cl.ClassTarget([[0, 4]]))
    torch.testing.assert_close(alone.maps[0], both.maps[1], rtol=1e-4, atol=1e-5)


def test_localize_with_ten_crops_shows_the_same_map():
    network = cl.wrap(gap(), card=CARD)
    one = picture(40, 60)
    found = ten_crop_cam(network, [one])
    (places,) = cl.localize(network, one, top=1, views="ten-crop", boxes="fraction-of-max:threshold=0.5")
    assert places[0].class_index == int(found.classes)
    np.testing.assert_allclose(places[0].probability, float(found.probabilities.max()), atol=1e-6)
    (expected,) = cl.FractionOfMax(0.5).on_map(found.maps[0][0].numpy(), cl.Size(40, 60))
    assert places[0].boxes[0].box == expected.box
    np.testing.assert_allclose(places[0].boxes[0].score, expected.score, rtol=1e-5)


def test_a_head_that_is_none():
    network = cl.wrap(OTHER["average and maximum"](), card=CARD)
    with pytest.raises(UnsupportedError, match="pooling → linear"):
        ten_crop_cam(network, [picture(40, 40)])
