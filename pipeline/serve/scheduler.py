"""The model thread and its queue: jobs that can share a model call are run together.

Batches form by themselves: while a call runs, jobs queue up, and the next call takes the oldest and all others of its
key, up to a limit. No job waits for others to arrive.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

Run = Callable[[Sequence[Any]], Sequence[Any]]
"""Takes the payloads of a batch, gives the result of each."""


@dataclass(frozen=True)
class _Job:
    key: Hashable
    run: Run
    weight: int
    payload: Any
    result: "asyncio.Future[Any]"


class Scheduler:
    """Runs jobs in batches on one thread, in the order of arrival.

    Args:
        max_batch: Largest sum of weights of a batch; a single job may exceed it.
        observe: Is called with the name and the weight of each batch.
    """

    def __init__(self, max_batch: int, observe: Callable[[str, int], None] = lambda name, weight: None) -> None:
        self._max_batch, self._observe = max_batch, observe
        self._jobs: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "model")

    def __len__(self) -> int:
        return len(self._jobs)

    async def submit(self, key: tuple[Hashable, ...], run: Run, payload: Any, weight: int = 1) -> Any:
        """Result of ``run`` for ``payload``, computed with other jobs of the same key.

        Args:
            key: Starts with the name of the kind of job. Jobs of equal keys have equivalent ``run``.
            run: Function of the batch's payloads.
            payload: What this job adds to a batch.
            weight: Prompts or images in ``payload``.
        """
        job = _Job(key, run, weight, payload, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._arrived.set()
        return await job.result

    async def work(self) -> None:
        """Run batches until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._arrived.wait()
                batch = self._batch()
                if not batch:
                    self._arrived.clear()
                    continue
                self._observe(batch[0].key[0], sum(job.weight for job in batch))  # type: ignore[index]
                payloads = [job.payload for job in batch]
                try:
                    results = await loop.run_in_executor(self._thread, batch[0].run, payloads)
                except Exception as error:  # noqa: BLE001 - belongs to those who wait for the results
                    for job in batch:
                        if not job.result.done():
                            job.result.set_exception(error)
                    continue
                for job, result in zip(batch, results, strict=True):
                    if not job.result.done():  # its client may have left
                        job.result.set_result(result)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)
            for job in self._jobs:
                job.result.cancel()

    def _batch(self) -> list[_Job]:
        """The oldest job and others of its key; the rest stays in the queue, without those that nobody waits for."""
        batch, others, weight = list[_Job](), list[_Job](), 0
        for job in self._jobs:
            if job.result.done():
                continue
            if not batch or (job.key == batch[0].key and weight + job.weight <= self._max_batch):
                batch.append(job)
                weight += job.weight
            else:
                others.append(job)
        self._jobs = deque(others)
        return batch
