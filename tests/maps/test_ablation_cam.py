"""Ablation-CAM against zeroing one channel after another in float64 (section 19)."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import camlucida as cl
from camlucida.errors import UsageError
from camlucida.maps import ablation_cam, schedule
from oracles import maps as oracle
from small_networks import (
    CHANNELS,
    EXACT,
    MAXIMUM,
    Headed,
    by_axes,
    fully_connected,
    gap,
    pixels,
    seeded,
    tokens,
)

pytestmark = pytest.mark.filterwarnings("ignore:Ablation-CAM divides")


def passes(network: nn.Module, call) -> list[int]:
    """How many pictures each forward pass of the first convolution took."""
    counted: list[int] = []
    first = next(m for m in network.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d)))
    handle = first.register_forward_pre_hook(lambda m, args: counted.append(len(args[0])))
    call()
    handle.remove()
    return counted


def near(found: Tensor, wanted) -> None:
    wanted = torch.as_tensor(wanted)
    assert float(wanted.std()) > 0
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    "network",
    ["pool, flatten, linear", "conv 1x1, pool", "pool, batch norm, linear", "channels last", "amax"],
)
@pytest.mark.parametrize("target", [cl.ClassTarget([[1, 4], [1, 4]]), cl.ProbabilityTarget([[1, 4], [1, 4]])])
def test_the_closed_form_is_zeroing_each_channel(network, target, monkeypatch):
    """Where the head pools and is linear: no pass more than the first, and what runs of the head give."""
    module, x = (EXACT | MAXIMUM)[network](), pixels()
    net = cl.wrap(module)
    net.structure(x)
    found: list = []
    assert passes(module, lambda: found.append(cl.AblationCAM(relu=False)(net, x, target))) == [2]
    monkeypatch.setattr(
        ablation_cam,
        "_at_the_head",
        lambda clean, head, cells, chosen: ablation_cam._above(clean, net.find_layer(None, x), chosen),
    )
    slow = cl.AblationCAM(relu=False)(net, x, target)
    near(found[0].values, slow.values.double())


def test_the_formula_at_a_head_by_hand():
    module, x = gap().double(), pixels().double()
    found = cl.AblationCAM(relu=False)(cl.wrap(module), x, cl.ClassTarget(2))
    for n in range(2):
        a = module.features(x[n : n + 1])[0].detach()
        near(found.values[n, 0], oracle.ablation_cam(lambda z: module.fc(z.mean((1, 2)))[2].item(), a))


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_every_layer_of_another_head_against_loops(cut):
    module, x = fully_connected().double(), pixels().double()
    above = nn.Sequential(*list(module.features)[cut + 1 :], module.classifier)
    found = cl.AblationCAM(f"features.{cut}", relu=False)(
        cl.wrap(module), x, cl.ClassTarget([[2, 4], [2, 4]])
    )
    assert (found.scores < 0).any()  # there the loss is divided by the magnitude
    for n in range(2):
        a = module.features[: cut + 1](x[n : n + 1])[0].detach().clone()
        for k, c in enumerate((2, 4)):
            with torch.no_grad():
                wanted = oracle.ablation_cam(lambda z, c=c: float(above(z[None].clone())[0, c]), a)
            near(found.values[n, k], wanted)


def test_only_what_lies_above_the_layer_runs_for_each_channel():
    """One picture below the layer for every chunk of channels, as long as the chunk is."""
    module, x = fully_connected(), pixels()
    net = cl.wrap(module)
    net.structure(x)
    # The picture as it is; the trial with and without the trunk; then the two pictures in one chunk of 8 channels.
    assert passes(module, lambda: cl.AblationCAM("features.1")(net, x)) == [2, 2, 1, 1, 1]
    with schedule.memory(1):
        assert passes(module, lambda: cl.AblationCAM("features.1")(net, x)) == [2, 2, 1, *[1] * 8]


class Meeting(Headed):
    """What was below the layer meets what comes from it in one tensor: copies cannot be made on the way."""

    def __init__(self, meet) -> None:
        super().__init__(lambda m, x: None)
        self.meet, self.side = meet, nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        below = self.features(x)
        return self.fc(F.relu(self.meet(below, self.side(below))).mean((2, 3)))


MEETINGS = {
    "in place": lambda below, side: below.mul_(0.5).add_(side),
    "joined": lambda below, side: torch.cat([below, side], 1)[:, 3 : 3 + CHANNELS].abs(),
    "by the number of pictures": lambda below, side: side.reshape(len(below), -1, 5, 7)[:, :CHANNELS],
}


@pytest.mark.parametrize("how", [*MEETINGS, "added"])
def test_a_network_that_cannot_run_alone_runs_whole(how):
    module, x = seeded(Meeting, MEETINGS.get(how, lambda below, side: below + side)), pixels()
    net = cl.wrap(module)
    net.structure(x)
    heard: list[schedule.Work] = []
    with schedule.heard_by(lambda work, done: heard.append(work)):
        found = cl.AblationCAM("side", relu=False)(net, x, cl.ClassTarget(3))
    whole = how in MEETINGS
    assert (
        str(heard[0]) == f"ablation-cam: ≈ 6 {'forward passes' if whole else 'passes above side'} a picture"
    )
    double = module.double()
    for n in range(2):
        with torch.no_grad():
            below = double.features(x[n : n + 1].double())

            def above(z: Tensor, below: Tensor = below) -> float:
                return float(double.fc(F.relu(double.meet(below.clone(), z[None])).mean((2, 3)))[0, 3])

            wanted = oracle.ablation_cam(above, double.side(below)[0])
        near(found.values[n, 0], wanted)


def test_numbers_that_differ_make_it_run_whole():
    """Nothing fails here, and the shapes fit: only the numbers tell that the copies were counted."""
    module, x = seeded(Meeting, lambda below, side: (below + side) / len(below)), pixels()
    heard: list[schedule.Work] = []
    with schedule.heard_by(lambda work, done: heard.append(work)):
        cl.AblationCAM("side")(cl.wrap(module), x, cl.ClassTarget(3))
    assert heard[0].unit == schedule.PASSES


def test_tokens_lose_a_channel_of_their_cells_not_of_the_class_token():
    module, x = tokens("class token", 2), pixels()
    found = cl.AblationCAM("norm1", relu=False)(cl.wrap(module), x, cl.ClassTarget(1))
    with torch.no_grad():
        embedded = module.embed(x[:1])
        normed = module.norm1(embedded)

        def above(cells: Tensor) -> float:
            changed = torch.cat([normed[:, :2], cells.flatten(1).T[None]], 1)
            return float(module.head(module.mixed(embedded, changed))[0, 1])

        wanted = oracle.ablation_cam(above, normed[0, 2:].T.unflatten(1, (5, 7)))
    torch.testing.assert_close(
        found.values[0, 0].double(), torch.from_numpy(wanted), rtol=1e-3, atol=1e-4 * abs(wanted).max()
    )


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("layer", ["0", "1"])
def test_one_two_and_three_axes(axes, layer):
    module = by_axes(axes, in_place=True).double()
    x = torch.randn(2, 2, *(9, 11, 6)[:axes], generator=torch.Generator().manual_seed(3)).double()
    found = cl.AblationCAM(layer, relu=False)(cl.wrap(module), x, cl.ClassTarget(0))
    with torch.no_grad():
        a = module[: int(layer) + 1](x[:1])[0]
        wanted = oracle.ablation_cam(lambda z: float(module[4](z.relu().flatten(1).mean(1))[0]), a)
    near(found.values[0, 0], wanted)


@pytest.mark.filterwarnings("error:Ablation-CAM divides")
def test_a_score_that_is_not_above_zero():
    """The loss is divided by the magnitude: a channel that holds the score up stays positive, and it is said."""
    module, x = gap(bias=False), pixels()
    with torch.no_grad():
        module.fc.weight.abs_()
        module.fc.weight[1] = -module.fc.weight[0]
        module.fc.weight[2] = 0
    net = cl.wrap(module)
    above = cl.AblationCAM(relu=False)(net, x, cl.ClassTarget(0))
    with pytest.warns(UserWarning, match="not every one is above 0"):
        below = cl.AblationCAM(relu=False)(net, x, cl.ClassTarget(1))
    torch.testing.assert_close(below.values, -above.values)
    assert (above.values > 0).any()
    with pytest.warns(UserWarning, match="not every one is above 0"):
        nothing = cl.AblationCAM()(net, x, cl.ClassTarget(2))
    assert (nothing.values == 0).all()
    assert nothing.status == (("flat",), ("flat",))


def test_the_largest_channels():
    module, x = gap(), pixels()
    size = module.features(x).abs().mean((2, 3))
    few = cl.AblationCAM(channels=2, relu=False)(cl.wrap(module), x, cl.ClassTarget(1))
    weights = module.fc.weight[1] * size
    for n in range(2):
        two = size[n].topk(2).indices
        wanted = (weights[n, two, None, None] * module.features(x)[n, two]).sum(0) / module(x)[n, 1].abs()
        near(few.values[n, 0], wanted.detach().double())
    with pytest.raises(UsageError, match="channels"):
        cl.AblationCAM(channels=0)


def test_a_target_inside_the_network_at_the_layer_before_the_head():
    """What lies above the layer does not move a unit below it."""
    module, x = gap(), pixels()
    found = cl.AblationCAM()(cl.wrap(module), x, cl.UnitTarget("features.0", 1))
    assert found.status == (("flat",), ("flat",))
    at = cl.AblationCAM(relu=False)(cl.wrap(module), x, cl.UnitTarget("features", 2, "sum"))
    a = module.features(x)[:, 2].detach()
    torch.testing.assert_close(at.values[:, 0], a)  # all of the score is lost with that channel
