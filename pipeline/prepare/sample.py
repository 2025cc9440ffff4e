"""Samples of all sources, packed with records in SA-1B's schema."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from pycocotools import mask as coco_mask

from pipeline.data.coco import Instance
from pipeline.data.shards import Packed
from pipeline.ops import masks
from pipeline.ops.geometry import Size


@dataclass(frozen=True)
class Prepared:
    """A packed sample, and its fields that SA-1B's schema lacks."""

    packed: Packed
    fields: list[dict[str, Any]]
    """Per annotation, what COCO's format has beside the record: ``category_id``, ``iscrowd``, and ``area`` and ``bbox``
    if the source states them."""
    tiny: int = 0
    """Number of masks dropped for their size."""
    crowd: int = 0
    """Number of crowd regions dropped."""


@runtime_checkable
class Item(Protocol):
    """Description of a sample, read later by a worker process; small and picklable."""

    @property
    def key(self) -> str:
        """Key, unique in the dataset."""

    def prepare(self) -> Prepared:
        """Read or render the sample.

        Raises:
            InputError: A file is missing or damaged.
        """


def prepared(
    key: str, jpeg: bytes, size: Size, image_id: int, instances: Sequence[Instance], tiny: int = 0, crowd: int = 0
) -> Prepared:
    """Pack a sample with records in SA-1B's schema.

    Ground truth is not predicted: ``predicted_iou`` and ``stability_score`` are 1, ``crop_box`` is the whole image, and
    ``point_coords`` is the point farthest from the mask's border.
    """
    height, width = size
    image = {"image_id": image_id, "width": width, "height": height, "file_name": f"{key}.jpg"}
    annotations = [_annotation(instance, size) for instance in instances]
    packed = Packed(key, jpeg, {"image": image, "annotations": annotations})
    return Prepared(packed, [_fields(instance) for instance in instances], tiny, crowd)


def _fields(instance: Instance) -> dict[str, Any]:
    stated = {"area": instance.area, "bbox": None if instance.bbox is None else list(instance.bbox)}
    ids = {"category_id": instance.category_id, "iscrowd": int(instance.iscrowd)}
    return ids | {name: value for name, value in stated.items() if value is not None}


def _annotation(instance: Instance, size: Size) -> dict[str, Any]:
    mask = masks.decode(instance.rle)
    x0, y0, x1, y1 = (int(edge) for edge in masks.box(mask))
    x, y = masks.center(mask[y0:y1, x0:x1])  # same result as for the whole mask, which is empty outside the box
    return {
        "id": instance.id,
        "segmentation": instance.rle,
        "bbox": [float(v) for v in coco_mask.toBbox(instance.rle | {"counts": instance.rle["counts"].encode()})],
        "area": int(mask.sum()),
        "predicted_iou": 1.0,
        "stability_score": 1.0,
        "crop_box": [0.0, 0.0, float(size[1]), float(size[0])],
        "point_coords": [[x + x0, y + y0]],
    }
