"""`Network`: a module with its card; logits for pixels, and what the module is made of."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from camlucida import taps
from camlucida.errors import InputError, LayerError, NetworkError, nearest
from camlucida.images.read import read_picture
from camlucida.networks import structure
from camlucida.networks.cards import Card
from camlucida.networks.structure import Layer, Structure
from camlucida.taps import Point, Run
from camlucida.values import Batch, Prediction, Shown, Size

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
KEPT_SHAPES = 32  # structures of the latest input shapes
WHOLE = {
    "32-true": torch.float32,
    "64-true": torch.float64,
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
}
PRECISIONS = (*WHOLE, *AUTOCAST)


@dataclass(frozen=True, eq=False, repr=False)
class Network(Shown):
    """`net(pixels (N, C, *spatial)) → logits (N, C)`. `layer`: where Grad-CAM looks, instead of the layer
    found by itself; `precision`: the network's own, a surrounding autocast changes nothing."""

    module: nn.Module
    card: Card = field(default_factory=Card)
    layer: str | None = None
    precision: str = "32-true"
    _structures: dict = field(default_factory=dict, repr=False)
    _kept: dict = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise NetworkError("precision", got=repr(self.precision), do=nearest(self.precision, PRECISIONS))

    @property
    def device(self) -> torch.device:
        weights = chain(self.module.parameters(), self.module.buffers())
        return next((t.device for t in weights), torch.device("cpu"))

    def __repr__(self) -> str:
        weights = sum(p.numel() for p in self.module.parameters())
        return f"Network({self.card.name}: {type(self.module).__name__}, {weights:,} weights, {len(self.card.labels)} named classes, {self.precision} on {self.device})"

    def _facts(self) -> Iterable[tuple[str, object]]:
        yield "name", self.card.name
        weights = sum(p.numel() for p in self.module.parameters())
        yield (
            "module",
            f"{type(self.module).__name__}, {weights:,} weights, {self.precision} on {self.device}",
        )
        if self.layer:
            yield "Grad-CAM at", self.layer
        yield from self.card._about()

    def __call__(self, batch_or_pixels: Batch | Tensor) -> Tensor:
        """Logits `(N, C)` float32; the module comes back as it was."""
        with taps.borrowed(self.module):
            return logits_of(self.forward(Batch.of(batch_or_pixels).pixels)).float()

    def forward(self, pixels: Tensor) -> Any:
        """The module's own output for pixels, on its device and in its precision, in whatever mode it is."""
        moved = self.as_input(pixels)
        if moved is pixels:
            moved = pixels.clone()  # the module may work in place on what it is given
        mixed = AUTOCAST.get(self.precision)
        with torch.autocast(self.device.type, mixed) if mixed else nullcontext():
            return self.module(moved)

    def as_input(self, pixels: Tensor) -> Tensor:
        """Pixels on the module's device, in the type of its weights."""
        parameter = next(self.module.parameters(), None)
        dtype = parameter.dtype if parameter is not None and parameter.is_floating_point() else pixels.dtype
        return pixels.to(self.device, dtype)

    def predict(self, batch: Batch | Tensor, top: int = 5) -> Prediction:
        """The `top` classes of each picture with their labels."""
        batch = Batch.of(batch)
        logits = self(batch)
        probabilities = self.probabilities(logits)
        classes = logits.argsort(dim=1, descending=True, stable=True)[:, : min(top, logits.shape[1])]
        labels = tuple(tuple(self.card.label(c) for c in row) for row in classes.tolist())
        return Prediction(logits, probabilities, classes, labels, batch.views, self.card.activation)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits through the card's activation."""
        return {"softmax": lambda x: x.softmax(1), "sigmoid": torch.sigmoid, "none": lambda x: x}[
            self.card.activation
        ](logits)

    def preprocess(self, images: Any, *, view: str = "card") -> Batch:
        """Paths, PIL pictures, arrays or tensors (one, or several that give one shape) → Batch. `view`:
        `card` or `whole`."""
        if (
            isinstance(images, (str, Path, bytes, Image.Image))
            or not isinstance(images, Iterable)
            or getattr(images, "ndim", 4) < 4
        ):
            images = [images]
        shape = self.card.preprocessing
        pixels, views = [], []
        for image in images:
            picture = read_picture(image, shape.mean_colour)
            views.append(shape.view(Size(picture.height, picture.width), view))
            pixels.append(shape.pixels(picture, views[-1]))
        if len({p.shape for p in pixels}) != 1:
            got = sorted({tuple(p.shape[1:]) for p in pixels})
            raise InputError(
                "preprocess makes one batch of one shape",
                got=got or "no picture",
                do="preprocess pictures of other shapes apart",
            )
        return Batch(shape.normalise(torch.stack(pixels)).to(self.device), tuple(views), shape)

    def structure(self, pixels: Tensor) -> Structure:
        """Layers and head, from one run on the first picture; kept per shape while no weight changes."""
        self._forget_if_changed()
        shape = tuple(pixels.shape[1:])
        if shape not in self._structures:
            if len(self._structures) > KEPT_SHAPES:
                del self._structures[next(key for key in self._structures if key != "state")]
            with taps.borrowed(self.module):
                trace = taps.trace(self.module, self.forward, pixels[:1])
                self._structures[shape] = structure.read(trace, logits_of(trace.output))
        return self._structures[shape]

    def pooled_structure(self, pixels: Tensor) -> Structure:
        """`structure`; but where the head pools maps of every size, that of another picture size will do, and its
        layers' sizes are that picture's: a folder of photographs has many shapes."""
        self._forget_if_changed()
        for shape, known in self._structures.items():
            if shape == "state" or len(shape) != pixels.ndim - 1 or shape[0] != pixels.shape[1]:
                continue
            if known.head is not None and known.head.any_size:
                return known
        return self.structure(pixels)

    def _forget_if_changed(self) -> None:
        weights = [*self.module.parameters(), *self.module.buffers()]
        state = tuple((id(t), object() if t.is_inference() else t._version, t.data_ptr()) for t in weights)
        if self._structures.get("state") != state:
            self._structures.clear()
            self._kept.clear()
            self._structures["state"] = state

    def keep(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """`make()`, once per key while no weight changes: what is costly to find out about the module, such as its
        exported graph for one shape of input."""
        self._forget_if_changed()
        if key not in self._kept:
            if len(self._kept) >= KEPT_SHAPES:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = make()
        return self._kept[key]

    def layers(self, pixels: Tensor | None = None) -> tuple[Layer, ...]:
        """The spatial layers in the order they run, for `pixels` or a blank picture of the card's size."""
        return self.structure(self.blank() if pixels is None else pixels).layers

    def blank(self) -> Tensor:
        """A blank picture of the card's size, `(1, C, side, side)`."""
        shape = self.card.preprocessing
        side = shape.crop or shape.size
        return torch.zeros(1, len(shape.channels), side, side)

    def find_layer(self, layer: str | nn.Module | None, pixels: Tensor) -> Layer:
        """A layer by name (`name#2`: its second call) or module; None: the tensor before pooling, or the last
        spatial one.

        Raises LayerError for one that does not exist, has no cells, or runs several times without saying
        which.
        """
        found = self.structure(pixels)
        asked = layer if layer is not None else self.layer
        if asked is None:
            if found.features is None:
                raise LayerError("no spatial layer was found", do="name one: net.layers() lists what ran")
            return found.features
        name = asked if isinstance(asked, str) else None
        if name is None:
            name = next((n for n, m in self.module.named_modules() if m is asked), None)
            if name is None:
                raise LayerError(f"the given {type(asked).__name__} is not part of this network")
        if found.features is not None and name == found.features.name:
            return found.features
        matches = [one for one in found.layers if one.name == name]
        calls = [one.name for one in found.layers if one.point.name == name]
        if len(calls) > 1 and "#" not in name:
            raise LayerError(
                f"layer {name!r} runs {len(calls)} times", allowed=", ".join([f"{name}#1", *calls[1:]])
            )
        matches = matches or [one for one in found.layers if f"{one.point.name}#{one.point.call + 1}" == name]
        if matches:
            return matches[0]
        if name in dict(self.module.named_modules()):
            raise LayerError(
                f"layer {name!r} has no spatial extent or did not run",
                do=f"live: {', '.join([one.name for one in found.layers if one.reached][-5:])}",
            )
        raise LayerError(
            f"layer {name!r} does not exist", do=nearest(name, [one.name for one in found.layers])
        )

    def run(
        self,
        pixels: Tensor,
        points: Iterable[Point],
        gradient_at: Point | None = None,
        keep_graph: bool = False,
        instead: Mapping[Point, Callable[[Tensor], Tensor]] | None = None,
        trunk: bool = False,
        seen: Callable[[Point, Tensor], None] | None = None,
    ) -> Run:
        """One tapped forward pass; call inside `taps.borrowed(net.module)`. `trunk`: it ends at the last of the points;
        `seen`: is shown the tensors, which are then not kept."""
        return taps.run(
            self.module, self.forward, pixels, tuple(points), gradient_at, keep_graph, instead, trunk, seen
        )


def logits_of(output: Any) -> Tensor:
    """The logits in a module's output: a tensor `(N, C)`, `{"logits": …}` or `.logits`."""
    if isinstance(output, dict) and "logits" in output:
        output = output["logits"]
    elif not isinstance(output, Tensor) and hasattr(output, "logits"):
        output = output.logits
    if not isinstance(output, Tensor) or output.ndim != 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise NetworkError(
            "the module's output",
            got=got,
            allowed="logits (N, C), {'logits': …} or .logits",
            do="wrap the module in one that returns logits",
        )
    return output
