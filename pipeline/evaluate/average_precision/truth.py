"""Read and validate the annotations that detections are scored against."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pycocotools import mask as coco_mask
from pydantic import AfterValidator, Field

from pipeline.core.errors import InputError
from pipeline.core.untrusted.json_file import FARTHEST, Coordinate, Id
from pipeline.data import coco
from pipeline.ops import masks

IouType = Literal["segm", "bbox"]
Record = dict[str, Any]
FREQUENCIES = ("r", "c", "f")
"""LVIS's groups of categories: rare, common and frequent in the training set."""


@dataclass(frozen=True)
class Truth:
    """Images, categories and annotations; annotations have compressed RLE, or only a box if boxes are scored."""

    images: Mapping[int, Record]
    """By id: ``id``, ``height``, ``width``, ``file_name`` and ``coco_url`` or None; for LVIS also the categories that
    are absent or not exhaustively annotated."""
    categories: Mapping[int, Record]
    """By id: ``id``; for LVIS also ``frequency``."""
    annotations: list[Record]
    """Numbered from 1, since pycocotools treats id 0 as unmatched."""
    iou_type: IouType
    lvis: bool


def _with_extent(box: list[float]) -> list[float]:
    if min(box[2:]) < 0:
        raise ValueError("bbox must be x, y, width and height, at least 0")
    return box


Box = Annotated[list[Coordinate], Field(min_length=4, max_length=4), AfterValidator(_with_extent)]
"""x, y, width, height in pixels."""


class _Image(coco.ImageRecord):
    neg_category_ids: list[Id] = Field(default_factory=list)
    not_exhaustive_category_ids: list[Id] = Field(default_factory=list)


class _Annotation(coco.AnnotationRecord):
    category_id: Id
    area: Annotated[float, Field(ge=0, le=FARTHEST**2)] | None = None
    bbox: Box | None = None
    segmentation: Any = None


class _Category(coco.CategoryRecord):
    frequency: str | None = None


class _File(coco.Record):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read_truth(path: Path, *, iou_type: IouType, lvis: bool) -> Truth:
    """Read annotations in COCO's format, or in LVIS's, v0.5 or v1.

    Args:
        path: Path of the JSON file.
        iou_type: Whether masks or boxes are matched; annotations must have them.
        lvis: Read LVIS's additional keys.

    Raises:
        InputError: The file is missing or malformed, an id occurs twice, an annotation's image or category is not
            listed, or a segmentation is malformed.
    """
    content = coco.parse(path, _File)
    images = coco.by_id(path, "image", content.images)
    categories = coco.by_id(path, "category", content.categories)
    coco.by_id(path, "annotation", content.annotations)
    if not categories:
        raise InputError(f"{path} lists no categories: average precision is a mean over them; add them.")
    if lvis:
        _check_lvis(path, content.categories)
    annotations = []
    for number, annotation in enumerate(content.annotations, start=1):
        image = images.get(annotation.image_id)
        if image is None or annotation.category_id not in categories:
            missing = f"image {annotation.image_id}" if image is None else f"category {annotation.category_id}"
            raise InputError(
                f"{path}: annotation {annotation.id} is of {missing}, which the json does not list: add it."
            )
        try:
            shape = _shape(annotation, image, iou_type)
        except InputError as error:
            raise InputError(f"{path}: annotation {annotation.id}: {error}. Correct or remove it.") from None
        crowd = 0 if lvis else int(annotation.iscrowd)  # LVIS has no crowd regions
        ids = {"id": number, "image_id": annotation.image_id, "category_id": annotation.category_id}
        annotations.append(ids | {"iscrowd": crowd} | shape)
    return Truth(
        images={number: image.model_dump() for number, image in images.items()},
        categories={number: category.model_dump() for number, category in categories.items()},
        annotations=annotations,
        iou_type=iou_type,
        lvis=lvis,
    )


def _shape(annotation: _Annotation, image: _Image, iou_type: IouType) -> Record:
    """The matched box or mask, and its area: the annotated one if present, else computed."""
    rle = None
    if iou_type == "segm" or annotation.bbox is None:
        if annotation.segmentation is None:
            raise InputError("it has no segmentation" + (" and no bbox" if iou_type == "bbox" else ""))
        rle = masks.from_segmentation(annotation.segmentation, (image.height, image.width))
    box = annotation.bbox or _box_of(rle)
    area = annotation.area
    if area is None:
        area = float(masks.area(rle)) if rle is not None else box[2] * box[3]
    return {"bbox": box, "area": area} | ({"segmentation": rle} if iou_type == "segm" else {})


def _box_of(rle: masks.Rle | None) -> list[float]:
    if rle is None:
        raise ValueError("a shape must be a box or a mask")
    return [float(v) for v in coco_mask.toBbox(rle | {"counts": rle["counts"].encode("ascii")})]


def _check_lvis(path: Path, categories: Iterable[_Category]) -> None:
    for category in categories:
        if category.frequency not in FREQUENCIES:
            raise InputError(
                f"{path}: category {category.id} has frequency {category.frequency!r}, but LVIS requires r, c or f: "
                "provide LVIS annotations, or score by COCO's rules (without --lvis)."
            )
