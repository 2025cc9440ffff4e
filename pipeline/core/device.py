"""Resolution of configured device names."""

import os

import torch

from pipeline.core.errors import InputError


def device_of(name: str, where: str) -> torch.device:
    """Resolve a device name; for ``cuda``, each process of ``torchrun`` gets its own GPU.

    Args:
        name: Device name of torch: ``cpu``, ``cuda``, ``cuda:1``.
        where: Key of params.yaml that set it, for the error.

    Raises:
        InputError: The device is not available on this machine.
    """
    own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" and "WORLD_SIZE" in os.environ else name
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
