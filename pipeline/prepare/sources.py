"""Data sources: the key ``prepare.source`` of params.yaml, selected by its ``kind``."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.core.config import Config

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Quality = Annotated[int, Field(ge=1, le=100)]


class Procedural(Config):
    """Rendered scenes (`pipeline.data.scenes`)."""

    kind: Literal["procedural"]
    side_px: Annotated[int, Field(ge=32)] = 256
    train: Count
    calibration: Count
    validation: Count
    seed: Natural = 0
    jpeg_quality: Quality = 92


class Files(Config):
    """Settings shared by all sources that read files. Paths are relative to ``prepare.data``."""

    calibration_images: Count = 512
    validation_images: Count = 500
    """Size of the validation split; the maximum if a second json provides it."""
    seed: Natural = 0
    min_area_px: Count = 64
    """Minimum mask area in pixels; smaller masks are dropped."""
    jpeg_quality: Quality = 95
    """JPEG quality for re-encoded images; upright RGB JPEGs are copied unchanged."""


class Coco(Files):
    """A COCO-format json and its folder of images."""

    kind: Literal["coco"]
    annotations: str
    images: str
    validation_annotations: str | None = None
    """A second json that provides the validation split; its images are excluded from the other splits."""
    validation_folder: str | None = None
    """Folder of the second json's images."""


class Folder(Files):
    """Images without masks, for embedding and distillation. Validation has masks only from a second json."""

    kind: Literal["folder"]
    images: str
    validation_annotations: str | None = None
    validation_folder: str | None = None


class Sa1b(Files):
    """SA-1B's original tars: all ``*.tar`` in ``prepare.data``."""

    kind: Literal["sa1b"]


Source = Annotated[Procedural | Coco | Folder | Sa1b, Field(discriminator="kind")]
