"""Every spatial layer of a network on one picture: how large, how far it sees, whether the class depends on it, and what
it shows."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from camlucida import render, taps
from camlucida.networks.network import Network, logits_of
from camlucida.networks.structure import Layer
from camlucida.values import Batch

CELLS = 64  # a thumbnail has at most so many cells a side


@dataclass(frozen=True)
class Surveyed:
    """A layer on one picture. `gradient`: L2 norm of ∂logit/∂layer over all its values, 0 where none arrives;
    `default_of`: the methods that look here unless told otherwise; `activation`: mean over channels of |A| `(*cells)`;
    `grad_cam`: ReLU(Σ_k mean(∂logit/∂A^k) A^k) `(*cells)`."""

    layer: Layer
    kind: str
    gradient: float
    default_of: tuple[str, ...]
    activation: NDArray[np.float32]
    grad_cam: NDArray[np.float32]

    def row(self) -> dict[str, Any]:
        """The layer as plain values."""
        one = self.layer
        return {
            "name": one.name, "kind": self.kind, "channels": one.channels, "size": list(one.size), "stride": _list(one.stride),
            "receptive_field": _list(one.receptive_field), "offset": _list(one.offset), "gradient": self.gradient,
            "reached": self.gradient > 0, "default_of": list(self.default_of),
        }  # fmt: skip


def survey(net: Network, batch: Batch | Tensor) -> tuple[tuple[Surveyed, ...], int]:
    """All spatial layers in the order they run, from one run on one picture `(1, C, *spatial)`, and the class whose logit
    was differentiated: the predicted one."""
    pixels = Batch.of(batch).pixels[:1]
    found = net.structure(pixels)
    default = net.find_layer(None, pixels)
    layers = list(found.layers) + [default] * (default.point not in {one.point for one in found.layers})
    modules = dict(net.module.named_modules())
    with taps.borrowed(net.module), torch.enable_grad():
        given = pixels.detach().clone().requires_grad_()
        run = net.run(given, [one.point for one in layers])
        logits = logits_of(run.output)
        top = int(logits[0].argmax())
        live = [one for one in layers if run.tapped[one.point].requires_grad]
        gradients: dict[Any, Tensor | None] = {}
        if live and logits.requires_grad:
            wanted = [run.tapped[one.point] for one in live]
            all_of_them = torch.autograd.grad(logits[0, top], wanted, allow_unused=True)
            gradients = dict(zip((one.point for one in live), all_of_them, strict=True))
    surveyed = []
    for one in layers:
        gradient = gradients.get(one.point) if one in live else _gradient(net, pixels, one, top)
        values = run.tapped[one.point].detach()
        slope = torch.zeros_like(values) if gradient is None else gradient
        values, slope = (one.cells(t).float()[0] for t in (values, slope))
        weight = slope.flatten(1).mean(1).view(-1, *(1,) * (values.ndim - 1))
        is_default = one.point == default.point
        methods = ("CAM", "Grad-CAM") if found.head is not None and net.layer is None else ("Grad-CAM",)
        surveyed.append(
            Surveyed(
                one,
                type(modules[one.point.name]).__name__ if one.point.of == "module" else "function",
                float(slope.norm()),
                methods if is_default else (),
                values.abs().mean(0).cpu().numpy(),
                (weight * values).sum(0).relu().cpu().numpy(),
            )
        )
    return tuple(surveyed), top


def _gradient(net: Network, pixels: Tensor, layer: Layer, top: int) -> Tensor | None:
    """The gradient at a layer that the picture's own graph does not reach: gradients are switched off inside."""
    with taps.borrowed(net.module):
        run = net.run(pixels, [layer.point], gradient_at=layer.point)
        logits = logits_of(run.output)
        if not logits.requires_grad:
            return None
        return torch.autograd.grad(logits[0, top], run.tapped[layer.point], allow_unused=True)[0]


def _list(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else list(values)


def in_words(values: Sequence[float] | None, short: bool = True) -> str:
    """`7 × 9`; if `short`, one number where all axes agree; – where it is not known."""
    if values is None:
        return "–"
    return f"{values[0]:g}" if short and len(set(values)) == 1 else " × ".join(f"{v:g}" for v in values)


STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; }
.layers { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1.25rem; padding: 0; list-style: none; }
.layers li { border: 1px solid #8886; border-radius: 6px; padding: .75rem; }
.layers li.default { border: 2px solid #c33; }
h2 { font: 600 14px ui-monospace, monospace; margin: 0 0 .3rem; overflow-wrap: anywhere; }
p { margin: .3rem 0; } .pair { display: flex; gap: .5rem; align-items: flex-start; }
figure { margin: 0; flex: 1; min-width: 0; } img { width: 100%; display: block; image-rendering: pixelated; background: #8882; }
figcaption { font-size: 12px; } .picture img { width: auto; max-width: 20rem; image-rendering: auto; }
"""


def page(
    surveyed: Sequence[Surveyed], picture: Image.Image, class_words: str, network: str, command: str
) -> str:
    """One self-contained HTML page: the picture, and each layer with its numbers and two thumbnails."""
    small = picture.convert("RGB").copy()
    small.thumbnail((480, 480))
    items = "".join(_item(one) for one in surveyed)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Layers of {html.escape(network)} · camlucida</title><style>{STYLE}</style></head><body>
<h1>The layers of {html.escape(network)} on one picture</h1>
<figure class="picture"><img alt="the picture" src="{_data(render.png(small))}">
<figcaption>Explained: the logit of {html.escape(class_words)}, the best class.</figcaption></figure>
<p>Left: mean over channels of |activation|. Right: Grad-CAM at that layer. Each is scaled by itself, from its lowest to its
highest value; the numbers below are that raw range. A thumbnail has the layer's own cells, at most {CELLS} a side. Framed in red: the layer
that is looked at unless another is named.</p>
<p><code>{html.escape(command)}</code></p>
<ol class="layers">{items}</ol></body></html>
"""


def _item(one: Surveyed) -> str:
    layer = one.layer
    facts = [
        f"{html.escape(one.kind)} · {layer.channels} channels · {in_words(layer.size, short=False)}",
        f"stride {in_words(layer.stride)} · sees {in_words(layer.receptive_field)} pixels · first cell at {in_words(layer.offset)}",
        f"gradient {one.gradient:.3g}" if one.gradient else "no gradient arrives",
    ]
    if one.default_of:
        facts.append(f"<b>default of {' and '.join(one.default_of)}</b>")
    pictures = "".join(
        _figure(values, words) for values, words in ((one.activation, "|activation|"), (one.grad_cam, "Grad-CAM"))
    )  # fmt: skip
    return (
        f'<li class="{"default" if one.default_of else "plain"}"><h2>{html.escape(layer.name)}</h2>'
        f'<div class="pair">{pictures}</div>{"".join(f"<p>{fact}</p>" for fact in facts)}</li>'
    )


def _figure(values: NDArray[np.float32], words: str) -> str:
    if values.ndim != 2:
        return f"<figure><figcaption>{words}: {values.ndim} axes, not drawn</figcaption></figure>"
    finite = values[np.isfinite(values)]
    span = f"{finite.min():.3g} … {finite.max():.3g}" if finite.size else "no finite value"
    shown = Image.fromarray(np.ascontiguousarray(values, np.float32))
    longest = max(shown.size)
    if longest > CELLS:
        shown = shown.resize([max(1, round(s * CELLS / longest)) for s in shown.size], Image.Resampling.BOX)
    drawn = render.png(render.colourise(render.scaled(np.asarray(shown))))
    return f'<figure><img alt="{words}" src="{_data(drawn)}"><figcaption>{words} {span}</figcaption></figure>'


def _data(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")
