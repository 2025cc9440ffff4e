"""What must not be computed in half precision, whatever surrounds it."""

from contextlib import nullcontext

import torch


def fp32(device: torch.device) -> torch.autocast | nullcontext[None]:
    """Autocast off where it is on; entering it needlessly would leave a trace in exported graphs."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
