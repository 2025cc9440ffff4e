"""Which samples a step learns from, what each process has of them, and batches that are drawn ahead.

Nothing here remembers anything: order and randomness follow from the seed, the step's number and the sample's position
in the batch. So a run that was killed goes on in the same order, and so do two processes that share its batches.
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
"""``draw(indices, number, generators)`` makes a batch of these samples for a step, with a generator for each sample.

It runs in threads of its own while steps before are computed, so two calls must not disturb each other.
"""

_STEP, _SAMPLE = 1, 3


def step_generator(seed: int, number: int) -> np.random.Generator:
    """What is random in a step as a whole: the same for each of its parts, in every process."""
    return np.random.default_rng((seed, number, _STEP))


def sample_generator(seed: int, number: int, position: int) -> np.random.Generator:
    """What is random in one sample of a step; ``position`` is its place in the whole batch."""
    return np.random.default_rng((seed, number, _SAMPLE, position))


def epoch_indices(count: int, batch: int, number: int, seed: int) -> list[int]:
    """The samples of one step, in an order that visits each of ``count`` once before any comes again."""
    places = range(number * batch, (number + 1) * batch)
    return [int(_order(count, place // count, seed)[place % count]) for place in places]


@lru_cache(maxsize=4)
def _order(count: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.default_rng((seed, 1 << 20, epoch)).permutation(count)


def cut(count: int, parts: int) -> list[range]:
    """``count`` places in a row as ``parts`` neighbours, whose lengths differ by one at most."""
    return [range(a, b) for a, b in pairwise(count * part // parts for part in range(parts + 1))]


@dataclass(frozen=True)
class Samples(Generic[BatchT]):
    """The batches of a run, as far as they are this process's.

    Args:
        draw: Makes a batch.
        count: Samples there are.
        batch: Samples of one step, over all processes.
        accumulate: Parts of a step that each process computes one after the other.
        seed: Decides order and randomness.
        ranks: The processes that share the work.

    Raises:
        InputError: There is nothing to draw from, or a part would have no sample.
    """

    draw: Draw[BatchT]
    count: int
    batch: int
    accumulate: int
    seed: int
    ranks: Ranks

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError("there is no sample to learn from: prepare a dataset with some in its train split.")
        parts = self.ranks.world_size * self.accumulate
        if self.batch < parts:
            raise InputError(
                f"a batch of {self.batch} cannot be cut into {parts} parts ({self.ranks.world_size} processes, "
                f"accumulate {self.accumulate}): raise batch, or lower accumulate or --nproc-per-node."
            )

    def positions(self) -> list[range]:
        """Places in the whole batch of each part that this process computes."""
        own = cut(self.batch, self.ranks.world_size)[self.ranks.rank]
        return [own[part.start : part.stop] for part in cut(len(own), self.accumulate)]

    def sizes(self) -> list[int]:
        """Samples in each of these parts."""
        return [len(part) for part in self.positions()]

    def part(self, number: int, positions: range) -> BatchT:
        """Draw a part of a step."""
        indices = epoch_indices(self.count, self.batch, number, self.seed)
        generators = [sample_generator(self.seed, number, position) for position in positions]
        return self.draw([indices[position] for position in positions], number, generators)

    def ahead(self, start: int, end: int, threads: int) -> Iterator[BatchT]:
        """All parts of steps ``start`` to ``end``, in order; as many as there are threads are drawn meanwhile."""
        wanted = ((number, positions) for number in range(start, end) for positions in self.positions())
        with ThreadPoolExecutor(threads, "draw") as pool:
            coming: deque[Future[BatchT]] = deque(pool.submit(self.part, *each) for each in islice(wanted, threads))
            try:
                while coming:
                    batch = coming.popleft().result()
                    coming.extend(pool.submit(self.part, *each) for each in islice(wanted, 1))
                    yield batch
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
