"""Masks for many points of one image, filtered at low resolution.

Source of the filters: segment-anything, ``automatic_mask_generator.py``; of the two rounds: TinySAM (arXiv 2312.13789,
section 3.3; thresholds from its ``hierarchical_mask_generator.py``).

Differences from segment-anything's code that do not change results: the predicted IoU is filtered before upscaling
instead of after; masks stay low-resolution logits, and are run-length encoded after all filters. Empty masks are
dropped, which matters only if ``stability_score_thresh`` is 0.

Differences from TinySAM's code: no state is kept between images; x and y are not swapped; all points lie in the image;
the confident area is read from the low-resolution logits instead of from a full-size mask.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.ops.geometry import points_to_frame
from pipeline.runtime.everything.grid import Crop, coarse_points, point_grid
from pipeline.runtime.everything.settings import EverythingSettings
from pipeline.runtime.everything.upscaling import Upscaling
from pipeline.runtime.predictor import Predictor
from pipeline.runtime.prompts import prepare

MULTIMASKS = 3
"""Masks per point: whole, part and subpart."""
_NEAR_PX = 20
"""A box ending within so many pixels of a crop's edge that is not an image edge marks a mask that is cut off."""


@dataclass(frozen=True)
class Candidates:
    """N masks of one crop, on the decoder's device."""

    logits: Float[Tensor, "n m m"]
    iou_predictions: Float[Tensor, " n"]
    stability: Float[Tensor, " n"]
    boxes: Int[Tensor, "n 4"]
    """xyxy of pixel centres, in the crop."""
    points: Float[Tensor, "n 2"]
    """The point prompt, (x, y) in the crop."""

    def __getitem__(self, index: Tensor) -> "Candidates":
        """Select by a boolean mask or indices."""
        return Candidates(*(getattr(self, field.name)[index] for field in fields(self)))


def candidates(predictor: Predictor, crop: Crop, image: Crop, mode: str, settings: EverythingSettings) -> Candidates:
    """Masks of a crop, without duplicates, by descending predicted IoU.

    Args:
        predictor: Predictor whose current image is the crop.
        crop: The crop.
        image: The whole image.
        mode: ``dense``: every grid point. ``hierarchical``: first a coarser grid, then the points that no mask of the
            first round covers confidently.
        settings: Grid and thresholds.
    """
    from torchvision.ops import nms  # imported here because it takes as long to import as torch

    per_side = max(1, settings.points_per_side // settings.crop_n_points_downscale_factor**crop.layer)
    grid = point_grid(per_side, crop.size)
    if mode == "dense":
        results = _predict_points(predictor, grid, settings)
    else:
        coarse = coarse_points(per_side, settings.coarse_stride)
        first, rest = _predict_points(predictor, grid[coarse], settings), grid[~coarse]
        uncovered = rest[~_confident(predictor, rest, first, settings.confident_logit)]
        results = _join([first, _predict_points(predictor, uncovered, settings)])
    results = results[~_cut(results.boxes, crop, image)]
    return results[nms(results.boxes.float(), results.iou_predictions, settings.box_nms_thresh)]


def _predict_points(predictor: Predictor, points: Float[np.ndarray, "n 2"], settings: EverythingSettings) -> Candidates:
    """Masks for points (x, y) of the current image, three per point, after the per-mask filters."""
    segmenter, size, embedding = predictor.segmenter, predictor.original_size, predictor.get_image_embedding()
    labels = np.ones((len(points), 1))
    prompts = prepare(points[:, None], labels, None, None, size=size, segmenter=segmenter, batched=True)
    upscaling = Upscaling(size, segmenter)
    min_iou = settings.pred_iou_thresh or -math.inf
    results = [_none(4 * segmenter.embedding_size, embedding.device)]
    step = settings.points_at_once(embedding.device.type)
    for start in range(0, len(points), step):
        part = slice(start, start + step)
        logits, ious = segmenter.decode(embedding, prompts.point_coords[part], prompts.point_labels[part])
        prompted = torch.from_numpy(points[part]).to(ious.device).repeat_interleave(MULTIMASKS, dim=0)
        logits, ious = logits[:, -MULTIMASKS:].flatten(0, 1), ious[:, -MULTIMASKS:].flatten()
        good = ious > min_iou  # first, because the other filters cost many times more
        logits, ious, prompted = logits[good], ious[good], prompted[good]
        stability, boxes, nonempty = upscaling.measure(logits, settings.stability_score_offset)
        stable = nonempty & (stability >= settings.stability_score_thresh)
        results.append(Candidates(logits, ious, stability, boxes, prompted)[stable])
    return _join(results)


def _none(grid: int, device: torch.device) -> Candidates:
    shapes = {"logits": (0, grid, grid), "boxes": (0, 4), "points": (0, 2)}
    types = {"boxes": torch.long, "points": torch.float64}
    return Candidates(
        *(torch.empty(shapes.get(f.name, (0,)), dtype=types.get(f.name), device=device) for f in fields(Candidates))
    )


def _join(parts: Sequence[Candidates]) -> Candidates:
    return Candidates(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Candidates)))


def _confident(
    predictor: Predictor, points: Float[np.ndarray, "n 2"], masks: Candidates, confident_logit: float
) -> Bool[np.ndarray, " n"]:
    """Points (as a boolean mask) at which any mask exceeds ``confident_logit``."""
    side, grid = predictor.segmenter.image_size, 4 * predictor.segmenter.embedding_size
    area = (masks.logits > confident_logit).any(dim=0).cpu().numpy()
    frame = points_to_frame(points, predictor.original_size, side)
    cells = np.minimum(frame * (grid / side), grid - 1).astype(int)
    return area[cells[:, 1], cells[:, 0]]


def _cut(boxes: Int[Tensor, "n 4"], crop: Crop, image: Crop) -> Bool[Tensor, " n"]:
    """Boxes (as a boolean mask) that end at an edge of the crop that is not an edge of the image."""
    edges, borders = (boxes.new_tensor([c.x0, c.y0, c.x1, c.y1]) for c in (crop, image))
    in_image = boxes + boxes.new_tensor([crop.x0, crop.y0, crop.x0, crop.y0])
    near = (in_image - edges).abs() <= _NEAR_PX
    return (near & ((in_image - borders).abs() > _NEAR_PX)).any(dim=1)
