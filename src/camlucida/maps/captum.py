"""Captum's attributions as heat maps: boxed, merged and scored like ours. `pip install 'camlucida[captum]'`."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from camlucida import taps
from camlucida.errors import LayerError, UnsupportedError, UsageError, nearest
from camlucida.maps.smooth_grad import on_clean
from camlucida.networks.network import Network
from camlucida.networks.structure import Layer
from camlucida.targets import Bound, ClassTarget, Output, Target
from camlucida.values import Batch, Grid, HeatMaps


@dataclass(frozen=True)
class Captum:
    """One of captum.attr's attributions of the target's score, to the pixels or to a layer.

    `attribution`: its class name. `arguments`: by name, what its constructor and its `attribute` take (`n_steps`,
    `baselines`, `sliding_window_shapes`, …). `layer`: for those that look at one (LayerGradCam, GuidedGradCam); None:
    Grad-CAM's. `channels`: their `sum`, with its sign, or the `max` of their magnitudes. `seed`: for those that draw.
    Values are per pixel of the view, or per cell of the layer. Raises UnsupportedError where captum is not
    installed or cannot take the network, UsageError for a name it does not have.
    """

    attribution: str = "IntegratedGradients"
    arguments: Mapping[str, Any] = field(default_factory=dict, hash=False)
    layer: str | nn.Module | None = None
    channels: Literal["sum", "max"] = "sum"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.channels not in ("sum", "max"):
            raise UsageError("Captum.channels", got=repr(self.channels), allowed="'sum' or 'max'")

    def __call__(self, network: Network, batch: Batch | Tensor, target: Target | None = None) -> HeatMaps:
        batch = Batch.of(batch)
        attr = _captum()
        kind = self._kind(attr)
        needs = "layer" in inspect.signature(kind.__init__).parameters
        if self.layer is not None and not needs:
            raise UsageError(f"Captum(layer=…) with {self.attribution}", got="an attribution to the pixels")
        layer = network.find_layer(self.layer, batch.pixels) if needs else None
        to_layer = layer if issubclass(kind, attr.LayerAttribution) else None
        if layer is not None and (layer.prefix is not None or layer.channel_axis == -1):
            raise UnsupportedError(
                f"captum's {self.attribution} at {layer.name}", got="tokens, or channels last"
            )
        fixed, scores, logits = on_clean(network, batch, target or ClassTarget.predicted())
        gradients = not issubclass(kind, attr.PerturbationAttribution)
        maps = []
        with taps.borrowed(network.module), taps.lent(network.module):
            for k in range(scores.shape[1]):
                scored = _Scored(network, fixed.bound, fixed.layers, k, gradients, batch.pixels)
                with _seeded(self.seed):
                    found = self._attribute(kind, scored, layer, batch.pixels)
                maps.append(self._map(found, to_layer, batch.pixels).to(scores.device))
        view = tuple(batch.pixels.shape[2:])
        ones = (1.0,) * len(view)
        grid = Grid(view, tuple(o / 2 for o in ones), ones, ones)
        if to_layer is not None:
            grid = to_layer.grid(view)
        return HeatMaps(
            torch.stack(maps, 1), fixed.bound.classes, scores, grid, batch.views,
            f"captum {self.attribution}", fixed.bound.words,
            None if layer is None else layer.name, self.seed, logits,
        )  # fmt: skip

    def _kind(self, attr: Any) -> Any:
        known = [
            name
            for name, thing in vars(attr).items()
            if inspect.isclass(thing) and issubclass(thing, attr.Attribution) and not inspect.isabstract(thing)
            and hasattr(thing, "attribute") and not name.endswith("Attribution")
            and thing not in (attr.LimeBase, attr.NoiseTunnel) and not issubclass(thing, attr.NeuronAttribution)
        ]  # fmt: skip
        if self.attribution not in known:
            raise UsageError(
                "Captum.attribution", got=repr(self.attribution), do=nearest(self.attribution, known)
            )
        return getattr(attr, self.attribution)

    def _attribute(self, kind: Any, scored: _Scored, layer: Layer | None, pixels: Tensor) -> Any:
        made = {n: v for n, v in self.arguments.items() if n in inspect.signature(kind.__init__).parameters}
        if layer is not None:
            if layer.point.of != "module":
                raise LayerError(
                    f"{self.attribution} at {layer.name}", allowed="the output of a module: layer=…"
                )
            made["layer"] = scored.network.module.get_submodule(layer.point.name)
        attribution = kind(scored, **made)
        takes = inspect.signature(attribution.attribute).parameters
        rest = {n: v for n, v in self.arguments.items() if n not in made}
        for name in rest:
            if name not in takes or name in ("inputs", "target", "additional_forward_args"):
                raise UsageError(f"argument of {self.attribution}", got=repr(name), do=nearest(name, takes))
        rows = torch.arange(len(pixels), device=pixels.device)
        given = pixels.detach().clone().requires_grad_(scored.gradients)
        try:
            return attribution.attribute(given, additional_forward_args=(rows,), **rest)
        except (AssertionError, NotImplementedError, TypeError, ValueError, RuntimeError) as error:
            if error is scored.raised:
                raise
            name = scored.network.card.name
            raise UnsupportedError(f"captum's {self.attribution} on {name}", got=error) from error

    def _map(self, found: Any, layer: Layer | None, pixels: Tensor) -> Tensor:
        while isinstance(found, tuple):
            found = found[0]
        if not isinstance(found, Tensor) or found.ndim != pixels.ndim or len(found) != len(pixels):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UnsupportedError(
                f"captum's {self.attribution}", got=got, allowed="one value per pixel or cell"
            )
        values = found.detach().float()
        if layer is not None and values.shape[1] != 1:
            values = layer.cells(values)
        return values.sum(1) if self.channels == "sum" else values.abs().amax(1)


class _Scored(nn.Module):
    """The network as captum wants a model: `(pixels, rows) → (N,)`, the k-th score of the pictures that the rows come
    from, which captum may repeat. `raised`: what went wrong in the network itself."""

    def __init__(
        self, network: Network, bound: Bound, layers: tuple[str, ...], k: int, gradients: bool, pixels: Tensor
    ) -> None:
        super().__init__()
        self.module, self.network, self.bound, self.k, self.gradients = (
            network.module,
            network,
            bound,
            k,
            gradients,
        )
        self.layers = {name: network.find_layer(name, pixels) for name in layers}
        self.raised: BaseException | None = None

    def forward(self, pixels: Tensor, rows: Tensor) -> Tensor:
        try:
            return self._score(pixels, rows)
        except BaseException as error:
            self.raised = error
            raise

    def _score(self, pixels: Tensor, rows: Tensor) -> Tensor:
        if self.gradients and not pixels.requires_grad:
            pixels = pixels.detach().requires_grad_()
        points = [one.point for one in self.layers.values()]
        with taps.watched(self.network.module, points, taps.PIXELS if self.gradients else None) as tapped:
            raw = self.network.forward(pixels)
        output = Output(raw, {n: one.cells(tapped[one.point]) for n, one in self.layers.items()})
        return self.bound.scores(output, rows).float()[:, self.k]


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Captum draws from torch's, NumPy's and Python's random streams; torch's is put back by `taps.borrowed`."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def _captum() -> Any:
    try:
        from captum import attr
    except ImportError as error:
        raise UnsupportedError(
            "the method captum", got="captum is not installed", do="pip install 'camlucida[captum]'"
        ) from error
    return attr
