"""Progress reporting: a bar on a terminal, occasional lines in a log."""

import io
import sys
from collections.abc import Iterable
from typing import IO, Any, Never, TypeVar

from tqdm import tqdm

ItemT = TypeVar("ItemT")

_LINE_EVERY_S = 20.0
_LINE = "{desc}: {n_fmt} of {total_fmt}{unit}s, {rate_fmt}, {remaining} to go{postfix}"


class _Lines:
    """Stream that turns tqdm's overwritten line into separate lines."""

    def __init__(self, stream: IO[str] | io.TextIOBase) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        line = text.strip("\r\n ")
        return self._stream.write(f"{line}\n") if line else 0

    def flush(self) -> None:
        self._stream.flush()


def progress(
    work: Iterable[ItemT], what: str, unit: str, *, total: int | None = None, done: int = 0, hidden: bool = False
) -> "tqdm[ItemT]":
    """Iterate over ``work`` and show progress on standard error.

    Args:
        work: Items to iterate over.
        what: Label.
        unit: Name of an item, singular.
        total: Number of items; required if ``work`` has no length.
        done: Items completed in an earlier run.
        hidden: Show nothing, because another process does.
    """
    return tqdm(work, what, total, unit=f" {unit}", initial=done, disable=hidden, **_display_options())


def counter(what: str, unit: str, total: int | None, *, scale: bool = False) -> "tqdm[Never]":
    """A progress bar advanced with ``update``; ``scale`` shows large numbers as k, M, G."""
    return tqdm(None, what, total, unit=f" {unit}", unit_scale=scale, **_display_options())


def notice(text: str) -> None:
    """Print a message on a separate line, without disturbing progress bars."""
    tqdm.write(text, file=sys.stderr)


def _display_options() -> dict[str, Any]:
    if sys.stderr.isatty():
        return {"mininterval": 0.5}
    intervals = {"mininterval": _LINE_EVERY_S, "maxinterval": _LINE_EVERY_S, "delay": _LINE_EVERY_S}
    return {**intervals, "bar_format": _LINE, "file": _Lines(sys.stderr), "leave": False}
