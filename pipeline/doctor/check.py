"""One line of the doctor's report, and the deadline of each check."""

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Thread
from typing import Any, Literal

from pipeline.core.errors import InputError

Status = Literal["ok", "warning", "fault"]


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    name: str
    status: Status
    text: str
    """What was found, in one line."""
    remedy: str = ""
    """What to do; empty if nothing has to be done."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The same for programs: JSON values."""


Run = Callable[[], Sequence[Check]]


def of_error(name: str, error: InputError, status: Status = "fault") -> Check:
    """A failed check of `pipeline.core.preflight`, whose messages end with their remedy."""
    text, _, remedy = " ".join(str(error).split()).rpartition(": ")
    return Check(name, status, text or remedy, remedy if text else "")


def run_all(checks: Mapping[str, tuple[Run, float]]) -> list[Check]:
    """Run checks side by side; one that does not end is reported and left behind.

    A hung file system or driver blocks its thread for good, so the threads are daemons.

    Args:
        checks: Each check and its deadline in seconds, by name.
    """
    results: dict[str, Sequence[Check]] = {}

    def into(name: str, run: Run) -> None:
        try:
            results[name] = run()
        except InputError as error:
            results[name] = [of_error(name, error)]
        except Exception as error:  # noqa: BLE001 - a check that fails must not hide the others
            results[name] = [Check(name, "warning", f"was not checked ({type(error).__name__}: {error})".strip())]

    threads = {name: Thread(target=into, args=(name, run), daemon=True) for name, (run, _) in checks.items()}
    start = time.monotonic()
    for thread in threads.values():
        thread.start()
    for name, thread in threads.items():
        thread.join(max(0.0, start + checks[name][1] - time.monotonic()))
    return [
        check
        for name, (_, deadline) in checks.items()
        for check in results.get(name) or [Check(name, "warning", f"did not answer within {deadline:.0f} s")]
    ]


def output_of(command: Sequence[str], timeout_s: float) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a program.

    Raises:
        InputError: It did not end in time.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"{command[0]} did not end within {timeout_s:.0f} s: run it by hand.") from None
    return done.returncode, done.stdout, done.stderr
