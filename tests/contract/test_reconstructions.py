"""Every method of RECONSTRUCTIONS on every kind of network: what the contract of heat maps says, for signed pictures."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

import camlucida as cl
from camlucida import maps
from camlucida.errors import TargetError, UnsupportedError, UsageError
from camlucida.values import Batch, Reconstruction, Size, View
from contract.test_every_method import Failing
from contract.test_states import SAME, Guarded
from fingerprints import unchanged
from small_networks import (
    EXACT,
    LINEARISED,
    MAXIMUM,
    by_axes,
    called_twice,
    fully_connected,
    gap,
    one_channel,
    pixels,
    seeded,
    tokens,
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:.* is compiled:UserWarning")
METHODS = {name: maps.any_method(name) for name in maps.RECONSTRUCTIONS}
NETWORKS = {
    "gap": gap,
    "gmp": MAXIMUM["amax"],
    "fully connected": fully_connected,
    "layer norm": LINEARISED["pool, layer norm, linear"],
    "functional, in place": EXACT["in-place relu before the pool"],
    "channels last": EXACT["channels last"],
    "channels last, linear": EXACT["channels last, linear, mean"],
    "dict": EXACT["dict"],
    "called twice": called_twice,
    "one channel": one_channel,
    "class token": lambda: tokens("class token", 2),
    "resnet18": functools.cache(lambda: seeded(torchvision.models.resnet18, weights=None, num_classes=5)),
}
STATES = [state for state in SAME if state not in ("compiled by default", "DataParallel of compiled")]
REFUSED = {("deconvnet", "class token")}


def picture(network: str, count: int = 2) -> Tensor:
    if network == "resnet18":
        return pixels(count, 32, 40)
    return pixels(count, channels=1 if network == "one channel" else 3)


def explained(method: str, network: str, x: Tensor | Batch, target) -> Reconstruction:
    module = NETWORKS[network]()
    with unchanged(module):
        try:
            return METHODS[method](cl.wrap(module), x, target)
        except UnsupportedError as error:
            if (method, network) not in REFUSED:
                raise
            pytest.skip(f"refused: {error}")


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_a_good_call_and_a_batch_equals_single_runs(method, network):
    x = picture(network)
    views = tuple(View.whole(Size(90, 70 + i), Size(*x.shape[2:])) for i in range(2))
    found = explained(method, network, Batch(x, views), cl.ClassTarget([1, 3]))
    assert isinstance(found, Reconstruction)
    assert not isinstance(found, cl.HeatMaps)
    assert found.values.shape == x.shape
    assert found.values.dtype == torch.float32
    assert not found.values.requires_grad
    assert found.values.isfinite().all()
    assert (found.method, found.views, found.classes.tolist()) == (method, views, [1, 3])
    assert "logit of the given class" in found.target
    assert [s.shape for s in found.in_source()] == [(x.shape[1], 90, 70 + i) for i in range(2)]
    assert set(found.status) <= {"ok", "flat"}
    scale = float(found.values.abs().max())
    assert scale > 0
    for i, c in enumerate([1, 3]):
        single = explained(method, network, x[i : i + 1], cl.ClassTarget(c))
        torch.testing.assert_close(single.values[0], found.values[i], rtol=1e-3, atol=1e-4 * scale)
        torch.testing.assert_close(single.scores[0], found.scores[i], rtol=1e-4, atol=1e-5)
        assert single.details == found.details[i : i + 1]


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_are_equal_bit_for_bit(method):
    network = cl.wrap(gap())
    first, again = (METHODS[method](network, pixels()).values for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("method", METHODS)
def test_states_of_the_network_change_no_number(method, state):
    target = cl.ClassTarget([1, 4])
    expected = METHODS[method](cl.wrap(gap()), pixels(), target)
    module, context = SAME[state](gap())
    with context:
        wrapped = cl.wrap(module)
        with unchanged(wrapped.module):
            found = METHODS[method](wrapped, pixels(), target)
    scale = float(expected.values.abs().max())
    torch.testing.assert_close(found.values, expected.values, rtol=1e-5, atol=1e-6 * scale)
    assert found.details == expected.details


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_precisions_stay_near_and_give_float32(method, dtype):
    """Of 95 in 100 pixels: where rounding moves a unit over the kink of its ReLU, what goes through it changes by a whole
    step."""
    expected = METHODS[method](cl.wrap(gap()), pixels(), cl.ClassTarget(1)).values
    found = METHODS[method](cl.wrap(gap().to(dtype)), pixels(), cl.ClassTarget(1)).values
    assert found.dtype == torch.float32
    difference = (found - expected).abs()
    assert float(difference.quantile(0.95)) < (1e-5 if dtype == torch.float64 else 0.08) * float(
        expected.abs().max()
    )


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_one_and_three_axes(method, axes):
    x = torch.randn(2, 2, *(16, 12, 14)[:axes], generator=torch.Generator().manual_seed(0))
    found = [METHODS[method](cl.wrap(by_axes(axes)), x, cl.ClassTarget(c)).values for c in range(5)]
    assert found[0].shape == x.shape
    assert torch.stack(found).any()


TARGETS = (
    cl.ClassTarget.predicted(), cl.ClassTarget(2), cl.ProbabilityTarget(2), cl.MarginTarget(2, 1), cl.UnitTarget("features", 1),
    cl.UnitTarget("features", 1, "sum"), cl.UnitTarget("features", 1, (2, 3)), cl.RegionTarget("features", np.eye(5, 7)),
    cl.CallableTarget(lambda out: out[:, 1] ** 2, "a square"),
)  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_target_and_what_is_said_of_it(method):
    made = [METHODS[method](cl.wrap(gap()), pixels(), target) for target in TARGETS]
    assert len({one.target for one in made}) == len(TARGETS)
    assert all(one.values.isfinite().all() for one in made)
    assert sum(one.values.any().item() for one in made) >= len(TARGETS) - 2
    one_output = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)
        )
    )
    for up in (True, False):
        for target in (cl.BinaryTarget(up), cl.RegressionTarget(up)):
            assert METHODS[method](cl.wrap(one_output), pixels(), target).values.isfinite().all()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (cl.ClassTarget(99), "class 99; allowed: 0 … 4"),
        (cl.ClassTarget([0, 1, 2]), "2 pictures; got 3"),
        (cl.ClassTarget.top(2), "one target a picture"),
        (cl.BinaryTarget(), "got 5 outputs"),
        (cl.CallableTarget(lambda out: out), "one scalar per picture"),
        (cl.UnitTarget("features", 6), "channel 6 of layer features; allowed: 0 … 5"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_a_bad_target(method, target, message):
    module = gap()
    with unchanged(module), pytest.raises(TargetError, match=message):
        METHODS[method](cl.wrap(module), pixels(), target)


@pytest.mark.parametrize("method", METHODS)
def test_a_module_that_raises(method):
    module = Failing(gap())
    network = cl.wrap(module)
    before = METHODS[method](network, pixels()).values
    module.fails = True
    with unchanged(module), pytest.raises(FloatingPointError, match="in the middle"):
        METHODS[method](network, pixels())
    module.fails = False
    assert torch.equal(METHODS[method](network, pixels()).values, before)


@pytest.mark.parametrize("method", METHODS)
def test_a_target_that_raises(method):
    def fails(out: Tensor) -> Tensor:
        raise FloatingPointError("in the target")

    module = gap()
    with unchanged(module), pytest.raises(FloatingPointError, match="in the target"):
        METHODS[method](cl.wrap(module), pixels(), cl.CallableTarget(fails))


@pytest.mark.parametrize("method", METHODS)
def test_inference_mode_inside_the_module(method):
    module = Guarded(gap(), torch.inference_mode)
    with unchanged(module), pytest.raises(UnsupportedError, match=r"inference_mode\(\); use torch\.no_grad"):
        METHODS[method](cl.wrap(module), pixels(), cl.ClassTarget(1))
    found = METHODS[method](cl.wrap(Guarded(gap(), torch.no_grad)), pixels(), cl.ClassTarget(1)).values
    torch.testing.assert_close(found, METHODS[method](cl.wrap(gap()), pixels(), cl.ClassTarget(1)).values)


def test_the_deconvnet_needs_no_gradients():
    with torch.inference_mode():
        module, x = gap(), pixels()
    found = cl.DeconvNet(unit=2)(cl.wrap(module), x)
    torch.testing.assert_close(found.values, cl.DeconvNet(unit=2)(cl.wrap(gap()), pixels()).values)
    with pytest.raises(UnsupportedError, match="made in inference mode"):
        cl.DeconvNet()(cl.wrap(module), x)


@pytest.mark.parametrize("method", METHODS)
def test_options_are_fields_with_defaults(method):
    plain = maps.any_method(method)
    assert dataclasses.is_dataclass(plain)
    assert maps.describe(plain) == method
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.layer = "x"


def test_nothing_boxes_them():
    for name in (*maps.RECONSTRUCTIONS, "smooth-grad:of=guided-backprop"):
        with pytest.raises(UsageError, match=f"method {name}; got a signed picture.*camlucida explain"):
            maps.method(name)
    found = cl.GuidedBackprop()(cl.wrap(gap()), pixels())
    for rule in (cl.FractionOfMax(0.2), cl.Quantile(0.9), cl.TightLoose()):
        with pytest.raises(
            UsageError, match="got the signed picture that guided-backprop makes; allowed: heat maps"
        ):
            rule(found)


def test_specs():
    made = maps.any_method("deconvnet:layer=conv5,unit=7,at=3/4,unpool=assign")
    assert made == cl.DeconvNet("conv5", 7, (3, 4), "assign")
    assert maps.describe(made) == "deconvnet:layer=conv5,unit=7,at=3/4,unpool=assign"
    assert maps.any_method("deconvnet:unit=strongest,at=all") == cl.DeconvNet(unit="strongest", at="all")
    assert maps.any_method("grad-cam") == cl.GradCAM()
