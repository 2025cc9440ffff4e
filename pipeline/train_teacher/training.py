"""Train `bundled_v2` on rendered scenes and photographs from ImageNet weights.

The state is checkpointed, and an interrupted run resumes. At intervals the averaged weights of the last checkpoint are
measured on held-out photographs and scenes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.core.config import Config
from pipeline.core.log import Log
from pipeline.core.untrusted import tensor_file
from pipeline.data.prompts import Prompts, first_prompts
from pipeline.models import build
from pipeline.models.sam import Sam
from pipeline.ops.geometry import PIXEL_MEAN, PIXEL_STD
from pipeline.train_teacher import photographs as photos
from pipeline.train_teacher.frame import boxes_of, coverages_of
from pipeline.train_teacher.imagenet import trunk_state
from pipeline.train_teacher.material import Material, Shares, compose
from pipeline.train_teacher.monitor import MODEL
from pipeline.train_teacher.rounds import two_rounds
from pipeline.train_teacher.windows import cell_px, random_window
from pipeline.training import OptimizerConfig, autocast, fit

TRUNK_RATE = 0.2
"""Learning rate of the pre-trained trunk as a share of the others'."""
FROZEN = ("stem", "stages.0", "stages.1")
"""Parts of the trunk that are not trained: generic features on large maps, whose gradients are a third of a step."""
BOX_JITTER = 0.05
TARGET_PX = 2
"""Side of a target's pixel in pixels of the frame: see `pipeline.train_teacher.rounds.FINER`."""
LOGIT_SCALE = 12.0
"""With it, masks for a click reach segment-anything's stability score of 0.95: 93 % of those with an IoU of 0.6 to 0.8
on held-out photographs, and half of those below 0.3."""

Batch = tuple[Tensor, Prompts, list[np.random.Generator]]
"""Pixels ``(B, 3, S, S)``, their prompts, and one random generator per image."""


class TrainTeacherConfig(Config):
    """How `bundled_v2` is trained."""

    scene_share: float
    """Share of rendered scenes among the training images."""
    collage_share: float
    """Share of collages: photographs and textures on which cut-outs are pasted."""
    exact_share: float
    """Share of prompts that are tight boxes and central clicks."""
    batch: int
    """Images composed per step of windows of half the frame's side. Steps of other windows have the same area."""
    prompts: int
    """Prompts per window."""
    windows: list[int]
    """Sides of the windows of successive steps, in embedding cells; 32 is the whole frame."""
    correct_every: int
    """Interval, in steps, at which the second round is trained too."""
    measure_every_s: float
    """Seconds of training between two measurements."""
    optimizer: OptimizerConfig


@dataclass(frozen=True)
class Start:
    """Weights that the training starts from."""

    imagenet: Path
    """EfficientNet-Lite0's ImageNet weights, a ``.pth`` file with the keys of efficientnet-lite-pytorch."""
    weights: Path | None = None
    """Safetensors of a bundled teacher."""


def train(
    config: TrainTeacherConfig, material: Material, start: Start, *, device: str, log: Log, checkpoint: Path
) -> Sam:
    """Train `bundled_v2` and return it with averaged weights.

    Args:
        config: The recipe.
        material: What training images are composed of.
        start: Initial weights.
        device: As torch names it.
        log: Receives the losses.
        checkpoint: Path of the run's state, from which it resumes.
    """
    sam = initial(config, start)
    for name in FROZEN:
        sam.image_encoder.get_submodule(f"trunk.{name}").requires_grad_(False)
    sam.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    def cells(number: int) -> int:
        return config.windows[number % len(config.windows)]

    def draw(indices: list[int], number: int, rngs: list[np.random.Generator]) -> Batch:
        return draw_batch(config, material, indices, rngs, sam.image_size, cells(number) * cell_px(sam))

    def step(batch: Batch, number: int, rng: np.random.Generator) -> Mapping[str, Tensor]:
        images, prompts, rngs = batch
        window = random_window(rng, sam, cells(number))
        inputs = images.to(device).contiguous(memory_format=torch.channels_last)
        # Depthwise convolutions are slower in bf16 on a CPU.
        with autocast(torch.device(device), "none" if device == "cpu" else config.optimizer.autocast):
            embeddings = sam.image_encoder(inputs, window.column, window.row).float()
        with autocast(torch.device(device), config.optimizer.autocast):
            correct = number % config.correct_every == 0
            terms = two_rounds(sam, embeddings, prompts, rngs, correct=correct, window=window)
        return terms | {"weight": prompts.present.sum()}

    fit(
        sam,
        draw,
        step,
        config.optimizer,
        count=len(material.photographs),
        batch=config.batch,
        log=log,
        name="train_teacher",
        device=torch.device(device),
        checkpoint=checkpoint,
        lr_shares={"image_encoder.trunk": TRUNK_RATE},
    )
    return sam


def initial(config: TrainTeacherConfig, start: Start) -> Sam:
    """Build the model with its initial weights."""
    sam = build(MODEL, seed=config.optimizer.seed)
    sam.image_encoder.get_submodule("trunk").load_state_dict(trunk_state(start.imagenet))
    if start.weights is not None:
        sam.load_state_dict(tensor_file.safetensors(start.weights, remedy="recreate it"))
        scale_logits(sam, 1 / LOGIT_SCALE)
    return sam


def scale_logits(sam: Sam, factor: float) -> None:
    """Multiply all mask logits by ``factor`` and divide fed-back masks by it: masks and predicted IoUs stay the same.

    Training on area coverage with the focal loss gives soft borders. segment-anything's stability score compares masks
    at logits of +1 and -1, which these borders would fail.
    """
    with torch.no_grad():
        for mlp in sam.mask_decoder.output_hypernetworks_mlps:
            last = mlp.layers[-1]
            last.weight.mul_(factor)
            last.bias.mul_(factor)
        sam.prompt_encoder.mask_downscaling[0].weight.div_(factor)


def draw_batch(
    config: TrainTeacherConfig,
    material: Material,
    indices: Sequence[int],
    rngs: list[np.random.Generator],
    frame_side: int,
    side: int,
) -> Batch:
    """Compose a step's images, and sample their prompts.

    Args:
        config: The recipe.
        material: What images are composed of.
        indices: Photographs of this step.
        rngs: Random generator of each.
        frame_side: Side of the frame, in pixels.
        side: Side of the windows, in pixels. Small ones are several of each frame, large ones are fewer than `indices`.
    """
    shares = Shares(config.scene_share, config.collage_share)
    grid, windows = side // TARGET_PX, max(1, len(indices) * frame_side**2 // (4 * side**2))
    frames, per_frame = min(windows, len(indices)), max(1, windows // len(indices))
    images, coverages, boxes = [], [], []
    rngs = [rng for rng in rngs[:frames] for _ in range(per_frame)]
    for index, rng in zip(indices[:frames], rngs[::per_frame], strict=True):
        frame = compose(shares, material, rng, index, frame_side)
        for _ in range(per_frame):
            window = frame if side == frame_side else photos.around_an_instance(rng, frame, side)
            images.append(photos.developed(rng, window.image))
            order = rng.permutation(len(window.instances))[: config.prompts]
            instances = [window.instances[i] for i in order]
            coverages.append(coverages_of(instances, side, grid))
            boxes.append(boxes_of(instances))
    pixels = (torch.from_numpy(np.stack(images)).float() - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    prompts = first_prompts(
        rngs, coverages, boxes, config.prompts, side, box_jitter=BOX_JITTER, exact_share=config.exact_share
    )
    return pixels.permute(0, 3, 1, 2), prompts, rngs
