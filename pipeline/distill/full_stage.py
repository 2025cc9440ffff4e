"""Full-stage distillation: the teacher's image embedding, output tokens and mask logits, and ground truth.

Source: TinySAM (arXiv 2312.13789), section 3.1; there is no published code. The teacher's decoder runs on cached
embeddings; its encoder never runs. Not specified in the paper and chosen here: alpha, beta and gamma weight errors
relative to the teacher's scale (`losses.relative_l1`); the mask decoder is trained with the encoder or stays frozen.
Differences: half of the prompts are boxes, which stay fixed while clicks move to regions the student misses; the
single-mask token, which TinySAM drops, is distilled like the other three.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.prompts import Prompts, hard_clicks
from pipeline.distill.config import FullStageRecipe
from pipeline.distill.drawing import DrawPrompted, Prompted
from pipeline.distill.task import Task
from pipeline.models.decoder import decode, decode_with_tokens, freeze_omitted
from pipeline.models.sam import Sam
from pipeline.models.students import load_checkpoint
from pipeline.training import losses

MULTIMASK = slice(1, 4)


def distill_full_stage(task: Task, recipe: FullStageRecipe) -> None:
    """Train the student's image encoder, and its mask decoder if ``recipe.train`` is ``all``."""
    sam, device = task.sam, task.device
    teacher = load_checkpoint(task.teacher).requires_grad_(False)
    teacher.image_encoder = nn.Identity()  # frees ViT-H's 2.4 GiB, since only the decoder runs
    teacher.to(device)
    trained = {"encoder": sam.image_encoder} | ({"decoder": sam.mask_decoder} if recipe.train == "all" else {})
    for part in {sam.prompt_encoder, sam.mask_decoder} - {*trained.values()}:
        part.requires_grad_(False)
    freeze_omitted(sam.mask_decoder)

    draw = DrawPrompted(task.inputs, recipe.prompts, recipe.box_jitter, recipe.rounds)

    def step(batch: Prompted, number: int, rng: np.random.Generator) -> Mapping[str, Tensor]:
        rounds = int(rng.integers(recipe.rounds + 1))
        batch = batch.to(device)
        images, prompts, chance = batch.images, batch.prompts, batch.chance[:, :rounds]
        student, target = task.encode(images), images.embeddings
        with task.autocast():
            coords = harden(sam, student.detach(), prompts, chance)
            predicted = decode_with_tokens(sam, student, coords, prompts.labels)
            with torch.no_grad():
                expected = decode_with_tokens(teacher, target, coords, prompts.labels)
        errors = embedding_terms(student, target, images.valid)
        return weigh(recipe, errors | decoder_terms(recipe, predicted, expected, prompts))

    task.fit(nn.ModuleDict(trained), draw, step, {"decoder.": recipe.decoder_lr_share})
    sam.requires_grad_(True)


@torch.no_grad()
def harden(sam: Sam, embeddings: Tensor, prompts: Prompts, chance: Tensor) -> Tensor:
    """Move clicks to regions the student misses, once per round in ``chance``; boxes stay fixed.

    Args:
        sam: The student.
        embeddings: ``(B, 256, g, g)``, the student's embeddings, computed once for all rounds.
        prompts: The prompts of the first round.
        chance: ``(B, rounds, P)`` uniform in [0, 1): selects one of the missed cells.

    Returns:
        Coordinates of the shape of ``prompts.coords``.
    """
    coords = prompts.coords
    for draws in chance.unbind(dim=1):
        logits, iou = decode(sam, embeddings, coords, prompts.labels)
        best = iou[:, :, MULTIMASK].argmax(dim=2)[:, :, None, None, None].expand(-1, -1, 1, *logits.shape[-2:])
        current = logits[:, :, MULTIMASK].gather(2, best)[:, :, 0]
        coords = hard_clicks(coords, prompts.labels, current, prompts.targets, draws, sam.image_size)
    return coords


def embedding_terms(student: Tensor, teacher: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Mean L1 error of image embeddings over the unpadded area, relative to the teacher's scale."""
    zero = torch.zeros_like(teacher)
    scale = losses.embedding_error(zero, teacher, valid, "l1").clamp(min=losses.EPS)
    return {"embedding": (losses.embedding_error(student, teacher, valid, "l1") / scale).mean()}


def decoder_terms(
    recipe: FullStageRecipe,
    student: tuple[Tensor, Tensor, Tensor],
    teacher: tuple[Tensor, Tensor, Tensor],
    prompts: Prompts,
) -> dict[str, Tensor]:
    """Compute loss terms of tokens, mask logits and ground truth: means over prompts, absent instances count as 0.

    Args:
        recipe: Whether mask logits are weighted by difficulty.
        student: Mask logits, predicted IoUs and output tokens, as `decode_with_tokens` returns them.
        teacher: The same of the teacher.
        prompts: The prompts and their ground truth masks.
    """
    (logits, iou, tokens), (target_logits, _, target_tokens) = ([x.float() for x in out] for out in (student, teacher))
    present = prompts.present.float()
    weight = torch.ones_like(iou)
    if recipe.hard_mask_weight:
        truth = prompts.targets[:, :, None].expand_as(logits)
        weight = losses.hard_mask_weight(logits, target_logits, truth)
    masks = (weight * losses.relative_l1(logits, target_logits, 3)).mean(dim=2)
    task = losses.best_mask(
        logits[:, :, MULTIMASK], iou[:, :, MULTIMASK], prompts.targets, prompts.present, iou_distance=F.l1_loss
    )
    return {
        "token": (losses.relative_l1(tokens, target_tokens, 2) * present).mean(),
        "mask": (masks * present).mean(),
        **{name: value * present.mean() for name, value in (task | {"task": task["loss"]}).items() if name != "loss"},
    }


def weigh(recipe: FullStageRecipe, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the weighted sum of the terms, ``loss``."""
    distilled = recipe.alpha * terms["embedding"] + recipe.beta * terms["token"] + recipe.gamma * terms["mask"]
    return {"loss": distilled + recipe.task_weight * terms["task"], **terms}
