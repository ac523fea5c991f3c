"""The incremental engine against full inference, place by place (section 11.1)."""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import camlucida as cl
from camlucida import taps
from camlucida.errors import UnsupportedError, UsageError
from camlucida.maps import incremental, schedule
from camlucida.maps.incremental import graph, winograd
from camlucida.maps.incremental.graph import Reach, local_graph
from camlucida.maps.incremental.intervals import along, changed, groups
from fingerprints import unchanged
from small_networks import by_axes, fully_connected, gap, headed, pixels, seeded


class Made(nn.Module):
    """A network of the layers given, and how they are joined."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        self.how = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def made(forward, **layers):
    return seeded(lambda: Made(forward, **{name: build() for name, build in layers.items()}))


class Scale(nn.Module):
    """A factor for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 2, channels)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


SIDES = (33, 41)


def chain(*layers):
    """Layers, then a linear head over all cells, so that each counts by weights of its own."""

    def build() -> nn.Module:
        module = nn.Sequential(*(layer() for layer in layers), nn.Flatten(), nn.LazyLinear(4))
        module(pixels(2, *SIDES))
        return module

    return lambda: seeded(build)


conv = lambda *a, **k: lambda: nn.Conv2d(*a, **k)  # noqa: E731
relu = lambda: nn.ReLU(inplace=True)  # noqa: E731


def residual(m: Made, x: Tensor) -> Tensor:
    x = F.relu_(m.stem(x))
    y = m.norm2(m.second(F.relu(m.norm1(m.first(x)), inplace=True)))
    y += m.down(x)
    return m.fc(F.relu_(y).mean((2, 3)))


def branches(m: Made, x: Tensor) -> Tensor:
    x = m.stem(x)
    parts = [m.one(x), m.five(m.one(x)), F.max_pool2d(x, 3, 1, 1)]
    joined = torch.cat(parts, 1)
    a, b = joined.chunk(2, 1)
    return m.fc((F.silu(a) * b + 0.5).flatten(1))


def squeezed(m: Made, x: Tensor) -> Tensor:
    x = F.relu(m.stem(x))
    y = m.first(x)
    y = y * torch.sigmoid(m.gate(y.mean((2, 3), keepdim=True)))
    return m.fc((x + m.second(y)).mean((2, 3)))


def channels_last(m: Made, x: Tensor) -> Tensor:
    x = m.stem(x)
    y = m.norm(m.depth(x).permute(0, 2, 3, 1))
    y = m.narrow(F.gelu(m.wide(y))).permute(0, 3, 1, 2)
    return m.fc((x + m.scale(y)).mean((2, 3)))


def shuffled(m: Made, x: Tensor) -> Tensor:
    x = m.stem(x)
    n, c, h, w = x.shape
    x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
    return m.fc(m.second(x).mean((2, 3)))


KINDS = {
    "kernel, stride, padding": chain(conv(3, 4, (3, 5), (2, 1), (1, 0)), relu, conv(4, 4, 4, 3, 2)),
    "dilation, groups": chain(conv(3, 6, 3, padding=2, dilation=2), relu, conv(6, 6, 3, groups=3)),
    "stride beyond the kernel": chain(conv(3, 4, 2, 5), relu, conv(4, 4, 1, 2)),
    "same": chain(conv(3, 4, 4, padding="same"), relu, conv(4, 4, 3, padding="same", dilation=2)),
    "zeros around": chain(lambda: nn.ZeroPad2d((2, 0, 1, 3)), conv(3, 4, 3), relu),
    "max pool, rounded up": chain(conv(3, 4, 3), lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True), relu),
    "max pool, dilated": chain(conv(3, 4, 3), lambda: nn.MaxPool2d(2, 3, dilation=2)),
    "average pool, rounded up": chain(conv(3, 4, 2), lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True)),
    "average pool of what is inside": chain(
        conv(3, 4, 3), lambda: nn.AvgPool2d(4, 3, 2, count_include_pad=False), relu
    ),
    "average pool, own divisor": chain(conv(3, 4, 3), lambda: nn.AvgPool2d(3, 2, divisor_override=5)),
    "adaptive pool, even": chain(conv(3, 4, 2), lambda: nn.AdaptiveAvgPool2d((8, 10)), conv(4, 4, 3)),
    "adaptive pool, uneven": chain(conv(3, 4, 2), lambda: nn.AdaptiveAvgPool2d((5, 7)), conv(4, 4, 3)),
    "contrast norm": chain(conv(3, 6, 5, 2), relu, lambda: nn.LocalResponseNorm(5, 0.5, 0.75, 2), conv(6, 4, 3)),
    "norm before the layer": chain(conv(3, 4, 3), lambda: nn.BatchNorm2d(4), relu, conv(4, 4, 1)),
    "short products, 3": chain(conv(3, 130, 3, 2), relu, conv(130, 130, 3, padding=1), relu, conv(130, 3, 1)),
    "short products, 5": chain(conv(3, 130, 3, 3), relu, conv(130, 130, 5, padding=2), relu, conv(130, 3, 1)),
    "prelu, dropout, hardswish": chain(
        conv(3, 4, 3), lambda: nn.PReLU(4), nn.Dropout, lambda: nn.Hardswish(True), conv(4, 4, 3)
    ),
    "residual": lambda: made(
        residual, stem=conv(3, 6, 3), first=conv(6, 6, 3, 2, 1), norm1=lambda: nn.BatchNorm2d(6),
        second=conv(6, 6, 3, padding=1), norm2=lambda: nn.BatchNorm2d(6), down=conv(6, 6, 1, 2),
        fc=lambda: nn.Linear(6, 4),
    ),
    "branches": lambda: made(
        branches, stem=conv(3, 4, 3, 2), one=conv(4, 4, 1), five=conv(4, 4, 5, padding=2),
        fc=lambda: nn.Linear(6 * 16 * 20, 4),
    ),
    "squeeze and excitation": lambda: made(
        squeezed, stem=conv(3, 6, 3, 2), first=conv(6, 6, 3, padding=1), gate=conv(6, 6, 1),
        second=conv(6, 6, 3, padding=1), fc=lambda: nn.Linear(6, 4),
    ),
    "channels last": lambda: made(
        channels_last, stem=conv(3, 6, 2, 2), depth=conv(6, 6, 7, padding=3, groups=6),
        norm=lambda: nn.LayerNorm(6), wide=lambda: nn.Linear(6, 9), narrow=lambda: nn.Linear(9, 6),
        scale=lambda: Scale(6), fc=lambda: nn.Linear(6, 4),
    ),
    "shuffled channels": lambda: made(
        shuffled, stem=conv(3, 6, 3, 2), second=conv(6, 6, 3, groups=2), fc=lambda: nn.Linear(6, 4)
    ),
    "read twice": lambda: made(
        lambda m, x: m.fc((lambda y: F.relu(y) * 2 + y)(m.stem(x)).mean((2, 3))), stem=conv(3, 6, 3, 2),
        fc=lambda: nn.Linear(6, 4),
    ),
    "dict": lambda: headed(lambda m, x: {"logits": m.fc(m.pool(x).flatten(1)), "features": x}),
    "maximum": lambda: headed(lambda m, x: m.fc(x.amax((2, 3)))),
}  # fmt: skip


def places(side: tuple[int, int], size: tuple[int, int], count: int) -> Tensor:
    """The four corners of the picture, and places anywhere."""
    most = side[0] - size[0], side[1] - size[1]
    generator = torch.Generator().manual_seed(4)
    anywhere = torch.stack([torch.randint(0, m + 1, (count,), generator=generator) for m in most], 1)
    return torch.cat([torch.tensor([[0, 0], [0, most[1]], [most[0], 0], most]), anywhere])


def by_full_inference(module: nn.Module, x: Tensor, corners: Tensor, contents: Tensor) -> Tensor:
    """Logits of every edited picture, in float64."""
    edited = x.double().repeat(len(corners), 1, 1, 1)
    height, width = contents.shape[-2:]
    for i, (row, column) in enumerate(corners.tolist()):
        edited[i, :, row : row + height, column : column + width] = (
            contents[i] if contents.ndim == 4 else contents
        )
    try:
        with torch.no_grad():
            output = module.double()(edited)
    finally:
        module.float()
    return output["logits"] if isinstance(output, dict) else output


def assert_exact(found: Tensor, wanted: Tensor, clean: Tensor, tolerance: float = 1e-5) -> None:
    """The specification allows 1e-4 of the logit range; float rounding is below 1e-5."""
    spread = float(clean.max() - clean.min())
    assert float((wanted - clean).abs().max()) > 1e-3 * spread
    assert float((found.double() - wanted).abs().max()) <= tolerance * spread


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("size", [(5, 9), (1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer(kind, size):
    module = NETWORKS.setdefault(kind, KINDS[kind]())
    network = WRAPPED.setdefault(kind, cl.wrap(module))
    side = (20, 28) if kind in ("dict", "maximum") else SIDES
    x = pixels(1, *side)
    corners = places(side, size, 14)
    contents = torch.randn(len(corners), 3, *size, generator=torch.Generator().manual_seed(3)) * 2
    with unchanged(module):
        found = incremental.evaluate(network, x, corners, contents)
    assert_exact(found, by_full_inference(module, x, corners, contents), network(x))


NETWORKS: dict[str, nn.Module] = {}
WRAPPED: dict[str, cl.Network] = {}


IN_PART = {"adaptive pool, uneven": (1, 3), "squeeze and excitation": (2, 5)}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("kind", KINDS)
def test_how_far_windows_carry(kind):
    """Every layer but the head, unless a global operation lies between."""
    network = WRAPPED.setdefault(kind, cl.wrap(KINDS[kind]()))
    x = pixels(1, *((20, 28) if kind in ("dict", "maximum") else SIDES))
    with taps.borrowed(network.module):
        words = incremental.Edits(network, x, network.forward(x)).words
    inside, total = (int(words.split(" layers")[0].split(" of ")[i]) for i in (0, 1))
    assert (inside, total) == IN_PART.get(kind, (total - 1, total))
    assert ("from mean on" in words) == (
        kind in ("residual", "squeeze and excitation", "channels last", "shuffled channels", "read twice")
    )


# --- intervals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reach", [Reach(k, s, p) for k in (1, 2, 3, 5) for s in (1, 2, 4) for p in (0, 1, 2) if p < k]
)
def test_changed_outputs_are_those_that_read_a_changed_input(reach):
    length = 23
    outputs = (length + 2 * reach.pad - reach.kernel) // reach.stride + 1
    for low in range(length):
        for high in (low, min(low + 4, length - 1)):
            reads = [
                any(low <= o * reach.stride - reach.pad + k <= high for k in range(reach.kernel))
                for o in range(outputs)
            ]
            first, last = (int(v) for v in changed(np.array(low), np.array(high), reach, outputs))
            wanted = [o for o, hit in enumerate(reads) if hit]
            if wanted:
                assert (first, last) == (wanted[0], wanted[-1])
            else:
                assert first == last  # one is computed for nothing


def vgg16_sides(starts: np.ndarray) -> tuple[list[np.ndarray], float, float]:
    """Widths that a patch of 16 pixels changes after each layer of VGG-16; multiply-adds of its convolutions: all of
    them, and over the changed windows, averaged over all pairs of places."""
    low, high, side, channels = starts, starts + 15, 224, 3
    widths, whole, windows = [], 0.0, 0.0
    for layer in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
        if layer == "M":
            side //= 2
            low, high = changed(low, high, Reach(2, 2, 0), side)
        else:
            low, high = changed(low, high, Reach(3, 1, 1), side)
            each = 9 * channels * int(layer)
            whole += each * side**2
            windows += each * float((high - low + 1).mean()) ** 2
            channels = int(layer)
        widths.append(high - low + 1)
    return widths, whole, windows


def test_the_published_widths_and_head_room_of_vgg16():
    """The specification's table: patch 16 at the centre of 224 pixels, and over all 53 × 53 places."""
    widths, whole, windows = vgg16_sides(np.array([104]))
    expected = [18, 20, 10, 12, 14, 8, 10, 12, 14, 8, 10, 12, 14, 8, 10, 12, 14, 7]
    assert [int(w[0]) for w in widths] == expected
    assert round(whole / 1e9, 2) == 15.35
    assert round(whole / windows, 2) == 6.84
    _, whole, windows = vgg16_sides(np.arange(53) * 4)
    assert round(whole / windows, 2) == 9.78


def test_every_edit_is_in_one_group_whose_windows_hold_what_it_changes():
    network = WRAPPED.setdefault("residual", cl.wrap(KINDS["residual"]()))
    with taps.borrowed(network.module):
        steps = local_graph(network, pixels(1, *SIDES)).steps
    corners = np.array([(y, x) for y in range(0, 27, 3) for x in range(0, 35, 2)])
    found = list(groups(corners, (7, 5), steps, 11))
    assert sorted(np.concatenate([g.members for g in found]).tolist()) == list(range(len(corners)))
    assert max(len(g.members) for g in found) <= 11
    for group in found:
        for axis, length in ((0, 7), (1, 5)):
            intervals = along(axis, corners[group.members, axis], length, steps)
            for node, step in steps.items():
                low, high = intervals[node]
                begin, side = group.corners[node][axis], group.sides[node][axis]
                for held in (begin >= 0, begin + side <= step.size[axis], begin <= low, high < begin + side):
                    assert held.all()


# --- short products ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [3, 5])
def test_short_products_are_the_convolution(kernel):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 7, kernel, kernel, dtype=torch.float64, generator=generator)
    tiles = torch.randn(11, 7, 6, 6, dtype=torch.float64, generator=generator)
    table = tiles.permute(2, 3, 0, 1).reshape(-1, 7)
    rows = torch.arange(len(table)).view(36, 11)
    bias = torch.arange(5.0, dtype=torch.float64)
    found = winograd.convolve(table, rows, winograd.transformed(weight), bias, kernel)
    side = 7 - kernel
    wanted = F.conv2d(tiles, weight, bias)
    assert wanted.shape[2:] == (side, side)
    torch.testing.assert_close(
        found.view(side, side, 11, 5).permute(2, 3, 0, 1), wanted, rtol=1e-10, atol=1e-10
    )


# --- real networks -----------------------------------------------------------------------------------------

REAL = {
    "vgg16": (71, 96), "alexnet": (71, 97), "resnet18": (53, 67), "resnet50": (53, 67), "googlenet": (53, 67),
    "densenet121": (53, 67), "mobilenet_v3_large": (53, 67), "squeezenet1_1": (67, 81), "convnext_tiny": (53, 67),
    "embedded": (67, 81),
}  # fmt: skip


def real(name: str) -> nn.Module:
    """The network with random weights of a sensible size, and statistics that matter."""
    if name == "embedded":
        return cl.load("embedded").module
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        module = getattr(torchvision.models, name)(weights=None, **options)
        if name == "vgg16":  # the hundred million weights of its head have nothing to do with windows
            module.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 50), nn.ReLU(True), nn.Linear(50, 1000))
        if name == "alexnet":
            module.classifier = nn.Sequential(nn.Linear(256 * 6 * 6, 50), nn.ReLU(True), nn.Linear(50, 1000))
    module = module.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    for m in module.modules():
        for key, tensor in [*m.named_parameters(recurse=False), *m.named_buffers(recurse=False)]:
            with torch.no_grad():
                if key == "layer_scale":
                    tensor.fill_(0.3)
                elif tensor.ndim > 1:
                    tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
                elif key == "weight" or key == "running_var":
                    tensor.uniform_(0.7, 1.3, generator=generator)
                elif tensor.is_floating_point():
                    tensor.normal_(0, 0.1, generator=generator)
    return module


@pytest.mark.parametrize("name", REAL)
def test_real_networks(name):
    module, side = real(name), REAL[name]
    network, x = cl.wrap(module), pixels(1, *side)
    corners, contents = places(side, (13, 13), 1), torch.zeros(3, 13, 13)
    found = incremental.evaluate(network, x, corners, contents)
    edited = x.repeat(len(corners), 1, 1, 1)
    for i, (row, column) in enumerate(corners.tolist()):
        edited[i, :, row : row + 13, column : column + 13] = 0
    assert_exact(found, network(edited), network(x), 1e-4)


# --- under cl.Occlusion ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        cl.ClassTarget.top(3),
        cl.ProbabilityTarget(1),
        cl.MarginTarget(),
        cl.CallableTarget(lambda o: o.sum(1)),
    ],
)
@pytest.mark.parametrize("build", [gap, fully_connected])
def test_occlusion_gives_the_values_of_the_plain_loop(build, target):
    x = pixels(3)
    network = cl.wrap(build())
    plain = cl.Occlusion(7, 3, 0.5, engine="plain")(network, x, target)
    found = cl.Occlusion(7, 3, 0.5, engine="incremental")(network, x, target)
    assert plain.notes == ()
    assert found.notes[0].startswith("incremental: 2 of ")
    scale = float(plain.values.abs().max())
    assert scale > 1e-4
    torch.testing.assert_close(found.values, plain.values, rtol=0, atol=1e-4 * scale)
    assert torch.equal(found.scores, plain.scores)
    assert found.grid == plain.grid
    again = cl.Occlusion(7, 3, 0.5, engine="incremental")(network, x, target)
    assert torch.equal(again.values, found.values)


def test_auto_is_plain_for_few_places_and_says_how_for_many():
    network = cl.wrap(gap())
    assert cl.Occlusion(9, 6)(network, pixels()).notes == ()
    found = cl.Occlusion(5, 2)(network, pixels())
    assert found.notes == (
        "incremental: 2 of 3 layers with weights in windows, whole maps from adaptive_avg_pool2d of pool on",
    )
    assert "incremental" in str(dict(found._facts())["computed"])


class Deciding(nn.Module):
    """Its operations depend on the values of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).mean((2, 3))
        return y if float(y.sum()) > 0 else -y


def hooked() -> nn.Module:
    module = gap()
    module.features[0].register_forward_hook(lambda m, given, output: output * 2)
    return module


@pytest.mark.parametrize(
    ("build", "target", "reason"),
    [
        (lambda: seeded(Deciding), None, "torch.export cannot follow the network: "),
        (hooked, None, r"module features\.0 has hooks"),
        (gap, cl.UnitTarget("features", 1), "the target looks inside the network"),
        (lambda: headed(lambda m, x: m.fc(x.flatten(2).cumsum(2)[..., -1])), None, "^incremental: 2 of 3"),
    ],
)
def test_what_cannot_be_followed_falls_back_and_says_why(build, target, reason):
    module, x = build(), pixels(1)
    with unchanged(module):
        found = cl.Occlusion(5, 2)(cl.wrap(module), x, target)
    plain = cl.Occlusion(5, 2, engine="plain")(cl.wrap(module), x, target)
    if reason.startswith("^"):
        assert re.search(reason, found.notes[0])
        torch.testing.assert_close(found.values, plain.values, rtol=1e-4, atol=1e-6)
        return
    assert found.notes[0].startswith("plain loop: ")
    assert re.search(reason, found.notes[0])
    assert torch.equal(found.values, plain.values)
    with pytest.raises(UnsupportedError, match=reason):
        cl.Occlusion(5, 2, engine="incremental")(cl.wrap(module), x, target)


def test_one_axis_and_mixed_precision_fall_back():
    x = torch.randn(1, 2, 200, generator=torch.Generator().manual_seed(0))
    found = cl.Occlusion(9, 2)(cl.wrap(by_axes(1)), x)
    assert found.notes == ("plain loop: windows are followed along two axes, not 1",)
    found = cl.Occlusion(5, 2)(cl.Network(gap(), precision="bf16-mixed"), pixels(1))
    assert "autocast" in found.notes[0]


def test_the_graph_is_made_once_and_anew_when_a_weight_changes(monkeypatch):
    made = []
    whole = graph.export

    def counted(network: cl.Network, x: Tensor):
        made.append(tuple(x.shape))
        return whole(network, x)

    monkeypatch.setattr(graph, "export", counted)
    module, x = gap(), pixels()
    network, explain = cl.wrap(module), cl.Occlusion(7, 3, engine="incremental")
    first = explain(network, x)
    explain(network, x)
    assert made == [(1, 3, 20, 28)]
    with torch.no_grad():
        module.fc.weight.mul_(2)
    doubled = explain(network, x, cl.ClassTarget(first.classes))
    assert len(made) == 2
    torch.testing.assert_close(doubled.values, 2 * first.values, rtol=1e-4, atol=1e-5)
    explain(network, pixels(1, 24, 20))
    assert len(made) == 3


def test_a_module_that_changes_by_itself_is_not_taken_at_its_graph():
    """The kept graph no longer gives what the module gives: back to the plain loop, which does."""
    module = made(lambda m, x: m.conv(x).mean((2, 3)) * m.factor, conv=conv(3, 4, 3))
    module.factor = 1.0
    network = cl.wrap(module)
    first = cl.Occlusion(5, 2)(network, pixels(1), cl.ClassTarget(1))
    module.factor = 3.0
    found = cl.Occlusion(5, 2)(network, pixels(1), cl.ClassTarget(1))
    assert "differs from the module" in found.notes[0]
    torch.testing.assert_close(found.values, 3 * first.values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float64, 1e-6)])
def test_other_precisions(dtype, tolerance):
    x, module = pixels(1), gap()
    plain = cl.Occlusion(7, 3, engine="plain")(cl.wrap(module), x)
    found = cl.Occlusion(7, 3, engine="incremental")(cl.wrap(module.to(dtype)), x)
    assert found.values.dtype == torch.float32
    scale = float(plain.scores.abs().max())
    assert float((found.values - plain.values).abs().max()) < tolerance * scale


def test_an_edit_that_leaves_the_picture():
    for corners in ([[0, 24]], [[-1, 0]]):
        with pytest.raises(UsageError, match=r"corners from \[0, 0\] to \[15, 23\]"):
            incremental.evaluate(cl.wrap(gap()), pixels(1), torch.tensor(corners), torch.zeros(3, 5, 5))
    with pytest.raises(UsageError, match="one picture"):
        incremental.evaluate(cl.wrap(gap()), pixels(2), torch.tensor([[0, 0]]), torch.zeros(3, 5, 5))


# --- approximations (section 11.2) -------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"field": 0.5}, {"drill_down": 0.25}, {"field": 0.6, "drill_down": 0.1}])
def test_approximations_tell_their_error(options):
    network, x = cl.wrap(fully_connected()), pixels(2)
    exact = cl.Occlusion(5, 1)(network, x, cl.ClassTarget.top(2))
    found = cl.Occlusion(5, 1, **options)(network, x, cl.ClassTarget.top(2))
    off = (found.values - exact.values).abs()
    assert float(off.max()) > 1e-3 * float(exact.values.abs().max())  # not exact
    assert len(found.notes) == 2
    said = float(re.search(r"off by at most ([\d.e-]+)", found.notes[1])[1])
    assert 0.05 * float(off.max()) < said <= 1.5 * float(off.max())
    looked = int(re.search(r"approximate: (\d+) of 384 places", found.notes[1])[1])
    share = options.get("drill_down", 1.0)
    if share < 1:
        assert looked < 384 * (share + 0.25)
        assert float(off.amax((2, 3)).max()) > 0
        right = (off < 1e-4 * float(exact.values.abs().max())).float().mean()
        assert "field" in options or float(right) >= looked / 384 - 0.02
        known = off.amax(1) < 1e-4 * float(exact.values.abs().max())
        most = exact.values.amax(1)
        assert float(most[known].mean()) > float(most[~known].mean())  # it looked where most is lost
    else:
        assert looked == 384


def test_half_a_field_crops_the_middle():
    starts = np.array([0, 6, 10])
    network = WRAPPED.setdefault("short products, 3", cl.wrap(KINDS["short products, 3"]()))
    with taps.borrowed(network.module):
        steps = local_graph(network, pixels(1, *SIDES)).steps
    whole, half = along(0, starts, 16, steps), along(0, starts, 16, steps, 0.5)
    node = next(n for n, s in steps.items() if s.reach)
    assert steps[node].size[0] == 16
    assert [v.tolist() for v in whole[node]] == [[0, 2, 4], [7, 10, 12]]
    assert [v.tolist() for v in half[node]] == [[0, 2, 4], [7, 9, 11]]


@pytest.mark.parametrize(
    "options", [{"field": 0.0}, {"field": 1.1}, {"drill_down": 0.4}, {"drill_down": 0.0}, {"engine": "fast"}]
)
def test_options_that_do_not_fit(options):
    with pytest.raises(UsageError, match="allowed: "):
        cl.Occlusion(8, **options)(cl.wrap(gap()), pixels())


def test_memory_that_runs_out_halves_the_chunks_and_loses_no_place(monkeypatch):
    network, x = cl.wrap(gap()), pixels(2)
    maps = cl.Occlusion(patch=5, stride=3, engine="incremental")
    expected = maps(network, x).values
    sizes, windows = [], incremental.Runner._windows

    def tight(self, group, members, contents):
        sizes.append(len(members))
        if len(sizes) == 3 or len(members) > 20:
            raise torch.OutOfMemoryError("out of memory")
        return windows(self, group, members, contents)

    monkeypatch.setattr(incremental.Runner, "_windows", tight)
    found = maps(network, x)
    assert max(sizes) > 20 >= sizes[-1]
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))

    def never(self, group, members, contents):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(incremental.Runner, "_windows", never)
    with pytest.raises(torch.OutOfMemoryError):
        maps(network, x)


def test_the_budget_and_the_progress_of_occlusion():
    network, x = cl.wrap(gap()), pixels(2)
    maps = cl.Occlusion(patch=5, stride=3, engine="incremental")
    heard: list[tuple[schedule.Work, int]] = []
    with schedule.heard_by(lambda work, done: heard.append((work, done))):
        expected = maps(network, x).values
    places = expected[0, 0].numel()
    assert heard[0] == (heard[0][0], 0)
    assert heard[0][0].copies == heard[-1][1] == 2 * places
    assert [done for _, done in heard] == sorted(done for _, done in heard)
    few = len(heard)
    with schedule.memory(1000), schedule.heard_by(lambda work, done: heard.append((work, done))):
        tight = maps(network, x).values
    assert len(heard) - few > few  # more and smaller chunks
    torch.testing.assert_close(tight, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
