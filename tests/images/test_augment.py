"""Training views, colours and mixing: inside their ranges, repeatable, and equal to slow formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camlucida.images.augment import Augmentation, colour_shift, mix, random_view
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
