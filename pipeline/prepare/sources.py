"""The ``source`` of params.yaml's ``prepare``: where images and masks come from. ``kind`` chooses one."""

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
    """What all sources that read files have in common. Paths are relative to ``prepare.data``."""

    calibration_images: Count = 512
    validation_images: Count = 500
    """Of a second json: at most so many."""
    seed: Natural = 0
    min_area_px: Count = 64
    """Masks of fewer pixels are left out."""
    jpeg_quality: Quality = 95
    """Of what is not an upright RGB JPEG already."""


class Coco(Files):
    """A COCO-format json and its folder of images."""

    kind: Literal["coco"]
    annotations: str
    images: str
    validation_annotations: str | None = None
    """A second json to take the validation split from; its images are kept out of the other splits."""
    validation_folder: str | None = None
    """The second json's images."""


class Folder(Files):
    """Images without masks, for embedding and distillation; validation needs a json or has no masks either."""

    kind: Literal["folder"]
    images: str
    validation_annotations: str | None = None
    validation_folder: str | None = None


class Sa1b(Files):
    """SA-1B's own tars, all ``*.tar`` of ``prepare.data``."""

    kind: Literal["sa1b"]


Source = Annotated[Procedural | Coco | Folder | Sa1b, Field(discriminator="kind")]
