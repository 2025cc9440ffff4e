"""Point grids and image crops for everything mode.

Source: segment-anything, ``utils/amg.py``; the first round's points are TinySAM's (arXiv 2312.13789, section 3.3).
Unlike in TinySAM's code they are a subset of the dense grid, so both rounds together never exceed it, and every point
lies inside the image.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from pipeline.ops.geometry import Size


@dataclass(frozen=True)
class Crop:
    """A part of an image."""

    x0: int
    y0: int
    x1: int
    y1: int
    layer: int
    """0 is the whole image."""

    @property
    def size(self) -> Size:
        """Height and width, in pixels."""
        return self.y1 - self.y0, self.x1 - self.x0


def point_grid(per_side: int, size: Size) -> Float[np.ndarray, "n 2"]:
    """Centres (x, y) of ``per_side`` x ``per_side`` equal cells of an image, in its pixels, row by row."""
    centers = (np.arange(per_side) + 0.5) / per_side
    x, y = np.meshgrid(centers * size[1], centers * size[0])
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def coarse_points(per_side: int, stride: int) -> Bool[np.ndarray, " n"]:
    """Boolean mask of `point_grid` for the first round: every ``stride``-th point per axis, from ``stride // 2``."""
    chosen = np.zeros(per_side, dtype=bool)
    chosen[min(stride // 2, per_side - 1) :: stride] = True
    return (chosen[:, None] & chosen).reshape(-1)


def crops(size: Size, layers: int, overlap_ratio: float) -> list[Crop]:
    """The whole image, then the non-empty, overlapping crops of each layer, column by column.

    Args:
        size: Height and width of the image.
        layers: Number of layers; layer i splits each side into 2^i parts.
        overlap_ratio: Overlap in the first layer as a fraction of the shorter side; it halves with each layer.
    """
    height, width = size
    result = [Crop(0, 0, width, height, 0)]
    for layer in range(1, layers + 1):
        parts = 2**layer
        overlap = int(overlap_ratio * min(size) * (2 / parts))
        w, h = (math.ceil((overlap * (parts - 1) + extent) / parts) for extent in (width, height))
        for x0 in (i * (w - overlap) for i in range(parts)):
            for y0 in (i * (h - overlap) for i in range(parts)):
                if x0 < width and y0 < height:  # a very small image has fewer parts
                    result.append(Crop(x0, y0, min(x0 + w, width), min(y0 + h, height), layer))
    return result
