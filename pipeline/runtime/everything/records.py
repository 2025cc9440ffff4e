"""Records from the candidates of all crops: drop duplicates between crops, upscale, encode, remove small regions.

Source: segment-anything, ``automatic_mask_generator.py`` and ``utils/amg.py``. Only the order of operations differs:
only the final masks are upscaled and encoded.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool

from pipeline.ops import masks
from pipeline.ops.geometry import Size
from pipeline.runtime.everything.candidates import Candidates
from pipeline.runtime.everything.grid import Crop
from pipeline.runtime.everything.upscaling import Upscaling
from pipeline.runtime.segmenter import Segmenter

Record = dict[str, Any]


def records(
    segmenter: Segmenter, per_crop: Sequence[tuple[Crop, Candidates]], size: Size, crop_nms_thresh: float
) -> list[Record]:
    """Records with compressed RLE.

    Args:
        segmenter: Model whose frames the candidates are in.
        per_crop: Each crop with its candidates.
        size: Height and width of the image.
        crop_nms_thresh: Box IoU above which of two masks only the one from the smaller crop remains.
    """
    boxes = torch.cat([c.boxes + c.boxes.new_tensor([crop.x0, crop.y0] * 2) for crop, c in per_crop])
    crop_indices = np.repeat(np.arange(len(per_crop)), [len(candidates.boxes) for _, candidates in per_crop])
    candidate_indices = np.concatenate([np.arange(len(candidates.boxes)) for _, candidates in per_crop])
    remaining = np.arange(len(boxes))
    if len(per_crop) > 1:
        from torchvision.ops import nms  # as in `pipeline.runtime.everything.candidates`

        areas = torch.tensor([crop.size[0] * crop.size[1] for crop, _ in per_crop], dtype=torch.float32)[crop_indices]
        remaining = nms(boxes.float(), (1 / areas).to(boxes.device), crop_nms_thresh).cpu().numpy()
    upscaling = [Upscaling(crop.size, segmenter) for crop, _ in per_crop]
    result = []
    for k in remaining:
        crop, candidates = per_crop[crop_indices[k]]
        i = int(candidate_indices[k])
        mask = np.zeros(size, dtype=bool)
        mask[crop.y0 : crop.y1, crop.x0 : crop.x1] = upscaling[crop_indices[k]].masks(candidates.logits[i : i + 1])[0]
        rle = masks.encode(mask)
        x, y = candidates.points[i].tolist()
        result.append({
            "segmentation": rle,
            "area": masks.area(rle),
            "bbox": _xywh(boxes[k].tolist()),
            "predicted_iou": float(candidates.iou_predictions[i]),
            "point_coords": [[x + crop.x0, y + crop.y0]],
            "stability_score": float(candidates.stability[i]),
            "crop_box": _xywh([crop.x0, crop.y0, crop.x1, crop.y1]),
        })  # fmt: skip
    return result


def remove_small_regions(all_records: Sequence[Record], min_area: int, nms_thresh: float) -> list[Record]:
    """Remove holes and islands of less than ``min_area`` pixels, then the duplicates this creates.

    Among duplicates, an unchanged mask is preferred. A mask with only small islands keeps its largest.
    """
    from torchvision.ops import nms

    result, unchanged = [], []
    for record in all_records:
        mask = masks.decode(record["segmentation"])
        outside, holes = _without_islands(~mask, min_area, keep_one=False)
        cleaned, islands = _without_islands(~outside, min_area, keep_one=True)
        unchanged.append(not holes and not islands)
        if not unchanged[-1]:
            rle = masks.encode(cleaned)
            x0, y0, x1, y1 = (int(v) for v in masks.box(cleaned))
            record = record | {"segmentation": rle, "area": masks.area(rle), "bbox": _xywh([x0, y0, x1 - 1, y1 - 1])}
        result.append(record)
    boxes = torch.tensor([record["bbox"] for record in result], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return [result[int(k)] for k in nms(boxes, torch.tensor(unchanged, dtype=torch.float32), nms_thresh)]


def _without_islands(
    mask: Bool[np.ndarray, "h w"], min_area: int, *, keep_one: bool
) -> tuple[Bool[np.ndarray, "h w"], bool]:
    """Keep 8-connected components of at least ``min_area`` pixels; also return whether there were smaller ones."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    large = areas >= min_area
    small = not large[1:].all()
    large[0] = False  # background
    if keep_one and count > 1 and not large.any():
        large[1 + int(areas[1:].argmax())] = True
    return large[labels], small


def _xywh(box: Sequence[int]) -> list[int]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]
