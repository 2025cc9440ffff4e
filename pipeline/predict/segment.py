"""Masks of one image for its prompts, as COCO annotations without ids."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from pycocotools import mask as coco_mask

from pipeline.core.errors import InputError
from pipeline.data.coco import NO_CATEGORY
from pipeline.ops import masks
from pipeline.predict.prompts import Prompt
from pipeline.runtime import EverythingSettings, Predictor, everything

MASK_BYTES = 2**28
"""Memory of the full-size masks of one call."""
PROMPTS_AT_ONCE = 64

Masks = list[dict[str, Any]]
"""Annotations: ``segmentation``, ``bbox``, ``area``, ``category_id``, ``score`` and what their prompts add."""


def check_prompts(prompts: Sequence[Prompt], size: tuple[int, int]) -> None:
    """Check that prompts lie in an image of ``size``.

    Raises:
        InputError: A box does not overlap the image, or a point is outside of it.
    """
    height, width = size
    for prompt in prompts:
        x0, y0, x1, y1 = prompt.box or (0.0, 0.0, float(width), float(height))
        points_outside = [p for p in prompt.points if not (0 <= p[0] <= width and 0 <= p[1] <= height)]
        if x1 < 0 or y1 < 0 or x0 > width or y0 > height or points_outside:
            what = f"point {list(points_outside[0])}" if points_outside else f"box xyxy {[x0, y0, x1, y1]}"
            raise InputError(
                f"{what} of entry {prompt.entry} is outside the image of {width} x {height} pixels (width x height). "
                "Give pixels of the upright image, or of the size that the COCO json states."
            )


def from_prompts(predictor: Predictor, image: UInt8[np.ndarray, "h w 3"], prompts: Sequence[Prompt]) -> Masks:
    """The mask with the highest predicted IoU for each prompt, in the order of ``prompts``; empty masks are left out.

    Args:
        predictor: The model; its images are replaced.
        image: RGB.
        prompts: Boxes or points.
    """
    if not prompts:
        return []
    predictor.set_image(image)
    step = max(1, min(PROMPTS_AT_ONCE, MASK_BYTES // (image.shape[0] * image.shape[1])))
    results: dict[int, dict[str, Any]] = {}
    for indices in _batches(prompts, step):
        best = predictor.predict_best(**_arguments([prompts[i] for i in indices]))
        for i, mask, iou in zip(indices, best.masks, best.iou_predictions, strict=True):
            if mask.any():
                results[i] = _described(prompts[i], mask, float(iou))
    predictor.reset_image()
    return [results[i] for i in sorted(results)]


def from_everything(predictor: Predictor, image: UInt8[np.ndarray, "h w 3"], min_score: float | None) -> Masks:
    """Masks of everything in an image, in hierarchical mode.

    Args:
        predictor: The model.
        image: RGB.
        min_score: Replaces the default of ``pred_iou_thresh``.
    """
    threshold = {} if min_score is None else {"pred_iou_thresh": min_score}
    settings = EverythingSettings(output_mode="coco_rle", **threshold)
    return [
        _annotation(record["segmentation"], NO_CATEGORY, float(record["predicted_iou"]))
        | {"stability_score": float(record["stability_score"]), "point_coords": record["point_coords"]}
        for record in everything(predictor, image, settings=settings)
    ]


def _batches(prompts: Sequence[Prompt], step: int) -> Iterator[list[int]]:
    """Indices of prompts with equally many points: padding points would change the masks."""
    by_count: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_count.setdefault(len(prompt.points), []).append(i)
    for indices in by_count.values():
        for start in range(0, len(indices), step):
            yield indices[start : start + step]


def _arguments(prompts: Sequence[Prompt]) -> dict[str, np.ndarray]:
    """Arguments of `Predictor.predict_best`."""
    if prompts[0].box is not None:
        return {"boxes": np.array([prompt.box for prompt in prompts], dtype=np.float64)}
    return {
        "point_coords": np.array([prompt.points for prompt in prompts], dtype=np.float64),
        "point_labels": np.array([prompt.labels for prompt in prompts]),
    }


def _described(prompt: Prompt, mask: Bool[np.ndarray, "h w"], iou: float) -> dict[str, Any]:
    if not np.isfinite(iou):
        raise InputError(f"the model predicts an IoU of {iou}: its weights are damaged; rebuild it.")
    annotation = _annotation(masks.encode(mask), prompt.category_id, iou) | {"prompt": prompt.entry}
    return annotation if prompt.score is None else annotation | {"detection_score": prompt.score}


def _annotation(rle: masks.Rle, category_id: int, iou: float) -> dict[str, Any]:
    box = coco_mask.toBbox({"size": rle["size"], "counts": rle["counts"].encode("ascii")})
    return {
        "segmentation": {"size": rle["size"], "counts": rle["counts"]},
        "bbox": [float(value) for value in box],
        "area": masks.area(rle),
        "category_id": category_id,
        "score": round(iou, 6),
        "iscrowd": 0,
    }
