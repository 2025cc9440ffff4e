"""The processes that share one piece of work: one alone, or those that ``torchrun`` started."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

ItemT = TypeVar("ItemT")

_PATIENCE = timedelta(days=7)
"""How long one process waits for the slowest: the shares of a large dataset may differ by hours."""


@dataclass(frozen=True)
class Ranks:
    """This process among all that do the same work."""

    rank: int = 0
    world_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that has the results of all, and writes them."""
        return self.rank == 0

    def share(self, items: Sequence[ItemT]) -> list[ItemT]:
        """What of ``items`` is this process's: every item is exactly one's, however many there are."""
        return [*items[self.rank :: self.world_size]]

    def gather(self, own: dict[str, ItemT]) -> dict[str, ItemT]:
        """Put together what each found; only the first process gets it, the others get their own back."""
        if self.world_size == 1:
            return own
        parts: list[dict[str, ItemT]] | None = [{} for _ in range(self.world_size)] if self.first else None
        dist.gather_object(own, parts)
        return own if parts is None else {key: value for part in parts for key, value in part.items()}

    def total(self, value: Tensor) -> Tensor:
        """The sum of what all processes hand in, for each of them; no gradient passes through."""
        if self.world_size == 1:
            return value
        summed = value.detach().clone()
        dist.all_reduce(summed)
        return summed


@contextmanager
def joined(device: torch.device | None = None) -> Iterator[Ranks]:
    """Meet the other processes where ``torchrun`` started several.

    Args:
        device: What this process computes on: tensors on a GPU travel over NCCL, all else over gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    if device is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # what NCCL takes for its own
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=_PATIENCE)
    else:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield current()
    finally:
        dist.destroy_process_group()


def current() -> Ranks:
    """The processes that have `joined` and this one among them; it alone where nobody has."""
    if not dist.is_available() or not dist.is_initialized():
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())
