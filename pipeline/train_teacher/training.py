"""Train the bundled teacher on rendered scenes with SAM's recipe.

Source: SAM, appendix A. Each prompt has two rounds. In the first, a box or a click gives three masks, of which the best
is trained. In the second, that mask and a click in its error region give the single mask. What differs, for a CPU: two
rounds instead of eleven, and losses at the decoder's resolution against area-averaged masks.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.core.config import Config
from pipeline.core.log import Log
from pipeline.core.progress import progress
from pipeline.data.prompts import Prompts, corrective_clicks, first_prompts
from pipeline.data.scenes import render
from pipeline.data.workers import in_processes
from pipeline.models import build
from pipeline.models.bundled import IMAGE_SIZE
from pipeline.models.decoder import decode
from pipeline.models.sam import Sam
from pipeline.ops import masks
from pipeline.ops.geometry import PIXEL_MEAN, PIXEL_STD, masks_to_frame
from pipeline.train_teacher.windows import Window, corner_px, positioned, side_px, whole
from pipeline.training import OptimizerConfig, autocast, fit, losses

Batch = tuple[Tensor, Prompts, list[np.random.Generator]]
"""Pixels ``(B, 3, S, S)``, their prompts, and one random generator per sample."""


class TrainTeacherConfig(Config):
    """How the bundled teacher is trained."""

    scenes: int
    """Scenes, rendered once and augmented by transposition, mirroring and permuted colours."""
    scenes_seed: int
    """Seed of the scenes; differs from every seed of `prepare`, so that no scene of a dataset was trained on."""
    batch: int
    """Scenes per step."""
    prompts: int
    """Prompts per scene."""
    correct_every: int
    """Interval, in steps, at which the second round is trained too; it costs as much as the first."""
    optimizer: OptimizerConfig


@dataclass(frozen=True)
class SceneBank:
    """Rendered scenes: images, and masks as coverage of the decoder's cells."""

    images: list[np.ndarray]
    """uint8 ``(256, 256, 3)`` each."""
    masks: list[np.ndarray]
    """uint8 ``(n, 64, 64)`` each; 255 is fully covered."""
    boxes: list[np.ndarray]
    """float32 ``(n, 4)`` each, xyxy."""


def _scene(task: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scene = render(np.random.default_rng(task), IMAGE_SIZE)
    full = torch.from_numpy(np.array(scene.masks, dtype=np.float32).reshape(-1, IMAGE_SIZE, IMAGE_SIZE))
    coverage = masks_to_frame(full, IMAGE_SIZE, IMAGE_SIZE // 4) if len(full) else torch.zeros(0, 64, 64)
    boxes = np.array([masks.box(m) for m in scene.masks], np.float32).reshape(-1, 4)
    return scene.image, (coverage * 255).round().byte().numpy(), boxes


def render_bank(count: int, seed: int) -> SceneBank:
    """Render ``count`` scenes, in one process per core."""
    tasks = [(seed, i) for i in range(count)]
    with closing(in_processes(_scene, tasks)) as scenes:
        results = list(progress(scenes, "render", "scene", total=count))
    images, coverages, boxes = zip(*results, strict=True)
    return SceneBank(list(images), list(coverages), list(boxes))


def train(config: TrainTeacherConfig, *, device: str, log: Log, checkpoint: Path | None = None) -> Sam:
    """Train from scratch and return the model with averaged weights."""
    sam = build("bundled", seed=config.optimizer.seed).to(device)
    sam.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    bank = render_bank(config.scenes, config.scenes_seed)

    def draw(indices: list[int], number: int, rngs: list[np.random.Generator]) -> Batch:
        return _batch(bank, indices, config.prompts, rngs)

    def step(batch: Batch, number: int, rng: np.random.Generator) -> Mapping[str, Tensor]:
        images, prompts, rngs = batch
        with autocast(torch.device(device), config.optimizer.autocast):
            terms = two_rounds(sam, images.to(device), prompts, rngs, correct=number % config.correct_every == 0)
        return terms | {"weight": prompts.present.sum()}

    fit(
        sam,
        draw,
        step,
        config.optimizer,
        count=len(bank.images),
        batch=config.batch,
        log=log,
        name="train_teacher",
        device=torch.device(device),
        checkpoint=checkpoint,
    )
    return sam


def _batch(bank: SceneBank, indices: Sequence[int], count: int, rngs: list[np.random.Generator]) -> Batch:
    """Read the scenes of a step, each randomly transposed, mirrored and with permuted colours."""
    images, coverages, boxes = zip(
        *(_turned(bank, index, rng) for index, rng in zip(indices, rngs, strict=True)), strict=True
    )
    pixels = (torch.from_numpy(np.stack(images)) - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    return pixels.permute(0, 3, 1, 2), first_prompts(rngs, [*coverages], [*boxes], count, IMAGE_SIZE), rngs


def _turned(bank: SceneBank, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    transpose, flip_x, flip_y = rng.random(3) < 0.5
    image, coverages, boxes = bank.images[index], bank.masks[index].astype(np.float32) / 255, bank.boxes[index]
    if transpose:
        image, coverages, boxes = image.swapaxes(0, 1), coverages.swapaxes(1, 2), boxes[:, [1, 0, 3, 2]]
    if flip_x:
        image, coverages = image[:, ::-1], coverages[:, :, ::-1]
        boxes = np.stack([IMAGE_SIZE - boxes[:, 2], boxes[:, 1], IMAGE_SIZE - boxes[:, 0], boxes[:, 3]], axis=1)
    if flip_y:
        image, coverages = image[::-1], coverages[:, ::-1]
        boxes = np.stack([boxes[:, 0], IMAGE_SIZE - boxes[:, 3], boxes[:, 2], IMAGE_SIZE - boxes[:, 1]], axis=1)
    return image[..., rng.permutation(3)].astype(np.float32), coverages, boxes


def two_rounds(
    sam: Sam, images: Tensor, prompts: Prompts, rngs: Sequence[np.random.Generator], *, correct: bool
) -> dict[str, Tensor]:
    """Compute the losses of the first round and, if ``correct``, of the second."""
    return decoder_rounds(sam, sam.image_encoder(images).float(), prompts, rngs, correct=correct)


def decoder_rounds(
    sam: Sam,
    embeddings: Tensor,
    prompts: Prompts,
    rngs: Sequence[np.random.Generator],
    *,
    correct: bool,
    window: Window | None = None,
) -> dict[str, Tensor]:
    """`two_rounds` from image embeddings, of the whole frame or of a window in whose pixels the prompts are."""
    window = window or whole(sam)
    with positioned(sam, window):
        return _decoder_rounds(sam, embeddings, prompts, rngs, correct=correct, window=window)


def _decoder_rounds(
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
    answers = logits[:, :, 1:].float()
    first = losses.best_mask(answers, iou[:, :, 1:].float(), targets, present)
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
