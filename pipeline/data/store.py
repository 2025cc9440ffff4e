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

import numpy as np
from jaxtyping import Float16, Float64
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
        with self.rows(images) as rows:
            for tensors in batches:
                rows.append(tensors, *moments(tensors[TENSOR]))
        return rows.seal

    @contextmanager
    def rows(self, count: int) -> Iterator["Rows"]:
        """Write ``count`` images batch by batch; the file is complete, and sealed, when the context ends.

        Raises:
            InputError: The disk is full or the store cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.seal_path.unlink(missing_ok=True)
            with atomic.replacing(self.path) as draft, draft.open("wb") as stream:
                rows = Rows(stream, count)
                yield rows
                rows.require_all()
            rows.seal = Seal(
                bytes=self.path.stat().st_size,
                sha256=file_sha256(self.path),
                images=count,
                mean=sum(rows.means) / count,
                mean_square=sum(rows.mean_squares) / count,
            )
            with atomic.replacing(self.seal_path) as draft:
                write_json(draft, rows.seal.model_dump())
        except OSError as error:
            raise self._unwritable(error) from None

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


def moments(embeddings: Float16[Tensor, "n _ g g"]) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Mean and mean square of each embedding, on its device."""
    values = embeddings.flatten(1).double()
    return values.mean(dim=1), values.square().mean(dim=1)


class Rows:
    """The file that safetensors' ``save_file`` would write of the whole tensors, written batch by batch.

    Args:
        stream: The file, empty.
        count: Images in all.
    """

    def __init__(self, stream: BinaryIO, count: int) -> None:
        self._stream, self._count, self._done = stream, count, 0
        self._begin = dict[str, int]()
        self.means, self.mean_squares = list[float](), list[float]()
        self.seal = Seal(bytes=0, sha256="", images=0, mean=0.0, mean_square=0.0)
        """Set when the file is complete."""

    def append(
        self, tensors: Mapping[str, Float16[Tensor, "n _ g g"]], mean: Float64[Tensor, " n"],
        mean_square: Float64[Tensor, " n"],
    ) -> None:  # fmt: skip
        """Write the next images' tensors; all batches have the same names and shapes."""
        if not self._begin:
            self._write_header(tensors)
        for name, value in tensors.items():
            rows = np.ascontiguousarray(value.numpy())
            self._stream.seek(self._begin[name] + self._done * rows[0].nbytes)
            self._stream.write(rows.data)
        self._done += len(mean)
        self.means += mean.tolist()
        self.mean_squares += mean_square.tolist()

    def require_all(self) -> None:
        """Check that all images were written.

        Raises:
            ValueError: Some are missing.
        """
        if self._done != self._count:
            raise ValueError(f"{self._done} of {self._count} images were written")

    def _write_header(self, tensors: Mapping[str, Tensor]) -> None:
        header, end = dict[str, Any](), 0
        for name, value in sorted(tensors.items()):
            begin, end = end, end + self._count * value[0].nbytes
            header[name] = {"dtype": "F16", "shape": [self._count, *value.shape[1:]], "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format aligns data
        self._stream.write(len(text).to_bytes(8, "little") + text)
        self._begin = {name: 8 + len(text) + entry["data_offsets"][0] for name, entry in header.items()}
