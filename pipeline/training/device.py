"""The precision a training runs in, and what feeds its device."""

import os
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16."""
    if device.type == "cpu":  # torch has no public name for this
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def precision_of(device: torch.device, name: str) -> str:
    """Effective precision of a forward pass under `autocast`: ``name``, or fp32 if the device only emulates it.

    Emulated bf16 is slower than float32 on a CPU, and fp16 is for GPUs.
    """
    known = {"bf16": has_bf16(device), "fp16": device.type == "cuda"}
    return name if known.get(name) else "fp32"


def autocast(device: torch.device, name: str) -> torch.autocast:
    """Autocast context for a forward pass in `precision_of` ``name``: none, bf16 or fp16."""
    dtype = _DTYPES.get(precision_of(device, name))
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def drawing_threads(device: torch.device) -> int:
    """Number of prefetching threads.

    One on a CPU, since the step itself uses all cores; with a GPU, the cores divided among this machine's processes.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if device.type == "cpu" else min(8, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def pinned(draw: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``draw`` to return batches in pinned memory, from which copies to a GPU are several times faster."""

    def drawn(*arguments: Any) -> Any:
        return _pin(draw(*arguments))

    return drawn


def _pin(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch if batch.is_cuda else batch.pin_memory()
    if isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
        return type(batch)(_pin(part) for part in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{field.name: _pin(getattr(batch, field.name)) for field in fields(batch)})
    return batch
