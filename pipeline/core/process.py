"""How a process of the pipeline starts and ends.

It starts without work that nobody needs. On a signal it cleans up, and it does not outlive the one that started it.
"""

import ctypes
import gc
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

_PR_SET_PDEATHSIG = 1
# Loaded while the module is, because between fork and exec nothing may be imported.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; cleaned up like Ctrl-C."""


@contextmanager
def starting() -> Iterator[None]:
    """Let the garbage collector rest while modules are imported, then never look at what they made again.

    Imports leave next to no garbage; looking for it over and over is a sixth of their time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def without(names: Sequence[str]) -> Iterator[None]:
    """Imports in the body find none of these packages, as where they are not installed; afterwards they are there."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: there is no such module
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


def die_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent dies, so that a killed `dvc` leaves no stage behind. No-op elsewhere."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def raise_on_signals() -> None:
    """Turn the first SIGINT or SIGTERM into an exception; later ones cannot disturb the cleaning up."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _raise)


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """What a shell expects of a process that a signal ended: 143 for SIGTERM, 130 for Ctrl-C."""
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


def _raise(number: int, _frame: FrameType | None) -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
