"""Prompt-in-the-loop distillation: the student learns the teacher's masks, with clicks where the two disagree.

Source: EdgeSAM (arXiv 2312.06660), section 3.3, and its published training code. Student and teacher decode the same
prompts. After each decoding but the last, one click per prompt is added in the area where their masks differ: positive
where only the teacher has the mask, negative where only the student has it. The loss is the cross-entropy and Dice of
the student's four masks against the teacher's thresholded ones, over the unpadded area, averaged over decodings.

Ground truth gives the first prompts only. The teacher's decoder runs on cached embeddings; its encoder never runs.
Differences from the published code: boxes and clicks mix within a batch instead of taking turns; the student's previous
mask can be a prompt (``mask_prompt_probability``), and the error of the embedding can be added (``embedding_weight``).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.prompts import Prompts, disagreement_clicks
from pipeline.distill.config import PromptInTheLoopRecipe
from pipeline.distill.drawing import DrawPrompted, Prompted
from pipeline.distill.task import Task
from pipeline.models.decoder import decode, freeze_omitted
from pipeline.models.sam import Sam
from pipeline.models.students import load_checkpoint
from pipeline.training import losses

_OUTSIDE = -1e4
"""Logit of padding: no loss and no gradient."""


def distill_prompt_in_the_loop(task: Task, recipe: PromptInTheLoopRecipe) -> None:
    """Train the student's image encoder, and its mask decoder if ``recipe.train`` is ``all``."""
    sam, device = task.sam, task.device
    teacher = load_checkpoint(task.teacher).requires_grad_(False)
    teacher.image_encoder = nn.Identity()  # only the decoder runs
    teacher.to(device)
    trained = {"encoder": sam.image_encoder} | ({"decoder": sam.mask_decoder} if recipe.train == "all" else {})
    for part in {sam.prompt_encoder, sam.mask_decoder} - {*trained.values()}:
        part.requires_grad_(False)
    freeze_omitted(sam.mask_decoder)
    sam.mask_decoder.iou_prediction_head.requires_grad_(False)  # no loss depends on it

    draw = DrawPrompted(task.inputs, recipe.prompts, recipe.box_jitter, recipe.loops - 1)

    def step(batch: Prompted, number: int, rng: np.random.Generator) -> Mapping[str, Tensor]:
        mask_prompts = rng.random(recipe.loops - 1) < recipe.mask_prompt_probability
        batch = batch.to(device)
        student, target, valid = task.encode(batch.images), batch.images.embeddings, batch.images.valid
        with task.autocast():
            decoded = decode_in_loop(sam, teacher, student, target, batch.prompts, valid, batch.chance, mask_prompts)
        terms = mask_terms(decoded, batch.prompts.present, valid)
        if recipe.embedding_weight:
            terms["embedding"] = losses.embedding_error(student, target, valid, "mse").mean()
        return weigh(recipe, terms)

    task.fit(nn.ModuleDict(trained), draw, step, {"decoder.": recipe.decoder_lr_share})
    sam.requires_grad_(True)


@dataclass(frozen=True)
class Decoded:
    """One decoding by both models."""

    coords: Float[Tensor, "b p n 2"]
    """The prompts' points, those of all decodings so far."""
    labels: Float[Tensor, "b p n"]
    student: Float[Tensor, "b p 4 m m"]
    """Mask logits."""
    teacher: Float[Tensor, "b p 4 m m"]
    """Mask logits, without gradient."""
    iou_predictions: Float[Tensor, "b p 4"]
    """The teacher's."""

    def compared(self) -> tuple[Float[Tensor, "b p m m"], Float[Tensor, "b p m m"]]:
        """Both models' logits, without gradient, of the mask that the teacher predicts to be best."""
        best = self.iou_predictions.argmax(dim=2)[:, :, None, None, None]
        best = best.expand(-1, -1, 1, *self.student.shape[-2:])
        ours, theirs = (logits.detach().gather(2, best)[:, :, 0].float() for logits in (self.student, self.teacher))
        return ours, theirs


def decode_in_loop(
    sam: Sam,
    teacher: Sam,
    student_embeddings: Float[Tensor, "b c g g"],
    teacher_embeddings: Float[Tensor, "b c g g"],
    prompts: Prompts,
    valid: Bool[Tensor, "b g g"],
    chance: Float[Tensor, "b l p"],
    mask_prompts: Bool[np.ndarray, " l"],
) -> list[Decoded]:
    """Decode the first prompts, then once more after each round of new clicks.

    Args:
        sam: The student.
        teacher: Its teacher, of which only the prompt encoder and the mask decoder are used.
        student_embeddings: Decoded by ``sam``.
        teacher_embeddings: Decoded by ``teacher``.
        prompts: The first prompts.
        valid: Cells that cover part of the image; there are no clicks elsewhere.
        chance: Uniform random numbers in [0, 1) for L rounds, which choose one of the cells where the masks differ.
        mask_prompts: Whether the student's previous mask is a prompt of both models, for each round.

    Returns:
        L + 1 decodings, of N to N + L points. A prompt whose masks agree gets a padding point.
    """
    coords, labels, mask = prompts.coords, prompts.labels, None
    decoded = [_decoded(sam, teacher, student_embeddings, teacher_embeddings, coords, labels, mask)]
    for draws, with_mask in zip(chance.unbind(dim=1), mask_prompts, strict=True):
        ours, theirs = decoded[-1].compared()
        inside = _raster(valid, ours.shape[-1])[:, None]
        point, label = disagreement_clicks(ours, theirs, inside, draws, sam.image_size)
        coords, labels = torch.cat([coords, point], dim=2), torch.cat([labels, label], dim=2)
        mask = ours[:, :, None] if with_mask else None
        decoded.append(_decoded(sam, teacher, student_embeddings, teacher_embeddings, coords, labels, mask))
    return decoded


def _decoded(
    sam: Sam,
    teacher: Sam,
    student_embeddings: Tensor,
    teacher_embeddings: Tensor,
    coords: Tensor,
    labels: Tensor,
    mask: Tensor | None,
) -> Decoded:
    student, _ = decode(sam, student_embeddings, coords, labels, mask)
    with torch.no_grad():
        target, iou_predictions = decode(teacher, teacher_embeddings, coords, labels, mask)
    return Decoded(coords, labels, student, target, iou_predictions)


def _raster(valid: Bool[Tensor, "b g g"], side: int) -> Bool[Tensor, "b m m"]:
    """Cells of the embedding as cells of the masks."""
    times = side // valid.shape[-1]
    return valid.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)


def mask_terms(
    decoded: list[Decoded], present: Bool[Tensor, "b p"], valid: Bool[Tensor, "b g g"]
) -> dict[str, Float[Tensor, ""]]:
    """Cross-entropy and Dice of the student's masks against the teacher's thresholded ones.

    Args:
        decoded: See `decode_in_loop`.
        present: Prompts that count.
        valid: Cells that cover part of the image; others do not count.

    Returns:
        ``bce`` and ``dice``, means over prompts that count, their four masks, and decodings.
    """
    inside = _raster(valid, decoded[0].student.shape[-1])[:, None, None]
    cells = inside.sum(dim=(-2, -1)).clamp(min=1)
    weight = present[:, :, None] / present.sum().clamp(min=1)
    terms = {"bce": torch.zeros((), device=valid.device), "dice": torch.zeros((), device=valid.device)}
    for each in decoded:
        logits = each.student.float().masked_fill(~inside, _OUTSIDE)
        target = ((each.teacher > 0) & inside).float()
        bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(dim=(-2, -1)) / cells
        for name, values in (("bce", bce), ("dice", losses.dice(logits, target))):
            terms[name] = terms[name] + (values * weight).sum() / (values.shape[2] * len(decoded))
    return terms


def weigh(recipe: PromptInTheLoopRecipe, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the weighted sum of the terms, ``loss``."""
    weights = {"bce": recipe.bce_weight, "dice": recipe.dice_weight, "embedding": recipe.embedding_weight}
    return {"loss": torch.stack([weights[name] * term for name, term in terms.items()]).sum(), **terms}
