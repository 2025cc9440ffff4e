"""Losses of mask prediction and distillation: pure functions of tensors, student or prediction first.

Source: SAM, appendix A (focal to dice 20 : 1, IoU head error, minimum over three masks); EdgeSAM for the embedding
loss over the un-padded area; EfficientViT-SAM's code for cross-entropy on uncertain points (PointRend);
TinySAM (arXiv 2312.13789), section 3.1, for tokens, mask logits and the hard mask weight; SAM-Lightening
(arXiv 2403.09195) for features of layers. No gradient reaches a teacher or a target.
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

MASK_WEIGHTS: Mapping[str, float] = {"focal": 20.0, "bce": 20.0, "dice": 1.0}
IOU_WEIGHT = 1.0
UNCERTAIN_SHARE = 0.75
EPS = 1e-6

MaskLoss = Callable[[Tensor, Tensor], Mapping[str, Tensor]]
"""Maps logits and target, both ``(..., h, w)``, to terms ``(...)`` by name, keys of `MASK_WEIGHTS`."""


def focal(logits: Float[Tensor, "*n h w"], target: Float[Tensor, "*n h w"], gamma: float = 2.0) -> Float[Tensor, "*n"]:
    """Focal loss per mask, mean over its pixels (Lin et al. 2017), without the alpha weight.

    Args:
        logits: Mask logits.
        target: Coverage in [0, 1]; soft values at borders are allowed.
        gamma: Focusing parameter; larger values down-weight confident pixels more.
    """
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    miss = (logits.sigmoid() - target).abs()
    return (cross_entropy * miss**gamma).mean(dim=(-2, -1))


def dice(logits: Float[Tensor, "*n h w"], target: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n"]:
    """One minus the soft Dice coefficient per mask, with one pixel of smoothing (Milletari et al. 2016)."""
    mask = logits.sigmoid()
    overlap = (mask * target).sum(dim=(-2, -1))
    return 1 - (2 * overlap + 1) / (mask.sum(dim=(-2, -1)) + target.sum(dim=(-2, -1)) + 1)


def focal_dice(logits: Float[Tensor, "*n h w"], target: Float[Tensor, "*n h w"]) -> dict[str, Float[Tensor, "*n"]]:
    """Focal and Dice terms, the mask loss of SAM and TinySAM."""
    return {"focal": focal(logits, target), "dice": dice(logits, target)}


def bce_points(
    logits: Float[Tensor, "b p k h w"], target: Float[Tensor, "b p k h w"], candidates: Float[Tensor, "b p q 2"]
) -> dict[str, Float[Tensor, "b p k"]]:
    """Cross-entropy and Dice on random points, mostly uncertain ones (PointRend), as in EfficientViT-SAM's code.

    The loss uses n points. Three quarters of them are those with the logit nearest to 0 among 3 n candidates; the
    remaining quarter is used without selection.

    Args:
        logits: Mask logits.
        target: Coverage in [0, 1].
        candidates: Points (x, y) uniform in [0, 1], shared by the k masks of a prompt: see `candidates_of`.
    """
    count = candidates.shape[2] * 4 // 13  # 3 n candidates for selection and n / 4 used directly
    unselected = count - round(count * UNCERTAIN_SHARE)
    pool, direct = candidates.split([candidates.shape[2] - unselected, unselected], dim=2)
    k = logits.shape[2]

    def sample(values: Tensor, points: Tensor) -> Tensor:
        """Sample ``(b, p, k, h, w)`` at ``(b, p, k, q, 2)``: ``(b, p, k, q)``."""
        grid = 2 * points.flatten(0, 2)[:, None] - 1
        sampled = F.grid_sample(values.flatten(0, 2)[:, None], grid, padding_mode="border", align_corners=False)
        return sampled[:, 0, 0].unflatten(0, values.shape[:3])

    pool, direct = (points[:, :, None].expand(-1, -1, k, -1, -1) for points in (pool, direct))
    with torch.no_grad():
        nearest = sample(logits, pool).abs().topk(count - unselected, dim=3, largest=False).indices
        points = torch.cat([pool.gather(3, nearest[..., None].expand(-1, -1, -1, -1, 2)), direct], dim=3)
        truth = sample(target, points)
    predicted = sample(logits, points)
    cross_entropy = F.binary_cross_entropy_with_logits(predicted, truth, reduction="none").mean(dim=3)
    return {"bce": cross_entropy, "dice": dice(predicted[..., None, :], truth[..., None, :])}


def candidates_of(side: int) -> int:
    """Number of candidate points for `bce_points` on masks of ``side`` pixels: 13/4 of 112 x 112 for a side of 256."""
    return 13 * max(1, round((side * 112 / 256) ** 2 / 4))


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
    *,
    mask_loss: MaskLoss = focal_dice,
    iou_distance: Callable[..., Tensor] = F.mse_loss,
    iou_weight: float = IOU_WEIGHT,
    all_weight: Float[Tensor, "b p"] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Loss of the best of k masks per prompt, and of the predicted IoUs of all k.

    Args:
        logits: Mask logits of k candidates for each prompt.
        iou_predictions: Predicted IoU of each.
        target: Coverage in [0, 1].
        present: Prompts that count; padding is False.
        mask_loss: Computes the terms of a mask.
        iou_distance: ``F.mse_loss`` as in SAM, ``F.l1_loss`` as in TinySAM.
        iou_weight: Weight of the predicted IoUs' error in the loss.
        all_weight: Per prompt, weight of the mean loss of all k masks beside that of the best one; None for 0.

    Returns:
        ``loss`` and its terms, ``iou`` and those of ``mask_loss``, each a mean over the prompts that count.
    """
    truth = target[:, :, None].expand_as(logits)
    terms = mask_loss(logits, truth)
    best = _weighted(terms).argmin(dim=2, keepdim=True)
    iou_errors = iou_distance(iou_predictions, mask_iou(logits, truth), reduction="none").mean(dim=2)
    count = present.sum().clamp(min=1)
    means = {name: (term.gather(2, best)[..., 0] * present).sum() / count for name, term in terms.items()}
    iou = (iou_errors * present).sum() / count
    loss = _weighted(means) + iou_weight * iou
    if all_weight is not None:
        loss = loss + (_weighted(terms).mean(dim=2) * all_weight * present).sum() / count
    return {"loss": loss, **means, "iou": iou}


def _weighted(terms: Mapping[str, Tensor]) -> Tensor:
    weighted = [MASK_WEIGHTS[name] * term for name, term in terms.items()]
    return torch.stack(weighted).sum(dim=0)


def embedding_error(
    student: Float[Tensor, "b c g g"], teacher: Float[Tensor, "b c g g"], valid: Bool[Tensor, "b g g"], distance: str
) -> Float[Tensor, " b"]:
    """Error of each image's embedding, averaged over the cells that contain image content.

    Args:
        student: Image embeddings.
        teacher: Image embeddings.
        valid: False for padding.
        distance: ``mse`` or ``l1``.
    """
    measure = {"mse": F.mse_loss, "l1": F.l1_loss}[distance]
    error = measure(student, teacher.detach(), reduction="none").mean(dim=1)
    return (error * valid).sum(dim=(1, 2)) / valid.sum(dim=(1, 2)).clamp(min=1)


def feature_error(
    student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c h w"], valid: Bool[Tensor, "b h w"]
) -> Float[Tensor, " b"]:
    """Mean squared error of a layer's features, each cell normalised to mean 0 and variance 1 over channels.

    The normalisation keeps deep layers, whose features are many times larger, from dominating early ones.
    """
    student, teacher = (F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1) for x in (student, teacher))
    return embedding_error(student, teacher, valid, "mse")


def relative_l1(student: Float[Tensor, "*n"], teacher: Float[Tensor, "*n"], dims: int) -> Float[Tensor, "*m"]:
    """Mean absolute error over all but the first ``dims`` dimensions, relative to the teacher's mean absolute value.

    TinySAM adds L1 errors of embeddings, tokens and logits, whose scales differ, with unpublished weights. Relative to
    the teacher's scale, equal weights are comparable.
    """
    over = tuple(range(dims, student.ndim))
    scale = teacher.detach().abs().mean(dim=tuple(range(1, teacher.ndim)))
    error = (student - teacher.detach()).abs().mean(dim=over)
    return error / scale.reshape(-1, *[1] * (dims - 1)).clamp(min=EPS)


@torch.no_grad()
def hard_mask_weight(
    student_logits: Float[Tensor, "*n h w"], teacher_logits: Float[Tensor, "*n h w"], target: Float[Tensor, "*n h w"]
) -> Float[Tensor, "*n"]:
    """``sigmoid(IoU_teacher / (IoU_student + eps) - 1)``: 0.5 if both are equally good, 1 if only the teacher is.

    Source: TinySAM, section 3.1, hard mask weighting.
    """
    ratio = mask_iou(teacher_logits, target) / (mask_iou(student_logits, target) + EPS)
    return torch.sigmoid(ratio - 1)
