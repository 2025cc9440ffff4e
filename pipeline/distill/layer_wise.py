"""Dynamic layer-wise distillation: features of blocks beside the image embedding, later layers ramped in.

Source: SAM-Lightening (arXiv 2403.09195); there is no published training code. What the paper leaves open, and what is
chosen here: the schedule (`pipeline.distill.schedule`), which blocks are compared (``feature_layers`` of the recipe),
and the loss, a mean squared error of features normalized over channels. A 1x1 convolution, trained with the student and
discarded afterwards, brings a block's features to the teacher's width; resampling brings them to the embedding's grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.distill.config import LayerWiseRecipe
from pipeline.distill.schedule import layer_weights
from pipeline.distill.task import Batch, Task
from pipeline.models.feature_layers import captured_features, widths
from pipeline.training import losses


@dataclass(frozen=True)
class _FeatureBatch:
    """A batch and the teacher's features ``(B, C, g, g)`` of each pair of feature_layers."""

    images: Batch
    features: list[Tensor]


def distill_layer_wise(task: Task, recipe: LayerWiseRecipe) -> None:
    """Train the student's image encoder; its prompt encoder and mask decoder stay as they are.

    Raises:
        InputError: The student has no such block, or the cache no features of such a block of the teacher.
    """
    encoder = task.sam.image_encoder
    theirs, ours = zip(*recipe.feature_layers, strict=True)
    goals = [task.embeddings.features(task.images.keys[0], layer).shape[0] for layer in theirs]
    known = widths(encoder, ours, task.sam.input_size)
    projections = _projections([known[layer] for layer in ours], goals, task.config.optimizer.seed).to(task.device)

    def draw(indices: list[int], number: int, rngs: list[np.random.Generator]) -> _FeatureBatch:
        batch = task.batch(indices)
        keys = [sample.key for sample in batch.samples]
        return _FeatureBatch(
            batch, [torch.stack([task.embeddings.features(key, layer).float() for key in keys]) for layer in theirs]
        )

    def step(batch: _FeatureBatch, number: int, rng: np.random.Generator) -> Mapping[str, Tensor]:
        embeddings, valid = batch.images.embeddings.to(task.device), batch.images.valid.to(task.device)
        with captured_features(encoder, ours) as features:
            predicted = task.encode(batch.images.pixels)
        taught = [each.to(task.device) for each in batch.features]
        with task.autocast():
            projected = [
                projection(_on_grid(features[layer], goal.shape[-1]))
                for layer, projection, goal in zip(ours, projections, taught, strict=True)
            ]
        embedding = losses.embedding_error(predicted, embeddings, valid, "mse").mean()
        weights = layer_weights(number, layers=len(ours), focus=recipe.focus, ramp_steps=recipe.ramp_steps)
        layers = layer_terms([each.float() for each in projected], taught, valid, weights)
        return {"loss": embedding + recipe.layer_weight * layers.pop("layers"), "embedding": embedding, **layers}

    task.fit(nn.ModuleDict({"encoder": encoder, "projections": projections}), draw, step)


def layer_terms(
    student: Sequence[Tensor], teacher: Sequence[Tensor], valid: Tensor, weights: Sequence[float]
) -> dict[str, Tensor]:
    """The error of each layer, its weight, and ``layers``, the mean of the errors by these weights.

    Args:
        student: Features ``(B, C, g, g)`` of each layer, in its teacher's width and on its grid.
        teacher: Features alike.
        valid: ``(B, g, g)``, False where the padding is.
        weights: One for each layer, not all 0.
    """
    pairs = zip(student, teacher, strict=True)
    errors = torch.stack([losses.feature_error(ours, theirs, valid).mean() for ours, theirs in pairs])
    shares = errors.new_tensor(weights)
    terms = {"layers": (shares * errors).sum() / shares.sum()}
    for place, (error, share) in enumerate(zip(errors, shares, strict=True)):
        terms |= {f"layer_{place}": error, f"layer_{place}_weight": share}
    return terms


def _projections(widths: list[int], goals: list[int], seed: int) -> nn.ModuleList:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleList(nn.Conv2d(width, goal, 1) for width, goal in zip(widths, goals, strict=True))


def _on_grid(features: Tensor, grid: int) -> Tensor:
    """A map on the embedding's grid: averaged where it is finer, interpolated where it is coarser."""
    if features.shape[-1] > grid:
        return F.adaptive_avg_pool2d(features, grid)
    if features.shape[-1] < grid:
        return F.interpolate(features.float(), (grid, grid), mode="bilinear", align_corners=False)
    return features
