"""Image files as samples, divided into splits by a hash of seed and key, independent of file order."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pipeline.core.artifact import file_sha256
from pipeline.core.errors import InputError
from pipeline.core.progress import notice
from pipeline.core.untrusted.image_file import leading_out
from pipeline.data import coco, sa1b
from pipeline.data.coco import NO_CATEGORY, Instance
from pipeline.data.folder import image_files, unique_keys
from pipeline.data.photograph import read_jpeg
from pipeline.ops import masks
from pipeline.ops.geometry import Size
from pipeline.prepare.sample import Item, Prepared, prepared
from pipeline.prepare.sources import Coco, Files, Folder, Sa1b, ValidationSet

ItemT = TypeVar("ItemT", bound=Item)


@dataclass(frozen=True)
class Validation:
    """A set to evaluate on."""

    items: Sequence[Item]
    categories: list[dict[str, Any]] = field(default_factory=lambda: [coco.unnamed()])
    listed: int | None = None
    """Number of images in its json, with and without instances; None for a split of the source's own images."""
    source_digest: str | None = None
    """SHA-256 of its json, if the whole of it is evaluated."""


@dataclass(frozen=True)
class Plan:
    """The samples of each split."""

    splits: Mapping[str, Sequence[Item]]
    """``train`` and ``calibration``."""
    validation: Mapping[str, Validation]
    """Sets to evaluate on, by name, the first one first; ``validation`` is the split of the source's own images."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of images excluded from all splits, by reason."""


@dataclass(frozen=True)
class FileItem:
    """An image file and its masks."""

    key: str
    path: Path
    image_id: int
    size: tuple[int, int] | None
    """Height and width of the masks; None without masks."""
    instances: Sequence[Instance]
    jpeg_quality: int
    min_area_px: int
    exif_transposed: bool | None = None
    keep_all: bool = False
    """Keep crowd regions and masks of any size, which a validation set's protocol decides about."""

    def prepare(self) -> Prepared:
        """Read and check the image."""
        jpeg, size = read_jpeg(self.path, str(self.path), self.jpeg_quality, self.size, self.exif_transposed)
        single = [i for i in self.instances if self.keep_all or not i.iscrowd]
        instances = [i for i in single if self.keep_all or masks.area(i.rle) >= self.min_area_px]
        tiny, crowd = len(single) - len(instances), len(self.instances) - len(single)
        return prepared(self.key, jpeg, size, self.image_id, instances, tiny, crowd)


@dataclass(frozen=True)
class Sa1bItem:
    """A sample in one of SA-1B's tars."""

    key: str
    member: sa1b.Member
    min_area_px: int
    jpeg_quality: int
    keep_all: bool = False

    def prepare(self) -> Prepared:
        """Read and check image and masks. Keeps SA-1B's scores, crop boxes and points; computes absent ones."""
        name = f"{self.member.tar}: {self.member.stem}"
        pixels, text = self.member.read()
        content = sa1b.annotations_of(text, f"{name}.json")
        size, stated = (content.image.height, content.image.width), content.annotations
        try:
            rles = [masks.from_segmentation(annotation.segmentation, size) for annotation in stated]
        except InputError as error:
            raise InputError(f"{name}.json: {error}. Download the tar again.") from None
        least = 1 if self.keep_all else self.min_area_px
        large = [i for i, rle in enumerate(rles) if masks.area(rle) >= least]
        jpeg, size = read_jpeg(pixels, f"{name}.jpg", self.jpeg_quality, size)
        instances = [Instance(stated[i].id, NO_CATEGORY, rles[i]) for i in large]
        result = prepared(self.key, jpeg, size, content.image.image_id, instances, tiny=len(rles) - len(large))
        for i, annotation in zip(large, result.packed.record["annotations"], strict=True):
            annotation.update(stated[i].model_dump(exclude={"id", "segmentation"}, exclude_unset=True))
        return result


def plan(source: Coco | Folder | Sa1b, data: Path) -> Plan:
    """List all samples of a source and divide them into splits.

    Raises:
        InputError: Annotations or folders are missing or malformed, or hold too few images for the splits.
    """
    items: Sequence[FileItem | Sa1bItem]
    categories, left_out = [coco.unnamed()], dict[str, int]()
    if isinstance(source, Folder):
        items = _folder(source, data)
    elif isinstance(source, Sa1b):
        items = _sa1b(source, data)
    else:
        everything, categories, _ = _read_coco(source, data, source.annotations, source.images)
        items = [item for item in everything if _usable(item)]
        left_out = _without_objects([item for item in everything if not _usable(item)])
    if not source.validation:
        splits = divide(items, source, data)
        own = [replace(item, keep_all=True) for item in splits.pop("validation")]
        return Plan(splits, {"validation": Validation(own, categories)}, left_out)
    first = source.leaderboard or min(source.validation)
    names = sorted(source.validation, key=lambda name: (name != first, name))
    validation = {name: _validation_set(source, data, name, source.validation[name]) for name in names}
    rest = _without(items, validation.values())
    left_out["images_kept_for_validation"] = len(items) - len(rest)
    if len(rest) < len(items):
        notice(f"{len(items) - len(rest)} images of the source are in a validation set: left out of the other splits.")
    splits = divide(rest, source, data, separate_validation=True)
    return Plan({name: splits[name] for name in ("train", "calibration")}, validation, left_out)


def _without(items: Sequence[ItemT], sets: Iterable[Validation]) -> list[ItemT]:
    """The items that are in no validation set: other file name, or same name and other size."""
    held_out: dict[str, set[Size | None]] = {}
    for item in (item for part in sets for item in part.items):
        if isinstance(item, FileItem):
            held_out.setdefault(item.path.name, {None}).add(item.size)
    return [i for i in items if not isinstance(i, FileItem) or i.size not in held_out.get(i.path.name, ())]


def _folder(source: Folder, data: Path) -> list[FileItem]:
    names, least = image_files(data / source.images), source.min_area_px
    _say_links(data / source.images, names)
    numbered = enumerate(zip(unique_keys(names), names, strict=True), start=1)
    folder, quality = data / source.images, source.jpeg_quality
    return [FileItem(key, folder / name, i, None, [], quality, least) for i, (key, name) in numbered]


def _sa1b(source: Sa1b, data: Path) -> list[Sa1bItem]:
    members = sa1b.members(data)
    keys = unique_keys([f"{member.stem}.jpg" for member in members])
    if len({member.stem for member in members}) != len(members):
        raise InputError(f"{data}: two tars contain a sample of the same name: remove one of them.")
    return [Sa1bItem(k, m, source.min_area_px, source.jpeg_quality) for k, m in zip(keys, members, strict=True)]


def _usable(item: FileItem) -> bool:
    """Whether an image has a mask to train on."""
    return any(not i.iscrowd and masks.area(i.rle) >= item.min_area_px for i in item.instances)


def _without_objects(items: Sequence[FileItem]) -> dict[str, int]:
    """Counts of images that have nothing to train on, and of the crowd regions and tiny masks in them."""
    crowd = sum(instance.iscrowd for item in items for instance in item.instances)
    tiny = sum(len(item.instances) for item in items) - crowd
    return {"images_without_objects": len(items), "crowd_regions": crowd, "tiny_masks": tiny}


def _validation_set(source: Files, data: Path, name: str, chosen: ValidationSet) -> Validation:
    """The images of a set that have instances, crowd regions and masks of any size included.

    Raises:
        InputError: Its json or folder is missing or malformed, or has no instance.
    """
    everything, categories, listed = _read_coco(source, data, chosen.annotations, chosen.images)
    items = [replace(item, keep_all=True) for item in everything if item.instances]
    if not items:
        raise InputError(
            f"{data / chosen.annotations} (prepare.source.validation.{name}) has no image with masks: "
            "name another json."
        )
    items = sorted(_shuffled(items, source.seed)[: chosen.max_images], key=lambda item: item.image_id)
    if chosen.max_images is not None:
        return Validation(items, categories, len(items))
    return Validation(items, categories, listed, file_sha256(data / chosen.annotations))


def _read_coco(
    source: Files, data: Path, annotations: str, folder: str
) -> tuple[list[FileItem], list[dict[str, Any]], int]:
    """Read a COCO json with crowd regions and masks of any size.

    Returns:
        All its images, its categories, and its number of images.
    """
    for path in (data / annotations, data / folder):
        if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(data)):
            raise InputError(f"{path} is not in prepare.data ({data}), so DVC does not track it: put or link it there.")
    content = coco.read(data / annotations, 1, crowd=True)
    images = data / folder
    if not images.is_dir():
        raise InputError(f"{images} is not a folder: correct the path in params.yaml or put the images there.")
    names = [photograph.file_name for photograph in content.photographs]
    _say_links(images, names)
    keys = unique_keys(names)
    items = [
        FileItem(
            key,
            images / p.file_name,
            p.id,
            (p.height, p.width),
            p.instances,
            source.jpeg_quality,
            source.min_area_px,
            p.exif_transposed,
        )
        for key, p in zip(keys, content.photographs, strict=True)
    ]
    return items, content.categories, len(content.photographs)


def _say_links(folder: Path, names: Sequence[str]) -> None:
    """Print a notice of images that are links to files outside of their folder."""
    if outside := leading_out(folder, names):
        notice(f"{len(outside)} images of {folder} are links to files outside of it, first {outside[0]!r:.100}.")


def divide(
    items: Sequence[ItemT], source: Files, data: Path, *, separate_validation: bool = False
) -> dict[str, list[ItemT]]:
    """Divide samples into disjoint splits by a hash of seed and key.

    Each split is sorted by that hash, so that shards are shuffled.

    Args:
        items: All samples.
        source: Seed and sizes of the splits.
        data: The source's path, for errors.
        separate_validation: Leave the validation split empty, because another json provides it.

    Raises:
        InputError: No sample is left for training, and ``train_images`` is not 0.
    """
    validation = 0 if separate_validation else source.validation_images
    held_out = validation + source.calibration_images
    if len(items) < held_out + (source.train_images != 0):
        raise InputError(
            f"{data} has {len(items)} usable images; {validation} for validation and {source.calibration_images} for "
            "calibration leave none to train on: add images or lower prepare.source.validation_images and "
            "calibration_images."
        )
    order = _shuffled(items, source.seed)
    end = None if source.train_images is None else held_out + source.train_images
    return {"train": order[held_out:end], "calibration": order[validation:held_out], "validation": order[:validation]}


def _shuffled(items: Sequence[ItemT], seed: int) -> list[ItemT]:
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed}:{item.key}".encode()).digest())
