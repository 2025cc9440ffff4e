"""A bare training step, the baseline of a student's training loop.

Forward, loss, backward and optimizer on one batch that stays on the device. No data loading, clipping, averaged
weights, checkpoints or logging.
"""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.models.sam import EMBEDDING_CHANNELS, Sam
from pipeline.training import OptimizerConfig, autocast


class Bare:
    """Forward, backward and a step of AdamW on the same random images.

    Args:
        sam: Its encoder is copied.
        batch: Images per step.
        config: Its precision and compilation are used.
        device: Device of the step.
    """

    def __init__(self, sam: Sam, batch: int, config: OptimizerConfig, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        grid = sam.embedding_size
        self._device, self._autocast = device, config.autocast
        self._encoder: nn.Module = copy.deepcopy(sam.image_encoder).train().to(device)
        self._encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        if config.compile:
            self._encoder.compile()
        pixels = torch.randn(batch, 3, sam.input_size, sam.input_size, generator=generator)
        self._pixels = pixels.contiguous(memory_format=torch.channels_last).to(device)
        self._target = torch.randn(batch, EMBEDDING_CHANNELS, grid, grid, generator=generator).to(device)
        self._optimizer = torch.optim.AdamW(self._encoder.parameters(), lr=config.lr)

    def step(self) -> None:
        """Run one step to completion."""
        with autocast(self._device, self._autocast):
            embedding = self._encoder(self._pixels)
        loss = F.mse_loss(embedding.float(), self._target)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
