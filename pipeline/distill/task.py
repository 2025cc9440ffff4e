"""Inputs of every recipe: student, images, the teacher's cached outputs, and the device.

The teacher's encoder does not run in training. Its embeddings come from the cache; those of a 1024-pixel teacher also
serve a 512-pixel student.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.core.log import Log
from pipeline.data.embeddings import Embeddings
from pipeline.data.shards import Sample, Shards
from pipeline.distill.config import DistillConfig
from pipeline.models.sam import Sam
from pipeline.ops.geometry import to_input, valid_cells
from pipeline.training import Draw, Step, autocast, fit


@dataclass(frozen=True)
class Batch:
    """Preprocessed images and the teacher's embeddings."""

    samples: list[Sample]
    pixels: Float[Tensor, "b 3 s s"]
    embeddings: Float[Tensor, "b 256 g g"]
    valid: Bool[Tensor, "b g g"]
    """True for cells that cover part of the image, False for padding."""


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

    def batch(self, indices: Sequence[int]) -> Batch:
        """Load the images at these indices, on the CPU."""
        grid = self.sam.embedding_size
        samples = [self.images[index] for index in indices]
        valid = torch.zeros(len(samples), grid, grid, dtype=torch.bool)
        for row, sample in enumerate(samples):
            height, width = valid_cells(sample.image.shape[:2], grid)
            valid[row, :height, :width] = True
        pixels = torch.stack([to_input(sample.image, self.sam.input_size) for sample in samples])
        embeddings = torch.stack([self.embeddings.get(sample.key).float() for sample in samples])
        return Batch(samples, pixels.contiguous(memory_format=torch.channels_last), embeddings, valid)

    def encode(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 256 g g"]:
        """Compute the student's embeddings, in fp32."""
        with self.autocast():
            embeddings: Tensor = self.sam.image_encoder(pixels.to(self.device))
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
