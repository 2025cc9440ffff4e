"""The content-addressed store of embeddings, with one file per data shard, each complete or absent.

A file is named by the hash of everything that decides its content, so later runs reuse it, also after a crash, a change
of other shards' data, or a switch between teachers. A small json beside it, written last, marks it as complete.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from jaxtyping import Float16
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from pipeline.core import atomic
from pipeline.core.artifact import file_sha256, write_json
from pipeline.core.errors import InputError
from pipeline.data.encoding import TENSOR


class Seal(BaseModel):
    """Size, hash and statistics of a complete file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    sha256: str
    images: int
    mean: float
    mean_square: float


@dataclass(frozen=True)
class StoreFile:
    """File of one shard's embeddings."""

    store: Path
    file: str
    """Relative to the store."""

    @property
    def path(self) -> Path:
        """The safetensors file."""
        return self.store / self.file

    @property
    def seal_path(self) -> Path:
        """The json that marks it as complete."""
        return self.path.with_suffix(".json")

    def seal(self) -> Seal | None:
        """The seal of an intact file; None if the file is missing, incomplete or changed."""
        try:
            seal = Seal.model_validate_json(self.seal_path.read_bytes())
            intact = self.path.stat().st_size == seal.bytes and file_sha256(self.path) == seal.sha256
        except (OSError, ValidationError):
            return None
        return seal if intact else None

    def write(self, images: int, batches: Iterable[Mapping[str, Float16[Tensor, "b _ g g"]]]) -> Seal:
        """Write embeddings and features batch by batch: a shard with features of several blocks is larger than memory.

        Several processes must hold `lock`.

        Args:
            images: Number of images of all batches.
            batches: Tensors by name, for consecutive images. The seal's moments are those of the embeddings.

        Raises:
            InputError: The disk is full or the store cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.seal_path.unlink(missing_ok=True)
            with atomic.replacing(self.path) as draft, draft.open("wb") as stream:
                moments = _write_batches(stream, images, batches)
            seal = Seal(
                bytes=self.path.stat().st_size,
                sha256=file_sha256(self.path),
                images=images,
                mean=sum(mean for mean, _ in moments) / images,
                mean_square=sum(square for _, square in moments) / images,
            )
            with atomic.replacing(self.seal_path) as draft:
                write_json(draft, seal.model_dump())
        except OSError as error:
            raise self._unwritable(error) from None
        return seal

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the file against other processes, to check whether it is missing and then write it.

        Raises:
            InputError: The store cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            stream = self.path.with_suffix(".lock").open("w")
        except OSError as error:
            raise self._unwritable(error) from None
        with stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _unwritable(self, error: Exception) -> InputError:
        return InputError(
            f"embeddings cannot be written to {self.path} ({error}): free space, or set embed.store to another disk."
        )


def locate(store: Path, name: str, origin: Mapping[str, object]) -> StoreFile:
    """The file of the embeddings ``name`` made from ``origin``: digests and settings, JSON values."""
    key = hashlib.sha256(json.dumps(dict(origin), sort_keys=True).encode()).hexdigest()
    return StoreFile(store, f"{key}/{name}.safetensors")


def _write_batches(stream: BinaryIO, images: int, batches: Iterable[Mapping[str, Tensor]]) -> list[tuple[float, float]]:
    """Write the file that safetensors' ``save_file`` would write of the whole tensors.

    Returns:
        Mean and mean square of each image's embedding.
    """
    moments, begins = list[tuple[float, float]](), dict[str, int]()
    for parts in batches:
        if not begins:
            begins = _write_header(stream, images, parts)
        for name, part in parts.items():
            stream.seek(begins[name] + len(moments) * part[0].numel() * part.element_size())
            stream.write(part.contiguous().numpy().data.cast("B"))
        wide = parts[TENSOR].double()
        moments += [(image.mean().item(), image.square().mean().item()) for image in wide]
    if len(moments) != images:
        raise ValueError(f"{len(moments)} images were written, not {images}")
    return moments


def _write_header(stream: BinaryIO, images: int, parts: Mapping[str, Tensor]) -> dict[str, int]:
    """Write the header of a safetensors file; return where each tensor begins."""
    entries, ends = dict[str, Any](), [0]
    for name, part in sorted(parts.items()):
        ends.append(ends[-1] + images * part[0].numel() * part.element_size())
        entries[name] = {"dtype": "F16", "shape": [images, *part.shape[1:]], "data_offsets": ends[-2:]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    stream.write(len(header).to_bytes(8, "little") + header)
    return {name: stream.tell() + begin for name, begin in zip(entries, ends, strict=False)}
