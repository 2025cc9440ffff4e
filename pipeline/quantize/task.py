"""Sensitivity of the task's loss to each value in the encoder: squared gradients.

Source: TinySAM (arXiv 2312.13789), which weights the distance between rounded and unrounded outputs by a Hessian of the
loss ``KL(masks) + KL(predicted IoUs)`` against fp32; PTQ4ViT (Yuan et al. 2022) approximates the Hessian by squared
gradients. What differs: at the fp32 model, the gradient of a KL divergence from it is zero. So masks and IoUs are drawn
from the model's prediction, and the log-likelihood of the draw is differentiated; the expectation of the squared
gradient is the KL's Hessian (the Fisher information).
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.shards import Sample
from pipeline.models.decoder import decode
from pipeline.models.sam import Sam
from pipeline.ops import masks
from pipeline.ops.geometry import boxes_to_frame, points_to_frame
from pipeline.ops.point_labels import BOX_CORNERS, FOREGROUND, PADDING

PROMPTS = 8
"""Maximum number of instances per image, each prompted by box and by click."""


def prompts(sample: Sample, side: int) -> tuple[Float[Tensor, "p 2 2"], Float[Tensor, "p 2"]]:
    """Boxes and clicks of the first instances, in the prompt frame; a click on the image's center if there are none."""
    size = (sample.image.shape[0], sample.image.shape[1])
    instances = [masks.decode(a["segmentation"]) for a in sample.annotations[:PROMPTS]]
    clicks = np.array([masks.center(mask) for mask in instances] or [(size[1] / 2, size[0] / 2)], np.float32)
    coords = [np.stack([points_to_frame(clicks, size, side), np.zeros_like(clicks)], axis=1)]
    labels = [np.tile(np.array([[FOREGROUND, PADDING]], np.float32), (len(clicks), 1))]
    if instances:
        boxes = boxes_to_frame(np.array([masks.box(mask) for mask in instances], np.float32), size, side)
        coords.append(boxes.reshape(-1, 2, 2))
        labels.append(np.tile(np.array([BOX_CORNERS], np.float32), (len(instances), 1)))
    return torch.from_numpy(np.concatenate(coords).astype(np.float32)), torch.from_numpy(np.concatenate(labels))


def likelihood(
    sam: Sam, embedding: Float[Tensor, "1 c g g"], sample: Sample, generator: torch.Generator
) -> Float[Tensor, ""]:
    """Compute the negative log-likelihood of masks and IoUs drawn from the model's own prediction.

    Args:
        sam: Its decoder is used.
        embedding: Image embedding, with a gradient.
        sample: Image whose masks give the prompts.
        generator: Source of the draws.
    """
    coords, labels = prompts(sample, sam.image_size)
    return drawn_likelihood(*decode(sam, embedding, coords[None], labels[None]), generator)


def drawn_likelihood(
    logits: Float[Tensor, "*n m m"], ious: Float[Tensor, "*n"], generator: torch.Generator
) -> Float[Tensor, ""]:
    """`likelihood` of a decoder's outputs: mask logits and predicted IoUs."""
    odds = {"masks": logits, "ious": torch.logit(ious.clamp(1e-3, 1 - 1e-3))}
    # Divided by the root of the number of terms, so that squared gradients estimate the Hessian of a mean.
    return torch.stack(
        [
            F.binary_cross_entropy_with_logits(
                value, torch.bernoulli(value.detach().sigmoid(), generator=generator), reduction="sum"
            )
            / math.sqrt(value.numel())
            for value in odds.values()
        ]
    ).sum()


def squared_gradients(loss: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute the squared gradient of a loss with respect to each tensor; zeros if it does not depend on it."""
    gradients = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
    return {
        name: torch.zeros_like(tensor) if gradient is None else gradient.square()
        for (name, tensor), gradient in zip(tensors.items(), gradients, strict=True)
    }
