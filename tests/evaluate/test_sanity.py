"""Maps of random networks: what is randomised, that nothing of it stays, and how likeness is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from skimage.feature import hog as skimage_hog
from skimage.metrics import structural_similarity
from torch import nn

import camlucida as cl
from camlucida.errors import LayerError, UnsupportedError, UsageError
from camlucida.evaluate import faithfulness
from camlucida.evaluate.faithfulness import sanity
from camlucida.evaluate.faithfulness.explain import unit
from camlucida.networks.randomise import randomised_layers, weighted_layers
from camlucida.values import Batch
from fingerprints import unchanged
from oracles import faithfulness as slow
from small_networks import gap, pixels, seeded, tokens

LAYERS = ("features.0", "features.2", "fc")


def maps_of(count: int = 2, seed: int = 0) -> torch.Tensor:
    coarse = torch.randn(count, 1, 5, 7, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (40, 56), mode="bilinear")[:, 0]


def test_layers_in_the_order_they_run():
    net = cl.wrap(gap())  # its second head, `conv`, is defined after `fc` and does not run
    assert weighted_layers(net, pixels()) == (*LAYERS, "conv")

    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.norm, self.first = nn.Linear(4, 2), nn.BatchNorm2d(4), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.last(self.norm(self.first(x)).mean((2, 3)))

    assert weighted_layers(cl.wrap(seeded(Crossed)), pixels()) == ("first", "last")
    found = weighted_layers(cl.wrap(tokens("class token")), pixels())
    assert found == ("patches", "qkv", "project", "mlp.0", "mlp.2", "fc")  # no norms, no position embedding
    with pytest.raises(UnsupportedError, match="no layer with weights"):
        weighted_layers(cl.wrap(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())), pixels())


def test_entries_are_shuffled_on_a_copy_and_all_else_is_shared():
    module = gap()
    with unchanged(module):
        other = randomised_layers(cl.wrap(module), ["features.2"], 3).module
    own, random = module.features[2], other.features[2]
    for name in ("weight", "bias"):
        a, b = getattr(own, name).flatten(), getattr(random, name).flatten()
        assert torch.equal(a.sort().values, b.sort().values)
        assert not torch.equal(a, b)
    assert other.features[0].weight is module.features[0].weight
    assert other.fc.weight is module.fc.weight
    again = randomised_layers(cl.wrap(module), ["features.2", "fc"], 3).module
    assert torch.equal(again.features[2].weight, random.weight)  # whatever else is randomised
    assert not torch.equal(randomised_layers(cl.wrap(module), ["features.2"], 4).module.features[2].weight, random.weight)  # fmt: skip
    with pytest.raises(LayerError, match="'body' does not exist"):
        randomised_layers(cl.wrap(module), ["body"])


def test_a_weight_that_is_computed_is_shuffled_where_it_comes_from():
    module = gap()
    nn.utils.parametrizations.weight_norm(module.fc)
    net, name = cl.wrap(module), "fc.parametrizations.weight"
    assert name in weighted_layers(net, pixels())
    assert not torch.allclose(randomised_layers(net, [name])(pixels()), net(pixels()))


@pytest.mark.parametrize("how", ["cascading", "independent"])
def test_which_layers_are_random(how):
    module = gap()
    found = dict(sanity.randomised(cl.wrap(module), pixels(), how, layers=9))
    assert [*found] == ["conv", "fc", "features.2", "features.0"]
    own = module.state_dict()
    for i, (name, other) in enumerate(found.items()):
        differ = {
            n.rsplit(".", 1)[0] for n, t in other.module.state_dict().items() if not torch.equal(t, own[n])
        }
        assert differ == ({*[*found][: i + 1]} if how == "cascading" else {name})
    few = [name for name, _ in sanity.randomised(cl.wrap(module), pixels(), how, layers=2)]
    assert few == ["conv", "features.0"]


def test_similarities_written_out():
    maps, others = maps_of(3), maps_of(3, seed=1)
    others[1] = -maps[1]
    found = faithfulness.similarities(maps, others)
    assert [*found] == [*sanity.SIMILARITIES]
    for i in range(3):
        a, b = maps[i].double().numpy(), others[i].double().numpy()
        assert found["spearman"][i] == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic, abs=1e-6)
        small = faithfulness.similarities(maps[:, ::4, ::4], others[:, ::4, ::4])
        assert small["absolute"][i] == pytest.approx(slow.spearman(np.abs(a[::4, ::4]), np.abs(b[::4, ::4])), abs=1e-6)  # fmt: skip
        wanted = structural_similarity(slow.unit(a), slow.unit(b), data_range=1.0)
        assert found["ssim"][i] == pytest.approx(wanted, abs=1e-6)
    assert found["spearman"][1] == pytest.approx(-1)
    assert found["absolute"][1] == pytest.approx(1)
    # The same edges, of the other sign; a few angles lie on the border of two bins.
    assert found["hog"][1] == pytest.approx(1, abs=1e-3)
    assert max(abs(found["hog"][0]), abs(found["hog"][2])) < 0.9
    same = faithfulness.similarities(maps, 4 * maps)  # exactly, or HOG sees the rounding in flat places
    for kind in ("spearman", "ssim", "hog"):
        np.testing.assert_allclose(same[kind], 1, atol=1e-5)


@pytest.mark.parametrize(("size", "cell"), [((40, 56), 2), ((47, 61), 3), ((20, 14), 1)])
def test_hog_is_scikit_images(size, cell):
    maps = np.random.default_rng(0).random((2, *size))
    wanted = [skimage_hog(one, pixels_per_cell=(cell, cell), cells_per_block=(3, 3)) for one in maps]
    np.testing.assert_allclose(sanity.hog(maps), wanted, atol=1e-6)  # its sums are in float32


def test_constant_and_broken_maps_are_like_nothing():
    maps, others = maps_of(4), maps_of(4)
    maps[0], others[1], maps[2, 3, 3] = 2.0, 0.0, torch.nan
    found = faithfulness.similarities(maps, others)
    for kind in sanity.SIMILARITIES:
        assert found[kind][:3].tolist() == [0, 0, 0]
        assert found[kind][3] == pytest.approx(1)
    tiny = faithfulness.similarities(maps[:, :1, :2], others[:, :1, :2])
    assert all(np.isfinite(values).all() for values in tiny.values())


def test_a_map_that_knows_no_network_never_changes_and_one_that_does_changes():
    module, shown = gap(), pixels(2)
    net, classes = cl.wrap(module), torch.tensor([1, 3])
    batch = Batch.of(shown)
    for explain, alike in (
        (faithfulness.BASELINES["edges"](0), True),
        (faithfulness.explainer(cl.CAM()), False),
    ):
        maps = explain(net, batch, classes)
        with unchanged(module):
            found = faithfulness.randomisation(net, explain, batch, classes, maps, layers=4, seed=1)
        assert found.layers == ("conv", "fc", "features.2", "features.0")
        assert found.values["ssim"].shape == (2, 4)
        # `conv` does not run: there the map stays; with the head it changes.
        np.testing.assert_allclose(found.values["spearman"][:, 0], 1, atol=1e-6)
        changed = found.values["spearman"][:, 1:]
        assert (np.abs(changed - 1) < 1e-6).all() if alike else (changed < 0.999).all()


def test_the_class_stays_the_same_under_random_weights():
    """Not the one that the random network predicts."""
    net, classes, batch = cl.wrap(gap()), torch.tensor([1, 3]), Batch.of(pixels(2))
    explain = faithfulness.explainer(cl.CAM())
    maps = explain(net, batch, classes)
    found = faithfulness.randomisation(
        net, explain, batch, classes, maps, how="independent", layers=4, seed=0
    )
    other = randomised_layers(net, ["fc"], 0)
    wanted = cl.CAM()(other, batch, cl.ClassTarget(classes)).in_view()[:, 0]
    np.testing.assert_allclose(found.values["spearman"][:, 1], faithfulness.similarities(maps, wanted)["spearman"])  # fmt: skip


def test_what_cannot_be_asked_is_said():
    net, batch, classes = cl.wrap(gap()), Batch.of(pixels(1)), torch.tensor([0])
    explain = faithfulness.explainer(cl.CAM())
    with pytest.raises(UsageError, match="0 layers"):
        faithfulness.randomisation(net, explain, batch, classes, explain(net, batch, classes), layers=0)


def test_scaling_to_one_of_huge_and_tiny_maps():
    found = unit(torch.tensor([[[3e38, -3e38]], [[1e-44, 0.0]], [[5.0, 5.0]]]))
    assert found.tolist() == [[[1, 0]], [[1, 0]], [[0, 0]]]
