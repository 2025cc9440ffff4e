"""The validation sets of a dataset, and which of their instances a protocol counts.

``published`` is EfficientViT-SAM's evaluation (``sam_eval_utils.py``): every annotation of at least one pixel by its
own ``area``, crowd regions included; the prompt is its own ``bbox``, and ``area`` decides the size band. ``ours``
leaves out crowd regions, which are not one object, and masks below a smallest area; box and area are the mask's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from pydantic import BaseModel, ConfigDict

from pipeline.core.artifact import file_sha256
from pipeline.core.errors import InputError
from pipeline.core.untrusted import json_file
from pipeline.data import coco
from pipeline.data.coco import Instance, Photograph
from pipeline.evaluate.images import read_rgb
from pipeline.ops import masks

Protocol = Literal["published", "ours"]
REMEDY = "Run `dvc repro --force --single-item prepare`."


class _About(BaseModel):
    """``set.json``: what a prepared set is."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: str = "validation"
    source_digest: str | None = None
    images: int | None = None


@dataclass(frozen=True)
class ValidationSet:
    """Annotated images in COCO's format: ``instances.json`` and ``images/``."""

    directory: Path
    prefix: str = ""
    """Prefix of its metrics: empty for the first set, ``<name>_`` for the others."""

    @property
    def name(self) -> str:
        """Folder of its results in an evaluation; empty for the first set."""
        return self.prefix.removesuffix("_")

    @property
    def annotations(self) -> Path:
        """The json."""
        return self.directory / "instances.json"

    def photographs(self, protocol: Protocol = "published", min_area_px: int = 1) -> list[Photograph]:
        """Read the images with the instances that the protocol counts, ordered by id.

        Args:
            protocol: See the module.
            min_area_px: Smallest mask of ``ours``, in pixels.

        Raises:
            InputError: The annotations are missing or damaged, or contain no instance.
        """
        photographs = coco.read(self.annotations, 1, crowd=protocol == "published").photographs
        counted = [replace(p, instances=list(_counted(p, protocol, min_area_px))) for p in photographs]
        if not any(photograph.instances for photograph in counted):
            raise InputError(
                f"{self.annotations} has no instance to evaluate: configure prepare with a validation split that has "
                "instances."
            )
        return counted

    def image_file(self, photograph: Photograph) -> Path:
        """Path of an image."""
        return self.directory / "images" / photograph.file_name

    def read_image(self, photograph: Photograph) -> UInt8[np.ndarray, "h w 3"]:
        """Read the RGB pixels of an image.

        Raises:
            InputError: The file is missing or damaged, or its size differs from its masks'.
        """
        return read_rgb(self.image_file(photograph), (photograph.height, photograph.width), REMEDY)

    def describe(self, photographs: list[Photograph], protocol: Protocol) -> dict[str, object]:
        """Name, digest of the annotations, numbers of images and instances, and protocol, to tell data sets apart."""
        path = self.directory / "set.json"
        about = (
            json_file.validated(json_file.load(path, remedy=REMEDY), _About, str(path)) if path.is_file() else _About()
        )
        return {
            "name": about.name,
            "protocol": protocol,
            "digest": file_sha256(self.annotations),
            "source_digest": about.source_digest,
            "images": len(photographs) if about.images is None else about.images,
            "annotated_images": sum(bool(photograph.instances) for photograph in photographs),
            "instances": sum(len(photograph.instances) for photograph in photographs),
        }


def validation_sets(prepare: Path) -> list[ValidationSet]:
    """The validation sets of a dataset artifact, the first one first, the others by name."""
    others = sorted(path.parent for path in prepare.glob("validation_sets/*/instances.json"))
    return [ValidationSet(prepare / "validation"), *(ValidationSet(path, f"{path.name}_") for path in others)]


def _counted(photograph: Photograph, protocol: Protocol, min_area_px: int) -> Iterator[Instance]:
    for instance in photograph.instances:
        if protocol == "ours":
            if masks.area(instance.rle) >= min_area_px:
                yield replace(instance, area=None, bbox=None)
        elif instance.area is None or instance.area >= 1:
            yield instance


def area_of(instance: Instance) -> float:
    """Pixels of an instance, as its source states or else of its mask."""
    return float(masks.area(instance.rle) if instance.area is None else instance.area)


def box_of(instance: Instance, mask: np.ndarray) -> tuple[float, float, float, float]:
    """Box xyxy of an instance in pixels, as its source states or else of its ``mask`` of shape (H, W)."""
    if instance.bbox is None:
        return masks.box(mask)
    x, y, width, height = instance.bbox
    return x, y, x + width, y + height
