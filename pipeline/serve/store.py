"""Images and their embeddings in memory, least recently used first out."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from pipeline.ops.geometry import Size

_OVERHEAD = 1024
"""Bytes of an entry besides its image and embeddings."""


@dataclass
class Entry:
    """An image as it was sent, and its embedding by the digest of each model that encoded it."""

    image_id: str
    raw: bytes
    size: Size
    embeddings: dict[str, Float[Tensor, "1 256 g g"]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return _OVERHEAD + len(self.raw) + sum(e.nbytes for e in self.embeddings.values())


class Store:
    """Entries by id, bounded in bytes. Used from the event loop only.

    Args:
        limit: Bytes; an entry larger than that is not stored.
        changed: Is called with the number of entries and bytes after every change.
    """

    def __init__(self, limit: int, changed: Callable[[int, int], None] = lambda entries, nbytes: None) -> None:
        self._limit, self._changed = limit, changed
        self._entries: OrderedDict[str, tuple[Entry, int]] = OrderedDict()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, image_id: str) -> Entry | None:
        """The entry of this id, which becomes the most recently used."""
        if image_id not in self._entries:
            return None
        self._entries.move_to_end(image_id)
        return self._entries[image_id][0]

    def put(self, entry: Entry) -> None:
        """Store an entry, or its new size, as the most recently used; drop others until all fit."""
        self._drop(entry.image_id)
        if entry.nbytes <= self._limit:
            self._entries[entry.image_id] = (entry, entry.nbytes)
            self.nbytes += entry.nbytes
            while self.nbytes > self._limit:
                self._drop(next(iter(self._entries)))
        self._changed(len(self), self.nbytes)

    def forget(self, digest: str) -> None:
        """Drop the embeddings of one model."""
        for entry, _ in list(self._entries.values()):
            entry.embeddings.pop(digest, None)
            self._entries[entry.image_id] = (entry, entry.nbytes)
        self.nbytes = sum(nbytes for _, nbytes in self._entries.values())
        self._changed(len(self), self.nbytes)

    def _drop(self, image_id: str) -> None:
        _, nbytes = self._entries.pop(image_id, (None, 0))
        self.nbytes -= nbytes
