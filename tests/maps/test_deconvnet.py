"""The deconvnet against its formula in float64, its conformance tests, and what it refuses (section 10)."""
# mypy: disable-error-code="union-attr,index,operator,arg-type"

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import camlucida as cl
from camlucida.errors import LayerError, TargetError, UnsupportedError, UsageError
from fingerprints import unchanged
from oracles import pixels as oracle
from small_networks import fully_connected, gap, headed, pixels, seeded, tokens

CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
POOL = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


def chain(axes: int, relu: bool = True, in_place: bool = False) -> nn.Sequential:
    """Overlapping 3/2 pools, groups, strides, padding and dilation, for two channels; its cells are the logits."""
    conv, pool = CONV[axes - 1], POOL[axes - 1]
    act = (lambda: nn.ReLU(in_place)) if relu else nn.Identity
    module = seeded(
        lambda: nn.Sequential(
            nn.Sequential(
                conv(2, 4, 3, stride=1, padding=1), act(), pool(3, 2),
                conv(4, 6, 3, padding=2, dilation=2, groups=2), act(), pool(3, 2, padding=1), conv(6, 4, 1), act(),
            ),
            nn.Flatten(),
        )
    )  # fmt: skip
    nn.init.constant_(module[0][6].bias, 1.0)  # so that no unit is dead
    return module


def stages_of(module: nn.Module) -> list[oracle.Stage]:
    """The same chain for the oracle."""
    found: list[oracle.Stage] = []
    for m in module:
        if isinstance(m, CONV):
            weight, bias = (t.detach().double().numpy() for t in (m.weight, m.bias))
            found.append(oracle.Conv(weight, bias, m.stride[0], m.padding[0], m.dilation[0], m.groups))
        elif isinstance(m, nn.ReLU):
            found.append(oracle.Relu())
        elif isinstance(m, POOL):
            found.append(oracle.Pool(m.kernel_size, m.stride, m.padding))
    return found


SIZES = {1: (23,), 2: (11, 14), 3: (5, 5, 7)}


@pytest.mark.parametrize(
    ("axes", "at", "unpool"),
    [(1, "max", "sum"), (1, "all", "assign"), (2, "max", "sum"), (2, "max", "assign"), (2, "all", "sum"),
     (2, "all", "assign"), (3, "all", "sum")],
)  # fmt: skip
def test_against_the_formula(axes, at, unpool):
    module = chain(axes)
    x = torch.randn(2, 2, *SIZES[axes], generator=torch.Generator().manual_seed(axes))
    stages, unit = stages_of(module[0]), 1
    with unchanged(module):
        found = cl.DeconvNet("0", unit, at, unpool)(cl.wrap(module), x)
    assert found.values.shape == x.shape
    assert found.values.dtype == torch.float32
    assert found.layer == "0"
    for i, picture in enumerate(x.double().numpy()):
        values = oracle.forward(picture, stages)
        activations = values[-1]
        signal = np.zeros_like(activations)
        place = np.unravel_index(activations[unit].argmax(), activations.shape[1:])
        where = (unit, *place) if at == "max" else unit
        signal[where] = activations[where]
        assert signal.any()
        wanted = oracle.backwards(values, stages, signal, "deconvnet", unpool)
        np.testing.assert_allclose(
            found.values[i].numpy(), wanted, rtol=1e-4, atol=1e-6 * np.abs(wanted).max()
        )
        cell = tuple(int(p) for p in place)
        assert (f"unit 1 at {cell}, " if at == "max" else "unit 1, ") in found.details[i]
        assert float(found.scores[i]) == pytest.approx(signal.sum(), rel=1e-5)
    assert (
        found.target == f"unit 1 of 0, at {'its strongest position' if at == 'max' else 'all its positions'}"
    )


def test_overlapping_pools_choose_one_input_twice():
    """Worked by hand: windows 0–2 and 2–4 of 3/2 pooling both choose cell 2; their values come back as a sum, or as the
    last one's."""
    module = nn.Sequential(nn.MaxPool1d(3, 2), nn.Conv1d(1, 1, 1, bias=False), nn.Flatten())
    nn.init.constant_(module[1].weight, 2.0)
    x = torch.tensor([[[0.0, 1.0, 5.0, 2.0, 3.0, 4.0, 1.0]]])
    wanted = {"sum": [0, 0, 40, 0, 0, 16, 0], "assign": [0, 0, 20, 0, 0, 16, 0]}
    for unpool, values in wanted.items():
        found = cl.DeconvNet("1", 0, "all", unpool)(cl.wrap(module), x)
        assert found.values[0, 0].tolist() == values


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_without_relu_it_is_the_gradient(axes):
    module = chain(axes, relu=False)
    x = torch.randn(2, 2, *SIZES[axes], generator=torch.Generator().manual_seed(axes))
    found = cl.DeconvNet("0", 2)(cl.wrap(module), x)
    leaf = x.clone().requires_grad_()
    strongest = module[0](leaf)[:, 2].flatten(1).amax(1)
    (gradient,) = torch.autograd.grad((strongest * strongest.detach()).sum(), leaf)
    torch.testing.assert_close(found.values, gradient, rtol=1e-4, atol=1e-6)
    assert float(gradient.abs().max()) > 0.001


class Residual(nn.Module):
    """What real networks have besides: batch norm, contrast norm, dropout, sums, joins, slices, average pooling, ReLUs that
    are functions or in place, and arithmetic with constants."""

    def __init__(self, relu: bool = True) -> None:
        super().__init__()
        self.one, self.two = (
            nn.Conv2d(3, 4, 3, padding="same"),
            nn.Conv2d(4, 4, 3, 2, 1, padding_mode="reflect"),
        )
        self.norm, self.last = nn.BatchNorm2d(4), nn.Conv2d(8, 5, 1)
        self.drop, self.relu = nn.Dropout(), relu
        self.out = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = (x - 0.1) * 2 / torch.tensor([1.0, 2.0, 3.0]).view(-1, 1, 1)
        x = self.norm(self.one(x))
        x = F.relu(x, inplace=True) if self.relu else x
        y = self.drop(self.two(x))
        y += F.avg_pool2d(x, 2, ceil_mode=True)
        y = y.clamp(min=0) if self.relu else y
        a, b = y.chunk(2, 1)
        return self.out(self.last(torch.cat([b, a, F.pad(a[..., 1:], (1, 0)), y[:, 2:]], 1))).mean((2, 3))


def test_residual_parts_go_by_their_linear_part():
    module, x = seeded(Residual, False), pixels(2, 17, 22)
    found = cl.DeconvNet("out", 3, "all")(cl.wrap(module), x)
    leaf = x.clone().requires_grad_()
    kept = {}
    handle = module.out.register_forward_hook(lambda m, i, o: kept.update(out=o))
    module(leaf)
    handle.remove()
    (gradient,) = torch.autograd.grad((kept["out"][:, 3] * kept["out"][:, 3].detach()).sum(), leaf)
    torch.testing.assert_close(found.values, gradient, rtol=1e-4, atol=1e-6 * float(gradient.abs().max()))
    assert not torch.allclose(cl.DeconvNet("out", 3, "all")(cl.wrap(seeded(Residual)), x).values, gradient)


def test_contrast_is_not_normalised_on_the_way_down():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.LocalResponseNorm(5, alpha=0.5), nn.Identity())
    x = pixels(1, 9, 12)
    found = cl.DeconvNet("2", 4)(cl.wrap(nn.Sequential(*plain, nn.Flatten())), x)
    above = plain[:3](x)
    where = (above[0, 4] == above[0, 4].amax()).nonzero()[0].tolist()
    signal = torch.zeros_like(above)
    signal[0, 4, where[0], where[1]] = above[0, 4, where[0], where[1]]
    wanted = F.conv_transpose2d(signal, plain[0].weight)
    torch.testing.assert_close(found.values, wanted.detach(), rtol=1e-5, atol=1e-6)
    assert bool(wanted.any())


def test_it_is_linear_in_the_chosen_activation():
    """The layer's weights doubled: its activation doubles, and so, twice over, does what goes through them."""
    module, x = chain(2), pixels(2, 11, 14, channels=2)
    once = cl.DeconvNet("0.5", 3)(cl.wrap(module), x)  # after a pool, so that no switch moves
    with torch.no_grad():
        for p in module[0][3].parameters():
            p.mul_(3)
    thrice = cl.DeconvNet("0.5", 3)(cl.wrap(module), x)
    torch.testing.assert_close(thrice.scores, 3 * once.scores)
    torch.testing.assert_close(thrice.values, 9 * once.values, rtol=1e-4, atol=1e-6)


def trunk_of(build) -> nn.Module:
    """The convolutional part of a torchvision network, without the weights of its head."""
    with torch.device("meta"):
        features = build(weights=None).features
    features.to_empty(device="cpu")
    for p in features.parameters():
        nn.init.normal_(p, 0, (2 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1)
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten())


REAL = {
    "alexnet": (lambda: trunk_of(torchvision.models.alexnet), (71, 95), "0.12"),
    "vgg11": (lambda: trunk_of(torchvision.models.vgg11), (40, 56), "0.15"),
    "resnet18": (lambda: torchvision.models.resnet18(weights=None), (40, 51), "layer2"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_networks(name):
    """Torch's own transposed operations, ReLUs replaced by their rule, give the same picture."""
    build, size, layer = REAL[name]
    features = seeded(build)
    x = pixels(2, *size)
    with unchanged(features):
        found = cl.DeconvNet(layer, unit="strongest")(cl.wrap(features), x)

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(ctx, given):
            return given.relu()

        @staticmethod
        def backward(ctx, signal):
            return signal.relu()

    class Rectify(nn.Module):
        def forward(self, given):
            return Rule.apply(given)

    for m in list(features.modules()):
        for child, part in list(m.named_children()):
            if isinstance(part, nn.ReLU):
                setattr(m, child, Rectify())
    kept = {}
    handle = features.get_submodule(layer).register_forward_hook(lambda m, i, o: kept.update(out=o))
    leaf = x.clone().requires_grad_()
    features(leaf)
    handle.remove()
    strongest = kept["out"].flatten(1).amax(1)
    (wanted,) = torch.autograd.grad((strongest * strongest.detach()).sum(), leaf)
    scale = float(wanted.abs().max())
    torch.testing.assert_close(found.values, wanted, rtol=1e-3, atol=1e-5 * scale)
    assert found.status == ("ok", "ok")
    for i, ((top, bottom), (left, right)) in enumerate(found.windows):
        outside = found.values[i].clone()
        outside[:, top:bottom, left:right] = 0
        assert not outside.any()
        assert found.values[i, :, top:bottom, left:right].any()


def test_which_unit():
    """A UnitTarget names layer, unit and position; of any other target it is the unit that adds most to the score."""
    module, x = gap(), pixels()
    network = cl.wrap(module)
    named = cl.DeconvNet()(network, x, cl.UnitTarget("features.1", 2, (3, 4)))
    assert torch.equal(named.values, cl.DeconvNet("features.1", 2, (3, 4))(network, x).values)
    whole = cl.DeconvNet()(network, x, cl.UnitTarget("features", 1, "sum"))
    assert torch.equal(whole.values, cl.DeconvNet(unit=1, at="all")(network, x).values)
    cells = module.features(x).detach()
    adds = cells.mean((2, 3))[:, None] * module.fc.weight.detach()  # of each unit to each logit
    for target, scores in (
        (cl.ClassTarget([1, 4]), adds[[0, 1], [1, 4]]),
        (cl.MarginTarget(0, 3), adds[:, 0] - adds[:, 3]),
        (cl.CallableTarget(lambda out: -out[:, 2]), -adds[:, 2]),
    ):
        found = cl.DeconvNet()(network, x, target)
        units = scores.argmax(1).tolist()
        assert [d.split(" at ")[0] for d in found.details] == [f"unit {u}" for u in units]
        for i, unit in enumerate(units):
            alone = cl.DeconvNet(unit=unit)(network, x[i : i + 1])
            torch.testing.assert_close(found.values[i], alone.values[0])
    assert cl.DeconvNet()(network, x, cl.ClassTarget([1, 4])).classes.tolist() == [1, 4]
    strongest = cl.DeconvNet(unit="strongest")(network, x)
    assert [int(d.split()[1]) for d in strongest.details] == cells.flatten(2).amax(2).argmax(1).tolist()


def test_a_dead_unit_is_flat_and_a_dead_target_says_so():
    module = gap()
    with torch.no_grad():
        module.features[2].bias[0] = -100
    found = cl.DeconvNet(unit=0)(cl.wrap(module), pixels())
    assert found.status == ("flat", "flat")
    dead = headed(lambda m, x: m.fc((x * 0).mean((2, 3))))
    found = cl.DeconvNet("features")(cl.wrap(dead), pixels())
    assert not found.values.any()
    assert set(found.details) == {"no unit adds to it: no gradient"}


def test_wrong_calls():
    network, x = cl.wrap(gap()), pixels()
    for kwargs in ({"at": "mean"}, {"unit": "best"}, {"unpool": "max"}):
        with pytest.raises(UsageError, match="DeconvNet"):
            cl.DeconvNet(**kwargs)
    with pytest.raises(TargetError, match=r"channel 6 of layer features; allowed: 0 … 5"):
        cl.DeconvNet(unit=6)(network, x)
    with pytest.raises(TargetError, match=r"a cell inside \(5, 7\)"):
        cl.DeconvNet(unit=1, at=(5, 0))(network, x)
    with pytest.raises(UsageError, match="leave one of them out"):
        cl.DeconvNet(unit=1)(network, x, cl.UnitTarget("features", 1))
    with pytest.raises(UsageError, match="leave one of them out"):
        cl.DeconvNet("features.1")(network, x, cl.UnitTarget("features", 1))
    with pytest.raises(TargetError, match="one target a picture"):
        cl.DeconvNet()(network, x, cl.ClassTarget.top(2))
    with pytest.raises(LayerError, match="did you mean 'features'"):
        cl.DeconvNet("feature")(network, x)
    cut = headed(lambda m, x: m.fc(x.detach().mean((2, 3))))
    with pytest.raises(LayerError, match=r"no gradient reaches layer features; live|name a unit"):
        cl.DeconvNet("features.1")(cl.wrap(cut), x)
    assert cl.DeconvNet("features.1", 0)(cl.wrap(cut), x).status == ("ok", "ok")


class Odd(nn.Module):
    def __init__(self, between) -> None:
        super().__init__()
        self.conv, self.between, self.out = nn.Conv2d(3, 4, 3), between, nn.Conv2d(4, 4, 3)
        self.lin = nn.Linear(4, 4)

    def forward(self, x):
        return self.out(self.between(self, self.conv(x))).mean((2, 3))


def writes(m, x):
    x[:, 0] = 1
    return x


REFUSALS = {
    "gelu": (lambda m, x: F.gelu(x), "gelu"),
    "leaky": (lambda m, x: F.leaky_relu(x), "leaky_relu"),
    "gate": (
        lambda m, x: x * x.mean((2, 3), keepdim=True),
        "two things that depend on the picture are multiplied",
    ),
    "clamp": (lambda m, x: x.clamp(min=-1), "elsewhere than at zero"),
    "group norm": (lambda m, x: F.group_norm(x, 2), "group_norm"),
    "batch": (lambda m, x: F.batch_norm(x, None, None, training=True), "statistics of the batch"),
    "written": (writes, "written into in place"),
    "fully connected": (
        lambda m, x: m.lin(x.mean((2, 3)))[..., None, None].expand(-1, -1, 5, 6),
        "not inverted",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_inverted_is_named(name):
    between, words = REFUSALS[name]
    module = Odd(between)
    with unchanged(module), pytest.raises(UnsupportedError, match=words):
        cl.DeconvNet("out", 0)(cl.wrap(module), pixels())
    assert cl.DeconvNet("conv", 0)(cl.wrap(module), pixels()).status == (
        "ok",
        "ok",
    )  # it lies above this layer


def test_the_module_that_cannot_be_inverted_is_named():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3), nn.Flatten())
    with pytest.raises(UnsupportedError, match=r"silu \(1\) on the way down.*cl\.GuidedBackprop"):
        cl.DeconvNet("2", 0)(cl.wrap(module), pixels())
    with pytest.raises(UnsupportedError, match="layer_norm"):
        cl.DeconvNet()(cl.wrap(tokens("norm, mean")), pixels())
    assert cl.DeconvNet("features")(cl.wrap(fully_connected()), pixels()).status == ("ok", "ok")
