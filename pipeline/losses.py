"""Losses of mask prediction and distillation: pure functions of tensors, student or prediction first.

Source: SAM, appendix A (focal to dice 20 : 1, mean squared error of the IoU head, the smallest of three masks); EdgeSAM
for the embedding loss over the un-padded area.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

FOCAL_WEIGHT, DICE_WEIGHT, IOU_WEIGHT = 20.0, 1.0, 1.0


def focal(logits: Float[Tensor, "*n h w"], target: Float[Tensor, "*n h w"], gamma: float = 2.0) -> Float[Tensor, "*n"]:
    """Focal loss per mask, mean over its pixels (Lin et al. 2017), without the alpha weight.

    Args:
        logits: Mask logits.
        target: Coverage in [0, 1]; soft values at borders are allowed.
        gamma: How much sure pixels are discounted.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    miss = (logits.sigmoid() - target).abs()
    return (cross_entropy * miss**gamma).mean(dim=(-2, -1))


def dice(logits: Float[Tensor, "*n h w"], target: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """One minus the soft Dice coefficient per mask, with one pixel of smoothing (Milletari et al. 2016)."""
    mask = logits.sigmoid()
    overlap = (mask * target).sum(dim=(-2, -1))
    return 1 - (2 * overlap + 1) / (mask.sum(dim=(-2, -1)) + target.sum(dim=(-2, -1)) + 1)


@torch.no_grad()
def mask_iou(logits: Float[Tensor, "*n h w"], target: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """IoU of thresholded masks; 1 where both are empty."""
    mask, truth = logits > 0, target > 0.5
    union = (mask | truth).sum(dim=(-2, -1))
    return torch.where(union > 0, (mask & truth).sum(dim=(-2, -1)) / union.clamp(min=1), 1.0)


def best_mask(
    logits: Float[Tensor, "b p k h w"],
    iou_predictions: Float[Tensor, "b p k"],
    target: Float[Tensor, "b p h w"],
    present: Bool[Tensor, "b p"],
) -> dict[str, Float[Tensor, ""]]:
    """Loss of the best of k masks per prompt, and of the predicted IoUs of all k.

    Args:
        logits: Mask logits of k candidates for each prompt.
        iou_predictions: What the IoU head says of each.
        target: Coverage in [0, 1].
        present: Prompts that count; padding is False.

    Returns:
        ``loss`` and its terms ``focal``, ``dice``, ``iou``, each a mean over the prompts that count.
    """
    truth = target[:, :, None].expand_as(logits)
    focals, dices = focal(logits, truth), dice(logits, truth)
    best = (FOCAL_WEIGHT * focals + DICE_WEIGHT * dices).argmin(dim=2, keepdim=True)
    iou_errors = F.mse_loss(iou_predictions, mask_iou(logits, truth), reduction="none").mean(dim=2)
    count = present.sum().clamp(min=1)
    terms = {
        "focal": (focals.gather(2, best)[..., 0] * present).sum() / count,
        "dice": (dices.gather(2, best)[..., 0] * present).sum() / count,
        "iou": (iou_errors * present).sum() / count,
    }
    loss = FOCAL_WEIGHT * terms["focal"] + DICE_WEIGHT * terms["dice"] + IOU_WEIGHT * terms["iou"]
    return {"loss": loss, **terms}


def embedding_mse(
    student: Float[Tensor, "b c g g"], teacher: Float[Tensor, "b c g g"], valid: Bool[Tensor, "b g g"]
) -> Float[Tensor, ""]:
    """Mean squared error of image embeddings over the cells that hold some of the image (``valid``)."""
    error = F.mse_loss(student, teacher, reduction="none").mean(dim=1)
    return (error * valid).sum() / valid.sum().clamp(min=1)
