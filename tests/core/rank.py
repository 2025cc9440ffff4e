"""One process of a job of two, which `test_rank_watch` starts: ``python -m tests.core.rank EVENT WAIT``."""

import ctypes
import os
import signal
import sys
import time

import torch

from pipeline.core import process, rank_watch
from pipeline.core.distributed import Ranks, joined
from pipeline.core.errors import InputError
from pipeline.core.failures import guarded

FOREVER_S = 300


def happen(event: str) -> None:
    if event == "raise":
        raise InputError("the sample is damaged")
    numbers = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}
    if event in numbers:
        os.kill(os.getpid(), numbers[event])


def wait(ranks: Ranks, how: str) -> None:
    if how == "computing":
        deadline = time.monotonic() + FOREVER_S
        while time.monotonic() < deadline:
            pass
    if how == "deaf":  # as in a collective of NCCL: no Python runs in the main thread, and no signal reaches it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        ctypes.CDLL(None).sleep(FOREVER_S)
    ranks.total(torch.ones(2))


def main() -> int:
    event, how = sys.argv[1:]
    process.raise_on_signals()
    with joined() as ranks:
        if ranks.rank == 1:
            happen(event)
        wait(ranks, how)
    return 0


if __name__ == "__main__":
    rank_watch.FORCE_S = 6.0  # type: ignore[misc]
    raise SystemExit(guarded(main, "the job"))
