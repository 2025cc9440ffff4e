"""Reading of batches for every recipe, in worker processes if need be: nothing here holds a model or a device.

Images stay in bytes and embeddings in half precision until they are on the device, which converts them: a quarter and a
half of the memory, and of the time to copy it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int, UInt8
from torch import Tensor

from pipeline.data.embeddings import Embeddings
from pipeline.data.instances import instances_of
from pipeline.data.prompts import Prompts, first_prompts
from pipeline.data.shards import Resized, Shards
from pipeline.ops.geometry import padded, valid_cells


@dataclass(frozen=True)
class Batch:
    """Images and the teacher's embeddings."""

    keys: list[str]
    """Of the samples."""
    pixels: UInt8[Tensor, "b s s 3"]
    """RGB, padded; see `pipeline.ops.geometry.normalised`."""
    sizes: Int[Tensor, "b 2"]
    """Height and width without padding."""
    embeddings: Float16[Tensor, "b 256 g g"] | Float[Tensor, "b 256 g g"]
    """In half precision until they are on the device."""
    valid: Bool[Tensor, "b g g"]
    """True for cells that cover part of the image, False for padding."""

    def to(self, device: torch.device) -> "Batch":
        """Move to ``device``, where embeddings become single precision."""
        pixels, sizes, embeddings, valid = (
            part.to(device, non_blocking=True) for part in (self.pixels, self.sizes, self.embeddings, self.valid)
        )
        return Batch(self.keys, pixels, sizes, embeddings.float(), valid)


@dataclass(frozen=True)
class Inputs:
    """Images and embeddings of a training run. Picklable."""

    images: Shards
    embeddings: Embeddings
    image_size: int
    """Side of the prompt frame, in pixels."""
    input_size: int
    """Side of the encoder's input, in pixels."""
    embedding_size: int
    """Side of the image embedding, in cells."""

    def read(self, indices: Sequence[int], *, annotated: bool) -> list[Resized]:
        """The samples at these indices, at the size of the encoder's input."""
        return [self.images.resized(index, self.input_size, annotated=annotated) for index in indices]

    def batch(self, samples: Sequence[Resized]) -> Batch:
        """Stack images, and add their embeddings."""
        grid = self.embedding_size
        valid = torch.zeros(len(samples), grid, grid, dtype=torch.bool)
        for row, sample in enumerate(samples):
            height, width = valid_cells(sample.size, grid)
            valid[row, :height, :width] = True
        return Batch(
            [sample.key for sample in samples],
            torch.from_numpy(np.stack([padded(sample.pixels, self.input_size) for sample in samples])),
            torch.tensor([sample.pixels.shape[:2] for sample in samples]),
            torch.stack([self.embeddings.get(sample.key) for sample in samples]),
            valid,
        )


@dataclass(frozen=True)
class DrawImages:
    """Draws batches without prompts."""

    inputs: Inputs

    def __call__(self, indices: list[int], number: int, rngs: list[np.random.Generator]) -> Batch:
        """Draw a batch; see `pipeline.training.Draw`."""
        return self.inputs.batch(self.inputs.read(indices, annotated=False))


@dataclass(frozen=True)
class Prompted:
    """A batch, its first prompts, and random numbers ``(B, rounds, P)`` in [0, 1) that choose later clicks."""

    images: Batch
    prompts: Prompts
    chance: Tensor

    def to(self, device: torch.device) -> "Prompted":
        """Move to ``device``."""
        return Prompted(self.images.to(device), self.prompts.to(device), self.chance.to(device, non_blocking=True))


@dataclass(frozen=True)
class DrawPrompted:
    """Draws batches with prompts; only the masks of prompted instances are decoded."""

    inputs: Inputs
    prompts: int
    """Per image."""
    box_jitter: float
    """See `pipeline.data.prompts.noisy_box`."""
    rounds: int
    """Of later clicks."""

    def __call__(self, indices: list[int], number: int, rngs: list[np.random.Generator]) -> Prompted:
        """Draw a batch; see `pipeline.training.Draw`."""
        own = self.inputs
        samples = own.read(indices, annotated=True)
        instances = [instances_of(s.annotations, s.size, own.image_size, 4 * own.embedding_size) for s in samples]
        prompts = first_prompts(
            rngs,
            [image.coverages for image in instances],
            [image.boxes for image in instances],
            self.prompts,
            own.image_size,
            box_jitter=self.box_jitter,
        )
        chance = np.stack([rng.random((self.rounds, self.prompts), np.float32) for rng in rngs])
        return Prompted(own.batch(samples), prompts, torch.from_numpy(chance))
