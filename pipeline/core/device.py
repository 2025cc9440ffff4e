"""Look-up of the torch device that a configuration names."""

import os

import torch

from pipeline.core.errors import InputError


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
        device = torch.empty(0, device=own).device
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        return device
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{where} is {own!r}, which is not available on this machine ({reason}): set it to cpu."
        ) from None
