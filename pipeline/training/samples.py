"""Sampling of batches, their split across processes, and prefetching.

Everything is stateless: order and randomness follow from the seed, the step number and the sample's position in the
batch. A resumed run therefore continues in the same order, and processes that share its batches agree on it.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise
from typing import Generic, TypeVar

import numpy as np

from pipeline.core.distributed import Ranks
from pipeline.core.errors import InputError

BatchT = TypeVar("BatchT")

Draw = Callable[[list[int], int, list[np.random.Generator]], BatchT]
"""``draw(indices, number, generators)`` makes a batch of these samples for a step, with one generator per sample.

It is called from background threads during earlier steps, so it must be thread-safe.
"""

_STEP, _SAMPLE = 1, 3


def step_generator(seed: int, number: int) -> np.random.Generator:
    """Generator of a whole step, the same for all its parts in every process."""
    return np.random.default_rng((seed, number, _STEP))


def sample_generator(seed: int, number: int, position: int) -> np.random.Generator:
    """Generator of one sample of a step; ``position`` is its index in the whole batch."""
    return np.random.default_rng((seed, number, _SAMPLE, position))


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

    def part(self, number: int, positions: range) -> BatchT:
        """Draw a part of a step."""
        indices = epoch_indices(self.count, self.batch, number, self.seed)
        generators = [sample_generator(self.seed, number, position) for position in positions]
        return self.draw([indices[position] for position in positions], number, generators)

    def ahead(self, start: int, end: int, threads: int) -> Iterator[BatchT]:
        """Yield this process's parts of steps ``start`` to ``end`` in order, prefetching one per thread."""
        parts = ((number, positions) for number in range(start, end) for positions in self.positions())
        with ThreadPoolExecutor(threads, "draw") as pool:
            pending: deque[Future[BatchT]] = deque(pool.submit(self.part, *part) for part in islice(parts, threads))
            try:
                while pending:
                    batch = pending.popleft().result()
                    pending.extend(pool.submit(self.part, *part) for part in islice(parts, 1))
                    yield batch
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
