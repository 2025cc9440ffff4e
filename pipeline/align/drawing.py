"""Reading of batches for ``align``, in worker processes if need be: nothing here holds a model or a device."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Float16, Int, UInt8
from torch import Tensor

from pipeline.align.config import AlignConfig
from pipeline.data.embeddings import Embeddings
from pipeline.data.instances import instances_of
from pipeline.data.prompts import Prompts, drawn_prompts
from pipeline.data.shards import Shards
from pipeline.ops.geometry import padded
from pipeline.training import losses


@dataclass(frozen=True)
class Pixels:
    """Images in bytes; see `pipeline.ops.geometry.normalised`."""

    rgb: UInt8[Tensor, "b s s 3"]
    sizes: Int[Tensor, "b 2"]
    """Height and width without padding."""


@dataclass(frozen=True)
class Batch:
    """Images, and their prompts grouped by number of points."""

    indices: list[int]
    """Of the images in their split."""
    pixels: Pixels | None
    """None if the images' embeddings are cached."""
    groups: list[tuple[list[int], Prompts]]
    """Indices of images in the batch, and the prompts of these images."""
    chance: Float[Tensor, "b p q 2"]
    """Uniform random points for `losses.bce_points`; Q is 0 for other losses."""
    teacher: Float16[Tensor, "b 256 g g"] | Float[Tensor, "b 256 g g"] | None
    """The teacher's embeddings, if its masks are targets; in half precision until they are on the device."""

    def to(self, device: torch.device) -> "Batch":
        """Move to ``device``, where embeddings become single precision."""
        pixels = self.pixels
        if pixels is not None:
            pixels = Pixels(pixels.rgb.to(device, non_blocking=True), pixels.sizes.to(device, non_blocking=True))
        return replace(
            self,
            pixels=pixels,
            groups=[(rows, prompts.to(device)) for rows, prompts in self.groups],
            chance=self.chance.to(device, non_blocking=True),
            teacher=None if self.teacher is None else self.teacher.to(device, non_blocking=True).float(),
        )


@dataclass(frozen=True)
class Draw:
    """Draws batches. Picklable."""

    images: Shards
    labelled: list[int]
    """Images that have masks."""
    config: AlignConfig
    embeddings: Embeddings | None
    """The teacher's, if its masks are targets."""
    image_size: int
    input_size: int
    embedding_size: int

    def __call__(self, indices: list[int], number: int, rngs: list[np.random.Generator]) -> Batch:
        """Draw a batch; see `pipeline.training.Draw`."""
        config, raster = self.config, 4 * self.embedding_size
        chosen = [self.labelled[index] for index in indices]
        mirrored = [config.flip and rng.random() < 0.5 for rng in rngs]
        if config.keep_embeddings:
            records, pixels = [self.images.annotated(index) for index in chosen], None
        else:
            samples = [self.images.resized(index, self.input_size, annotated=True) for index in chosen]
            records = [(sample.key, sample.size, sample.annotations) for sample in samples]
            pixels = stacked([sample.pixels for sample in samples], self.input_size, mirrored)
        instances = [
            instances_of(annotations, size, self.image_size, raster, mirror=mirror)
            for (_, size, annotations), mirror in zip(records, mirrored, strict=True)
        ]
        groups = drawn_prompts(
            rngs,
            [image.coverages for image in instances],
            [image.boxes for image in instances],
            config.masks,
            self.image_size,
            clicks=(config.clicks[0], config.clicks[1]),
            box_jitter=config.box_jitter,
        )
        points = losses.candidates_of(raster) if config.mask_loss == "bce_points" else 0
        chance = np.stack([rng.random((config.masks, points, 2), np.float32) for rng in rngs])
        teacher = None
        if self.embeddings is not None:
            teacher = torch.stack([self.embeddings.get(key) for key, _, _ in records])
        return Batch(chosen, pixels, groups, torch.from_numpy(chance), teacher)


def stacked(images: list[UInt8[np.ndarray, "_ _ 3"]], side: int, mirrored: list[bool]) -> Pixels:
    """Pad resized images to a batch, some of them flipped horizontally."""
    flipped = [image[:, ::-1] if mirror else image for image, mirror in zip(images, mirrored, strict=True)]
    return Pixels(
        torch.from_numpy(np.stack([padded(image, side) for image in flipped])),
        torch.tensor([image.shape[:2] for image in images]),
    )
