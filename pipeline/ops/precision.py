"""Effective precision of forward passes: it decides results, so the stages that use it depend on this file."""

import torch


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
