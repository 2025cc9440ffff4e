"""Embedding distillation: mean squared error against the teacher's image embedding, over the un-padded area.

Source: EfficientViT-SAM (arXiv 2402.05008), stage 1; the restriction to the un-padded area is EdgeSAM's. The teacher's
encoder is never run here: its embeddings come from the cache, of a 1024-pixel teacher also for a 512-pixel student.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data.embeddings import Embeddings
from pipeline.data.shards import Shards
from pipeline.distill.config import DistillConfig
from pipeline.geometry import to_input, valid_cells
from pipeline.log import Log
from pipeline.losses import embedding_mse
from pipeline.models.sam import Sam
from pipeline.training import autocast, fit

Batch = tuple[Tensor, Tensor, Tensor]
"""Images ``(B, 3, S, S)``, teacher's embeddings ``(B, 256, g, g)``, valid cells ``(B, g, g)``."""


def distill_embeddings(
    sam: Sam,
    images: Shards,
    embeddings: Embeddings,
    config: DistillConfig,
    *,
    device: torch.device,
    log: Log,
    checkpoint: Path | None,
) -> None:
    """Train ``sam.image_encoder`` in place; prompt encoder and mask decoder stay as they are."""
    encoder = sam.image_encoder.to(device)
    encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    def draw(indices: list[int], number: int, rngs: list[np.random.Generator]) -> Batch:
        return _batch(sam, images, embeddings, indices)

    def step(batch: Batch, number: int, rng: np.random.Generator) -> Mapping[str, Tensor]:
        pixels, target, valid = (part.to(device) for part in batch)
        with autocast(device, config.optimizer.autocast):
            predicted = encoder(pixels)
        return {"loss": embedding_mse(predicted.float(), target, valid), "weight": valid.sum()}

    fit(
        encoder,
        draw,
        step,
        config.optimizer,
        count=len(images),
        batch=config.batch,
        log=log,
        name="distill",
        device=device,
        checkpoint=checkpoint,
    )
    sam.to("cpu")


def _batch(sam: Sam, images: Shards, embeddings: Embeddings, indices: Sequence[int]) -> Batch:
    pixels, targets, valid = [], [], torch.zeros(len(indices), sam.embedding_size, sam.embedding_size, dtype=torch.bool)
    for place, index in enumerate(indices):
        sample = images[index]
        pixels.append(to_input(sample.image, sam.input_size))
        targets.append(embeddings.get(sample.key).float())
        height, width = valid_cells(sample.image.shape[:2], sam.embedding_size)
        valid[place, :height, :width] = True
    return torch.stack(pixels).contiguous(memory_format=torch.channels_last), torch.stack(targets), valid


@torch.inference_mode()
def held_out_error(
    sam: Sam, images: Shards, embeddings: Embeddings, config: DistillConfig, *, device: torch.device
) -> dict[str, float]:
    """Mean squared error and cosine to the teacher's embeddings on images that were not trained on."""
    encoder = sam.image_encoder.to(device).eval()
    errors, cosines = [], []
    for start in range(0, len(images), config.batch):
        batch = _batch(sam, images, embeddings, range(start, min(start + config.batch, len(images))))
        pixels, target, valid = (part.to(device) for part in batch)
        predicted = encoder(pixels).float()
        for one in range(len(pixels)):
            cells = valid[one].flatten()
            ours, theirs = predicted[one].flatten(1)[:, cells], target[one].flatten(1)[:, cells]
            errors.append(float((ours - theirs).square().mean()))
            cosines.append(float(torch.cosine_similarity(ours, theirs, dim=0).mean()))
    sam.to("cpu")
    return {"embedding_mse": float(np.mean(errors)), "embedding_cosine": float(np.mean(cosines))}
