"""Score-CAM against loops over channels and pixels in float64 (section 19)."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

import camlucida as cl
from camlucida.errors import LayerError, TargetError, UsageError
from camlucida.maps.saliency import blurred
from oracles import maps as oracle
from small_networks import OTHER, by_axes, fully_connected, gap, pixels


@pytest.fixture
def double() -> tuple[nn.Module, Tensor]:
    return fully_connected().double(), pixels(2, 20, 28).double() * 3


def of(module: nn.Module, c: int, picture: Tensor) -> float:
    with torch.no_grad():
        return float(module(picture[None])[0, c])


def activations(module: nn.Module, x: Tensor, upto: int = 4) -> Tensor:
    with torch.no_grad():
        return module.features[:upto](x)


def near(found: Tensor, wanted) -> None:
    wanted = torch.as_tensor(wanted)
    assert float(wanted.std()) > 0
    scale = float(wanted.abs().max())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("upto", [2, 3, 4])
def test_the_softmax_against_loops(double, upto):
    module, x = double
    layer = f"features.{upto - 1}"
    found = cl.ScoreCAM(layer=layer, relu=False)(cl.wrap(module), x, cl.ClassTarget([[3, 0], [3, 0]]))
    for n in range(2):
        a = activations(module, x[n : n + 1], upto)[0].numpy()
        for k, c in enumerate((3, 0)):
            near(found.values[n, k], oracle.score_cam(partial(of, module, c), a, x[n]))
    rectified = cl.ScoreCAM(layer=layer)(cl.wrap(module), x, cl.ClassTarget([[3, 0], [3, 0]]))
    assert torch.equal(rectified.values, found.values.relu())


@pytest.mark.parametrize("baseline", ["black", "blurred"])
def test_the_increase_against_loops(double, baseline):
    module, x = double
    found = cl.ScoreCAM(weighting="increase", baseline=baseline, relu=False)(
        cl.wrap(module), x, cl.ClassTarget.all()
    )
    assert (found.values < 0).any()
    nothing = torch.zeros_like(x) if baseline == "black" else blurred(x, 5 * 20 / 224)
    for n in range(2):
        a = activations(module, x[n : n + 1])[0].numpy()
        for c in range(5):
            score = partial(of, module, c)
            near(found.values[n, c], oracle.score_cam(score, a, x[n], nothing=score(nothing[n])))


def test_the_authors_weights_are_probabilities_as_they_are(double):
    module, x = double
    target = cl.ClassTarget([[1, 2], [1, 2]])
    found = cl.ScoreCAM(weighting="probability")(cl.wrap(module), x, target)

    def probability(c: int, picture: Tensor) -> float:
        with torch.no_grad():
            return float(module(picture[None]).softmax(1)[0, c])

    for n in range(2):
        a = activations(module, x[n : n + 1])[0].numpy()
        for k, c in enumerate((1, 2)):
            near(found.values[n, k], oracle.score_cam(partial(probability, c), a, x[n], nothing=0.0))
    with pytest.raises(TargetError, match="allowed: a class"):
        cl.ScoreCAM(weighting="probability")(cl.wrap(module), x, cl.MarginTarget())


def test_masks_that_span_the_cells(double):
    module, x = double
    found = cl.ScoreCAM(span="cells")(cl.wrap(module), x[:1], cl.ClassTarget(4)).values[0, 0]
    a, score = activations(module, x[:1])[0].numpy(), partial(of, module, 4)
    near(found, oracle.score_cam(score, a, x[0], on_cells=True))
    assert not torch.allclose(
        found.double(), torch.from_numpy(oracle.score_cam(score, a, x[0])), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("weighting", ["softmax", "increase", "probability"])
def test_constant_channels_are_left_out(double, weighting):
    """A bias alone fills channel 2 with 5: it would weigh on the map, and on the softmax."""
    module, x = double
    with torch.no_grad():
        module.features[2].weight[2] = 0
        module.features[2].bias[2] = 5
    found = cl.ScoreCAM(weighting=weighting, relu=False)(cl.wrap(module), x, cl.ClassTarget(1))
    with torch.no_grad():  # the layer without it, the rest of the network as it was

        class Seen(nn.Module):
            def __init__(self):
                super().__init__()
                self.module, self.kept = module, nn.Identity()

            def forward(self, z):
                a = self.module.features(z)
                shown = self.kept(a[:, [0, 1, 3, 4, 5]])
                return self.module.classifier(torch.cat([shown[:, :2], a[:, 2:3], shown[:, 2:]], 1))

    others = cl.ScoreCAM("kept", weighting, relu=False)(cl.wrap(Seen().eval()), x, cl.ClassTarget(1))
    assert float(others.values.std()) > 0
    torch.testing.assert_close(found.values, others.values, rtol=1e-5, atol=1e-7)


def test_where_every_channel_is_constant_the_map_is_flat():
    module = gap()
    with torch.no_grad():
        module.features[2].weight.zero_()
    for weighting in ("softmax", "increase", "probability"):
        found = cl.ScoreCAM(weighting=weighting)(cl.wrap(module), pixels())
        assert (found.values == 0).all()
        assert found.status == (("flat",), ("flat",))


def test_a_channel_that_is_not_finite_is_said_to_be():
    module, x = gap(), pixels()
    x[1, 0, 3, 3] = torch.inf
    found = cl.ScoreCAM()(cl.wrap(module), x, cl.ClassTarget(0))
    assert found.status == (("ok",), ("non-finite",))


def test_the_channels_that_span_most(double):
    module, x = double
    a = activations(module, x)
    spans = a.flatten(2).amax(2) - a.flatten(2).amin(2)
    found = cl.ScoreCAM(channels=2)(cl.wrap(module), x, cl.ClassTarget(0))
    for n in range(2):
        two = spans[n].topk(2).indices
        assert len(set(two.tolist())) == 2
        near(found.values[n, 0], oracle.score_cam(partial(of, module, 0), a[n, two].numpy(), x[n]))


@pytest.mark.parametrize(
    ("target", "score"),
    [
        (cl.ProbabilityTarget(1), lambda z: z.softmax(1)[0, 1]),
        (cl.MarginTarget(4, 2), lambda z: z[0, 4] - z[0, 2]),
        (cl.CallableTarget(lambda out: out.square().sum(1)), lambda z: z.square().sum()),
    ],
)
def test_other_targets(double, target, score):
    module, x = double
    found = cl.ScoreCAM()(cl.wrap(module), x, target)
    for n in range(2):
        with torch.no_grad():
            wanted = oracle.score_cam(
                lambda p: float(score(module(p[None]))), activations(module, x[n : n + 1])[0].numpy(), x[n]
            )
        near(found.values[n, 0], wanted)


def test_a_unit_inside_the_network(double):
    module, x = double
    found = cl.ScoreCAM("features.1")(cl.wrap(module), x[:1], cl.UnitTarget("features.3", 2))
    where = int(activations(module, x[:1])[0, 2].argmax())

    def unit(picture: Tensor) -> float:
        return float(activations(module, picture[None])[0, 2].flatten()[where])

    near(found.values[0, 0], oracle.score_cam(unit, activations(module, x[:1], 2)[0].numpy(), x[0]))
    assert found.target == "channel 2 of features.3 (max)"


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_along_one_axis_they_all_agree(axes):
    """A volume that only changes along its first axis, seen by kernels that only look along it: the map in 1-D, over
    and over."""
    line = by_axes(1)
    module = by_axes(axes)
    with torch.no_grad():
        kernel = torch.zeros_like(module[0].weight)
        kernel[(..., *(1,) * (axes - 1))] = line[0].weight
        module[0].weight.copy_(kernel)
        module[0].bias.copy_(line[0].bias)
        module[4].load_state_dict(line[4].state_dict())
    x = torch.randn(2, 2, 13, generator=torch.Generator().manual_seed(0))
    wide = x[(..., *(None,) * (axes - 1))].expand(*x.shape, *(5,) * (axes - 1))
    wanted = cl.ScoreCAM()(cl.wrap(line), x, cl.ClassTarget(1)).values
    found = cl.ScoreCAM()(cl.wrap(module), wide, cl.ClassTarget(1)).values
    assert float(wanted.std()) > 0
    assert found.shape[2:] == (7, *(3,) * (axes - 1))
    torch.testing.assert_close(
        found, wanted[(..., *(None,) * (axes - 1))].expand_as(found), rtol=1e-4, atol=1e-6
    )


def test_what_it_says_and_refuses():
    found = cl.ScoreCAM()(cl.wrap(gap()), pixels(), cl.ClassTarget.top(2))
    assert (found.method, found.layer, found.target) == (
        "score-cam",
        "features",
        "logits of the top 2 classes",
    )
    assert found.grid.kind == "features"
    for options in ({"weighting": "sum"}, {"baseline": "grey"}, {"span": "all"}, {"channels": 0}):
        with pytest.raises(UsageError, match="ScoreCAM"):
            cl.ScoreCAM(**options)
    with pytest.raises(LayerError):
        cl.ScoreCAM("nowhere")(cl.wrap(gap()), pixels())
    with torch.inference_mode():
        inside = cl.ScoreCAM()(cl.wrap(gap()), pixels(), cl.ClassTarget.top(2))
    assert torch.equal(inside.values, found.values)


def test_probabilities_of_a_network_that_gives_them():
    found = cl.ScoreCAM(weighting="increase")(cl.wrap(OTHER["probabilities"]()), pixels())
    assert set(sum(found.status, ())) <= {"ok", "flat"}
