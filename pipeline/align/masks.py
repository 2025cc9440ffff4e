"""Train the mask decoder on its encoder's embeddings, or both together, against ground truth masks.

Source: SAM-Lightening (arXiv 2403.09195), "align decoder", for a frozen encoder; EfficientViT-SAM (arXiv 2402.05008),
stage 2, for both, and for prompts and losses: a box or 1 to 10 clicks with equal probability, up to 64 masks per image,
focal to Dice 20 : 1, the best of three masks or the single mask at random, horizontal flips. Differences: the IoU head
is trained, which the published EfficientViT-SAM code omits although its inference selects masks by it (``iou_weight:
0``). The mask loss of that code, which differs from its paper's, is `losses.bce_points`. With a frozen encoder,
``keep_embeddings`` encodes each image only once. ``teacher_weight`` adds an error to the teacher's mask logits, which
neither paper has.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.align.config import AlignConfig
from pipeline.align.teacher import Teacher
from pipeline.core.distributed import current
from pipeline.core.log import Log
from pipeline.data.instances import Instances, instances_of
from pipeline.data.prompts import Prompts, drawn_prompts
from pipeline.data.shards import Sample, Shards
from pipeline.models.decoder import decode, freeze_omitted
from pipeline.models.sam import Sam
from pipeline.ops.geometry import to_input
from pipeline.training import Draw, Step, autocast, cut, epoch_indices, fit, losses


@dataclass(frozen=True)
class _Example:
    """Input of the trained module, and the instances of the image."""

    input: Tensor
    """Embedding ``(256, g, g)`` in half precision, or pixels ``(3, S, S)`` if the encoder is trained."""
    instances: Instances
    teacher: Tensor | None
    """The teacher's embedding ``(256, g, g)``, if its masks are targets."""


@dataclass(frozen=True)
class _Batch:
    """Inputs, and their prompts grouped by number of points."""

    input: Tensor
    groups: list[tuple[list[int], Prompts]]
    """Indices of images in the batch, and the prompts of these images."""
    chance: Tensor
    """Uniform random points ``(B, P, Q, 2)`` for `losses.bce_points`; Q is 0 for other losses."""
    teacher: Tensor | None
    """The teacher's embeddings ``(B, 256, g, g)``, if its masks are targets."""


def align_masks(
    sam: Sam,
    images: Shards,
    config: AlignConfig,
    *,
    device: torch.device,
    log: Log,
    checkpoint: Path | None,
    teacher: Teacher | None = None,
) -> dict[str, float]:
    """Train ``sam`` in place.

    Args:
        sam: The student.
        images: The train split; at least one image must have a mask.
        config: Section ``align.<student>`` of params.yaml.
        device: Device to train on.
        log: Receives the losses.
        checkpoint: File for the state of an interrupted run; None disables it.
        teacher: The teacher's decoder and embeddings, if ``teacher_weight`` is positive.

    Returns:
        Mean loss terms of the final weights, ``train_<name>``; empty except in the first process. They are computed
        after training on newly drawn prompts, for a tenth of the steps, so that an interruption does not change them.
    """
    sam.to(device).eval().requires_grad_(False)
    module: nn.Module = sam.mask_decoder
    if config.train == "all":
        module = nn.ModuleDict({"encoder": sam.image_encoder, "decoder": sam.mask_decoder})
    module.requires_grad_(True)
    freeze_omitted(sam.mask_decoder)
    labelled = [i for i, count in enumerate(images.instances) if count]
    draw = _draw_function(sam, images, labelled, config, device, teacher)
    step = partial(_step, sam, config, device, teacher)
    fit(
        module,
        draw,
        step,
        config.optimizer,
        count=len(labelled),
        batch=config.batch,
        log=log,
        name="align",
        device=device,
        checkpoint=checkpoint,
    )
    if not current().first:
        return {}
    processes = current().world_size  # batches no larger than in training, to fit in memory
    parts = processes * config.optimizer.parts(config.batch, processes)
    terms = _final_terms(draw, step, config, len(labelled), parts=parts)
    sam.to("cpu").requires_grad_(True)
    return {f"train_{name}": value for name, value in terms.items()}


@torch.inference_mode()
def _final_terms(
    draw: Draw[_Batch], step: Step[_Batch], config: AlignConfig, count: int, *, parts: int
) -> dict[str, float]:
    """Compute loss terms as means over all prompts."""
    sums, total, seed = defaultdict[str, float](float), 0.0, config.optimizer.seed
    for number in range(-(-config.optimizer.total_steps(count, config.batch) // 10)):
        indices = epoch_indices(count, config.batch, number, seed)
        for rows in cut(config.batch, parts):
            rngs = [np.random.default_rng((seed, number, 2, row)) for row in rows]
            batch = draw([indices[row] for row in rows], number, rngs)
            terms = dict(step(batch, number, np.random.default_rng((seed, number, 4))))
            weight = float(terms.pop("weight"))
            total += weight
            for name, value in terms.items():
                sums[name] += weight * float(value)
    return {name: value / total for name, value in sums.items()}


def _draw_function(
    sam: Sam,
    images: Shards,
    labelled: list[int],
    config: AlignConfig,
    device: torch.device,
    teacher: Teacher | None,
) -> Draw[_Batch]:
    cache: dict[int, _Example] = {}

    def read(index: int, rng: np.random.Generator) -> _Example:
        if index in cache:
            return cache[index]
        mirror = config.flip and rng.random() < 0.5
        sample = images[index]
        example = _example(sam, sample, device, frozen=config.train == "decoder", mirror=mirror)
        if teacher:
            example = replace(example, teacher=teacher.embeddings.get(sample.key))
        if config.keep_embeddings:
            cache[index] = example
        return example

    def draw(indices: list[int], number: int, rngs: list[np.random.Generator]) -> _Batch:
        examples = [read(labelled[index], rng) for index, rng in zip(indices, rngs, strict=True)]
        groups = drawn_prompts(
            rngs,
            [example.instances.coverages.astype(np.float32) / 255 for example in examples],
            [example.instances.boxes for example in examples],
            config.masks,
            sam.image_size,
            clicks=(config.clicks[0], config.clicks[1]),
            box_jitter=config.box_jitter,
        )
        points = losses.candidates_of(4 * sam.embedding_size) if config.mask_loss == "bce_points" else 0
        chance = np.stack([rng.random((config.masks, points, 2), np.float32) for rng in rngs])
        targets = [example.teacher for example in examples if example.teacher is not None]
        return _Batch(
            torch.stack([example.input for example in examples]),
            groups,
            torch.from_numpy(chance),
            torch.stack(targets) if targets else None,
        )

    return draw


def _step(
    sam: Sam,
    config: AlignConfig,
    device: torch.device,
    teacher: Teacher | None,
    batch: _Batch,
    number: int,
    rng: np.random.Generator,
) -> Mapping[str, Tensor]:
    # Train the single mask or the three multimasks, as in EfficientViT-SAM.
    outputs = slice(0, 1) if rng.random() < config.single_mask_share else slice(1, 4)
    x = batch.input.to(device)
    with autocast(device, config.optimizer.autocast):
        embeddings = sam.image_encoder(x).float() if config.train == "all" else x.float()
    sums, count = dict[str, Tensor](), torch.zeros((), device=device)
    for rows, cpu_prompts in batch.groups:
        prompts = cpu_prompts.to(device)
        with autocast(device, config.optimizer.autocast):
            logits, iou = decode(sam, embeddings[rows], prompts.coords, prompts.labels)
        mask_loss: losses.MaskLoss = losses.focal_dice
        if config.mask_loss == "bce_points":
            mask_loss = partial(losses.bce_points, candidates=batch.chance[rows].to(device))
        terms = losses.best_mask(
            logits[:, :, outputs].float(),
            iou[:, :, outputs].float(),
            prompts.targets,
            prompts.present,
            mask_loss=mask_loss,
            iou_weight=config.iou_weight,
        )
        if teacher and batch.teacher is not None:
            targets = _teacher_masks(teacher, batch.teacher[rows], prompts, config, device)[:, :, outputs]
            error = losses.relative_l1(logits[:, :, outputs].float(), targets.float(), 3).mean(dim=2)
            terms["teacher"] = (error * prompts.present).sum() / prompts.present.sum().clamp(min=1)
            terms["loss"] = terms["loss"] + config.teacher_weight * terms["teacher"]
        for name, value in terms.items():
            sums[name] = sums.get(name, 0) + value * prompts.present.sum()
        count = count + prompts.present.sum()
    return {name: value / count.clamp(min=1) for name, value in sums.items()} | {"weight": count}


@torch.no_grad()
def _teacher_masks(
    teacher: Teacher, embeddings: Tensor, prompts: Prompts, config: AlignConfig, device: torch.device
) -> Tensor:
    """Compute the teacher's mask logits ``(B, P, 4, m, m)``."""
    with autocast(device, config.optimizer.autocast):
        return decode(teacher.sam, embeddings.to(device).float(), prompts.coords, prompts.labels)[0]


@torch.inference_mode()
def _example(sam: Sam, sample: Sample, device: torch.device, *, frozen: bool, mirror: bool) -> _Example:
    image = sample.image[:, ::-1] if mirror else sample.image
    x = to_input(image, sam.input_size)
    if frozen:
        x = sam.image_encoder(x[None].to(device))[0].half().cpu().clone()
    return _Example(x, instances_of(sample, sam.image_size, 4 * sam.embedding_size, mirror=mirror), None)
