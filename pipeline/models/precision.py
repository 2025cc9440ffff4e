"""Regions that must run in fp32 under autocast."""

from contextlib import nullcontext

import torch


def fp32(device: torch.device) -> torch.autocast | nullcontext[None]:
    """Disable autocast if it is enabled. Entering it needlessly would leave a trace in exported graphs."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
