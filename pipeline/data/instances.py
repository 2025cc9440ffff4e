"""The instances of an image on the mask decoder's raster."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8

from pipeline.data.shards import Sample
from pipeline.ops import masks
from pipeline.ops.geometry import boxes_to_frame, masks_to_frame


@dataclass(frozen=True)
class Instances:
    """Masks and boxes of one image."""

    coverages: UInt8[np.ndarray, "n m m"]
    """Coverage of each raster cell; 255 is fully covered."""
    boxes: Float[np.ndarray, "n 4"]
    """xyxy in the prompt frame."""


def instances_of(sample: Sample, image_size: int, grid: int, *, mirror: bool = False) -> Instances:
    """Masks and boxes of an image, without instances too small to show on the raster.

    Args:
        sample: An image with its annotations.
        image_size: Side of the prompt frame, in pixels.
        grid: Side of the decoder's raster.
        mirror: Flip horizontally.
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
