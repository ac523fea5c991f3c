"""The training loop. It yields events; logging, showing and stopping are their listeners' business."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
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
from camlucida.train import checkpoint, feed
from camlucida.train.optimise import learning_rate, optimiser, update_average
from camlucida.train.recipe import Recipe


@dataclass(frozen=True)
class Event:
    """`kind`: start, step, epoch, rejected or done; `values`: numbers and words, ready for a JSON line."""

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
) -> Iterator[Event]:
    """Trains by the recipe into `out/network.safetensors`, checkpointing to `out/checkpoints/last.ckpt`.

    A run that was stopped anywhere and resumed makes the same steps on the same pictures. `validate_on`: pictures whose
    top-1 is reported each `validate_every` epochs. A loss that is not finite stops the run and keeps the last checkpoint.
    """
    from lightning_fabric import Fabric

    precision = fast_precision(accelerator) if recipe.precision == "auto" else recipe.precision
    fabric = Fabric(accelerator=accelerator, devices=devices, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    torch.manual_seed(recipe.seed)
    module = catalogue.build(recipe.network, {"num_classes": len(data.labels), **recipe.arguments})
    if recipe.channels_last:
        module = module.to(memory_format=torch.channels_last)
    if fabric.device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    model, steps_by = fabric.setup(module, optimiser(module, recipe))
    average = {n: t.detach().clone() for n, t in module.state_dict().items()} if recipe.average else {}
    shape = Preprocessing(
        size=recipe.card_size, crop=recipe.card_size, mean=recipe.mean, std=recipe.std, minimum=64
    )
    order = feed.Order(len(data), recipe.batch, recipe.seed, fabric.global_rank, fabric.world_size)
    batches = feed.loader(feed.TrainingPictures(data, recipe), order, recipe.batch, workers)
    steps, step, first = len(order) * recipe.epochs, 0, 0
    last = out / "checkpoints" / "last.ckpt"
    if resume and last.is_file():
        state = checkpoint.load(last, recipe)
        module.load_state_dict(state["module"])
        steps_by.load_state_dict(state["optimiser"])
        for name, tensor in state["average"].items():
            average[name].copy_(tensor)
        step = state["step"]
        first, order.skip = divmod(step, len(order))

    def save() -> None:
        if fabric.is_global_zero:
            checkpoint.save(
                last,
                {
                    "module": module.state_dict(),
                    "optimiser": steps_by.state_dict(),
                    "average": average,
                    "step": step,
                },
                recipe,
            )
        fabric.barrier()

    yield Event("start", {"recipe": recipe.name, "pictures": len(data), "classes": len(data.labels), "steps": steps, "from_step": step,
                          "parameters": sum(p.numel() for p in module.parameters()), "device": str(fabric.device), "precision": precision})  # fmt: skip
    began = saved = time.monotonic()
    seen = 0
    for epoch in range(first, recipe.epochs):
        order.epoch = epoch
        model.train()
        losses: list[Tensor] = []
        for pixels, labels, reasons in batches:
            for reason in reasons:
                yield Event("rejected", {"reason": reason})
            rate = learning_rate(recipe, step, steps)
            for group in steps_by.param_groups:
                group["lr"] = rate
            if len(labels):
                loss = _step(fabric, model, steps_by, recipe, shape, pixels, labels, len(data.labels), step)
                if recipe.average:
                    update_average(average, module, recipe.average, step)
                losses.append(loss)
            step, seen = step + 1, seen + len(labels)
            if step % 20 == 0 or step == steps:
                if losses and not math.isfinite(float(losses[-1])):
                    raise CamlucidaError(
                        f"the loss is not finite at step {step} (epoch {epoch})",
                        got=float(losses[-1]),
                        do=f"lower learning_rate; {last} holds the last good state",
                    )
                yield Event("step", {"step": step, "epoch": epoch, "loss": round(float(losses[-1]), 4) if losses else None, "rate": rate,
                                     "pictures_per_second": round(seen / (time.monotonic() - began), 1)})  # fmt: skip
            if time.monotonic() - saved > save_every_seconds:
                save()
                saved = time.monotonic()
        order.skip = 0
        report: dict[str, Any] = {
            "epoch": epoch + 1,
            "step": step,
            "loss": round(float(torch.stack(losses).mean()), 4) if losses else None,
        }
        if validate_on is not None and ((epoch + 1) % validate_every == 0 or epoch + 1 == recipe.epochs):
            report |= validate(
                _judged(module, average, recipe, len(data.labels)), validate_on, shape, recipe.batch, workers
            )
        report["seconds"] = round(time.monotonic() - began, 1)
        save()
        saved = time.monotonic()
        yield Event("epoch", report)
    if fabric.is_global_zero:
        card = Card(
            name=recipe.publishes or recipe.name, architecture=recipe.network, arguments={"num_classes": len(data.labels), **recipe.arguments},
            preprocessing=replace(shape, crop=None), labels=data.labels, trained_by=f"recipe {recipe.name}, seed {recipe.seed}",
            trained_on=f"{len(data)} pictures of {len(data.labels)} classes" + (f": {recipe.data}" if recipe.data else ""),
            licence=recipe.licence, terms=recipe.terms,
        )  # fmt: skip
        cards.pack(out / "network.safetensors", average or module.state_dict(), card, torch.float16)
    yield Event(
        "done",
        {
            "network": str(out / "network.safetensors"),
            "step": step,
            "seconds": round(time.monotonic() - began, 1),
        },
    )


def fast_precision(accelerator: str) -> str:
    """`bf16-mixed` where the hardware multiplies bfloat16, else `32-true`: emulated, it is twenty times slower."""
    if torch.cuda.is_available() and accelerator != "cpu":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return (
        "bf16-mixed"
        if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        else "32-true"
    )


def _step(
    fabric: Any,
    model: nn.Module,
    steps_by: Any,
    recipe: Recipe,
    shape: Preprocessing,
    pixels: Tensor,
    labels: Tensor,
    classes: int,
    step: int,
) -> Tensor:
    pixels = shape.normalise(fabric.to_device(pixels))
    if recipe.channels_last:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    truth = F.one_hot(fabric.to_device(labels), classes).float()
    pixels, truth = mix(np.random.default_rng([recipe.seed, step, 7]), pixels, truth, recipe.augmentation)
    steps_by.zero_grad(set_to_none=True)
    loss = F.cross_entropy(logits_of(model(pixels)).float(), truth, label_smoothing=recipe.label_smoothing)
    fabric.backward(loss)
    steps_by.step()
    return loss.detach()


def _judged(module: nn.Module, average: dict[str, Tensor], recipe: Recipe, classes: int) -> nn.Module:
    """The module as it would be packed now."""
    if not average:
        return module
    copy = catalogue.build(recipe.network, {"num_classes": classes, **recipe.arguments})
    copy.load_state_dict(average)
    return copy.to(next(module.parameters()).device)


@torch.no_grad()
def validate(
    module: nn.Module, data: DataSet, shape: Preprocessing, batch: int, workers: int
) -> dict[str, float]:
    """Top-1 and top-5 in percent over the pictures that can be read, one view each, the module's mode restored."""
    if not len(data):
        raise UsageError("validation", got="no picture")
    device, training = next(module.parameters()).device, module.training
    module.eval()
    hits = torch.zeros(2)
    total = 0
    for pixels, labels, _ in feed.loader(feed.PlainPictures(data, shape), None, batch, workers):
        logits = logits_of(module(shape.normalise(pixels.to(device)))).float().cpu()
        ranked = logits.argsort(dim=1, descending=True, stable=True)[:, :5] == labels[:, None]
        hits += torch.stack([ranked[:, :1].sum(), ranked.sum()])
        total += len(labels)
    module.train(training)
    return {
        "top1": round(100 * float(hits[0]) / max(total, 1), 2),
        "top5": round(100 * float(hits[1]) / max(total, 1), 2),
    }
