"""A square training image on which pictures and cut-outs are drawn through affine maps, with their masks.

Maps are 2 x 3 matrices of pixel corners, in which a pixel's centre is at 0.5. Masks are stored within their boxes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from pipeline.ops import masks

Matrix = Float[np.ndarray, "2 3"]
Window = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels of the frame."""

MIN_AREA_PX = 16
"""Instances with fewer visible pixels of the frame are dropped."""
MIN_VISIBLE_SHARE = 0.35
"""Instances of which cut-outs hide more than the rest are dropped."""


@dataclass(frozen=True)
class Cutout:
    """A mask within its bounding box."""

    mask: UInt8[np.ndarray, "h w"]
    """0 or 1."""
    x: int
    y: int
    """Position of the upper left corner in the image."""


@dataclass(frozen=True)
class Picture:
    """An image with the masks of its instances."""

    image: UInt8[np.ndarray, "h w 3"]
    instances: list[Cutout]


def cutout(mask: Bool[np.ndarray, "h w"]) -> Cutout:
    """Crop a mask to its bounding box."""
    rows, columns = masks.bounds(mask)
    return Cutout(np.ascontiguousarray(mask[rows, columns]).view(np.uint8), columns.start, rows.start)


class Frame:
    """A square training image on which pictures and cut-outs are placed."""

    def __init__(self, side: int, fill: Sequence[int | float]) -> None:
        self.side = side
        self.image = np.empty((side, side, 3), np.float32)
        self.image[:] = fill
        self.instances: list[Cutout] = []

    def place(self, picture: Picture, matrix: Matrix, window: Window) -> None:
        """Draw a picture through an affine map into a window (x1, y1, x2, y2), and add its instances."""
        x1, y1, x2, y2 = window
        image, shrunk = _shrunk(picture.image, matrix)
        drawn = np.ascontiguousarray(self.image[y1:y2, x1:x2])
        cv2.warpAffine(
            image, _moved(shrunk, x1, y1), (x2 - x1, y2 - y1), dst=drawn, borderMode=cv2.BORDER_TRANSPARENT
        )  # fmt: skip
        self.image[y1:y2, x1:x2] = drawn
        for instance in picture.instances:
            placed = _warped(instance, matrix, window)
            if placed is not None:
                self.instances.append(placed)

    def crop(self, x: int, y: int, side: int) -> "Frame":
        """A square part of the frame that starts at (x, y), with its instances, clipped."""
        part = Frame(side, (0.0, 0.0, 0.0))
        part.image[:] = self.image[y : y + side, x : x + side]
        matrix = affine(1.0, 1.0, 0.0, np.zeros(2), np.array([-x, -y], np.float64))
        clipped = [_warped(instance, matrix, (0, 0, side, side)) for instance in self.instances]
        part.instances = [instance for instance in clipped if instance is not None]
        return part

    def paste(self, picture: Picture, instance: Cutout, matrix: Matrix, softness: float) -> None:
        """Paste one instance of a picture over the frame; it hides what is beneath."""
        window = (0, 0, self.side, self.side)
        placed = _warped(instance, matrix, window)
        if placed is None:
            return
        height, width = placed.mask.shape
        x1, y1 = max(0, placed.x - 3), max(0, placed.y - 3)
        x2, y2 = min(self.side, placed.x + width + 3), min(self.side, placed.y + height + 3)
        alpha = np.zeros((y2 - y1, x2 - x1), np.float32)
        alpha[placed.y - y1 : placed.y - y1 + height, placed.x - x1 : placed.x - x1 + width] = placed.mask
        alpha = cv2.GaussianBlur(alpha, (0, 0), softness)[..., None]
        image, shrunk = _shrunk(picture.image, matrix)
        pixels = cv2.warpAffine(
            image, _moved(shrunk, x1, y1), (x2 - x1, y2 - y1), borderMode=cv2.BORDER_REPLICATE
        )  # fmt: skip
        self.image[y1:y2, x1:x2] += alpha * (pixels - self.image[y1:y2, x1:x2])
        self.instances = [rest for i in self.instances if (rest := _behind(i, placed)) is not None]
        self.instances.append(placed)


def boxes_of(instances: Sequence[Cutout]) -> Float[np.ndarray, "n 4"]:
    """Tight boxes xyxy in the frame."""
    boxes = [(i.x, i.y, i.x + i.mask.shape[1], i.y + i.mask.shape[0]) for i in instances]
    return np.array(boxes, np.float32).reshape(-1, 4)


def coverages_of(instances: Sequence[Cutout], side: int, grid: int) -> Float[np.ndarray, "n m m"]:
    """Coverage of each cell of a raster of ``grid`` cells per side, in [0, 1]."""
    coverages = np.zeros((len(instances), grid, grid), np.float32)
    for coverage, i in zip(coverages, instances, strict=True):
        full = np.zeros((side, side), np.float32)
        full[i.y : i.y + i.mask.shape[0], i.x : i.x + i.mask.shape[1]] = i.mask
        coverage[:] = cv2.resize(full, (grid, grid), interpolation=cv2.INTER_AREA)
    return coverages


def affine(scale_x: float, scale_y: float, turn: float, center: np.ndarray, target: np.ndarray) -> Matrix:
    """The map that scales and rotates by ``turn`` radians and moves ``center`` to ``target``."""
    linear = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.diag([scale_x, scale_y])
    return np.hstack([linear, (target - linear @ center)[:, None]])


def _moved(matrix: Matrix, x: int, y: int) -> np.ndarray:
    """Shift the target's origin to (x, y), and pixel corners, which `affine` maps, to cv2's pixel centres."""
    linear, offset = matrix[:, :2], matrix[:, 2] - (x, y)
    return np.hstack([linear, (offset + linear @ (0.5, 0.5) - 0.5)[:, None]])


def _shrunk(image: np.ndarray, matrix: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Halve an image by area averaging until bilinear sampling through ``matrix`` skips no pixels."""
    image = image.astype(np.float32)
    while np.sqrt(abs(np.linalg.det(matrix[:, :2]))) < 0.6 and min(image.shape[:2]) >= 16:
        height, width = image.shape[:2]
        image = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        matrix = np.hstack([matrix[:, :2] @ np.diag([width / (width // 2), height / (height // 2)]), matrix[:, 2:]])
    return image, matrix


def _warped(instance: Cutout, matrix: Matrix, window: Window) -> Cutout | None:
    """An instance's mask after an affine map, clipped to a window; None if little of it is left."""
    height, width = instance.mask.shape
    own = np.hstack([matrix[:, :2], (matrix[:, 2] + matrix[:, :2] @ (instance.x, instance.y))[:, None]])
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]]) @ own.T
    x1, y1 = map(int, np.maximum(np.floor(corners.min(axis=0)), window[:2]))
    x2, y2 = map(int, np.minimum(np.ceil(corners.max(axis=0)), window[2:]))
    if x2 <= x1 or y2 <= y1:
        return None
    mask = cv2.warpAffine(instance.mask.astype(np.float32), _moved(own, x1, y1), (x2 - x1, y2 - y1)) > 0.5
    if np.count_nonzero(mask) < MIN_AREA_PX:
        return None
    tight = cutout(mask)
    return Cutout(tight.mask, x1 + tight.x, y1 + tight.y)


def _behind(instance: Cutout, front: Cutout) -> Cutout | None:
    """What ``front`` leaves visible of an instance; None if that is too little."""
    x1, y1 = max(instance.x, front.x), max(instance.y, front.y)
    x2 = min(instance.x + instance.mask.shape[1], front.x + front.mask.shape[1])
    y2 = min(instance.y + instance.mask.shape[0], front.y + front.mask.shape[0])
    if x2 <= x1 or y2 <= y1:
        return instance
    mask = instance.mask.astype(bool)
    hidden = front.mask[y1 - front.y : y2 - front.y, x1 - front.x : x2 - front.x].astype(bool)
    mask[y1 - instance.y : y2 - instance.y, x1 - instance.x : x2 - instance.x] &= ~hidden
    left = np.count_nonzero(mask)
    if left < max(MIN_AREA_PX, MIN_VISIBLE_SHARE * np.count_nonzero(instance.mask)):
        return None
    tight = cutout(mask)
    return Cutout(tight.mask, instance.x + tight.x, instance.y + tight.y)
