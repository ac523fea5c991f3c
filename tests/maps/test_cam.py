"""Class activation maps against the formula of section 2, in float64 loops."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import camlucida as cl
from camlucida.errors import LayerError, TargetError, UnsupportedError
from camlucida.values import Batch, Size, View
from oracles import maps as oracle
from small_networks import CHANNELS, CLASSES, EXACT, LINEARISED, MAXIMUM, fully_connected, gap, headed, pixels


def expected(module, x: Tensor, classes: list[list[int]]) -> Tensor:
    with torch.no_grad():
        features = module.features(x).double().numpy()
    weight = module.fc.weight.detach().double().numpy()
    return torch.stack(
        [
            torch.stack([torch.from_numpy(oracle.cam(features[i], weight, c)) for c in row])
            for i, row in enumerate(classes)
        ]
    )


@pytest.mark.parametrize(
    ("index", "classes"),
    [(3, [[3]] * 3), ([4, 0, 2], [[4], [0], [2]]), ([[4, 0], [1, 1], [2, 3]], [[4, 0], [1, 1], [2, 3]])],
)
def test_maps_of_given_classes(index, classes):
    module, x = gap(), pixels(3)
    found = cl.CAM()(cl.wrap(module), x, cl.ClassTarget(index))
    assert found.classes.tolist() == classes
    assert found.values.dtype == torch.float32
    torch.testing.assert_close(found.values.double(), expected(module, x, classes), rtol=1e-5, atol=1e-6)
    logits = module(x).detach()
    torch.testing.assert_close(found.scores, logits.gather(1, torch.tensor(classes)))
    torch.testing.assert_close(found.logits, logits)


def test_the_predicted_the_top_and_all_classes():
    module, x = gap(), pixels(3)
    every = expected(module, x, [list(range(CLASSES))] * 3)
    order = module(x).argsort(1, descending=True)
    network = cl.wrap(module)
    for target, k in ((None, 1), (cl.ClassTarget.predicted(), 1), (cl.ClassTarget.top(3), 3)):
        found = cl.CAM()(network, x, target)
        assert found.classes.tolist() == order[:, :k].tolist()
        torch.testing.assert_close(
            found.values.double(), torch.stack([m[c] for m, c in zip(every, order[:, :k], strict=True)]),
            rtol=1e-5, atol=1e-6,
        )  # fmt: skip
    found = cl.CAM()(network, x, cl.ClassTarget.all())
    torch.testing.assert_close(found.values.double(), every, rtol=1e-5, atol=1e-6)


def test_all_maps_are_the_head_as_a_convolution():
    module, x = gap(), pixels(3)
    with torch.no_grad():
        convolved = F.conv2d(module.features(x), module.fc.weight[..., None, None])
    found = cl.CAM()(cl.wrap(module), x, cl.ClassTarget.all())
    torch.testing.assert_close(found.values, convolved, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MAXIMUM)
def test_a_max_pooled_head_has_the_same_formula(name):
    module, x = MAXIMUM[name](), pixels()
    found = cl.CAM()(cl.wrap(module), x, cl.ClassTarget.all())
    torch.testing.assert_close(
        found.values.double(), expected(module, x, [list(range(CLASSES))] * 2), rtol=1e-5, atol=1e-6
    )


def test_a_convolution_that_is_pooled_gives_its_own_channels():
    module, x = EXACT["conv 1x1, pool"](), pixels()
    found = cl.CAM()(cl.wrap(module), x, cl.ClassTarget(2))
    with torch.no_grad():
        own = module.conv(module.features(x))[:, 2:3]
    torch.testing.assert_close(found.values, own, rtol=1e-5, atol=1e-6)


def test_a_batch_norm_after_pooling_is_part_of_the_weights():
    module, x = EXACT["pool, batch norm, linear"](), pixels()
    norm = module.norm
    with torch.no_grad():
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = module.fc.weight * scale
        by_hand = torch.einsum("ck,nkhw->nchw", weight.double(), module.features(x).double())
    found = cl.CAM()(cl.wrap(module), x, cl.ClassTarget.all())
    torch.testing.assert_close(found.values.double(), by_hand, rtol=1e-5, atol=1e-6)


def test_a_layer_norm_after_pooling_is_taken_at_each_pictures_own_mean_and_deviation():
    module, x = LINEARISED["pool, layer norm, linear"](), pixels(3)
    module.norm.weight.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(0))
    module.norm.bias.data.normal_(generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        f = module.features(x).double()
        pooled = f.mean((2, 3))
        mean, deviation = pooled.mean(1), (pooled.var(1, unbiased=False) + module.norm.eps).sqrt()
        cells = (f - mean[:, None, None, None]) / deviation[:, None, None, None]
        by_hand = torch.einsum(
            "ck,nkhw->nchw", module.fc.weight.double() * module.norm.weight.double(), cells
        )
    found = cl.CAM()(cl.wrap(module), x, cl.ClassTarget.all())
    torch.testing.assert_close(found.values.double(), by_hand, rtol=1e-5, atol=1e-5)
    one = cl.CAM()(cl.wrap(module), x, cl.ClassTarget([[4, 1]] * 3))
    torch.testing.assert_close(one.values.double(), by_hand[:, [4, 1]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*EXACT, *LINEARISED])
def test_a_margin_is_the_difference_of_two_maps(name):
    network, x = cl.wrap({**EXACT, **LINEARISED}[name]()), pixels()
    every = cl.CAM()(network, x, cl.ClassTarget.all()).values
    found = cl.CAM()(network, x, cl.MarginTarget([1, 4], [3, 0]))
    by_hand = torch.stack([every[0, 1] - every[0, 3], every[1, 4] - every[1, 0]])[:, None]
    torch.testing.assert_close(found.values, by_hand, rtol=1e-4, atol=1e-6)
    assert found.classes.tolist() == [[1], [4]]


@pytest.mark.parametrize(("target", "sign"), [(cl.BinaryTarget(), 1), (cl.RegressionTarget(up=False), -1)])
def test_a_network_of_one_output(target, sign):
    module, x = gap(classes=1), pixels()
    found = cl.CAM()(cl.wrap(module), x, target)
    torch.testing.assert_close(
        found.values.double(), sign * expected(module, x, [[0], [0]]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", [*EXACT, *LINEARISED, *MAXIMUM])
def test_a_batch_equals_single_runs(name):
    network, x = cl.wrap({**EXACT, **LINEARISED, **MAXIMUM}[name]()), pixels(3)
    together = cl.CAM()(network, x, cl.ClassTarget.top(2))
    for i in range(3):
        single = cl.CAM()(network, x[i : i + 1], cl.ClassTarget.top(2))
        torch.testing.assert_close(single.values, together.values[i : i + 1], rtol=1e-5, atol=1e-6)
        assert single.classes.tolist() == together.classes[i : i + 1].tolist()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_half_precision_stays_near_and_gives_float32(dtype, tolerance):
    module, x = gap(), pixels()
    exact = cl.CAM()(cl.wrap(module), x, cl.ClassTarget.all()).values
    for network in (cl.wrap(gap().to(dtype)), cl.Network(gap(), precision="bf16-mixed")):
        found = cl.CAM()(network, x, cl.ClassTarget.all())
        assert found.values.dtype == found.scores.dtype == torch.float32
        assert not torch.equal(found.values, exact)
        bound = tolerance if network.precision == "32-true" else 4e-2
        assert float((found.values - exact).abs().max()) < bound * float(exact.abs().max())


def test_channels_last_memory_changes_nothing():
    x = pixels()
    exact = cl.CAM()(cl.wrap(gap()), x, cl.ClassTarget.all()).values
    module = gap().to(memory_format=torch.channels_last)
    found = cl.CAM()(
        cl.wrap(module), x.contiguous(memory_format=torch.channels_last), cl.ClassTarget.all()
    ).values
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)


def test_a_fully_connected_head_is_refused_with_the_way_out():
    with pytest.raises(
        UnsupportedError, match=r"pooling → linear; got another head on .*GradCAM.*head='gap'"
    ):
        cl.CAM()(cl.wrap(fully_connected()), pixels())


@pytest.mark.parametrize(
    "target",
    [cl.ProbabilityTarget(1), cl.ProbabilityTarget(sigmoid=True), cl.CallableTarget(lambda out: out[:, 0])],
)
def test_what_is_not_linear_in_the_logits_is_refused(target):
    with pytest.raises(TargetError, match="CAM explains what is linear in the logits; got"):
        cl.CAM()(cl.wrap(gap()), pixels(), target)


def test_a_target_inside_the_network_is_refused():
    with pytest.raises(TargetError, match="CAM explains logits; got a target inside features"):
        cl.CAM()(cl.wrap(gap()), pixels(), cl.UnitTarget("features", 0))


def test_another_layer_is_refused():
    network = cl.wrap(gap())
    assert cl.CAM(layer="features")(network, pixels()).layer == "features"
    with pytest.raises(
        LayerError, match=r"CAM at layer 'features.0'; allowed: features, the layer before pooling"
    ):
        cl.CAM(layer="features.0")(network, pixels())


def test_what_comes_with_the_values():
    network = cl.wrap(headed(lambda m, x: m.fc(x.mean((2, 3)))))
    view = View(Size(40, 56), Size(20, 28), (0, 0, 20, 28), flip=True)
    found = cl.CAM()(network, Batch(pixels(), (view, view)))
    assert found.views == (view, view)
    assert (found.method, found.layer, found.target) == ("cam", "features", "logit of the predicted class")
    assert (found.grid.view, found.grid.kind) == ((20, 28), "features")
    assert (found.grid.offset, found.grid.stride, found.grid.extent) == ((0.5, 0.5), (4, 4), (7, 7))
    assert found.values.shape == (2, 1, 5, 7)
    assert network.structure(pixels()).features.channels == CHANNELS
