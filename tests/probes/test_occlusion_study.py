"""The occlusion study (section 11): all three values of every place against loops, on every way that it is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import camlucida as cl
from camlucida.errors import LayerError, NetworkError, TargetError, UnsupportedError, UsageError
from camlucida.probes import occlusion_study as study_module
from camlucida.probes.occlusion_study import peaks, study_occlusion
from fingerprints import fingerprint
from small_networks import EXACT, fully_connected, gap, headed, pixels, seeded, tokens


def written_out(module, inner, x, patch, stride, fill, label, unit):
    """Activity, probability and class of every place, one picture at a time."""
    height, width = x.shape[2:]
    rows, columns = (height - patch) // stride + 1, (width - patch) // stride + 1
    activity, probability, best = (np.zeros((rows, columns)) for _ in range(3))
    for i in range(rows):
        for j in range(columns):
            hidden = x.clone()
            for y in range(patch):
                for z in range(patch):
                    hidden[0, :, i * stride + y, j * stride + z] = fill
            with torch.no_grad():
                logits, maps = module(hidden)[0], inner(module, hidden)[0]
            activity[i, j] = sum(maps[unit].flatten().tolist())
            exps = [float(torch.exp(v - logits.max())) for v in logits]
            probability[i, j] = exps[label] / sum(exps)
            best[i, j] = max(range(len(logits)), key=lambda c: float(logits[c]))
    return activity, probability, best


@pytest.mark.parametrize("engine", ["plain", "incremental"])
@pytest.mark.parametrize(("patch", "stride", "fill"), [(7, 3, 0.0), (8, 5, -1.5), (20, 4, 2.0)])
def test_against_loops(engine, patch, stride, fill):
    module, x = fully_connected().double(), pixels(1).double()
    network = cl.wrap(module, layer="features.1")
    with torch.no_grad():
        unit = int(module.features[:2](x).sum((2, 3)).argmax())
        logits = module(x)[0]
    label = int(logits.argmin())
    found = study_occlusion(network, x, label, patch=patch, stride=stride, fill=fill, engine=engine)
    wanted = written_out(module, lambda m, z: m.features[:2](z), x, patch, stride, fill, label, unit)
    for mine, its in zip((found.activity, found.probability, found.best), wanted, strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5)
    assert (found.layer, found.unit, found.label) == ("features.1", unit, label)
    assert found.clean_probability == pytest.approx(float(logits.softmax(0)[label]))
    assert found.clean_best == int(logits.argmax())
    with torch.no_grad():
        assert found.clean_activity == pytest.approx(float(module.features[:2](x)[0, unit].sum()))
    np.testing.assert_allclose(found.drop, found.clean_probability - wanted[1], atol=1e-6)
    assert found.note.startswith("incremental" if engine == "incremental" else "the whole network")
    assert np.ptp(found.activity) > 1e-3 * found.clean_activity


NETWORKS = (
    "channels last",
    "functional relu before the pool",
    "in-place relu before the pool",
    "dict",
    "conv 1x1, pool",
)


@pytest.mark.parametrize("name", NETWORKS)
def test_one_pass_equals_full_inference(name):
    """On the layer that Grad-CAM looks at, also where no module but a function gives it."""
    network, x = cl.wrap(EXACT[name]()), pixels(1)
    fast, plain = (study_occlusion(network, x, patch=6, stride=4, engine=e) for e in ("incremental", "plain"))
    np.testing.assert_allclose(fast.activity, plain.activity, atol=1e-4 * np.abs(plain.activity).max())
    np.testing.assert_allclose(fast.probability, plain.probability, atol=1e-4)
    assert (fast.best == plain.best).mean() > 0.99
    assert np.ptp(plain.activity) > 0


def test_where_the_network_cannot_be_followed_it_is_run_whole_and_says_why():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = gap()

        def forward(self, x):
            return self.inner(x) * (2 if float(x.mean()) > 9 else 1)

    network, x = cl.wrap(seeded(Branching)), pixels(1)
    found = study_occlusion(network, x, layer="inner.features", patch=8, stride=6)
    plain = study_occlusion(network, x, layer="inner.features", patch=8, stride=6, engine="plain")
    assert found.note.startswith("the whole network at every place: torch.export cannot follow")
    np.testing.assert_array_equal(found.activity, plain.activity)
    with pytest.raises(UnsupportedError, match="cannot follow"):
        study_occlusion(network, x, layer="inner.features", patch=8, stride=6, engine="incremental")
    hooked = gap()
    hooked.fc.register_forward_hook(lambda *_: None)
    assert "has hooks" in study_occlusion(cl.wrap(hooked), x, patch=8, stride=6).note


def test_a_transformer_and_its_tokens():
    module, x = tokens("norm, mean"), pixels(1)
    network = cl.wrap(module, layer="block")
    found = study_occlusion(network, x, patch=8, stride=6)
    with torch.no_grad():
        seen = []
        handle = module.block.register_forward_hook(lambda m, i, o: seen.append(o))
        module(x)
        handle.remove()
    sums = seen[0][0, 1:].sum(0)  # the class token is no cell
    assert found.unit == int(sums.argmax())
    assert found.clean_activity == pytest.approx(float(sums.max()), rel=1e-5)


def test_pixels_get_the_mean_of_the_squares_that_cover_them():
    network, x = cl.wrap(gap()), pixels(1)
    found = study_occlusion(network, x, patch=9, stride=6, engine="plain")
    over = found.over_pixels(found.drop)
    assert over.shape == (20, 28)
    for y, z in [(0, 0), (7, 8), (8, 13), (14, 20), (19, 27), (5, 26)]:
        covering = [
            found.drop[i, j] for i in range(found.drop.shape[0]) for j in range(found.drop.shape[1])
            if i * 6 <= y < i * 6 + 9 and j * 6 <= z < j * 6 + 9
        ]  # fmt: skip
        if covering:
            assert over[y, z] == pytest.approx(np.mean(covering), abs=1e-6)
        else:
            assert np.isnan(over[y, z])
    assert np.isnan(over[19, 27])
    assert not np.isnan(over[0, 0])


def test_a_class_that_reads_one_corner():
    """Its probability falls where the corner is hidden and nowhere else, rises where its rival's is; the map that reads
    the right half is silenced there alone."""

    class Corners(nn.Module):
        def __init__(self):
            super().__init__()
            self.maps = nn.Conv2d(1, 2, 1, bias=False)
            self.maps.weight.data = torch.tensor([1.0, 0.2]).view(2, 1, 1, 1)

        def forward(self, x):
            made = self.maps(x)
            return torch.stack([made[:, 0, :8, :8].mean((1, 2)), made[:, 0, 12:, 20:].mean((1, 2))], 1)

    x = torch.zeros(1, 1, 20, 28)
    x[..., :8, :8], x[..., 12:, 20:] = 3.0, 2.0
    found = study_occlusion(cl.wrap(Corners().eval()), x, 0, layer="maps", patch=8, stride=4)
    clean = 1 / (1 + np.exp(-1))
    assert found.drop[0, 0] == pytest.approx(clean - 1 / (1 + np.exp(2)), abs=1e-6)
    assert found.drop[3, 5] == pytest.approx(clean - 1 / (1 + np.exp(-3)), abs=1e-6)  # below zero
    assert (found.best[0, 0], found.best[3, 5], found.clean_best) == (1, 0, 0)
    assert (found.drop[0, 2:] == 0).all()
    assert found.clean_activity == 3 * 64 + 2 * 64
    assert (found.activity[0, 0], found.activity[3, 5], found.activity[0, 5]) == (128, 192, 320)
    hides = found.hides((4.0, 4.0))
    assert hides.tolist() == [[i < 2 and j < 2 for j in range(6)] for i in range(4)]
    clears = found.clears(cl.Box(0, 0, 8, 8))
    assert clears.tolist() == [[i >= 2 or j >= 2 for j in range(6)] for i in range(4)]
    assert found.hides((8.0, 0.0)).tolist()[0] == [
        False,
        True,
        True,
        False,
        False,
        False,
    ]  # half-open squares


def test_defaults_follow_the_view():
    assert study_module.sizes((224, 300), None, None) == (32, 8)
    assert study_module.sizes((300, 96), None, None) == (14, 4)
    assert study_module.sizes((224, 224), 16, None) == (16, 4)
    assert study_module.sizes((224, 224), None, 4) == (32, 4)
    assert study_occlusion(cl.wrap(gap()), pixels(1)).grid.extent == (3.0, 3.0)


def test_the_user_s_module_comes_back_and_the_graph_is_kept(monkeypatch):
    module = gap().train()
    network, x = cl.wrap(module), pixels(1)
    before, kept = fingerprint(module), x.clone()
    made = []
    monkeypatch.setattr(study_module, "WithLayer", lambda *given: made.append(1) or WITH_LAYER(*given))
    for _ in range(2):
        study_occlusion(network, x, patch=8, stride=6, fill=3.0)
    assert len(made) == 1
    assert fingerprint(module) == before
    assert torch.equal(x, kept)
    with torch.no_grad():
        module.fc.weight.mul_(2.0)
    again = study_occlusion(network, x, patch=8, stride=6, fill=3.0)
    plain = study_occlusion(network, x, patch=8, stride=6, fill=3.0, engine="plain")
    np.testing.assert_allclose(again.probability, plain.probability, atol=1e-5)
    assert len(made) == 2  # new weights, a new graph


WITH_LAYER = study_module.WithLayer


def test_peaks_are_the_maxima_of_the_maps():
    module, x = gap(), pixels(3)
    with torch.no_grad():
        wanted = module.features(x).amax((2, 3))
    torch.testing.assert_close(peaks(cl.wrap(module), x, "features"), wanted)


def test_numbers_that_are_no_probabilities():
    module, x = gap(), pixels(1)
    network = cl.wrap(module, card=cl.Card("plain", activation="none"))
    found = study_occlusion(network, x, 3, patch=8, stride=6)
    assert found.clean_probability == pytest.approx(float(module(x)[0, 3].detach()), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"patch": 21}, UsageError, "patch 21, stride 5 for a view of 20 × 28 pixels; allowed: patch 1 … 20"),
        ({"patch": 0, "stride": 1}, UsageError, "patch 1 … 20"),
        ({"patch": 8, "stride": 0}, UsageError, "stride ≥ 1"),
        ({"layer": "nowhere"}, LayerError, "'nowhere' does not exist"),
        ({"layer": "fc"}, LayerError, "no spatial extent"),
        ({"label": 9}, TargetError, "got 9; allowed: 0 … 4"),
        ({"engine": "best"}, UsageError, "auto | incremental | plain"),
    ],
)
def test_what_does_not_fit(change, kind, says):
    with pytest.raises(kind, match=says.replace("|", r"\|")):
        study_occlusion(cl.wrap(gap()), pixels(1), **change)
    broken = gap()
    broken.fc.bias.data[0] = float("nan")
    with pytest.raises(NetworkError, match="not finite"):
        study_occlusion(cl.wrap(broken), pixels(1))
    with pytest.raises(UsageError, match=r"\(1, C, H, W\)"):
        study_occlusion(cl.wrap(headed(lambda m, x: m.fc(x.mean((2, 3))))), pixels(2))
