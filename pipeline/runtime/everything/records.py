"""Candidates of all crops as records: duplicates between crops dropped, masks upscaled, run-length encoded and tidied.

Source: segment-anything, ``automatic_mask_generator.py`` and ``utils/amg.py``. Nothing differs but the order of work:
only masks that stay are upscaled and encoded.
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
    segmenter: Segmenter, found: Sequence[tuple[Crop, Candidates]], size: Size, crop_nms_thresh: float
) -> list[Record]:
    """Records with compressed RLE.

    Args:
        segmenter: Whose frames the candidates are in.
        found: Each crop with its candidates.
        size: Height and width of the image.
        crop_nms_thresh: Of two masks whose boxes overlap by more IoU the one of the smaller crop stays.
    """
    boxes = torch.cat([c.boxes + c.boxes.new_tensor([crop.x0, crop.y0] * 2) for crop, c in found])
    owners = np.repeat(np.arange(len(found)), [len(candidates.boxes) for _, candidates in found])
    places = np.concatenate([np.arange(len(candidates.boxes)) for _, candidates in found])
    kept = np.arange(len(boxes))
    if len(found) > 1:
        from torchvision.ops import nms  # as in `pipeline.runtime.everything.candidates`

        areas = torch.tensor([crop.size[0] * crop.size[1] for crop, _ in found], dtype=torch.float32)[owners]
        kept = nms(boxes.float(), (1 / areas).to(boxes.device), crop_nms_thresh).cpu().numpy()
    upscaling = [Upscaling(crop.size, segmenter) for crop, _ in found]
    made = []
    for k in kept:
        crop, candidates = found[owners[k]]
        i = int(places[k])
        mask = np.zeros(size, dtype=bool)
        mask[crop.y0 : crop.y1, crop.x0 : crop.x1] = upscaling[owners[k]].masks(candidates.logits[i : i + 1])[0]
        rle = masks.encode(mask)
        x, y = candidates.points[i].tolist()
        made.append({
            "segmentation": rle,
            "area": masks.area(rle),
            "bbox": _xywh(boxes[k].tolist()),
            "predicted_iou": float(candidates.iou_predictions[i]),
            "point_coords": [[x + crop.x0, y + crop.y0]],
            "stability_score": float(candidates.stability[i]),
            "crop_box": _xywh([crop.x0, crop.y0, crop.x1, crop.y1]),
        })  # fmt: skip
    return made


def tidied(found: Sequence[Record], min_area: int, nms_thresh: float) -> list[Record]:
    """Records without holes and islands of less than ``min_area`` pixels, and without duplicates that this makes.

    Of duplicates one that had none stays. A mask of small islands alone keeps its largest.
    """
    from torchvision.ops import nms

    made, same = [], []
    for record in found:
        mask = masks.decode(record["segmentation"])
        outside, holes = _without_islands(~mask, min_area, keep_one=False)
        tidy, islands = _without_islands(~outside, min_area, keep_one=True)
        same.append(not holes and not islands)
        if not same[-1]:
            rle = masks.encode(tidy)
            x0, y0, x1, y1 = (int(v) for v in masks.box(tidy))
            record = record | {"segmentation": rle, "area": masks.area(rle), "bbox": _xywh([x0, y0, x1 - 1, y1 - 1])}
        made.append(record)
    boxes = torch.tensor([record["bbox"] for record in made], dtype=torch.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return [made[int(k)] for k in nms(boxes, torch.tensor(same, dtype=torch.float32), nms_thresh)]


def _without_islands(
    mask: Bool[np.ndarray, "h w"], min_area: int, *, keep_one: bool
) -> tuple[Bool[np.ndarray, "h w"], bool]:
    """A mask's parts, joined also at corners, of at least ``min_area`` pixels; whether it has smaller ones."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    large = areas >= min_area
    small = not large[1:].all()
    large[0] = False  # what is no mask
    if keep_one and count > 1 and not large.any():
        large[1 + int(areas[1:].argmax())] = True
    return large[labels], small


def _xywh(box: Sequence[int]) -> list[int]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]
