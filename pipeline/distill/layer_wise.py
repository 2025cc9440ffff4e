"""Dynamic layer-wise distillation: block features and the image embedding, with ramped layer weights.

Source: SAM-Lightening (arXiv 2403.09195); there is no published training code. Not specified in the paper and chosen
here: the schedule (`pipeline.distill.schedule`), the compared blocks (``feature_layers`` of the recipe), and the loss,
a mean squared error of features normalized over channels. A 1x1 convolution, trained with the student and discarded
afterwards, projects a block's features to the teacher's width; resampling matches the embedding's grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.distill.config import LayerWiseRecipe
from pipeline.distill.drawing import Batch, Inputs
from pipeline.distill.schedule import layer_weights
from pipeline.distill.task import Task
from pipeline.models.feature_layers import captured_features, widths
from pipeline.training import losses


@dataclass(frozen=True)
class _FeatureBatch:
    """A batch and the teacher's features ``(B, C, g, g)``, one tensor per pair of feature layers."""

    images: Batch
    features: list[Tensor]
    """In half precision."""


@dataclass(frozen=True)
class _Draw:
    """Draws batches with the features of the teacher's blocks ``layers``."""

    inputs: Inputs
    layers: tuple[int, ...]

    def __call__(self, indices: list[int], number: int, rngs: list[np.random.Generator]) -> _FeatureBatch:
        batch = self.inputs.batch(self.inputs.read(indices, annotated=False))
        stored = self.inputs.embeddings
        return _FeatureBatch(
            batch, [torch.stack([stored.features(key, layer) for key in batch.keys]) for layer in self.layers]
        )


def distill_layer_wise(task: Task, recipe: LayerWiseRecipe) -> None:
    """Train the student's image encoder; its prompt encoder and mask decoder stay unchanged.

    Raises:
        InputError: The student has no such block, or a teacher block's features are not cached.
    """
    encoder = task.sam.image_encoder
    teacher_layers, student_layers = zip(*recipe.feature_layers, strict=True)
    teacher_widths = [task.embeddings.features(task.images.keys[0], layer).shape[0] for layer in teacher_layers]
    channels = widths(encoder, student_layers, task.sam.input_size)
    projections = _projections([channels[layer] for layer in student_layers], teacher_widths, task.config.training.seed)
    projections.to(task.device)
    draw = _Draw(task.inputs, teacher_layers)

    def step(batch: _FeatureBatch, number: int, rng: np.random.Generator) -> Mapping[str, Tensor]:
        images = batch.images.to(task.device)
        with captured_features(encoder, student_layers) as features:
            predicted = task.encode(images)
        targets = [layer_features.to(task.device, non_blocking=True).float() for layer_features in batch.features]
        with task.autocast():
            projected = [
                projection(_on_grid(features[layer], target.shape[-1]))
                for layer, projection, target in zip(student_layers, projections, targets, strict=True)
            ]
        embedding = losses.embedding_error(predicted, images.embeddings, images.valid, "mse").mean()
        weights = layer_weights(number, layers=len(student_layers), focus=recipe.focus, ramp_steps=recipe.ramp_steps)
        layers = layer_terms([output.float() for output in projected], targets, images.valid, weights)
        return {"loss": embedding + recipe.layer_weight * layers.pop("layers"), "embedding": embedding, **layers}

    task.fit(nn.ModuleDict({"encoder": encoder, "projections": projections}), draw, step)


def layer_terms(
    student: Sequence[Tensor], teacher: Sequence[Tensor], valid: Tensor, weights: Sequence[float]
) -> dict[str, Tensor]:
    """Compute each layer's error, its weight, and ``layers``, the weighted mean of the errors.

    Args:
        student: Features ``(B, C, g, g)`` of each layer, with the teacher's channels and grid.
        teacher: Features of the same shapes.
        valid: ``(B, g, g)``, False on padding.
        weights: One per layer, not all 0.
    """
    pairs = zip(student, teacher, strict=True)
    errors = torch.stack([losses.feature_error(predicted, target, valid).mean() for predicted, target in pairs])
    # Filled in on the device: the copy of a list would be waited for.
    shares = torch.stack([errors.new_full((), weight) for weight in weights])
    terms = {"layers": (shares * errors).sum() / shares.sum()}
    for layer, (error, share) in enumerate(zip(errors, shares, strict=True)):
        terms |= {f"layer_{layer}": error, f"layer_{layer}_weight": share}
    return terms


def _projections(student_widths: list[int], teacher_widths: list[int], seed: int) -> nn.ModuleList:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.ModuleList(
            nn.Conv2d(inputs, outputs, 1) for inputs, outputs in zip(student_widths, teacher_widths, strict=True)
        )


def _on_grid(features: Tensor, grid: int) -> Tensor:
    """Resample a feature map to the embedding's grid: average if it is finer, interpolate if it is coarser."""
    if features.shape[-1] > grid:
        return F.adaptive_avg_pool2d(features, grid)
    if features.shape[-1] < grid:
        return F.interpolate(features.float(), (grid, grid), mode="bilinear", align_corners=False)
    return features
