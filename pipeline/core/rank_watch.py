"""Ends a process of `pipeline.core.distributed` when another process of its job has failed.

In a collective a process waits for a failed one until the timeout, which is days, and its main thread runs no Python
meanwhile: neither an exception nor a signal handler reaches it. A thread therefore watches, over the job's store, for
the reason of a failure and for the other processes' heartbeats, and receives this process's signals.
"""

import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from torch.distributed import DistError
from torch.distributed.distributed_c10d import Store

from pipeline.core.errors import InputError

POLL_S = 1.0
"""Interval of the heartbeats, and of looking for failures."""
SILENT_POLLS = 60
"""Polls without a heartbeat after which a process counts as lost. Polls, not seconds: a suspended job may resume."""
GRACE_S = 3.0
"""How long a process may take to notice the failure itself, by its collective's error, before it is interrupted."""
FORCE_S = 20.0
"""How long it may then take to clean up before it is ended; schedulers and ``torchrun`` kill after 30 s."""

_REASON = "failed"
_STOPPED = "it was stopped"


class RankError(InputError):
    """Another process of the job failed; the message has its reason."""


class Watch:
    """The watching thread's state; see `watching`.

    Args:
        rank: Rank of this process.
        world_size: Number of processes.
        abort: Ends collectives that this process waits in, if they do not end when the other process does.
    """

    def __init__(self, rank: int, world_size: int, abort: Callable[[], None]) -> None:
        self._abort = abort
        self._rank, self._peers = rank, [r for r in range(world_size) if r != rank]
        self._store: Store | None = None
        self._reason: str | None = None
        self._failed, self._stopped = threading.Event(), threading.Event()
        self._lock = threading.Lock()

    def connect(self, store: Store) -> None:
        """Start heartbeats and watching over the job's store; ``store`` is this object's own connection."""
        store.set(f"beat/{self._rank}", "0")
        self._store = store

    def fail(self, error: BaseException) -> BaseException:
        """Tell the others of this process's failure, unless it follows from another one's.

        Returns:
            ``error``, or `RankError` if another process failed first.
        """
        self._failed.set()
        # A collective's error or an interruption may follow from another process's failure, which may be known later.
        disconnected = isinstance(error, RuntimeError) and _is_connection(error)
        deadline = time.monotonic() + (GRACE_S if disconnected else 0.0)
        self._look()
        while self._reason is None and time.monotonic() < deadline:
            time.sleep(0.1)
            self._look()
        stopped = isinstance(error, KeyboardInterrupt)
        if self._reason is not None and (disconnected or (stopped and not self._reason.endswith(_STOPPED))):
            return RankError(self._reason)
        if disconnected:
            return RankError(
                f"process {self._rank} lost the connection to another process, which ended without a reason: it may "
                "have been killed, for example when memory ran out. Run again to resume from the last checkpoint."
            )
        text = " ".join(str(error).split()) or type(error).__name__
        text = _STOPPED if stopped else text
        self._publish(f"process {self._rank} failed, which ends the others: {text[:500]}")
        return error

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()

    def run(self, signals: socket.socket) -> None:
        """Watch until `stop`, in a thread. After a failure, give the main thread time to end, then end the process."""
        beats, silent, number = dict[int, bytes](), dict.fromkeys(self._peers, 0), 0
        while not self._stopped.is_set():
            if self._failed.is_set():
                self._end(None)
                return
            if select.select([signals], [], [], POLL_S)[0] and _is_stop(signals.recv(64)):
                self._end(None)
                return
            number += 1
            lost = self._beat(number, beats, silent)
            self._look()
            if self._reason is None and lost is not None:
                self._reason = lost
            if self._reason is not None:
                self._end(self._reason)
                return

    def _beat(self, number: int, beats: dict[int, bytes], silent: dict[int, int]) -> str | None:
        """Send a heartbeat, and return what is wrong if another process has sent none for long."""
        if self._store is None:
            return None
        try:
            self._store.set(f"beat/{self._rank}", str(number))
            for peer in self._peers:
                key = f"beat/{peer}"
                if not self._store.check([key]):
                    continue
                beat = self._store.get(key)
                silent[peer] = silent[peer] + 1 if beats.get(peer) == beat else 0
                beats[peer] = beat
        except RuntimeError:
            return "the connection to process 0's machine was lost: that process or its launcher ended."
        dead = [peer for peer, polls in silent.items() if polls >= SILENT_POLLS]
        if not dead:
            return None
        seconds = SILENT_POLLS * POLL_S
        return f"process {dead[0]} has not responded for {seconds:g} s: it was killed, or its machine is down."

    def _look(self) -> None:
        with self._lock:
            if self._store is None or self._reason is not None:
                return
            with suppress(RuntimeError):
                if self._store.check([_REASON]):
                    self._reason = self._store.get(_REASON).decode()

    def _publish(self, reason: str) -> None:
        with self._lock:
            if self._store is not None:
                with suppress(RuntimeError):
                    self._store.compare_set(_REASON, "", reason)

    def _end(self, reason: str | None) -> None:
        """Let the main thread end by itself, then interrupt it, at last end the process without it."""
        if self._stopped.wait(GRACE_S):
            return
        with suppress(Exception):
            self._abort()
        if reason is not None and not self._failed.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        if self._stopped.wait(FORCE_S - GRACE_S):
            return
        os.write(2, f"error: {reason or 'the process did not stop in time and was ended'}\n".encode())
        os._exit(1)


@contextmanager
def watching(rank: int, world_size: int, abort: Callable[[], None]) -> Iterator[Watch]:
    """Watch within the context, see `Watch`; the caller calls `Watch.fail` for an exception that leaves it.

    The process is ended if it outlives a failure or a signal by `FORCE_S`, also after the context.
    """
    watch = Watch(rank, world_size, abort)
    read, write = socket.socketpair()
    write.setblocking(False)  # as set_wakeup_fd requires
    in_main = threading.current_thread() is threading.main_thread()
    # Python's handlers run between two instructions of the main thread, this at once.
    before = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False) if in_main else -1
    thread = threading.Thread(target=watch.run, args=(read,), name="rank-watch", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        if in_main:
            signal.set_wakeup_fd(before)
        write.close()


def _is_stop(numbers: bytes) -> bool:
    return bool({signal.SIGINT, signal.SIGTERM} & set(numbers))


_CONNECTION = re.compile(r"\b(gloo|nccl|connection|peer)\b")


def _is_connection(error: BaseException) -> bool:
    """Whether a collective failed because the other end is gone."""
    text = str(error).lower()
    return isinstance(error, DistError) or _CONNECTION.search(text) is not None
