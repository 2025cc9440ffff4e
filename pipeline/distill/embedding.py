"""Embedding distillation: error to the teacher's image embedding, over the unpadded area.

Source: EfficientViT-SAM (arXiv 2402.05008), stage 1, and MobileSAM (arXiv 2306.14289): mean squared error; TinySAM
uses L1. The restriction to the unpadded area is EdgeSAM's.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pipeline.distill.config import EmbeddingRecipe
from pipeline.distill.drawing import Batch, DrawImages
from pipeline.distill.task import Task
from pipeline.ops.geometry import normalised
from pipeline.training import losses


def distill_embeddings(task: Task, recipe: EmbeddingRecipe) -> None:
    """Train the student's image encoder; its prompt encoder and mask decoder stay unchanged."""

    def step(batch: Batch, number: int, rng: np.random.Generator) -> Mapping[str, Tensor]:
        images = batch.to(task.device)
        error = losses.embedding_error(task.encode(images), images.embeddings, images.valid, recipe.distance)
        return {"loss": error.mean()}

    task.fit(task.sam.image_encoder, DrawImages(task.inputs), step)


@torch.inference_mode()
def held_out_error(task: Task) -> dict[str, float]:
    """Mean squared error and cosine to the teacher's embeddings on ``task.images``, one image at a time, in fp32."""
    encoder = task.sam.image_encoder.to(task.device).eval()
    draw = DrawImages(task.inputs)
    errors, cosines = [], []
    for index in range(len(task.images)):  # a whole training batch may exceed one process's memory
        batch = draw([index], 0, []).to(task.device)
        predicted = encoder(normalised(batch.pixels, batch.sizes)).float()
        target, valid = batch.embeddings, batch.valid
        errors += losses.embedding_error(predicted, target, valid, "mse").tolist()
        cosine = torch.cosine_similarity(predicted, target, dim=1)
        cosines += ((cosine * valid).sum(dim=(1, 2)) / valid.sum(dim=(1, 2))).tolist()
    return {"embedding_mse": float(np.mean(errors)), "embedding_cosine": float(np.mean(cosines))}
