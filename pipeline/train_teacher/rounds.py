"""SAM's two training rounds of a prompt.

Source: SAM, appendix A. In the first round, a box or a click gives three masks, of which the best is trained. In the
second, that mask and a click in its error region give the single mask. What differs, for a CPU: two rounds instead of
eleven, and losses at the decoder's resolution against area-averaged masks.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.data.prompts import Prompts, corrective_clicks
from pipeline.models.decoder import decode
from pipeline.models.sam import Sam
from pipeline.ops.point_labels import UPPER_LEFT
from pipeline.train_teacher.windows import Window, corner_px, positioned, side_px
from pipeline.training import losses

IOU_WEIGHT = 4.0
"""Weight of the error of the predicted IoUs in the first round. SAM's is 1; with it, the choice of the mask lags behind
the masks in a training of some thousand steps."""
EACH_WEIGHT = 0.5
"""Weight of the loss of each of the three masks of a box, beside that of the best."""


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
    answers, values = logits[:, :, 1:].float(), iou[:, :, 1:].float()
    first = losses.best_mask(answers, values, targets, present, iou_weight=IOU_WEIGHT)
    # A box is not ambiguous: all three masks are trained, so that it matters little which is chosen.
    boxes = present & (labels == UPPER_LEFT).any(dim=2)
    each = [losses.best_mask(answers[:, :, k : k + 1], values[:, :, k : k + 1], targets, boxes) for k in range(3)]
    first["loss"] = first["loss"] + EACH_WEIGHT * torch.stack([terms["loss"] for terms in each]).mean()
    if not correct:
        return first

    with torch.no_grad():
        pick = losses.mask_iou(answers, targets[:, :, None].expand_as(answers)).argmax(dim=2)
        answer = answers.gather(2, pick[:, :, None, None, None].expand(-1, -1, 1, *answers.shape[-2:]))
    side = side_px(sam, window)
    more_coords, more_labels = corrective_clicks(rngs, answer[:, :, 0], prompts.targets, side)
    logits, iou = decode(
        sam,
        embeddings,
        torch.cat([coords, more_coords.to(device) + corner], dim=2),
        torch.cat([labels, more_labels.to(device)], dim=2),
        mask_input=answer,
    )
    second = losses.best_mask(logits[:, :, :1].float(), iou[:, :, :1].float(), targets, present)
    return first | {
        "loss": first["loss"] + second["loss"],
        **{f"corrected_{term}": second[term] for term in ("focal", "dice", "iou")},
    }
