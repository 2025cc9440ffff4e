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
    side_px: Annotated[int, Field(ge=32)]
    train: Count
    calibration: Count
    validation: Count
    seed: Natural
    jpeg_quality: Quality


class Files(Config):
    """What all sources that read files have in common. Paths are relative to ``prepare.data``."""

    calibration_images: Count
    validation_images: Count
    """Of a second json: at most so many."""
    seed: Natural
    min_area_px: Count
    """Masks of fewer pixels are left out."""
    jpeg_quality: Quality
    """Of what is not an upright RGB JPEG already."""


class Coco(Files):
    """A COCO-format json and its folder of images."""

    kind: Literal["coco"]
    annotations: str
    images: str
    validation_annotations: str | None
    """A second json to take the validation split from; its images are kept out of the other splits."""
    validation_folder: str | None
    """The second json's images."""


class Folder(Files):
    """Images without masks, for embedding and distillation; validation needs a json or has no masks either."""

    kind: Literal["folder"]
    images: str
    validation_annotations: str | None
    validation_folder: str | None


class Sa1b(Files):
    """SA-1B's own tars, all ``*.tar`` of ``prepare.data``."""

    kind: Literal["sa1b"]


Source = Annotated[Procedural | Coco | Folder | Sa1b, Field(discriminator="kind")]
