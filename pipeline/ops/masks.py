"""Binary masks: run-length encoding, boxes, polygons, centres. Pure functions of arrays; RLE by pycocotools."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool
from pycocotools import mask as coco_mask

from pipeline.core.untrusted.segmentation import Polygons, Runs, Text, check
from pipeline.ops.geometry import Size

Rle = dict[str, Any]
"""COCO's run-length encoding: ``{"size": [H, W], "counts": str}``, column-major, compressed."""


def encode(mask: Bool[np.ndarray, "h w"]) -> Rle:
    """Encode a mask as compressed RLE with ``counts`` as text."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode(rle: Mapping[str, Any]) -> Bool[np.ndarray, "h w"]:
    """Decode a compressed RLE."""
    counts = rle["counts"]
    raw = counts.encode("ascii") if isinstance(counts, str) else counts
    return coco_mask.decode({"size": list(rle["size"]), "counts": raw}).astype(bool)


def from_segmentation(segmentation: object, size: Size) -> Rle:
    """Convert COCO's ``segmentation`` in any of its three forms to compressed RLE.

    Args:
        segmentation: Polygons ``[[x, y, x, y, ...], ...]``, uncompressed RLE (``counts`` a list) or compressed RLE.
        size: Height and width of the image.

    Raises:
        InputError: It is none of the three, does not fit ``size``, or exceeds a bound.
    """
    height, width = size
    match check(segmentation, size):
        case Text(counts):
            return {"size": [height, width], "counts": counts}
        case Runs(lengths):
            rle = coco_mask.frPyObjects({"size": [height, width], "counts": lengths}, height, width)
        case Polygons(corners):
            rle = coco_mask.merge(coco_mask.frPyObjects(corners, height, width))
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def area(rle: Rle) -> int:
    """Number of pixels of a mask."""
    return int(coco_mask.area({"size": rle["size"], "counts": rle["counts"].encode("ascii")}))


def box(mask: Bool[np.ndarray, "h w"]) -> tuple[float, float, float, float]:
    """The tightest box xyxy around a mask, right and lower edge exclusive.

    Raises:
        ValueError: The mask is empty.
    """
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        raise ValueError("an empty mask has no box")
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def boundary(mask: Bool[np.ndarray, "h w"], width_px: int) -> Bool[np.ndarray, "h w"]:
    """The pixels of a mask within ``width_px`` of the background; outside the image counts as background.

    Source: Cheng et al. 2021, "Boundary IoU", whose code erodes the mask, padded by one, ``width_px`` times by 3 x 3.
    This is equivalent to one erosion by a larger square, restricted to the mask's bounding box.
    """
    result = mask.copy()
    rows, columns = bounds(mask)
    inner = np.pad(mask[rows, columns], 1).astype(np.uint8)
    eroded = cv2.erode(inner, np.ones((2 * width_px + 1, 2 * width_px + 1), np.uint8))[1:-1, 1:-1]
    result[rows, columns] &= ~eroded.astype(bool)
    return result


def bounds(mask: Bool[np.ndarray, "h w"]) -> tuple[slice, slice]:
    """Rows and columns of a mask's bounding box; empty slices for an empty mask."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    return slice(y, y + height), slice(x, x + width)


def center(mask: Bool[np.ndarray, "h w"]) -> tuple[float, float]:
    """The point (x, y) of a mask farthest from its border, used as a simulated click.

    The maximum of the Euclidean distance transform of the mask padded by one pixel; among several, the first in
    row-major order. The protocol of RITM's clicker, which EfficientViT-SAM's evaluation uses.

    Raises:
        ValueError: The mask is empty.
    """
    if not mask.any():
        raise ValueError("an empty mask has no centre")
    distance = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    # The last bit of OpenCV's distances differs between calls and would decide ties; squared distances are integers.
    squared = np.rint(distance.astype(np.float64) ** 2)
    row, column = np.unravel_index(int(squared.argmax()), squared.shape)
    return float(column), float(row)
