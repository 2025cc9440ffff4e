"""Masks for many points of one image, filtered while they are small.

Source of the filters: segment-anything, ``automatic_mask_generator.py``; of the two rounds: TinySAM (arXiv 2312.13789,
section 3.3; thresholds from its ``hierarchical_mask_generator.py``).

What differs from segment-anything's code, and changes no result: the predicted IoU is looked at before masks are
upscaled instead of after; masks wait as low-resolution logits, and are run-length encoded when all filters are over. A
mask without a pixel is dropped, which matters only where ``stability_score_thresh`` is 0.

What differs from TinySAM's code: nothing is kept from image to image; x is x and y is y; all points lie in the image;
the confident area is read where the logits are, at low resolution, instead of in a mask of the photograph's size.
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
"""Masks of one point: whole, part and part of a part."""
_NEAR_PX = 20
"""A box that ends within so many pixels of a crop's edge, which is not the image's, belongs to a mask that is cut."""


@dataclass(frozen=True)
class Candidates:
    """N masks of one crop, on the device that decodes."""

    logits: Float[Tensor, "n m m"]
    iou_predictions: Float[Tensor, " n"]
    stability: Float[Tensor, " n"]
    boxes: Int[Tensor, "n 4"]
    """xyxy of pixel centres, in the crop."""
    points: Float[Tensor, "n 2"]
    """The point asked for, (x, y) in the crop."""

    def __getitem__(self, keep: Tensor) -> "Candidates":
        """Those that a mask or indices name."""
        return Candidates(*(getattr(self, field.name)[keep] for field in fields(self)))


def candidates(predictor: Predictor, crop: Crop, image: Crop, mode: str, settings: EverythingSettings) -> Candidates:
    """Masks of a crop, without duplicates, the highest predicted IoU first.

    Args:
        predictor: The crop is its current image.
        crop: The crop.
        image: The whole image.
        mode: ``dense``: every point of the grid. ``hierarchical``: first the points of a coarser grid, then the others
            that no mask of the first round is sure to hold.
        settings: Grid and thresholds.
    """
    from torchvision.ops import nms  # as long to import as torch itself, and needed nowhere else

    per_side = max(1, settings.points_per_side // settings.crop_n_points_downscale_factor**crop.layer)
    grid = point_grid(per_side, crop.size)
    if mode == "dense":
        found = _ask(predictor, grid, settings)
    else:
        coarse = coarse_points(per_side, settings.coarse_stride)
        first, rest = _ask(predictor, grid[coarse], settings), grid[~coarse]
        left = rest[~_confident(predictor, rest, first, settings.confident_logit)]
        found = _join([first, _ask(predictor, left, settings)])
    found = found[~_cut(found.boxes, crop, image)]
    return found[nms(found.boxes.float(), found.iou_predictions, settings.box_nms_thresh)]


def _ask(predictor: Predictor, points: Float[np.ndarray, "n 2"], settings: EverythingSettings) -> Candidates:
    """Masks for points (x, y) of the current image, three for each, less those that the filters of one mask drop."""
    segmenter, size, embedding = predictor.segmenter, predictor.original_size, predictor.get_image_embedding()
    labels = np.ones((len(points), 1))
    prompts = prepare(points[:, None], labels, None, None, size=size, segmenter=segmenter, batched=True)
    upscaling = Upscaling(size, segmenter)
    least_iou = settings.pred_iou_thresh or -math.inf
    found = [_none(4 * segmenter.embedding_size, embedding.device)]
    for start in range(0, len(points), settings.points_per_batch):
        part = slice(start, start + settings.points_per_batch)
        logits, ious = segmenter.decode(embedding, prompts.point_coords[part], prompts.point_labels[part])
        asked = torch.from_numpy(points[part]).to(ious.device).repeat_interleave(MULTIMASKS, dim=0)
        logits, ious = logits[:, -MULTIMASKS:].flatten(0, 1), ious[:, -MULTIMASKS:].flatten()
        good = ious > least_iou  # looked at first: what follows costs many times more
        logits, ious, asked = logits[good], ious[good], asked[good]
        stability, boxes, seen = upscaling.measure(logits, settings.stability_score_offset)
        stable = seen & (stability >= settings.stability_score_thresh)
        found.append(Candidates(logits, ious, stability, boxes, asked)[stable])
    return _join(found)


def _none(grid: int, device: torch.device) -> Candidates:
    shapes = {"logits": (0, grid, grid), "boxes": (0, 4), "points": (0, 2)}
    types = {"boxes": torch.long, "points": torch.float64}
    return Candidates(
        *(torch.empty(shapes.get(f.name, (0,)), dtype=types.get(f.name), device=device) for f in fields(Candidates))
    )


def _join(parts: Sequence[Candidates]) -> Candidates:
    return Candidates(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Candidates)))


def _confident(
    predictor: Predictor, points: Float[np.ndarray, "n 2"], found: Candidates, confident_logit: float
) -> Bool[np.ndarray, " n"]:
    """Which points lie where one of the masks exceeds ``confident_logit``."""
    side, grid = predictor.segmenter.image_size, 4 * predictor.segmenter.embedding_size
    area = (found.logits > confident_logit).any(dim=0).cpu().numpy()
    frame = points_to_frame(points, predictor.original_size, side)
    cells = np.minimum(frame * (grid / side), grid - 1).astype(int)
    return area[cells[:, 1], cells[:, 0]]


def _cut(boxes: Int[Tensor, "n 4"], crop: Crop, image: Crop) -> Bool[Tensor, " n"]:
    """Which boxes end at an edge of the crop that is none of the image's."""
    edges, borders = (boxes.new_tensor([c.x0, c.y0, c.x1, c.y1]) for c in (crop, image))
    places = boxes + boxes.new_tensor([crop.x0, crop.y0, crop.x0, crop.y0])
    near = (places - edges).abs() <= _NEAR_PX
    return (near & ((places - borders).abs() > _NEAR_PX)).any(dim=1)
