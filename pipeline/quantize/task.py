"""How much the task minds a change of each value in the encoder: squared gradients of its loss.

Source: TinySAM (arXiv 2312.13789), whose distance between rounded and unrounded outputs is weighted by a
Hessian from the loss ``KL(masks) + KL(predicted IoUs)`` against fp32; PTQ4ViT (Yuan et al. 2022) approximates the
Hessian by squared gradients. What differs: at the fp32 model itself the gradient of a KL divergence from it is zero, so
masks and IoUs are drawn from what the model predicts and the log-likelihood of the draw is differentiated. The square
of that gradient has the KL's Hessian (Fisher's information) as its mean.
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
"""Instances of an image that are asked for, by box and by click."""


def prompts(sample: Sample, side: int) -> tuple[Float[Tensor, "p 2 2"], Float[Tensor, "p 2"]]:
    """Boxes and clicks of the first instances, in the prompt frame; the image's middle where there is none."""
    size = (sample.image.shape[0], sample.image.shape[1])
    found = [masks.decode(a["segmentation"]) for a in sample.annotations[:PROMPTS]]
    clicks = np.array([masks.center(mask) for mask in found] or [(size[1] / 2, size[0] / 2)], np.float32)
    coords = [np.stack([points_to_frame(clicks, size, side), np.zeros_like(clicks)], axis=1)]
    labels = [np.tile(np.array([[FOREGROUND, PADDING]], np.float32), (len(clicks), 1))]
    if found:
        boxes = boxes_to_frame(np.array([masks.box(mask) for mask in found], np.float32), size, side)
        coords.append(boxes.reshape(-1, 2, 2))
        labels.append(np.tile(np.array([BOX_CORNERS], np.float32), (len(found), 1)))
    return torch.from_numpy(np.concatenate(coords).astype(np.float32)), torch.from_numpy(np.concatenate(labels))


def likelihood(
    sam: Sam, embedding: Float[Tensor, "1 c g g"], sample: Sample, generator: torch.Generator
) -> Float[Tensor, ""]:
    """Negative log-likelihood of masks and IoUs drawn from the model's own prediction.

    Args:
        sam: Gives the decoder.
        embedding: What the gradient is asked for.
        sample: Its image's masks are the prompts.
        generator: Draws.
    """
    coords, labels = prompts(sample, sam.image_size)
    logits, ious = decode(sam, embedding, coords[None], labels[None])
    odds = {"masks": logits, "ious": torch.logit(ious.clamp(1e-3, 1 - 1e-3))}
    # Sums over the root of their number: squares of the gradient then estimate the Hessian of a mean.
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
    """The squared gradient of a loss with respect to each tensor; zeros where it does not depend on one."""
    found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
    return {
        name: torch.zeros_like(tensor) if gradient is None else gradient.square()
        for (name, tensor), gradient in zip(tensors.items(), found, strict=True)
    }
