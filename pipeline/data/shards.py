"""Tar shards in SA-1B's schema, written reproducibly to the byte and read in any order.

A shard holds ``<key>.jpg`` and ``<key>.json`` of each sample; the json is ``{"image": {image_id, width, height,
file_name}, "annotations": [{id, segmentation, bbox xywh, area, predicted_iou, stability_score, crop_box,
point_coords}]}`` (segment-anything, README, "Dataset"). The manifest beside the shards stores each member's offset, so
that samples can be read by seeking; WebDataset and ``tar`` read the same files sequentially.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.core.artifact import file_sha256
from pipeline.core.errors import InputError
from pipeline.core.untrusted.regular_file import read_bytes
from pipeline.ops.geometry import Size, resized

MANIFEST = "manifest.json"
_LARGEST = 1 << 30
"""Bytes of a manifest."""
REMEDY = "Run `dvc repro --force --single-item prepare`."


@dataclass(frozen=True)
class Sample:
    """One image with its masks."""

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    """RGB, in the original frame."""
    annotations: list[dict[str, Any]]
    """SA-1B's records; ``segmentation`` is a compressed RLE."""


@dataclass(frozen=True)
class Resized:
    """One image at the size that an encoder needs, with its masks."""

    key: str
    size: Size
    """Height and width of the original."""
    pixels: UInt8[np.ndarray, "h w 3"]
    """RGB; the longest side is the one asked for."""
    annotations: list[dict[str, Any]]
    """See `Sample`; empty if they were not asked for."""


_Offset = Annotated[int, Field(ge=0, lt=1 << 63)]
_Length = Annotated[int, Field(ge=0, le=1 << 30)]


class Entry(BaseModel):
    """Location of a sample in its shard."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    height: int
    width: int
    instances: int
    image_offset: _Offset
    image_bytes: _Length
    json_offset: _Offset
    json_bytes: _Length


class Shard(BaseModel):
    """One tar of a split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    """Relative to the dataset."""
    bytes: int
    sha256: str
    samples: list[Entry]


class Manifest(BaseModel):
    """All shards of a dataset, by split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    splits: dict[str, list[Shard]]

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Read the manifest of a prepared dataset.

        Raises:
            InputError: There is none, or it is damaged.
        """
        path = directory / MANIFEST
        try:
            return cls.model_validate_json(read_bytes(path, _LARGEST, remedy=REMEDY))
        except ValidationError as error:
            raise InputError(f"{path} is damaged ({error.error_count()} faults). {REMEDY}") from None


class Shards:
    """One split of a prepared dataset, by index. Keeps no file open, so it can be pickled and shared by processes.

    Args:
        directory: The artifact of ``prepare``.
        split: ``train``, ``calibration`` or ``validation``.

    Raises:
        InputError: There is no such split, or a shard is missing or cut short.
    """

    def __init__(self, directory: Path, split: str) -> None:
        splits = Manifest.read(directory).splits
        if split not in splits:
            raise InputError(f"{directory} has no split {split!r}: it has {', '.join(sorted(splits))}.")
        self.directory = directory
        self.split = split
        self.shards = splits[split]
        for shard in self.shards:
            path = directory / shard.file
            if not path.is_file() or path.stat().st_size != shard.bytes:
                raise InputError(f"{path} is missing or not {shard.bytes} bytes long. {REMEDY}")
        self._entries = [(shard.file, entry) for shard in self.shards for entry in shard.samples]

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def keys(self) -> list[str]:
        """Keys of the samples, in order."""
        return [entry.key for _, entry in self._entries]

    @property
    def sizes(self) -> list[Size]:
        """Heights and widths of the samples, in order."""
        return [(entry.height, entry.width) for _, entry in self._entries]

    @property
    def instances(self) -> list[int]:
        """Number of masks of each sample, in order."""
        return [entry.instances for _, entry in self._entries]

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            IndexError: There are fewer samples.
            InputError: The shard does not match the manifest.
        """
        entry = self._entries[index][1]
        with self._read(index, annotated=True) as (image, annotations):
            return Sample(entry.key, np.asarray(image.convert("RGB")), annotations)

    def resized(self, index: int, side: int, *, annotated: bool) -> Resized:
        """Read one sample with its image's longest side scaled to ``side``.

        Where an image is at least twice as large, its JPEG is decoded at a half, a quarter or an eighth of its size,
        which takes a fraction of the time, and then resized as `pipeline.ops.geometry.resize_image` does.

        Args:
            index: Of the sample.
            side: The longest side, in pixels.
            annotated: Whether to read the annotations too.

        Raises:
            IndexError: There are fewer samples.
            InputError: The shard does not match the manifest.
        """
        entry = self._entries[index][1]
        with self._read(index, annotated=annotated) as (image, annotations):
            size = image.height, image.width
            height, width = resized(size, side)
            scaled = image.draft("RGB", (width, height))
            rgb = image if image.mode == "RGB" else image.convert("RGB")
            if rgb.size != (width, height):
                rgb = rgb.resize((width, height), Image.Resampling.BILINEAR, box=scaled[1] if scaled else None)
            return Resized(entry.key, size, np.asarray(rgb), annotations)

    def annotated(self, index: int) -> tuple[str, Size, list[dict[str, Any]]]:
        """Read one sample's key, its image's height and width, and its annotations, without the image.

        Raises:
            IndexError: There are fewer samples.
            InputError: The shard does not match the manifest.
        """
        entry = self._entries[index][1]
        with self._read(index, annotated=True) as (_, annotations):
            return entry.key, (entry.height, entry.width), annotations

    @contextmanager
    def _read(self, index: int, *, annotated: bool) -> Iterator[tuple[Image.Image, list[dict[str, Any]]]]:
        """Open a sample's image, which is decoded on use, and parse its annotations."""
        file, entry = self._entries[index]
        path = self.directory / file
        try:
            with path.open("rb") as stream:
                pixels = _bytes(stream, entry.image_offset, entry.image_bytes)
                text = _bytes(stream, entry.json_offset, entry.json_bytes) if annotated else None
            annotations = [] if text is None else list(json.loads(text)["annotations"])
            with Image.open(io.BytesIO(pixels), formats=("JPEG",)) as image:
                yield image, annotations
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged at sample {entry.key!r} ({error}). {REMEDY}") from None

    def verify(self) -> None:
        """Verify the hash of every shard.

        Raises:
            InputError: A shard has changed since it was written.
        """
        for shard in self.shards:
            path = self.directory / shard.file
            if file_sha256(path) != shard.sha256:
                raise InputError(f"{path} has changed since it was prepared. {REMEDY}")


def _bytes(stream: BinaryIO, offset: int, length: int) -> bytes:
    stream.seek(offset)
    data = stream.read(length)
    if len(data) != length:
        raise ValueError("cut short")
    return data


@dataclass(frozen=True)
class Packed:
    """A sample to be written to a shard."""

    key: str
    jpeg: bytes
    record: dict[str, Any]
    """SA-1B's json: ``image`` and ``annotations``."""


def write_split(directory: Path, split: str, samples: Iterable[Packed], shard_images: int) -> list[Shard]:
    """Write the samples of a split as ``<split>/00000.tar`` and so on, in order.

    Args:
        directory: The dataset.
        split: Name of the split and of its folder.
        samples: May be lazy; keys are unique and at most 80 characters long.
        shard_images: Samples per shard.
    """
    (directory / split).mkdir(parents=True, exist_ok=True)
    iterator, shards = iter(samples), list[Shard]()
    for first in iterator:
        file = f"{split}/{len(shards):05d}.tar"
        entries = []
        with tarfile.open(directory / file, "w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in chain([first], islice(iterator, shard_images - 1)):
                entries.append(_add(tar, sample))
        path = directory / file
        shards.append(Shard(file=file, bytes=path.stat().st_size, sha256=file_sha256(path), samples=entries))
    return shards


def _add(tar: tarfile.TarFile, sample: Packed) -> Entry:
    text = json.dumps(sample.record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    image_offset = _add_member(tar, f"{sample.key}.jpg", sample.jpeg)
    json_offset = _add_member(tar, f"{sample.key}.json", text)
    return Entry(
        key=sample.key,
        height=sample.record["image"]["height"],
        width=sample.record["image"]["width"],
        instances=len(sample.record["annotations"]),
        image_offset=image_offset,
        image_bytes=len(sample.jpeg),
        json_offset=json_offset,
        json_bytes=len(text),
    )


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a file with a header free of time, owner and machine; return the offset of its data."""
    header = tarfile.TarInfo(name)
    header.size, header.mtime, header.mode = len(data), 0, 0o644
    begin = tar.offset + len(header.tobuf(tarfile.USTAR_FORMAT))
    tar.addfile(header, io.BytesIO(data))
    return begin
