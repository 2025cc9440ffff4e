"""Data sources: the key ``prepare.source`` of params.yaml, selected by its ``kind``."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

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


_RESERVED = frozenset(
    ("train", "calibration", "validation", "left_out", "prompts", "everything", "box", "click", "click3", "click5")
)
"""Names that counts, metrics or files of an evaluation have already."""


class ValidationSet(Config):
    """Annotated images to evaluate on, in COCO's or LVIS's format. Paths are relative to ``prepare.data``."""

    annotations: str
    images: str
    """Folder of the images; for LVIS the parent of ``train2017`` and ``val2017``."""
    max_images: Count | None = None
    """Evaluate on this many of the images; null for all."""


class Files(Config):
    """Settings shared by all sources that read files. Paths are relative to ``prepare.data``."""

    train_images: Natural | None = None
    """Size of the train split; null for all images that are left, 0 for runs that train nothing."""
    calibration_images: Count = 512
    validation_images: Count = 500
    """Size of the validation split of the source's own images; unused with ``validation``."""
    validation: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], ValidationSet] = {}
    """Sets to evaluate on, by name, instead of a part of the source's images. Their categories and images need not be
    the source's; images of equal name and size are excluded from the other splits. The leaderboard shows the figures of
    one set; those of the others have the set's name as prefix."""
    leaderboard: str | None = None
    """Name of the set whose figures the leaderboard shows; null for the first in alphabetical order."""
    seed: Natural = 0
    min_area_px: Count = 64
    """Minimum mask area in pixels, except in validation; smaller masks are dropped."""
    jpeg_quality: Quality = 95
    """JPEG quality for re-encoded images; upright RGB JPEGs are copied unchanged."""

    @model_validator(mode="after")
    def _names_are_free(self) -> "Files":
        if taken := _RESERVED & self.validation.keys():
            raise ValueError(f"validation: {min(taken)!r} cannot be the name of a set: choose another")
        if self.leaderboard is not None and self.leaderboard not in self.validation:
            raise ValueError(f"leaderboard: {self.leaderboard!r} is not among the sets of validation")
        return self


class Coco(Files):
    """A COCO-format json and its folder of images."""

    kind: Literal["coco"]
    annotations: str
    images: str


class Folder(Files):
    """Images without masks, for embedding and distillation. Validation needs sets of its own."""

    kind: Literal["folder"]
    images: str


class Sa1b(Files):
    """SA-1B's original tars: all ``*.tar`` in ``prepare.data``."""

    kind: Literal["sa1b"]


Source = Annotated[Procedural | Coco | Folder | Sa1b, Field(discriminator="kind")]
