"""Training views, colours and mixing: inside their ranges, repeatable, and equal to slow formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from camlucida.errors import UsageError
from camlucida.images.augment import (
    Augmentation,
    colour_shift,
    fit_mean_picture,
    fit_pca,
    mix,
    random_view,
)
from camlucida.images.views import Preprocessing
from camlucida.networks.cards import Card
from camlucida.values import Size
from oracles import augment as slow
from pictures import colours


def shown_part(view) -> tuple[float, float]:
    """Height and width of what a view shows, in source pixels."""
    (x0, y0), (x1, y1) = sorted(map(tuple, view.to_source([(0, 0), (view.size.width, view.size.height)])))
    return y1 - y0 if y1 > y0 else y0 - y1, x1 - x0


class TestRandomView:
    AUGMENTATION = Augmentation(area=(0.25, 0.9), ratio=(0.6, 1.8), flip=0.3)

    @settings(deadline=None, max_examples=100)
    @given(st.integers(0, 10**6), st.integers(20, 400), st.integers(20, 400), st.sampled_from([32, 64, 224]))
    def test_inside_the_picture_at_the_size_asked_for(self, seed, height, width, size):
        view = random_view(np.random.default_rng(seed), Size(height, width), size, self.AUGMENTATION)
        assert view.size == Size(size, size)
        corners = view.to_source([(0, 0), (size, size)])
        assert corners.min() >= -1e-9
        assert (corners.max(0) <= np.array([width, height]) + 1e-9).all()

    @pytest.mark.parametrize("source", [Size(225, 301), Size(301, 225)])
    def test_area_and_ratio_are_drawn_over_their_ranges(self, source):
        rng = np.random.default_rng(0)
        seen = [random_view(rng, source, 64, self.AUGMENTATION) for _ in range(1500)]
        heights, widths = np.array([shown_part(v) for v in seen]).T
        areas, ratios = heights * widths / (source.height * source.width), widths / heights
        rounding = 1.03  # the resized picture has whole pixels
        assert 0.25 / rounding < areas.min() < 0.27
        assert 0.8 < areas.max() < 0.9 * rounding
        assert 0.6 / rounding < ratios.min() < 0.65
        assert 1.65 < ratios.max() < 1.8 * rounding
        assert np.mean([v.flip for v in seen]) == pytest.approx(0.3, abs=0.05)
        lefts = np.array([v.crop[1] / max(v.resized.width - 64, 1) for v in seen])
        tops = np.array([v.crop[0] / max(v.resized.height - 64, 1) for v in seen])
        assert lefts.mean() == pytest.approx(0.5, abs=0.05)  # every place alike
        assert tops.mean() == pytest.approx(0.5, abs=0.05)

    def test_area_and_ratio_are_uniform_and_log_uniform(self):
        rng = np.random.default_rng(1)
        wide = Augmentation(area=(0.1, 0.4), ratio=(0.5, 2.0))  # all of it fits, nothing is drawn again
        seen = [random_view(rng, Size(400, 400), 224, wide) for _ in range(1500)]
        heights, widths = np.array([shown_part(v) for v in seen]).T
        assert (heights * widths / 160_000).mean() == pytest.approx(0.25, abs=0.01)
        assert np.log(widths / heights).mean() == pytest.approx(0, abs=0.04)

    def test_a_shape_that_never_fits_gives_the_largest_square(self):
        view = random_view(np.random.default_rng(0), Size(20, 500), 64, Augmentation(area=(0.9, 1.0)))
        np.testing.assert_allclose(shown_part(view), (20, 20), rtol=0.01)

    def test_the_whole_picture(self):
        view = random_view(np.random.default_rng(0), Size(64, 64), 64, Augmentation((1, 1), (1, 1), flip=0))
        assert view.is_whole
        assert not view.flip

    def test_the_generator_alone_decides(self):
        def draw(seed):
            return random_view(np.random.default_rng(seed), Size(225, 301), 64, Augmentation())

        assert draw([0, 3, 17]) == draw([0, 3, 17])
        assert len({draw([0, 3, i]) for i in range(20)}) == 20


class TestColourShift:
    def test_jitter_and_components_are_the_slow_formula(self):
        pixels = colours(7, 9)
        augmentation = Augmentation(jitter=0.4, pca=0.5)
        found = colour_shift(np.random.default_rng(3), pixels, augmentation)
        rng = np.random.default_rng(3)
        factors, alphas = tuple(rng.uniform(0.6, 1.4, 3)), tuple(rng.normal(0, 0.5, 3))
        np.testing.assert_allclose(found, slow.colour_shift(pixels, factors, alphas), atol=0.501)
        assert found.dtype == np.uint8

    @pytest.mark.parametrize(("jitter", "pca"), [(0.3, 0.0), (0.0, 0.8)])
    def test_either_alone(self, jitter, pca):
        pixels = colours(7, 9)
        found = colour_shift(np.random.default_rng(5), pixels, Augmentation(jitter=jitter, pca=pca))
        rng = np.random.default_rng(5)
        factors = tuple(rng.uniform(1 - jitter, 1 + jitter, 3)) if jitter else None
        alphas = tuple(rng.normal(0, pca, 3)) if pca else None
        np.testing.assert_allclose(found, slow.colour_shift(pixels, factors, alphas), atol=0.501)
        assert not np.array_equal(found, pixels)

    def test_all_pixels_move_alike_along_the_components(self):
        grey = np.full((5, 6, 3), 128, np.uint8)
        found = colour_shift(np.random.default_rng(0), grey, Augmentation(jitter=0, pca=1.0))
        assert (found == found[0, 0]).all()

    def test_off(self):
        pixels = colours(7, 9)
        assert colour_shift(np.random.default_rng(0), pixels, Augmentation(jitter=0, pca=0)) is pixels

    def test_the_given_pixels_stay(self):
        pixels = colours(7, 9)
        colour_shift(np.random.default_rng(0), pixels, Augmentation(jitter=0.4, pca=0.5))
        np.testing.assert_array_equal(pixels, colours(7, 9))


class TestMix:
    COUNT, HEIGHT, WIDTH = 6, 21, 33

    def batch(self):
        """Picture i is i everywhere, of class i: what is mixed can be read off."""
        pixels = torch.arange(self.COUNT).float().view(-1, 1, 1, 1).expand(-1, 3, self.HEIGHT, self.WIDTH)
        return pixels.clone(), torch.eye(self.COUNT)

    @pytest.mark.parametrize("seed", range(5))
    def test_mixup_blends_pictures_and_labels_alike(self, seed):
        pixels, truth = self.batch()
        mixed, labels = mix(np.random.default_rng(seed), pixels, truth, Augmentation(mixup=0.7))
        rng = np.random.default_rng(seed)
        rng.integers(1)
        share, other = rng.beta(0.7, 0.7), rng.permutation(self.COUNT)
        for i in range(self.COUNT):
            expected = share * i + (1 - share) * other[i]
            np.testing.assert_allclose(mixed[i], expected, atol=1e-5)
            row = np.zeros(self.COUNT)
            row[i] += share
            row[other[i]] += 1 - share
            np.testing.assert_allclose(labels[i], row, atol=1e-6)

    @pytest.mark.parametrize("seed", range(12))
    def test_cutmix_pastes_one_rectangle_and_labels_by_its_area(self, seed):
        pixels, truth = self.batch()
        mixed, labels = mix(np.random.default_rng(seed), pixels, truth, Augmentation(cutmix=1.0))
        pasted = None
        for i in range(self.COUNT):
            foreign = mixed[i, 0] != i
            others = mixed[i][:, foreign].unique()
            assert len(others) <= 1
            share = foreign.double().mean().item()
            row = torch.zeros(self.COUNT)
            row[i] += 1 - share
            if len(others):
                row[int(others)] += share
                ys, xs = np.nonzero(foreign.numpy())
                rectangle = (ys.min(), ys.max(), xs.min(), xs.max())
                assert foreign.sum() == (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1)
                assert pasted in (None, rectangle)  # the same place in every picture
                pasted = rectangle
            torch.testing.assert_close(labels[i], row, atol=1e-6, rtol=0)
        original, _ = self.batch()
        assert torch.equal(pixels, original)

    def test_cutmix_reaches_every_place(self):
        pixels, truth = self.batch()
        rng = np.random.default_rng(0)
        covered, shares = np.zeros((self.HEIGHT, self.WIDTH)), []
        for _ in range(80):
            mixed, labels = mix(rng, pixels[:2], truth[:2], Augmentation(cutmix=1.0))
            covered += (mixed[:, 0] != pixels[:2, 0]).any(0).numpy()
            shares.append(1 - labels[0, 0].item())
        assert covered.all()
        assert (
            0.1 < np.mean(shares) < 0.4
        )  # of uniform shares half are pasted from another, cut at the border

    def test_both_on_draws_one_of_the_two(self):
        pixels, truth = self.batch()
        blends = 0
        for seed in range(24):
            mixed, _ = mix(np.random.default_rng(seed), pixels, truth, Augmentation(mixup=1.0, cutmix=1.0))
            blends += bool(((mixed - mixed.round()).abs() > 1e-4).any())  # cutmix makes no new value
        assert 4 < blends < 20

    def test_off_and_repeatable(self):
        pixels, truth = self.batch()
        same, labels = mix(np.random.default_rng(0), pixels, truth, Augmentation())
        assert same is pixels
        assert labels is truth
        first, again = (
            mix(np.random.default_rng(4), pixels, truth, Augmentation(cutmix=1.0)) for _ in range(2)
        )
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


class TestScaledView:
    """Shorter side S from a range, isotropic, one crop (VGG paper, section 3.1)."""

    @pytest.mark.parametrize("source", [Size(225, 301), Size(301, 225), Size(64, 64)])
    @pytest.mark.parametrize("crops", ["any", "square", "five"])
    def test_geometry_through_the_view(self, source, crops):
        rng = np.random.default_rng(0)
        jittered = Augmentation(scale=(100, 150), crops=crops)
        for _ in range(60):
            view = random_view(rng, source, 96, jittered)
            short = min(view.resized.height, view.resized.width)
            assert 100 <= short <= 150
            assert view.resized == source.with_short_side(short)  # isotropic
            assert view.size == Size(96, 96)
            # A pixel of the crop is 1/zoom source pixels, up to the rounding of the longer side.
            (x0, y0), (x1, y1) = np.sort(view.to_source([(0, 0), (96, 96)]), axis=0)
            zoom = short / min(source.height, source.width)
            assert x1 - x0 == pytest.approx(96 / zoom, rel=0.005)
            assert y1 - y0 == pytest.approx(96 / zoom, rel=0.005)
            assert min(x0, y0) >= -1e-9
            assert x1 <= source.width + 1e-9
            assert y1 <= source.height + 1e-9

    def test_sides_are_uniform_with_both_ends(self):
        rng = np.random.default_rng(1)
        views = [random_view(rng, Size(300, 400), 64, Augmentation(scale=(64, 67))) for _ in range(2000)]
        sides, counts = np.unique([v.resized.height for v in views], return_counts=True)
        assert sides.tolist() == [64, 65, 66, 67]
        assert (abs(counts - 500) < 80).all()  # four standard deviations
        assert np.mean([v.flip for v in views]) == pytest.approx(0.5, abs=0.05)

    def test_equal_ends_fix_the_scale_and_every_place_is_drawn(self):
        rng = np.random.default_rng(2)
        views = [random_view(rng, Size(50, 80), 48, Augmentation(scale=(50, 50))) for _ in range(2000)]
        assert {v.resized for v in views} == {Size(50, 80)}
        assert {v.crop[0] for v in views} == set(range(3))
        assert {v.crop[1] for v in views} == set(range(33))

    def test_square_keeps_to_the_centre(self):
        rng = np.random.default_rng(3)
        square = Augmentation(scale=(50, 50), crops="square")
        assert {random_view(rng, Size(50, 80), 48, square).crop[1] for _ in range(300)} == {15, 16, 17}
        assert {random_view(rng, Size(90, 50), 48, square).crop[0] for _ in range(300)} == {20, 21, 22}

    def test_five_places_and_flips_are_ten(self):
        rng = np.random.default_rng(4)
        five = Augmentation(scale=(50, 50), crops="five")
        seen = [random_view(rng, Size(50, 80), 40, five) for _ in range(600)]
        places = {v.crop[:2] for v in seen}
        assert places == {(0, 15), (0, 25), (10, 15), (10, 25), (5, 20)}
        assert len({(v.crop, v.flip) for v in seen}) == 10

    def test_pixels_are_those_of_the_resized_picture(self):
        """Cutting after resizing the whole picture, as the paper says."""
        picture = Image.fromarray(colours(60, 90))
        view = random_view(np.random.default_rng(5), Size(60, 90), 32, Augmentation(scale=(40, 40), flip=0.0))
        whole = np.asarray(picture.resize((60, 40), Image.Resampling.BILINEAR), np.int32)
        top, left, *_ = view.crop
        shown = np.asarray(view.show(picture), np.int32)
        assert abs(shown - whole[top : top + 32, left : left + 32]).max() <= 1


class TestFits:
    def pictures(self):
        rng = np.random.default_rng(6)
        mixing = np.array([[40, 5, 2], [30, -20, 3], [25, 10, -9]])
        return [
            np.clip(120 + rng.normal(size=(h, w, 3)) @ mixing.T, 0, 255).astype(np.uint8)
            for h, w in ((30, 40), (41, 17), (5, 90))
        ]

    def test_pca_is_numpy_on_all_pixels(self):
        pictures = self.pictures()
        vectors, values = fit_pca(iter(pictures))
        pixels = np.concatenate([p.reshape(-1, 3) for p in pictures]) / 255
        covariance = np.cov(pixels.T, bias=True)
        np.testing.assert_allclose(values, np.linalg.eigvalsh(covariance)[::-1], rtol=1e-9)
        np.testing.assert_allclose(covariance @ vectors, vectors * values, atol=1e-12)
        np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-12)
        again = fit_pca([Image.fromarray(p) for p in pictures])
        np.testing.assert_array_equal(again[1], values)

    def test_eigenvalues_are_variances_of_pixels_up_to_one(self):
        """Half of the pixels black, half white: variance 1/4 in each channel, all of it along grey."""
        picture = np.zeros((4, 6, 3), np.uint8)
        picture[:2] = 255
        vectors, values = fit_pca([picture])
        np.testing.assert_allclose(values, [0.75, 0, 0], atol=1e-12)
        np.testing.assert_allclose(abs(vectors[:, 0]), np.full(3, 3**-0.5), rtol=1e-9)

    def test_a_fitted_set_shifts_colours(self):
        vectors, values = fit_pca(self.pictures())
        fitted = Augmentation(
            pca=0.1, pca_vectors=tuple(map(tuple, vectors.tolist())), pca_values=tuple(values.tolist())
        )
        pixels = np.full((2, 3, 3), 128, np.uint8)
        rng, again = np.random.default_rng(8), np.random.default_rng(8)
        strong = replace(fitted, pca=3.0)
        found = colour_shift(rng, pixels, strong)
        expected = 128 + 255 * vectors @ (again.normal(0, 3.0, 3) * values)
        np.testing.assert_allclose(found[0, 0], np.clip(expected, 0, 255), atol=0.51)
        assert not np.array_equal(
            found, colour_shift(np.random.default_rng(8), pixels, Augmentation(pca=3.0))
        )

    def test_mean_picture_is_the_mean_of_every_pixel(self):
        pictures = [colours(6, 9, seed) for seed in range(5)]
        expected = np.floor(np.mean(np.array(pictures, np.float64), 0) + 0.5)
        np.testing.assert_array_equal(fit_mean_picture(iter(pictures)), expected)

    def test_nothing_to_fit_and_other_shapes_are_refused(self):
        for fit in (fit_pca, fit_mean_picture):
            with pytest.raises(UsageError, match="no picture"):
                fit([])
            with pytest.raises(UsageError, match="uint8"):
                fit([np.zeros((3, 4))])
        with pytest.raises(UsageError, match="one shape"):
            fit_mean_picture([colours(6, 9), colours(9, 6)])


class TestMeanPicture:
    """A mean of every pixel, which travels inside the card's preprocessing."""

    @pytest.mark.parametrize("channels", ["RGB", "BGR"])
    def test_it_is_subtracted_pixel_by_pixel_and_comes_back(self, channels):
        mean = colours(12, 17, 1)
        shape = Preprocessing(scale=255.0, std=(2.0, 4.0, 8.0), channels=channels).subtracting(mean)
        order = slice(None, None, -1) if channels == "BGR" else slice(None)
        picture = colours(12, 17, 2)
        pixels = torch.from_numpy(np.moveaxis(picture[..., order], -1, 0).copy())
        found = shape.normalise(pixels[None])[0]
        expected = (picture.astype(float) - mean)[..., order] / np.array([2.0, 4.0, 8.0])
        np.testing.assert_array_equal(found.numpy(), np.moveaxis(expected, -1, 0).astype(np.float32))
        np.testing.assert_array_equal(np.asarray(shape.picture(found)), picture)

    def test_it_stretches_over_inputs_of_another_shape(self):
        mean = np.zeros((4, 6, 3), np.uint8)
        mean[:, 3:] = 100
        shape = Preprocessing(scale=255.0, std=(1.0,) * 3).subtracting(mean)
        found = -shape.normalise(torch.zeros(1, 3, 8, 12, dtype=torch.uint8))[0, 0]
        assert (found[:, :5] == 0).all()
        assert (found[:, 7:] == 100).all()
        assert ((found[:, 5] > 0) & (found[:, 5] < found[:, 6])).all()

    def test_it_travels_on_the_card(self):
        shape = Preprocessing(scale=255.0).subtracting(colours(9, 7))
        card = Card.from_json(Card(preprocessing=shape).to_json())
        assert card.preprocessing == shape
        assert len(repr(card.preprocessing)) < 400
        pixels = torch.from_numpy(np.moveaxis(colours(9, 7, 3), -1, 0).copy())[None]
        assert torch.equal(card.preprocessing.normalise(pixels), shape.normalise(pixels))

    def test_what_is_no_picture_is_refused(self):
        for text in ("%%%", "aGVsbG8="):
            with pytest.raises(UsageError, match="mean picture"):
                Preprocessing(mean_picture=text).normalise(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
