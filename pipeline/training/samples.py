"""Sampling of batches, their split across processes, and prefetching.

Everything is stateless: order and randomness follow from the seed, the step number and the sample's position in the
batch. A resumed run therefore continues in the same order, and processes that share its batches agree on it.
"""

from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np

from pipeline.core.distributed import Ranks
from pipeline.core.errors import InputError
from pipeline.core.loading import Draw, Loading, Request, load

BatchT = TypeVar("BatchT")

_STEP, _SAMPLE = 1, 3


def step_generator(seed: int, number: int) -> np.random.Generator:
    """Generator of a whole step, the same for all its parts in every process."""
    return np.random.default_rng((seed, number, _STEP))


def epoch_indices(count: int, batch: int, number: int, seed: int) -> list[int]:
    """Sample indices of one step; each epoch is a new permutation of all ``count`` samples."""
    positions = range(number * batch, (number + 1) * batch)
    return [int(_order(count, position // count, seed)[position % count]) for position in positions]


@lru_cache(maxsize=4)
def _order(count: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng((seed, 1 << 20, epoch)).permutation(count)


def cut(count: int, parts: int) -> list[range]:
    """Split ``range(count)`` into ``parts`` consecutive ranges whose lengths differ by at most one."""
    return [range(a, b) for a, b in pairwise(count * part // parts for part in range(parts + 1))]


@dataclass(frozen=True)
class Samples(Generic[BatchT]):
    """This process's share of a run's batches.

    Args:
        draw: Makes a batch.
        count: Size of the dataset.
        batch: Global batch size, over all processes.
        accumulate: Parts of each process's share, whose gradients are accumulated.
        seed: Seed of order and randomness.
        ranks: The processes that share the work.

    Raises:
        InputError: The dataset is empty, or a part would have no sample.
    """

    draw: Draw[BatchT]
    count: int
    batch: int
    accumulate: int
    seed: int
    ranks: Ranks

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError("there is no sample to train on: prepare a dataset with a non-empty train split.")
        parts = self.ranks.world_size * self.accumulate
        if self.batch < parts:
            raise InputError(
                f"a batch of {self.batch} cannot be cut into {parts} parts ({self.ranks.world_size} processes, "
                f"accumulate {self.accumulate}): raise batch, or lower accumulate or --nproc-per-node; with "
                "micro_batch, make batch a multiple of the number of processes."
            )

    def positions(self) -> list[range]:
        """Positions in the whole batch of each of this process's parts."""
        own = cut(self.batch, self.ranks.world_size)[self.ranks.rank]
        return [own[part.start : part.stop] for part in cut(len(own), self.accumulate)]

    def sizes(self) -> list[int]:
        """Number of samples in each of this process's parts."""
        return [len(part) for part in self.positions()]

    def request(self, number: int, positions: range) -> Request:
        """A part of a step; a sample's generator is that of its position in the whole batch."""
        indices = epoch_indices(self.count, self.batch, number, self.seed)
        seeds = [(self.seed, number, _SAMPLE, position) for position in positions]
        return Request([indices[position] for position in positions], number, seeds)

    def ahead(self, start: int, end: int, loading: Loading) -> Generator[BatchT, None, None]:
        """Yield this process's parts of steps ``start`` to ``end`` in order, drawn ahead."""
        parts = (self.request(number, part) for number in range(start, end) for part in self.positions())
        return load(self.draw, parts, loading)
