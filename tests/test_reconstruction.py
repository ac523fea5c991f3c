"""The value Reconstruction, and the parts of taps that work on the way back."""
# mypy: disable-error-code="union-attr,index,operator,arg-type"

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import camlucida as cl
from camlucida import taps
from camlucida.errors import UsageError
from fingerprints import fingerprint
from small_networks import gap, pixels


def test_frames_of_a_picture():
    values = torch.zeros(1, 3, 4, 6)
    values[0, :, 1, 2], values[0, :, 3, 5] = 2.0, -1.0
    view = cl.View.whole(cl.Size(8, 12), cl.Size(4, 6))
    one = cl.Reconstruction(values, (view,), "deconvnet", "a unit", windows=(((1, 3), (2, 4)),))
    shown = np.asarray(one.picture())
    assert shown.shape == (4, 6, 3)
    assert [shown[1, 2, 0], shown[0, 0, 0], shown[3, 5, 0]] == [255, 128, 64]
    window = np.asarray(one.picture(frame="window"))
    assert window[:, :, 0].tolist() == [[255, 128], [128, 128]]
    source = np.asarray(one.picture(frame="source"))
    assert source.shape == (8, 12, 3)
    wanted = F.interpolate(values, (8, 12), mode="bilinear")[0]
    torch.testing.assert_close(one.in_source()[0], wanted)
    assert one.picture(frame="source", limit=6).size == (6, 4)
    with pytest.raises(UsageError, match="view | source | window"):
        one.picture(frame="crop")


def test_status_and_words():
    values = torch.zeros(3, 1, 4, 6)
    values[1, 0, 0, 0] = float("nan")
    values[2, 0, 0, 0] = -1
    one = cl.Reconstruction(values, (None,) * 3, "deconvnet", "unit 3", "conv5", seed=4)
    assert one.status == ("flat", "non-finite", "ok")
    assert "deconvnet at conv5" in repr(one)
    assert "flat, non-finite, ok" in repr(one)
    assert "seed 4" in repr(one)


def test_rectified_counts_relus_and_leaves_the_graph_as_it_was():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    y = (
        F.relu(F.relu(x @ weight) @ weight - 1).clamp(max=9) @ weight + F.leaky_relu(x) + x.clamp(min=-1)
    ).sum()
    (plain,) = torch.autograd.grad(y, x, retain_graph=True)
    with taps.rectified(y) as relus:
        (guided,) = torch.autograd.grad(y, x, retain_graph=True)
    (again,) = torch.autograd.grad(y, x)
    assert relus == 2
    assert torch.equal(plain, again)
    assert not torch.allclose(plain, guided)


def test_what_others_leave_on_a_module_goes():
    module = gap()
    mine = module.features.register_forward_hook(lambda m, i, o: None)
    before = fingerprint(module)

    def others() -> None:
        module.features[0].register_forward_hook(lambda m, i, o: None)
        module.features.register_full_backward_hook(lambda m, i, o: None)
        module.fc.register_forward_pre_hook(lambda m, i: None)
        module.fc.__dict__["left"] = pixels()
        raise FloatingPointError

    with pytest.raises(FloatingPointError), taps.lent(module):
        others()
    assert fingerprint(module) == before
    mine.remove()


def test_an_operation_keeps_the_lists_it_was_given():
    """A dense block goes on filling the list that it has joined before."""

    class Dense(nn.Module):
        def forward(self, x):
            some = [x, x + 1]
            y = torch.cat(some, 1)
            some.append(y)
            return torch.cat(some, 1).mean((2, 3))

    module = Dense()
    with taps.borrowed(module):
        trace = taps.trace(
            module, module, pixels(), lambda name, args, kwargs: name if name == "cat" else None
        )
    joins = [o for o in trace.operations if o.name == "cat"]
    assert [len(o.args[0]) for o in joins] == [2, 3]
    assert [o.kept for o in joins] == ["cat", "cat"]
    assert [len(o.inputs) for o in joins] == [2, 3]
