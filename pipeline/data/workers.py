"""Apply a function to many items in several processes, lazily and in order; results do not depend on their number."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from itertools import islice
from typing import TypeVar

from pipeline.core.process import exit_with_parent, sigint_blocked

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

FEW = 48
"""Up to this many items are processed in this process, since starting another takes longer."""
CHUNK = 8


def in_processes(
    function: Callable[[ItemT], ResultT], items: Sequence[ItemT], processes: int | None = None
) -> Generator[ResultT, None, None]:
    """Apply ``function`` to each item.

    Args:
        function: Must be picklable, as must items and results.
        items: Its inputs.
        processes: Number of processes; None for one per available core, or 1 for up to `FEW` items.

    Raises:
        Exception: Any exception of ``function``; pending items are dropped.
    """
    if processes is None:
        processes = 1 if len(items) <= FEW else _cores()
    if processes == 1:
        yield from map(function, items)
        return
    # Spawned, because a fork would copy locks that threads of the caller (MLflow, Prefect, torch) may hold.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(processes, mp_context=context, initializer=exit_with_parent)
    chunks = (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
    work = partial(_apply, function)
    try:
        with sigint_blocked():
            pending: deque[Future[list[ResultT]]] = deque(
                executor.submit(work, chunk) for chunk in islice(chunks, 4 * processes)
            )
        while pending:
            yield from pending.popleft().result()
            pending.extend(executor.submit(work, chunk) for chunk in islice(chunks, 1))
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _apply(function: Callable[[ItemT], ResultT], chunk: Sequence[ItemT]) -> list[ResultT]:
    return [function(item) for item in chunk]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
