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
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float16
from torch import Tensor, nn

from pipeline.align.config import AlignConfig
from pipeline.align.drawing import Batch, Draw, stacked
from pipeline.align.teacher import Teacher
from pipeline.core.distributed import current
from pipeline.core.log import Log
from pipeline.data.prompts import Prompts
from pipeline.data.shards import Shards
from pipeline.models.decoder import decode, freeze_omitted
from pipeline.models.sam import Sam
from pipeline.ops.geometry import normalised
from pipeline.training import Request, Step, autocast, cut, epoch_indices, fit, load, loading_of, losses

_MOST_FINAL_BATCHES = 250


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
        after training on newly drawn prompts, so that an interruption does not change them.
    """
    sam.to(device).eval().requires_grad_(False)
    module: nn.Module = sam.mask_decoder
    if config.train == "all":
        module = nn.ModuleDict({"encoder": sam.image_encoder, "decoder": sam.mask_decoder})
    module.requires_grad_(True)
    freeze_omitted(sam.mask_decoder)
    labelled = [i for i, count in enumerate(images.instances) if count]
    draw = Draw(
        images,
        labelled,
        config,
        teacher.embeddings if teacher else None,
        sam.image_size,
        sam.input_size,
        sam.embedding_size,
    )
    step = partial(_step, sam, _Encoded(sam, images, config), config, teacher, device)
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
    terms = _final_terms(draw, step, config, len(labelled), parts=parts, device=device)
    sam.to("cpu").requires_grad_(True)
    return {f"train_{name}": value for name, value in terms.items()}


@torch.inference_mode()
def _final_terms(
    draw: Draw, step: Step[Batch], config: AlignConfig, count: int, *, parts: int, device: torch.device
) -> dict[str, float]:
    """Compute loss terms as means over all prompts of `final_batches`."""
    seed = config.optimizer.seed
    requests = [
        Request([indices[row] for row in rows], number, [(seed, number, 2, row) for row in rows])
        for number in range(final_batches(config.optimizer.total_steps(count, config.batch)))
        for indices in [epoch_indices(count, config.batch, number, seed)]
        for rows in cut(config.batch, parts)
    ]
    sums, total = defaultdict[str, float](float), 0.0
    with closing(load(draw, requests, loading_of(draw, config.optimizer.num_workers, device))) as batches:
        for request, batch in zip(requests, batches, strict=True):
            terms = dict(step(batch, request.number, np.random.default_rng((seed, request.number, 4))))
            weight = float(terms.pop("weight"))
            total += weight
            for name, value in terms.items():
                sums[name] += weight * float(value)
    return {name: value / total for name, value in sums.items()}


def final_batches(steps: int) -> int:
    """Batches of the measurement after training of ``steps`` steps: a fiftieth, at most `_MOST_FINAL_BATCHES`.

    A batch takes less time than a step, which also has a backward pass, so the measurement takes less than 2 % of the
    training's time.
    """
    return max(1, min(steps // 50, _MOST_FINAL_BATCHES))


class _Encoded:
    """Embeddings of a batch: of an encoder that is trained, or of a frozen one whose embeddings may be cached.

    Args:
        sam: The student, on its device.
        images: Read where an embedding is not cached yet.
        config: Section ``align.<student>`` of params.yaml.
    """

    def __init__(self, sam: Sam, images: Shards, config: AlignConfig) -> None:
        self._sam, self._images, self._config = sam, images, config
        self._cache = dict[int, Tensor]()

    def __call__(self, batch: Batch, device: torch.device) -> Float[Tensor, "b 256 g g"]:
        if batch.pixels is None:
            for index in batch.indices:
                if index not in self._cache:
                    self._cache[index] = self._kept(index, device)
            cached = torch.stack([self._cache[index] for index in batch.indices])
            return cached.to(device, non_blocking=True).float()
        pixels = normalised(batch.pixels.rgb, batch.pixels.sizes)
        if self._config.train == "decoder":
            return self._frozen(pixels).float()
        with autocast(device, self._config.optimizer.autocast):
            embeddings: Tensor = self._sam.image_encoder(pixels)
        return embeddings.float()

    def _kept(self, index: int, device: torch.device) -> Float16[Tensor, "256 g g"]:
        image = self._images.resized(index, self._sam.input_size, annotated=False)
        pixels = stacked([image.pixels], self._sam.input_size, [False])
        return self._frozen(normalised(pixels.rgb.to(device), pixels.sizes.to(device)))[0].cpu()

    @torch.no_grad()
    def _frozen(self, pixels: Float[Tensor, "b 3 s s"]) -> Float16[Tensor, "b 256 g g"]:
        # One by one on a CPU, where it costs nothing, so that an embedding does not depend on the rest of its batch.
        parts = pixels.split(1) if pixels.device.type == "cpu" else [pixels]
        return torch.cat([self._sam.image_encoder(part).half() for part in parts])


def _step(
    sam: Sam,
    encoded: _Encoded,
    config: AlignConfig,
    teacher: Teacher | None,
    device: torch.device,
    batch: Batch,
    number: int,
    rng: np.random.Generator,
) -> Mapping[str, Tensor]:
    # Train the single mask or the three multimasks, as in EfficientViT-SAM.
    outputs = slice(0, 1) if rng.random() < config.single_mask_share else slice(1, 4)
    batch = batch.to(device)
    embeddings = encoded(batch, device)
    sums, count = dict[str, Tensor](), torch.zeros((), device=device)
    for rows, prompts in batch.groups:
        with autocast(device, config.optimizer.autocast):
            logits, iou = decode(sam, embeddings[rows], prompts.coords, prompts.labels)
        mask_loss: losses.MaskLoss = losses.focal_dice
        if config.mask_loss == "bce_points":
            mask_loss = partial(losses.bce_points, candidates=batch.chance[rows])
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
        return decode(teacher.sam, embeddings, prompts.coords, prompts.labels)[0]
