"""The teacher's image embeddings, read from the store that ``embed`` fills.

The artifact is a manifest; the embeddings themselves (2 MiB per image at SAM's size) are in a content-addressed store
and are read through a memory map, one image at a time.
"""

from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float16
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.core.checkout import store_path
from pipeline.core.errors import InputError
from pipeline.core.untrusted.regular_file import read_bytes
from pipeline.data.encoding import FEATURES, TENSOR
from pipeline.data.shards import MANIFEST

OPEN_FILES = 8
_LARGEST = 1 << 30
"""Bytes of a manifest."""
REMEDY = "Run `dvc repro --force --single-item embed`."


class StoredShard(BaseModel):
    """One file of the store: the embeddings of one data shard."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    """Relative to the store."""
    bytes: int
    sha256: str
    split: str
    keys: list[str]
    """The samples, in the order of the tensor's first axis."""


class EmbeddingsManifest(BaseModel):
    """Index of the embeddings, with the teacher they come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: str
    """Path of the store, as in params.yaml."""
    teacher: str
    """Digest of the teacher's artifact."""
    dtype: str
    precision: str = "fp32"
    """Of the teacher's forward pass."""
    embedding_size: int
    feature_layers: list[int]
    """Blocks of the teacher whose features are stored too, see `pipeline.models.feature_layers`."""
    shards: list[StoredShard]


@runtime_checkable
class _Rows(Protocol):
    """A tensor in a memory-mapped file, read row by row."""

    def __getitem__(self, row: int) -> Tensor: ...


class Embeddings:
    """Embeddings by sample key. Thread-safe and picklable; each process opens its own files.

    Args:
        directory: The artifact of ``embed``.

    Raises:
        InputError: The manifest is missing or damaged.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / MANIFEST
        try:
            manifest = EmbeddingsManifest.model_validate_json(read_bytes(path, _LARGEST, remedy=REMEDY))
        except ValidationError as error:
            raise InputError(f"{path} is damaged ({error.error_count()} faults). {REMEDY}") from None
        self.store = store_path(manifest.store)
        self.teacher = manifest.teacher
        self.precision = manifest.precision
        self.embedding_size = manifest.embedding_size
        self.feature_layers = manifest.feature_layers
        self.shards = manifest.shards
        self._places = {key: (s, row) for s, shard in enumerate(manifest.shards) for row, key in enumerate(shard.keys)}
        self._open: OrderedDict[tuple[int, str], _Rows] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"} | {"_open": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": Lock()}

    def missing(self) -> list[StoredShard]:
        """Shards whose file in the store is missing or has a different size."""
        return [shard for shard in self.shards if not self._exists(shard)]

    def _exists(self, shard: StoredShard) -> bool:
        try:
            return (self.store / shard.file).stat().st_size == shard.bytes
        except OSError:
            return False

    def get(self, key: str) -> Float16[Tensor, "256 g g"]:
        """The embedding of one sample.

        Raises:
            InputError: The key is unknown, or its file is missing from the store or damaged.
        """
        return self._read(key, TENSOR)

    def features(self, key: str, layer: int) -> Float16[Tensor, "c g g"]:
        """A block's features of one sample.

        Raises:
            InputError: As `get`; or the block's features are not stored.
        """
        if layer not in self.feature_layers:
            blocks = ", ".join(map(str, self.feature_layers))
            available = f"of blocks {blocks}" if blocks else "of no block"
            raise InputError(
                f"the cache holds features {available}, not of the teacher's block {layer}: "
                f"add it to embed.feature_layers in params.yaml and run `dvc repro embed`."
            )
        return self._read(key, FEATURES.format(layer))

    def _read(self, key: str, tensor: str) -> Tensor:
        if key not in self._places:
            raise InputError(f"there is no embedding of {key!r}: the store was made from other data. {REMEDY}")
        index, row = self._places[key]
        path = self.store / self.shards[index].file
        try:
            with self._lock:
                value: Tensor = self._file(index, path, tensor)[row].clone()
        except (OSError, SafetensorError) as error:
            what = f"the store {self.store} has no readable {self.shards[index].file} for {key!r}"
            raise InputError(f"{what} ({error}). {REMEDY}") from None
        return value

    def _file(self, index: int, path: Path, tensor: str) -> _Rows:
        """A tensor of a shard's file, from a least-recently-used cache of open files."""
        if (index, tensor) in self._open:
            self._open.move_to_end((index, tensor))
            return self._open[index, tensor]
        if path.stat().st_size != self.shards[index].bytes:
            raise OSError(f"it is not {self.shards[index].bytes} bytes long")
        rows: _Rows = safe_open(path, framework="pt").get_slice(tensor)  # type: ignore[no-untyped-call]
        self._open[index, tensor] = rows
        while len(self._open) > OPEN_FILES * (1 + len(self.feature_layers)):
            self._open.popitem(last=False)
        return self._open[index, tensor]
