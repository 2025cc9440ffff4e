"""Resolution of configured device names."""

import os

import torch

from pipeline.core.errors import InputError


def own_gpu(name: str) -> str:
    """``cuda`` as this process's GPU among those of ``torchrun``, ``cuda:1``; any other name unchanged."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" and "WORLD_SIZE" in os.environ else name


def device_of(name: str, where: str) -> torch.device:
    """Resolve a device name; for ``cuda``, each process of ``torchrun`` gets its own GPU.

    Args:
        name: Device name of torch: ``cpu``, ``cuda``, ``cuda:1``; or ``auto``, a GPU if there is one.
        where: Key of params.yaml that set it, for the error.

    Raises:
        InputError: The device is not available on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    own = own_gpu(name)
    try:
        device = torch.empty(0, device=own).device
        if device.type == "meta":
            raise RuntimeError("it has no data")
        return device
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{where} is {own!r}, which is not available on this machine ({reason}): set it to cpu."
        ) from None


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
