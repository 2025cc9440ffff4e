"""The precision a training runs in."""

import torch

from pipeline.ops.precision import precision_of

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, name: str) -> torch.autocast:
    """Autocast context for a forward pass in `precision_of` ``name``: none, bf16 or fp16."""
    dtype = _DTYPES.get(precision_of(device, name))
    return torch.autocast(device.type, dtype, enabled=dtype is not None)
