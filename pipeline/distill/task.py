"""Inputs of every recipe: student, images, the teacher's cached outputs, and the device.

The teacher's encoder does not run in training. Its embeddings come from the cache; those of a 1024-pixel teacher also
serve a 512-pixel student.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.core.log import Log
from pipeline.data.embeddings import Embeddings
from pipeline.data.shards import Shards
from pipeline.distill.config import DistillConfig
from pipeline.distill.drawing import Batch, Inputs
from pipeline.models.sam import Sam
from pipeline.ops.geometry import normalised
from pipeline.training import Draw, Step, autocast, fit


@dataclass(frozen=True, kw_only=True)
class Task:
    """One training run of a student."""

    sam: Sam
    """The student; trained in place."""
    teacher: Path
    """The teacher's checkpoint artifact, for recipes that run its decoder."""
    images: Shards
    embeddings: Embeddings
    config: DistillConfig
    device: torch.device
    log: Log
    checkpoint: Path | None

    @property
    def inputs(self) -> Inputs:
        """Reads batches of the student's sizes."""
        sam = self.sam
        return Inputs(self.images, self.embeddings, sam.image_size, sam.input_size, sam.embedding_size)

    def encode(self, images: Batch) -> Float[Tensor, "b 256 g g"]:
        """Compute the student's embeddings, in fp32.

        Args:
            images: A batch on ``device``.
        """
        pixels = normalised(images.pixels, images.sizes)
        with self.autocast():
            embeddings: Tensor = self.sam.image_encoder(pixels)
        return embeddings.float()

    def autocast(self) -> torch.autocast:
        """Autocast context of the configured precision."""
        return autocast(self.device, self.config.training.autocast)

    def fit(
        self, module: nn.Module, draw: Draw[Any], step: Step[Any], lr_shares: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Train ``module``, the parameters that ``step`` uses. See `pipeline.training.fit`."""
        fit(
            module,
            draw,
            step,
            self.config.training,
            count=len(self.images),
            batch=self.config.batch,
            log=self.log,
            name="distill",
            device=self.device,
            checkpoint=self.checkpoint,
            lr_shares=lr_shares,
        )
