"""SAM's two training rounds of a prompt.

Source: SAM, appendix A. In the first round, a box or a click gives three masks, of which the best is trained. In the
second, that mask and a click in its error region give the single mask. What differs, for a CPU: two rounds instead of
eleven.

Losses compare masks at twice the decoder's resolution. Area coverage at the decoder's own, four pixels of the frame,
cannot describe a small object: even the exact coverage, thresholded, gives the small objects of the held-out
photographs an IoU of 0.73, while the best logits at that resolution give 0.89.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.prompts import Prompts, corrective_clicks
from pipeline.models.decoder import decode
from pipeline.models.sam import Sam
from pipeline.ops.point_labels import UPPER_LEFT
from pipeline.train_teacher.windows import Window, corner_px, positioned, side_px
from pipeline.training import losses

IOU_WEIGHT = 4.0
"""Weight of the error of the predicted IoUs in the first round. SAM's is 1; with it, the choice of the mask lags behind
the masks in a training of some thousand steps."""
ALL_WEIGHT = 1.0
"""Weight of the mean loss of the three masks of a box, beside that of the best. A box is not ambiguous: with all three
trained, it matters little which is chosen."""
FINER = 2
"""Resolution of the losses relative to that of the decoder's masks."""


def two_rounds(
    sam: Sam,
    embeddings: Tensor,
    prompts: Prompts,
    rngs: Sequence[np.random.Generator],
    *,
    correct: bool,
    window: Window,
) -> dict[str, Tensor]:
    """Compute the losses of the first round and, if ``correct``, of the second.

    Args:
        sam: The model that is trained.
        embeddings: ``(B, 256, h, w)``, of windows of the frame.
        prompts: Prompts in pixels of the windows.
        rngs: Random generator of each image, for corrective clicks.
        correct: Whether to train the second round, which costs as much as the first.
        window: Where the windows lie in the frame.
    """
    with positioned(sam, window):
        return _two_rounds(sam, embeddings, prompts, rngs, correct=correct, window=window)


def _two_rounds(
    sam: Sam,
    embeddings: Tensor,
    prompts: Prompts,
    rngs: Sequence[np.random.Generator],
    *,
    correct: bool,
    window: Window,
) -> dict[str, Tensor]:
    device, corner = embeddings.device, torch.tensor(corner_px(sam, window), device=embeddings.device)
    coords, labels = prompts.coords.to(device) + corner, prompts.labels.to(device)
    targets, present = prompts.targets.to(device), prompts.present.to(device)
    logits, iou = decode(sam, embeddings, coords, labels)
    coarse = logits[:, :, 1:].float()
    answers, values = finer(coarse), iou[:, :, 1:].float()
    boxes = (labels == UPPER_LEFT).any(dim=2)
    first = losses.best_mask(answers, values, targets, present, iou_weight=IOU_WEIGHT, all_weight=ALL_WEIGHT * boxes)
    if not correct:
        return first

    with torch.no_grad():
        pick = losses.mask_iou(answers, targets[:, :, None].expand_as(answers)).argmax(dim=2)
        index = pick[:, :, None, None, None]
        answer = coarse.gather(2, index.expand(-1, -1, 1, *coarse.shape[-2:]))
        shown = answers.gather(2, index.expand(-1, -1, 1, *answers.shape[-2:]))[:, :, 0]
    more_coords, more_labels = corrective_clicks(rngs, shown, prompts.targets, side_px(sam, window))
    logits, iou = decode(
        sam,
        embeddings,
        torch.cat([coords, more_coords.to(device) + corner], dim=2),
        torch.cat([labels, more_labels.to(device)], dim=2),
        mask_input=answer,
    )
    second = losses.best_mask(finer(logits[:, :, :1].float()), iou[:, :, :1].float(), targets, present)
    return first | {
        "loss": first["loss"] + second["loss"],
        **{f"corrected_{term}": second[term] for term in ("focal", "dice", "iou")},
    }


def finer(logits: Float[Tensor, "b p k h w"]) -> Float[Tensor, "b p k h2 w2"]:
    """Enlarge mask logits as `pipeline.ops.geometry.masks_to_original` does, to the resolution of the losses."""
    enlarged = F.interpolate(logits.flatten(0, 1), scale_factor=FINER, mode="bilinear", align_corners=False)
    return enlarged.unflatten(0, logits.shape[:2])
