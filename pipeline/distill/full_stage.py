"""Full-stage distillation: image embedding, output tokens and mask logits of the teacher, and ground truth.

Source: TinySAM (arXiv 2312.13789), section 3.1; there is no published code. The teacher's decoder runs on its cached
embedding, its encoder never. What the paper leaves open, and what is chosen here: its weights alpha, beta and gamma
are those of errors in shares of the teacher's scale (`losses.relative_l1`); the mask decoder can be trained with the
encoder or stay the teacher's. What differs: half of the prompts are boxes, which stay where they are while clicks move
to what the student misses; the single-mask token, which TinySAM drops, is distilled like the three others.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.data.instances import instances_of
from pipeline.data.prompts import Prompts, first_prompts, hard_clicks
from pipeline.distill.config import FullStageRecipe
from pipeline.distill.task import Batch, Task
from pipeline.models.decoder import decode, decode_with_tokens
from pipeline.models.sam import Sam
from pipeline.models.students import load_checkpoint
from pipeline.training import losses

MULTIMASK = slice(1, 4)


@dataclass(frozen=True)
class _Prompted:
    """A batch, the prompts on it, and chance ``(B, rounds, P)`` in [0, 1) for the clicks that will move."""

    images: Batch
    prompts: Prompts
    chance: Tensor


def distill_full_stage(task: Task, recipe: FullStageRecipe) -> None:
    """Train the student's image encoder, and its mask decoder where the recipe says so."""
    sam, device = task.sam, task.device
    teacher = load_checkpoint(task.teacher).requires_grad_(False)
    teacher.image_encoder = nn.Identity()  # 2.4 GiB of ViT-H that nobody asks
    teacher.to(device)
    learns = {"encoder": sam.image_encoder} | ({"decoder": sam.mask_decoder} if recipe.train == "all" else {})
    for part in {sam.prompt_encoder, sam.mask_decoder} - {*learns.values()}:
        part.requires_grad_(False)

    def draw(indices: list[int], number: int, rngs: list[np.random.Generator]) -> _Prompted:
        batch = task.batch(indices)
        found = [instances_of(sample, sam.image_size, 4 * sam.embedding_size) for sample in batch.samples]
        coverages = [each.coverages.astype(np.float32) / 255 for each in found]
        prompts = first_prompts(rngs, coverages, [each.boxes for each in found], recipe.prompts, sam.image_size)
        chance = np.stack([rng.random((recipe.rounds, recipe.prompts), np.float32) for rng in rngs])
        return _Prompted(batch, prompts, torch.from_numpy(chance))

    def step(batch: _Prompted, number: int, rng: np.random.Generator) -> Mapping[str, Tensor]:
        chance = batch.chance[:, : rng.integers(recipe.rounds + 1)]
        student, theirs = task.encode(batch.images.pixels), batch.images.embeddings.to(device)
        prompts = batch.prompts.to(device)
        with task.autocast():
            coords = harden(sam, student.detach(), prompts, chance.to(device))
            answer = decode_with_tokens(sam, student, coords, prompts.labels)
            with torch.no_grad():
                example = decode_with_tokens(teacher, theirs, coords, prompts.labels)
        errors = embedding_terms(student, theirs, batch.images.valid.to(device))
        return weigh(recipe, errors | decoder_terms(recipe, answer, example, prompts))

    task.fit(nn.ModuleDict(learns), draw, step, {"decoder.": recipe.decoder_lr_share})
    sam.requires_grad_(True)


@torch.no_grad()
def harden(sam: Sam, embeddings: Tensor, prompts: Prompts, chance: Tensor) -> Tensor:
    """Move clicks to what the student misses, once for each round in ``chance``; boxes stay.

    Args:
        sam: The student.
        embeddings: ``(B, 256, g, g)``, encoded once for all rounds.
        prompts: The first ones.
        chance: ``(B, rounds, P)`` in [0, 1): which of the missed cells is clicked.

    Returns:
        Coordinates like those of ``prompts``.
    """
    coords = prompts.coords
    for draws in chance.unbind(dim=1):
        logits, iou = decode(sam, embeddings, coords, prompts.labels)
        best = iou[:, :, MULTIMASK].argmax(dim=2)[:, :, None, None, None].expand(-1, -1, 1, *logits.shape[-2:])
        current = logits[:, :, MULTIMASK].gather(2, best)[:, :, 0]
        coords = hard_clicks(coords, prompts.labels, current, prompts.targets, draws, sam.image_size)
    return coords


def embedding_terms(student: Tensor, teacher: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """L1 of the image embeddings over the un-padded area, in shares of the teacher's scale, mean over images."""
    zero = torch.zeros_like(teacher)
    scale = losses.embedding_error(zero, teacher, valid, "l1").clamp(min=losses.EPS)
    return {"embedding": (losses.embedding_error(student, teacher, valid, "l1") / scale).mean()}


def decoder_terms(
    recipe: FullStageRecipe,
    student: tuple[Tensor, Tensor, Tensor],
    teacher: tuple[Tensor, Tensor, Tensor],
    prompts: Prompts,
) -> dict[str, Tensor]:
    """What tokens, mask logits and ground truth say; means over images, those without instances counting 0."""
    (logits, iou, tokens), (goal_logits, _, goal_tokens) = ([x.float() for x in out] for out in (student, teacher))
    present = prompts.present.float()
    weight = torch.ones_like(iou)
    if recipe.hard_mask_weight:
        truth = prompts.targets[:, :, None].expand_as(logits)
        weight = losses.hard_mask_weight(logits, goal_logits, truth)
    masks = (weight * losses.relative_l1(logits, goal_logits, 3)).mean(dim=2)
    task = losses.best_mask(
        logits[:, :, MULTIMASK], iou[:, :, MULTIMASK], prompts.targets, prompts.present, iou_distance=F.l1_loss
    )
    return {
        "token": (losses.relative_l1(tokens, goal_tokens, 2) * present).mean(),
        "mask": (masks * present).mean(),
        **{name: value * present.mean() for name, value in (task | {"task": task["loss"]}).items() if name != "loss"},
    }


def weigh(recipe: FullStageRecipe, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The terms and their weighted sum ``loss``."""
    distilled = recipe.alpha * terms["embedding"] + recipe.beta * terms["token"] + recipe.gamma * terms["mask"]
    return {"loss": distilled + recipe.task_weight * terms["task"], **terms}
