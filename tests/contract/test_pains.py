"""What people suffer from elsewhere, each made impossible here and tested under the name of the pain.

| pain | tested by value in |
|---|---|
| an in-place operation after the layer rewrites the map | `test_taps::test_in_place_operations_change_no_map` and its neighbours; `test_real_networks::test_the_twin_…`; below for the input |
| fewer targets than pictures: later maps empty | `test_every_method::test_a_bad_target`; `test_targets` |
| NaN or blank maps without a reason | `test_values` (status words), `test_grad_cam::test_a_map_without_gradient_says_so`; below for a dead layer |
| only min-max scaled maps | `test_cam`, `test_grad_cam`: raw signed values against the formula |
| hooks or evaluation change the model | `test_every_method`, `test_states`, `test_real_networks`: every call inside `unchanged` |
| a layer called twice; functional activations | `test_taps::test_a_layer_that_runs_twice_is_never_picked_by_accident`, `::test_calls_of_a_module_and_of_a_function_are_counted` |
| another map at every run | `test_every_method::test_two_runs_are_equal_bit_for_bit`; below for a network that draws |
| no gradient: frozen, no_grad, inference mode | `test_states` |
| dict outputs, `.logits` | `test_structure` (EXACT: "dict", ".logits"), `test_every_method` ("dict") |
| ViT and Swin tokens | `test_real_networks` (grids, prefixes, layers); below by value |
| 3-D and 1-D | below by value |
| DataParallel, half, bfloat16, compiled | `test_states`; below for a gradient that underflows |
| the trunk builds a graph; memory | `test_taps::test_the_trunk_below_the_tap_builds_no_graph`; below over 500 calls |
"""
# mypy: disable-error-code="union-attr,index,operator"

from __future__ import annotations

import gc
import itertools
import warnings

import pytest
import torch
from torch import Tensor, nn

import camlucida as cl
from camlucida import maps
from camlucida.errors import LayerError, NetworkError, TargetError, UnsupportedError
from fingerprints import unchanged
from small_networks import CLASSES, Headed, by_axes, gap, headed, pixels, seeded, tokens
from walks import one_of_each_walk

QUICK = {
    "occlusion": "occlusion:patch=10,stride=9",
    "smooth-grad": "smooth-grad:of=grad-cam,n=1",
    "captum": "captum:attribution=InputXGradient",
    "score-cam": "score-cam:channels=8",
    "ablation-cam": "ablation-cam:channels=8",
    "rise": "rise:masks=8",
}
METHODS = {name: maps.method(QUICK.get(name, name)) for name in maps.available()}
WALKS = one_of_each_walk(METHODS)

# --- silent wrong maps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", WALKS)
def test_a_network_that_works_in_place_on_its_input_leaves_the_pictures_alone(method):
    """An in-place operation rewrites what was captured: here the very first one, on the user's own tensor."""

    class Normalises(Headed):
        def forward(self, x: Tensor) -> object:
            return super().forward(x.sub_(0.5).div_(0.25))

    class Twin(Headed):
        def forward(self, x: Tensor) -> object:
            return super().forward((x - 0.5) / 0.25)

    def end(m: Headed, x: Tensor) -> Tensor:
        return m.fc(x.mean((2, 3)))

    x = pixels()
    before = x.clone()
    found = METHODS[method](cl.wrap(seeded(Normalises, end)), x)
    assert torch.equal(x, before)
    torch.testing.assert_close(found.values, METHODS[method](cl.wrap(seeded(Twin, end)), x).values)
    network = cl.wrap(seeded(Normalises, end))
    network(x)
    network.layers(x)
    assert torch.equal(x, before)


class Square(torch.autograd.Function):
    """x² by code of its own, which no torch function shows."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class Squares(nn.Module):
    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        if not self.hidden:
            return x * x
        with torch._C.DisableTorchFunction():
            return Square.apply(x)


@pytest.mark.parametrize("end", ["pooled", "fully connected"])
def test_an_activation_by_a_custom_autograd_function_is_seen(end):
    """Functional activations: also those that are no torch functions, as memory-saving ones are."""

    def network(hidden: bool) -> cl.Network:
        def head(m: Headed, x: Tensor) -> Tensor:
            x = m.act(x).mean((2, 3))
            return m.fc(x if end == "pooled" else torch.tanh(x))

        module = headed(head)
        module.act = Squares(hidden)
        return cl.wrap(module)

    ours, twin = network(True), network(False)
    assert ours.find_layer(None, pixels()).name == twin.find_layer(None, pixels()).name == "act"
    assert [one.reached for one in ours.layers(pixels())] == [one.reached for one in twin.layers(pixels())]
    for method in METHODS:
        if (method, end) == ("cam", "fully connected") or method == "full-grad":
            continue  # refused
        found, expected = (METHODS[method](net, pixels(), cl.ClassTarget.top(2)) for net in (ours, twin))
        torch.testing.assert_close(found.values, expected.values, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", WALKS)
def test_a_network_that_draws_numbers_gives_the_same_map_from_the_same_seed(method):
    """Different map at every run: the module's own noise comes from torch's generator, which comes back as it was."""

    def end(m: Headed, x: Tensor) -> Tensor:
        return m.fc((x + torch.rand_like(x)).mean((2, 3)))

    network = cl.wrap(headed(end))
    METHODS[method](network, pixels())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first, again = (METHODS[method](network, pixels()).values for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("method", WALKS)
@pytest.mark.parametrize("given", [[0], [0, 1], [[0, 1]], [0, 1, 2, 3]])
def test_a_target_list_of_another_length_leaves_no_picture_without_a_map(method, given):
    """Fewer targets than images: later maps empty or missing. Any length but 1 or N raises, with both numbers."""
    with pytest.raises(TargetError, match="class indices for 3 pictures; got"):
        METHODS[method](cl.wrap(gap()), pixels(3), cl.ClassTarget(given))


def test_outputs_of_several_tensors_are_refused_not_guessed():
    """Several outputs: which one is explained is the user's to say."""
    network = cl.wrap(headed(lambda m, x: (m.fc(x.mean((2, 3))), x)))
    for method in METHODS.values():
        with pytest.raises(NetworkError, match=r"got tuple; allowed: logits .*wrap the module"):
            method(network, pixels())


# --- gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_gradient_of_a_large_map_does_not_vanish(dtype):
    """fp16: the share of one cell of a map of 96 × 128 is below the smallest half number; blank maps came of it."""

    def network(dtype: torch.dtype) -> cl.Network:
        def end(m: Headed, x: Tensor) -> Tensor:
            return m.fc(torch.tanh(x.mean((2, 3)))) * 2.0**-10

        module = headed(end)
        module.features[0].stride = module.features[2].stride = (1, 1)
        return cl.wrap(module.to(dtype))

    x = pixels(1, 96, 128)
    exact = cl.GradCAM(relu=False)(network(torch.float32), x, cl.ClassTarget.all())
    found = cl.GradCAM(relu=False)(network(dtype), x, cl.ClassTarget.all())
    scale = float(exact.values.abs().max())
    assert 0 < scale < 1e-5
    assert set(found.status[0]) == set(exact.status[0]) == {"ok"} or found.status == exact.status
    tolerance = 0.01 if dtype == torch.float16 else 0.08
    if dtype == torch.float16:  # what PyTorch gives for the same score, so that the test is known to bite
        module = network(dtype).module
        features = module.features(x.half()).detach().requires_grad_()
        (plain,) = torch.autograd.grad((module.fc(features.mean((2, 3)).tanh()) * 2.0**-10)[0, 0], features)
        lost = (plain.float().mean((2, 3), keepdim=True) * features.detach().float()).sum(1) - exact.values[
            :, 0
        ]
        assert float(lost.abs().max()) > 10 * tolerance * float(exact.values[:, 0].abs().max())
    assert float((found.values - exact.values).abs().max()) < tolerance * scale


def test_a_half_precision_picture_that_gives_no_number_costs_its_neighbour_nothing():
    module, x = headed(lambda m, x: m.fc(torch.tanh(x.mean((2, 3)))) * 2.0**-14).half(), pixels()
    alone = cl.GradCAM(relu=False)(cl.wrap(module), x[1:], cl.ClassTarget(1))
    x[0, 0, 0, 0] = torch.nan
    found = cl.GradCAM(relu=False)(cl.wrap(module), x, cl.ClassTarget(1))
    assert found.status == (("non-finite",), alone.status[0])
    assert float(alone.values.abs().max()) > 0
    torch.testing.assert_close(found.values[1], alone.values[0], rtol=1e-3, atol=0)


def test_a_half_precision_gradient_that_is_large_does_not_overflow():
    """Scaling against underflow must not make infinities of large gradients."""

    def network(dtype: torch.dtype) -> cl.Network:
        return cl.wrap(headed(lambda m, x: m.fc(torch.tanh(x.mean((2, 3)))) * 3000).to(dtype))

    exact, found = (
        cl.GradCAM(relu=False)(network(d), pixels(), cl.ClassTarget.all()).values
        for d in (torch.float32, torch.float16)
    )
    assert torch.isfinite(found).all()
    assert float((found - exact).abs().max()) < 0.01 * float(exact.abs().max())


def test_a_backward_hook_of_the_users_and_an_in_place_operation_do_not_crash():
    """Backward hooks wrap the output in a view, which an in-place operation may not touch: tensors are tapped instead,
    and a user's own backward hooks stay and run."""
    calls = []
    module = headed(lambda m, x: m.fc(torch.relu_(m.conv2(torch.relu_(x - 0.1))).mean((2, 3))))
    module.conv2 = seeded(nn.Conv2d, 6, 6, 3, padding=1)
    plain = cl.GradCAM("features.2", relu=False)(cl.wrap(module), pixels()).values
    module.fc.register_full_backward_hook(lambda m, given, out: calls.append(len(given)))
    with unchanged(module):
        found = cl.GradCAM("features.2", relu=False)(cl.wrap(module), pixels())
    torch.testing.assert_close(found.values, plain, rtol=0, atol=0)
    assert calls == [1]


@pytest.mark.parametrize("how", ["whole", "part", "in place"])
def test_that_a_compiled_module_runs_uncompiled_is_said_once(how):
    """torch.compile skips hooks."""
    module = headed(lambda m, x: m.fc(x.mean((2, 3))))
    if how == "in place":
        module.compile(backend="eager")
    elif how == "part":
        module.fc = torch.compile(module.fc, backend="eager")
    given = torch.compile(module, backend="eager") if how == "whole" else module
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(2):
            network = cl.wrap(given)
        cl.CAM()(network, pixels())
    assert [str(one.message).partition(":")[0] for one in said] == ["Headed is compiled"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cl.wrap(headed(lambda m, x: m.fc(x.mean((2, 3)))))


# --- tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [1, 3])
def test_the_class_and_register_tokens_of_a_transformer_are_no_cells(prefix):
    """ViT: reshape errors, wrong block, prefix tokens. Grad-CAM at the input of the last attention, by hand."""
    module, x = tokens("class token", prefix), pixels()
    network = cl.wrap(module)
    layer = network.find_layer(None, x)
    assert (layer.name, layer.size, layer.prefix, layer.channels) == ("norm1", (5, 7), prefix, 8)
    found = cl.GradCAM(relu=False)(network, x, cl.ClassTarget([3, 0]))
    stream = module.embed(x).detach()
    normed = module.norm1(stream).detach().requires_grad_()
    logits = module.head(module.mixed(stream, normed))
    gradient = torch.autograd.grad(logits[0, 3] + logits[1, 0], normed)[0][:, prefix:]
    by_hand = (gradient.mean(1, keepdim=True) * normed.detach()[:, prefix:]).sum(2).reshape(2, 5, 7)
    assert float(by_hand.abs().max()) > 1e-5
    torch.testing.assert_close(found.values[:, 0], by_hand, rtol=1e-4, atol=1e-8)
    assert found.values.shape == (2, 1, 5, 7)


@pytest.mark.parametrize("layer", ["block", "mlp", "last"])
def test_the_last_block_of_a_transformer_with_a_class_token_is_refused_naming_a_live_layer(layer):
    """Its cells have zero gradient: elsewhere a blank map."""
    network = cl.wrap(tokens("class token"))
    assert not network.find_layer(layer, pixels()).reached
    with pytest.raises(
        LayerError, match=f"layer {layer}: the gradient reaches its class token .*live: norm1"
    ):
        cl.GradCAM(layer)(network, pixels())
    with pytest.raises(UnsupportedError, match="GradCAM"):
        cl.CAM()(network, pixels())


@pytest.mark.parametrize(("end", "exact"), [("norm, mean", True), ("mean, norm", False)])
@pytest.mark.parametrize("prefix", [1, 2])
def test_a_transformer_that_averages_its_tokens_has_class_maps_that_sum_to_the_logit(end, exact, prefix):
    module, x = tokens(end, prefix), pixels()
    network = cl.wrap(module)
    head = network.structure(x).head
    assert head.is_exact == exact
    found = cl.CAM()(network, x, cl.ClassTarget.all())
    assert found.values.shape == (2, CLASSES, 5, 7)
    stream = module.embed(x)
    block = module.mixed(stream, module.norm1(stream)).detach()
    cells = (module.last(block) if exact else block)[:, prefix:].detach()
    bias = module.fc.bias.detach()
    weight = module.fc.weight.detach()
    if not exact:
        mean = cells.mean(1)
        deviation = (mean.var(1, unbiased=False) + module.last.eps).sqrt()
        cells = (cells - mean.mean(1)[:, None, None]) / deviation[:, None, None]
        bias = bias + weight @ module.last.bias.detach()
        weight = weight * module.last.weight.detach()
    by_hand = torch.einsum("ck,ntk->nct", weight, cells).reshape(2, CLASSES, 5, 7)
    torch.testing.assert_close(found.values, by_hand, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.values.mean((2, 3)) + bias, module(x).detach(), rtol=1e-4, atol=1e-5)


def test_a_target_inside_a_transformer_counts_its_cells_without_the_prefix():
    module, x = tokens("class token", 2), pixels()
    network = cl.wrap(module)
    found = cl.GradCAM("norm1", relu=False)(network, x, cl.UnitTarget("norm1", 3, (4, 2)))
    normed = module.norm1(module.embed(x)).detach()[:, 2:]
    torch.testing.assert_close(found.scores[:, 0], normed[:, 4 * 7 + 2, 3])
    torch.testing.assert_close(found.values[:, 0].flatten(1), normed[:, :, 3] / 35, rtol=1e-5, atol=1e-7)


def test_tokens_folded_back_into_a_map_and_channels_last_blocks_keep_their_axes():
    """Swin and its kin: map → tokens → map, with as many channels as no axis else."""

    def end(m: Headed, x: Tensor) -> Tensor:
        row = x.flatten(2).transpose(1, 2)
        folded = torch.tanh(row).view(len(x), 5, 7, -1)
        return m.fc(m.act(folded).mean((1, 2)))

    module = headed(end)
    module.act = nn.Tanh()
    network = cl.wrap(module)
    layer = network.structure(pixels()).features
    assert (layer.name, layer.size, layer.channels, layer.channel_axis) == ("act", (5, 7), 6, -1)
    features = torch.tanh(torch.tanh(module.features(pixels()))).detach()
    found = cl.CAM()(network, pixels(), cl.ClassTarget(2)).values[:, 0]
    torch.testing.assert_close(found, torch.einsum("k,nkhw->nhw", module.fc.weight[2].detach(), features))


def test_a_head_is_not_put_on_tokens():
    from camlucida.networks import heads

    card = cl.Card(preprocessing=cl.Card().preprocessing)
    module = seeded(lambda: TokensOfAnySize())
    with pytest.raises(UnsupportedError, match="a head on the tokens of norm1"):
        heads.put(module, card, "gap")


class TokensOfAnySize(nn.Module):
    """A class token attends once to the patches of a picture of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm1 = nn.Conv2d(3, 4, 16, 16), nn.LayerNorm(4)
        self.token, self.fc = nn.Parameter(torch.randn(1, 1, 4)), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        y = self.norm1(torch.cat([self.token.expand(len(x), -1, -1), x], 1))
        return self.fc(torch.nn.functional.scaled_dot_product_attention(y, y, y)[:, 0])


# --- axes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_three_dimensions_are_the_same_formulas_over_all_axes_after_the_channels(axes):
    """3D and video: some formulas elsewhere are fixed to two axes."""
    module = by_axes(axes, in_place=True)
    x = torch.randn(2, 2, *(13, 10, 8)[:axes], generator=torch.Generator().manual_seed(0))
    network, target = cl.wrap(module), cl.ClassTarget([[4, 1], [0, 3]])
    features = module[1](module[0](x)).detach()
    weight, logits = module[4].weight.detach(), module(x).detach()
    cam = cl.CAM()(network, x, target)
    by_hand = torch.stack(
        [
            torch.einsum("ck,k...->c...", weight[row], f)
            for row, f in zip(([4, 1], [0, 3]), features, strict=True)
        ]
    )
    torch.testing.assert_close(cam.values, by_hand, rtol=1e-5, atol=1e-6)
    grad = cl.GradCAM(relu=False)(network, x, target)
    torch.testing.assert_close(grad.values, by_hand / by_hand[0, 0].numel(), rtol=1e-4, atol=1e-7)
    assert cam.in_view().shape == (2, 2, *x.shape[2:])
    occlusion = cl.Occlusion(patch=5, stride=3, fill=0.5, batch=7)(network, x, target)
    places = [range(0, side - 4, 3) for side in x.shape[2:]]
    assert occlusion.values.shape == (2, 2, *(len(p) for p in places))
    for where in itertools.product(*(range(len(p)) for p in places)):
        hidden = x.clone()
        hidden[(..., *(slice(3 * i, 3 * i + 5) for i in where))] = 0.5
        lost = logits - module(hidden).detach()
        for n, row in enumerate(([4, 1], [0, 3])):
            torch.testing.assert_close(
                occlusion.values[(n, slice(None), *where)], lost[n, row], rtol=1e-4, atol=1e-6
            )


# --- memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "end"),
    [(m, e) for e in ("map", "tokens") for m in WALKS if e == "map" or m not in ("cam", "full-grad")],
)
def test_five_hundred_calls_leave_no_hooks_and_no_tensors(method, end):
    """Memory grows over many images: hooks live for one call, and nothing keeps a graph. Sizes change, too."""
    module = gap() if end == "map" else tokens("class token")
    network = cl.wrap(module)
    explain = METHODS[method]
    if method == "occlusion":
        explain = cl.Occlusion(patch=20, stride=8)
    sizes = [(20, 28)] if end == "tokens" else [(20, 28), (24, 20)]

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(o), Tensor) for o in gc.get_objects())

    def calls(count: int) -> None:
        for i in range(count):
            explain(network, pixels(1, *sizes[i % len(sizes)]))

    with unchanged(module):
        calls(4)
        before = tensors()
        calls(496 if end == "map" else 96)
        assert tensors() == before
    assert all(not m._forward_hooks and not m._backward_hooks for m in module.modules())
