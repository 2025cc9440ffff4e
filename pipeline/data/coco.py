"""Reading and full validation of COCO-format json: COCO, LVIS, and exports of annotation programs.

Masks below a minimum area, and crowd regions unless asked for, are omitted and counted. An instance keeps the ``area``
and ``bbox`` that the json states, which differ from its mask's: COCO computed them from polygons.

LVIS v1 has no ``file_name``; its ``coco_url`` ends in ``train2017/<name>`` or
``val2017/<name>``, so its image folder is the one that contains these two.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from pipeline.core.errors import InputError
from pipeline.core.untrusted import json_file
from pipeline.core.untrusted.json_file import Id, Side
from pipeline.core.untrusted.segmentation import is_number
from pipeline.ops import masks

NO_CATEGORY = 1
"""Category id of masks without a category."""
_LONGEST_NAME, _LONGEST_PATH = 255, 2048
"""Bytes of a file's name and of its path in the image folder."""


@dataclass(frozen=True)
class Instance:
    """One mask with its ids in the json."""

    id: int
    category_id: int
    rle: masks.Rle
    iscrowd: bool = False
    area: float | None = None
    """Area in pixels as the source states it; None if it does not."""
    bbox: tuple[float, float, float, float] | None = None
    """Box x, y, width, height in pixels as the source states it; None if it does not."""


@dataclass(frozen=True)
class Photograph:
    """One image of the json with its instances, sorted by id."""

    id: int
    file_name: str
    height: int
    width: int
    instances: list[Instance] = field(default_factory=list)
    exif_transposed: bool | None = None
    """Whether the masks refer to the image with its EXIF orientation applied; None if unstated."""


@dataclass(frozen=True)
class CocoFile:
    """Contents of a json, and the number of omitted annotations."""

    photographs: list[Photograph]
    categories: list[dict[str, Any]]
    crowd: int
    """Number of omitted crowd regions."""
    tiny: int
    """Number of omitted masks below the minimum area."""


class Record(BaseModel):
    """A record of a COCO-format json; unknown keys are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class ImageRecord(Record):
    """An entry of ``images``."""

    id: Id
    height: Side
    width: Side
    file_name: str | None = None
    coco_url: str | None = None
    exif_transposed: bool | None = None


class AnnotationRecord(Record):
    """An entry of ``annotations``."""

    id: Id
    image_id: Id
    iscrowd: Annotated[int, Field(ge=0, le=1)] | bool = 0


class CategoryRecord(Record):
    """An entry of ``categories``."""

    id: Id


class _Annotation(AnnotationRecord):
    segmentation: Any
    category_id: Id = NO_CATEGORY
    area: Any = None
    bbox: Any = None


class _Category(CategoryRecord):
    name: str
    supercategory: str = ""


class _File(Record):
    images: list[ImageRecord]
    annotations: list[_Annotation]
    categories: list[_Category] = []


FileT = TypeVar("FileT", bound=Record)
RecordT = TypeVar("RecordT", bound=ImageRecord | AnnotationRecord | CategoryRecord)


def parse(path: Path, model: type[FileT]) -> FileT:
    """Read and validate a COCO-format json.

    Args:
        path: The json.
        model: Schema of its records.

    Raises:
        InputError: The file is missing, not JSON, or does not match ``model``.
    """
    remedy = "Give annotations in COCO format."
    content: FileT = json_file.validated(json_file.load(path, remedy=remedy), model, str(path), remedy=remedy)
    return content


def by_id(path: Path, what: str, records: Iterable[RecordT]) -> dict[int, RecordT]:
    """Records by id.

    Raises:
        InputError: An id occurs twice.
    """
    records = list(records)
    _refuse_duplicates(path, f"{what} id", (record.id for record in records))
    return {record.id: record for record in records}


def read(path: Path, min_area_px: int, *, crowd: bool = False) -> CocoFile:
    """Read a COCO-format json.

    Args:
        path: The json.
        min_area_px: Masks with fewer pixels are omitted; at least 1.
        crowd: Include crowd regions as instances.

    Returns:
        All images, sorted by id, including those without instances.

    Raises:
        InputError: The file is missing or not such a json; an id or a file name occurs twice; an annotation's image is
            not in the json; a segmentation is malformed. The message names the file and the record.
    """
    content = parse(path, _File)
    by_id(path, "image", content.images)
    by_id(path, "annotation", content.annotations)
    by_id(path, "category", content.categories)
    photographs = {
        image.id: Photograph(
            image.id, file_name(path, image), image.height, image.width, exif_transposed=image.exif_transposed
        )
        for image in sorted(content.images, key=lambda image: image.id)
    }
    _refuse_duplicates(path, "file_name", (photograph.file_name for photograph in photographs.values()))
    regions = tiny = 0
    for annotation in sorted(content.annotations, key=lambda annotation: annotation.id):
        photograph = photographs.get(annotation.image_id)
        if photograph is None:
            raise InputError(
                f"{path}: annotation {annotation.id} belongs to image {annotation.image_id}, which the json does not "
                "list: add the image or remove the annotation."
            )
        if annotation.iscrowd and not crowd:
            regions += 1
            continue
        try:
            rle = masks.from_segmentation(annotation.segmentation, (photograph.height, photograph.width))
        except InputError as error:
            raise InputError(
                f"{path}: annotation {annotation.id} of image {photograph.id}: {error}. Correct or remove it."
            ) from None
        if masks.area(rle) < max(1, min_area_px):
            tiny += 1
        else:
            photograph.instances.append(_instance(annotation, rle))
    return CocoFile(list(photographs.values()), _categories(path, content), regions, tiny)


def _instance(annotation: _Annotation, rle: masks.Rle) -> Instance:
    """An instance with the area and box that the json states; those that make no sense count as not stated."""
    area, box = annotation.area, annotation.bbox
    stated = None
    if isinstance(box, list) and len(box) == 4 and all(map(is_number, box)) and min(box[2:]) >= 0:
        stated = (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
    known = float(area) if is_number(area) and area >= 0 else None
    return Instance(annotation.id, annotation.category_id, rle, bool(annotation.iscrowd), known, stated)


def unnamed(number: int = NO_CATEGORY) -> dict[str, Any]:
    """A category for masks without one."""
    return {"id": number, "name": "object", "supercategory": ""}


def file_name(path: Path, image: ImageRecord) -> str:
    """Relative name of an image, with ``/``.

    Raises:
        InputError: It has none, or one outside the image folder.
    """
    name = image.file_name or "/".join((image.coco_url or "").split("/")[-2:])
    if not name:
        raise InputError(f"{path}: image {image.id} has neither file_name nor coco_url: add its file_name.")
    relative = relative_name(name)
    if relative is None:
        raise InputError(
            f"{path}: image {image.id} has file_name {json_file.shown(name)}: it must lie inside the image folder."
        )
    return relative


def relative_name(name: str) -> str | None:
    """A name in a folder, with ``/``; None if it leads out of the folder or no file can have it."""
    pure = PurePosixPath(name.replace("\\", "/"))
    fits = all(len(part.encode()) <= _LONGEST_NAME for part in pure.parts) and len(name.encode()) <= _LONGEST_PATH
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\0" in name or not fits:
        return None
    return pure.as_posix()


def _categories(path: Path, content: _File) -> list[dict[str, Any]]:
    """The json's categories; if it lists none, an unnamed one for each id in use."""
    used = {annotation.category_id for annotation in content.annotations}
    if not content.categories:
        return [unnamed(number) for number in sorted(used | {NO_CATEGORY})]
    unknown = used - {category.id for category in content.categories}
    if unknown:
        raise InputError(f"{path}: annotations use category {min(unknown)}, which is not among its categories: add it.")
    return [category.model_dump() for category in sorted(content.categories, key=lambda category: category.id)]


def _refuse_duplicates(path: Path, what: str, values: Iterable[object]) -> None:
    value, count = next(iter(Counter(values).most_common(1)), (None, 0))
    if count > 1:
        raise InputError(f"{path}: {what} {value!r} occurs {count} times: each must be unique; remove the repetition.")
