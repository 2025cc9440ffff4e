"""Alignment with ground truth: the mask decoder learns to read what its encoder gives, or both learn together.

Source: SAM-Lightening (arXiv 2403.09195), "align decoder", for a frozen encoder; EfficientViT-SAM (arXiv 2402.05008),
stage 2, for both, and for prompts and losses: a box or 1 to 10 clicks with equal chance, up to 64 masks of an image,
focal to dice 20 : 1, the best of three masks or the single one by chance, mirrored images. What differs: the IoU head
gets a loss, which the published EfficientViT-SAM code forgets although its inference picks masks by it; that code's own
mask loss, which is not its paper's, is `losses.bce_points`. Embeddings of a frozen encoder do not change, so where
memory allows each image is encoded once.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.align.config import AlignConfig
from pipeline.core.distributed import current
from pipeline.core.log import Log
from pipeline.data.instances import Instances, instances_of
from pipeline.data.prompts import Prompts, drawn_prompts
from pipeline.data.shards import Sample, Shards
from pipeline.models.decoder import decode
from pipeline.models.sam import Sam
from pipeline.ops.geometry import to_input
from pipeline.training import Draw, Step, autocast, cut, epoch_indices, fit, losses


@dataclass(frozen=True)
class _Example:
    """An image as what is trained meets it."""

    seen: Tensor
    """Its embedding ``(256, g, g)`` in half precision, or its pixels ``(3, S, S)`` where the encoder is trained."""
    instances: Instances


@dataclass(frozen=True)
class _Batch:
    """Examples, and prompts on them in groups that have as many points each."""

    seen: Tensor
    groups: list[tuple[list[int], Prompts]]
    """Places in the batch, and the prompts on these."""
    chance: Tensor
    """Uniform points ``(B, P, Q, 2)``, for `losses.bce_points`; Q is 0 for other losses."""


def align_masks(
    sam: Sam, images: Shards, config: AlignConfig, *, device: torch.device, log: Log, checkpoint: Path | None
) -> dict[str, float]:
    """Train ``sam`` in place; gives the mean loss terms of the weights it ends with, in the first process.

    They are taken on as many batches as a tenth of the steps has, with prompts of their own: what an interrupted run
    has forgotten of its way does not change them. A batch is cut into parts no larger than those of training.
    ``images`` must have a mask somewhere.
    """
    sam.to(device).eval().requires_grad_(False)
    module: nn.Module = sam.mask_decoder
    if config.train == "all":
        module = nn.ModuleDict({"encoder": sam.image_encoder, "decoder": sam.mask_decoder})
    module.requires_grad_(True)
    labelled = [i for i, count in enumerate(images.instances) if count]
    draw, step = _drawing(sam, images, labelled, config, device), partial(_step, sam, config, device)
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
    reached = _reached(draw, step, config, len(labelled), parts=current().world_size * config.optimizer.accumulate)
    sam.to("cpu").requires_grad_(True)
    return {f"train_{name}": value for name, value in reached.items()}


@torch.inference_mode()
def _reached(
    draw: Draw[_Batch], step: Step[_Batch], config: AlignConfig, count: int, *, parts: int
) -> dict[str, float]:
    """Loss terms, means over all prompts."""
    sums, total, seed = defaultdict[str, float](float), 0.0, config.optimizer.seed
    for number in range(-(-config.optimizer.steps // 10)):
        indices = epoch_indices(count, config.batch, number, seed)
        for places in cut(config.batch, parts):
            rngs = [np.random.default_rng((seed, number, 2, place)) for place in places]
            batch = draw([indices[place] for place in places], number, rngs)
            terms = dict(step(batch, number, np.random.default_rng((seed, number, 4))))
            weight = float(terms.pop("weight"))
            total += weight
            for name, value in terms.items():
                sums[name] += weight * float(value)
    return {name: value / total for name, value in sums.items()}


def _drawing(sam: Sam, images: Shards, labelled: list[int], config: AlignConfig, device: torch.device) -> Draw[_Batch]:
    kept: dict[int, _Example] = {}

    def example(index: int, rng: np.random.Generator) -> _Example:
        if index in kept:
            return kept[index]
        mirror = config.flip and rng.random() < 0.5
        found = _example(sam, images[index], device, frozen=config.train == "decoder", mirror=mirror)
        if config.keep_embeddings:
            kept[index] = found
        return found

    def draw(indices: list[int], number: int, rngs: list[np.random.Generator]) -> _Batch:
        examples = [example(labelled[index], rng) for index, rng in zip(indices, rngs, strict=True)]
        groups = drawn_prompts(
            rngs,
            [each.instances.coverages.astype(np.float32) / 255 for each in examples],
            [each.instances.boxes for each in examples],
            config.masks,
            sam.image_size,
            clicks=(config.clicks[0], config.clicks[1]),
        )
        points = losses.candidates_of(4 * sam.embedding_size) if config.mask_loss == "bce_points" else 0
        chance = np.stack([rng.random((config.masks, points, 2), np.float32) for rng in rngs])
        return _Batch(torch.stack([each.seen for each in examples]), groups, torch.from_numpy(chance))

    return draw


def _step(
    sam: Sam, config: AlignConfig, device: torch.device, batch: _Batch, number: int, rng: np.random.Generator
) -> Mapping[str, Tensor]:
    # The single-mask token and the three are trained in turn, as in EfficientViT-SAM.
    answer = slice(0, 1) if rng.random() < config.single_mask_share else slice(1, 4)
    seen = batch.seen.to(device)
    with autocast(device, config.optimizer.autocast):
        embeddings = sam.image_encoder(seen).float() if config.train == "all" else seen.float()
    sums, count = dict[str, Tensor](), torch.zeros((), device=device)
    for places, on_cpu in batch.groups:
        prompts = on_cpu.to(device)
        with autocast(device, config.optimizer.autocast):
            logits, iou = decode(sam, embeddings[places], prompts.coords, prompts.labels)
        mask_loss: losses.MaskLoss = losses.focal_dice
        if config.mask_loss == "bce_points":
            mask_loss = partial(losses.bce_points, candidates=batch.chance[places].to(device))
        terms = losses.best_mask(
            logits[:, :, answer].float(),
            iou[:, :, answer].float(),
            prompts.targets,
            prompts.present,
            mask_loss=mask_loss,
        )
        for name, value in terms.items():
            sums[name] = sums.get(name, 0) + value * prompts.present.sum()
        count = count + prompts.present.sum()
    return {name: value / count.clamp(min=1) for name, value in sums.items()} | {"weight": count}


@torch.inference_mode()
def _example(sam: Sam, sample: Sample, device: torch.device, *, frozen: bool, mirror: bool) -> _Example:
    image = sample.image[:, ::-1] if mirror else sample.image
    seen = to_input(image, sam.input_size)
    if frozen:
        seen = sam.image_encoder(seen[None].to(device))[0].half().cpu().clone()
    return _Example(seen, instances_of(sample, sam.image_size, 4 * sam.embedding_size, mirror=mirror))
