"""The training loop. It yields events; logging, showing and stopping are their listeners' business."""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camlucida.errors import CamlucidaError, UsageError
from camlucida.images.augment import mix
from camlucida.images.datasets import DataSet
from camlucida.images.views import Preprocessing
from camlucida.networks import cards, catalogue
from camlucida.networks.cards import Card
from camlucida.networks.network import logits_of
from camlucida.train import checkpoint, distribute, feed, losses, optimise
from camlucida.train.initialise import initialise, start
from camlucida.train.recipe import Recipe

SHOWN = 20  # steps from one line of the log to the next


@dataclass(frozen=True)
class Event:
    """`kind`: start, step, epoch, rejected, stopped or done; `values`: numbers and words, ready for a JSON line."""

    kind: str
    values: dict[str, Any] = field(default_factory=dict)


def train(
    recipe: Recipe,
    data: DataSet,
    out: Path,
    *,
    validate_on: DataSet | None = None,
    accelerator: str = "auto",
    devices: int = 1,
    workers: int = 2,
    resume: bool = False,
    validate_every: int = 1,
    save_every_seconds: float = 120.0,
    keep_epochs: Collection[int] = (),
    cache: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    fabric: Any = None,
) -> Iterator[Event]:
    """Trains by the recipe into `out/network.safetensors`, checkpointing to `out/checkpoints/last.ckpt`.

    A run that was stopped anywhere and resumed makes the same steps on the same pictures. `validate_on`: the tuning split,
    whose figures are reported each `validate_every` epochs; the best of these networks is kept as `out/best.safetensors`.
    `keep_epochs`: those after which the network is kept as `out/epochs/epoch-0005.safetensors` (0: before the first step).
    `cache`: bytes for decoded pictures (None: a quarter of the free memory, at most 8 GiB). `stop` is asked after every
    step; the run then saves and ends with the event `stopped`. `fabric`: one that `distribute.start` launched, in place
    of `accelerator` and `devices`.

    A loss or a weight that is not finite raises CamlucidaError, which names the batch; no such state is ever saved.
    """
    if fabric is None:
        fabric = distribute.start(
            accelerator, devices, distribute.precision_of(recipe.precision, accelerator)
        )
    if recipe.schedule == "plateau" and validate_on is None:
        raise UsageError(
            "schedule plateau", got="no tuning split", do="--split train holds one picture in five out"
        )
    run = Run(recipe, data, out, fabric, validate_on, workers, frozenset(keep_epochs), cache)
    if resume and run.last.is_file():
        run.restore(checkpoint.load(run.last, recipe))
    elif 0 in run.keep_epochs:
        run.pack(out / "epochs" / "epoch-0000.safetensors", {"epoch": 0})
    yield from run.events(validate_every, save_every_seconds, stop)


class Run:
    """The state of a run, and what is done with it; the same in every process but for their shares of the pictures."""

    def __init__(
        self,
        recipe: Recipe,
        data: DataSet,
        out: Path,
        fabric: Any,
        validate_on: DataSet | None = None,
        workers: int = 0,
        keep_epochs: frozenset[int] = frozenset(),
        cache: int | None = None,
    ) -> None:
        self.recipe, self.data, self.validate_on = recipe, data, validate_on
        self.out, self.fabric = out, fabric
        self.workers, self.keep_epochs = workers, keep_epochs
        self.last = out / "checkpoints" / "last.ckpt"
        checkpoint.seed(recipe.seed)
        self.outputs = feed.outputs(data, recipe)
        module = self.build()
        _check(module, recipe)
        initialise(module, recipe)
        fresh = start(module, recipe, data.labels)
        self.started = _started(module, recipe, fresh)
        if recipe.channels_last:
            module = module.to(memory_format=torch.channels_last)
        if fabric.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        if fabric.world_size > 1:
            module = distribute.synchronise(module, fabric.device)
        self.module = module
        self.model, self.optimiser = fabric.setup(module, optimise.optimiser(module, recipe, fresh))
        self.average = (
            {n: t.detach().clone() for n, t in module.state_dict().items()} if recipe.average else {}
        )
        if fabric.global_rank:  # the first draws as one process alone would, each other its own numbers
            checkpoint.seed(recipe.seed + (fabric.global_rank << 32))
        self.order = feed.Order(
            len(data), recipe.batch * recipe.accumulate, recipe.seed, fabric.global_rank, fabric.world_size
        )
        memory = feed.spare_memory() // fabric.world_size if cache is None else cache
        self.decoded = feed.Decoded(len(data), memory)
        pictures = feed.TrainingPictures(data, recipe, self.decoded)
        self.batches = feed.loader(pictures, self.order, workers)
        self.schedule = optimise.Schedule(recipe, len(self.order))
        self.shape = recipe.preprocessing()
        self.step = 0
        self.best: dict[str, Any] = {}  # the best epoch so far, its figures on the tuning split
        self.tuning: dict[str, float] = {}  # figures of the last epoch judged
        empty = torch.zeros(0, self.outputs)
        self.zeros = {"loss": 0.0, **dict.fromkeys(losses.correct(empty, empty, recipe), 0.0)}
        self.sums = dict(self.zeros)  # of this process, over the epoch so far
        self.rejected: dict[str, str] = {}

    def build(self) -> nn.Module:
        asked = self.recipe.arguments.get("num_classes", self.outputs)
        if asked != self.outputs:
            raise UsageError(
                "recipe: arguments.num_classes",
                got=asked,
                allowed=f"{self.outputs}, as the data have; leave it out",
            )
        return catalogue.build(self.recipe.network, {"num_classes": self.outputs, **self.recipe.arguments})

    # --- one step ------------------------------------------------------------------------------------------------

    def gradients(self, batch: feed.Batch, planned: int) -> dict[str, float]:
        """Leaves in the parameters the gradient of the mean loss over the pictures of all processes, of which `planned`
        were expected (broken ones are missing); gives sums over this process's: loss, pictures, hits."""
        recipe, fabric = self.recipe, self.fabric
        self.optimiser.zero_grad(set_to_none=True)
        pixels, truth = self.pixels(batch.pixels), fabric.to_device(batch.truth)
        rng = np.random.default_rng(
            [recipe.seed, self.step, 7, *([fabric.global_rank] if fabric.world_size > 1 else [])]
        )
        if recipe.augmentation.mixup or recipe.augmentation.cutmix:
            if recipe.task == "softmax":
                truth = F.one_hot(truth, self.outputs).float()
            pixels, truth = mix(rng, pixels, truth, recipe.augmentation)
        parts = recipe.accumulate
        sums = dict(self.zeros)
        for i, (x, y) in enumerate(zip(pixels.tensor_split(parts), truth.tensor_split(parts), strict=True)):
            if not len(x) and fabric.world_size == 1:
                continue
            waits = fabric.world_size > 1 and i < parts - 1
            with fabric.no_backward_sync(self.model) if waits else nullcontext():
                output = self.model(x)
                # A share without pictures takes part in what the processes do together, with no weight.
                loss = losses.loss(output, y, recipe) if len(x) else _nothing(output)
                fabric.backward(loss * (len(x) * fabric.world_size / planned))
            sums["loss"] += float(loss.detach()) * len(x)
            if len(x):
                for name, value in losses.correct(logits_of(output).detach(), y, recipe).items():
                    sums[name] += value
        return sums

    def pixels(self, pixels: Tensor) -> Tensor:
        if not len(pixels):
            size = self.recipe.size_at(self.order.epoch)
            pixels = pixels.new_empty(0, 3, size, size)
        pixels = self.shape.normalise(self.fabric.to_device(pixels))
        return pixels.contiguous(memory_format=torch.channels_last) if self.recipe.channels_last else pixels

    def take(self, batch: feed.Batch, planned: int, asked: list[bool]) -> tuple[int, list[bool]]:
        """One step of the weights. Gives how many pictures all processes had, and which of the questions `asked` any
        process answers with yes. Raises CamlucidaError at a loss that is not finite, the weights untouched."""
        own = self.gradients(batch, planned)
        bad = not math.isfinite(own["loss"])
        count, spoilt, *answers = distribute.add(
            self.fabric, [own["pictures"], float(bad), *map(float, asked)]
        )
        if spoilt:
            self.not_finite(
                f"the loss, {own['loss'] / own['pictures']}" if bad else "the loss", batch if bad else None
            )
        if count:
            if count != planned:  # broken pictures: the mean is over those that are left
                for parameter in self.module.parameters():
                    if parameter.grad is not None:
                        parameter.grad.mul_(planned / count)
            for group in self.optimiser.param_groups:
                group["lr"] = self.schedule.rate(self.step) * group["factor"]
            self.optimiser.step()
            optimise.renormalise(self.module, self.recipe.renormalise)
            if self.recipe.average:
                optimise.update_average(self.average, self.module, self.recipe.average, self.step)
        for name, value in own.items():
            self.sums[name] += value
        self.step += 1
        return int(count), [answer > 0 for answer in answers]

    def not_finite(self, what: str, batch: feed.Batch | None) -> None:
        names = [self.data.examples[i].source.name for i in batch.indices] if batch else []
        names = [name for found in distribute.gather(self.fabric, names) for name in found]
        seen = f"; its pictures: {', '.join(names[:4])}{f' … {len(names)} in all' if len(names) > 4 else ''}"
        raise CamlucidaError(
            f"{what} is not finite at step {self.step + 1} (epoch {self.order.epoch + 1})"
            + (seen if names else ""),
            do="lower learning_rate, or look at these pictures; "
            + (f"{self.last} holds the last good state" if self.last.is_file() else "no state was saved yet"),
        )

    # --- state ---------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Raises CamlucidaError rather than put weights that are not finite over good ones."""
        state = self.module.state_dict()
        for name, tensor in state.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                self.not_finite(f"the weight {name}", None)
        random = distribute.gather(self.fabric, checkpoint.random_state())
        sums = distribute.gather(self.fabric, self.sums)
        if self.fabric.is_global_zero:
            kept = {
                "module": state, "optimiser": self.optimiser.state_dict(), "average": self.average, "schedule": self.schedule.state(),
                "step": self.step, "epoch": self.step // len(self.order), "random": random, "sums": sums, "best": self.best, "tuning": self.tuning,
                "mean_picture": self.shape.mean_picture, "precision": self.fabric.strategy.precision.state_dict(), "pictures": self.pictures(),
            }  # fmt: skip
            checkpoint.save(self.last, kept, self.recipe)
        self.fabric.barrier()

    def pictures(self) -> dict[str, list[int]]:
        """What the run learns and is judged on: number of pictures and classes, and a checksum of names and truths."""
        parts = {"training": self.data, "tuning": self.validate_on}
        return {name: _told_apart(part) for name, part in parts.items() if part is not None}

    def restore(self, state: Mapping[str, Any]) -> None:
        before, now = state.get("pictures", self.pictures()), self.pictures()
        if before != now:
            first, second = (
                ", ".join(f"{n} {found[0]:,} of {found[1]:,} classes" for n, found in one.items())
                for one in (before, now)
            )
            raise UsageError(
                f"{self.last} was made with other pictures", got=second,
                allowed=first if first != second else f"{first}, with the same names and labels",
                do="give the same data, --split and --subset, or another --out",
            )  # fmt: skip
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        for name, tensor in state["average"].items():
            self.average[name].copy_(tensor)
        self.schedule.restore(state["schedule"])
        if state["precision"]:  # the loss scale of float16
            self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.step, self.best, self.tuning = state["step"], dict(state["best"]), state["tuning"]
        self.order.epoch, self.order.skip = divmod(self.step, len(self.order))
        self.shape = replace(self.shape, mean_picture=state["mean_picture"])
        rank, world = self.fabric.global_rank, self.fabric.world_size
        if len(state["random"]) == world:
            checkpoint.set_random_state(state["random"][rank])
            self.sums = state["sums"][rank]
        else:  # made by another number of processes: new numbers, no process those of another
            checkpoint.seed(self.recipe.seed + self.step + (rank << 32))
            self.sums = {n: sum(one[n] for one in state["sums"]) if not rank else 0.0 for n in self.zeros}

    def weights(self) -> dict[str, Tensor]:
        """What is packed and judged: the running mean where there is one."""
        return self.average or self.module.state_dict()

    def pack(self, file: Path, measured: Mapping[str, Any]) -> None:
        recipe, data = self.recipe, self.data
        if self.fabric.is_global_zero:
            about = f"{len(data)} pictures of {len(data.labels)} classes" + (
                f": {recipe.data}" if recipe.data else ""
            )
            card = Card(
                name=recipe.publishes or recipe.name, architecture=recipe.network, arguments={"num_classes": self.outputs, **recipe.arguments},
                preprocessing=self.shape, labels=data.labels, activation=recipe.activation, trained_by=f"recipe {recipe.name}, seed {recipe.seed}",
                trained_on=about, licence=recipe.licence, terms=recipe.terms, measured=dict(measured),
            )  # fmt: skip
            try:
                cards.pack(file, self.weights(), card, torch.float16)
            except OSError as error:
                got = error.strerror or str(error)
                raise CamlucidaError(
                    f"cannot write {file}", got=got, do="make room, then --resume goes on"
                ) from error

    # --- the whole run -------------------------------------------------------------------------------------------

    def events(self, validate_every: int, save_every: float, stop: Callable[[], bool]) -> Iterator[Event]:
        recipe, order, fabric = self.recipe, self.order, self.fabric
        steps = len(order) * recipe.epochs
        if recipe.subtract == "pixel" and not self.shape.mean_picture:
            first = feed.mean_picture(self.data, self.decoded, self.shape) if fabric.is_global_zero else None
            self.shape = self.shape.subtracting(distribute.gather(fabric, first)[0])
        yield Event("start", {
            "recipe": recipe.name, "pictures": len(self.data), "classes": len(self.data.labels), "steps": steps, "steps_per_epoch": len(order), "from_step": self.step,
            "parameters": sum(p.numel() for p in self.module.parameters()), "device": str(fabric.device), "processes": fabric.world_size,
            "precision": fabric.strategy.precision.precision, "versions": checkpoint.versions(), **self.started,
        })  # fmt: skip
        began = saved = shown = time.monotonic()
        from_step, pictures, before = self.step, 0, dict(self.sums)
        for epoch in range(self.step // len(order), recipe.epochs):
            if self.schedule.finished:
                break
            order.epoch = epoch
            self.model.train()
            for batch in self.batches:
                yield from self.reject(self.named(self.data, batch))
                planned = (
                    order.pictures(self.step - epoch * len(order))
                    if fabric.world_size > 1
                    else len(batch.indices)
                )
                now = time.monotonic()
                count, (stopped, due) = self.take(batch, max(planned, 1), [stop(), now - saved > save_every])
                pictures += count
                if self.step % SHOWN == 0 or self.step == steps:
                    now = time.monotonic()
                    yield Event("step", {
                        "step": self.step, "epoch": epoch + 1, **self.figures(before),
                        "rate": float(self.schedule.rate(self.step - 1)), "pictures_per_second": round(pictures / max(now - shown, 1e-9), 1),
                        "seconds_left": round((now - began) / (self.step - from_step) * (steps - self.step)),
                    })  # fmt: skip
                    shown, pictures, before = now, 0, dict(self.sums)
                if stopped or due:
                    self.save()
                    saved = time.monotonic()
                if stopped:
                    yield Event("stopped", {"step": self.step, "of": steps})
                    return
            order.skip = 0
            yield from self.end_of_epoch(epoch, validate_every, began)
            saved = shown = time.monotonic()
            pictures, before = 0, dict(self.zeros)
        self.pack(self.out / "network.safetensors", {"epoch": self.step // len(order), **self.tuning})
        yield Event("done", {
            "network": str(self.out / "network.safetensors"), "step": self.step, "rejected": len(self.rejected), **({"best": self.best} if self.best else {}),
            "seconds": round(time.monotonic() - began, 1),
        })  # fmt: skip

    def end_of_epoch(self, epoch: int, validate_every: int, began: float) -> Iterator[Event]:
        """Judges, keeps the best and the wanted, saves."""
        for found in distribute.gather(self.fabric, self.rejected):
            yield from self.reject(found)
        report = {"epoch": epoch + 1, "step": self.step, **self.figures(self.zeros)}
        if not sum(distribute.gather(self.fabric, self.sums["pictures"])):
            first = next(iter(self.rejected.items()), ("", ""))
            raise CamlucidaError(
                "no picture of the training set can be read", got=": ".join(first), do="look at rejected.csv"
            )
        self.sums = dict(self.zeros)
        last = epoch + 1 == self.recipe.epochs
        if self.validate_on is not None and ((epoch + 1) % validate_every == 0 or last):
            yield from self.reject(self.judge())
            score = losses.watched(self.tuning)
            self.schedule.observe(epoch, score)
            if not self.best or score > self.best["score"]:
                self.best = {"epoch": epoch + 1, "score": score, **self.tuning}
                self.pack(self.out / "best.safetensors", {"epoch": epoch + 1, **self.tuning})
            report |= self.tuning
        if epoch + 1 in self.keep_epochs:
            self.pack(self.out / "epochs" / f"epoch-{epoch + 1:04d}.safetensors", {"epoch": epoch + 1})
        self.save()
        yield Event("epoch", {**report, "seconds": round(time.monotonic() - began, 1)})

    def figures(self, before: Mapping[str, float]) -> dict[str, float]:
        """Mean loss and error (percent of pictures, or squared error) over all processes' pictures since these sums."""
        added = distribute.add(self.fabric, [self.sums[n] - before[n] for n in self.zeros])
        sums = dict(zip(self.zeros, added, strict=True))
        pictures, loss = sums["pictures"], sums.pop("loss")
        if not pictures:
            return {}
        found = losses.figures(sums)
        error = found["squared_error"] if "squared_error" in found else 100 - found["top1"]
        return {"loss": round(loss / pictures, 4), "error": round(error, 4)}

    def reject(self, found: Mapping[str, str]) -> Iterator[Event]:
        """Each picture that cannot be read once in a run."""
        for name, reason in found.items():
            if name not in self.rejected:
                self.rejected[name] = reason
                yield Event("rejected", {"path": name, "reason": reason})

    @torch.no_grad()
    def judge(self) -> dict[str, str]:
        """Sets `tuning`: figures of the weights that would be packed now, over the tuning pictures that can be read, one
        view each, every process its share; gives names and reasons of those that cannot."""
        assert self.validate_on is not None
        module = self.module
        if self.average:
            with torch.random.fork_rng():  # to judge must not move the numbers that dropout draws
                module = self.build()
            module.load_state_dict(self.average)
            module = module.to(self.fabric.device)
        training = module.training
        module.eval()
        shape = replace(self.shape, crop=self.shape.crop or self.shape.size)  # one shape a batch
        pictures = feed.PlainPictures(self.validate_on, self.recipe, shape)
        share = range(self.fabric.global_rank, len(self.validate_on), self.fabric.world_size)
        batches = [share[i : i + self.recipe.batch] for i in range(0, len(share), self.recipe.batch)]
        sums, broken = dict.fromkeys(self.zeros, 0.0), dict[str, str]()
        for batch in feed.loader(pictures, batches, self.workers):
            broken |= self.named(self.validate_on, batch)
            if len(batch.indices):
                truth = self.fabric.to_device(batch.truth)
                dtype = next(module.parameters()).dtype
                logits = logits_of(module(shape.normalise(self.fabric.to_device(batch.pixels)).to(dtype)))
                for name, value in losses.correct(logits, truth, self.recipe).items():
                    sums[name] += value
        module.train(training)
        sums = dict(zip(sums, distribute.add(self.fabric, list(sums.values())), strict=True))
        if not sums["pictures"]:
            raise CamlucidaError(
                "no picture of the tuning split can be read", got=next(iter(broken.values()), "none")
            )
        self.tuning = losses.figures({n: v for n, v in sums.items() if n != "loss"})
        return {n: r for one in distribute.gather(self.fabric, broken) for n, r in one.items()}

    def named(self, data: DataSet, batch: feed.Batch) -> dict[str, str]:
        return {data.examples[i].source.name: reason for i, reason in batch.rejected}


def _check(module: nn.Module, recipe: Recipe) -> None:
    """Raises UsageError where a network that takes squares of one side is given others, or its card would say it takes
    pictures of any shape."""
    wanted = getattr(module, "preprocessing", None)
    if not isinstance(wanted, Preprocessing) or wanted.any_size:
        return
    side = wanted.crop or wanted.size
    given = {"size": {recipe.size, *recipe.sizes}, "card_crop": {recipe.card_crop or recipe.card_size}}
    for name, sides in given.items():
        if sides != {side}:
            raise UsageError(
                f"recipe: {name}", got=", ".join(map(str, sorted(sides))), allowed=f"{side}, the side that {recipe.network} is built for",
                do="set size, card_crop and arguments.size to one side",
            )  # fmt: skip
    if recipe.any_size:
        raise UsageError(
            "recipe: any_size", got=True, allowed=f"false: the fully connected layers of {recipe.network} take squares of {side} only",
        )  # fmt: skip


def _started(module: nn.Module, recipe: Recipe, fresh: Collection[str]) -> dict[str, Any]:
    """For the reader of a run that starts from others' weights: the file, how many of the parameters came from it, and
    the layers that did not."""
    if not recipe.start:
        return {}
    names = [name for name, _ in module.named_parameters()]
    layers = dict.fromkeys(name.rpartition(".")[0] for name in names if name in fresh)
    copied = f"{len(names) - len(fresh)} of {len(names)} parameters"
    return {"started_from": recipe.start, "copied": copied, "fresh_layers": ", ".join(layers) or "none"}


def _told_apart(data: DataSet) -> list[int]:
    """Numbers of pictures and classes; a checksum of names, labels and values in their order."""
    found = zlib.crc32("\n".join(label.id for label in data.labels).encode("utf-8", "surrogateescape"))
    for one in data.examples:
        said = f"{one.source.relative}\n{one.labels}{one.values}"
        found = zlib.crc32(said.encode("utf-8", "surrogateescape"), found)
    return [len(data), len(data.labels), found]


def _nothing(output: Any) -> Tensor:
    """0, with a gradient of 0 for every head of the network."""
    heads = [logits_of(output), *(output.get("auxiliary", ()) if isinstance(output, Mapping) else ())]
    return sum((head.sum() * 0.0 for head in heads), torch.zeros((), device=heads[0].device))
