"""Read and validate detections in COCO's results format."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter

from pipeline.core.errors import InputError
from pipeline.core.untrusted import json_file
from pipeline.core.untrusted.json_file import Id
from pipeline.evaluate.average_precision.truth import Box, Record, Truth
from pipeline.ops import masks

DetectionT = TypeVar("DetectionT")

LVIS_DETECTIONS = 300
"""Number of highest-scoring detections per image that LVIS scores."""


class Detection(BaseModel):
    """One entry of a results file; other keys are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    image_id: Id
    category_id: Id
    score: float
    bbox: Box | None = None
    segmentation: Any = None


_DETECTIONS = TypeAdapter(list[Detection])


def read_detections(path: Path) -> list[Detection]:
    """Read a results file.

    Raises:
        InputError: The file is missing, not JSON, not a list of detections, or a score or box is not finite.
    """
    remedy = "Provide a list of image_id, category_id, score and segmentation or bbox."
    content: list[Detection] = json_file.validated(
        json_file.load(path, remedy=remedy), _DETECTIONS, str(path), remedy=remedy
    )
    return content


def read_results(path: Path, truth: Truth) -> list[Record]:
    """Read a results file and check it against its annotations.

    Returns:
        Annotations in the scorers' format, numbered from 1. As in pycocotools and lvis, a detection's size band is
        determined by its box's area if the first detection has a box, else by its mask's area.

    Raises:
        InputError: See `read_detections`; or a detection's image or category is not in the annotations, or its mask or
            box is missing or malformed.
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
        raise InputError(f"the annotations have no image {detection.image_id}: use the annotations it was made for")
    if detection.category_id not in truth.categories:
        raise InputError(f"the annotations have no category {detection.category_id}: map it to one of their categories")
    ids = {"image_id": detection.image_id, "category_id": detection.category_id, "iscrowd": 0}
    record: Record = ids | {"score": detection.score}
    if by_box:
        if detection.bbox is None:
            raise InputError("its bbox must be x, y, width and height, not None")
        record |= {"bbox": detection.bbox, "area": detection.bbox[2] * detection.bbox[3]}
    if truth.iou_type == "segm":
        if detection.segmentation is None:
            raise InputError("it has no segmentation: provide masks, or score boxes (--iou-type bbox)")
        rle = masks.from_segmentation(detection.segmentation, (image["height"], image["width"]))
        record |= {"segmentation": rle} | ({} if by_box else {"area": float(masks.area(rle))})
    return record


def most_certain(detections: Sequence[DetectionT], score: Callable[[DetectionT], float]) -> list[DetectionT]:
    """The detections of one image that LVIS scores, by descending score; ties keep their order."""
    return sorted(detections, key=lambda detection: -score(detection))[:LVIS_DETECTIONS]


def _most_certain(records: list[Record]) -> list[Record]:
    """The detections per image that LVIS scores."""
    by_image: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        by_image[record["image_id"]].append(record)
    return [record for group in by_image.values() for record in most_certain(group, lambda record: record["score"])]
