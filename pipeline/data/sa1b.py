"""SA-1B in its download format: tars of ``sa_<n>.jpg`` and ``sa_<n>.json``, read without unpacking."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pipeline.core.errors import InputError
from pipeline.core.untrusted import json_file, tar_file
from pipeline.core.untrusted.json_file import Coordinate, Id, Side
from pipeline.core.untrusted.regular_file import opened
from pipeline.data.coco import Record

_Score = Annotated[float, Field(ge=-1e6, le=1e6)]
_Point = Annotated[list[Coordinate], Field(min_length=2, max_length=2)]


class ImageOf(Record):
    """The image of a sample."""

    image_id: Id
    height: Side
    width: Side


class Annotation(Record):
    """A mask, and how the data engine made it; keys that a sample lacks stay unset."""

    id: Id
    segmentation: Any
    predicted_iou: _Score | None = None
    stability_score: _Score | None = None
    crop_box: Annotated[list[Coordinate], Field(min_length=4, max_length=4)] | None = None
    """x, y, width, height in pixels."""
    point_coords: Annotated[list[_Point], Field(max_length=1000)] | None = None


class Annotations(Record):
    """The json of a sample."""

    image: ImageOf
    annotations: list[Annotation]


@dataclass(frozen=True)
class Member:
    """Location of one image and its masks."""

    tar: Path
    stem: str
    image_offset: int
    image_bytes: int
    json_offset: int
    json_bytes: int

    def read(self) -> tuple[bytes, bytes]:
        """The image's and the json's bytes.

        Raises:
            InputError: The tar is truncated.
        """
        with opened(self.tar) as stream:
            stream.seek(self.image_offset)
            image = stream.read(self.image_bytes)
            stream.seek(self.json_offset)
            text = stream.read(self.json_bytes)
        if len(image) != self.image_bytes or len(text) != self.json_bytes:
            raise InputError(f"{self.tar} is truncated at {self.stem}: download it again.")
        return image, text


def members(directory: Path) -> list[Member]:
    """All samples of all tars in ``directory``, sorted by tar and name.

    Raises:
        InputError: There are no tars, one is damaged, or an image and its json are not both present.
    """
    tars = sorted(directory.glob("*.tar")) if directory.is_dir() else []
    if not tars:
        raise InputError(f"{directory} holds no *.tar files: put SA-1B's shards there or correct the path.")
    return [member for tar in tars for member in _members(tar)]


def _members(path: Path) -> list[Member]:
    offsets = tar_file.parts(path, (".jpg", ".json"), remedy="Download it again.")
    for stem, files in offsets.items():
        if len(files) != 2:
            raise InputError(f"{path}: {stem!r:.100} has no image or no json: download the tar again.")
    return [Member(path, stem, *offsets[stem][".jpg"], *offsets[stem][".json"]) for stem in sorted(offsets)]


def annotations_of(text: bytes, name: str) -> Annotations:
    """Validate a sample's json.

    Raises:
        InputError: It is not in SA-1B's schema.
    """
    remedy = "Download the tar again."
    content: Annotations = json_file.validated(
        json_file.parse(text, name, remedy=remedy), Annotations, f"{name} is not in SA-1B's schema", remedy=remedy
    )
    return content
