"""Prompt files: a detector's boxes, or points, for each image.

Boxes come as a COCO json with ``images`` and ``annotations``, or as a list of detections. Points come as a list of
objects. Entries of a list name their image by ``file_name``, or by ``image_id`` together with a COCO json.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import Field

from pipeline.core.errors import InputError
from pipeline.core.untrusted import json_file
from pipeline.core.untrusted.json_file import Coordinate, Extent, Id
from pipeline.data import coco
from pipeline.data.coco import NO_CATEGORY, ImageRecord, Record

MOST_POINTS = 1000
"""Points of one prompt."""
_NUMBERS = Field(strict=False)  # a tuple may be a list in JSON


class Prompt(NamedTuple):
    """A prompt for one object."""

    entry: int
    """Its position in the prompt file, counted from 0."""
    category_id: int
    score: float | None
    """The detector's score."""
    box: tuple[float, float, float, float] | None
    """xyxy, in pixels."""
    points: tuple[tuple[float, float], ...]
    """x and y, in pixels."""
    labels: tuple[int, ...]
    """1 foreground, 0 background, one per point."""


@dataclass(frozen=True)
class Prompts:
    """All prompts of a prediction, and what their files say about the images."""

    by_image: dict[str, list[Prompt]] | None
    """Prompts by image name, in the order of the file; None for everything mode."""
    categories: list[dict[str, Any]] = field(default_factory=lambda: [coco.unnamed()])
    images: dict[str, ImageRecord] = field(default_factory=dict)
    """Image records of a COCO json by name."""


class _Entry(Record):
    file_name: str | None = None
    image_id: Id | None = None
    category_id: Id = NO_CATEGORY


class _Box(_Entry):
    bbox: Annotated[tuple[Coordinate, Coordinate, Extent, Extent], _NUMBERS]
    score: float | None = None
    iscrowd: Annotated[int, Field(ge=0, le=1)] | bool = 0


class _Points(_Entry):
    points: Annotated[
        list[Annotated[tuple[Coordinate, Coordinate], _NUMBERS]], Field(min_length=1, max_length=MOST_POINTS)
    ]
    labels: list[Literal[0, 1]] | None = None


class _Category(coco.CategoryRecord):
    name: str
    supercategory: str = ""


class _Names(Record):
    images: list[ImageRecord]
    categories: list[_Category] = []


class _Detections(_Names):
    annotations: list[_Box]


EntryT = TypeVar("EntryT", bound=_Entry)

_BOXES_FORM = (
    "Give a COCO json with images and annotations, or a list of objects with file_name and bbox [x, y, width, height]."
)
_POINTS_FORM = "Give a list of objects with file_name, points [[x, y], ...] and labels [1, 0, ...]."


def read_boxes(path: Path, annotations: Path | None, min_score: float | None) -> Prompts:
    """Read a detector's boxes; crowd regions are left out.

    Args:
        path: A COCO json with ``images`` and ``annotations``, or a list of detections in COCO's results format, with
            ``image_id`` or ``file_name``.
        annotations: COCO json that gives the images' names and ids, and the categories; None if ``path`` does.
        min_score: Boxes with a lower score are left out.

    Raises:
        InputError: A file is missing or malformed; the message names the entry.
    """
    content = json_file.load(path, remedy=_BOXES_FORM)
    if isinstance(content, dict):
        detections: _Detections = json_file.validated(content, _Detections, str(path), remedy=_BOXES_FORM)
        entries, annotations = detections.annotations, annotations or path
    else:
        entries = json_file.validated(content, list[_Box], str(path), remedy=_BOXES_FORM)
    listing = None if annotations is None else _names(annotations)
    if entries and all(-1 <= value <= 1 for entry in entries for value in entry.bbox):
        raise InputError(f"{path}: all boxes lie between 0 and 1: give x, y, width and height in pixels.")

    def prompt(number: int, entry: _Box) -> Prompt | None:
        below = min_score is not None and entry.score is not None and entry.score < min_score
        if below or entry.iscrowd:
            return None
        x, y, width, height = entry.bbox
        return Prompt(number, entry.category_id, entry.score, (x, y, x + width, y + height), (), ())

    return _collected(path, entries, listing, prompt)


def read_points(path: Path, annotations: Path | None) -> Prompts:
    """Read points: a list with one entry per object, its ``points`` and their ``labels`` (default: all foreground).

    Raises:
        InputError: A file is missing or malformed; the message names the entry.
    """
    content = json_file.load(path, remedy=_POINTS_FORM)
    if isinstance(content, dict):
        raise InputError(f"{path} is an object, not a list. {_POINTS_FORM}")
    entries: list[_Points] = json_file.validated(content, list[_Points], str(path), remedy=_POINTS_FORM)

    def prompt(number: int, entry: _Points) -> Prompt:
        labels = [1] * len(entry.points) if entry.labels is None else entry.labels
        if len(labels) != len(entry.points):
            raise InputError(
                f"{path}: entry {number} (counted from 0) has {len(entry.points)} points and {len(labels)} labels: "
                "give one label per point."
            )
        return Prompt(number, entry.category_id, None, None, tuple(entry.points), tuple(labels))

    return _collected(path, entries, None if annotations is None else _names(annotations), prompt)


@dataclass(frozen=True)
class _Listing:
    """Images and categories of a COCO json."""

    path: Path
    names: dict[int, str]
    images: dict[str, ImageRecord]
    categories: list[dict[str, Any]]


def _names(path: Path) -> _Listing:
    """Read the images and categories of a COCO json."""
    content = coco.parse(path, _Names)
    records = coco.by_id(path, "image", content.images)
    names = {number: coco.file_name(path, record) for number, record in records.items()}
    if len(set(names.values())) < len(names):
        raise InputError(f"{path}: two images have the same file_name: each must be unique; remove the repetition.")
    categories = coco.by_id(path, "category", content.categories).values()
    listed = [category.model_dump() for category in sorted(categories, key=lambda category: category.id)]
    return _Listing(path, names, {names[number]: record for number, record in records.items()}, listed)


def _collected(
    path: Path,
    entries: Sequence[EntryT],
    listing: _Listing | None,
    prompt: Callable[[int, EntryT], Prompt | None],
) -> Prompts:
    """Group prompts by image."""
    by_image: dict[str, list[Prompt]] = {}
    known = {category["id"] for category in listing.categories} if listing else set()
    used = {entry.category_id for entry in entries}
    if known and not used <= known:
        number = next(i for i, entry in enumerate(entries) if entry.category_id not in known)
        raise InputError(
            f"{path}: entry {number} (counted from 0) has category {entries[number].category_id}, which "
            f"{listing.path if listing else path} does not list: map it to one of its categories."
        )
    for number, entry in enumerate(entries):
        name, made = _image_name(path, number, entry, listing), prompt(number, entry)
        by_image.setdefault(name, [])
        if made is not None:
            by_image[name].append(made)
    categories = listing.categories if listing and listing.categories else _unlisted(used)
    return Prompts(by_image, categories, listing.images if listing else {})


def _unlisted(used: set[int]) -> list[dict[str, Any]]:
    """Categories for ids without names: ``object`` if there is one only, else ``category_<id>``."""
    if len(used) <= 1:
        return [coco.unnamed(number) for number in used or {NO_CATEGORY}]
    return [coco.unnamed(number) | {"name": f"category_{number}"} for number in sorted(used)]


def _image_name(path: Path, number: int, entry: _Entry, listing: _Listing | None) -> str:
    where = f"{path}: entry {number} (counted from 0)"
    if entry.image_id is not None and listing is not None:
        if entry.image_id not in listing.names:
            raise InputError(
                f"{where} is of image {entry.image_id}, which {listing.path} does not list: use the json it was made "
                "for."
            )
        return listing.names[entry.image_id]
    if entry.file_name is None:
        lack = "neither file_name nor image_id" if entry.image_id is None else "image_id, but no file_name"
        raise InputError(f"{where} has {lack}: add file_name, or give the COCO json of the ids with --annotations.")
    name = coco.relative_name(entry.file_name)
    if name is None:
        shown = json_file.shown(entry.file_name)
        raise InputError(f"{where} has file_name {shown}: it must be relative to the folder of the images.")
    return name
