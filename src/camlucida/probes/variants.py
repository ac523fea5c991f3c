"""Variants of a network, each trained anew, side by side on the same pictures (ZF paper, section 5.1: architecture ablation)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from camlucida.errors import UsageError
from camlucida.evaluate.classify import CentreCrop, classify
from camlucida.images.datasets import DataSet, Example
from camlucida.metrics import paired_interval, ranks, wilson_interval
from camlucida.networks import catalogue
from camlucida.networks.network import Network
from camlucida.train import recipe as recipes
from camlucida.train.variants import change

TOP = 5
Interval = tuple[float, float]


@dataclass(frozen=True)
class Judged:
    """What a network says of labelled pictures, in one order for all: the place of the true class, 1 the first, `(N,)`; 0
    where a picture could not be read."""

    ranks: NDArray[np.int64]

    def error(self, top: int) -> float:
        """Share of the pictures whose class is not among the `top`."""
        return float((self.ranks > top).sum() / max((self.ranks > 0).sum(), 1))

    def interval(self, top: int) -> Interval:
        """95 %, Wilson's."""
        return wilson_interval((self.ranks > top).sum(), int((self.ranks > 0).sum()))

    def more_errors(self, than: Judged) -> tuple[float, Interval]:
        """By how much the top-1 error is higher than another network's on the same pictures, with its 95 % interval."""
        both = (self.ranks > 0) & (than.ranks > 0)
        wrong, other = self.ranks[both] > 1, than.ranks[both] > 1
        worse, better, count = (wrong & ~other).sum(), (~wrong & other).sum(), int(both.sum())
        low, high = paired_interval(better, worse, count)
        return float((worse - better) / max(count, 1)), (float(low), float(high))


@dataclass(frozen=True)
class Variant:
    """A trained run. `change`: what its recipe's network leaves out or widens, in words, empty for none; `removed`: the
    layers left out. `validation`, `training`: of pictures it was not, and was, trained on, where they were given."""

    name: str
    change: str
    removed: frozenset[int]
    parameters: int
    seed: int
    epochs: int
    network: Network
    validation: Judged | None = None
    training: Judged | None = None


def variant(
    run: str | Path,
    validation: DataSet | None = None,
    training: DataSet | None = None,
    *,
    device: str = "auto",
    batch: int = 64,
    workers: int = 2,
    rejected: dict[str, str] | None = None,
    done: Callable[[int], None] = lambda pictures: None,
) -> Variant:
    """Reads a run's folder, as `camlucida train` writes it, and judges its network by the card's centre crop. Raises
    UsageError for a folder that holds no finished run."""
    folder = Path(run)
    for name in ("recipe.toml", "network.safetensors"):
        if not (folder / name).is_file():
            raise UsageError(
                f"run {folder}", got=f"no {name} in it", allowed="folders of finished runs of camlucida train"
            )
    recipe = recipes.load(folder / "recipe.toml")
    net = catalogue.load(str(folder / "network.safetensors"), device=device)

    def judged(data: DataSet | None) -> Judged | None:
        if data is None:
            return None
        examples = data.relabelled(net.card.labels).examples
        return Judged(_ranks(net, examples, batch, workers, {} if rejected is None else rejected, done))

    return Variant(
        recipe.name, change(recipe.arguments), frozenset(recipe.arguments.get("remove", ())),
        sum(p.numel() for p in net.module.parameters()), recipe.seed, recipe.epochs, net, judged(validation), judged(training),
    )  # fmt: skip


def _ranks(
    net: Network, examples: Sequence[Example], batch: int, workers: int, rejected: dict[str, str],
    done: Callable[[int], None],
) -> NDArray[np.int64]:  # fmt: skip
    found = np.zeros(len(examples), np.int64)
    stream = classify(net, CentreCrop(), [one.source for one in examples], batch=batch, workers=workers)
    for i, one in enumerate(stream):
        if one.probabilities is None:
            rejected[one.path] = one.problem
        else:
            found[i] = ranks(one.probabilities[None], np.array([examples[i].label]))[0]
        done(1)
    return found


@dataclass(frozen=True)
class Depth:
    """Whether layers cost more together than any of them do: the `whole` variant, without all of them, and the `worst` of
    those without some; each with how much its top-1 error is above the `base`'s, and `more`: the whole's above the worst's."""

    base: Variant
    whole: Variant
    worst: Variant
    cost: tuple[float, Interval]
    worst_cost: tuple[float, Interval]
    more: tuple[float, Interval]


def depth(variants: Sequence[Variant]) -> Depth | None:
    """The claim "depth matters more than any one layer" in figures; None where no base, no variant without several layers
    and one without some of these were judged on the same pictures."""
    judged = [one for one in variants if one.validation is not None]
    base = next((one for one in judged if not one.change), None)
    whole = max(judged, key=lambda one: len(one.removed), default=None)
    parts = [one for one in judged if whole is not None and one.removed and one.removed < whole.removed]
    if base is None or whole is None or not parts:
        return None

    def cost(one: Variant, than: Variant) -> tuple[float, Interval]:
        assert one.validation is not None
        assert than.validation is not None
        return one.validation.more_errors(than.validation)

    worst = max(parts, key=lambda one: cost(one, base)[0])
    return Depth(base, whole, worst, cost(whole, base), cost(worst, base), cost(whole, worst))
