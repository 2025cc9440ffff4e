"""Batch norm over the whole batch when several processes share it.

Source: `torch.nn.SyncBatchNorm`, which supports only GPUs; this module adds CPUs. Without it each process would
normalise by the statistics of its own share, and the result would depend on the number of processes.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.core.distributed import Ranks


@contextmanager
def synchronised(module: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Synchronise all batch norms in ``module`` within the context; parameters, buffers and keys are unchanged."""
    replaced = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.BatchNorm2d) and ranks.world_size > 1
    ]
    for parent, name, child in replaced:
        setattr(parent, name, _synchronised(child))
    try:
        yield
    finally:
        for parent, name, child in replaced:
            setattr(parent, name, child)


def _synchronised(norm: nn.BatchNorm2d) -> nn.Module:
    if norm.weight.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(norm)
    shallow = copy.copy(norm)  # shares the dictionaries of parameters and buffers
    shallow.__class__ = _BatchNorm
    return shallow


class _BatchNorm(nn.BatchNorm2d):
    """Batch norm with mean and variance over the samples of all processes."""

    momentum: float
    num_batches_tracked: Tensor
    running_mean: Tensor
    running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        total = _total(torch.cat([wide.sum((0, 2, 3)), wide.new_full((1,), x.numel() / x.shape[1])]))
        count, mean = total[-1].detach(), total[:-1] / total[-1].detach()
        centred = wide - mean[:, None, None]
        variance = _total(centred.square().sum((0, 2, 3))) / count
        self._update_running(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def _total(own: Tensor) -> Tensor:
    total: Tensor = _Total.apply(own)  # type: ignore[no-untyped-call]
    return total


class _Total(torch.autograd.Function):
    """Sum over all processes. The gradient is summed as well, since every process uses the sum."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
