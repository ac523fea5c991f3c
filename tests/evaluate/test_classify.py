"""Classification protocols against slow loops in float64 that resize, cut and mirror by themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import camlucida as cl
from camlucida import specs
from camlucida.errors import UsageError
from camlucida.evaluate import classify
from camlucida.evaluate.classify import CentreCrop, Dense, MultiCrop, TenCrop, Together
from camlucida.images.views import Preprocessing
from camlucida.values import Size
from pictures import colours
from small_networks import seeded

CROP, SHORT, CLASSES = 14, 20, 6
SHAPE = Preprocessing(size=SHORT, crop=CROP, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), any_size=False)
PICTURES = [colours(40, 60, 1), colours(60, 40, 2), colours(40, 40, 3)]  # halves: exact resizes


class Tiny(nn.Module):
    """14 × 14 pixels → 7 × 7 → 3 × 3 cells, flattened, two fully connected layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(8 * 9, 10), nn.ReLU(), nn.Dropout(0.5), nn.Linear(10, CLASSES))  # fmt: skip

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


@pytest.fixture
def net():
    module = seeded(Tiny).double()
    with torch.no_grad():
        module.classifier[3].weight *= 8  # posteriors that differ, so that the order of averaging matters
    return cl.wrap(module, card=cl.Card("tiny", preprocessing=SHAPE))


def posteriors(net, how, pictures=PICTURES, **options):
    images = [Image.fromarray(one) for one in pictures]
    return np.stack([one.probabilities for one in classify.classify(net, how, images, **options)])


def resized(picture, height, width):
    """Whole picture, resized at once, as the network wants it, float64 (3, H, W)."""
    shown = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR), np.float64)  # fmt: skip
    return ((shown / 255 - np.array(SHAPE.mean)) / np.array(SHAPE.std)).transpose(2, 0, 1)


def softmax(scores):
    e = np.exp(scores - scores.max())
    return e / e.sum()


def plain(net, pixels):
    with torch.no_grad():
        return softmax(net.module(torch.from_numpy(np.ascontiguousarray(pixels))[None])[0].numpy())


def short_side(picture, q):
    height, width = picture.shape[:2]
    scale = q / min(height, width)
    return int(np.floor(height * scale + 0.5)), int(np.floor(width * scale + 0.5))


def slow_crops(net, picture, q, corners):
    large = resized(picture, *short_side(picture, q))
    said = []
    for top, left in corners(large.shape[1], large.shape[2]):
        crop = large[:, top : top + CROP, left : left + CROP]
        said += [plain(net, crop), plain(net, crop[:, :, ::-1])]
    return np.mean(said, axis=0)


def slow_dense(net, picture, q, pool, flips=True):
    """The trunk once over the whole picture; the fully connected layers on every window of 3 × 3 cells."""
    large = resized(picture, *short_side(picture, q))
    said = []
    for pixels in (large, large[:, :, ::-1])[: 1 + flips]:
        with torch.no_grad():
            cells = net.module.features(torch.from_numpy(np.ascontiguousarray(pixels))[None])
            scores = [
                net.module.classifier(cells[:, :, y : y + 3, x : x + 3].flatten(1))[0].numpy()
                for y in range(cells.shape[2] - 2)
                for x in range(cells.shape[3] - 2)
            ]
        said.append(softmax(np.mean(scores, 0)) if pool == "logit" else np.mean([softmax(s) for s in scores], 0))  # fmt: skip
    return np.mean(said, axis=0)


def grid(height, width):
    return [
        (int(np.floor(i * (height - CROP) / 4 + 0.5)), int(np.floor(j * (width - CROP) / 4 + 0.5)))
        for i in range(5)
        for j in range(5)
    ]


def test_centre_crop_is_the_cards_view(net):
    expected = [plain(net, net.preprocess(Image.fromarray(one)).pixels[0].double().numpy()) for one in PICTURES]  # fmt: skip
    np.testing.assert_allclose(posteriors(net, CentreCrop()), expected, atol=1e-6)


def test_ten_crop_against_a_slow_loop(net):
    def corners(height, width):
        bottom, right = height - CROP, width - CROP
        return [(0, 0), (0, right), (bottom, 0), (bottom, right), ((bottom + 1) // 2, (right + 1) // 2)]

    expected = [slow_crops(net, one, SHORT, corners) for one in PICTURES]
    np.testing.assert_allclose(posteriors(net, TenCrop()), expected, atol=1e-6)


def test_multi_crop_against_a_slow_loop(net):
    expected = [np.mean([slow_crops(net, one, q, grid) for q in (20, 40)], axis=0) for one in PICTURES]
    np.testing.assert_allclose(posteriors(net, MultiCrop(scales=(20, 40))), expected, atol=1e-6)


@pytest.mark.parametrize("pool", ["logit", "probability"])
def test_dense_against_a_slow_loop(net, pool):
    expected = [np.mean([slow_dense(net, one, q, pool) for q in (20, 40)], axis=0) for one in PICTURES]
    found = posteriors(net, Dense(scales=(20, 40), pool=pool))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    other = posteriors(net, Dense(scales=(20, 40), pool="probability" if pool == "logit" else "logit"))
    assert np.abs(found - other).max() > 1e-3


def test_dense_without_flips(net):
    expected = [slow_dense(net, one, 40, "logit", flips=False) for one in PICTURES]
    np.testing.assert_allclose(posteriors(net, Dense((40,), flips=False)), expected, atol=1e-6)


def test_together_is_the_mean_of_both(net):
    expected = [
        np.mean([np.mean([slow_dense(net, one, q, "logit"), slow_crops(net, one, q, grid)], 0) for q in (20, 40)], 0)
        for one in PICTURES
    ]  # fmt: skip
    np.testing.assert_allclose(posteriors(net, Together(scales=(20, 40))), expected, atol=1e-6)


def test_dense_on_exactly_the_training_size_is_the_plain_network(net):
    square = [colours(CROP, CROP, 5)]
    pixels = resized(square[0], CROP, CROP)
    expected = plain(net, pixels)
    np.testing.assert_allclose(posteriors(net, Dense((CROP,), flips=False), square)[0], expected, atol=1e-6)
    scores = classify._scorer(net, True)
    raw = torch.from_numpy(square[0].transpose(2, 0, 1).copy())[None]
    np.testing.assert_allclose(scores(raw, "probability"), scores(raw, None), atol=1e-6)


def test_fifty_windows_by_hand():
    # 40 × 60 pixels at shorter side 20 are 20 × 30: 6 pixels of room down, 16 across; 1.5 and 4.5 round up.
    looks = MultiCrop(scales=(20,)).looks(Size(40, 60), SHAPE)
    assert len(looks) == 50
    assert {look.share for look in looks} == {1 / 50}
    rows, columns = (0, 2, 3, 5, 6), (0, 4, 8, 12, 16)
    windows = [(look.view.crop, look.view.flip) for look in looks]
    assert windows == [((y, x, 14, 14), flip) for y in rows for x in columns for flip in (False, True)]
    assert {look.view.resized for look in looks} == {Size(20, 30)}
    assert len(MultiCrop(scales=(20, 22, 24)).looks(Size(40, 60), SHAPE)) == 150


def test_windows_that_coincide_are_looked_at_once_and_count_all_the_same():
    looks = MultiCrop(scales=(14, 20)).looks(Size(40, 40), SHAPE)  # at 14 all 25 crops are the picture
    assert len(looks) == 2 + 50
    assert looks[0].share == pytest.approx(0.25)
    assert sum(look.share for look in looks) == pytest.approx(1)


def test_ten_crop_where_the_card_has_no_margin():
    shape = Preprocessing(size=28, crop=None)
    looks = TenCrop().looks(Size(56, 84), shape)  # 28 · 256/224 = 32
    assert [look.view.crop for look in looks[::2]] == [
        (0, 0, 28, 28), (0, 20, 28, 28), (4, 0, 28, 28), (4, 20, 28, 28), (2, 10, 28, 28),
    ]  # fmt: skip
    assert {look.view.resized for look in looks} == {Size(32, 48)}


@pytest.mark.parametrize(
    ("size", "crop", "expected"),
    [(256, 224, (224, 256, 288)), (384, 224, (352, 384, 416)), (224, 224, (224, 256, 288)), (96, None, (96, 110, 124)), (128, 112, (112, 128, 144))],
)  # fmt: skip
def test_scales_of_the_paper_and_in_proportion(size, crop, expected):
    shape = Preprocessing(size=size, crop=crop)
    assert classify.sides("multiple", shape, crop or size) == expected
    assert classify.sides("single", shape, crop or size) == (size,)


def test_a_scale_below_the_crop_is_refused_before_anything_is_read(net):
    for how in (Dense((12, 20)), MultiCrop((12, 20)), Together((12,))):
        with pytest.raises(UsageError, match=r"12.*≥ 14"):
            next(classify.classify(net, how, ["never-opened.jpg"]))


def test_specs_name_every_protocol():
    for how in (CentreCrop(), TenCrop(), Dense((224, 256), pool="probability"), MultiCrop("single", 3), Together(flips=False)):  # fmt: skip
        assert classify.protocol(specs.describe(how, classify.PROTOCOLS)) == how
    assert classify.protocol("dense:scales=224/256/288,pool=probability") == Dense((224, 256, 288), pool="probability")  # fmt: skip
    assert classify.protocol("dense:scales=multiple") == Dense("multiple")
    with pytest.raises(UsageError, match="did you mean 'multi-crop'"):
        classify.protocol("multicrop")
    with pytest.raises(UsageError, match=r"logit \| probability"):
        classify.protocol("dense:pool=prob")


def test_broken_pictures_keep_their_place(net):
    images = [Image.fromarray(PICTURES[0]), b"no picture", Image.fromarray(PICTURES[1])]
    found = list(classify.classify(net, MultiCrop((20,)), images))
    assert [one.probabilities is None for one in found] == [False, True, False]
    assert "not a picture" in found[1].problem
    np.testing.assert_allclose(found[2].probabilities, posteriors(net, MultiCrop((20,)))[1], atol=1e-7)


def test_batches_and_parts_change_nothing(net, monkeypatch):
    pictures = [colours(40 + 4 * (i % 2), 60, i) for i in range(9)]
    whole = posteriors(net, Together((20, 40)), pictures)
    monkeypatch.setattr(classify, "PART_BYTES", 40_000)
    sizes = []
    parts = classify._parts

    def counted(stream):
        for part in parts(stream):
            sizes.append(len(part))
            yield part

    monkeypatch.setattr(classify, "_parts", counted)
    np.testing.assert_allclose(posteriors(net, Together((20, 40)), pictures, batch=3, workers=1), whole, atol=1e-6)  # fmt: skip
    assert len(sizes) > 2


def test_larger_views_share_a_pass_with_fewer(net, monkeypatch):
    seen, scorer = [], classify._scorer

    def watched(net, dense):
        score = scorer(net, dense)
        return lambda pixels, pool: (seen.append((tuple(pixels.shape), pool)), score(pixels, pool))[1]

    monkeypatch.setattr(classify, "_scorer", watched)
    posteriors(net, Together((28,)), batch=8)  # the whole views: 28 × 42, 42 × 28 and 28 × 28
    assert {shape[0] for shape, pool in seen if pool is None} == {8, 3 * 50 % 8}
    whole = {shape[2:]: shape[0] for shape, pool in seen if pool}
    assert whole == {(28, 42): 1, (42, 28): 1, (28, 28): 2}  # 8 · 14² pixels hold two of 28²


def test_the_network_comes_back_as_it_was(net):
    net.module.train()
    before = {name: value.clone() for name, value in net.module.state_dict().items()}
    posteriors(net, Together((20,)))
    assert all(m.training for m in net.module.modules())
    assert all(torch.equal(before[name], value) for name, value in net.module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.module.parameters())


def test_fused_networks_average_their_posteriors(net):
    other = cl.wrap(seeded(Tiny, seed=7).double(), card=net.card)
    images = [Image.fromarray(PICTURES[0]), b"", Image.fromarray(PICTURES[1])]
    found = list(classify.fused([classify.classify(one, CentreCrop(), images) for one in (net, other)]))
    expected = (posteriors(net, CentreCrop()) + posteriors(other, CentreCrop())) / 2
    np.testing.assert_allclose(found[0].probabilities, expected[0], atol=1e-12)
    np.testing.assert_allclose(found[2].probabilities, expected[1], atol=1e-12)
    assert found[1].problem == "empty file"


def test_sigmoid_networks_average_sigmoids(net):
    from dataclasses import replace

    several = replace(net, card=replace(net.card, activation="sigmoid"))
    found = posteriors(several, MultiCrop((20,)))[0]
    large = resized(PICTURES[0], 20, 30)
    said = []
    for top, left in grid(20, 30):
        crop = large[:, top : top + CROP, left : left + CROP]
        for pixels in (crop, crop[:, :, ::-1]):
            with torch.no_grad():
                said.append(torch.sigmoid(net.module(torch.from_numpy(pixels.copy())[None]))[0].numpy())
    np.testing.assert_allclose(found, np.mean(said, 0), atol=1e-6)


def test_a_very_long_picture_is_bounded():
    looks = Dense((20,)).looks(Size(10, 5000), SHAPE)
    assert {look.view.size for look in looks} == {Size(20, 160)}
