"""The instances of an image as the mask decoder meets them."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8

from pipeline.data.shards import Sample
from pipeline.ops import masks
from pipeline.ops.geometry import boxes_to_frame, masks_to_frame


@dataclass(frozen=True)
class Instances:
    """What is on one image."""

    coverages: UInt8[np.ndarray, "n m m"]
    """Each instance on the decoder's raster, 255 = all covered."""
    boxes: Float[np.ndarray, "n 4"]
    """xyxy in the prompt frame."""


def instances_of(sample: Sample, image_size: int, grid: int, *, mirror: bool = False) -> Instances:
    """Masks and boxes of an image; of a speck that leaves nothing on the raster, neither.

    Args:
        sample: An image with its annotations.
        image_size: Side of the prompt frame, in pixels.
        grid: Side of the decoder's raster.
        mirror: As they are on the image turned left to right.
    """
    coverages, boxes = [], []
    for annotation in sample.annotations:
        mask = masks.decode(annotation["segmentation"])
        if mirror:
            mask = np.ascontiguousarray(mask[:, ::-1])
        coverage = masks_to_frame(torch.from_numpy(mask.astype(np.float32))[None], image_size, grid)[0]
        rounded = (coverage * 255).round().byte().numpy()
        if rounded.any():
            coverages.append(rounded)
            boxes.append(boxes_to_frame(np.array(masks.box(mask)), sample.image.shape[:2], image_size))
    return Instances(np.array(coverages, np.uint8).reshape(-1, grid, grid), np.array(boxes, np.float32).reshape(-1, 4))
