"""Where a person would click: farthest from the border of what is wrong. Pure functions of arrays.

Source: RITM's clicker (``isegm/inference/clicker.py``), which EfficientViT-SAM's evaluation uses. It takes two whole
images' Euclidean distance transforms for a click; only their maxima are asked for. So here a chamfer transform, which
is four times as fast, says which few pixels can be the maximum, and their squared distances are counted out: whole
numbers, where OpenCV's last bit differs from call to call and would choose between equally far pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from pipeline import masks

_LEAST, _MOST = 0.98, 1.02
"""What OpenCV's 5 x 5 chamfer transform makes of a distance, as shares of it: its weights 1, 1.4 and 2.1969 span a norm
whose unit circle lies between 0.9824 and 1.0192."""
_PAIRS = 1 << 21
"""Pixels by border pixels whose distances are counted out; of more than that the whole transform takes less time."""


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
    missing, surplus = _depths(truth & ~found, clicked), _depths(found & ~truth, clicked)
    if surplus.highest / _LEAST < missing.highest / _MOST:  # it cannot be deeper, however deep it is
        _, x, y = _deepest(missing)
        return Click(x, y, True)
    if missing.highest / _LEAST < surplus.highest / _MOST:
        _, x, y = _deepest(surplus)
        return Click(x, y, False)
    inside, outside = _deepest(missing), _deepest(surplus)
    positive = inside[0] > outside[0]
    _, x, y = inside if positive else outside
    return Click(x, y, positive)


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
    points = cv2.findNonZero(candidates).reshape(-1, 2).astype(np.int32)  # in reading order
    border = cv2.findNonZero(edge).reshape(-1, 2).astype(np.int32) + np.array([x0, y0], np.int32)
    if len(points) * len(border) <= _PAIRS:
        dx, dy = (points[:, None, axis] - border[None, :, axis] for axis in (0, 1))
        squared = (dx * dx + dy * dy).min(axis=1)
    else:
        exact = cv2.distanceTransform(near, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        squared = np.rint(exact[points[:, 1] - y0, points[:, 0] - x0].astype(np.float64) ** 2).astype(np.int64)
    best = int(squared.argmax())
    return int(squared[best]), depths.x + int(points[best, 0]), depths.y + int(points[best, 1])
