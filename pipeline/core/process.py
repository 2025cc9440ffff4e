"""Start-up and termination of the pipeline's processes: fast imports, clean-up on signals, exit with the parent."""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import FrameType

_PR_SET_PDEATHSIG = 1
# Loaded at import, because nothing may be imported between fork and exec.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; cleaned up like Ctrl-C."""


@contextmanager
def starting() -> Iterator[None]:
    """Disable garbage collection during imports, then exclude the imported objects from collection.

    Imports leave almost no garbage, and collection takes a sixth of their time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def without(names: Sequence[str]) -> Iterator[None]:
    """Make imports of these packages fail within the context, as if they were not installed."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None makes the import fail
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def die_with_parent() -> None:
    """Request SIGTERM when the parent dies (Linux only), so that a killed `dvc` leaves no stage running."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Block SIGINT in processes started within the context: the parent handles Ctrl-C, also while they import."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_with_parent() -> None:
    """Exit a process of `multiprocessing` when its parent exits, for whatever reason."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def raise_on_signals() -> None:
    """Turn the first SIGINT or SIGTERM into an exception; ignore later ones during clean-up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _raise)


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Exit code of a process ended by a signal: 143 for SIGTERM, 130 for Ctrl-C."""
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


def _raise(number: int, _frame: FrameType | None) -> None:
    for handled in (signal.SIGINT, signal.SIGTERM):
        signal.signal(handled, signal.SIG_IGN)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
