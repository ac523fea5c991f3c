"""Deletion, insertion, drop, ADCC, ROAD and the agreement with occlusion: by hand, in closed form, and written out slowly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import camlucida as cl
from camlucida.errors import UnsupportedError, UsageError
from camlucida.evaluate import faithfulness
from camlucida.evaluate.faithfulness import perturbation
from camlucida.evaluate.faithfulness.explain import unit
from camlucida.images.views import Preprocessing
from fingerprints import unchanged
from oracles import faithfulness as slow
from small_networks import gap, headed, pixels

SHAPE = (10, 14)  # not square


class Additive(nn.Module):
    """The probability of class 0 is 0.1 + 0.8 Σ w x over the first channel: what each pixel is worth is known."""

    def __init__(self, worth: Tensor) -> None:
        super().__init__()
        self.worth = nn.Parameter(worth)

    def forward(self, x: Tensor) -> Tensor:
        p = 0.1 + 0.8 * (x[:, 0] * self.worth).sum((1, 2))
        return torch.stack([p.log(), (1 - p).log()], 1)


def additive(worth: list[list[float]]) -> tuple[cl.Network, Tensor, Tensor]:
    """The network, a picture of ones and the map that says what each pixel is worth."""
    values = torch.tensor(worth)
    return cl.wrap(Additive(values / values.sum())), torch.ones(1, 3, *values.shape), values[None]


def case(count: int = 2) -> tuple[cl.Network, Tensor, Tensor, Tensor]:
    """A small network, pictures, maps with ties, and classes of which one is not the predicted one."""
    net = cl.wrap(gap())
    shown = pixels(count, *SHAPE)
    maps = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(3)).mul(4).round() / 4
    return net, shown, maps, torch.arange(count) % 5


def slow_probability(net: cl.Network, index: int) -> slow.Probability:
    def probability(picture: np.ndarray) -> float:
        logits = net(torch.from_numpy(picture).float()[None])[0].double()
        return float((logits - logits.logsumexp(0)).exp()[index])

    return probability


# --- deletion and insertion --------------------------------------------------------------------------------------


def test_deletion_of_an_additive_network_by_hand():
    net, shown, worth = additive([[4.0, 1.0], [3.0, 2.0]])
    one_pixel = perturbation.SIDE**2 / 4
    best = faithfulness.deletion(net, shown, worth, 0, step=one_pixel)
    # What is left of the worth: 10, 6, 3, 1, 0 tenths, of which the area is (2 − 0.5) / 4.
    assert best.scores[0].tolist() == pytest.approx([0.9, 0.58, 0.34, 0.18, 0.1], abs=1e-6)
    assert best.shares.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert float(best.auc) == pytest.approx(0.1 + 0.8 * 0.375, abs=1e-6)
    worst = faithfulness.deletion(net, shown, -worth, 0, step=one_pixel)
    assert float(worst.auc) == pytest.approx(0.1 + 0.8 * 0.625, abs=1e-6)


def test_equal_pixels_fall_along_a_line():
    """Whatever the map, p falls from 0.9 to 0.1 in equal steps, and the area is 0.5; the last step may be shorter."""
    net, shown, _ = additive([[1.0] * 14] * 10)
    maps = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert float(faithfulness.deletion(net, shown, maps, 0, step=224**2 / 20).auc) == pytest.approx(0.5, abs=1e-5)  # fmt: skip
    uneven = faithfulness.deletion(net, shown, maps, 0, step=224**2 / 140 * 50)  # 50, 50 and 40 pixels of 140
    assert uneven.scores[0].tolist() == pytest.approx([0.9 - 0.8 * k / 14 for k in (0, 5, 10, 14)], abs=1e-5)
    assert uneven.shares.tolist() == pytest.approx([0, 5 / 14, 10 / 14, 1])


@pytest.mark.parametrize("step", [224**2 / 140 * 9, 224**2])
def test_curves_written_out_slowly(step):
    net, shown, maps, classes = case()
    at_once = round(step * 140 / 224**2)
    gone = faithfulness.deletion(net, shown, maps, classes, step=step, fill=0.3, batch=7)
    came = faithfulness.insertion(net, shown, maps, classes, step=step, kernel=5, sigma=2.5, batch=64)
    for i in range(2):
        picture, heat = shown[i].double().numpy(), maps[i].double().numpy()
        of = slow_probability(net, int(classes[i]))
        wanted = slow.curve(picture, np.full_like(picture, 0.3), heat, at_once, of)
        np.testing.assert_allclose(gone.scores[i], wanted, atol=1e-6)
        assert float(gone.auc[i]) == pytest.approx(slow.area(wanted), abs=1e-6)
        wanted = slow.curve(slow.blurred(picture, 5, 2.5), picture, heat, at_once, of)
        np.testing.assert_allclose(came.scores[i], wanted, atol=1e-6)
        assert float(came.auc[i]) == pytest.approx(slow.area(wanted), abs=1e-6)


def test_the_blur_is_the_papers_codes():
    picture = pixels(1, 13, 16)
    wanted = slow.blurred(picture[0].double().numpy(), 11, 5.0)
    np.testing.assert_allclose(perturbation.blurred(picture)[0], wanted, atol=1e-6)


def test_the_step_is_a_share_of_the_view():
    net, _, _, _ = case()
    for size, steps in (((28, 28), 196), ((20, 28), 280)):  # 3.5 pixels at once, so 4; 2.5, so 2
        curve = faithfulness.deletion(net, pixels(1, *size), torch.rand(1, *size)).scores
        assert curve.shape[1] == steps + 1


# --- drop, increase, win, ADCC -----------------------------------------------------------------------------------


def test_drop_and_increase_by_hand():
    found = faithfulness.Confidence(torch.tensor([0.8, 0.5, 0.5, 0.0]), torch.tensor([0.2, 0.6, 0.5, 0.1]))
    assert found.drop.tolist() == pytest.approx([0.75, 0, 0, 0])
    assert found.increase.tolist() == [False, True, False, True]


def test_drop_written_out_slowly():
    net, shown, maps, classes = case(3)
    found = faithfulness.confidence(net, shown, maps, classes, batch=2)
    for i in range(3):
        of, picture = slow_probability(net, int(classes[i])), shown[i].double().numpy()
        kept = of(picture * slow.unit(maps[i].double().numpy()))
        assert float(found.clean[i]) == pytest.approx(of(picture), abs=1e-6)
        assert float(found.masked[i]) == pytest.approx(kept, abs=1e-6)
        assert float(found.drop[i]) == pytest.approx(max(0, of(picture) - kept) / of(picture), abs=1e-5)


def test_before_normalisation_the_rest_is_black():
    shape = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    raw = torch.randint(0, 256, (2, 3, *SHAPE), generator=torch.Generator().manual_seed(0))
    maps = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    shown = shape.normalise(raw)
    wanted = shape.normalise(raw * unit(maps)[:, None])
    found = faithfulness.masked(shown, maps, faithfulness.black(shape, shown))
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(faithfulness.masked(shown, maps), wanted, atol=0.1)


def test_win_counts_smaller_drops_alone():
    drops = torch.tensor([0.1, 0.5, 0.3, 0.0])
    assert faithfulness.win(drops, torch.tensor([0.2, 0.4, 0.3, 0.1])) == 0.5
    with pytest.raises(UsageError):
        faithfulness.win(drops, drops[:2])


def test_adcc_by_hand():
    one = torch.tensor([0.8, 1.0, 0.5, 0.9])
    two = torch.tensor([0.5, 0.0, 0.0, 1.0])
    drop = torch.tensor([0.2, 0.0, 1.0, 0.0])
    # 3 / (1.25 + 2 + 1.25); perfect; all is lost; the map is everywhere.
    assert faithfulness.adcc(drop, one, two).tolist() == pytest.approx([2 / 3, 1.0, 0.0, 0.0])


def test_coherency_and_complexity():
    _, _, maps, _ = case(3)
    again = torch.stack([maps[0] * 3 + 2, -maps[1], maps[0]])
    wanted = [1.0, 0.0, (1 + slow.pearson(maps[2].numpy(), maps[0].numpy())) / 2]
    assert faithfulness.coherency(maps, again).tolist() == pytest.approx(wanted)
    assert faithfulness.complexity(maps).tolist() == pytest.approx([slow.unit(m.numpy()).mean() for m in maps])  # fmt: skip


# --- ROAD --------------------------------------------------------------------------------------------------------


def test_imputation_of_a_ramp_is_exact_inside():
    y, x = torch.meshgrid(torch.arange(10.0), torch.arange(14.0), indexing="ij")
    picture = torch.stack([y + 2 * x, 3 - y, x * 0 + 5])[None]
    removed = torch.zeros(1, *SHAPE, dtype=torch.bool)
    removed[0, 2:9, 1:12] = True
    removed[0, 5, 6] = False
    torch.testing.assert_close(faithfulness.impute(picture, removed, noise=0), picture)


def test_imputation_written_out_slowly():
    shown = pixels(3, *SHAPE)
    removed = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(2)) < torch.tensor([0.2, 0.6, 0.95]).view(3, 1, 1)  # fmt: skip
    found = faithfulness.impute(shown, removed, noise=0)
    for i in range(3):
        np.testing.assert_allclose(found[i], slow.imputed(shown[i].numpy(), removed[i].numpy()), atol=1e-5)


def test_the_noise_is_seeded_and_only_where_pixels_are_gone():
    shown = torch.zeros(2, 3, 40, 56)
    removed = torch.zeros(2, 40, 56, dtype=torch.bool)
    removed[:, :, :30] = True
    removed[1] = True  # all of it: nothing is known
    found = faithfulness.impute(shown, removed, noise=0.5, seed=4)
    assert not found[0, :, :, 30:].any()
    assert float(found[0, :, :, :30].std()) == pytest.approx(0.5, rel=0.05)
    assert torch.equal(found[1, :, :, :30], found[0, :, :, :30])
    assert torch.equal(faithfulness.impute(shown[:1], removed[:1], noise=0.5, seed=4), found[:1])
    assert not torch.equal(faithfulness.impute(shown, removed, noise=0.5, seed=5), found)


def test_road_written_out_slowly():
    net, shown, maps, classes = case()
    found = faithfulness.road(net, shown, maps, classes, percentages=(10, 50, 90), noise=0, batch=3)
    for i in range(2):
        of, picture, heat = slow_probability(net, int(classes[i])), shown[i].numpy(), maps[i].numpy()
        both = []
        for order in (slow.falling(heat), slow.falling(-heat)):
            scores = []
            for p in (10, 50, 90):
                gone = np.zeros(SHAPE, bool)
                for place in order[: round(140 * p / 100)]:
                    gone[place] = True
                scores.append(of(slow.imputed(picture, gone)))
            both.append(np.array(scores))
        np.testing.assert_allclose(found.morf[i], both[0], atol=1e-5)
        np.testing.assert_allclose(found.lerf[i], both[1], atol=1e-5)
        assert float(found.combined[i]) == pytest.approx(((both[1] - both[0]) / 2).mean(), abs=1e-5)


def test_road_tells_a_map_from_its_reverse():
    net, shown, worth = additive([[1.0] * 14] * 5 + [[9.0] * 14] * 5)
    shown[:, :, :5] = 0
    good, bad = (float(faithfulness.road(net, shown, heat, 0).combined) for heat in (worth, -worth))
    assert good > 0.05
    assert bad == pytest.approx(-good)


# --- occlusion ---------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Logits Σ w x and 0: what a square costs is the sum of w x under it."""

    def __init__(self, worth: Tensor) -> None:
        super().__init__()
        self.worth = nn.Parameter(worth)

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.worth).sum((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], 1)


def test_the_true_contribution_has_no_infidelity():
    worth = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(5))
    net, shown = cl.wrap(Linear(worth)), pixels(2, *SHAPE)
    drops = cl.Occlusion(patch=4, stride=3)(net, shown, cl.ClassTarget(0))
    truth = (shown * worth).sum(1)
    found = faithfulness.agreement(truth, drops)
    assert found.infidelity.tolist() == pytest.approx([0, 0], abs=1e-6)
    assert found.correlation.tolist() == pytest.approx([1, 1])
    scaled = faithfulness.agreement(1e30 * truth, drops)
    assert scaled.infidelity.tolist() == pytest.approx([0, 0], abs=1e-6)
    contrary = faithfulness.agreement(-truth, drops)
    assert contrary.infidelity.tolist() == [1, 1]
    assert contrary.correlation.tolist() == pytest.approx([-1, -1])


def test_infidelity_by_hand():
    shown = torch.ones(1, 3, 1, 2)
    drops = cl.Occlusion(patch=1, stride=1)(cl.wrap(Linear(torch.tensor([[[2.0, 1.0]]]) / 3)), shown, cl.ClassTarget(0))  # fmt: skip
    assert drops.values.flatten().tolist() == pytest.approx([2, 1])
    # β = (1·2 + 2·1) / 5; what is left: (0.8 − 2)² + (1.6 − 1)² = 1.8, of 5.
    found = faithfulness.agreement(torch.tensor([[[1.0, 2.0]]]), drops)
    assert float(found.infidelity) == pytest.approx(0.36)
    assert float(found.correlation) == pytest.approx(-1)


def test_the_rank_correlation_is_over_the_places():
    net, shown, maps, classes = case()
    drops = cl.Occlusion(patch=4, stride=2)(net, shown, cl.ClassTarget(classes))
    found = faithfulness.agreement(maps, drops)
    for i in range(2):
        rows, columns = drops.values.shape[2:]
        means = np.array([[maps[i, 2 * y : 2 * y + 4, 2 * x : 2 * x + 4].mean() for x in range(columns)] for y in range(rows)])  # fmt: skip
        lost = drops.values[i, 0].numpy()
        assert float(found.correlation[i]) == pytest.approx(slow.spearman(means, lost), abs=1e-6)
        beta = max(0, (means * lost).sum() / (means**2).sum())
        wanted = ((beta * means - lost) ** 2).sum() / (lost**2).sum()
        assert float(found.infidelity[i]) == pytest.approx(wanted, abs=1e-6)


def test_the_occluder_is_a_seventh_of_the_side():
    one = faithfulness.occluder(224, 300)
    assert (one.patch, one.stride) == (32, 16)
    assert faithfulness.occluder(3, 3).stride == 1


# --- all of them -------------------------------------------------------------------------------------------------

EVERY = {
    "deletion": lambda *a: faithfulness.deletion(*a, step=faithfulness.SPEED).auc,
    "insertion": lambda *a: faithfulness.insertion(*a, step=faithfulness.SPEED).auc,
    "drop": lambda *a: faithfulness.confidence(*a).drop,
    "increase": lambda *a: faithfulness.confidence(*a).increase,
    "road": lambda *a: faithfulness.road(*a).combined,
    "complexity": lambda net, shown, maps, classes: faithfulness.complexity(maps),
    "coherency": lambda net, shown, maps, classes: faithfulness.coherency(maps, maps.flip(2)),
    "correlation": lambda net, shown, maps, classes: faithfulness.agreement(
        maps, cl.Occlusion(patch=4, stride=4)(net, shown, cl.ClassTarget(classes))
    ).correlation,
    "infidelity": lambda net, shown, maps, classes: faithfulness.agreement(
        maps, cl.Occlusion(patch=4, stride=4)(net, shown, cl.ClassTarget(classes))
    ).infidelity,
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
def test_constant_and_broken_maps_have_figures(name):
    net, shown, maps, classes = case(5)
    maps[0], maps[1], maps[2] = 0.0, 7.0, -3.0
    maps[3, 2, 2], maps[4, 1, 1] = torch.nan, torch.inf
    found = EVERY[name](net, shown, maps, classes).double()
    assert found.shape == (5,)
    assert found.isfinite().all()
    if name in ("road", "complexity", "coherency", "correlation"):
        assert not found.any()
    if name == "infidelity":
        assert found.min() > 0


@pytest.mark.parametrize("name", EVERY)
def test_pictures_do_not_hang_on_each_other_and_the_network_stays(name):
    net, shown, maps, classes = case(3)
    with unchanged(net.module):
        together = EVERY[name](net, shown, maps, classes).double()
    alone = torch.cat([EVERY[name](net, shown[i : i + 1], maps[i : i + 1], classes[i : i + 1]) for i in range(3)])  # fmt: skip
    torch.testing.assert_close(together, alone.double(), atol=1e-6, rtol=0)
    assert torch.equal(EVERY[name](net, shown, maps, classes).double(), together)


def test_the_predicted_class_where_none_is_given():
    net, shown, maps, _ = case()
    predicted = net(shown).argmax(1)
    assert torch.equal(faithfulness.road(net, shown, maps).morf, faithfulness.road(net, shown, maps, predicted).morf)  # fmt: skip


def test_what_cannot_be_measured_is_said():
    net, shown, maps, classes = case()
    with pytest.raises(UsageError, match=r"maps \(2, 14, 10\)"):
        faithfulness.deletion(net, shown, maps.transpose(1, 2), classes)
    with pytest.raises(UsageError, match="step"):
        faithfulness.deletion(net, shown, maps, classes, step=0)
    with pytest.raises(UsageError, match="percentages"):
        faithfulness.road(net, shown, maps, classes, percentages=(110,))
    with pytest.raises(UsageError, match="kernel"):
        faithfulness.insertion(net, shown, maps, classes, kernel=4)
    numbers = cl.wrap(headed(lambda m, x: m.fc(x.mean((2, 3)))), card=cl.Card("numbers", activation="none"))
    with pytest.raises(UnsupportedError, match="its outputs are numbers"):
        faithfulness.confidence(numbers, shown, maps, classes)
    with pytest.raises(UsageError, match="in the view of the N pictures"):
        faithfulness.agreement(maps, cl.CAM()(net, shown, cl.ClassTarget(classes)))
