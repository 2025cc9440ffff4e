"""The processes that share a job: a single one, or those started by ``torchrun``."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, _abort_process_group
from torch.distributed.rendezvous import rendezvous

from pipeline.core.rank_watch import watching

ItemT = TypeVar("ItemT")

_TIMEOUT = timedelta(days=7)
"""How long a process waits for the slowest: the shares of a large dataset may differ by hours."""


@dataclass(frozen=True)
class Ranks:
    """This process's rank among all processes of the job."""

    rank: int = 0
    world_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which collects and writes the results."""
        return self.rank == 0

    def share(self, items: Sequence[ItemT]) -> list[ItemT]:
        """This process's share of ``items``; each item belongs to exactly one process."""
        return [*items[self.rank :: self.world_size]]

    def gather(self, own: dict[str, ItemT]) -> dict[str, ItemT]:
        """Merge the processes' dictionaries on rank 0; other ranks get their own back."""
        if self.world_size == 1:
            return own
        parts: list[dict[str, ItemT]] | None = [{} for _ in range(self.world_size)] if self.first else None
        dist.gather_object(own, parts)
        return own if parts is None else {key: value for part in parts for key, value in part.items()}

    def total(self, value: Tensor) -> Tensor:
        """Sum over all processes, returned to each; not differentiable."""
        if self.world_size == 1:
            return value
        summed = value.detach().clone()
        dist.all_reduce(summed)
        return summed


@contextmanager
def joined(device: torch.device | None = None) -> Iterator[Ranks]:
    """Initialise the process group if ``torchrun`` started several processes.

    Args:
        device: Device of this process: GPU tensors use NCCL, everything else gloo.

    Raises:
        RankError: Another process failed. A process that does not end in time by itself is ended.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Ranks()
        return
    cuda = device is not None and device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)  # NCCL uses the current device
    rank = int(os.environ["RANK"])
    abort = _abort_process_group if cuda else _nothing  # gloo's collectives end with the other process
    with watching(rank, world_size, abort) as watch:
        try:
            store = next(rendezvous("env://", rank, world_size, timeout=_TIMEOUT))[0]
            watch.connect(store.clone())
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=PrefixStore("group", store),
                rank=rank,
                world_size=world_size,
                timeout=_TIMEOUT,
            )
            yield current()
            current().total(torch.zeros(()))  # none leaves before all are done: an ended process counts as lost
        except BaseException as error:
            failure = watch.fail(error)
            # NCCL's destroy waits for collectives that never end.
            if dist.is_initialized():
                _abort_process_group() if cuda else dist.destroy_process_group()
            if failure is error:
                raise
            raise failure from None
        dist.destroy_process_group()
        watch.stop()


def _nothing() -> None:
    pass


def current() -> Ranks:
    """The `Ranks` of the process group opened by `joined`; a single process without one."""
    if not dist.is_available() or not dist.is_initialized():
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())
