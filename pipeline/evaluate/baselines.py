"""Scores of trivial masks: the filled box, its inscribed ellipse, and a disc around the click.

A model that scores below them is broken, whatever its share of the teacher's mIoU. The disc's radius, as a share of the
image's longer side, is optimized on the evaluated instances, so it is an upper bound for fixed discs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from types import MappingProxyType

import numpy as np
from jaxtyping import Bool, Float

from pipeline.data.coco import Instance, Photograph
from pipeline.evaluate.validation import area_of, box_of
from pipeline.ops import masks
from pipeline.ops.clicks import next_click
from pipeline.ops.metrics import band_means, iou

RADII = np.arange(1, 51) / 100
"""Candidate radii of the disc, as shares of the image's longer side."""
_THIN = 1e-6
"""Least half width of a box, in pixels; the box of an annotation can be a line."""
_BOX, _CLICK = ("filled_box", "ellipse"), "disc"


def trivial_masks(validation: Sequence[Photograph], pool: Executor) -> dict[str, dict[str, float]]:
    """Score the trivial predictors on the validation split.

    Args:
        validation: Photographs with their instances.
        pool: Executor that scores instances in parallel.

    Returns:
        Per predictor (``filled_box``, ``ellipse``, ``disc``) the mean IoU over all instances and per COCO size band,
        with the same keys as for models (``box_miou``, ``click_miou_small`` ...); for the disc also its ``radius``.
    """
    instances = [instance for photograph in validation for instance in photograph.instances]
    areas = [area_of(instance) for instance in instances]
    ious = list(pool.map(_score, instances))
    scores = {name: dict(band_means("box_miou", [boxes[name] for boxes, _ in ious], areas)) for name in _BOX}
    by_radius = np.stack([discs for _, discs in ious])
    best = int(by_radius.mean(0).argmax())
    scores[_CLICK] = {"radius": float(RADII[best])} | band_means("click_miou", by_radius[:, best].tolist(), areas)
    return scores


def filled(box: tuple[float, float, float, float], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Mask of size (H, W) of a box xyxy; a pixel belongs to it if its centre does."""
    x1, y1, x2, y2 = box
    across, down = np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5
    return ((across >= x1) & (across <= x2))[None] & ((down >= y1) & (down <= y2))[:, None]


def ellipse(box: tuple[float, float, float, float], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Mask of size (H, W) of the ellipse inscribed in a box xyxy; a pixel belongs to it if its centre does."""
    x1, y1, x2, y2 = box
    across = (np.arange(size[1]) + 0.5 - (x1 + x2) / 2) / max((x2 - x1) / 2, _THIN)
    down = (np.arange(size[0]) + 0.5 - (y1 + y2) / 2) / max((y2 - y1) / 2, _THIN)
    return across[None] ** 2 + down[:, None] ** 2 <= 1


TrivialMask = Callable[[tuple[float, float, float, float], tuple[int, int]], np.ndarray]
"""Maps a box xyxy and a size (H, W) to a mask."""
TRIVIAL: Mapping[str, TrivialMask] = MappingProxyType({"filled_box": filled, "ellipse": ellipse})


def disc_ious(
    mask: Bool[np.ndarray, "h w"], center: tuple[int, int], radii_px: Float[np.ndarray, " r"]
) -> Float[np.ndarray, " r"]:
    """IoU of a mask with discs of increasing radius around one pixel, clipped to the image.

    Args:
        mask: Mask of the image's size.
        center: (x, y) in pixels.
        radii_px: Increasing; a pixel belongs to a disc if its centre is within the radius.
    """
    x, y = center
    radii = np.asarray(radii_px, dtype=np.float64)
    down = np.arange(mask.shape[0])[:, None] - y
    half = np.sqrt(np.maximum(radii**2 - down**2, 0))  # half chord per row, (h, r)
    chord = np.minimum(mask.shape[1] - 1 - x, np.floor(half)) + np.minimum(x, np.floor(half)) + 1
    disc = np.where(np.abs(down) <= radii, chord, 0).sum(0)
    rows, columns = np.nonzero(mask)
    smallest = np.searchsorted(
        radii, np.sqrt((columns - x) ** 2 + (rows - y) ** 2)
    )  # index of the smallest disc containing each pixel
    shared = np.bincount(smallest, minlength=len(radii) + 1)[:-1].cumsum()
    return np.asarray(shared / (disc + len(rows) - shared))


def _score(instance: Instance) -> tuple[dict[str, float], Float[np.ndarray, " r"]]:
    """IoUs of one instance: per box predictor, and per radius for a click."""
    mask = np.ascontiguousarray(masks.decode(instance.rle))
    box = box_of(instance, mask)
    boxes = {"filled_box": _inside_iou(mask, box, filled), "ellipse": _inside_iou(mask, box, ellipse)}
    click = next_click(mask, np.zeros_like(mask), ())
    return boxes, disc_ious(mask, (click.x, click.y), RADII * max(mask.shape))


def _inside_iou(
    mask: Bool[np.ndarray, "h w"], box: tuple[float, float, float, float], shape: Callable[..., Bool[np.ndarray, "h w"]]
) -> float:
    """IoU of a mask with a shape in its box, computed where either can have pixels."""
    rows, columns = masks.bounds(mask)
    x1, y1 = max(0, min(columns.start, math.floor(box[0]))), max(0, min(rows.start, math.floor(box[1])))
    x2, y2 = max(columns.stop, math.ceil(box[2])), max(rows.stop, math.ceil(box[3]))
    part = mask[y1:y2, x1:x2]
    return iou(shape((box[0] - x1, box[1] - y1, box[2] - x1, box[3] - y1), part.shape), part)
