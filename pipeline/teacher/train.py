"""Train the bundled teacher on procedural scenes with SAM's recipe.

Source: SAM, appendix A. Each prompt is asked twice: first a box or a click, answered by three masks of which the best
is trained; then the better mask comes back with a click where it was wrong, answered by the single mask. What differs:
two rounds instead of eleven, losses on the decoder's own raster against area-averaged masks, which a CPU can afford.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline import losses, masks
from pipeline.config import Config
from pipeline.data.prompts import Prompts, corrective_clicks, first_prompts
from pipeline.data.scenes import render
from pipeline.data.workers import in_processes
from pipeline.geometry import PIXEL_MEAN, PIXEL_STD, masks_to_frame
from pipeline.log import Log
from pipeline.models import build
from pipeline.models.bundled import IMAGE_SIZE
from pipeline.models.decoder import decode
from pipeline.models.sam import Sam
from pipeline.progress import progress
from pipeline.training import OptimizerConfig, autocast, epoch_indices, fit


class TrainTeacherConfig(Config):
    """How the bundled teacher is trained."""

    scenes: int
    """Scenes rendered once and seen many times, turned and mirrored."""
    scenes_seed: int
    """Differs from every seed of `prepare`, so that no scene of a data set was trained on."""
    batch: int
    """Scenes in a step."""
    prompts: int
    """Prompts on each."""
    correct_every: int
    """Every how many steps the second round is trained too: it costs as much as the first."""
    autocast_bf16: bool
    optimizer: OptimizerConfig


@dataclass(frozen=True)
class SceneBank:
    """Rendered scenes: images as bytes, masks as coverage on the decoder's raster."""

    images: list[np.ndarray]
    """uint8 ``(256, 256, 3)`` each."""
    masks: list[np.ndarray]
    """uint8 ``(n, 64, 64)`` each, 255 = all covered."""
    boxes: list[np.ndarray]
    """float32 ``(n, 4)`` each, xyxy."""


def _scene(task: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    scene = render(np.random.default_rng(task), IMAGE_SIZE)
    full = torch.from_numpy(np.array(scene.masks, dtype=np.float32).reshape(-1, IMAGE_SIZE, IMAGE_SIZE))
    coverage = masks_to_frame(full, IMAGE_SIZE, IMAGE_SIZE // 4) if len(full) else torch.zeros(0, 64, 64)
    boxes = np.array([masks.box(m) for m in scene.masks], np.float32).reshape(-1, 4)
    return scene.image, (coverage * 255).round().byte().numpy(), boxes


def render_bank(count: int, seed: int) -> SceneBank:
    """Render ``count`` scenes in as many processes as there are cores."""
    tasks = [(seed, i) for i in range(count)]
    with closing(in_processes(_scene, tasks)) as scenes:
        results = list(progress(scenes, "render", "scene", total=count))
    images, coverages, boxes = zip(*results, strict=True)
    return SceneBank(list(images), list(coverages), list(boxes))


def train(config: TrainTeacherConfig, *, device: str, log: Log, checkpoint: Path | None = None) -> Sam:
    """Train from scratch and give back the averaged weights."""
    sam = build("bundled", seed=config.optimizer.seed).to(device)
    sam.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    bank = render_bank(config.scenes, config.scenes_seed)

    def draw(number: int, rng: np.random.Generator) -> tuple[Tensor, Prompts]:
        return _batch(bank, config, number, rng)

    def step(batch: tuple[Tensor, Prompts], number: int, rng: np.random.Generator) -> Mapping[str, Tensor]:
        images, prompts = batch
        with autocast(torch.device(device), bf16=config.autocast_bf16):
            return two_rounds(sam, images.to(device), prompts, rng, correct=number % config.correct_every == 0)

    fit(sam, draw, step, config.optimizer, log=log, name="train_teacher", checkpoint=checkpoint)
    return sam


def _batch(
    bank: SceneBank, config: TrainTeacherConfig, number: int, rng: np.random.Generator
) -> tuple[Tensor, Prompts]:
    """Scenes of one step, in an order that visits each once per epoch, all turned or mirrored alike."""
    chosen = epoch_indices(len(bank.images), config.batch, number, config.optimizer.seed)
    transpose, flip_x, flip_y = rng.random(3) < 0.5
    images = np.stack([bank.images[i] for i in chosen])
    coverages = [bank.masks[i].astype(np.float32) / 255 for i in chosen]
    boxes = [bank.boxes[i] for i in chosen]
    if transpose:
        images = images.swapaxes(1, 2)
        coverages = [m.swapaxes(1, 2) for m in coverages]
        boxes = [b[:, [1, 0, 3, 2]] for b in boxes]
    if flip_x:
        images = images[:, :, ::-1]
        coverages = [m[:, :, ::-1] for m in coverages]
        boxes = [np.stack([IMAGE_SIZE - b[:, 2], b[:, 1], IMAGE_SIZE - b[:, 0], b[:, 3]], axis=1) for b in boxes]
    if flip_y:
        images = images[:, ::-1]
        coverages = [m[:, ::-1] for m in coverages]
        boxes = [np.stack([b[:, 0], IMAGE_SIZE - b[:, 3], b[:, 2], IMAGE_SIZE - b[:, 1]], axis=1) for b in boxes]
    pixels = torch.from_numpy(images[..., rng.permutation(3)].astype(np.float32))
    pixels = (pixels - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    return pixels.permute(0, 3, 1, 2), first_prompts(rng, coverages, boxes, config.prompts, IMAGE_SIZE)


def two_rounds(
    sam: Sam, images: Tensor, prompts: Prompts, rng: np.random.Generator, *, correct: bool
) -> dict[str, Tensor]:
    """Losses of the first answer and, where ``correct``, of the corrected one."""
    device = images.device
    embeddings = sam.image_encoder(images).float()
    coords, labels = prompts.coords.to(device), prompts.labels.to(device)
    targets, present = prompts.targets.to(device), prompts.present.to(device)
    logits, iou = decode(sam, embeddings, coords, labels)
    answers = logits[:, :, 1:].float()
    first = losses.best_mask(answers, iou[:, :, 1:].float(), targets, present)
    if not correct:
        return first

    with torch.no_grad():
        pick = losses.mask_iou(answers, targets[:, :, None].expand_as(answers)).argmax(dim=2)
        answer = answers.gather(2, pick[:, :, None, None, None].expand(-1, -1, 1, *answers.shape[-2:]))
    more_coords, more_labels = corrective_clicks(rng, answer[:, :, 0], prompts.targets, sam.image_size)
    logits, iou = decode(
        sam,
        embeddings,
        torch.cat([coords, more_coords.to(device)], dim=2),
        torch.cat([labels, more_labels.to(device)], dim=2),
        mask_input=answer,
    )
    second = losses.best_mask(logits[:, :, :1].float(), iou[:, :, :1].float(), targets, present)
    return first | {
        "loss": first["loss"] + second["loss"],
        **{f"corrected_{term}": second[term] for term in ("focal", "dice", "iou")},
    }
