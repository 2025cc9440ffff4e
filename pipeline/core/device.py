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
