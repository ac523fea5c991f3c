"""Which view a network gets and its pixels, on pictures that are not square and against torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from camlucida.errors import UsageError
from camlucida.images.views import Preprocessing
from camlucida.networks import adapt
from camlucida.values import Size, View
from pictures import colours, smooth

LANDSCAPE, PORTRAIT = Size(225, 301), Size(301, 225)


class TestCardView:
    def test_shorter_side_then_the_middle(self):
        shape = Preprocessing(size=256, crop=224)
        # 225 × 301 → 256 × 342.47; the cut starts at 16 and (342 − 224) / 2.
        assert shape.view(LANDSCAPE) == View(LANDSCAPE, Size(256, 342), (16, 59, 224, 224))
        assert shape.view(PORTRAIT, flip=True) == View(PORTRAIT, Size(342, 256), (59, 16, 224, 224), True)

    def test_no_crop(self):
        assert Preprocessing(size=64).view(LANDSCAPE) == View.whole(LANDSCAPE, Size(64, 86))
        assert Preprocessing(size=64, any_size=False).view(LANDSCAPE) == View(
            LANDSCAPE, Size(64, 86), (0, 11, 64, 64)
        )

    def test_squashed_before_the_cut(self):
        shape = Preprocessing(size=72, crop=64, resize="squash")
        assert shape.view(LANDSCAPE) == View(LANDSCAPE, Size(72, 72), (4, 4, 64, 64))
        assert Preprocessing(size=72, resize="squash").view(PORTRAIT) == View.whole(PORTRAIT, Size(72, 72))

    def test_a_crop_never_leaves_the_picture(self):
        assert Preprocessing(size=64, crop=80).view(LANDSCAPE) == View(
            LANDSCAPE, Size(64, 86), (0, 3, 64, 80)
        )


class TestWholeView:
    def test_the_whole_picture_shorter_side_by_the_card(self):
        shape = Preprocessing(size=64, crop=56)
        assert shape.view(LANDSCAPE, "whole") == View.whole(LANDSCAPE, Size(64, 86))
        assert shape.view(PORTRAIT, "whole", flip=True) == View.whole(PORTRAIT, Size(86, 64), flip=True)

    def test_zoom(self):
        shape = Preprocessing(size=64)
        assert shape.view(LANDSCAPE, "whole", zoom=1.5) == View.whole(LANDSCAPE, Size(96, 128))
        assert shape.view(PORTRAIT, "whole", zoom=2) == View.whole(PORTRAIT, Size(171, 128))
        least = Preprocessing(size=64, minimum=75)
        assert least.view(LANDSCAPE, "whole") == View.whole(LANDSCAPE, Size(75, 100))

    def test_squashed_where_the_network_takes_one_shape_only(self):
        assert Preprocessing(size=256, crop=224, any_size=False).view(
            LANDSCAPE, "whole", zoom=1.5
        ) == View.whole(LANDSCAPE, Size(224, 224))
        assert Preprocessing(size=64, any_size=False).view(PORTRAIT, "whole") == View.whole(
            PORTRAIT, Size(64, 64)
        )

    def test_squashed_by_the_card(self):
        shape = Preprocessing(size=64, resize="squash")
        assert shape.view(LANDSCAPE, "whole", zoom=1.5) == View.whole(LANDSCAPE, Size(96, 96))

    def test_an_unknown_view(self):
        with pytest.raises(UsageError, match=r"view; got 'full'; allowed: card \| whole"):
            Preprocessing().view(LANDSCAPE, "full")


class TestPixels:
    def test_torchvision_s_own_preset(self):
        """ResNet-18's card on a square picture; on others torchvision cuts the longer side down, we round
        it."""
        published = torchvision.models.get_model_weights("resnet18").DEFAULT.transforms()
        _, card = adapt.torchvision_network("resnet18", None, {}, False)
        shape = card.preprocessing
        picture = Image.fromarray(smooth(301, 301) // 2 + colours(301, 301) // 2)
        view = shape.view(Size(301, 301))
        ours = shape.normalise(shape.pixels(picture, view)[None])[0]
        theirs = published(picture)
        assert ours.shape == theirs.shape == (3, 224, 224)
        level = 1 / 255 / min(shape.std)
        assert (ours - theirs).abs().max() <= 1.01 * level
        assert (ours - theirs).abs().mean() < 0.1 * level

    def test_channels(self):
        picture = Image.fromarray(colours())
        view = View.whole(Size(45, 61))
        rgb = np.moveaxis(colours(), 2, 0)
        assert np.array_equal(Preprocessing().pixels(picture, view), rgb)
        blue_first = Preprocessing(channels="BGR").pixels(picture, view)
        assert np.array_equal(blue_first, rgb[::-1])
        assert blue_first.is_contiguous()
        grey = Preprocessing(channels="L", mean=(0.5,), std=(0.2,)).pixels(picture, view)
        assert grey.shape == (1, 45, 61)
        exact = colours() @ np.array([0.299, 0.587, 0.114])
        assert np.abs(grey[0].numpy() - exact).max() <= 1
        assert grey.dtype == blue_first.dtype == torch.uint8

    def test_the_view_is_what_is_shown(self):
        picture = Image.fromarray(smooth(225, 301))
        shape = Preprocessing(size=64, crop=48, interpolation="bicubic")
        view = shape.view(LANDSCAPE, flip=True)
        shown = picture.resize((86, 64), Image.Resampling.BICUBIC).crop((19, 8, 67, 56))
        expected = np.moveaxis(np.asarray(shown)[:, ::-1], 2, 0).astype(int)
        assert np.abs(shape.pixels(picture, view).numpy().astype(int) - expected).max() <= 2

    def test_normalised(self):
        pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 4, 5)
        shape = Preprocessing(scale=255.0, mean=(103.0, 116.0, 123.0), std=(1.0, 2.0, 4.0), channels="BGR")
        expected = torch.tensor([-103.0, -32.5, 33.0]).view(1, 3, 1, 1).expand(2, 3, 4, 5)
        torch.testing.assert_close(shape.normalise(pixels), expected)
        unit = Preprocessing(scale=2.0, mean=(1.0,) * 3, std=(1.0,) * 3)  # −1 … 1
        torch.testing.assert_close(unit.normalise(pixels)[0, :, 0, 0], torch.tensor([-1.0, -0.6, 1.0]))

    @pytest.mark.parametrize(
        ("shape", "colour"),
        [
            (Preprocessing(), (124, 116, 104)),
            (
                Preprocessing(channels="BGR", scale=255.0, mean=(103.9, 116.8, 123.7), std=(1.0,) * 3),
                (124, 117, 104),
            ),
            (Preprocessing(channels="L", mean=(0.4,), std=(0.2,)), (102, 102, 102)),
            (Preprocessing(scale=2.0, mean=(1.0,) * 3, std=(1.0,) * 3), (128, 128, 128)),
            (Preprocessing(mean=(1.5, 0.0, -0.5)), (255, 0, 0)),
        ],
    )
    def test_the_mean_colour_is_what_becomes_zero(self, shape, colour):
        assert shape.mean_colour == colour
        if all(0 <= m <= shape.scale for m in shape.mean):
            view = View.whole(Size(2, 3))
            pixels = shape.pixels(Image.new("RGB", (3, 2), colour), view)[None]
            level = shape.scale / 255 / min(shape.std)
            assert shape.normalise(pixels).abs().max() <= 0.51 * level


@pytest.mark.parametrize(
    "options",
    [
        {"mean": (0.5,)},
        {"std": (1.0, 1.0)},
        {"channels": "L"},
        {"std": (1.0, 0.0, 1.0)},
        {"std": (1.0, -1.0, 1.0)},
    ],
)
def test_numbers_for_every_channel(options):
    with pytest.raises(UsageError, match=r"preprocessing; got mean .* numbers each for .*std > 0"):
        Preprocessing(**options)
