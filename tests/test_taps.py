"""What reaches into a running module: it comes back bit for bit, and what was captured is what the module
computed."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import camlucida
import camlucida as cl
from camlucida import taps
from camlucida.errors import LayerError
from camlucida.taps import Point
from fingerprints import fingerprint, unchanged
from oracles import maps as oracle
from small_networks import CHANNELS, CLASSES, OTHER, fully_connected, gap, headed, pixels, seeded, trunk

METHODS: dict[str, Any] = {
    "cam": cl.CAM(),
    "grad-cam": cl.GradCAM(),
    "occlusion": cl.Occlusion(patch=10, stride=9),
}


class Awkward(nn.Module):
    """Draws random numbers, has frozen and unfrozen parameters, modes, hooks and a gradient of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.features = trunk()
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.fc = nn.Linear(CHANNELS, CLASSES)
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.features(x))
        torch.rand(3)
        if self.fails:
            raise RuntimeError("the user's own fault")
        return self.fc(x.mean((2, 3)))


def awkward() -> Awkward:
    module = seeded(Awkward)
    module.train()
    module.norm.eval()
    module.features[0].weight.requires_grad_(False)
    module.fc.weight.grad = torch.full_like(module.fc.weight, 2.0)
    module.features.register_forward_hook(lambda m, given, output: output + 0.01)
    module.norm.register_forward_pre_hook(lambda m, given: None)
    return module


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_the_module_comes_back_bit_for_bit(name, grad):
    module = awkward()
    network = cl.wrap(module)
    with torch.set_grad_enabled(grad), unchanged(module):
        METHODS[name](network, pixels(), cl.ClassTarget.top(2))


@pytest.mark.parametrize("name", METHODS)
def test_the_module_comes_back_after_it_raised(name):
    module = awkward()
    network = cl.wrap(module)
    network.structure(pixels())
    module.fails = True
    with unchanged(module), pytest.raises(RuntimeError, match="the user's own fault"):
        METHODS[name](network, pixels())
    with unchanged(module), pytest.raises(RuntimeError, match="the user's own fault"):
        network.structure(pixels(1, 30, 20))


def test_a_fingerprint_sees_every_kind_of_change():
    for change in (
        lambda m: m.train(not m.training),
        lambda m: m.norm.train(),
        lambda m: m.fc.weight.requires_grad_(False),
        lambda m: m.fc.register_forward_hook(lambda *a: None),
        lambda m: m.norm.running_mean.data.add_(1e-6),
        lambda m: setattr(m.fc.weight, "grad", None),
        lambda m: torch.rand(1),
    ):
        module = awkward()
        before = fingerprint(module)
        change(module)
        assert fingerprint(module) != before


# --- what was captured -------------------------------------------------------------------------------------


class Twin(nn.Module):
    """One kind of block, with or without in-place operations; the head has two layers, so that Grad-CAM must
    look for the layer by itself."""

    def __init__(self, kind: str, inplace: bool) -> None:
        super().__init__()
        self.kind, self.inplace = kind, inplace
        self.first = nn.Conv2d(3, CHANNELS, 3, 2, 1)
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.relu = nn.ReLU(inplace)
        self.hidden = nn.Linear(CHANNELS, 8)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.kind == "vgg":
            x = self.relu(self.conv(x))
        elif self.kind == "densenet":
            x = F.relu(self.norm(self.conv(x)), inplace=self.inplace)
        else:  # resnet
            y = self.norm(self.conv(x))
            short = x[:, :, ::2, ::2]
            y = y.add_(short) if self.inplace else y + short
            x = self.relu(y)
        return self.fc(torch.tanh(self.hidden(x.mean((2, 3)))))


@pytest.mark.parametrize("layer", [None, "conv", "norm", "first"])
@pytest.mark.parametrize("kind", ["vgg", "densenet", "resnet"])
def test_in_place_operations_change_no_map(kind, layer):
    if (kind, layer) == ("vgg", "norm"):
        layer = None
    found = [
        cl.GradCAM(layer=layer, relu=False)(cl.wrap(seeded(Twin, kind, inplace)), pixels())
        for inplace in (True, False)
    ]
    assert float(found[1].values.abs().max()) > 1e-4
    torch.testing.assert_close(found[0].values, found[1].values, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", ["vgg", "densenet", "resnet"])
def test_a_map_before_an_in_place_operation_equals_plain_autograd(kind):
    module = seeded(Twin, kind, False)
    layer = {"vgg": "conv", "densenet": "norm", "resnet": "norm"}[kind]
    found = cl.GradCAM(layer=layer, relu=False)(
        cl.wrap(seeded(Twin, kind, True)), pixels(), cl.ClassTarget(1)
    )
    captured: dict[str, Tensor] = {}
    handle = dict(module.named_modules())[layer].register_forward_hook(
        lambda m, given, output: (output.retain_grad(), captured.update(a=output))[1]
    )
    module(pixels())[:, 1].sum().backward()
    handle.remove()
    a = captured["a"]
    expected = (a.grad.mean((2, 3), keepdim=True) * a).sum(1).detach()
    torch.testing.assert_close(found.values[:, 0], expected, rtol=1e-5, atol=1e-7)


def test_the_captured_tensor_is_not_rewritten():
    module = seeded(trunk, inplace=True)
    with taps.borrowed(module):
        run = taps.run(module, module, pixels(), [Point("2"), Point("3")])
        expected = module[2](module[1](module[0](pixels())))
    assert (run.tapped[Point("2")] < 0).any()
    torch.testing.assert_close(run.tapped[Point("2")], expected, rtol=0, atol=0)
    torch.testing.assert_close(run.tapped[Point("3")], expected.relu(), rtol=0, atol=0)
    torch.testing.assert_close(run.output, expected.relu(), rtol=0, atol=0)


class Twice(nn.Module):
    """One convolution that runs twice, and a functional that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, CHANNELS, 3, 2, 1)
        self.again = nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1)
        self.fc = nn.Linear(CHANNELS, CLASSES)

    def parts(self, x: Tensor) -> list[Tensor]:
        found = [self.first(x)]
        for _ in range(2):
            found += [self.again(found[-1])]
            found += [F.relu(found[-1])]
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.parts(x)[-1]).mean((2, 3)))


def test_calls_of_a_module_and_of_a_function_are_counted():
    module = seeded(Twice)
    _, conv1, _, conv2, relu2 = module.parts(pixels())
    points = [Point("again"), Point("again", 1), Point("relu", 1, "function"), Point("tanh", 0, "function")]
    with taps.borrowed(module):
        run = taps.run(module, module, pixels(), points)
    for point, expected in zip(points, (conv1, conv2, conv2, relu2), strict=True):
        torch.testing.assert_close(run.tapped[point], expected.detach(), rtol=0, atol=0)


def test_a_layer_that_runs_twice_is_never_picked_by_accident():
    network = cl.wrap(seeded(Twice))
    with pytest.raises(LayerError, match=r"'again' runs 2 times.*again#1, again#2"):
        cl.GradCAM(layer="again")(network, pixels())
    module = network.module
    x = pixels(1)
    for call, name in ((1, "again#1"), (3, "again#2")):
        found = cl.GradCAM(layer=name, relu=False)(network, x, cl.ClassTarget(2))
        parts = module.parts(x)
        gradient = torch.autograd.grad(module.fc(torch.tanh(parts[-1]).mean((2, 3)))[0, 2], parts[call])[0]
        expected = (gradient.mean((2, 3), keepdim=True) * parts[call]).sum(1).detach()
        torch.testing.assert_close(found.values[:, 0], expected, rtol=1e-5, atol=1e-8)


def test_a_tensor_used_by_two_operations_keeps_both_gradients():
    """The features have no module of their own and go into two pools: a tap at one must not lose the
    other."""
    module = headed(
        lambda m, x: m.fc(torch.cat([(y := F.relu(x - 0.1)).mean((2, 3)), y.amax((2, 3))], 1)[:, ::2])
    )
    network = cl.wrap(module)
    found = cl.GradCAM(relu=False)(network, pixels(1), cl.ClassTarget(3))
    assert found.layer is not None
    assert found.layer.startswith("input of")
    double = headed(lambda m, x: None).double()
    double.load_state_dict(module.state_dict())

    def above(y: Tensor) -> Tensor:
        return double.fc(torch.cat([y.mean((2, 3)), y.amax((2, 3))], 1)[:, ::2])[:, 3]

    expected = oracle.grad_cam(
        lambda x: F.relu(double.features(x) - 0.1).detach(), above, pixels(1)[0], relu=False
    )
    torch.testing.assert_close(found.values[0, 0].double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-7)


def test_a_layer_that_is_not_reached():
    module = gap()
    module.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(LayerError, match=r"spare.*did not run"):
        cl.GradCAM(layer="spare")(cl.wrap(module), pixels())
    with taps.borrowed(module), pytest.raises(LayerError, match="layer spare did not run"):
        taps.run(module, module, pixels(), [Point("spare")])
    with taps.borrowed(module), pytest.raises(LayerError, match="input of amax did not run"):
        taps.run(module, module, pixels(), [Point("amax", 0, "function")])
    with (
        taps.borrowed(module),
        pytest.raises(LayerError, match=r"layer 'featurs' does not exist.*'features'"),
    ):
        taps.run(module, module, pixels(), [Point("featurs")])


def test_a_layer_that_gives_no_tensor():
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    module = headed(lambda m, x: m.fc(m.pair(x)[0].mean((2, 3))))
    module.pair = Pair()
    with unchanged(module), taps.borrowed(module), pytest.raises(LayerError, match="output of type tuple"):
        taps.run(module, module, pixels(), [Point("pair")])


# --- where gradients are off -------------------------------------------------------------------------------


def expected_maps() -> Tensor:
    return cl.GradCAM(relu=False)(cl.wrap(fully_connected()), pixels(), cl.ClassTarget(1)).values


@pytest.mark.parametrize("method", ["grad-cam", "occlusion"])
@pytest.mark.parametrize("how", ["no_grad", "inference_mode", "frozen", "training", "all"])
def test_maps_do_not_depend_on_how_gradients_are_set(how, method):
    method = METHODS[method]
    plain = method(cl.wrap(fully_connected()), pixels(), cl.ClassTarget(1)).values
    module = fully_connected()
    if how in ("frozen", "all"):
        module.requires_grad_(False)
    if how in ("training", "all"):
        module.train()
    with (
        torch.set_grad_enabled(how not in ("no_grad", "all")),
        torch.inference_mode(how in ("inference_mode", "all")),
        unchanged(module),
    ):
        given = pixels()  # an inference tensor, where the mode is on
        found = method(cl.wrap(module), given, cl.ClassTarget(1)).values
    torch.testing.assert_close(found, plain, rtol=0, atol=0)


@pytest.mark.parametrize("layer", ["features", "features.0"])
def test_a_no_grad_inside_the_forward_does_not_cut_the_gradient(layer):
    """A frozen trunk under `no_grad` is common; gradients above it must arrive all the same."""

    def end(m: nn.Module, x: Tensor) -> Tensor:
        return m.fc(torch.tanh(x).mean((2, 3))) * 2

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = headed(end)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.inside.features(x)
            return end(self.inside, x)

    found = cl.GradCAM(layer=f"inside.{layer}", relu=False)(cl.wrap(seeded(Frozen)), pixels())
    expected = cl.GradCAM(layer=layer, relu=False)(cl.wrap(seeded(Frozen).inside), pixels())
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=0)


def test_a_gradient_that_the_user_stopped_stays_stopped():
    def stopped(m: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = x.mean((2, 3))
        return m.fc(gate * torch.tanh(x).mean((2, 3))) + 1

    module = headed(stopped)
    found = cl.GradCAM(layer="features", relu=False)(cl.wrap(module), pixels(), cl.ClassTarget(0))
    x = module.features(pixels()).detach().requires_grad_()
    gradient = torch.autograd.grad(stopped(module, x)[:, 0].sum(), x)[0]
    expected = (gradient.mean((2, 3), keepdim=True) * x).sum(1).detach()
    torch.testing.assert_close(found.values[:, 0], expected, rtol=1e-5, atol=1e-8)


def test_the_trunk_below_the_tap_builds_no_graph():
    module = fully_connected()
    point = Point("features.3")
    with taps.borrowed(module):
        run = taps.run(module, module, pixels(), [Point("features.1"), point], gradient_at=point)
        assert run.tapped[Point("features.1")].grad_fn is None
        assert run.tapped[point].is_leaf
        assert run.tapped[point].requires_grad
        assert run.output.requires_grad


@pytest.mark.parametrize("network", OTHER)
def test_a_run_that_was_recorded_or_tapped_gives_the_same_output(network):
    module = OTHER[network]()
    expected = module(pixels()).detach()
    with taps.borrowed(module):
        trace = taps.trace(module, module, pixels())
        run = taps.run(module, module, pixels(), [Point("features")], gradient_at=Point("features"))
    torch.testing.assert_close(trace.output, expected, rtol=0, atol=0)
    torch.testing.assert_close(run.output.detach(), expected, rtol=0, atol=0)


def test_only_this_folder_reaches_into_modules():
    package = Path(camlucida.__file__).parent
    reaching = re.compile(r"\bregister_\w*hook|\(TorchFunctionMode\)|\(TorchDispatchMode\)|\bretain_grad\b")
    found = {
        p.relative_to(package).as_posix()
        for p in package.rglob("*.py")
        if reaching.search(p.read_text("utf-8"))
    }
    assert found
    assert {name.split("/")[0] for name in found} == {"taps"}


class Counted(dict):
    """Modules inside one, with a count of how often they were asked for."""

    asked = 0

    def values(self):
        self.asked += 1
        return super().values()

    def items(self):
        self.asked += 1
        return super().items()


@pytest.mark.parametrize(("method", "most"), [(cl.CAM(), 2), (cl.GradCAM(), 3)])
def test_a_map_costs_few_walks_over_the_modules(method, most):
    network, x, target = cl.wrap(gap()), pixels(1), cl.ClassTarget([1])
    method(network, x, target)
    counted = network.module.dropout._modules = Counted()
    method(network, x, target)
    assert 0 < counted.asked <= most


def test_the_parts_of_a_module_are_those_that_torch_names():
    module = awkward()
    module.again = module.features[0]  # named twice
    module.register_module("nothing", None)
    module.features[2].round = nn.ModuleDict({"back": module.norm})
    parts = taps.parts(module)
    assert len(parts) == len({*parts})
    assert {*parts} == {*module.modules()}
    assert {*map(id, taps.parameters(parts))} == {*map(id, module.parameters())}
    assert {*map(id, taps.buffers(parts))} == {*map(id, module.buffers())}
