"""Every method in every state a network can be in: the maps are those of the plain float32 network."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import camlucida as cl
from camlucida import maps
from camlucida.errors import UnsupportedError
from fingerprints import unchanged
from small_networks import (
    CHANNELS,
    EXACT,
    LINEARISED,
    Headed,
    by_axes,
    fully_connected,
    gap,
    pixels,
    seeded,
    tokens,
)  # fmt: skip
from walks import one_of_each_walk

pytestmark = pytest.mark.filterwarnings("ignore:.* is compiled:UserWarning")
QUICK = {
    "occlusion": "occlusion:patch=10,stride=9",
    "smooth-grad": "smooth-grad:of=grad-cam,n=1",
    "captum": "captum:attribution=InputXGradient",
    "bag-cam": "bag-cam:log=false",  # by default divided by scores, which are near zero here
    "score-cam": "score-cam:channels=8,weighting=increase",  # a mean of normed tokens is near zero
    "ablation-cam": "ablation-cam:channels=8",
    "rise": "rise:masks=8",
}
METHODS = {name: maps.method(QUICK.get(name, name)) for name in maps.available()}
NETWORKS: dict[str, Callable[[], Any]] = {
    "gap": gap,
    "in place": EXACT["in-place relu before the pool"],
    "layer norm": LINEARISED["pool, layer norm, linear"],
    "fully connected": fully_connected,
    "class token": lambda: tokens("class token"),
    "pooled tokens": lambda: tokens("norm, mean"),
}
REFUSED = {("cam", "fully connected"), ("cam", "class token")}
REFUSED |= {("full-grad", network) for network in ("layer norm", "class token", "pooled tokens")}
WALKS = one_of_each_walk(METHODS)
FEW = ("gap",)  # networks of the methods that differ from Grad-CAM in their formula alone
PAIRS = [(m, n) for n in NETWORKS for m in METHODS if (m, n) not in REFUSED and (m in WALKS or n in FEW)]
TARGET = cl.ClassTarget([[1, 4], [0, 2]])

State = tuple[Any, AbstractContextManager]  # the module to wrap, and where the call is made


def frozen(module: nn.Module) -> State:
    return module.requires_grad_(False), nullcontext()


def compiled_parts(module: nn.Module) -> State:
    for name, child in list(module.named_children()):
        setattr(module, name, torch.compile(child, backend="eager"))
    return module, nullcontext()


def compiled_in_place(module: nn.Module) -> State:
    module.compile(backend="eager")
    return module, nullcontext()


SAME: dict[str, Callable[[nn.Module], State]] = {
    "frozen": frozen,
    "no_grad": lambda m: (m, torch.no_grad()),
    "inference mode": lambda m: (m, torch.inference_mode()),
    "training": lambda m: (m.train(), nullcontext()),
    "autocast": lambda m: (m, torch.autocast("cpu", torch.bfloat16)),
    "compiled": lambda m: (torch.compile(m, backend="eager"), nullcontext()),
    "compiled by default": lambda m: (torch.compile(m), nullcontext()),
    "compiled in place": compiled_in_place,
    "compiled parts": compiled_parts,
    "DataParallel": lambda m: (nn.DataParallel(m), nullcontext()),
    "DataParallel of compiled": lambda m: (nn.DataParallel(torch.compile(m, backend="eager")), nullcontext()),
    "frozen, training, no_grad": lambda m: (m.train().requires_grad_(False), torch.no_grad()),
}


def plain(method: str, network: str) -> cl.HeatMaps:
    return METHODS[method](cl.wrap(NETWORKS[network]()), pixels(), TARGET)


BELOW_A_KINK = {"saliency": 0.99, "captum": 0.99, "full-grad": 0.98}


def apart(method: str, found: Tensor, expected: Tensor) -> float:
    """The largest difference. Saliency: of 99 in 100 pixels, because where rounding moves one unit over the kink
    of its ReLU, the gradient of the few pixels below it changes by a whole step; FullGrad has the biases below it, too.
    PC1: to the nearer of two orientations, between which single cells of the border decide."""
    difference = (found - expected).abs()
    if method == "pc1":
        turned = (1 - found - expected).abs()
        nearer = difference.flatten(2).amax(2) <= turned.flatten(2).amax(2)
        difference = torch.where(nearer.reshape(*nearer.shape, *(1,) * (found.ndim - 2)), difference, turned)
    return float(difference.quantile(BELOW_A_KINK.get(method, 1.0)))


DIFFERENCES = ("occlusion", "score-cam", "ablation-cam")


def scale_of(method: str, expected: cl.HeatMaps) -> float:
    """What rounding is measured by: the maps; a difference of logits is as coarse as the logits."""
    return float((expected.scores if method in DIFFERENCES else expected.values).abs().max())


def judged(method: str, *found: cl.HeatMaps) -> list[Tensor]:
    """The values; of Ablation-CAM before it divides by the scores, which are near zero here."""
    if method != "ablation-cam":
        return [one.values for one in found]
    return [one.values * one.scores.abs()[(..., *(None,) * (one.values.ndim - 2))] for one in found]


@pytest.mark.parametrize("state", SAME)
@pytest.mark.parametrize(("method", "network"), [p for p in PAIRS if p[0] in WALKS])
def test_states_that_change_no_number(method, network, state):
    expected = plain(method, network)
    module, context = SAME[state](NETWORKS[network]())
    with context:
        wrapped = cl.wrap(module)
        with unchanged(wrapped.module):
            found = METHODS[method](wrapped, pixels(), TARGET)
    for ours, theirs in ((found.values, expected.values), (found.scores, expected.scores)):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 * float(theirs.abs().max()))
    assert found.status == expected.status
    assert (found.layer or "").replace("_orig_mod.", "") == (expected.layer or "")


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.08), (torch.float64, 1e-5)]
)
@pytest.mark.parametrize(("method", "network"), PAIRS)
def test_precisions_stay_near_and_give_float32(method, network, dtype, tolerance):
    expected = plain(method, network)
    module = NETWORKS[network]().to(dtype)
    with unchanged(module):
        found = METHODS[method](cl.wrap(module), pixels(), TARGET)
    assert found.values.dtype == found.scores.dtype == torch.float32
    assert apart(method, *judged(method, found, expected)) < tolerance * scale_of(method, expected)
    if dtype != torch.float64:
        assert not torch.equal(found.values, expected.values)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize(("method", "network"), [p for p in PAIRS if p[1] in ("gap", "class token")])
def test_mixed_precision_of_the_network_itself(method, network, precision):
    expected = plain(method, network)
    found = METHODS[method](cl.Network(NETWORKS[network](), precision=precision), pixels(), TARGET)
    assert found.values.dtype == torch.float32
    assert 0 < apart(method, *judged(method, found, expected)) < 0.08 * scale_of(method, expected)


@pytest.mark.parametrize(("method", "network"), PAIRS)
def test_weights_made_in_inference_mode(method, network):
    """torch forbids gradients through them: one line says so, and the methods without gradients work."""
    expected = plain(method, network)
    with torch.inference_mode():
        module = NETWORKS[network]()
        x = pixels()
    assert next(module.parameters()).is_inference()
    wrapped = cl.wrap(module)
    reaches_pixels = method in ("saliency", "smooth-grad", "captum")
    if reaches_pixels or getattr(METHODS[method], "uses_gradients", False):
        with pytest.raises(UnsupportedError, match=r"made in inference mode; build .* outside .*cl\.CAM\(\)"):
            METHODS[method](wrapped, x, TARGET)
        return
    for _ in range(2):
        found = METHODS[method](wrapped, x, TARGET)
        torch.testing.assert_close(found.values, expected.values, rtol=1e-5, atol=1e-6)
    module.fc.weight.data.mul_(2) if hasattr(module, "fc") else None  # weights that count no versions
    if method == "cam" and network == "gap":
        doubled = METHODS[method](wrapped, x, TARGET)
        torch.testing.assert_close(doubled.values, 2 * expected.values, rtol=1e-5, atol=1e-6)


class Guarded(nn.Module):
    """A module whose own forward switches gradients off."""

    def __init__(self, module: nn.Module, guard: Callable[[], AbstractContextManager]) -> None:
        super().__init__()
        self.inside, self.guard = module, guard

    def forward(self, x: Tensor) -> Tensor:
        with self.guard():
            return self.inside(x)


@pytest.mark.parametrize(("method", "network"), PAIRS)
def test_a_forward_under_no_grad(method, network):
    found = METHODS[method](cl.wrap(Guarded(NETWORKS[network](), torch.no_grad)), pixels(), TARGET)
    expected = plain(method, network).values
    torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("method", WALKS)
def test_a_forward_under_inference_mode(method):
    module = Guarded(gap(), torch.inference_mode)
    if method in ("occlusion", "rise"):
        found = METHODS[method](cl.wrap(module), pixels(), TARGET)
        torch.testing.assert_close(found.values, plain(method, "gap").values)
        return
    with unchanged(module), pytest.raises(UnsupportedError, match=r"inference_mode\(\); use torch\.no_grad"):
        METHODS[method](cl.wrap(module), pixels(), TARGET)


class Tied(Headed):
    """Two convolutions that share one parameter."""

    def __init__(self, tied: bool) -> None:
        super().__init__(lambda m, x: m.fc(torch.relu(m.two(torch.relu(m.one(x)))).mean((2, 3))))
        self.one, self.two = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2))
        if tied:
            self.two.weight, self.two.bias = self.one.weight, self.one.bias
        else:
            self.two.load_state_dict(self.one.state_dict())


@pytest.mark.parametrize("method", WALKS)
def test_shared_weights(method):
    module = seeded(Tied, True)
    assert module.one.weight is module.two.weight
    with unchanged(module):
        found = METHODS[method](cl.wrap(module), pixels(), TARGET)
    expected = METHODS[method](cl.wrap(seeded(Tied, False)), pixels(), TARGET)
    torch.testing.assert_close(found.values, expected.values)


@pytest.mark.parametrize("method", WALKS)
def test_parametrised_weights(method):
    """A weight that is computed at each pass is no leaf; what it is computed from is left alone."""
    module, same = gap(), gap()
    parametrizations.weight_norm(module.fc)
    with unchanged(module):
        found = METHODS[method](cl.wrap(module), pixels(), TARGET)
    expected = METHODS[method](cl.wrap(same), pixels(), TARGET)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", WALKS)
def test_a_copy_and_channels_last_memory(method):
    expected = plain(method, "gap").values
    module = copy.deepcopy(gap()).to(memory_format=torch.channels_last)
    found = METHODS[method](cl.wrap(module), pixels().contiguous(memory_format=torch.channels_last), TARGET)
    torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", WALKS)
def test_another_default_dtype(method):
    network = "gap" if (method, "layer norm") in REFUSED else "layer norm"
    expected, module, x = plain(method, network).values, NETWORKS[network](), pixels()
    try:
        torch.set_default_dtype(torch.float64)
        found = METHODS[method](cl.wrap(module), x, TARGET)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_one_and_three_axes_in_half(method, dtype, axes):
    x = torch.randn(2, 2, *(16, 12, 14)[:axes], generator=torch.Generator().manual_seed(0))
    exact = METHODS[method](cl.wrap(by_axes(axes)), x, TARGET)
    found = METHODS[method](cl.wrap(by_axes(axes).requires_grad_(False).to(dtype)), x, TARGET)
    assert apart(method, *judged(method, found, exact)) < 0.08 * scale_of(method, exact)
