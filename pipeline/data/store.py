"""The content-addressed store of embeddings, with one file per data shard, each complete or absent.

A file is named by the hash of everything that decides its content, so later runs reuse it, also after a crash, a change
of other shards' data, or a switch between teachers. A small json beside it, written last, marks it as complete.
"""

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float16
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
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

    def write(self, tensors: Mapping[str, Float16[Tensor, "n _ g g"]]) -> Seal:
        """Write embeddings and features; the seal's moments are those of the embeddings.

        Raises:
            InputError: The disk is full or the store cannot be written.
        """
        embeddings = tensors[TENSOR]
        moments = [(torch.mean(e.double()).item(), torch.mean(e.double().square()).item()) for e in embeddings]
        count = len(moments)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.seal_path.unlink(missing_ok=True)
            _into(self.path, lambda draft: save_file(dict(tensors), draft))
            seal = Seal(
                bytes=self.path.stat().st_size,
                sha256=file_sha256(self.path),
                images=count,
                mean=sum(mean for mean, _ in moments) / count,
                mean_square=sum(square for _, square in moments) / count,
            )
            _into(self.seal_path, lambda draft: write_json(draft, seal.model_dump()))
        except (OSError, SafetensorError) as error:
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


def _into(path: Path, write: Callable[[Path], None]) -> None:
    with atomic.replacing(path, per_process=True) as draft:
        write(draft)
