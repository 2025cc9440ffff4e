"""Image files as samples, divided into splits by a hash of seed and key, independent of file order."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.core.errors import InputError
from pipeline.data import coco, sa1b
from pipeline.data.coco import NO_CATEGORY, Instance
from pipeline.data.folder import image_files, unique_keys
from pipeline.data.photograph import read_jpeg
from pipeline.ops import masks
from pipeline.prepare.sample import Item, Prepared, prepared
from pipeline.prepare.sources import Coco, Files, Folder, Sa1b


@dataclass(frozen=True)
class Plan:
    """The samples of each split."""

    splits: Mapping[str, list[Item]]
    categories: list[dict[str, Any]] = field(default_factory=lambda: [coco.unnamed()])
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of images, masks and regions excluded from all splits, by reason."""


@dataclass(frozen=True)
class FileItem:
    """An image file and its masks."""

    key: str
    path: Path
    image_id: int
    size: tuple[int, int] | None
    """Height and width of the masks; None without masks."""
    instances: list[Instance]
    jpeg_quality: int
    exif_transposed: bool | None = None

    def prepare(self) -> Prepared:
        """Read and check the image."""
        jpeg, size = read_jpeg(self.path, str(self.path), self.jpeg_quality, self.size, self.exif_transposed)
        return prepared(self.key, jpeg, size, self.image_id, self.instances)


@dataclass(frozen=True)
class Sa1bItem:
    """A sample in one of SA-1B's tars."""

    key: str
    member: sa1b.Member
    min_area_px: int
    jpeg_quality: int

    def prepare(self) -> Prepared:
        """Read and check image and masks. Keeps SA-1B's scores, crop boxes and points; computes absent ones."""
        name = f"{self.member.tar}: {self.member.stem}"
        pixels, text = self.member.read()
        try:
            record = json.loads(text)
            size = (int(record["image"]["height"]), int(record["image"]["width"]))
            stated = [(int(a["id"]), a["segmentation"], a) for a in record["annotations"]]
            image_id = int(record["image"]["image_id"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{name}.json is not in SA-1B's schema ({error!r}): download the tar again.") from None
        try:
            rles = [masks.from_segmentation(segmentation, size) for _, segmentation, _ in stated]
        except InputError as error:
            raise InputError(f"{name}.json: {error}. Download the tar again.") from None
        large = [i for i, rle in enumerate(rles) if masks.area(rle) >= self.min_area_px]
        jpeg, size = read_jpeg(pixels, f"{name}.jpg", self.jpeg_quality, size)
        instances = [Instance(stated[i][0], NO_CATEGORY, rles[i]) for i in large]
        result = prepared(self.key, jpeg, size, image_id, instances, tiny=len(rles) - len(large))
        for i, annotation in zip(large, result.packed.record["annotations"], strict=True):
            names = ("predicted_iou", "stability_score", "crop_box", "point_coords")
            annotation.update({name: stated[i][2][name] for name in names if name in stated[i][2]})
        return result


def plan(source: Coco | Folder | Sa1b, data: Path) -> Plan:
    """List all samples of a source and divide them into splits.

    Raises:
        InputError: Annotations or folders are missing or malformed, or hold too few images for the splits.
    """
    if isinstance(source, Sa1b):
        members = sa1b.members(data)
        keys = unique_keys([f"{member.stem}.jpg" for member in members])
        if len({member.stem for member in members}) != len(members):
            raise InputError(f"{data}: two tars contain a sample of the same name: remove one of them.")
        items = [Sa1bItem(k, m, source.min_area_px, source.jpeg_quality) for k, m in zip(keys, members, strict=True)]
        return Plan(divide(items, source, data))
    if isinstance(source, Folder):
        names = image_files(data / source.images)
        numbered = enumerate(zip(unique_keys(names), names, strict=True), start=1)
        folder = [FileItem(k, data / source.images / n, i, None, [], source.jpeg_quality) for i, (k, n) in numbered]
        return _with_validation(folder, Plan({}), source, data)
    photographs, description = _read_coco(source, data, source.annotations, source.images)
    return _with_validation(photographs, description, source, data)


def _read_coco(source: Coco | Folder, data: Path, annotations: str, folder: str) -> tuple[list[FileItem], Plan]:
    """Read a COCO json.

    Returns:
        The images that have masks, and a plan with categories and counts but no splits.
    """
    content = coco.read(data / annotations, source.min_area_px)
    images = data / folder
    if not images.is_dir():
        raise InputError(f"{images} is not a folder: correct the path in params.yaml or put the images there.")
    keys = unique_keys([photograph.file_name for photograph in content.photographs])
    items = [
        FileItem(
            key, images / p.file_name, p.id, (p.height, p.width), p.instances, source.jpeg_quality, p.exif_transposed
        )
        for key, p in zip(keys, content.photographs, strict=True)
        if p.instances
    ]
    empty = len(content.photographs) - len(items)
    left_out = {"crowd_regions": content.crowd, "tiny_masks": content.tiny, "images_without_objects": empty}
    return items, Plan({}, content.categories, left_out)


def _with_validation(items: list[FileItem], description: Plan, source: Coco | Folder, data: Path) -> Plan:
    """Divide ``items``; the validation split comes from a second json if the source names one."""
    if (source.validation_annotations is None) != (source.validation_folder is None):
        raise InputError("prepare.source: give both validation_annotations and validation_folder, or null for both.")
    if source.validation_annotations is None or source.validation_folder is None:
        return Plan(divide(items, source, data), description.categories, description.left_out)
    validation, validation_description = _read_coco(
        source, data, source.validation_annotations, source.validation_folder
    )
    if not validation:
        raise InputError(f"{data / source.validation_annotations} has no image with masks: name another json.")
    if isinstance(source, Coco) and validation_description.categories != description.categories:
        raise InputError(
            f"{data / source.validation_annotations} and {data / source.annotations} have different "
            "categories: export both with the same category list."
        )
    held_out = {item.path.name for item in validation}
    rest = [item for item in items if item.path.name not in held_out]
    splits = divide(rest, source, data, separate_validation=True)
    splits["validation"] = _shuffled(validation, source.seed)[: source.validation_images]
    left_out = {
        name: description.left_out.get(name, 0) + count for name, count in validation_description.left_out.items()
    }
    left_out["images_kept_for_validation"] = len(items) - len(rest)
    return Plan(splits, validation_description.categories, left_out)


def divide(
    items: Sequence[Item], source: Files, data: Path, *, separate_validation: bool = False
) -> dict[str, list[Item]]:
    """Divide samples into disjoint splits by a hash of seed and key.

    Each split is sorted by that hash, so that shards are shuffled.

    Args:
        items: All samples.
        source: Seed and sizes of the splits.
        data: The source's path, for errors.
        separate_validation: Leave the validation split empty, because another json provides it.

    Raises:
        InputError: No sample is left for training.
    """
    validation = 0 if separate_validation else source.validation_images
    held_out = validation + source.calibration_images
    if len(items) <= held_out:
        raise InputError(
            f"{data} has {len(items)} usable images; {validation} for validation and {source.calibration_images} for "
            "calibration leave none to train on: add images or lower prepare.source.validation_images and "
            "calibration_images."
        )
    order = _shuffled(items, source.seed)
    return {"train": order[held_out:], "calibration": order[validation:held_out], "validation": order[:validation]}


def _shuffled(items: Sequence[Item], seed: int) -> list[Item]:
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed}:{item.key}".encode()).digest())
