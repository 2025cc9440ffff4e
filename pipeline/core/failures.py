"""Exit codes of commands, and one-line reports of everything that is not a program fault."""

import errno
import os
import sys
from collections.abc import Callable, Sequence

from pipeline.core import log_files, process
from pipeline.core.errors import GateError, InputError, Refused

OK = 0
GATE = 1
"""`promote` or `verify` rejected a model, or `doctor` found a fault."""
FAULT = 1
"""A fault of the program; its traceback is in a log file."""
BAD_INPUT = 2
REFUSED = 3
"""A candidate missed a gate of its stage: nothing is broken, and other candidates continue."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAY_FULL = (
    "no space left on device", "os error 28", "file too large", "os error 27", "database or disk is full",
    "iostream error",  # all that a C++ stream reports
)  # fmt: skip
_SAY_UNREACHABLE = (
    "max retries exceeded", "connection refused", "connection reset", "failed to reach api", "server disconnected",
    "all connection attempts failed",
)  # fmt: skip
_SAY_DATABASE = (
    "database disk image is malformed", "file is not a database", "unable to open database file",
    "attempt to write a readonly database", "disk i/o error",
)  # fmt: skip
_SAY_DVC = ("is not a git repository", "read-only file system", "permission denied", "is corrupted", "is invalid")
_LONGEST_REASON = 500
_SAY_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


def guarded(command: Callable[[], int], name: str, hint: Callable[[], str] = str) -> int:
    """Run a command; report bad input, refusals, signals and system errors in one line.

    Args:
        command: Returns its exit code.
        name: Name used in messages, for example ``distill@tinysam``.
        hint: Returns text to append to a failure's line.

    Returns:
        The exit code: the command's, `GATE`, `BAD_INPUT`, `REFUSED`, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        Exception: A program fault, with ``--debug``; otherwise its traceback is in the log file that the line names.
    """
    try:
        return command()
    except KeyboardInterrupt as interrupt:
        return report(f"{name} was stopped.{hint()}", process.exit_code(interrupt))
    except GateError as error:
        return report(str(error), GATE)
    except Refused as refused:
        return report(f"{refused.rule}: {refused.reason}", REFUSED)
    except (InputError, FloatingPointError) as error:  # the latter: a training that diverged
        return report(f"{error}{hint()}", BAD_INPUT)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "pipeline", "flows"):
            return _report_fault(name, error, hint)
        extras = "`pip install 'sam-distillery[train,quantize,flows]'` installs everything but what GPUs need."
        return report(f"{package} is not installed. {extras}", BAD_INPUT)
    except Exception as error:  # noqa: BLE001 - nothing is hidden: the line names the traceback's file
        reason = from_system(error)
        if reason is None:
            return _report_fault(name, error, hint)
        return report(f"{reason}{hint()}", BAD_INPUT)


def _report_fault(name: str, error: Exception, hint: Callable[[], str]) -> int:
    """Report a fault of the program in one line that names the file with its traceback."""
    if log_files.debug():
        raise error
    text = " ".join(str(error).split())[:_LONGEST_REASON]
    reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
    log = log_files.write_traceback(name, error)
    details = f" Details: {log}" if log else ""
    return report(f"{reason.rstrip('.')}.{hint()}{details}", FAULT)


def report(reason: str, code: int) -> int:
    """Print ``error: <reason>`` as one line on stderr; return ``code``."""
    print(f"error: {' '.join(reason.split())}", file=sys.stderr)  # noqa: T201 - what commands end with
    return code


def from_system(error: BaseException) -> str | None:
    """Describe a system error (disk, memory, permissions, servers) with a remedy; None for a program fault."""
    file = getattr(error, "filename", None)
    where = f"{file}: " if file else ""
    number = getattr(error, "errno", None)
    if _says(error, _FULL, _SAY_FULL):
        remedy = "Free some (`dvc gc --workspace` empties DVC's cache) and run again."
        return f"{file or 'artifacts'}: no space left on the device. {remedy}"
    if isinstance(error, MemoryError) or _says(error, (errno.ENOMEM,), _SAY_NO_MEMORY):
        return (
            "memory ran out. Lower batch, masks, prompts or calibration_images in the stage's section of params.yaml; "
            "in a training, optimizer.micro_batch or optimizer.accumulate cuts a batch into parts."
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where}may not be written or read ({os.strerror(number)}). Change its permissions, or move it."
    if number in (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG):
        return f"{where}{os.strerror(number)}. Check the disk or the limit (`ulimit -n`) and run again."
    cause = " ".join(str(error).split())[:_LONGEST_REASON]
    if _says(error, (), _SAY_DATABASE):
        return f"a SQLite database cannot be used: {cause}. Check mlflow.db, .prefect/prefect.db and the disk."
    if _says(error, (), _SAY_UNREACHABLE):
        return f"a server cannot be reached: {cause}. Check MLFLOW_TRACKING_URI and PREFECT_API_URL, and run again."
    return None


def is_permanent(output: str) -> bool:
    """Whether a tool's output says that it would fail again: disk, permissions, repository or a broken file."""
    return any(words in output.lower() for words in (*_SAY_FULL, *_SAY_DATABASE, *_SAY_DVC))


def _says(error: BaseException | None, numbers: Sequence[int], words: Sequence[str]) -> bool:
    """Whether an error or one of its causes has such an errno or text, since not every library sets errno."""
    while error is not None:
        if getattr(error, "errno", None) in numbers or any(word in str(error).lower() for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False
