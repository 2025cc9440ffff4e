"""What masks score that no model made: the filled box and the ellipse in it, and for a click a disc around it.

A model below these is broken, whatever share of its teacher it keeps. The disc's radius, a share of the image's longer
side, is the one that scores best on the very instances it is measured on: no fixed disc can do better.
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
"""Tried for the disc, as shares of the image's longer side."""
_BOX, _CLICK = ("filled_box", "ellipse"), "disc"


def trivial_masks(validation: Sequence[Photograph], pool: Executor) -> dict[str, dict[str, float]]:
    """What the trivial predictors score on the validation split.

    Args:
        validation: Photographs with their instances.
        pool: Threads that share the instances.

    Returns:
        By predictor (``filled_box``, ``ellipse``, ``disc``) the mean IoU over all instances and by COCO's size bands,
        named as a model's (``box_miou``, ``click_miou_small`` ...); for the disc also its ``radius``.
    """
    rles = [instance.rle for photograph in validation for instance in photograph.instances]
    areas = [masks.area(rle) for rle in rles]
    found = list(pool.map(_score, rles))
    scores = {name: dict(band_means("box_miou", [ious[name] for ious, _ in found], areas)) for name in _BOX}
    by_radius = np.stack([discs for _, discs in found])
    best = int(by_radius.mean(0).argmax())
    scores[_CLICK] = {"radius": float(RADII[best])} | band_means("click_miou", by_radius[:, best].tolist(), areas)
    return scores


def ellipse(box: tuple[float, float, float, float], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels of an image of ``size`` (H, W) whose centres lie in the ellipse that fills a box xyxy."""
    x1, y1, x2, y2 = box
    across = (np.arange(size[1]) + 0.5 - (x1 + x2) / 2) / ((x2 - x1) / 2)
    down = (np.arange(size[0]) + 0.5 - (y1 + y2) / 2) / ((y2 - y1) / 2)
    return across[None] ** 2 + down[:, None] ** 2 <= 1


def disc_ious(
    mask: Bool[np.ndarray, "h w"], center: tuple[int, int], radii_px: Float[np.ndarray, " r"]
) -> Float[np.ndarray, " r"]:
    """IoU of a mask with discs around one pixel, for rising radii; a disc ends where the image does.

    Args:
        mask: Of the image's size.
        center: (x, y).
        radii_px: Rising; a pixel belongs to a disc if its centre is no farther away than the radius.
    """
    x, y = center
    radii = np.asarray(radii_px, dtype=np.float64)
    down = np.arange(mask.shape[0])[:, None] - y
    half = np.sqrt(np.maximum(radii**2 - down**2, 0))  # of each row's chord, (h, r)
    chord = np.minimum(mask.shape[1] - 1 - x, np.floor(half)) + np.minimum(x, np.floor(half)) + 1
    disc = np.where(np.abs(down) <= radii, chord, 0).sum(0)
    rows, columns = np.nonzero(mask)
    smallest = np.searchsorted(radii, np.sqrt((columns - x) ** 2 + (rows - y) ** 2))  # of the discs that hold a pixel
    shared = np.bincount(smallest, minlength=len(radii) + 1)[:-1].cumsum()
    return np.asarray(shared / (disc + len(rows) - shared))


def _score(rle: masks.Rle) -> tuple[dict[str, float], Float[np.ndarray, " r"]]:
    """IoUs of one instance: by predictor for its box, by radius for a click."""
    mask = np.ascontiguousarray(masks.decode(rle))
    x1, y1, x2, y2 = box = masks.box(mask)
    boxes = {
        "filled_box": float(np.count_nonzero(mask) / ((x2 - x1) * (y2 - y1))),
        "ellipse": _ellipse_iou(mask, box),
    }
    click = next_click(mask, np.zeros_like(mask), ())
    return boxes, disc_ious(mask, (click.x, click.y), RADII * max(mask.shape))


def _ellipse_iou(mask: Bool[np.ndarray, "h w"], box: tuple[float, float, float, float]) -> float:
    """IoU of a mask with the ellipse in its own tight box, outside which neither has a pixel."""
    x1, y1, x2, y2 = map(int, box)
    inner = ellipse((0.0, 0.0, float(x2 - x1), float(y2 - y1)), (y2 - y1, x2 - x1))
    return iou(inner, mask[y1:y2, x1:x2])
