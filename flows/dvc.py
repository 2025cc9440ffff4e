"""Run DVC stages as processes of their own: their output goes on as it comes, and they never outlive the flow."""

import fcntl
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

from pipeline.core.process import die_with_parent
from pipeline.core.stage import DVC_LOCK, kept_by_dvc

_PATIENCE_S = (20.0, 5.0)
"""How long a stage may clean up after Ctrl-C and after SIGTERM, before the next stronger signal."""
_REPOSITORY_LOCK = Path(".dvc/tmp/lock")
"""Held by each DVC command while it reads or writes what it keeps, but not while a stage works."""
_HINT = re.compile(r"\s*(To track the changes|git add|To enable auto staging|dvc config core\.|Use `dvc push`)")
"""What DVC says to a person at a prompt, which a flow's log need not repeat for each stage."""
_DVCS_OWN = re.compile(r"ERROR: failed to reproduce")
"""What DVC says below a stage's own last words, which are the reason."""


class StageFailedError(RuntimeError):
    """A stage failed; its text is the reason in one line. All its output was told as it came."""


class BadInputError(StageFailedError):
    """A stage refused its input; trying again would not help."""


class StoppedError(StageFailedError):
    """The flow is to end, and took the stage with it."""


@contextmanager
def lock_in_order(order: Sequence[str]) -> Iterator[None]:
    """Leave the entries of dvc.lock in the order that plain `dvc repro` would.

    DVC appends new entries as stages end: those of stages that run beside each other come in any order. Another DVC
    command, started by a person meanwhile, cannot write between our reading and writing: both hold DVC's own lock.

    Args:
        order: All targets.
    """
    with _repository():
        earlier = list(_entries())
    try:
        yield
    finally:
        with _repository():
            entries = _entries()
            later = sorted(
                (name for name in entries if name not in earlier),
                key=lambda name: order.index(name) if name in order else -1,
            )
            wanted = [name for name in earlier if name in entries] + later
            if wanted != list(entries):
                head = DVC_LOCK.read_text().partition("stages:\n")[0]
                draft = DVC_LOCK.with_suffix(".part")
                draft.write_text(f"{head}stages:\n" + "".join(entries[name] for name in wanted))
                draft.replace(DVC_LOCK)


@contextmanager
def _repository() -> Iterator[None]:
    """Hold DVC's lock of the repository, as zc.lockfile takes it for DVC; waits until no other command has it."""
    _REPOSITORY_LOCK.parent.mkdir(parents=True, exist_ok=True)
    with _REPOSITORY_LOCK.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _entries() -> dict[str, str]:
    """The text of each stage's entry in dvc.lock, in order."""
    if not DVC_LOCK.is_file():
        return {}
    body = DVC_LOCK.read_text().partition("stages:\n")[2]
    return {block.split(":\n")[0].strip(): block for block in re.split(r"^(?=  \S)", body, flags=re.MULTILINE) if block}


class Stages:
    """Stages that run beside each other, each in a thread of its own, and end together.

    As a context: when its body fails or is interrupted, those that run are stopped, and no more are started.
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
        """Bring one stage up to date, without those it needs.

        Args:
            target: DVC's name of the stage.
            environment: Variables the stage gets beside the caller's.
            say: Called with each line of output.
            pull: A result that DVC's remote has is taken from there.

        Raises:
            BadInputError: The stage refused its input.
            StoppedError: The others ended, and this one with them.
            StageFailedError: The stage failed otherwise.
        """
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

    def is_up_to_date(self, target: str) -> bool:
        """Whether `repro` would find nothing to do.

        Raises:
            StoppedError: The others ended.
            StageFailedError: DVC cannot tell.
        """
        code, lines = self._run("dvc status", ["status", "--quiet", target], {}, lambda _: None)
        if code not in (0, 1):
            raise _failure("dvc status", lines)
        return code == 0

    def push(self, targets: Sequence[str], say: Callable[[str], None], *, run_cache: bool) -> None:
        """Put results into DVC's remote.

        Args:
            targets: Whose.
            say: Called with each line of output.
            run_cache: Put there also what they were made from, so that `repro` with ``pull`` finds them elsewhere.

        Raises:
            StoppedError: The others ended.
            StageFailedError: The remote cannot be reached.
        """
        self._move(["push", *(["--run-cache"] if run_cache else []), *targets], say)

    def fetch(self, targets: Sequence[str], say: Callable[[str], None]) -> None:
        """Take the results that dvc.lock names from DVC's remote.

        Raises:
            StoppedError: The others ended.
            StageFailedError: The remote cannot be reached or lacks one.
        """
        self._move(["pull", "--force", *targets], say)

    def _move(self, arguments: list[str], say: Callable[[str], None]) -> None:
        name = f"dvc {arguments[0]}"
        code, lines = self._run(name, arguments, {}, say)
        if code:
            raise _failure(name, lines)

    def _run(
        self, name: str, arguments: list[str], environment: Mapping[str, str], say: Callable[[str], None]
    ) -> tuple[int, list[str]]:
        """One DVC command to its end: exit code, and the lines that are worth telling."""
        lines: list[str] = []
        with self._lock:  # no process may start unseen by __exit__
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
    """Name of DVC's default remote; empty where there is none."""
    return _dvc(["config", "core.remote"], {}).communicate()[0].strip()


def stop(process: subprocess.Popen[str]) -> None:
    """End a process group: first so that it can clean up, at last so that nothing of it is left."""
    for number, patience in zip((signal.SIGINT, signal.SIGTERM), _PATIENCE_S, strict=True):
        _signal(process, number)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        break
    _signal(process, signal.SIGKILL)
    process.wait()


def restore(target: str, say: Callable[[str], None]) -> None:
    """Bring back an earlier result: DVC takes it away before it starts a stage."""
    if not kept_by_dvc(target):
        return
    process = _dvc(["--wait-for-lock", "checkout", target], {})
    output, _ = process.communicate()
    if process.returncode:
        say(f"the earlier result of {target} could not be brought back: {' '.join(output.split())[-300:]}")
    else:
        say(f"the earlier result of {target} is back in its place")


def _dvc(arguments: list[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    # dvc.yaml says `python`: it must be this one, whatever the worker's PATH is.
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
    own = [line for line in lines if not _DVCS_OWN.match(line)]
    code = int(ends[-1].group(1)) if ends else 1
    reason = reasons[-1] if reasons else next(iter((own or lines)[-1:]), "no output")
    if code < 0:
        reason = f"ended by {signal.Signals(-code).name} (too little memory?); the last it said: {reason.strip()}"
    bad_input = bool(reasons) and code == 2
    return (BadInputError if bad_input else StageFailedError)(f"{target}: {reason.strip()}")
