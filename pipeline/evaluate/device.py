"""The device a model is evaluated on."""

import torch

from pipeline.core.artifact import Card
from pipeline.core.device import device_of, own_gpu
from pipeline.runtime.loading import DEVICES


def evaluation_device(name: str, card: Card) -> str:
    """Resolve ``evaluate.device`` for one artifact; each process of ``torchrun`` gets its own GPU.

    Args:
        name: ``auto``, or a torch device.
        card: The artifact's. Only checkpoints and engines for GPUs leave the processor, whatever ``name`` is.

    Returns:
        A device that `pipeline.runtime.load` takes.

    Raises:
        InputError: The device is not available on this machine.
    """
    if card.kind == "checkpoint":
        return str(device_of(name, "evaluate.device"))
    engine = DEVICES.get(str(card.load.get("engine")), "cpu")
    chosen = name if name.startswith(engine) else engine
    # Without a GPU the engine's own error says more than "set it to cpu".
    return own_gpu(chosen) if not torch.cuda.is_available() else str(device_of(chosen, "evaluate.device"))
