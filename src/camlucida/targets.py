"""What is explained: one scalar per picture and target, apart from how it is explained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from camlucida.errors import NetworkError, TargetError
from camlucida.networks.network import logits_of


@dataclass(frozen=True)
class Output:
    """What a forward pass gave a target to look at: the module's own output and, for targets inside the
    network, the tensor of each layer they named."""

    raw: Any
    layers: dict[str, Tensor]

    @property
    def logits(self) -> Tensor:
        """`(N, C)`, at least float32: probabilities and margins of half precision are taken there."""
        logits = logits_of(self.raw)
        return logits if logits.dtype == torch.float64 else logits.float()

    def any_logits(self) -> Tensor | None:
        """The logits `(N, C)` float32 without a graph; None where the module gives none."""
        try:
            return self.logits.detach().float()
        except NetworkError:
            return None


@dataclass(frozen=True)
class Bound:
    """A target fixed on a batch of N pictures with K scalars each.

    `scores(output, rows) → (rows, K)` evaluates them on an output whose row i belongs to picture `rows[i]`
    (None: row i is picture i). `classes (N, K)` or None; `coefficients (N, K, C)` or None: the scalars as
    combinations of logits, where they are linear and more than one class each. `linear`: whether they are linear in the logits of `classes` at all.
    """

    scores: Callable[[Output, Tensor | None], Tensor]
    classes: Tensor | None
    words: str
    coefficients: Tensor | None = None
    linear: bool = True


class Target(Protocol):
    """`layers`: the layers inside the network whose tensors the target needs."""

    @property
    def layers(self) -> tuple[str, ...]: ...

    def bind(self, output: Output) -> Bound: ...


@dataclass(frozen=True)
class ClassTarget:
    """The logit of classes: one index for all pictures, `(N,)` one per picture, or `(N, K)` several each."""

    index: Any = None
    top_k: int | None = 1
    layers: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def predicted(cls) -> ClassTarget:
        """The most probable class of each picture."""
        return cls()

    @classmethod
    def top(cls, k: int) -> ClassTarget:
        """The k most probable classes of each picture, best first; ties go to the lower index."""
        return cls(None, k)

    @classmethod
    def all(cls) -> ClassTarget:
        """Every class."""
        return cls(None, None)

    def bind(self, output: Output) -> Bound:
        logits = output.logits
        classes = self.classes(logits)
        if self.index is not None:
            words = "logit of the given class"
        elif self.top_k is None:
            words = "logits of all classes"
        else:
            words = (
                "logit of the predicted class"
                if self.top_k == 1
                else f"logits of the top {self.top_k} classes"
            )
        return Bound(lambda out, rows: out.logits.gather(1, _rows(classes, rows)), classes, words)

    def classes(self, logits: Tensor) -> Tensor:
        """Class indices `(N, K)` for logits `(N, C)`. Raises TargetError for a length or an index that does
        not fit."""
        count, number = logits.shape
        if self.index is None:
            ranked = logits.detach().argsort(dim=1, descending=True, stable=True)
            if self.top_k is None:
                return torch.arange(number, device=logits.device).expand(count, number)
            if not 1 <= self.top_k <= number:
                raise TargetError(f"the top {self.top_k} classes", allowed=f"1 … {number}")
            return ranked[:, : self.top_k]
        return _indices(self.index, count, number, logits.device)


@dataclass(frozen=True)
class ProbabilityTarget:
    """The softmax probability of classes, chosen as in ClassTarget; `sigmoid=True`: each logit's own
    probability."""

    index: Any = None
    sigmoid: bool = False
    layers: ClassVar[tuple[str, ...]] = ()

    def bind(self, output: Output) -> Bound:
        classes = ClassTarget(self.index).classes(output.logits)

        def scores(out: Output, rows: Tensor | None) -> Tensor:
            probabilities = out.logits.sigmoid() if self.sigmoid else out.logits.softmax(1)
            return probabilities.gather(1, _rows(classes, rows))

        return Bound(scores, classes, "probability of the class", linear=False)


@dataclass(frozen=True)
class MarginTarget:
    """Logit of class `a` minus logit of class `b`; `b="runner-up"`: the best class other than a."""

    a: Any = None
    b: Any = "runner-up"
    layers: ClassVar[tuple[str, ...]] = ()

    def bind(self, output: Output) -> Bound:
        logits = output.logits.detach()
        first = ClassTarget(self.a).classes(logits)
        if isinstance(self.b, str):
            if self.b != "runner-up" or logits.shape[1] < 2:
                raise TargetError(
                    "MarginTarget(b=…)",
                    got=repr(self.b),
                    allowed="a class, or 'runner-up' with at least two classes",
                )
            second = torch.stack(
                [logits.scatter(1, c[:, None], -torch.inf).argmax(1) for c in first.T], dim=1
            )
        else:
            second = ClassTarget(self.b).classes(logits)
            if second.shape[1] not in (1, first.shape[1]):
                raise TargetError(
                    "MarginTarget(b=…)",
                    got=f"{second.shape[1]} classes a picture",
                    allowed=f"1 or {first.shape[1]}, as for a",
                )
            second = second.expand_as(first)
        ones = torch.nn.functional.one_hot
        coefficients = (ones(first, logits.shape[1]) - ones(second, logits.shape[1])).float()
        return Bound(
            lambda out, rows: (
                out.logits.gather(1, _rows(first, rows)) - out.logits.gather(1, _rows(second, rows))
            ),
            first,
            "logit of the class minus the other's",
            coefficients,
        )


@dataclass(frozen=True)
class BinaryTarget:
    """A network of one logit: evidence for (`positive`) or against the positive class."""

    positive: bool = True
    layers: ClassVar[tuple[str, ...]] = ()

    def bind(self, output: Output) -> Bound:
        words = f"evidence {'for' if self.positive else 'against'} the positive class"
        return _signed_output(output, self.positive, words)


@dataclass(frozen=True)
class RegressionTarget:
    """A network of one number: what pushes it up, or down."""

    up: bool = True
    layers: ClassVar[tuple[str, ...]] = ()

    def bind(self, output: Output) -> Bound:
        return _signed_output(output, self.up, f"what {'raises' if self.up else 'lowers'} the output")


@dataclass(frozen=True)
class UnitTarget:
    """One channel of a layer: its strongest activation, the sum over cells, or the activation at a cell (row,
    column). The position of the maximum is fixed on the intact picture."""

    layer: str
    channel: int
    at: Literal["max", "sum"] | tuple[int, ...] = "max"

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.layer,)

    def bind(self, output: Output) -> Bound:
        maps = output.layers[self.layer]
        if not 0 <= self.channel < maps.shape[1]:
            raise TargetError(
                f"channel {self.channel} of layer {self.layer}", allowed=f"0 … {maps.shape[1] - 1}"
            )
        cells, flat = tuple(maps.shape[2:]), maps[:, self.channel].detach().flatten(1)
        if self.at == "max":
            where = flat.argmax(1)
        elif self.at == "sum":
            where = None
        else:
            if (
                not isinstance(self.at, (tuple, list))
                or len(self.at) != len(cells)
                or not all(0 <= a < c for a, c in zip(self.at, cells, strict=True))
            ):
                raise TargetError(
                    "UnitTarget(at=…)", got=repr(self.at), allowed=f"'max', 'sum' or a cell inside {cells}"
                )
            where = torch.full((len(flat),), int(np.ravel_multi_index(self.at, cells)), device=flat.device)

        def scores(out: Output, rows: Tensor | None) -> Tensor:
            values = out.layers[self.layer][:, self.channel].flatten(1)
            return (
                values.sum(1, keepdim=True)
                if where is None
                else values.gather(1, _rows(where[:, None], rows))
            )

        return Bound(scores, None, f"channel {self.channel} of {self.layer} ({self.at})")


@dataclass(frozen=True)
class RegionTarget:
    """The mean activation of a layer over the cells of a mask `(rows, columns)`, over all channels or one."""

    layer: str
    mask: Any
    channel: int | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.layer,)

    def bind(self, output: Output) -> Bound:
        maps = output.layers[self.layer]
        mask = torch.as_tensor(np.asarray(self.mask)).to(maps.device).bool()
        if tuple(mask.shape) != tuple(maps.shape[2:]) or not mask.any():
            raise TargetError(
                f"the mask for layer {self.layer}",
                got=f"{tuple(mask.shape)} with {int(mask.sum())} cells set",
                allowed=f"{tuple(maps.shape[2:])} with at least one",
            )

        def scores(out: Output, rows: Tensor | None) -> Tensor:
            values = out.layers[self.layer]
            values = values if self.channel is None else values[:, self.channel : self.channel + 1]
            return values[:, :, mask].mean((1, 2))[:, None]

        return Bound(scores, None, f"mean of {self.layer} over a region")


@dataclass(frozen=True)
class CallableTarget:
    """Any function of the module's output that gives one number per picture, `(N,)`."""

    function: Callable[[Any], Tensor]
    name: str = "a function of the output"
    layers: ClassVar[tuple[str, ...]] = ()

    def bind(self, output: Output) -> Bound:
        def scores(out: Output, rows: Tensor | None) -> Tensor:
            value = self.function(out.raw)
            logits = out.raw if isinstance(out.raw, Tensor) else out.any_logits()
            count = len(rows) if rows is not None else None if logits is None else len(logits)
            if (
                not isinstance(value, Tensor)
                or value.ndim != 1
                or (count is not None and len(value) != count)
            ):
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise TargetError(
                    f"the target {self.name!r} must be one scalar per picture",
                    got=got,
                    allowed=f"({count or 'N'},)",
                )
            return value[:, None]

        scores(output, None)
        return Bound(scores, None, self.name)


def _rows(per_picture: Tensor, rows: Tensor | None) -> Tensor:
    return per_picture if rows is None else per_picture[rows]


def _signed_output(output: Output, up: bool, words: str) -> Bound:
    logits, sign = output.logits, 1.0 if up else -1.0
    if logits.shape[1] != 1:
        raise TargetError(
            words, got=f"{logits.shape[1]} outputs", allowed="a network of one output", do="use ClassTarget"
        )
    zero = torch.zeros(len(logits), 1, dtype=torch.int64, device=logits.device)
    return Bound(
        lambda out, rows: sign * out.logits,
        zero,
        words,
        torch.full((len(logits), 1, 1), sign, device=logits.device),
    )


def _indices(given: Any, count: int, number: int, device: torch.device) -> Tensor:
    try:
        index = torch.as_tensor(np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given))
    except (ValueError, TypeError) as error:
        raise TargetError(
            "class indices", got=repr(given), allowed="an int, (N,) or (N, K), all rows equally long"
        ) from error
    if index.dtype.is_floating_point or index.dtype == torch.bool or index.numel() == 0:
        raise TargetError("class indices", got=f"{given!r}", allowed="whole numbers")
    if index.ndim == 0:
        index = index.expand(count, 1)
    elif index.ndim in (1, 2) and len(index) == count:
        index = index[:, None] if index.ndim == 1 else index
    else:
        raise TargetError(
            f"class indices for {count} pictures", got=f"{_shape(index)} of them",
            allowed=f"one for all, ({count},) one per picture, or ({count}, K)",
        )  # fmt: skip
    if int(index.min()) < 0 or int(index.max()) >= number:
        wrong = index[(index < 0) | (index >= number)].flatten()[0].item()
        raise TargetError(f"class {wrong}", allowed=f"0 … {number - 1}")
    return index.to(device=device, dtype=torch.int64)


def _shape(index: Tensor) -> Sequence[int] | int:
    return len(index) if index.ndim == 1 else tuple(index.shape)
