"""Drawing of batches ahead of their use: in worker processes of PyTorch's `DataLoader`, or in threads.

Which samples a batch has and what is random about it is part of the request, so that batches do not depend on who draws
them. Worker processes are spawned, since threads of this process (torch, MLflow) may hold locks that a fork would copy.
They end when this process ends, for whatever reason.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.core.errors import InputError
from pipeline.core.process import exit_with_parent, sigint_blocked

BatchT = TypeVar("BatchT")

Draw = Callable[[list[int], int, list[np.random.Generator]], BatchT]
"""``draw(indices, number, generators)`` makes a batch of these samples for a step, with one generator per sample.

It is called from background threads during earlier steps, so it must be thread-safe; and in worker processes, if it can
be pickled, which a function defined in another one cannot.
"""

NumWorkers = int | Literal["auto"]

_MOST_WORKERS = 16
_AHEAD = 2
"""Batches that a worker process draws ahead."""


@dataclass(frozen=True)
class Request:
    """A batch to draw, or a part of one."""

    indices: list[int]
    """Of its samples."""
    number: int
    """Of the step."""
    seeds: Sequence[tuple[int, ...]]
    """Of each sample's generator."""


@dataclass(frozen=True)
class Loading:
    """Who draws batches."""

    workers: int = 0
    """Worker processes; 0 draws in threads."""
    threads: int = 1
    """Drawing threads, without worker processes."""
    pin: bool = False
    """Return batches in pinned memory, from which copies to a GPU are faster and need not be waited for."""


def loading_of(draw: Draw[Any], num_workers: NumWorkers, device: torch.device) -> Loading:
    """Who draws batches for a device.

    Automatically a thread on a CPU, since the step itself uses all cores; with a GPU, the cores divided among this
    machine's processes: worker processes, or threads if ``draw`` cannot be pickled.
    """
    gpu = device.type == "cuda"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    automatic = min(_MOST_WORKERS, max(1, own - 1)) if gpu else 0
    workers = automatic if num_workers == "auto" else int(num_workers)
    picklable = "<locals>" not in getattr(draw, "__qualname__", "")
    return Loading(workers if picklable else 0, min(8, own) if gpu else 1, pin=gpu)


def load(draw: Draw[BatchT], requests: Iterable[Request], loading: Loading) -> Generator[BatchT, None, None]:
    """Yield the batches of ``requests`` in order, drawn ahead.

    Raises:
        Exception: An exception of ``draw``, where its batch is due.
        InputError: A worker process was killed.
    """
    return _in_processes(draw, requests, loading) if loading.workers else _in_threads(draw, requests, loading)


def _in_threads(draw: Draw[BatchT], requests: Iterable[Request], loading: Loading) -> Generator[BatchT, None, None]:
    todo = iter(requests)

    def drawn(request: Request) -> BatchT:
        batch = _drawn(draw, request)
        return _pinned(batch) if loading.pin else batch

    with ThreadPoolExecutor(loading.threads, "draw") as pool:
        pending: deque[Future[BatchT]] = deque(pool.submit(drawn, request) for request in islice(todo, loading.threads))
        try:
            while pending:
                batch = pending.popleft().result()
                pending.extend(pool.submit(drawn, request) for request in islice(todo, 1))
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _in_processes(draw: Draw[BatchT], requests: Iterable[Request], loading: Loading) -> Generator[BatchT, None, None]:
    loader = DataLoader(
        _Draws(draw),
        batch_size=None,
        sampler=requests,
        num_workers=loading.workers,
        collate_fn=_unchanged,
        pin_memory=loading.pin,
        worker_init_fn=_enter,
        multiprocessing_context="spawn",
        generator=torch.Generator(),  # otherwise it advances the global one
        prefetch_factor=_AHEAD,
    )
    with sigint_blocked(), _sigchld_kept():
        outcomes: Iterator[_Outcome[BatchT]] = iter(loader)
    try:
        yield from (outcome.result() for outcome in outcomes)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            f"a process that reads training data ended ({str(error).splitlines()[0].rstrip('. ')}): memory or /dev/shm "
            "may be full; lower optimizer.num_workers in params.yaml, or enlarge /dev/shm."
        ) from None
    finally:
        outcomes._shutdown_workers()  # type: ignore[attr-defined]  # otherwise done when it is collected


@contextmanager
def _sigchld_kept() -> Iterator[None]:
    """Undo what torch does to SIGCHLD: raise for an ended worker wherever the main thread is, in any code.

    An ended worker is also noticed where its batch is due, within seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


@dataclass(frozen=True)
class _Outcome(Generic[BatchT]):
    """A batch, or the exception that a worker process raised instead."""

    batch: BatchT | None
    error: Exception | None = None

    def result(self) -> BatchT:
        if self.error is not None:
            raise self.error
        return self.batch  # type: ignore[return-value]

    def pin_memory(self) -> "_Outcome[BatchT]":
        """Called by the `DataLoader`."""
        return _Outcome(_pinned(self.batch), self.error)


class _Draws(Dataset[_Outcome[BatchT]]):
    """Batches by their request."""

    def __init__(self, draw: Draw[BatchT]) -> None:
        self._draw = draw

    def __getitem__(self, request: Request) -> _Outcome[BatchT]:
        try:
            return _Outcome(_drawn(self._draw, request))
        except Exception as error:  # noqa: BLE001 - raised where the batch is due, without the worker's traceback
            return _Outcome(None, error)


def _drawn(draw: Draw[BatchT], request: Request) -> BatchT:
    return draw(request.indices, request.number, [np.random.default_rng(seed) for seed in request.seeds])


def _unchanged(value: Any) -> Any:
    return value


def _enter(worker: int) -> None:
    exit_with_parent()


def _pinned(batch: Any) -> Any:
    """The batch with its tensors in pinned memory."""
    if isinstance(batch, Tensor):
        return batch if batch.is_cuda else batch.pin_memory()
    if isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):
        return type(batch)(_pinned(part) for part in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{field.name: _pinned(getattr(batch, field.name)) for field in fields(batch)})
    return batch
