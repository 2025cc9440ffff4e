"""Detections in COCO's results format, read whole and checked whole."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from pipeline.core.errors import InputError
from pipeline.data.coco import refusal
from pipeline.evaluate.average_precision.truth import Box, Record, Truth
from pipeline.ops import masks

DetectionT = TypeVar("DetectionT")

LVIS_DETECTIONS = 300
"""Detections of an image that LVIS counts, those with the highest scores."""


class Detection(BaseModel):
    """One entry of a results file; what else it says is ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    image_id: int
    category_id: int
    score: float
    bbox: Box | None = None
    segmentation: Any = None


_DETECTIONS = TypeAdapter(list[Detection])


def read_detections(path: Path) -> list[Detection]:
    """Read a results file.

    Raises:
        InputError: It is absent, not JSON, no list of detections, or has a score or box that is no finite number.
    """
    try:
        return _DETECTIONS.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(
            f"{refusal(path, error)} Give a list of image_id, category_id, score and segmentation or bbox."
        ) from None


def read_results(path: Path, truth: Truth) -> list[Record]:
    """Read a results file, and check it against the annotations it is scored by.

    Returns:
        Annotations as scorers take them, numbered from 1. As pycocotools and lvis have it, the area that decides a
        detection's band is its box's where the first detection states a box, and its mask's where it does not.

    Raises:
        InputError: See `read_detections`; or a detection's image or category is not in the annotations, or it lacks or
            has malformed what is scored.
    """
    detections = read_detections(path)
    by_box = truth.iou_type == "bbox" or (bool(detections) and detections[0].bbox is not None)
    records = []
    for number, detection in enumerate(detections):
        try:
            records.append(_record(detection, truth, by_box))
        except InputError as error:
            raise InputError(f"{path}: detection {number} (counted from 0): {error}.") from None
    records = _most_certain(records) if truth.lvis else records
    return [record | {"id": number} for number, record in enumerate(records, start=1)]


def _record(detection: Detection, truth: Truth, by_box: bool) -> Record:
    image = truth.images.get(detection.image_id)
    if image is None:
        raise InputError(f"the annotations have no image {detection.image_id}: score against those it was made for")
    if detection.category_id not in truth.categories:
        raise InputError(f"the annotations have no category {detection.category_id}: map it to one of theirs")
    ids = {"image_id": detection.image_id, "category_id": detection.category_id, "iscrowd": 0}
    record: Record = ids | {"score": detection.score}
    if by_box:
        if detection.bbox is None or min(detection.bbox[2:]) < 0:
            raise InputError(f"its bbox must be x, y, width and height, not {detection.bbox}")
        record |= {"bbox": detection.bbox, "area": detection.bbox[2] * detection.bbox[3]}
    if truth.iou_type == "segm":
        if detection.segmentation is None:
            raise InputError("it has no segmentation: give masks, or score boxes (--iou-type bbox)")
        rle = masks.from_segmentation(detection.segmentation, (image["height"], image["width"]))
        record |= {"segmentation": rle} | ({} if by_box else {"area": float(masks.area(rle))})
    return record


def most_certain(detections: Sequence[DetectionT], score: Callable[[DetectionT], float]) -> list[DetectionT]:
    """Of one image's detections those that LVIS counts, the most certain first; of equal scores the earlier."""
    return sorted(detections, key=lambda detection: -score(detection))[:LVIS_DETECTIONS]


def _most_certain(records: list[Record]) -> list[Record]:
    """Of each image the detections that LVIS counts."""
    of_image: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        of_image[record["image_id"]].append(record)
    return [record for found in of_image.values() for record in most_certain(found, lambda record: record["score"])]
