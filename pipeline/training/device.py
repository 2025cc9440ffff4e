"""Where a training runs and in which precision."""

import os

import torch

from pipeline.errors import InputError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def device_of(name: str, where: str) -> torch.device:
    """The device of that name; of ``cuda`` each of ``torchrun``'s processes takes another one.

    Args:
        name: As torch names it: ``cpu``, ``cuda``, ``cuda:1``.
        where: What of params.yaml named it, for the error.

    Raises:
        InputError: There is none on this machine.
    """
    own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" and "WORLD_SIZE" in os.environ else name
    try:
        return torch.empty(0, device=own).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{where} is {own!r}, which is not to be had here ({reason}): set it to cpu.") from None


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16."""
    if device.type == "cpu":  # torch has no public name for this
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def precision_of(device: torch.device, name: str) -> str:
    """What a forward pass under `autocast` is computed in: ``name``, or fp32 where the device only imitates it.

    A processor that imitates bf16 takes longer than with float32, and fp16 is for GPUs.
    """
    known = {"bf16": has_bf16(device), "fp16": device.type == "cuda"}
    return name if known.get(name) else "fp32"


def autocast(device: torch.device, name: str) -> torch.autocast:
    """Mixed precision for a forward pass, as `precision_of` finds it: ``name`` is none, bf16 or fp16."""
    dtype = _DTYPES.get(precision_of(device, name))
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
