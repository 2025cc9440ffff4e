"""Decoder alignment: the encoder is frozen, the mask decoder learns to read what it gives.

Source: SAM-Lightening (arXiv 2403.09195), "align decoder", and EfficientViT-SAM's prompts: boxes and clicks with equal
chance, focal to dice 20 : 1, the best of three masks. What differs: the IoU head gets a loss, which the published
EfficientViT-SAM code forgets although its inference picks masks by it. Embeddings of a frozen encoder do not change, so
where memory allows each image is encoded once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline import losses, masks
from pipeline.align.config import AlignConfig
from pipeline.data.prompts import Prompts, first_prompts
from pipeline.data.shards import Sample, Shards
from pipeline.geometry import boxes_to_frame, masks_to_frame, to_input
from pipeline.log import Log
from pipeline.models.decoder import decode
from pipeline.models.sam import Sam
from pipeline.ranks import current
from pipeline.training import autocast, epoch_indices, fit

SINGLE_MASK_EVERY = 4

Batch = tuple[Tensor, Prompts]
"""Image embeddings ``(B, 256, g, g)`` and the prompts on them."""


@dataclass(frozen=True)
class _Example:
    """An image as the decoder meets it."""

    embedding: Tensor
    """``(256, g, g)``, half precision, on the CPU."""
    coverages: np.ndarray
    """uint8 ``(n, 4g, 4g)``: each instance on the decoder's raster, 255 = all covered."""
    boxes: np.ndarray
    """float32 ``(n, 4)``, xyxy in the prompt frame."""


def align_decoder(
    sam: Sam, images: Shards, config: AlignConfig, *, device: torch.device, log: Log, checkpoint: Path | None
) -> dict[str, float]:
    """Train ``sam.mask_decoder`` in place; gives the mean loss terms of the weights it ends with, in the first process.

    They are taken on as many batches as a tenth of the steps has, with prompts of their own: what an interrupted run
    has forgotten of its way does not change them. ``images`` must have a mask somewhere.
    """
    sam.to(device).eval().requires_grad_(False)
    sam.mask_decoder.requires_grad_(True)
    labelled = [i for i, count in enumerate(images.instances) if count]
    kept: dict[int, _Example] = {}

    def draw(indices: list[int], number: int, rngs: list[np.random.Generator]) -> Batch:
        chosen = [labelled[i] for i in indices]
        examples = [kept.get(i) or _example(sam, images[i], device) for i in chosen]
        if config.keep_embeddings:
            kept.update(zip(chosen, examples, strict=True))
        coverages = [example.coverages.astype(np.float32) / 255 for example in examples]
        boxes = [example.boxes for example in examples]
        prompts = first_prompts(rngs, coverages, boxes, config.prompts, sam.image_size)
        return torch.stack([example.embedding for example in examples]), prompts

    def step(batch: Batch, number: int, rng: np.random.Generator) -> Mapping[str, Tensor]:
        embeddings, prompts = batch[0].to(device).float(), batch[1]
        coords, labels = prompts.coords.to(device), prompts.labels.to(device)
        targets, present = prompts.targets.to(device), prompts.present.to(device)
        with autocast(device, config.optimizer.autocast):
            logits, iou = decode(sam, embeddings, coords, labels)
        logits, iou = logits.float(), iou.float()
        # The single-mask token and the three are trained in turn, as in EfficientViT-SAM.
        answer = slice(1, 4) if number % SINGLE_MASK_EVERY else slice(0, 1)
        terms = losses.best_mask(logits[:, :, answer], iou[:, :, answer], targets, present)
        return terms | {"weight": present.sum()}

    fit(
        sam.mask_decoder,
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
    reached = list[dict[str, float]]()
    with torch.inference_mode():
        for number in range(-(-config.optimizer.steps // 10)):
            rngs = [np.random.default_rng((config.optimizer.seed, number, 2, place)) for place in range(config.batch)]
            indices = epoch_indices(len(labelled), config.batch, number, config.optimizer.seed)
            terms = step(draw(indices, number, rngs), number, rngs[0])
            reached.append({key: float(value) for key, value in terms.items() if key != "weight"})
    sam.to("cpu").requires_grad_(True)
    return {f"train_{key}": float(np.mean([terms[key] for terms in reached])) for key in reached[0]}


@torch.inference_mode()
def _example(sam: Sam, sample: Sample, device: torch.device) -> _Example:
    grid = 4 * sam.embedding_size
    embedding = sam.image_encoder(to_input(sample.image, sam.input_size)[None].to(device))[0].half().cpu().clone()
    coverages, boxes = [], []
    for annotation in sample.annotations:
        mask = masks.decode(annotation["segmentation"])
        coverage = masks_to_frame(torch.from_numpy(mask.astype(np.float32))[None], sam.image_size, grid)[0]
        rounded = (coverage * 255).round().byte().numpy()
        if rounded.any():  # of a speck in a large image nothing is left on the raster
            coverages.append(rounded)
            boxes.append(boxes_to_frame(np.array(masks.box(mask)), sample.image.shape[:2], sam.image_size))
    return _Example(
        embedding,
        np.array(coverages, np.uint8).reshape(-1, grid, grid),
        np.array(boxes, np.float32).reshape(-1, 4),
    )
