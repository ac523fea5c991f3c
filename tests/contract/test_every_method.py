"""Every method in the catalogue on every kind of network: a good call, a bad target, a module that raises."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

import dataclasses

import pytest
import torch
import torchvision
from torch import Tensor, nn

import camlucida as cl
from camlucida import maps, specs
from camlucida.errors import TargetError, UnsupportedError
from camlucida.values import Batch, HeatMaps, Size, View
from fingerprints import unchanged
from small_networks import (
    EXACT,
    LINEARISED,
    MAXIMUM,
    called_twice,
    fully_connected,
    gap,
    one_channel,
    pixels,
    seeded,
    tokens,
)  # fmt: skip

QUICK = {  # options that keep slow methods short
    "occlusion": "occlusion:patch=10,stride=9",
    "smooth-grad": "smooth-grad:n=1",
    "captum": "captum:attribution=InputXGradient",
    "score-cam": "score-cam:channels=8",
    "ablation-cam": "ablation-cam:channels=8",
    "rise": "rise:masks=8",
}
METHODS = {name: maps.method(QUICK.get(name, name)) for name in maps.available()}

NETWORKS = {
    "gap": gap,
    "gmp": MAXIMUM["amax"],
    "fully connected": fully_connected,
    "layer norm": LINEARISED["pool, layer norm, linear"],
    "functional, in place": EXACT["in-place relu before the pool"],
    "channels last": EXACT["channels last"],
    "dict": EXACT["dict"],
    "called twice": called_twice,
    "one channel": one_channel,
    "class token": lambda: tokens("class token", 2),
    "pooled tokens": lambda: tokens("mean, norm"),
    "resnet18": lambda: seeded(torchvision.models.resnet18, weights=None, num_classes=5),
}
REFUSED = {("cam", "fully connected"), ("cam", "class token")}
REFUSED |= {("full-grad", network) for network in ("layer norm", "class token", "pooled tokens")}


class Failing(nn.Module):
    """Works until it is told to fail, in the middle of its forward pass."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.fails = False
        self.module.features.register_forward_hook(self.maybe)

    def maybe(self, module: nn.Module, given: object, output: Tensor) -> None:
        if self.fails:
            raise FloatingPointError("in the middle")

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


def picture(network: str, count: int = 2) -> Tensor:
    if network == "resnet18":
        return pixels(count, 48, 64)
    return pixels(count, channels=1 if network == "one channel" else 3)


def explained(method: str, network: str, x: Tensor | Batch, target) -> tuple[nn.Module, HeatMaps]:
    """The maps, or a skip where the method says that it cannot be exact there."""
    module = NETWORKS[network]()
    with unchanged(module):
        try:
            return module, METHODS[method](cl.wrap(module), x, target)
        except UnsupportedError as error:
            if (method, network) not in REFUSED:
                raise
            pytest.skip(f"refused: {error}")


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_a_good_call(method, network):
    x = picture(network, 3)
    views = tuple(View.whole(Size(90, 70 + i), Size(*x.shape[2:])) for i in range(3))
    module, found = explained(method, network, Batch(x, views), cl.ClassTarget([[1, 4], [0, 0], [2, 3]]))
    assert isinstance(found, HeatMaps)
    assert found.classes is not None
    assert found.values.dtype == torch.float32
    assert found.values.shape[:2] == (3, 2)
    assert found.values.ndim == 4
    assert torch.isfinite(found.values).all()
    assert not found.values.requires_grad
    assert found.classes.tolist() == [[1, 4], [0, 0], [2, 3]]
    torch.testing.assert_close(found.values[1, 0], found.values[1, 1], rtol=1e-5, atol=1e-7)
    assert found.method.split()[0] == method  # `smooth-grad of saliency`
    whole = getattr(METHODS[method], "explains_the_target", True)  # or the layer, whatever the target
    assert found.target == "logit of the given class" if whole else "logit of the given class" in found.target
    assert found.grid.view == tuple(x.shape[2:])
    assert found.views == views
    assert [s.shape for s in found.in_source()] == [(2, 90, 70 + i) for i in range(3)]
    assert len(found.status) == 3
    assert set(sum(found.status, ())) <= {"ok", "flat", "all-negative", "no-gradient"}
    expected = cl.wrap(module)(x)
    torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.scores, expected.gather(1, found.classes), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_equals_single_runs(method, network):
    x = picture(network, 3)
    _, together = explained(method, network, x, cl.ClassTarget.top(2))
    scale = float(together.values.abs().max())
    assert scale > 0
    for i in range(3):
        _, single = explained(method, network, x[i : i + 1], cl.ClassTarget.top(2))
        torch.testing.assert_close(single.values[0], together.values[i], rtol=1e-3, atol=1e-4 * scale)
        assert single.classes.tolist() == together.classes[i : i + 1].tolist()
        assert single.status == together.status[i : i + 1]


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_are_equal_bit_for_bit(method):
    network = cl.wrap(gap())
    first, again = (METHODS[method](network, pixels()).values for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (cl.ClassTarget(99), "class 99; allowed: 0 … 4"),
        (cl.ClassTarget([0, 1, 2]), "2 pictures; got 3"),
        (cl.ClassTarget.top(6), "the top 6 classes"),
        (cl.MarginTarget(0, "best"), "'best'"),
        (cl.BinaryTarget(), "got 5 outputs"),
        (cl.CallableTarget(lambda out: out), "one scalar per picture|linear in the logits"),
    ],
)
@pytest.mark.parametrize("network", ["gap", "channels last"])
@pytest.mark.parametrize("method", METHODS)
def test_a_bad_target(method, network, target, message):
    module = NETWORKS[network]()
    with unchanged(module), pytest.raises(TargetError, match=message):
        METHODS[method](cl.wrap(module), pixels(), target)


@pytest.mark.parametrize("method", METHODS)
def test_a_module_that_raises(method):
    module = Failing(gap())
    network = cl.wrap(module)
    METHODS[method](network, pixels())
    module.fails = True
    with unchanged(module), pytest.raises(FloatingPointError, match="in the middle"):
        METHODS[method](network, pixels())
    with unchanged(module), pytest.raises(FloatingPointError, match="in the middle"):
        METHODS[method](cl.wrap(module), pixels())
    module.fails = False
    torch.testing.assert_close(
        METHODS[method](network, pixels()).values, METHODS[method](cl.wrap(gap()), pixels()).values
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_target_that_raises(method):
    def fails(out: Tensor) -> Tensor:
        raise FloatingPointError("in the target")

    module = gap()
    with unchanged(module), pytest.raises((FloatingPointError, TargetError)):
        METHODS[method](cl.wrap(module), pixels(), cl.CallableTarget(fails))


@pytest.mark.parametrize("method", METHODS)
def test_options_are_fields_with_defaults(method):
    plain = maps.method(method)
    assert dataclasses.is_dataclass(plain)
    assert specs.describe(plain, maps.METHODS) == method
    with pytest.raises(dataclasses.FrozenInstanceError):
        plain.layer = "x"
