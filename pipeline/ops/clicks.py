"""Where a person would click: farthest from the border of what is wrong. Pure functions of arrays.

Source: RITM's clicker (``isegm/inference/clicker.py``), which EfficientViT-SAM's evaluation uses. It takes two whole
images' Euclidean distance transforms for a click; only their maxima are asked for. So here a chamfer transform, which
is four times as fast, says which few pixels can be the maximum, and their squared distances are counted out: whole
numbers, where OpenCV's last bit differs from call to call and would choose between equally far pixels.
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
"""What OpenCV's 5 x 5 chamfer transform makes of a distance, as shares of it: its weights 1, 1.4 and 2.1969 span a norm
whose unit circle lies between 0.9824 and 1.0192."""
_PAIRS = 1 << 21
"""Pixels by border pixels whose distances are counted out; of more than that the whole transform takes less time."""

_EXACT_PX = 2048
"""Side within which sums of squares are whole numbers that fp32 holds, whatever the order of the products."""


class Click(NamedTuple):
    """A click in pixels of the original image."""

    x: int
    y: int
    positive: bool
    """On what the mask lacks, rather than on what it has too much."""


def next_click(
    truth: Bool[np.ndarray, "h w"], found: Bool[np.ndarray, "h w"], clicked: Sequence[tuple[int, int]]
) -> Click:
    """The click that corrects a mask.

    At the larger of the maxima of two distance transforms, of what is missing and of what is too much, each padded by
    one pixel. Equal ones, and a mask without fault, give a negative click; of several maxima the first in reading
    order. Where nothing is wrong but pixels already clicked, that is the image's first pixel. All this as published.

    Args:
        truth: What is wanted.
        found: What is there.
        clicked: Pixels (x, y) of earlier clicks, which are not clicked again.
    """
    faults = (truth & ~found, found & ~truth)
    areas = [int(np.count_nonzero(fault)) for fault in faults]
    larger = int(areas[1] > areas[0])
    depths = _depths(faults[larger], clicked)
    if _at_most(areas[1 - larger]) < depths.highest / _MOST:  # too small to be deeper: usual, and half the work saved
        _, x, y = _deepest(depths)
        return Click(x, y, larger == 0)
    other = _depths(faults[1 - larger], clicked)
    least = max(depths.highest, other.highest) / _MOST
    both = (other, depths) if larger else (depths, other)
    missing, surplus = (_deepest(one) if one.highest / _LEAST >= least else (0, 0, 0) for one in both)
    positive = missing[0] > surplus[0]
    _, x, y = missing if positive else surplus
    return Click(x, y, positive)


def _at_most(area: int) -> float:
    """How deep a mask can be: pixels nearer than that are all its own, and cover a disc smaller by half a diagonal."""
    return math.sqrt(area / math.pi) + math.sqrt(0.5)


@dataclass(frozen=True)
class _Depths:
    """How far pixels are from the border, nearly, in the part of the image that a mask spans."""

    padded: UInt8[np.ndarray, "h w"]
    """The mask there, and a pixel of nothing around it: a nearest pixel outside the mask is never beyond that."""
    nearly: Float[np.ndarray, "h w"]
    """Chamfer distances; 0 where it was clicked."""
    highest: float
    x: int
    y: int
    """Where the upper left corner is in the image."""


def _depths(mask: Bool[np.ndarray, "h w"], clicked: Sequence[tuple[int, int]]) -> _Depths:
    rows, columns = masks.place(mask)
    inner = np.ascontiguousarray(mask[rows, columns]).view(np.uint8)
    x, y = columns.start - 1, rows.start - 1
    if not inner.size:
        return _Depths(inner, np.zeros((0, 0), np.float32), 0.0, x, y)
    padded = cv2.copyMakeBorder(inner, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    nearly = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_5)
    for column, row in clicked:
        if rows.start <= row < rows.stop and columns.start <= column < columns.stop:
            nearly[row - y, column - x] = 0
    return _Depths(padded, nearly, cv2.minMaxLoc(nearly)[1], x, y)


def _deepest(depths: _Depths) -> tuple[int, int, int]:
    """Squared distance to the border, x and y of the pixel that is farthest from it; three times 0 without one."""
    if not depths.highest:
        return 0, 0, 0
    candidates = (depths.nearly >= depths.highest * _LEAST / _MOST).view(np.uint8)
    x, y, width, height = cv2.boundingRect(candidates)
    reach = int(depths.highest / _LEAST) + 2
    x0, y0, x1, y1 = max(0, x - reach), max(0, y - reach), x + width + reach, y + height + reach
    near = depths.padded[y0:y1, x0:x1]
    edge = cv2.dilate(near, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))) - near
    corner = np.array([x0, y0], np.float32)
    inside = cv2.findNonZero(candidates[y : y + height, x : x + width]).reshape(-1, 2)  # in reading order
    points = inside.astype(np.float32) + np.array([x - x0, y - y0], np.float32)
    border = cv2.findNonZero(edge).reshape(-1, 2).astype(np.float32)
    if len(points) * len(border) <= _PAIRS and max(near.shape) <= _EXACT_PX:
        apart = (border * border).sum(axis=1) - (2 * points) @ border.T
        squared = (apart.min(axis=1) + (points * points).sum(axis=1)).astype(np.int64)
    else:
        exact = cv2.distanceTransform(near, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        rows, columns = points[:, 1].astype(np.int64), points[:, 0].astype(np.int64)
        squared = np.rint(exact[rows, columns].astype(np.float64) ** 2).astype(np.int64)
    best = int(squared.argmax())
    place = points[best] + corner
    return int(squared[best]), depths.x + int(place[0]), depths.y + int(place[1])
