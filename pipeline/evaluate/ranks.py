"""The processes that share one evaluation: one alone, or those that ``torchrun`` started."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist

ItemT = TypeVar("ItemT")

_PATIENCE = timedelta(days=7)
"""How long one process waits for the slowest: the shares of a large dataset may differ by hours."""


@dataclass(frozen=True)
class Ranks:
    """This process among all that do the same work."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that has the results of all, and writes them."""
        return self.rank == 0

    def share(self, items: Sequence[ItemT]) -> list[ItemT]:
        """What of ``items`` is this process's: every item is exactly one's, however many there are."""
        return [*items[self.rank :: self.count]]

    def gather(self, own: dict[str, ItemT]) -> dict[str, ItemT]:
        """Put together what each found; only the first process gets it, the others get their own back."""
        if self.count == 1:
            return own
        parts: list[dict[str, ItemT]] | None = [{} for _ in range(self.count)] if self.first else None
        dist.gather_object(own, parts)
        return own if parts is None else {key: value for part in parts for key, value in part.items()}


@contextmanager
def joined() -> Iterator[Ranks]:
    """Meet the other processes over gloo where ``torchrun`` started several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
