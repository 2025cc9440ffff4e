"""Simulated corrective clicks: the wrong pixel farthest from the border of its error region. Pure functions of arrays.

Source: RITM's clicker (``isegm/inference/clicker.py``), which EfficientViT-SAM's evaluation uses. It computes two
Euclidean distance transforms of the whole image per click, of which only the maxima are used. Here a chamfer transform,
four times as fast, selects the few pixels that can be the maximum, and only their squared distances are computed
exactly, as integers: the last bit of OpenCV's distances differs between calls and would decide ties.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from pipeline.ops import masks

_LEAST, _MOST = 0.98, 1.02
"""Bounds of OpenCV's 5 x 5 chamfer distance relative to the Euclidean one: its weights 1, 1.4 and 2.1969 give a norm
whose unit circle lies between 0.9824 and 1.0192."""
_PAIRS = 1 << 21
"""Largest number of (pixel, border pixel) pairs computed directly; beyond it the exact transform is faster."""

_EXACT_PX = 2048
"""Side in pixels up to which fp32 represents sums of squares exactly, whatever the order of the products."""


class Click(NamedTuple):
    """A click in pixels of the original image."""

    x: int
    y: int
    positive: bool
    """Whether it marks a missing pixel (foreground) rather than a surplus one (background)."""


def next_click(
    truth: Bool[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"], clicked: Sequence[tuple[int, int]]
) -> Click:
    """The next click that corrects a mask.

    It is placed at the larger maximum of two distance transforms, of the missing and of the surplus pixels, each padded
    by one pixel. Ties and a mask without errors give a negative click; among several maxima the first in row-major
    order is used. If only clicked pixels are wrong, it is the image's first pixel. All this matches the published code.

    Args:
        truth: Ground truth mask.
        mask: Predicted mask.
        clicked: Pixels (x, y) of earlier clicks, which are not clicked again.
    """
    faults = (truth & ~mask, mask & ~truth)
    areas = [int(np.count_nonzero(fault)) for fault in faults]
    larger = int(areas[1] > areas[0])
    depths = _depths(faults[larger], clicked)
    if _max_depth(areas[1 - larger]) < depths.highest / _MOST:  # too small to be deeper, the usual case
        _, x, y = _deepest(depths)
        return Click(x, y, larger == 0)
    other = _depths(faults[1 - larger], clicked)
    least = max(depths.highest, other.highest) / _MOST
    both = (other, depths) if larger else (depths, other)
    missing, surplus = (_deepest(part) if part.highest / _LEAST >= least else (0, 0, 0) for part in both)
    positive = missing[0] > surplus[0]
    _, x, y = missing if positive else surplus
    return Click(x, y, positive)


def _max_depth(area: int) -> float:
    """Upper bound of a mask's depth, from the disc it would contain; half a pixel diagonal allows for rasterisation."""
    return math.sqrt(area / math.pi) + math.sqrt(0.5)


@dataclass(frozen=True)
class _Depths:
    """Approximate distances to the border within a mask's bounding box."""

    padded: UInt8[np.ndarray, "h w"]
    """The mask in its bounding box, padded by one pixel: the nearest background pixel is never farther out."""
    approximate: Float[np.ndarray, "h w"]
    """Chamfer distances; 0 at clicked pixels."""
    highest: float
    x: int
    y: int
    """Position of the upper left corner in the image."""


def _depths(mask: Bool[np.ndarray, "h w"], clicked: Sequence[tuple[int, int]]) -> _Depths:
    rows, columns = masks.bounds(mask)
    inner = np.ascontiguousarray(mask[rows, columns]).view(np.uint8)
    x, y = columns.start - 1, rows.start - 1
    if not inner.size:
        return _Depths(inner, np.zeros((0, 0), np.float32), 0.0, x, y)
    padded = cv2.copyMakeBorder(inner, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    approximate = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_5)
    for column, row in clicked:
        if rows.start <= row < rows.stop and columns.start <= column < columns.stop:
            approximate[row - y, column - x] = 0
    return _Depths(padded, approximate, cv2.minMaxLoc(approximate)[1], x, y)


def _deepest(depths: _Depths) -> tuple[int, int, int]:
    """Squared distance to the border, x and y of the pixel farthest from it; zeros for an empty mask."""
    if not depths.highest:
        return 0, 0, 0
    candidates = (depths.approximate >= depths.highest * _LEAST / _MOST).view(np.uint8)
    x, y, width, height = cv2.boundingRect(candidates)
    reach = int(depths.highest / _LEAST) + 2
    x0, y0, x1, y1 = max(0, x - reach), max(0, y - reach), x + width + reach, y + height + reach
    near = depths.padded[y0:y1, x0:x1]
    edge = cv2.dilate(near, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))) - near
    corner = np.array([x0, y0], np.float32)
    inside = cv2.findNonZero(candidates[y : y + height, x : x + width]).reshape(-1, 2)  # in row-major order
    points = inside.astype(np.float32) + np.array([x - x0, y - y0], np.float32)
    border = cv2.findNonZero(edge).reshape(-1, 2).astype(np.float32)
    if len(points) * len(border) <= _PAIRS and max(near.shape) <= _EXACT_PX:
        partial = (border * border).sum(axis=1) - (2 * points) @ border.T
        squared = (partial.min(axis=1) + (points * points).sum(axis=1)).astype(np.int64)
    else:
        exact = cv2.distanceTransform(near, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        rows, columns = points[:, 1].astype(np.int64), points[:, 0].astype(np.int64)
        squared = np.rint(exact[rows, columns].astype(np.float64) ** 2).astype(np.int64)
    best = int(squared.argmax())
    pixel = points[best] + corner
    return int(squared[best]), depths.x + int(pixel[0]), depths.y + int(pixel[1])
