"""Log files: what is too long for a terminal, the tracebacks of faults included.

They are in ``.logs/`` of the checkout, or in the system's temporary directory where the checkout cannot be written.
"""

import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from pipeline.core.checkout import main_checkout

DEBUG = "SAM_DISTILLERY_DEBUG"
"""Environment variable set by ``--debug``: tracebacks and other output go to the terminal, also those of stages."""
_DIRECTORY = ".logs"
_KEEP = 10


def debug() -> bool:
    """Whether ``--debug`` was given to this process or to the one that started it."""
    return bool(os.environ.get(DEBUG))


def set_debug(wanted: bool) -> bool:
    """Switch on debug output in this process and its children; the callback of the option ``--debug``."""
    if wanted:
        os.environ[DEBUG] = "1"
    return wanted


def write_traceback(name: str, error: BaseException) -> Path | None:
    """Write the traceback of a fault.

    Args:
        name: Name of the command or repetition, which names the file.
        error: The fault.

    Returns:
        The file; None if it cannot be written.
    """
    if path := getattr(error, "log_file", None):
        return Path(path)
    for directory in _directories():
        path = directory / f"{_slug(name)}.log"
        with suppress(OSError):
            directory.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{' '.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}")
            return _shown(path)
    return None


@contextmanager
def redirected(name: str) -> Iterator[tuple[TextIO, Path | None]]:
    """Redirect the output of this process and its children to a new log file; with ``--debug`` it stays as it is.

    An exception of the body is written to the file, and gets its path as the attribute ``log_file``.

    Args:
        name: Start of the file's name; the ten newest files of a name are kept.

    Yields:
        The terminal's standard error, and the file; None if output is not redirected.
    """
    log = None if debug() else _create(name)
    if log is None:
        yield sys.stderr, None
        return
    path = _shown(Path(log.name))
    saved = [os.dup(number) for number in (1, 2)]
    with log, os.fdopen(os.dup(saved[1]), "w", errors="replace") as terminal:
        _switch(log.fileno(), log.fileno())
        try:
            yield terminal, path
        except BaseException as error:
            with suppress(OSError):
                log.write("".join(traceback.format_exception(error)))
            with suppress(AttributeError):
                error.log_file = path  # type: ignore[attr-defined]
            raise
        finally:
            _switch(*saved)
            for number in saved:
                os.close(number)


def _switch(out: int, err: int) -> None:
    """Let the file descriptors of standard output and error refer to other files."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os.dup2(out, 1)
    os.dup2(err, 2)


def _create(name: str) -> TextIO | None:
    for directory in _directories():
        with suppress(OSError):
            directory.mkdir(parents=True, exist_ok=True)
            for old in sorted(directory.glob(f"{_slug(name)}-*.log"))[: 1 - _KEEP]:
                old.unlink()
            stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
            return (directory / f"{_slug(name)}-{stamp}.log").open("w", buffering=1, errors="replace")
    return None


def _directories() -> Iterator[Path]:
    yield main_checkout() / _DIRECTORY
    with suppress(OSError):
        yield Path(tempfile.gettempdir(), "sam-distillery-logs")


def _slug(name: str) -> str:
    return re.sub(r"[^\w@.-]+", "-", name)


def _shown(path: Path) -> Path:
    """The path relative to the current directory, if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
