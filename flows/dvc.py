"""Run DVC commands as subprocesses that stream their output and never outlive the flow."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Self

from pipeline.core import atomic, scratch
from pipeline.core.dvc_files import has_cached_result, repair_lock, repository_lock
from pipeline.core.failures import is_permanent
from pipeline.core.process import die_with_parent
from pipeline.core.stage import DVC_LOCK, scratch_record

_GRACE_S = (20.0, 5.0)
"""Seconds a stage may clean up after SIGINT and after SIGTERM, before the next stronger signal."""
_HINT = re.compile(r"\s*(To track the changes|git add|To enable auto staging|dvc config core\.|Use `dvc push`)")
"""DVC's hints for interactive use, omitted from the flow's log."""
_DVC_SUMMARY = re.compile(r"ERROR: failed to reproduce")
"""DVC's line after a failed stage's output; the stage's own last line is the reason."""


class StageFailedError(RuntimeError):
    """A stage failed; the message is the reason in one line. Its output has already been logged."""


class BadInputError(StageFailedError):
    """A stage rejected its input; a retry would not help."""


class StoppedError(StageFailedError):
    """The stage was stopped because the flow ended."""


@contextmanager
def lock_in_order(order: Sequence[str]) -> Iterator[None]:
    """Keep the entries of dvc.lock in the order of plain `dvc repro`.

    DVC appends entries as stages end, so concurrent stages would appear in any order. DVC's own lock is held for the
    update, so that a concurrent DVC command cannot write in between.

    Args:
        order: All targets.
    """
    with repository_lock():
        earlier = list(_entries())
    try:
        yield
    finally:
        with repository_lock():
            entries = _entries()
            later = sorted(
                (name for name in entries if name not in earlier),
                key=lambda name: order.index(name) if name in order else -1,
            )
            ordered = [name for name in earlier if name in entries] + later
            if ordered != list(entries):
                head = DVC_LOCK.read_text().partition("stages:\n")[0]
                with atomic.replacing(DVC_LOCK) as draft:
                    draft.write_text(f"{head}stages:\n" + "".join(entries[name] for name in ordered))


def _entries() -> dict[str, str]:
    """Text of each stage's entry in dvc.lock, in order."""
    if not DVC_LOCK.is_file():
        return {}
    body = DVC_LOCK.read_text().partition("stages:\n")[2]
    return {block.split(":\n")[0].strip(): block for block in re.split(r"^(?=  \S)", body, flags=re.MULTILINE) if block}


class Stages:
    """Concurrently running stages, each started from its own thread, that end together.

    As a context manager: when the body fails or is interrupted, running stages are stopped and no more are started.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._running = set[subprocess.Popen[str]]()
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with self._lock:
                self._ended = True
                running = list(self._running)
            for process in running:
                _signal(process, signal.SIGINT)
            for process in running:
                stop(process)

    @property
    def ended(self) -> bool:
        """Whether the body has failed or was interrupted."""
        return self._ended

    def repro(
        self, target: str, environment: Mapping[str, str], say: Callable[[str], None], *, pull: bool = False
    ) -> None:
        """Bring one stage up to date, without its dependencies.

        Args:
            target: DVC's name of the stage.
            environment: Environment variables added to the caller's.
            say: Called with each line of output.
            pull: Use a result from DVC's remote if it has one.

        Raises:
            BadInputError: The stage rejected its input.
            StoppedError: The flow ended.
            StageFailedError: The stage failed otherwise.
        """
        repair_lock()
        flags = ["--pull"] if pull else []
        try:
            code, lines = self._run(target, ["repro", *flags, "--single-item", target], environment, say)
        except StoppedError:
            raise
        except BaseException:
            restore(target, say)
            raise
        if code:
            restore(target, say)
            if self._ended:
                raise StoppedError(f"{target}: stopped, because the flow ended")
            raise _failure(target, lines)
        scratch.discard(scratch_record(target))

    def is_up_to_date(self, target: str) -> bool:
        """Whether `repro` would have nothing to do.

        Raises:
            StoppedError: The flow ended.
            StageFailedError: `dvc status` failed.
        """
        code, lines = self._run("dvc status", ["status", "--quiet", target], {}, lambda _: None)
        if code not in (0, 1):
            raise _failure("dvc status", lines)
        return code == 0

    def push(self, targets: Sequence[str], say: Callable[[str], None], *, run_cache: bool) -> None:
        """Push results to DVC's remote.

        Args:
            targets: Stages whose results to push.
            say: Called with each line of output.
            run_cache: Push the run cache too, so that `repro` with ``pull`` finds the results on another machine.

        Raises:
            StoppedError: The flow ended.
            StageFailedError: The remote cannot be reached.
        """
        self._transfer(["push", *(["--run-cache"] if run_cache else []), *targets], say)

    def fetch(self, targets: Sequence[str], say: Callable[[str], None]) -> None:
        """Pull the results listed in dvc.lock from DVC's remote.

        Raises:
            StoppedError: The flow ended.
            StageFailedError: The remote cannot be reached or lacks a result.
        """
        self._transfer(["pull", "--force", *targets], say)

    def _transfer(self, arguments: list[str], say: Callable[[str], None]) -> None:
        name = f"dvc {arguments[0]}"
        code, lines = self._run(name, arguments, {}, say)
        if code:
            raise _failure(name, lines)

    def _run(
        self, name: str, arguments: list[str], environment: Mapping[str, str], say: Callable[[str], None]
    ) -> tuple[int, list[str]]:
        """Run a DVC command; returns its exit code and its output lines without hints."""
        lines: list[str] = []
        with self._lock:  # __exit__ must see every started process
            if self._ended:
                raise StoppedError(f"{name}: not started, because the flow ended")
            process = _dvc(["--wait-for-lock", *arguments], environment)
            self._running.add(process)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip() and not _HINT.match(line):
                    lines.append(line.rstrip())
                    say(lines[-1])
            return process.wait(), lines
        except BaseException:
            stop(process)
            raise
        finally:
            self._running.discard(process)


def remote() -> str:
    """Name of DVC's default remote; empty if there is none."""
    return _dvc(["config", "core.remote"], {}).communicate()[0].strip()


def stop(process: subprocess.Popen[str]) -> None:
    """End a process group: SIGINT and SIGTERM to let it clean up, then SIGKILL."""
    for number, grace in zip((signal.SIGINT, signal.SIGTERM), _GRACE_S, strict=True):
        _signal(process, number)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            continue
        break
    _signal(process, signal.SIGKILL)
    process.wait()


def restore(target: str, say: Callable[[str], None]) -> None:
    """Restore the previous result of a stage, which DVC removes before it runs the stage."""
    if not has_cached_result(target):
        return
    process = _dvc(["--wait-for-lock", "checkout", target], {})
    output, _ = process.communicate()
    if process.returncode:
        say(f"the previous result of {target} could not be restored: {' '.join(output.split())[-300:]}")
    else:
        say(f"the previous result of {target} was restored")


def _dvc(arguments: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    # dvc.yaml runs `python`, which must be this interpreter, whatever the worker's PATH is.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments],
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        preexec_fn=die_with_parent,
    )


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _failure(target: str, lines: list[str]) -> StageFailedError:
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    ends = [match for line in lines if (match := re.search(r"failed to run: .*, exited with (-?\d+)", line))]
    own = [line for line in lines if not _DVC_SUMMARY.match(line)]
    code = int(ends[-1].group(1)) if ends else 1
    reason = reasons[-1] if reasons else next(iter((own or lines)[-1:]), "no output")
    if code < 0:
        reason = f"ended by {signal.Signals(-code).name} (out of memory?); last output: {reason.strip()}"
    # A stage that rejects its input, or DVC itself before or after the stage.
    bad_input = code == 2 if reasons else not ends and is_permanent("\n".join(lines))
    return (BadInputError if bad_input else StageFailedError)(f"{target}: {reason.strip()}")
