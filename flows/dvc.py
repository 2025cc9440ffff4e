"""Run one DVC stage as a process of its own: its output goes on as it comes, and it never outlives the flow."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.process import die_with_parent
from pipeline.stage import kept_by_dvc

_PATIENCE_S = (20.0, 5.0)
"""How long a stage may clean up after Ctrl-C and after SIGTERM, before the next stronger signal."""
_TAIL = 15
_HINT = re.compile(r"\s*(To track the changes|git add|To enable auto staging|dvc config core\.|Use `dvc push`)")
"""What DVC says to a person at a prompt, which a flow's log need not repeat for each stage."""


class StageFailedError(RuntimeError):
    """A stage failed; its text has the reason first, then the last lines of its output."""


class BadInputError(StageFailedError):
    """A stage refused its input; trying again would not help."""


def repro(target: str, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Bring one stage up to date, without those it needs.

    Args:
        target: DVC's name of the stage.
        environment: Variables the stage gets beside the caller's.
        say: Called with each line of output.

    Raises:
        BadInputError: The stage refused its input.
        StageFailedError: It failed otherwise.
    """
    lines: list[str] = []
    command = ["--wait-for-lock", "repro", "--single-item", target]
    process = _dvc(command, environment)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() and not _HINT.match(line):
                lines.append(line.rstrip())
                say(lines[-1])
        code = process.wait()
    except BaseException:
        stop(process)
        restore(target, say)
        raise
    if code:
        restore(target, say)
        raise _failure(target, lines)


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
    if process.stdout is not None:
        process.stdout.close()


def restore(target: str, say: Callable[[str], None]) -> None:
    """Bring back an earlier result: DVC takes it away before it starts a stage."""
    if not kept_by_dvc(target):
        return
    process = _dvc(["checkout", target], {})
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
    reason = reasons[-1] if reasons else next((line for line in reversed(lines) if line.strip()), "no output")
    text = "\n".join([f"{target}: {reason}", *(f"    {line}" for line in lines[-_TAIL:])])
    refused = bool(reasons) and bool(ends) and ends[-1].group(1) == "2"
    return BadInputError(f"{target}: {reason}") if refused else StageFailedError(text)
