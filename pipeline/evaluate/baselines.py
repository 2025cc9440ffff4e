"""Scores of trivial masks: the filled box, its inscribed ellipse, and a disc around the click.

A model that scores below them is broken, whatever its share of the teacher's mIoU. The disc's radius, as a share of the
image's longer side, is optimized on the evaluated instances, so it is an upper bound for fixed discs.
"""

from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
from jaxtyping import Bool, Float

from pipeline.data.coco import Photograph
from pipeline.ops import masks
from pipeline.ops.clicks import next_click
from pipeline.ops.metrics import band_means, iou

RADII = np.arange(1, 51) / 100
"""Candidate radii of the disc, as shares of the image's longer side."""
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
    rles = [instance.rle for photograph in validation for instance in photograph.instances]
    areas = [masks.area(rle) for rle in rles]
    ious = list(pool.map(_score, rles))
    scores = {name: dict(band_means("box_miou", [boxes[name] for boxes, _ in ious], areas)) for name in _BOX}
    by_radius = np.stack([discs for _, discs in ious])
    best = int(by_radius.mean(0).argmax())
    scores[_CLICK] = {"radius": float(RADII[best])} | band_means("click_miou", by_radius[:, best].tolist(), areas)
    return scores


def ellipse(box: tuple[float, float, float, float], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """Mask of size (H, W) of the ellipse inscribed in a box xyxy; a pixel belongs to it if its centre does."""
    x1, y1, x2, y2 = box
    across = (np.arange(size[1]) + 0.5 - (x1 + x2) / 2) / ((x2 - x1) / 2)
    down = (np.arange(size[0]) + 0.5 - (y1 + y2) / 2) / ((y2 - y1) / 2)
    return across[None] ** 2 + down[:, None] ** 2 <= 1


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


def _score(rle: masks.Rle) -> tuple[dict[str, float], Float[np.ndarray, " r"]]:
    """IoUs of one instance: per box predictor, and per radius for a click."""
    mask = np.ascontiguousarray(masks.decode(rle))
    x1, y1, x2, y2 = box = masks.box(mask)
    boxes = {
        "filled_box": float(np.count_nonzero(mask) / ((x2 - x1) * (y2 - y1))),
        "ellipse": _ellipse_iou(mask, box),
    }
    click = next_click(mask, np.zeros_like(mask), ())
    return boxes, disc_ious(mask, (click.x, click.y), RADII * max(mask.shape))


def _ellipse_iou(mask: Bool[np.ndarray, "h w"], box: tuple[float, float, float, float]) -> float:
    """IoU of a mask with the ellipse inscribed in its tight box; outside the box both are empty."""
    x1, y1, x2, y2 = map(int, box)
    inner = ellipse((0.0, 0.0, float(x2 - x1), float(y2 - y1)), (y2 - y1, x2 - x1))
    return iou(inner, mask[y1:y2, x1:x2])
