"""What a flow shows on the terminal: its progress and its outcome; everything else goes to a log file."""

import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pipeline.core import log_files

LINES = 20
"""Most lines that a failed release prints."""
_MILESTONES = (1, 4, 16, 64)
"""Numbers of ended stages that are printed where the output is not a terminal."""
_REASONS = 4
_LONGEST = 600


class _Progress(logging.Handler):
    """Shows Prefect's log: on a terminal the last message, otherwise a line at each milestone."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(logging.INFO)
        self._stream, self._ended, self._is_terminal = stream, 0, stream.isatty()

    def emit(self, record: logging.LogRecord) -> None:
        name, message = getattr(record, "task_run_name", ""), record.getMessage()
        ended = message.startswith("Finished in state")
        self._ended += ended
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            text = " ".join(f"[{self._ended} stages done] {name}: {message}".split())
            self._stream.write(f"\r\x1b[K{text[:width]}")
            self._stream.flush()
        elif ended and self._ended in _MILESTONES:
            print(f"{self._ended} stages done, the last: {name}", file=self._stream, flush=True)

    def close(self) -> None:
        if self._is_terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
        super().close()


@contextmanager
def quiet(name: str) -> Iterator[Path | None]:
    """Send all output of a flow to a log file, and show its progress; with ``--debug`` all output is shown.

    Yields:
        The log file, or None.
    """
    with log_files.redirected(name) as (terminal, log):
        if log is None:
            yield None
            return
        print(f"log: {log}", file=terminal, flush=True)
        progress, logger = _Progress(terminal), logging.getLogger("prefect.task_runs")
        logger.addHandler(progress)
        try:
            yield log
        finally:
            logger.removeHandler(progress)
            progress.close()
            logging.getLogger("prefect").setLevel(logging.ERROR)  # the temporary server is stopped at exit


def print_reasons(reasons: Sequence[str], log: Path | None) -> None:
    """Print why a flow failed, the first reason last, and the log file in the last line."""
    shown = [" ".join(reason.split()) for reason in reasons]
    if len(shown) > _REASONS and log:
        shown = [*shown[:_REASONS], f"{len(shown) - _REASONS} more failures are in {log}"]
    for number, reason in reversed(list(enumerate(shown))):
        details = f" Details: {log}" if log and number == 0 else ""
        text = reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]} ..."
        print(f"error: {text}{details}", file=sys.stderr)
