"""Several processes that make the steps of one: start them, add over them, normalise by the whole batch.

Process r of W takes every W-th picture of a batch; the loss is weighted so that the averaged gradient is that of the whole
batch (VGG paper, section 3.1: synchronous, same result as one device), however uneven the shares are.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from camlucida.errors import UsageError


def is_first() -> bool:
    """Whether this process is the one that writes, asked of the environment before `start` (0 of all processes)."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def start(accelerator: str, devices: int, precision: str) -> Any:
    """A launched `Fabric`: `devices` processes on this machine, which run this very command again; under torchrun, which
    has started them already, as many as it says, on as many machines. Raises UsageError for what Fabric refuses."""
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise UsageError("training needs Lightning Fabric", do="pip install 'camlucida[train]'") from error

    if devices < 1:
        raise UsageError("--devices", got=devices, allowed="≥ 1")
    machines = 1
    if dist.is_available() and dist.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        machines = int(os.environ["WORLD_SIZE"]) // devices
    try:
        fabric = Fabric(
            accelerator=accelerator, devices=devices, num_nodes=machines, precision=precision  # type: ignore[arg-type]
        )  # fmt: skip
    except (
        ValueError,
        RuntimeError,
        ImportError,
    ) as error:  # no such accelerator, precision or number of devices here
        got = f"--accelerator {accelerator} --devices {devices} --precision {precision}"
        raise UsageError("devices", got=got, do=str(error).split("\n", 1)[0]) from error
    fabric.launch()
    return fabric


def precision_of(wanted: str, accelerator: str) -> str:
    """The recipe's word, or for `auto` the fast one: `bf16-mixed` where the hardware multiplies bfloat16, else `32-true`:
    emulated, it is twenty times slower."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available() and accelerator != "cpu":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"


def add(fabric: Any, numbers: list[float]) -> list[float]:
    """Sums over all processes, in float64 (exact for counts)."""
    if fabric.world_size == 1:
        return numbers
    total = torch.tensor(numbers, dtype=torch.float64, device=fabric.device)
    dist.all_reduce(total)
    return total.tolist()


def gather(fabric: Any, value: Any) -> list[Any]:
    """The value of each process, in the order of ranks."""
    if fabric.world_size == 1:
        return [value]
    values = [None] * fabric.world_size
    dist.all_gather_object(values, value)
    return values


def synchronise(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with batch normalisation over the batch of all processes, names and parameters unchanged: PyTorch's on
    CUDA, ours elsewhere. Running statistics then are equal in all processes."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            norm.__class__ = Synchronised  # type: ignore[assignment]
    return module


class Synchronised(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation whose mean and variance are those of all processes' pictures together, the gradient through
    them included; a share without pictures takes part. `(N, C, *spatial)`."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        values = input if input.dtype == torch.float64 else input.float()
        axes = [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        own = values.new_full((1,), values.numel() / values.shape[1])
        sums = _sum_over_processes(torch.cat([values.sum(axes), own]))
        count = sums[-1].detach().clamp(min=1)
        mean = sums[:-1] / count
        centred = values - mean.view(shape)
        variance = _sum_over_processes(centred.square().sum(axes)) / count
        if self.track_running_stats and sums[-1] > 0:
            self._follow(mean.detach(), variance.detach() * (count / (count - 1).clamp(min=1)))
        result = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            result = result * self.weight.view(shape)
        if self.bias is not None:
            result = result + self.bias.view(shape)
        return result.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Moves the running statistics towards these of a batch."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(new.to(running.dtype), share)


class _SumOverProcesses(torch.autograd.Function):
    """Every process's loss depends on the sum, so its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _sum_over_processes(tensor: Tensor) -> Tensor:
    return _SumOverProcesses.apply(tensor)
